"""Figures: as many panels as there is to show, the very pixels of the set in them, readable at any size, torch never loaded."""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import attrs
import matplotlib.image
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, strategies as st
from matplotlib.figure import Figure
from PIL import Image

from distilkit import MLP, SGD, Digits, Distiller, Evaluation, FullUnroll, Learner, Outer, report
from distilkit.errors import RunError, counted
from distilkit.report.drawing import save
from distilkit.report.grid import PAPER, Grid
from distilkit.report.sheet import MOST_CLASSES
from distilkit.storage import SetArrays, distilled_group, layout


def arrays(classes: int, ipc: int, channels: int = 3, side: int = 8, *, names: Any = None, blocks: int = 1) -> SetArrays:
    rng = np.random.default_rng(0)
    n = classes * ipc
    ramp = np.linspace(0, 120, side)[None, None, :, None] + np.linspace(0, 120, side)
    pixel = (ramp + rng.integers(0, 15, (n, channels, side, side))).astype(np.uint8)
    owner = np.repeat(np.arange(classes), ipc)
    return SetArrays(
        image=pixel.astype(np.float32),
        label=np.eye(classes, dtype=np.float32)[owner],
        label_class=owner,
        class_names=tuple(names or [f"class {i}" for i in range(classes)]),
        label_space="one-hot",
        pixel=pixel,
        block=np.tile(np.arange(ipc) * blocks // max(ipc, 1), classes),
    )


def tree(
    *, steps: int = 40, seeds: int = 3, best: SetArrays | None = None, history: dict[str, Any] | None = None, **kwargs: Any
) -> xr.DataTree:
    rng = np.random.default_rng(1)
    groups = {"distilled": distilled_group(arrays(**({"classes": 3, "ipc": 2} | kwargs)), steps)}
    if best is not None:
        groups |= {"distilled": distilled_group(best, 5, validation_accuracy=0.5), "last": groups["distilled"]}
    columns = {"outer_step": np.arange(steps), "outer_loss": 2 + rng.random(steps), "meta_gradient_norm": rng.lognormal(-2, 1, steps)}
    groups["history"] = layout.history_group(columns | (history or {}))
    if seeds:
        # As a run writes them.
        protocol = Evaluation(seeds=seeds, steps=(100, 300)).to_json() | {"selected_training_steps": 300}
        validation = {s: {k: 0.3 + s / steps / 3 + 0.02 * k for k in range(seeds)} for s in range(0, steps, 10)}
        groups["evaluation"] = layout.evaluation_group(
            protocol=protocol, which="best", accuracy={k: 0.6 + 0.01 * k for k in range(seeds)}, validation=validation
        )
        groups["baselines"] = layout.baselines_group({"random $real": {0: 0.3, 1: 0.34}, "full data": {0: 0.9}})
    return layout.build(groups, title="distilled $digits", spec={}, seed=0, torch_version="0")


def panels(figure: Figure) -> int:
    return len(figure.axes)


SLOW = {"fifty a class", "two hundred classes"}
LARGE = pytest.mark.slow
SHEETS: dict[str, dict[str, Any]] = {
    "digits": {"classes": 10, "ipc": 1, "channels": 1},
    "two channels": {"classes": 2, "ipc": 2, "channels": 2},
    "five channels": {"classes": 2, "ipc": 2, "channels": 5},
    "one of one": {"classes": 1, "ipc": 1},
    "fifty a class": {"classes": 10, "ipc": 50},
    "hundred classes": {"classes": 100, "ipc": 1},
    "two hundred classes": {"classes": 200, "ipc": 60, "side": 4},
    "no font has these": {"classes": 3, "ipc": 1, "names": ["鳥\n鳥", "$\\frac{", "\x00😀" * 30]},
    "blocks": {"classes": 4, "ipc": 6, "blocks": 3},
}


@pytest.mark.parametrize(
    ("made", "beside"),
    [
        pytest.param(made, beside, marks=LARGE if name in SLOW else (), id=f"{name}, {beside} beside")
        for name, made in SHEETS.items()
        for beside in ((2,) if name in SLOW else (0, 2))
    ],
)
def test_a_sheet_of_any_size_is_drawn(tmp_path: Path, made: dict[str, Any], beside: int) -> None:
    run = tree(steps=2, seeds=0, **made)
    shape = (made["classes"] * beside, made.get("channels", 3), made.get("side", 8), made.get("side", 8))
    real = (np.zeros(shape, np.uint8), np.repeat(np.arange(made["classes"]), beside)) if beside else None
    figure = report.sheet_figure(run, real=real)
    with Image.open(save(figure, tmp_path / "a" / "sheet.png")) as picture:
        colors = np.asarray(picture.convert("RGBA")).view(np.uint32)
    height, width = colors.shape[:2]
    assert 200 < width < 3600
    assert 150 < height < 3600
    assert width / height < 4 or made["classes"] < 4  # no strip that a page cannot show
    assert len(np.unique(colors)) > 20
    said = figure.get_suptitle()
    assert ("of 200 classes" in said) == (made["classes"] > MOST_CLASSES)
    assert ("images a class" in said) == (made["ipc"] > 50)
    assert ("channels" in said) == (made.get("channels", 3) not in (1, 3))
    assert ("blocks of 2, 2, 2 a class" in said) == ("blocks" in made)
    words = [text.get_text() for text in figure.axes[0].texts]
    assert ("real" in words) == (beside > 0)
    assert ("block 1" in words) == ("blocks" in made)


def test_each_place_shows_the_pixels_of_its_sample() -> None:
    made = arrays(classes=3, ipc=2, side=8)
    order = np.random.default_rng(0).permutation(6)  # rows of a set need not lie by class
    made = attrs.evolve(made, pixel=made.pixel[order], label_class=made.label_class[order], label=made.label[order])
    real = np.random.default_rng(1).integers(0, 255, (6, 3, 8, 8), dtype=np.uint8), np.array([2, 1, 0, 2, 1, 0])
    run = layout.build({"distilled": distilled_group(made, 1)}, title="", spec={}, seed=0, torch_version="0")
    left = report.sheet_figure(run, real=real).axes[0].images[0].get_array().copy()
    grid = Grid.of(3, depth=2, real=2, size=(8, 8))
    for c in range(3):
        for images, places in ((made.pixel[made.label_class == c], grid.places(c)), (real[0][real[1] == c], grid.places_beside(c))):
            take_away(left, images, places)
    assert (left == PAPER).all()
    start, near = 200 - made.pixel, (real[0], np.array([2, 1, 0, 0, 0, 0]))
    figure = report.sheet_figure(run, before=start, nearest=near)
    left = figure.axes[0].images[0].get_array().copy()
    grid = Grid.of(3, depth=2, real=0, size=(8, 8), stack=3)
    for c in range(3):
        for layer, images in enumerate((start, made.pixel, near[0])):
            take_away(left, images[made.label_class == c], grid.places(c, layer))
    assert (left == PAPER).all()
    assert f"of the same class: {(near[1] == made.label_class).sum()} of 6" in " ".join(figure.get_suptitle().split())
    words = [text.get_text() for text in figure.axes[0].texts]
    assert [words.count(word) for word in ("start", "distilled", "nearest", "real")] == [math.ceil(3 / grid.across)] * 3 + [0]
    with pytest.raises(RunError, match="one for each sample"):
        report.sheet_figure(run, before=start[:5])


def take_away(canvas: np.ndarray, images: np.ndarray, places: list[tuple[int, int]]) -> None:
    """See that the images are there, and put paper in their place."""
    for image, (y, x) in zip(images, places, strict=True):
        np.testing.assert_array_equal(canvas[y : y + 8, x : x + 8], image.transpose(1, 2, 0))
        canvas[y : y + 8, x : x + 8] = PAPER


@given(
    st.integers(1, 12),
    st.integers(1, 25),
    st.integers(0, 25),
    st.tuples(st.integers(1, 20), st.integers(1, 20)),
    st.sampled_from([0, 2]),
    st.integers(1, 3),
)
def test_no_two_images_of_a_sheet_overlap(classes: int, depth: int, real: int, size: tuple[int, int], words: int, stack: int) -> None:
    grid = Grid.of(classes, depth, real, size, words, stack)
    paper = np.zeros(grid.size, np.uint8)
    for number in range(classes):
        layers = [grid.places(number, layer) for layer in range(stack)]
        assert all(len(places) >= depth for places in layers)
        assert len(grid.places_beside(number)) >= real
        for y, x in [*itertools.chain(*layers), *grid.places_beside(number)]:
            assert y >= 0
            assert x + grid.width <= grid.size[1]
            assert y + grid.height <= grid.size[0]
            paper[y : y + grid.height, x : x + grid.width] += 1
    assert paper.max() == 1


def test_soft_labels_are_written_below_few_images() -> None:
    made = arrays(classes=3, ipc=1)
    made.label[0] = [0.5, 0.125, 2]
    run = layout.build({"distilled": distilled_group(made, 1)}, title="", spec={}, seed=0, torch_version="0")
    assert "class 2 2.00\nclass 0 0.50" in [text.get_text() for text in report.sheet_figure(run).axes[0].texts]
    two = arrays(classes=3, ipc=2)
    two.label[:] = 0.25
    run = layout.build({"distilled": distilled_group(two, 1)}, title="", spec={}, seed=0, torch_version="0")
    assert not [text for text in report.sheet_figure(run).axes[0].texts if "0.25" in text.get_text()]  # there is room for one only
    hard = tree(seeds=0, classes=3, ipc=1)
    assert not [text for text in report.sheet_figure(hard).axes[0].texts if "1.00" in text.get_text()]


def test_more_than_a_sheet_holds_is_refused() -> None:
    real = np.zeros((21_000, 3, 8, 8), np.uint8), np.zeros(21_000, int)
    with pytest.raises(RunError, match="do not go on one sheet"):
        report.sheet_figure(tree(seeds=0, classes=1, ipc=1), real=real)
    assert report.images_shown(tree(seeds=0, classes=10, ipc=50)) == 50
    assert report.images_shown(tree(seeds=0, classes=10, ipc=50), rows=3) == 3


@pytest.mark.parametrize("kind", ["png", "pdf", "svg"])
def test_a_picture_is_what_its_name_says(tmp_path: Path, kind: str) -> None:
    path = report.sheet(tree(seeds=0), tmp_path / f"sheet.{kind}")
    assert {"png": b"PNG", "pdf": b"%PDF", "svg": b"<svg"}[kind] in path.read_bytes()[:1000]


def test_the_file_holds_the_colours_of_the_set(tmp_path: Path) -> None:
    made = arrays(classes=2, ipc=1)
    made.pixel[0, :], made.pixel[1, :] = np.array([250, 10, 20])[:, None, None], np.array([5, 240, 30])[:, None, None]
    run = layout.build({"distilled": distilled_group(made, 1)}, title="", spec={}, seed=0, torch_version="0")
    picture = (matplotlib.image.imread(report.sheet(run, tmp_path / "s.png"))[:, :, :3] * 255).round().astype(int)
    for colour in ([250, 10, 20], [5, 240, 30]):
        assert (picture == colour).all(axis=2).sum() > 50 * 50


def test_real_images_stand_beside_and_best_is_preferred() -> None:
    real = np.full((4, 3, 8, 8), 77, np.uint8), np.array([0, 1, 2, 2])
    run = tree(seeds=0, best=arrays(classes=3, ipc=1))
    assert "3 distilled images after 5" in report.sheet_figure(run).get_suptitle()
    figure = report.sheet_figure(run, which="last", real=real)
    assert "6 distilled images" in figure.get_suptitle()
    assert (figure.axes[0].images[0].get_array() == 77).all(2).sum() == 4 * 8 * 8
    with pytest.raises(RunError, match="do not go with"):
        report.sheet_figure(run, real=(np.zeros((1, 1, 8, 8), np.uint8), np.array([0])))


CURVES: dict[str, tuple[dict[str, Any], int]] = {
    "all": ({}, 3),
    "one seed": ({"seeds": 1}, 3),
    "no evaluation": ({"seeds": 0}, 2),
    "long": ({"steps": 500}, 3),
    "one step": ({"steps": 1}, 3),
    "no step": ({"steps": 0, "seeds": 0}, 2),
    "zeros and NaN": ({"history": {"meta_gradient_norm": np.zeros(40), "outer_loss": np.full(40, np.nan)}}, 3),
}


@pytest.mark.parametrize(("made", "count"), CURVES.values(), ids=CURVES)
def test_curves_of_any_run_are_drawn(tmp_path: Path, made: dict[str, Any], count: int) -> None:
    figure = report.curves_figure(tree(**made))
    assert panels(figure) == count
    picture = matplotlib.image.imread(save(figure, tmp_path / "curves.png"))
    assert (picture[:, :, :3].min(axis=2) < 0.9).sum() > 1000


def test_curves_show_the_numbers_of_the_run() -> None:
    run = tree()
    figure = report.curves_figure(run)
    loss, norm, accuracy = figure.axes
    np.testing.assert_array_equal(loss.lines[0].get_ydata(), run["history/outer_loss"])
    assert norm.get_yscale() == "log"
    np.testing.assert_allclose(accuracy.lines[0].get_ydata(), run["evaluation/validation_accuracy"].values.mean(axis=1))
    band = accuracy.collections[0].get_paths()[0].vertices[:, 1]
    assert np.ptp(band) > np.ptp(run["evaluation/validation_accuracy"].values.mean(axis=1))
    words = [t.get_text() for t in figure.legends[0].get_texts()]
    assert [w for w in words if "random $real" in w and "32.0 ± 2.8%" in w]
    assert [w for w in words if "full data" in w and "90.0%" in w]


def test_the_title_says_the_training_steps_of_a_real_run(tmp_path: Path) -> None:
    """The words that `Evaluation` writes and those that the figure reads are the same."""
    distiller = Distiller(
        Digits(),
        Learner(MLP(hidden=(4,)), SGD(lr=0.1)),
        FullUnroll(2),
        outer=Outer(steps=1, batch_size=16),
        evaluation=Evaluation(seeds=2, steps=(1, 3), every=1, baselines=()),
        device="cpu",
    )
    run = distiller.run(tmp_path / "run")
    steps = json.loads(run["evaluation"].attrs["protocol"])["selected_training_steps"]
    assert steps in (1, 3)
    title = report.curves_figure(run).axes[-1].get_title(loc="left")
    assert title == f"accuracy: mean and standard deviation over 2 seeds, {counted(steps, 'training step')}"
    run["evaluation"].attrs["protocol"] = json.dumps(distiller.evaluation.to_json())  # while it goes on, nothing is selected
    assert report.curves_figure(run).axes[-1].get_title(loc="left").endswith("2 seeds, 1 or 3 training steps")


def test_no_history_and_no_set_are_told_in_words() -> None:
    empty = layout.build({}, title="", spec={}, seed=0, torch_version="0")
    with pytest.raises(RunError, match="no group /history"):
        report.curves_figure(empty)
    with pytest.raises(RunError, match="no group /distilled"):
        report.sheet_figure(empty)


def test_torch_and_pyplot_are_not_loaded() -> None:
    code = "import sys, distilkit.report; assert not {'torch', 'matplotlib.pyplot'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr

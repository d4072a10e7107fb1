"""The recipes against the table of the paper's code, and each of them run on a small scale."""

from __future__ import annotations

import io
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

import distilkit as dk
from distilkit import recipes, spec
from distilkit.cli.app import app
from distilkit.cli.tables import recipes_table
from distilkit.errors import DistilkitError
from distilkit.evaluation.training import cost
from distilkit.functional.streams import Stream
from distilkit.spec.text import parse, to_toml
from distilkit.unroll import execution

FAST = [name for name in recipes.names() if name.startswith("fast/")]
OURS = ["digits", "paper/fashion-mnist-boosted", *FAST]  # settings of our own
NAMES = [name for name in recipes.names() if name not in OURS]

# Rows of the authors' public code: window, horizon (None: a fixed start), start, images of an inner step, real batch,
# outer learning rate, soft labels, whitened, depth.
ROWS = {
    "paper/cifar10-ipc10": (60, 200, None, 100, 5000, 1e-3, False, True, 3),
    "paper/cifar100-ipc10": (100, 300, None, 100, 5000, 1e-3, True, True, 3),
    "paper/tinyimagenet-ipc10": (100, 300, None, 50, 1000, 3e-4, True, True, 4),
    "paper/cifar100-ipc1-stabilised": (90, None, 40, 100, 5000, 3e-4, True, True, 3),
    "paper/tinyimagenet-ipc10-stabilised": (90, None, 180, 50, 2000, 3e-4, True, True, 4),
    "paper/imagenet64-ipc1": (80, None, 200, 50, 1500, 3e-4, True, False, 4),
}
# Every cell of the main table: data, images per class, accuracy of RaT-BPTT.
MAIN = {
    "paper/cifar10-ipc1": 53.2,
    "paper/cifar10-ipc10": 69.4,
    "paper/cifar10-ipc50": 75.3,
    "paper/cifar100-ipc1": 35.3,
    "paper/cifar100-ipc10": 47.5,
    "paper/cifar100-ipc50": 50.6,
    "paper/tinyimagenet-ipc1": 20.1,
    "paper/tinyimagenet-ipc10": 24.4,
    "paper/imagenet64-ipc1": 5.2,
    "paper/imagenet64-ipc10": 13.0,
}
# Images (all splits) and classes of the datasets.
SIZES = {"CIFAR10": (60_000, 10), "CIFAR100": (60_000, 100), "TinyImageNet": (110_000, 200), "CUB200": (11_788, 200)}
SIZES["ImageFolder"] = (1_331_167, 1000)  # ImageNet-1K, the only ImageFolder here


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("DISTILKIT_CACHE", str(tmp_path_factory.getbasetemp() / "distilkit-cache"))


def load(name: str) -> dk.Distiller:
    pipeline: dk.Distiller = spec.load(name)
    return pipeline


@pytest.mark.parametrize("name", [name for name in FAST if name.startswith("fast/cifar10-ipc1") and "ipc10-" not in name + "-"])
def test_auto_compiles_these_on_a_cpu(name, monkeypatch):
    """Their forward pass takes little more than what compiling is worth from: their programs on a CPU are those of "inductor"."""
    pipeline = load(name)
    monkeypatch.setattr(execution, "compiler_here", lambda: "g++")
    learner, shape, cpu = pipeline.learner.bind((3, 32, 32), 10), (inner_batch(pipeline), 3, 32, 32), torch.device("cpu")
    execution.choose.cache_clear()
    taken = [
        dk.fields.evolve(pipeline.unroller, compile=kind, precision="float32").execution(learner, shape, cpu)
        for kind in (pipeline.unroller.compile, "inductor")
    ]
    execution.choose.cache_clear()
    assert pipeline.unroller.compile == "auto"
    assert taken[0]._replace(why="") == taken[1]._replace(why="")


def inner_batch(pipeline: dk.Distiller) -> int:
    learner, (_, classes) = pipeline.learner, SIZES[type(pipeline.data).__name__]
    return (learner.batch_per_class or pipeline.images.per_class) * (learner.classes_per_step or classes)


@pytest.mark.parametrize("name", ROWS)
def test_a_row_of_the_authors_code(name):
    made = load(name)
    window, horizon, start, batch, real, lr, soft, whitened, depth = ROWS[name]
    policy = made.truncation
    assert (policy.window, getattr(policy, "horizon", None), getattr(policy, "start", None)) == (window, horizon, start)
    assert inner_batch(made) == batch
    assert (made.outer.batch_size, made.outer.optimizer.lr, made.labels.learn) == (real, lr, soft)
    assert isinstance(made.data.preprocessing, dk.Whiten) == whitened
    assert made.learner.network == dk.ConvNet(width=128, depth=depth)
    marked = [line.partition("=")[0].strip() for line in recipes.read(name).splitlines() if "our choice" in line]
    assert not {"window", "horizon", "start", "batch_per_class", "classes_per_step", "batch_size", "lr", "learn", "width"} & set(marked)


@pytest.mark.parametrize("name", NAMES)
def test_what_all_recipes_of_the_authors_share(name):
    made = load(name)
    assert isinstance(made.learner.optimizer, dk.Adam)
    assert made.learner.optimizer.lr == 1e-3
    assert isinstance(made.outer.optimizer, dk.Adam)
    assert made.outer.schedule == dk.Constant()
    assert made.learner.augment == made.outer.augment == dk.FlipRotate(degrees=15)
    assert made.outer.clip == dk.EMAClip(decay=0.9, factor=2.0, average="raw")
    assert made.labels.clip is None
    assert made.labels.optimizer is None
    assert made.images.start == "noise"
    assert (made.evaluation.seeds, made.evaluation.steps) == (8, (300, 600, 1000, 3000))
    assert spec.loads(spec.dumps(made)) == made


@pytest.mark.parametrize("name", NAMES)
def test_the_header_agrees_with_the_file(name):
    said, made = recipes.describe(name), load(name)
    assert name.endswith(f"/{made.title}")
    assert f"ipc{said.per_class}" in name.split("-")[1:]
    assert said.per_class == made.images.per_class
    assert said.data in recipes.read(name).splitlines()[0]
    assert said.source
    base = name.removesuffix("-stabilised")
    assert base not in MAIN or said.published.startswith(f"{MAIN[base]:.1f}")


def test_every_cell_of_the_main_table_has_a_recipe():
    assert set(MAIN) | set(ROWS) <= set(NAMES)


def image_passes(made: dk.Distiller) -> float:
    """Forward passes of one image in an outer step: 3 for an inner step before the window, 12 for one within, 3 for a real image."""
    policy, batch = made.truncation, inner_batch(made)
    start = policy.start if isinstance(policy, dk.FixedStart) else (policy.horizon - policy.window) / 2
    return 3 * start * batch + 12 * policy.window * batch + 3 * made.outer.batch_size


def one_image(made: dk.Distiller):
    """The bound learner, and the cost of a forward pass of one image."""
    side = 64 if made.learner.network.depth == 4 else 32
    learner = made.learner.bind((3, side, side), SIZES[type(made.data).__name__][1])
    images = Stream(0).normal(2, 3, side, side)
    whole = cost(learner, images)
    return learner, images[0].nbytes, whole.operations / 2, whole.bytes / 2


@pytest.mark.parametrize("name", NAMES)
def test_memory_is_what_the_documentation_says(name):
    made = load(name)
    learner, image, _, kept = one_image(made)
    window = 3 * 4 * learner.layout.size * made.truncation.window
    work = kept * max(2.85 * made.outer.batch_size / made.unroller.micro_batches, 3.8 * inner_batch(made))
    data = image * SIZES[type(made.data).__name__][0]
    (written,) = map(int, re.findall(r"^(\d+) GB$", recipes.describe(name).memory))
    assert math.isclose(written, (window + work + data) / 1e9, rel_tol=0.03, abs_tol=1.0)


@pytest.mark.parametrize("name", NAMES)
def test_cost_is_scaled_from_the_one_that_was_measured(name):
    def operations(made):
        return made.outer.steps * image_passes(made) * one_image(made)[2]

    hours = 21.6 * operations(load(name)) / operations(load("paper/cifar10-ipc10"))
    written = float(recipes.describe(name).cost.split(" h on an A800")[0])
    assert math.isclose(written, hours, rel_tol=0.02, abs_tol=0.5)


def small(name: str, folder: Path) -> list[str]:
    """Overrides that make a recipe small, on data made up here; all else of it stays."""
    tree = parse(recipes.read(name))
    rng = np.random.default_rng(0)
    path = folder / "made-up.npz"
    np.savez(path, images=rng.integers(0, 256, (120, 3, 16, 16), dtype=np.uint8), labels=np.arange(120) % 6)
    data = {"kind": "Arrays", "path": str(path), "preprocessing": tree["data"]["preprocessing"]}
    truncation = ["start=1", "window=2"] if tree["truncation"]["kind"] == "FixedStart" else ["horizon=4", "window=2"]
    changes = {
        "data": to_toml(data),
        "learner.network.width": 8,
        "images.per_class": min(tree["images"]["per_class"], 2),
        "outer.steps": 2,
        "outer.batch_size": 4 * tree["unroller"].get("micro_batches", 1),
        "unroller.compile": "trace" if tree["unroller"].get("compile") == "inductor" else tree["unroller"].get("compile", "auto"),
        "evaluation.seeds": 2,
        "evaluation.steps": "[1, 2]",
        "evaluation.every": 1,
    }
    if "learner" in tree and tree["learner"].get("batch_per_class", 1) > 1:
        changes["learner.batch_per_class"] = 1
    if "growth" in tree:
        changes["growth.widths"] = [4]
    if "stored" in tree["images"]:  # a set of CIFAR-10, which made-up data is not
        del changes["images.per_class"]
        changes["images"] = '{per_class = 1, start = "real"}'
    if "classes_per_step" in tree["learner"]:
        changes["learner.classes_per_step"] = 3
    return [f"{key}={value}" for key, value in changes.items()] + [f"truncation.{change}" for change in truncation]


@pytest.mark.parametrize("name", FAST)
def test_a_fast_recipe_is_judged_by_the_networks_of_the_field(name):
    """Plain Adam and the standard ConvNet, whatever the inner problem has."""
    made = load(name)
    assert made.evaluation.optimizer == dk.Adam(lr=1e-3)
    assert made.learner.network == dk.ConvNet(width=128, depth=3)
    assert made.evaluation.select == "validation"


@pytest.mark.slow
@pytest.mark.parametrize("name", [*NAMES, *FAST])
def test_runs_end_to_end(name, tmp_path):
    tree = spec.load(name, small(name, tmp_path)).run(tmp_path / "run")
    assert tree["history"].sizes["outer_step"] == 2
    assert np.isfinite(tree["history"]["outer_loss"]).all()
    assert tree["distilled"].sizes["class"] == 6
    assert "random real" in tree["baselines"]["baseline"]
    moved = tree["distilled"]["image"] != spec.load(name, small(name, tmp_path)).init().leaves.images.numpy()
    assert moved.any()


@pytest.mark.slow
def test_the_command_runs_a_recipe_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    changes = [f"--set={change}" for change in small("paper/cifar10-ipc1", tmp_path)]
    done = CliRunner().invoke(app, ["run", "paper/cifar10-ipc1", *changes])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "runs" / "cifar10-ipc1" / "results.zarr").exists()


def test_the_commands_list_and_show():
    listed = CliRunner().invoke(app, ["recipes"])
    assert listed.exit_code == 0
    for name in NAMES:
        (row,) = [line for line in listed.output.splitlines() if f" {name} " in line]
        said = recipes.describe(name)
        assert said.data in row
        assert said.published in row
        assert said.cost in row
    shown = CliRunner().invoke(app, ["recipes", "show", "paper/cifar10-ipc10"])
    assert shown.output == recipes.read("paper/cifar10-ipc10")


def test_the_table_fits_80_columns():
    """Names are to be typed, and are not broken."""
    shown = io.StringIO()
    Console(file=shown, width=80).print(recipes_table(80))
    lines = shown.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    for name in recipes.names():
        (row,) = [line for line in lines if f" {name} " in line]
        assert recipes.describe(name).published.partition(" (")[0] in row


def test_a_file_of_that_name_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "paper").mkdir()
    text = recipes.read("paper/cifar10-ipc1").replace('title = "cifar10-ipc1"', 'title = "mine"')
    (tmp_path / "paper" / "cifar10-ipc1").write_text(text)
    assert load("paper/cifar10-ipc1").title == "mine"
    assert load("paper/cifar10-ipc10").title == "cifar10-ipc10"


@pytest.mark.parametrize("given", ["paper/cifar10-ipc01", "cifar10-ipc1", "paper/cifar10-ipc1.toml"])
def test_a_recipe_is_suggested_for_a_name_like_it(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(spec.SpecError, match=r"(?s)no file.*Try: (paper|fast)/cifar10-ipc1$"):
        load(given)


def test_a_file_is_suggested_where_one_is_like_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cifar10-ipc1-mine.toml").write_text("")
    with pytest.raises(spec.SpecError, match=r"Try: cifar10-ipc1-mine\.toml"):
        load("cifar10-ipc1.toml")


def test_an_unknown_recipe_is_answered_with_the_nearest():
    with pytest.raises(DistilkitError, match=r"Try: (paper|fast)/cifar10-ipc10"):
        recipes.read("cifar10-ipc10")


def test_the_checkout_has_them_among_the_examples():
    examples = Path(__file__).parents[2] / "examples"
    linked = {f"{kind}/{file.stem}" for kind in ("paper", "fast") for file in (examples / kind).glob("*.toml")}
    assert linked == {*NAMES, *OURS} - {"digits"}
    assert (examples / "digits.toml").read_text() == recipes.read("digits")


@pytest.mark.parametrize("name", sorted(OURS))
def test_ours_are_valid_and_say_what_they_are(name):
    from distilkit import spec

    pipeline = spec.load(name)
    assert recipes.describe(name).per_class == pipeline.per_class
    assert re.search("our choice|ours", recipes.describe(name).source)

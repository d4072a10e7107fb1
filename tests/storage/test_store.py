"""Results on disk: every bit comes back, nothing warns, plain xarray reads it, and a kill at any moment leaves a store that opens."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import HealthCheck, given, settings, strategies as st

from distilkit import storage
from distilkit.data.distilled import LABEL_SPACES, DistilledSet
from distilkit.data.preprocessing import Identity, Standardize
from distilkit.errors import DistilkitError, RunError
from distilkit.storage import layout, store

# Text that JSON and UTF-8 can hold (no lone surrogates), with NUL, newlines, emoji and right-to-left scripts.
NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)


@st.composite
def distilled_sets(draw: st.DrawFn) -> DistilledSet:
    n, k, c, h, w = (draw(st.integers(1, most)) for most in (5, 4, 4, 6, 6))
    seed = draw(st.integers(0, 2**32))
    dtype = draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]))
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(n, c, h, w, generator=generator).to(dtype)
    # Values that a store loses when it takes them for "missing", or rounds: zeros of both signs, the largest, the least. A set is finite.
    images.view(-1)[: draw(st.integers(0, images.numel()))] = draw(st.sampled_from([0.0, -0.0, 65504.0, torch.finfo(dtype).min, 1e-42]))
    fitted = draw(st.sampled_from([Identity(), Standardize().fit(torch.rand(8, c, h, w, generator=generator))]))
    return DistilledSet(
        images=images,
        labels=torch.randn(n, k, generator=generator),
        classes=torch.randint(k, (n,), generator=generator),
        class_names=tuple(draw(st.lists(NAMES, min_size=k, max_size=k))),
        label_space=draw(st.sampled_from(LABEL_SPACES)),
        block=torch.randint(3, (n,), generator=generator),
        inner_lr=draw(st.none() | st.floats(1e-6, 10) | st.lists(st.floats(1e-6, 10), min_size=2, max_size=4)),
        preprocessing=fitted,
        provenance=draw(st.dictionaries(NAMES, st.integers() | NAMES | st.lists(st.booleans()), max_size=3)),
    )


def small_set(value: float = 0.5, n: int = 4) -> DistilledSet:
    names = ("cat", "Hündin", "鳥", "a $ b")[:n]
    return DistilledSet(torch.full((n, 1, 4, 4), value), torch.eye(n), torch.arange(n), names, preprocessing=Identity())


def run_tree(distilled: DistilledSet, best: DistilledSet | None = None, steps: int = 3, title: str = "a run") -> xr.DataTree:
    groups = {"distilled": storage.distilled_group(storage.to_arrays(distilled), steps)}
    if best is not None:
        groups["distilled"] = storage.distilled_group(storage.to_arrays(best), 1, validation_accuracy=0.5)
        groups["last"] = storage.distilled_group(storage.to_arrays(distilled), steps, preprocessing_group="distilled")
    groups["history"] = layout.history_group({"outer_step": range(steps), **{name: np.linspace(1, 2, steps) for name in layout.HISTORY}})
    groups["evaluation"] = layout.evaluation_group(
        protocol={"steps": 5}, which="last", accuracy={0: 0.5, 1: 0.7}, validation={0: {0: 0.1}, 2: {0: 0.2, 7: 0.3}}
    )
    groups["baselines"] = layout.baselines_group({"random real": {0: 0.3, 1: 0.4}, "full data": {0: 0.9}})
    return layout.build(groups, title=title, spec={"seed": 1, "data": {"kind": "Digits"}}, seed=1)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


def assert_same(a: DistilledSet, b: DistilledSet) -> None:
    for name in ("images", "labels", "classes", "block"):
        assert same_bits(getattr(a, name), getattr(b, name)), name
    for name in ("class_names", "label_space", "inner_lr", "provenance"):
        assert getattr(a, name) == getattr(b, name), name
    assert a.preprocessing.fingerprint() == b.preprocessing.fingerprint()


@settings(max_examples=12, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(distilled=distilled_sets())
def test_a_set_comes_back_bit_for_bit_and_nothing_warns(distilled: DistilledSet, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        storage.write(run_tree(distilled), tmp_path)
        assert_same(storage.load(tmp_path), distilled)


def test_feature_vectors_come_back_too(tmp_path: Path) -> None:
    made = DistilledSet(torch.randn(3, 7), torch.eye(3), torch.arange(3), ("a", "b", "c"))
    storage.write(run_tree(made), tmp_path)
    assert_same(storage.load(tmp_path), made)
    assert storage.open(tmp_path)["distilled/image"].dims == ("sample", "feature")


def test_best_and_last_are_told_apart(tmp_path: Path) -> None:
    fitted = Standardize().fit(torch.rand(8, 1, 4, 4))
    last, best = (
        DistilledSet(torch.full((2, 1, 4, 4), v), torch.eye(2), torch.arange(2), ("a", "b"), preprocessing=fitted) for v in (1.0, 2.0)
    )
    storage.write(run_tree(last, best), tmp_path)
    assert_same(storage.load(tmp_path, "best"), best)
    assert_same(storage.load(tmp_path, "auto"), best)
    assert_same(storage.load(tmp_path, "last"), last)
    shared = storage.open(tmp_path)
    assert any(str(v).startswith("preprocessing_") for v in shared["distilled"].data_vars)
    assert not any(str(v).startswith("preprocessing_") for v in shared["last"].data_vars)


PLAIN = """
import sys, xarray
tree = xarray.open_datatree(sys.argv[1]).load()
for node in tree.subtree:
    data = node.to_dataset(inherit=False)
    for name, variable in data.variables.items():
        assert variable.attrs["long_name"] and variable.attrs["units"], (node.path, name)
    assert set(data.dims) <= set(data.coords), node.path
assert tree["distilled"]["class"].values.tolist() == ["cat", "H\\u00fcndin", "\\u9ce5", "a $ b"]
assert tree["distilled"]["class_name"].values.tolist() == ["cat", "H\\u00fcndin", "\\u9ce5", "a $ b"]
assert tree["history/seconds"].dtype == "float64" and tree["history/seconds"].units == "s"
assert tree["evaluation/validation_accuracy"].sel(outer_step=2, seed=7) == 0.3
assert tree.attrs["format_version"] == 2
assert not {"distilkit", "torch"} & set(sys.modules)
"""
OPEN = "import sys, distilkit; print(distilkit.open(sys.argv[1]).attrs['title']); assert 'torch' not in sys.modules"


@pytest.mark.parametrize("code", [PLAIN, OPEN], ids=["plain xarray", "distilkit.open"])
def test_opens_without_torch_and_without_a_warning(tmp_path: Path, code: str) -> None:
    path = storage.write(run_tree(small_set(), small_set()), tmp_path)
    command = [sys.executable, "-W", "error", "-c", code, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def test_a_run_without_evaluation_or_steps_is_stored(tmp_path: Path) -> None:
    groups = {
        "distilled": storage.distilled_group(storage.to_arrays(small_set()), 0),
        "history": layout.history_group({"outer_step": [], "outer_loss": []}),
        "evaluation": layout.evaluation_group(protocol={}, validation={}),
        "baselines": layout.baselines_group({}),
    }
    storage.write(layout.build(groups, title="", spec={}, seed=0), tmp_path)
    assert storage.open(tmp_path)["history"].sizes["outer_step"] == 0


class Killed(BaseException):
    """Stands for a kill: nothing in the code may catch it."""


def kill_at(monkeypatch: pytest.MonkeyPatch, number: int, when: str) -> None:
    """Let the `number`-th call that changes the disk be the last: killed before it, after it, or with half of it done."""
    calls = iter(range(10_000))

    def deadly(real: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            if next(calls) != number:
                return real(*args, **kwargs)
            if when == "after":
                real(*args, **kwargs)
            elif when == "half" and real is real_rmtree:
                for file in sorted(p for p in Path(args[0]).rglob("*") if p.is_file())[::2]:
                    file.unlink()
            elif when == "half" and real is real_whole:
                real(*args, **kwargs)
                shutil.rmtree(Path(args[1]) / "distilled")
            raise Killed

        return call

    real_rmtree, real_whole = shutil.rmtree, store._write_whole
    monkeypatch.setattr(os, "rename", deadly(os.rename))
    monkeypatch.setattr(shutil, "rmtree", deadly(real_rmtree))
    monkeypatch.setattr(store, "_write_whole", deadly(real_whole))


def write_until_killed(monkeypatch: pytest.MonkeyPatch, tree: xr.DataTree, run: Path, number: int, when: str) -> bool:
    with monkeypatch.context() as patch:
        kill_at(patch, number, when)
        try:
            storage.write(tree, run)
        except Killed:
            return True
    return False


def holds_one_of(run: Path, *titles: str) -> bool:
    tree = storage.open(run)
    return tree.title in titles and float(tree["distilled/image"][0, 0, 0, 0]) == float(tree.title)


@pytest.mark.parametrize("when", ["before", "half", "after"])
def test_a_kill_at_any_step_leaves_a_whole_store(tmp_path: Path, when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (run_tree(small_set(v), title=str(v)) for v in (1.0, 2.0))
    start = storage.write(first, tmp_path / "start").parent
    for number in range(20):
        run = shutil.copytree(start, tmp_path / f"{number}")
        if not write_until_killed(monkeypatch, second, run, number, when):
            break
        assert holds_one_of(run, "1.0", "2.0")
    assert number >= 4  # two renames, one write, one delete at the least: the kills did strike
    assert holds_one_of(run, "2.0")


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "half", "after"])
def test_a_second_kill_is_survived_and_nothing_is_left_behind(tmp_path: Path, when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, third = (run_tree(small_set(v), title=str(v)) for v in (1.0, 2.0, 3.0))
    start = storage.write(first, tmp_path / "start").parent
    for number in range(20):
        run = shutil.copytree(start, tmp_path / f"{number}")
        if not write_until_killed(monkeypatch, second, run, number, when):
            break
        for again in range(20):
            twice = shutil.copytree(run, tmp_path / f"{number}-{again}")
            if not write_until_killed(monkeypatch, third, twice, again, when):
                break
            assert holds_one_of(twice, "1.0", "2.0", "3.0")
        assert holds_one_of(twice, "3.0")
        assert [p.name for p in twice.iterdir()] == ["results.zarr"]


def test_a_store_that_is_replaced_while_it_is_read_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (run_tree(small_set(v), title=str(v)) for v in (1.0, 2.0))
    storage.write(first, tmp_path)
    real, replaced = xr.open_datatree, []

    def meanwhile(*args: Any, **kwargs: Any) -> xr.DataTree:
        lazy = real(*args, **kwargs)
        if not replaced:
            replaced.append(storage.write(second, tmp_path))
        return lazy

    monkeypatch.setattr(xr, "open_datatree", meanwhile)
    assert holds_one_of(tmp_path, "2.0")  # never the attributes of the one with the arrays of the other


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a process of its own")
def test_a_real_kill_while_writing_over_and_over(tmp_path: Path) -> None:
    """The simulation stops Python calls; this stops the process, wherever it is."""
    code = (
        "import sys, xarray\nfrom distilkit import storage\ntree = storage.open(sys.argv[1])\n"
        "while True:\n    storage.write(tree, sys.argv[1]); sys.stdout.write('.'); sys.stdout.flush()\n"
    )
    storage.write(run_tree(small_set(1.0), title="1.0"), tmp_path)
    for delay in (0.0, 0.03, 0.07):
        process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.read(2) == b".."
        time.sleep(delay)
        process.kill()
        process.wait()
        process.stdout.close()
        assert holds_one_of(tmp_path, "1.0")


def test_another_format_is_refused_and_others_stores_are_told(tmp_path: Path) -> None:
    tree = run_tree(small_set())
    tree.attrs["format_version"] = storage.FORMAT_VERSION + 1
    storage.write(tree, tmp_path / "newer")
    with pytest.raises(RunError, match=f"format version {storage.FORMAT_VERSION + 1}"):
        storage.open(tmp_path / "newer")
    tree.attrs["format_version"] = 1
    storage.write(tree, tmp_path / "older")
    with pytest.raises(RunError, match="of an early distilkit"):
        storage.open(tmp_path / "older")
    xr.DataTree(xr.Dataset()).to_zarr(tmp_path / "other.zarr", zarr_format=3, consolidated=False)
    with pytest.warns(RuntimeWarning, match="consolidated"), pytest.raises(RunError, match="not one of distilkit"):
        storage.open(tmp_path / "other.zarr")


MISTAKES = {
    "no such folder": (lambda p: storage.open(p / "nothing"), "does not exist"),
    "a folder without results": (lambda p: storage.open(str(p)), r"results\.zarr"),
    "not a store": (lambda p: storage.open(p / "junk.zarr"), "cannot be read"),
    "in the way": (lambda p: storage.write(run_tree(small_set()), p / "junk.zarr"), "not overwritten"),
    "which": (lambda p: storage.load(p, "bets"), "'best'"),  # type: ignore[arg-type]
    "no best": (lambda p: storage.load(storage.write(run_tree(small_set()), p / "good.zarr"), "best"), "selected on validation"),
    "history": (lambda p: layout.history_group({"outer_step": [0], "outer_los": [1.0]}), '"outer_loss": values'),
    "bare": (lambda p: layout.build({"g": xr.Dataset({"v": ("d", [1])})}, title="", spec={}, seed=0), "v or d lacks"),
}


@pytest.mark.parametrize(("act", "words"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_told_in_words(tmp_path: Path, act: Any, words: str) -> None:
    (tmp_path / "junk.zarr").mkdir()
    (tmp_path / "junk.zarr" / "mine.txt").write_text("mine")
    with pytest.raises(DistilkitError, match=words):
        act(tmp_path)
    assert (tmp_path / "junk.zarr" / "mine.txt").read_text() == "mine"


def test_large_arrays_are_cut_into_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "LARGEST_CHUNK", 64)
    made = small_set()
    path = storage.write(run_tree(made), tmp_path)
    assert len(list((path / "distilled" / "image").glob("c.*"))) > 1
    assert_same(storage.load(tmp_path), made)

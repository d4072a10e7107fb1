"""The network of the field at its own size, through the command, in every way that a step can be run.

The layout of a ConvNet of width 128 on pixels of 32x32x3 is what every recipe of the paper runs, and what no smaller network shows.
"""

import contextlib

import numpy as np
import pytest
import xarray as xr

from distilkit import spec
from tests.commands import distilkit

SPEC = """
title = "wide"
[data]
kind = "Arrays"
path = "pixels.npz"
[learner.network]
kind = "ConvNet"
width = 128
depth = 3
[learner.optimizer]
kind = "Adam"
lr = 0.001
[truncation]
kind = "FixedStart"
start = 1
window = 2
[images]
start = "real"
[labels]
learn = true
[outer]
steps = 2
batch_size = 8
[outer.optimizer]
kind = "SGD"
lr = 100.0
[evaluation]
seeds = 1
steps = [1]
baselines = []
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Forty images of two classes: noise of low frequency, another one for each class."""
    place, rng = tmp_path_factory.mktemp("wide"), np.random.default_rng(0)
    labels = np.arange(40) % 2
    coarse = rng.normal(size=(40, 3, 8, 8)) + 0.5 * rng.normal(size=(2, 3, 8, 8))[labels]
    smooth = np.clip(128 + 30 * coarse.repeat(4, axis=2).repeat(4, axis=3), 0, 255).astype(np.uint8)
    np.savez(place / "pixels.npz", images=smooth, labels=labels)
    (place / "wide.toml").write_text(SPEC)
    return place


def run(folder, compile, channels_last, out):
    """What a run leaves: how its steps were run, and arrays by name, of which those of the set are how far it has moved."""
    device = "cuda" if "cudagraph" in compile else "cpu"
    changes = [f"device={device}", f"unroller.compile={compile}", f"unroller.channels_last={channels_last}"]
    done = distilkit("run", "wide.toml", "--out", out, *(f"--set={change}" for change in changes), cwd=folder)
    assert done.returncode == 0, done.stderr
    with contextlib.chdir(folder):
        start = spec.load("wide.toml", ["device=cpu"]).init().leaves
    with xr.open_datatree(out / "results.zarr") as tree:
        distilled, history = tree["distilled"].load(), tree["history"].load()
    return history.attrs["execution"], {
        "images": distilled["image"].values - start.images.numpy(),
        "labels": distilled["label"].values - start.labels.numpy(),
        "outer loss": history["outer_loss"].values,
        "norm": history["meta_gradient_norm"].values,
    }


@pytest.fixture(scope="module")
def plain(folder):
    return run(folder, "eager", "off", folder / "plain")[1]


# compile, channels_last: how the run says that its steps were run
WAYS = {
    ("eager", "on"): "operations as they are, channels last",
    ("trace", "off"): "recorded operations (",
    ("trace", "on"): "recorded operations, channels last",
    ("auto", "off"): "recorded operations (",
    ("auto", "on"): "recorded operations, channels last",
    ("inductor", "off"): "recorded operations, compiled (",
    ("inductor", "on"): "recorded operations, compiled, channels last",
    ("cudagraph", "off"): "recorded operations, as CUDA graphs (",
    ("cudagraph", "on"): "recorded operations, as CUDA graphs, channels last",
    ("inductor-cudagraph", "off"): "recorded operations, compiled, as CUDA graphs (",
}
MARKS = {
    "inductor": pytest.mark.slow,
    "cudagraph": pytest.mark.gpu,
    "inductor-cudagraph": pytest.mark.gpu,
}  # three programs take a C++ compiler a minute


@pytest.mark.parametrize(
    ("compile", "channels_last"), [pytest.param(*way, marks=MARKS.get(way[0], ()), id=f"{way[0]}, channels last {way[1]}") for way in WAYS]
)
def test_every_way_of_running_gives_the_same_set(folder, plain, compile, channels_last, tmp_path):
    """To 1e-3 of the norm of each array: float32 takes sums in another order, and the second step goes on from what the first gave."""
    how, found = run(folder, compile, channels_last, tmp_path / "run")
    assert how.startswith(WAYS[compile, channels_last])
    for name, expected in plain.items():
        assert np.isfinite(found[name]).all(), name
        assert np.linalg.norm(expected) > 1e-3, name  # or all would agree by doing nothing
        assert np.linalg.norm(found[name] - expected) <= 1e-3 * np.linalg.norm(expected), name

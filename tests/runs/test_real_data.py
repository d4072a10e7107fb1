"""Real data beside the checkout, private data, and components of one's own, from a spec to a stored run.

What is real is skipped where it is missing. The runs are short: they show that all goes through, not how well it does.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import distilkit as dk
from distilkit import spec
from distilkit.errors import CombinationError
from tests.commands import distilkit

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared"
EXAMPLES = ROOT / "examples"
# The examples' networks are 32 and 64 wide, and compiled, for minutes of work.
SHORT = [
    "learner.network.width=8",
    "unroller.compile=trace",
    "outer.steps=2",
    "truncation.horizon=3",
    "truncation.window=2",
    "evaluation.every=1",
    "evaluation.steps=[2,4]",
    "evaluation.seeds=2",
    'evaluation.baselines=["random real"]',
]


def checked(tree: xr.DataTree, distiller: dk.Distiller, samples: int, image_shape: tuple[int, int, int]) -> None:
    """What every run must hold."""
    data = distiller.bundle
    assert tree["distilled"]["image"].shape == (samples, *image_shape)
    assert tree["history"].sizes["outer_step"] == 2
    assert np.isfinite(tree["history"]["meta_gradient_norm"]).all()
    assert (tree["history"]["meta_gradient_norm"] > 0).all()
    assert tree["distilled"]["pixel"].dtype == np.uint8
    # Each accuracy is a number of right answers on all images of its split.
    for values, split in (
        (tree["evaluation"]["accuracy"], data.test),
        (tree["baselines"]["accuracy"], data.test),
        (tree["evaluation"]["validation_accuracy"], data.validation),
    ):
        right = values.values * len(split)
        assert np.allclose(right, right.round(), atol=1e-3)
        assert 0 < right.sum() < right.size * len(split)
    # Not one number for all: two networks, two lengths of training, sets after one outer step and after two.
    assert len(np.unique(tree["baselines"]["accuracy"])) > 1 or len(np.unique(tree["evaluation"]["validation_accuracy"])) > 1


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "folder", "example"), [("FashionMNIST", "fashion-mnist", "fashion_mnist"), ("MNIST", "mnist", "mnist")])
def test_torchvision_loaders(kind, folder, example, tmp_path):
    if not (SHARED / "data" / folder).is_dir():
        pytest.skip(f"no {kind} beside the checkout")
    raw = tmp_path / kind / "raw"
    shutil.copytree(SHARED / "data" / folder, raw, copy_function=shutil.copyfile)
    raw.chmod(0o755)
    changes = [f"data.root={tmp_path}", "data.download=false", *SHORT]
    distiller = spec.load(EXAMPLES / f"{example}.toml", changes)
    tree = distiller.run(tmp_path / "run")
    checked(tree, distiller, 10, (1, 28, 28))
    assert len(distiller.bundle.test) == 10_000
    if kind == "FashionMNIST":
        assert "Ankle boot" in tree["distilled"]["class"].values


@pytest.fixture(scope="session")
def cifar10(tmp_path_factory, pytestconfig):
    """All of CIFAR-10 as one npz, unpacked once and kept in pytest's cache."""
    unpack = SHARED / "tools" / "unpack_cifar10.py"
    if not (unpack.exists() and (SHARED / "data" / "cifar10").is_dir()):
        pytest.skip("no CIFAR-10 beside the checkout")
    kept = getattr(pytestconfig, "cache", None)
    place = Path(kept.mkdir("cifar10")) if kept else tmp_path_factory.mktemp("cifar10")
    if not (place / "cifar10.npz").exists():
        subprocess.run([sys.executable, str(unpack), str(place)], check=True, capture_output=True)
    return place / "cifar10.npz"


@pytest.mark.slow
def test_cifar10_through_arrays(cifar10, tmp_path):
    # Not whitened: the matrix of so many images takes half a minute, and tests/data/test_preprocessing.py has one.
    changes = [f"data.path={cifar10}", "data.preprocessing.kind=Standardize", *SHORT]
    distiller = spec.load(EXAMPLES / "cifar10.toml", changes)
    tree = distiller.run(tmp_path / "run")
    checked(tree, distiller, 10, (3, 32, 32))
    assert "airplane" in tree["distilled"]["class"].values
    assert len(distiller.bundle.train) + len(distiller.bundle.validation) == 50_000
    assert len(distiller.bundle.test) == 10_000


COUNTS = [6 + 3 * c for c in range(17)]  # uneven on purpose: class 0 has 6 images, class 16 has 54
PRIVATE = """
title = "private"

[data]
kind = "Arrays"
path = "private.npz"

[learner.network]
kind = "ConvNet"
width = 4
depth = 1

[learner.optimizer]
kind = "SGD"
lr = 0.1

[truncation]
kind = "RandomTruncation"
horizon = 3
window = 2

[outer]
steps = 2
batch_size = 64

[evaluation]
seeds = 2
steps = [2, 4]
every = 1
"""


@pytest.fixture
def private(tmp_path, monkeypatch):
    """A folder with a private dataset of 5 channels and 17 classes of uneven size, and its spec."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(17), COUNTS)
    images = rng.integers(0, 256, (len(labels), 5, 12, 10), dtype=np.uint8)
    names = np.array([f"mineral {c}" for c in range(17)])
    np.savez(tmp_path / "private.npz", images=images, labels=labels, class_names=names)
    (tmp_path / "private.toml").write_text(PRIVATE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_private_npz_is_split_class_by_class(private):
    data = spec.load("private.toml").bundle
    assert (data.num_classes, data.image_shape) == (17, (5, 12, 10))
    for split, share in ((data.train, 0.72), (data.validation, 0.08), (data.test, 0.2)):
        kept = np.bincount(split.labels.numpy(), minlength=17)
        assert np.abs(kept - share * np.array(COUNTS)).max() <= 1.0


@pytest.mark.slow
def test_a_private_npz_runs(private):
    distiller = spec.load("private.toml", ["images.per_class=2", 'images.start="real"'])
    tree = distiller.run("run")
    checked(tree, distiller, 34, (5, 12, 10))
    assert tree["distilled"]["class"].values[3] == "mineral 3"


# name: (changes of the spec, words of the message). Class 0 keeps 4 of its 6 images for training.
TOO_MANY = {
    "to start from": (['images.start="real"'], ["per_class = 5", "'mineral 0'", "4 training images", "Try: --set images.per_class=4"]),
    "to compare with": ([], ["as the set has, 5, are to be compared", "'mineral 0'", "4 training images", "Try: --set images.per_class=4"]),
}


@pytest.mark.parametrize("case", TOO_MANY)
def test_a_class_with_fewer_images_than_asked_for(case, private):
    changes, words = TOO_MANY[case]
    done = distilkit("run", "private.toml", *(f"--set={change}" for change in ["images.per_class=5", *changes]))
    assert done.returncode == 2
    for word in words:
        assert word in done.stderr, done.stderr
    assert not (private / "runs" / "private" / "results.zarr").exists()  # known before a step is taken


OWN = '''
import numpy as np
import torch
from torch import nn

import distilkit as dk


def network(width):
    """Any module of torch: it is made anew for each inner run."""
    return dk.Functional(lambda: nn.Sequential(nn.Flatten(), nn.Linear(5 * 12 * 10, width), nn.GELU(), nn.Linear(width, 17)))


def data(brightness):
    """Any arrays, from wherever they come."""
    kept = np.load("private.npz")
    return dk.Arrays(train_images=kept["images"] / 255 * brightness, train_labels=kept["labels"], name="brighter")
'''
OWN_TABLES = """
[data]
kind = "python"
target = "own_parts:data"
brightness = 0.5

[learner.network]
kind = "python"
target = "own_parts:network"
width = 16
"""


@pytest.fixture
def own(private):
    (private / "own_parts.py").write_text(OWN)
    rest = PRIVATE[PRIVATE.index("[learner.optimizer]") :]
    (private / "own.toml").write_text('title = "own"\n' + OWN_TABLES + rest)
    sys.modules.pop("own_parts", None)  # another test's
    yield private
    sys.modules.pop("own_parts", None)


@pytest.mark.usefixtures("own")
def test_own_code_needs_trust():
    refused = distilkit("run", "own.toml")
    assert refused.returncode == 2
    assert "--trust" in refused.stderr
    assert "own_parts" not in sys.modules


@pytest.mark.slow
def test_own_data_and_network_from_a_spec(own):
    done = distilkit("run", "own.toml", "--trust")
    assert done.returncode == 0, done.stderr
    tree = dk.open("runs/own")
    checked(tree, spec.load("own.toml", trust=True), 17, (5, 12, 10))
    written = (own / "runs" / "own" / "spec.toml").read_text()
    assert 'target = "own_parts:network"' in written
    assert spec.loads(written, trust=True).learner.network.target == "own_parts:network"


@pytest.mark.slow
def test_own_data_and_network_from_python(own, monkeypatch):
    monkeypatch.syspath_prepend(str(own))
    import own_parts

    distiller = dk.Distiller(
        own_parts.data(0.5),
        dk.Learner(own_parts.network(16), dk.SGD(lr=0.1)),
        dk.RandomTruncation(horizon=3, window=2),
        outer=dk.Outer(steps=2, batch_size=64),
        evaluation=dk.Evaluation(seeds=2, steps=(2, 4)),
    )
    checked(distiller.run("from-python"), distiller, 17, (5, 12, 10))


def test_a_private_set_is_refused_in_another_space(private):
    distiller = spec.load("private.toml")
    whitened = spec.load("private.toml", ["data.preprocessing.kind=Whiten"])
    from distilkit.evaluation import training_set

    with pytest.raises(CombinationError, match="different spaces"):
        training_set(distiller.distilled(distiller.init()), whitened.bundle)

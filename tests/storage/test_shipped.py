"""Sets that come with the package: loaded by name, judged by one command on anyone's copy of the data, without its whitening."""

from __future__ import annotations

import attrs
import matplotlib.image
import numpy as np
import pytest
import torch

import distilkit as dk
from distilkit import recipes, spec
from distilkit.data.preprocessing import Identity, KorniaZCA, Standardize, Whiten
from distilkit.data.preprocessing.refittable import Refittable
from distilkit.errors import CombinationError, DistilkitError
from distilkit.storage import shipped
from tests.commands import distilkit

RECIPE = """
# Four classes of noise
#   data:      noise
#   published: none
#   memory:    1 MB
#   cost:      a second
#   source:    this test
title = "noise"
seed = 0
threads = 1
[data]
kind = "Arrays"
path = "PATH"
validation = 0.25
[data.preprocessing]
kind = "Whiten"
[learner.network]
kind = "MLP"
hidden = [8]
[learner.optimizer]
kind = "Adam"
lr = 0.01
[truncation]
kind = "FullUnroll"
horizon = 3
[images]
per_class = 1
[outer]
steps = 2
batch_size = 16
[evaluation]
seeds = 2
steps = [3, 6]
baselines = []
"""


@pytest.fixture
def name(tmp_path, monkeypatch):
    """A recipe and its set in a package's folder, and beside them the data."""
    monkeypatch.setenv("DISTILKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(recipes, "FOLDER", tmp_path / "recipes")
    monkeypatch.chdir(tmp_path)
    stream = dk.Stream(0)
    images = stream.fold("images").uniform(80, 1, 6, 6).numpy()
    np.savez(
        "noise.npz",
        train_images=images[:60],
        train_labels=np.arange(60) % 4,
        test_images=images[60:],
        test_labels=np.arange(20) % 4,
        class_names=np.array(["ant", "bee", "cat", "dog"]),
    )
    (tmp_path / "recipes" / "fast").mkdir(parents=True)
    (tmp_path / "recipes" / "fast" / "noise.toml").write_text(RECIPE.replace("PATH", str(tmp_path / "noise.npz")))
    spec.load("fast/noise").run(tmp_path / "run")
    shipped.write(dk.load(tmp_path / "run"), "fast/noise")
    return "fast/noise"


def test_the_set_is_the_one_that_was_made_without_its_matrix(name, tmp_path):
    made, given = dk.load(tmp_path / "run"), dk.load(name)
    for one in ("images", "labels", "classes", "block"):
        assert torch.equal(getattr(made, one), getattr(given, one)), one
    assert (given.class_names, given.label_space, given.inner_lr) == (made.class_names, made.label_space, made.inner_lr)
    assert given.preprocessing.to_arrays()[1] == {}
    assert given.preprocessing.fingerprint() == made.preprocessing.fingerprint()
    assert shipped.names() == [name]


def test_a_folder_of_that_name_comes_first(name, tmp_path):
    (tmp_path / "run").rename(tmp_path / "fast")
    (tmp_path / "fast" / "noise").mkdir()
    with pytest.raises(DistilkitError, match="no results"):
        dk.load(name)


def test_it_is_judged_as_its_run_was(name, tmp_path):
    """With the data of its recipe, and with the same images from elsewhere: the fit is that of the run, so the accuracy is too."""
    wanted = dk.evaluate(tmp_path / "run").accuracy.values
    assert np.array_equal(dk.evaluate(name).accuracy.values, wanted)
    (tmp_path / "noise.npz").rename(tmp_path / "mine.npz")
    done = distilkit("evaluate", name, "--data", "mine.npz", "--out", "judged")
    assert done.returncode == 0, done.stderr
    assert np.array_equal(dk.open("judged")["evaluation"]["accuracy"].values, wanted)
    assert "validation_accuracy" in dk.open("judged")["evaluation"]
    assert np.array_equal(dk.load("judged").pixels(), dk.load(tmp_path / "run").pixels())


def test_its_pixels_are_drawn_with_the_data_at_hand(name, tmp_path):
    done = distilkit("sheet", name, "--out", "sheet.png", "--real", "1")
    assert done.returncode == 0, done.stderr
    picture = (matplotlib.image.imread("sheet.png")[:, :, :3] * 255).round().astype(int)
    for pixel in dk.load(tmp_path / "run").pixels().numpy().transpose(0, 2, 3, 1).reshape(-1, 1):
        assert (picture == pixel).all(2).sum() > 100
    drawn = (tmp_path / "sheet.png").read_bytes()  # it is split as its recipe does it
    assert distilkit("sheet", name, "--out", "sheet.png", "--real", "1", "--set", "data.validation=0.5").returncode == 0
    assert (tmp_path / "sheet.png").read_bytes() == drawn
    (tmp_path / "noise.npz").unlink()
    assert distilkit("sheet", "run", "--real", "0").returncode == 0
    assert distilkit("sheet", name).returncode == 2


def test_it_is_split_as_its_recipe_does_it(name, tmp_path):
    """Whatever the seed of those who judge it, and after an export too."""
    source = dk.Arrays("noise.npz", validation=0.25, preprocessing=dk.load(name).preprocessing)
    assert dk.evaluate(name, source, seed=1).accuracy.sizes["seed"] == 2
    done = distilkit("export", name, "set.safetensors", "--to", "safetensors")
    assert done.returncode == 0, done.stderr
    done = distilkit("evaluate", "set.safetensors", "--recipe", name, "--data", "noise.npz", "--out", "judged")
    assert done.returncode == 0, done.stderr
    assert torch.equal(dk.load("judged").images, dk.load(name).images)


def test_a_command_leaves_nothing_that_would_hide_it(name, tmp_path):
    done = distilkit("subsets", name, "--draws", "2", "--seeds", "1")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "noise" / "subsets-random").is_dir()
    done = distilkit("resume", name)
    assert done.returncode == 2
    assert "Try: distilkit run fast/noise" in done.stderr
    with pytest.raises(DistilkitError, match="it is one set"):
        dk.load(name, "last")
    assert len(dk.load(name)) == 4


def test_other_images_are_refused(name, tmp_path):
    arrays = dict(np.load("noise.npz"))
    arrays["train_images"] = arrays["train_images"][:, :, ::-1]
    np.savez("other.npz", **arrays)
    done = distilkit("evaluate", name, "--data", "other.npz")
    assert done.returncode == 2
    assert "fitted on other training images" in " ".join(done.stderr.split())
    done = distilkit("evaluate", name, "--preprocessing", "Whiten")
    assert done.returncode == 2
    assert "a set of distilkit's own" in " ".join(done.stderr.split())


def test_it_is_seen_where_there_is_data(name, tmp_path):
    given = dk.load(name)
    with pytest.raises(CombinationError, match="leaves out its arrays"):
        given.pixels()
    bundle = dk.Arrays("noise.npz", validation=0.25, preprocessing=given.preprocessing).load(dk.Stream(0).fold("data"))
    seen = attrs.evolve(given, preprocessing=bundle.preprocessing)
    assert torch.equal(seen.pixels(), dk.load(tmp_path / "run").pixels())


def test_only_beside_a_recipe(name):
    with pytest.raises(DistilkitError, match="no recipe 'fast/nois'"):
        shipped.write(dk.load(name), "fast/nois")


@pytest.mark.parametrize("declared", [Standardize(), Whiten(regularisation=0.2), KorniaZCA(eps=0.2)])
def test_every_preprocessing_is_fitted_again(declared):
    images = dk.Stream(0).uniform(30, 2, 3, 3)
    fitted = declared.fit(images)
    named = Refittable.of(fitted)
    assert named.to_arrays()[1] == {}
    again = named.fit(images)
    assert again.fingerprint() == fitted.fingerprint()
    assert torch.equal(again.forward(images), fitted.forward(images))
    with pytest.raises(CombinationError, match="other training images"):
        named.fit(images[1:])
    with pytest.raises(CombinationError, match="leaves out its arrays"):
        named.forward(images)


def test_what_has_no_arrays_stays():
    assert Refittable.of(Identity()) == Identity()


def test_there_are_sets():
    assert "fast/cifar10-ipc1" in shipped.names()


@pytest.mark.parametrize("name", shipped.names())
def test_a_set_of_the_package_fits_its_recipe(name):
    made, pipeline = dk.load(name), spec.load(name)
    assert made.provenance["seed"] == pipeline.seed
    assert 0.1 < np.mean(made.provenance["training"]["test_accuracy"]) < 1
    assert made.per_class == pipeline.images.per_class
    assert made.preprocessing.to_arrays()[0]["kind"] == type(pipeline.data.preprocessing).__name__
    assert (recipes.FOLDER / f"{name}.safetensors").stat().st_size < 2_000_000

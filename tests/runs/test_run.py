"""The run: reproducible to the bit, undisturbed by evaluation, and safe when it is stopped."""

import attrs
import numpy as np
import pytest
import torch
import xarray as xr

import distilkit as dk
from distilkit.errors import GradientError, ResourceError
from distilkit.progress import Silent
from tests.pipelines import BARE, ruin, tiny


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    """The folder of a run as it is by default, which no test writes to."""
    folder = tmp_path_factory.mktemp("usual") / "run"
    tiny().run(folder)
    return folder


def arrays(tree, *groups):
    """Every array of these groups but the clock."""
    found = {}
    for group in groups or list(tree.children):
        dataset = tree[group].to_dataset()
        found |= {f"{group}/{name}": dataset[name].values for name in dataset.variables if name != "seconds"}
    return found


def same(a, b):
    assert a.keys() == b.keys()
    return all(np.array_equal(a[k], b[k], equal_nan=a[k].dtype.kind == "f") for k in a)


def test_same_seed_same_bits(usual, tmp_path):
    one, two = arrays(dk.open(usual)), arrays(tiny().run(tmp_path / "two"))
    assert {"distilled/image", "history/outer_loss", "evaluation/accuracy", "baselines/accuracy"} <= one.keys()
    assert same(one, two)
    other = arrays(tiny(seed=1, evaluation=BARE).run(tmp_path / "other"))
    assert not np.array_equal(one["distilled/image"], other["distilled/image"])


def test_a_set_says_how_to_train_on_it(usual):
    """What it says, typed into Python, gives networks that reach what it says."""
    made, words = dk.load(usual), dk.load(usual).provenance["training"]
    names = {name: getattr(dk, name) for name in dk.__all__}
    learner = dk.Learner(*(eval(words[name], names) for name in ("network", "optimizer")), loss=eval(words["loss"], names))
    assert (words["augment"], words["batch_per_class"], words["labels"]) == (None, None, "soft")
    assert (words["learned_rate"], words["precision"]) == (False, "float32")
    assert words["test_accuracy"] == dk.open(usual)["evaluation"]["accuracy"].values.tolist()
    found = dk.evaluate(made, tiny().bundle, learner, dk.Evaluation(seeds=8, steps=(words["steps"],)))
    assert abs(found.accuracy.values.mean() - np.mean(words["test_accuracy"])) < 0.2


@pytest.mark.parametrize("every", [0, 1])
def test_evaluation_changes_no_bit_of_the_set(usual, tmp_path, every):
    other = tiny(evaluation=dk.Evaluation(seeds=3, steps=(4,), every=every, baselines=())).run(tmp_path / "other")
    one, two = (dk.load(path, "last") for path in (usual, tmp_path / "other"))
    assert torch.equal(one.images, two.images)
    assert torch.equal(one.labels, two.labels)
    assert same(arrays(dk.open(usual), "history"), arrays(other, "history"))


@pytest.mark.figures
def test_what_is_stored_is_what_was_made(tmp_path):
    tree = tiny(evaluation=attrs.evolve(tiny().evaluation, baselines=("random real",))).run(tmp_path / "run")
    opened = xr.open_datatree(tmp_path / "run" / "results.zarr")
    assert same(arrays(tree), arrays(opened.load()))
    distilled = dk.load(tmp_path / "run")
    assert np.array_equal(distilled.images.numpy(), tree["distilled"]["image"].values)
    assert (tmp_path / "run" / "distilled.png").stat().st_size > 1000
    assert (tmp_path / "run" / "history.png").stat().st_size > 1000
    assert tree["history"].sizes["outer_step"] == 6
    assert tree["evaluation"]["validation_accuracy"].dims == ("outer_step", "seed")


def test_stored_spec_runs_again_to_the_same_bits(usual, tmp_path):
    from distilkit import spec

    again = spec.load(usual / "spec.toml")
    assert again == tiny()
    assert same(arrays(dk.open(usual)), arrays(again.run(tmp_path / "again")))


def test_a_gpu_that_fails_ends_the_run_with_words(tmp_path, monkeypatch):
    """Nothing is read from it any more; the run goes on from its last checkpoint, to the same bits."""
    whole = tiny(evaluation=BARE).run(tmp_path / "whole")
    real = dk.Distiller.step

    def step(self, state, attempt=1):
        if state.step == 4:
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be ...")
        return real(self, state, attempt)

    monkeypatch.setattr(dk.Distiller, "step", step)
    with pytest.raises(ResourceError, match=r"The GPU has failed: CUDA error: an illegal memory access was encountered\.") as caught:
        tiny(evaluation=BARE).run(tmp_path / "run", checkpoint_every=0)
    assert "might be" not in str(caught.value)
    monkeypatch.undo()
    again = tiny(evaluation=BARE).run(tmp_path / "run")
    assert same(arrays(whole, "distilled", "history"), arrays(again, "distilled", "history"))


class Stop(Silent):
    """Interrupts the run, as Ctrl-C does, after the fourth outer step."""

    def advance(self, done, total):
        if done == 4:
            raise KeyboardInterrupt


def test_an_interrupted_run_keeps_what_it_has(usual, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        tiny().run(tmp_path / "run", Stop())
    tree = dk.open(tmp_path / "run")
    assert tree["history"].sizes["outer_step"] == 4
    assert tree["last"].attrs["outer_step"] == 4
    assert tree["distilled"].attrs["outer_step"] == 3  # validation was looked at then
    assert np.array_equal(tree["history"]["outer_loss"], dk.open(usual)["history"]["outer_loss"][:4])


def test_only_the_set_that_was_tested_says_so(tmp_path, monkeypatch):
    """The first of two looks is the best."""
    ruin(monkeypatch, after=3)
    tree = tiny().run(tmp_path / "run")
    assert [tree[name].attrs["outer_step"] for name in ("distilled", "last")] == [3, 6]
    assert "training" in dk.load(tmp_path / "run").provenance
    assert "training" not in dk.load(tmp_path / "run", "last").provenance


def test_a_blown_up_inner_run_is_an_error(tmp_path):
    wild = tiny(learner=dk.Learner(dk.MLP(hidden=(12,)), dk.SGD(lr=1e30)), truncation=dk.FullUnroll(6))
    with pytest.raises(GradientError, match=r"Outer step 0(.|\n)*of learner\.optimizer") as caught:
        wild.run(tmp_path / "run")
    assert "window 0 to 6" in str(caught.value)
    assert "lr=1e+29" in str(caught.value)
    assert dk.open(tmp_path / "run")["distilled"].sizes["sample"] == 10


class EveryThird:
    """A truncation policy in a few lines, to see that a user's own needs no other file touched."""

    def init(self):
        return 0

    def plan(self, state, outer_step, stream):
        return dk.Window(state % 3, 6), state

    def observe(self, state, info):
        return state + 1


def test_a_users_own_policy_is_threaded(tmp_path):
    tree = tiny(truncation=EveryThird(), evaluation=BARE).run(tmp_path / "run")
    assert tree["history"]["window_start"].values.tolist() == [0, 1, 2, 0, 1, 2]
    assert "unwritable" in tree.attrs["spec"]
    assert not (tmp_path / "run" / "spec.toml").exists()


@pytest.mark.gpu
def test_run_on_gpu(tmp_path):
    tree = tiny(device="cuda").run(tmp_path / "run")
    assert tree["evaluation"]["accuracy"].sizes["seed"] == 2

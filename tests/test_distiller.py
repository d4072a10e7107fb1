"""The pipeline: reproducible to the bit, undisturbed by evaluation, and safe when it is stopped."""

import attrs
import numpy as np
import pytest
import torch
import xarray as xr

import distilkit as dk
from distilkit.errors import CombinationError, GradientError, RunError
from distilkit.running import Silent


def tiny(**changes):
    settings = {
        "data": dk.Digits(),
        "learner": dk.Learner(dk.MLP(hidden=(12,)), dk.Adam(lr=0.01)),
        "truncation": dk.RandomTruncation(horizon=6, window=3),
        "outer": dk.Outer(steps=6, batch_size=64, optimizer=dk.Adam(lr=0.05)),
        "labels": dk.Labels(learn=True),
        "evaluation": dk.Evaluation(seeds=2, steps=(5, 10), every=3),
    }
    return dk.Distiller(**(settings | changes))


# Where the accuracy is not looked at.
BARE = dk.Evaluation(seeds=1, steps=(2,), every=0, baselines=())


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


@pytest.mark.parametrize("every", [0, 1])
def test_evaluation_changes_no_bit_of_the_set(usual, tmp_path, every):
    other = tiny(evaluation=dk.Evaluation(seeds=3, steps=(4,), every=every, baselines=())).run(tmp_path / "other")
    assert same(arrays(dk.open(usual), "distilled", "history"), arrays(other, "distilled", "history"))


def test_what_is_stored_is_what_was_made(tmp_path):
    tree = tiny(evaluation=attrs.evolve(tiny().evaluation, baselines=("random real",))).run(tmp_path / "run")
    opened = xr.open_datatree(tmp_path / "run" / "results.zarr")
    assert same(arrays(tree), arrays(opened.load()))
    distilled = dk.load(tmp_path / "run", "last")
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


def test_step_lowers_the_loss_it_is_taken_on():
    """Forty outer steps from noise: the loss on real data falls by far more than its spread."""
    distiller = tiny(outer=dk.Outer(steps=40, batch_size=512, optimizer=dk.Adam(lr=0.05)), truncation=dk.FullUnroll(6))
    state, losses = distiller.init(), []
    while state.step < 40:
        state, info = distiller.step(state)
        losses.append(info.outer_loss)
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 3 * np.std(losses[-5:])


def test_only_what_is_learned_moves():
    fixed, learned = tiny(labels=dk.Labels(learn=False)), tiny(learner=attrs.evolve(tiny().learner, learn_lr=True))
    for distiller, moves in ((fixed, (True, False, False)), (learned, (True, True, True))):
        before = distiller.init()
        after, _ = distiller.step(before)
        changed = tuple(not torch.equal(a, b) for a, b in zip(before.leaves, after.leaves, strict=True))
        assert changed == moves
    assert (after.leaves.labels >= 0).all()
    assert distiller.distilled(after).inner_lr == pytest.approx(after.leaves.log_lr.exp().item())


def test_a_state_is_not_changed_by_its_step():
    distiller = tiny()
    state = distiller.init()
    kept = [x.clone() for x in state.leaves]
    one, _ = distiller.step(state)
    two, _ = distiller.step(state)
    assert all(torch.equal(a, b) for a, b in zip(kept, state.leaves, strict=True))
    assert torch.equal(one.leaves.images, two.leaves.images)


def test_starts():
    noise = tiny(images=dk.Images(per_class=3, start="noise")).init().leaves.images
    assert noise.shape == (30, 1, 8, 8)
    assert torch.allclose(noise.flatten(1).norm(dim=1), torch.ones(30))  # unit L2 norm, as in the paper's code
    distiller = tiny(images=dk.Images(per_class=3, start="real"))
    real, train = distiller.init().leaves.images, distiller.bundle.train
    for image, c in zip(real, distiller.classes, strict=True):
        matches = (train.images == image).flatten(1).all(1)
        assert matches.any()
        assert train.labels[matches].eq(c).all()


def test_an_epoch_shows_every_real_image_once():
    outer = dk.Outer(batch_size=100)
    rows = torch.cat([outer.batch_rows(k, 1000, dk.Stream(0)) for k in range(10)])
    assert rows.unique().numel() == 1000
    assert not torch.equal(rows[:100], outer.batch_rows(10, 1000, dk.Stream(0)))


class Stop(Silent):
    """Interrupts the run, as Ctrl-C does, after the fourth outer step."""

    def stepped(self, info):
        if info.outer_step == 3:
            raise KeyboardInterrupt


def test_an_interrupted_run_keeps_what_it_has(usual, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        tiny().run(tmp_path / "run", Stop())
    tree = dk.open(tmp_path / "run")
    assert tree["history"].sizes["outer_step"] == 4
    assert tree["distilled"].attrs["outer_step"] == 4
    assert np.array_equal(tree["history"]["outer_loss"], dk.open(usual)["history"]["outer_loss"][:4])


def test_a_run_is_not_written_over(usual):
    before = {path: path.stat().st_mtime_ns for path in usual.rglob("*")}
    with pytest.raises(RunError, match="holds the results of another run"):
        tiny().run(usual)
    assert {path: path.stat().st_mtime_ns for path in usual.rglob("*")} == before


def test_a_blown_up_inner_run_is_an_error(tmp_path):
    wild = tiny(learner=dk.Learner(dk.MLP(hidden=(12,)), dk.SGD(lr=1e30)), truncation=dk.FullUnroll(6))
    with pytest.raises(GradientError, match=r"Outer step 0(.|\n)*learner\.optimizer\.lr") as caught:
        wild.run(tmp_path / "run")
    assert "window 0 to 6" in str(caught.value)
    assert "lr=1e+29" in str(caught.value)
    assert dk.open(tmp_path / "run")["distilled"].sizes["sample"] == 10


def test_a_silently_zero_gradient_is_an_error():
    class Detached(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.head = torch.nn.Linear(64, 10)

        def forward(self, x):
            return self.head(x.detach().flatten(1))

    cut = tiny(learner=dk.Learner(dk.Functional(Detached), dk.SGD(lr=0.1)), unroller=dk.Unroller(compile="off"))
    with pytest.raises(GradientError, match="exactly zero"):
        cut.step(cut.init())


def test_combinations_that_cannot_be_are_named():
    with pytest.raises(CombinationError, match=r"batch_per_class = 2.*per_class = 1"):
        tiny(learner=attrs.evolve(tiny().learner, batch_per_class=2))
    with pytest.raises(CombinationError, match="cannot be used here"):
        tiny(device="cuda:99").init()


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

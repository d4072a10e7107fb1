"""The outer problem and its step: what it starts from, what it moves, and what it refuses."""

import attrs
import numpy as np
import pytest
import torch

import distilkit as dk
from distilkit.errors import CombinationError, FieldError, GradientError
from tests.pipelines import tiny


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


def test_a_rate_of_each_step_is_learned_stored_and_judged_with(tmp_path):
    distiller = tiny(learner=attrs.evolve(tiny().learner, learn_lr=True, lr_steps=4), truncation=dk.FullUnroll(6))
    tree = distiller.run(tmp_path / "run")
    assert tree["distilled"]["inner_lr"].dims == ("inner_step",)
    made = dk.load(tmp_path / "run", which="last")
    assert len(made.inner_lr) == len(set(made.inner_lr)) == 4
    judged = dk.evaluate(made, distiller.bundle, distiller.learner, distiller.evaluation)
    one = dk.evaluate(attrs.evolve(made, inner_lr=made.inner_lr[0]), distiller.bundle, distiller.learner, distiller.evaluation)
    assert judged["accuracy"].notnull().all()
    assert (judged["accuracy"] != one["accuracy"]).any()


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
    for image, c in zip(real, distiller.stages[-1].classes(10), strict=True):
        matches = (train.images == image).flatten(1).all(1)
        assert matches.any()
        assert train.labels[matches].eq(c).all()


def test_an_epoch_shows_every_real_image_once():
    outer = dk.Outer(batch_size=100)
    rows = torch.cat([outer.batch_rows(k, 1000, dk.Stream(0)) for k in range(10)])
    assert rows.unique().numel() == 1000
    assert not torch.equal(rows[:100], outer.batch_rows(10, 1000, dk.Stream(0)))


def test_a_silently_zero_gradient_is_an_error():
    class Detached(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.head = torch.nn.Linear(64, 10)

        def forward(self, x):
            return self.head(x.detach().flatten(1))

    cut = tiny(learner=dk.Learner(dk.Functional(Detached), dk.SGD(lr=0.1)), unroller=dk.Unroller(compile="eager"))
    with pytest.raises(GradientError, match="exactly zero"):
        cut.step(cut.init())


def test_combinations_that_cannot_be_are_named():
    with pytest.raises(CombinationError, match=r"batch_per_class = 2.*per_class = 1"):
        tiny(learner=attrs.evolve(tiny().learner, batch_per_class=2))
    with pytest.raises(CombinationError, match="cannot be used here"):
        tiny(device="cuda:99").init()


def test_images_that_are_moved_to_infinity_are_an_error():
    """And the state before is still good: nothing that is not finite is ever stored."""
    far = tiny(outer=dk.Outer(steps=2, batch_size=64, optimizer=dk.Adam(lr=1e308)))
    state = far.init()
    with pytest.raises(GradientError, match=r"not finite(.|\n)*of outer\.optimizer"):
        far.step(state)
    assert all(torch.isfinite(leaf).all() for leaf in state.leaves)


def test_a_distilled_set_is_finite():
    made = tiny().distilled(tiny().init())
    with pytest.raises(CombinationError, match="images of a distilled set must be finite"):
        attrs.evolve(made, images=made.images * float("nan"))
    with pytest.raises(FieldError, match="inner_lr"):
        attrs.evolve(made, inner_lr=float("nan"))


def test_the_average_is_the_average_by_hand(tmp_path):
    """Of images, labels and the logarithm of the rate, with less decay at first; the loop itself goes on from the last set."""
    outer = dk.Outer(steps=12, batch_size=64, optimizer=dk.Adam(lr=0.05))
    parts = {"learner": dk.Learner(dk.MLP(hidden=(12,)), dk.Adam(lr=0.01), learn_lr=True), "labels": dk.Labels(learn=True), "device": "cpu"}
    make = lambda outer: dk.Distiller(dk.Digits(), truncation=dk.FullUnroll(3), outer=outer, **parts)  # noqa: E731
    plain, averaging = make(outer), make(dk.evolve(outer, average=0.5))
    states, state = [plain.init()], averaging.init()
    for _ in range(12):
        states.append(plain.step(states[-1])[0])
        state, _info = averaging.step(state)
    for found, last in zip(state.leaves, states[-1].leaves, strict=True):
        assert torch.equal(found, last)
    mean = states[0].leaves
    for k, one in enumerate(states[1:]):
        keep = min(0.5, (1 + k) / (10 + k))
        mean = [keep * old.double() + (1 - keep) * new.double() for old, new in zip(mean, one.leaves, strict=True)]
    made = averaging.distilled(state)
    assert torch.allclose(made.images.double(), mean[0], atol=1e-6)
    assert torch.allclose(made.labels.double(), mean[1], atol=1e-6)
    assert made.inner_lr == pytest.approx(float(mean[2].exp()), rel=1e-6)
    assert not torch.allclose(made.images, states[-1].leaves.images, atol=1e-3)

"""Draws of many steps at once, and of the next outer step ahead: the same bits as one by one and in their turn."""

import attrs
import numpy as np
import pytest
import torch
from torch import nn

import distilkit as dk
from distilkit import ahead, distiller as module
from distilkit.functional.streams import Stream
from distilkit.learner import Draw
from tests.pipelines import BARE, tiny

CONVNET = dk.ConvNet(width=4, depth=1)
SHAPE, CLASSES = (1, 8, 8), torch.tensor([0, 1, 1, 2, 0, 1, 2, 2, 2])  # of which there are 2, 3 and 4


@attrs.frozen
class Own:
    """An augmentation of a user's, which takes one stream at a time."""

    def sample(self, stream, shape):
        assert isinstance(stream, Stream)
        return {"shift": stream.normal(shape[0], 1, 1, 1)}

    def apply(self, images, draw):
        return images + draw["shift"]


def dropping():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Dropout(0.5), nn.Linear(8, 3))


LEARNERS = {
    "whole set": dk.Learner(CONVNET),
    "FlipRotate": dk.Learner(CONVNET, augment=dk.FlipRotate(), batch_per_class=2),
    "DSA": dk.Learner(CONVNET, augment=dk.DSA(), batch_per_class=1),
    "DSA of each image": dk.Learner(CONVNET, augment=dk.DSA(siamese=False), classes_per_step=2, batch_per_class=2),
    "batches of unequal size": dk.Learner(CONVNET, augment=dk.DSA(mode="multiple", siamese=False), classes_per_step=2),
    "an augmentation of one's own": dk.Learner(CONVNET, augment=Own(), batch_per_class=2),
    "several rates": dk.Learner(CONVNET, batch_per_class=1, learn_lr=True, lr_steps=3),
    "dropout": dk.Learner(dk.Functional(dropping), augment=dk.FlipRotate(), batch_per_class=2),
}


def one_by_one(learner, stream, step):
    """The draw of a step as it is defined, with the rows picked class by class."""
    rows = None
    if learner.batch_per_class is not None or learner.classes_per_step is not None:
        order, picked = stream.fold("rows").fold("order").permutation(len(CLASSES)).tolist(), range(3)
        if learner.classes_per_step is not None:
            picked = sorted(stream.fold("rows").fold("classes").permutation(3)[: learner.classes_per_step].tolist())
        rows = torch.tensor([row for c in picked for row in [r for r in order if CLASSES[r] == c][: learner.batch_per_class]])
    count = len(CLASSES) if rows is None else len(rows)
    augment = None if learner.augment is None else learner.augment.sample(stream.fold("augment"), (count, *SHAPE))
    return Draw(rows, augment, learner.which_rate(step), learner.network_draw(stream, count))


@pytest.mark.parametrize("name", LEARNERS)
def test_draws_of_many_steps_are_those_of_each(name):
    learner = LEARNERS[name].bind(SHAPE, 3)
    streams = [dk.Stream(1).fold(k) for k in range(7)]
    made = learner.draws(streams, CLASSES, SHAPE, range(7))
    for k, draw in enumerate(made):
        for found, wanted in zip(draw, one_by_one(learner, streams[k], k), strict=True):
            leaves = [(found, wanted)] if not isinstance(wanted, dict) else [(found[key], wanted[key]) for key in wanted]
            assert all(a is b is None or (torch.equal(a, b) and a.dtype == b.dtype) for a, b in leaves)
    assert learner.draws([], CLASSES, SHAPE, []) == []


@attrs.frozen
class Following:
    """A policy whose window depends on what the step before has told, and which cannot do without."""

    def init(self):
        return {"seen": -1, "loss": 0.0}

    def plan(self, state, outer_step, stream):
        if state["seen"] != outer_step - 1:
            raise ValueError("asked before it was told")
        stop = 3 + int(1e6 * state["loss"]) % 4
        return dk.Window(1, stop), state

    def observe(self, state, info):
        return {"seen": info.outer_step, "loss": info.outer_loss}


@attrs.frozen
class Guessed(Following):
    """The same, which gives another window before it was told."""

    def plan(self, state, outer_step, stream):
        return dk.Window(1, 2 + outer_step % 6) if state["seen"] != outer_step - 1 else super().plan(state, outer_step, stream)[0], state


augmented = dk.Learner(dk.ConvNet(width=4, depth=1), dk.Adam(lr=0.01), augment=dk.FlipRotate(), batch_per_class=1)
PIPELINES = {
    "RaT-BPTT": {"learner": augmented, "outer": dk.Outer(steps=4, batch_size=64, augment=dk.FlipRotate())},
    "a probing policy": {"truncation": dk.AdaptiveTruncation(6, 3, spread=1, probe_every=2)},
    "a window that is not known": {"truncation": Following()},
    "another window than guessed": {"truncation": Guessed()},
    "two networks": {"unroller": dk.Unroller(networks_per_step=2)},
    "stages": {"learner": augmented, "boost": dk.BoostSchedule(blocks=(1, 1), steps=(2, 2))},
    "growth": {"learner": augmented, "growth": dk.Growth(until=(0.5,), widths=(2,), batch_sizes=(32,))},
}


def distiller(name):
    return tiny(**({"outer": dk.Outer(steps=4, batch_size=64), "evaluation": BARE, "device": "cpu"} | PIPELINES[name]))


def leaves_after(pipeline, steps):
    state = pipeline.init()
    for _ in range(steps):
        state, info = pipeline.step(state)
    return [*state.leaves, torch.tensor(info.outer_loss)]


@pytest.mark.parametrize("name", PIPELINES)
def test_drawing_ahead_changes_no_bit(name, monkeypatch):
    without = leaves_after(distiller(name), 4)
    monkeypatch.setattr(ahead, "DEVICES", ("cpu", "cuda"))
    drawing = distiller(name)
    assert all(torch.equal(a, b) for a, b in zip(leaves_after(drawing, 4), without, strict=True))
    assert not drawing.made_ahead._made  # nothing for a step that does not come


def test_draws_are_made_before_the_wait(monkeypatch):
    """Of the second outer step, nothing but its window is drawn in its turn, and all of it before the first has waited for the device."""
    monkeypatch.setattr(ahead, "DEVICES", ("cpu",))
    told, drawn = [], []
    generator, finite = Stream.generator, module.require_finite
    monkeypatch.setattr(Stream, "generator", lambda stream: drawn.append(stream.path) or generator(stream))
    monkeypatch.setattr(module, "require_finite", lambda *given: told.append(len(drawn)) or finite(*given))
    pipeline = distiller("RaT-BPTT")
    state, _ = pipeline.step(pipeline.init())
    assert any(path[:2] == ("inner", 1) for path in drawn[: told[0]])
    begun = len(drawn)
    assert begun == told[0]
    pipeline.step(state)
    mine = [path for path in drawn[begun:] if path[1] == 1 and path[0] != "window"]
    assert mine == [("augment", 1, "flip"), ("augment", 1, "rotate"), ("augment", 1, "branch")]  # of the real batch, on the device at once
    assert any(path[:2] == ("inner", 2) for path in drawn[begun:])


def test_a_step_that_is_taken_again_draws_anew(monkeypatch):
    """Another attempt has other streams; what was made ahead for the next step is not mixed up with it."""
    with_two = tiny(outer=dk.Outer(steps=4, batch_size=64), evaluation=BARE, device="cpu")
    state, _ = with_two.step(with_two.init())
    plain = [with_two.step(state, attempt)[0].leaves.images for attempt in (1, 2)]
    monkeypatch.setattr(ahead, "DEVICES", ("cpu",))
    drawing = tiny(outer=dk.Outer(steps=4, batch_size=64), evaluation=BARE, device="cpu")
    state, _ = drawing.step(drawing.init())
    found = [drawing.step(state, attempt)[0].leaves.images for attempt in (2, 1)]
    assert torch.equal(found[0], plain[1])
    assert torch.equal(found[1], plain[0])
    assert not torch.equal(*plain)


def test_a_run_in_pieces_that_draws_ahead_ends_with_the_same_bits(tmp_path, monkeypatch):
    whole = distiller("RaT-BPTT").run(tmp_path / "whole")
    monkeypatch.setattr(ahead, "DEVICES", ("cpu",))
    for _ in range(12):
        tree = dk.run(distiller("RaT-BPTT"), tmp_path / "pieces", stop_after=0)
        if tree.attrs["finished"]:
            break
    assert tree.attrs["finished"]
    for name in ("distilled", "history", "evaluation"):
        for key, wanted in whole[name].data_vars.items():
            assert key == "seconds" or np.array_equal(wanted.values, tree[name][key].values)

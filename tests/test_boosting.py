"""Boosting: what stays, what moves and by how much, against computations of our own."""

import attrs
import numpy as np
import pytest
import torch

import distilkit as dk
from distilkit.boosting import sampling_groups
from distilkit.data.bundle import DataBundle, Split
from distilkit.errors import CombinationError, FieldError
from distilkit.learner import draw_rows
from distilkit.outer import VariableUpdate
from distilkit.storage import checkpoint


def tiny(**changes):
    settings = {
        "data": dk.Digits(),
        "learner": dk.Learner(dk.MLP(hidden=(12,)), dk.Adam(lr=0.01)),
        "truncation": dk.RandomTruncation(horizon=6, window=3),
        "boost": dk.BoostSchedule(blocks=(1, 2, 1), steps=(3, 2, 2), old_step_scale=0.1),
        "images": dk.Images(start="real"),
        "outer": dk.Outer(batch_size=64, optimizer=dk.Adam(lr=0.05)),
        "labels": dk.Labels(learn=True),
        "evaluation": dk.Evaluation(seeds=2, steps=(5,), baselines=()),
    }
    return dk.Distiller(**(settings | changes))


def states(distiller):
    """The state before each outer step, as that step takes it, and the last one."""
    state = distiller.init()
    found = []
    for _ in range(distiller.outer_steps):
        state = distiller.enter_stage(state)
        found.append(state)
        state, _ = distiller.step(state)
    return [*found, state]


@pytest.mark.figures
def test_stages_grow_and_the_blocks_are_stored(tmp_path):
    distiller = tiny()
    found = states(distiller)
    assert [s.stage for s in found] == [0, 0, 0, 1, 1, 2, 2, 2]
    assert [s.stage_step for s in found] == [0, 1, 2, 0, 1, 0, 1, 2]
    assert [len(s.leaves.images) for s in found] == [10] * 3 + [30] * 2 + [40] * 3
    tree = distiller.run(tmp_path / "run")
    assert tree["history"]["stage"].values.tolist() == [0, 0, 0, 1, 1, 2, 2]
    made = dk.load(tmp_path / "run", "last")
    assert torch.equal(made.images, found[-1].leaves.images)
    assert made.block.bincount().tolist() == [10, 20, 10]
    for block in range(3):  # a prefix by block is a prefix of rows, and has every class equally often
        first = made.subset(made.block <= block)
        assert torch.equal(first.images, made.images[: len(first)])
        assert first.per_class == (1, 3, 4)[block]
    assert tree["prefixes"]["budget"].values.tolist() == [1, 3, 4]
    assert np.array_equal(tree["prefixes"]["accuracy"].sel(budget=4), tree["evaluation"]["accuracy"])
    assert (tmp_path / "run" / "prefixes.png").stat().st_size > 1000
    assert tree["evaluation"]["outer_step"].values.tolist() == [3, 5, 7]  # a look at the end of each stage


def test_the_first_stage_is_a_run_of_that_size():
    boosted, direct = tiny(), tiny(boost=None, outer=attrs.evolve(tiny().outer, steps=3))
    assert all(torch.equal(a, b) for a, b in zip(states(boosted)[2].leaves, states(direct)[2].leaves, strict=True))


@pytest.mark.parametrize("start", ["real", "noise"])
def test_new_images_are_new(start):
    images = tiny(images=dk.Images(start=start)).template(2).leaves.images
    assert len(images.flatten(1).unique(dim=0)) == 40
    direct = tiny(boost=None, images=dk.Images(per_class=4, start=start)).init().leaves.images
    if start == "real":  # the very images that a set of this size would start with
        assert torch.equal(images.flatten(1).unique(dim=0), direct.flatten(1).unique(dim=0))


def test_scale_0_freezes_earlier_rows_to_the_bit():
    optimizer = dk.AdamW(lr=0.05, weight_decay=0.1)  # decay would move a row whose gradient is zero
    distiller = tiny(boost=dk.BoostSchedule((1, 2, 1), (3, 2, 2), 0), outer=dk.Outer(batch_size=64, optimizer=optimizer))
    found = states(distiller)
    for start, rows in ((3, 10), (5, 30)):
        for later in found[start + 1 :]:
            for before, after in zip(found[start].leaves[:2], later.leaves[:2], strict=True):
                assert before[:rows].numpy().tobytes() == after[:rows].numpy().tobytes()
        assert not torch.equal(found[start].leaves.images[rows:], found[start + 1].leaves.images[rows:])


def test_scale_0_keeps_a_negative_zero():
    own = VariableUpdate(dk.SGD(lr=0.1), None)
    leaf = torch.tensor([-0.0, 1.0])
    state = own.add_block(own.init(leaf[:1]), leaf[1:])
    moved, _, _ = own.update(leaf, torch.tensor([5.0, 5.0]), state, 1.0, (1, 1), (0.0, 1.0))
    assert moved.numpy().tobytes() == np.array([-0.0, 0.5], np.float32).tobytes()


def test_scale_1_is_plain_continued_distillation_of_the_union():
    """A distiller without a schedule goes on from the union with fresh optimisers, and so does the boosted one."""
    boosted = tiny(boost=dk.BoostSchedule((1, 2), (1, 4), 1), labels=dk.Labels(learn=True), truncation=dk.FullUnroll(4))
    plain = attrs.evolve(boosted, boost=None, images=dk.Images(per_class=3, start="real"))
    state = boosted.add_block(boosted.init())
    order = boosted.stages[1].classes(10).argsort(stable=True)  # a plain set is class by class
    leaves = type(state.leaves)(state.leaves.images[order], state.leaves.labels[order], state.leaves.log_lr)
    other = plain.init()._replace(leaves=leaves)
    for _ in range(4):
        state, info = boosted.step(state)
        other, plain_info = plain.step(other)
        assert info.outer_loss == pytest.approx(plain_info.outer_loss, rel=1e-5)
    for a, b in zip(state.leaves[:2], other.leaves[:2], strict=True):
        # Adam's first steps divide by |gradient|, so that rounding shows where a gradient is next to nothing.
        assert torch.isclose(a[order], b, atol=1e-3).float().mean() > 0.99
    assert not torch.allclose(state.leaves.images[order], leaves.images, atol=1e-2)


@attrs.frozen
class DoubleDigits:
    """The digits in float64."""

    def load(self, stream):
        bundle = dk.Digits().load(stream)
        train, validation, test = (Split(s.images.double(), s.labels) for s in (bundle.train, bundle.validation, bundle.test))
        return DataBundle(bundle.name, train, validation, test, bundle.class_names, bundle.preprocessing)


@pytest.fixture
def double():
    """TorchOpt computes 1 - b^count in the default dtype, whatever that of the moments; in float32 it is off by 1e-5."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("double")
def test_the_scaled_step_of_adam_is_the_one_computed_by_hand():
    """In float64, over the border of a stage: m, v and the count of each block are its own; the step is scaled, not the gradient."""
    lr, b1, b2, eps, root, beta = 0.05, 0.9, 0.999, 1e-8, 1e-16, 0.1
    outer = dk.Outer(batch_size=64, optimizer=dk.Adam(lr=lr), clip=None)
    distiller = tiny(data=DoubleDigits(), outer=outer, labels=dk.Labels(learn=False), boost=dk.BoostSchedule((1, 2), (3, 4), beta))
    state = distiller.init()
    moments = [[0.0, 0.0, 0]]
    for step in range(7):
        if step == 3:
            moments.append([0.0, 0.0, 0])
        state = distiller.enter_stage(state)
        assert state.leaves.images.dtype == torch.float64
        after, info = distiller.step(state)
        gradient = distiller.meta_gradient(state, info.window).images.numpy()
        expected = state.leaves.images.numpy().copy()
        for block, rows in enumerate((slice(0, 10), slice(10, 30))[: len(moments)]):
            m, v, count = moments[block]
            m, v, count = b1 * m + (1 - b1) * gradient[rows], b2 * v + (1 - b2) * gradient[rows] ** 2, count + 1
            moments[block] = [m, v, count]
            move = lr * (m / (1 - b1**count)) / (np.sqrt(v / (1 - b2**count) + root) + eps)
            expected[rows] -= (beta if step >= 3 and block == 0 else 1) * move
        np.testing.assert_allclose(after.leaves.images.numpy(), expected, rtol=1e-12, atol=1e-14)
        state = after
    # The hand computation can tell: had the gradient been scaled, Adam would have moved the old rows ten times as far.
    assert np.abs(move).max() > 0.5 * lr


@pytest.mark.parametrize("stop", range(8))
def test_a_state_goes_on_from_its_checkpoint_to_the_same_bits(tmp_path, stop):
    distiller = tiny()
    state = distiller.init()
    for _ in range(stop):
        state, _ = distiller.step(state)
    checkpoint.save(tmp_path, stop, checkpoint.flatten(state), {"stage": state.stage})
    kept = checkpoint.latest(tmp_path)
    again = checkpoint.unflatten(distiller.template(kept.meta["stage"]), kept.tensors)
    for _ in range(7 - stop):
        state, _ = distiller.step(state)
        again, _ = distiller.step(again)
    assert again.step == 7
    assert all(a.numpy().tobytes() == b.numpy().tobytes() for a, b in zip(state.leaves, again.leaves, strict=True))


def test_evaluation_changes_no_bit(tmp_path):
    one = tiny().run(tmp_path / "one")
    two = tiny(evaluation=dk.Evaluation(seeds=1, steps=(2,), every=1, baselines=())).run(tmp_path / "two")
    last = [dk.load(tmp_path / name, "last").images for name in ("one", "two")]
    assert torch.equal(*last)
    assert np.array_equal(one["history"]["outer_loss"], two["history"]["outer_loss"])
    assert two["distilled"].sizes["sample"] == 40  # the best is chosen among whole sets


@pytest.mark.parametrize(("minibatch", "per_block"), [("union", None), ("each block", (1, 1, 1))])
def test_which_blocks_a_minibatch_draws_from(minibatch, per_block):
    schedule = dk.BoostSchedule((1, 3, 2), minibatch=minibatch)
    stage = schedule.stages(1, dk.FullUnroll(2))[2]
    block, classes = stage.block(10), stage.classes(10)
    seen = set()
    for step in range(20):
        rows = draw_rows(dk.Stream(step), sampling_groups(stage, schedule, 10), 1, None)
        counts = tuple((block[rows] == b).sum().item() // 10 for b in range(3))
        if per_block is not None:
            assert counts == per_block
            assert (classes[rows].bincount() == 3).all()
        else:
            assert classes[rows].bincount().tolist() == [1] * 10
        seen |= set(block[rows].tolist())
    assert seen == {0, 1, 2}


@pytest.mark.parametrize(("minibatch", "per_class", "drawn"), [("union", 2, (10, 20, 20)), ("each block", 1, (10, 20, 30))])
def test_an_inner_step_sees_its_minibatch_alone(minibatch, per_class, drawn):
    """In a window of one step the images with a gradient are the minibatch: equally many of every class, and maybe of every block."""
    learner = attrs.evolve(tiny().learner, batch_per_class=per_class)
    distiller = tiny(learner=learner, boost=attrs.evolve(tiny().boost, minibatch=minibatch))
    seen = []
    for state in states(distiller)[:-1]:
        stage = distiller.stages[state.stage]
        rows = distiller.meta_gradient(state, dk.Window(0, 1)).images.flatten(1).norm(dim=1) > 0
        assert stage.classes(10)[rows].bincount().tolist() == [drawn[state.stage] // 10] * 10
        if minibatch == "each block":
            assert stage.block(10)[rows].bincount().tolist() == [10] * (state.stage + 1)
        seen.append(rows.nonzero().flatten().tolist())
    assert seen[-1] != seen[-2]  # each step draws its own


def test_truncation_by_stage():
    distiller = tiny(boost=dk.BoostSchedule((1, 1), 2, horizons=(4, 8), windows=(2, 7)))
    assert [s.truncation for s in distiller.stages] == [dk.RandomTruncation(4, 2), dk.RandomTruncation(8, 7)]
    with pytest.raises(CombinationError, match=r"boost\.windows.*FullUnroll has none"):
        _ = tiny(boost=dk.BoostSchedule((1, 1), 2, windows=(2, 7)), truncation=dk.FullUnroll(4)).stages


SPEC = """
[data]
kind = "Digits"
[learner.network]
kind = "MLP"
[truncation]
kind = "FullUnroll"
horizon = 4
[boost]
blocks = [1, 2]
"""


@pytest.mark.parametrize("line", ["", "steps = 5", "steps = [5, 7]", "old_step_scale = 0\nhorizons = [3, 4]"])
def test_toml(line):
    from distilkit import spec

    distiller = spec.loads(SPEC + line)
    assert distiller.boost.blocks == (1, 2)
    assert spec.loads(spec.dumps(distiller)) == distiller
    assert distiller.stages[1].steps == {"steps = 5": 5, "steps = [5, 7]": 7}.get(line, 1000)


BAD = {
    "another length": (
        lambda: dk.BoostSchedule((1, 2), steps=(3,)),
        CombinationError,
        r"steps = \[3\] has 1 number, and blocks = \[1, 2\]",
    ),
    "no block": (lambda: dk.BoostSchedule(()), FieldError, "blocks"),
    "an empty block": (lambda: dk.BoostSchedule((1, 0)), FieldError, "at least 1"),
    "steps as words": (lambda: dk.BoostSchedule((1, 2), steps="3"), FieldError, "steps"),
    "no steps": (lambda: dk.BoostSchedule((1, 2), steps=0), FieldError, "at least 1"),
    "a negative scale": (lambda: dk.BoostSchedule((1, 2), old_step_scale=-1), FieldError, "at least 0"),
    "another sum": (lambda: tiny(images=dk.Images(per_class=3)), CombinationError, r"per_class = 3.*add up to 4"),
    "too large a batch": (lambda: tiny(learner=attrs.evolve(tiny().learner, batch_per_class=5)), CombinationError, "add up to 4"),
    "too large for a block": (
        lambda: tiny(learner=attrs.evolve(tiny().learner, batch_per_class=2), boost=attrs.evolve(tiny().boost, minibatch="each block")),
        CombinationError,
        "smallest of",
    ),
    "classes left out": (
        lambda: tiny(learner=attrs.evolve(tiny().learner, classes_per_step=2), boost=attrs.evolve(tiny().boost, minibatch="each block")),
        CombinationError,
        "leaves classes out",
    ),
}


@pytest.mark.parametrize(("make", "error", "words"), BAD.values(), ids=BAD)
def test_what_cannot_be_is_said(make, error, words):
    with pytest.raises(error, match=words):
        make()

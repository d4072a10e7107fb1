"""The meta-gradient is exact: against whole-window autograd, against finite differences, and in float32 against float64."""

from functools import partial

import attrs
import pytest
import torch

import distilkit as dk
from distilkit import process
from distilkit.unroll.execution import ProgramCache
from distilkit.unroll.inner import OuterVariables
from tests.unroll.problems import SHAPE, learner, outer_loss, problem, reference, relative

# One line here gives a new component every test below.
ADJOINTS = {
    "autograd": dk.AutogradAdjoint(),
    "replay, reverse over reverse": dk.ReplayAdjoint(hessian_product="reverse-over-reverse"),
    "replay, forward over reverse": dk.ReplayAdjoint(hessian_product="forward-over-reverse"),
    "replay, every third state": dk.ReplayAdjoint(checkpoint_every=3),
}
# Every window holds more than three steps, so that each adjoint has all that it can have in it.
POLICIES = {
    "full": dk.FullUnroll(horizon=5),
    "tail": dk.TailTruncation(horizon=6, window=4),
    "random horizon": dk.RandomHorizon(horizon=8, shortest=5),
    "random truncation": dk.RandomTruncation(horizon=7, window=4),
    "fixed start": dk.FixedStart(start=3, window=4),
}
OPTIMIZERS = {
    "SGD": dk.SGD(lr=0.05),
    "momentum": dk.SGD(lr=0.05, momentum=0.9),
    "Nesterov": dk.SGD(lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
    "Adam": dk.Adam(lr=0.01),
    "AdamW": dk.AdamW(lr=0.01),
    "RMSProp": dk.RMSProp(lr=0.01),
}
# How the depth of the network enters does not hang on what is drawn.
DRAWS = {
    "full batch": {"depth": 2},
    "minibatch": {"depth": 1, "batch_per_class": 2},
    "classes": {"depth": 1, "batch_per_class": 2, "classes_per_step": 2},
}


PROGRAMS = ProgramCache()  # as a pipeline has one: a step is recorded once for all windows


def rows():
    """optimizer, execution, policy, draws: as they are, and three kinds of state (none, a trace, moments) as recorded programs.

    Every optimiser meets every policy, and every policy every draw: those with the most state in all pairs, the others in turn.
    """
    for execution, names in (("eager", list(OPTIMIZERS)), ("trace", ["SGD", "momentum", "Adam"])):
        for i, name in enumerate(names):
            for j, policy in enumerate(POLICIES):
                for k, draws in enumerate(DRAWS):
                    if name in ("momentum", "Adam") or (i + j + k) % len(DRAWS) == 0:
                        marks = [pytest.mark.slow] if execution == "trace" else []
                        yield pytest.param(name, execution, policy, draws, marks=marks)


@pytest.mark.parametrize("table", [ADJOINTS, POLICIES, OPTIMIZERS])
def test_no_two_rows_are_the_same(table):
    assert len(set(table.values())) == len(table)


def test_no_two_windows_are_the_same():
    windows = {name: window_of(policy) for name, policy in POLICIES.items()}
    assert len(set(windows.values())) == len(windows), windows
    assert all(window.length > 3 for window in windows.values())


def window_of(policy, seed=3):
    return policy.plan(policy.init(), 0, dk.Stream(seed))[0]


@pytest.mark.parametrize("learn_lr", [False, True], ids=["lr fixed", "lr learned"])
@pytest.mark.parametrize(("optimizer", "execution", "policy", "draws"), list(rows()))
def test_equals_whole_window_autograd(execution, policy, optimizer, learn_lr, draws):
    """Images, labels and lr, every adjoint, to 1e-10 relative in float64 (rounding of a sum of a few hundred terms is 1e-14)."""
    inner = learner(OPTIMIZERS[optimizer], learn_lr=learn_lr, **DRAWS[draws])
    leaves, batch, classes = problem(lr=inner.optimizer.lr)
    window, stream = window_of(POLICIES[policy]), dk.Stream(5)
    loss, truth = reference(inner, leaves, window, batch, stream, classes)
    for name, adjoint in ADJOINTS.items():
        meta = dk.Unroller(adjoint, compile=execution).meta_gradient(inner, leaves, window, batch, stream, classes, PROGRAMS)
        assert relative(meta.loss, loss) < 1e-12, name
        assert relative(meta.images, truth.images) < 1e-10, name
        assert relative(meta.labels, truth.labels) < 1e-10, name
        assert relative(meta.log_lr, truth.log_lr) < 1e-10, name
    assert (truth.log_lr != 0) == learn_lr
    assert truth.images.norm() > 1e-8  # a zero gradient would agree with anything


@pytest.mark.parametrize("execution", ["eager", pytest.param("trace", marks=pytest.mark.slow)])
@pytest.mark.parametrize("optimizer", ["SGD", "Adam"])
@pytest.mark.parametrize("rates", [4, 12])
def test_a_rate_of_each_step(rates, optimizer, execution):
    """Steps behind the last rate take that one; rates of steps before the window, and of steps that are not taken, have no gradient."""
    inner = learner(OPTIMIZERS[optimizer], learn_lr=True, lr_steps=rates, batch_per_class=2)
    leaves, batch, classes = problem(lr=inner.optimizer.lr, rates=rates)
    window, stream = dk.Window(2, 9), dk.Stream(5)
    _, truth = reference(inner, leaves, window, batch, stream, classes)
    for name, adjoint in (ADJOINTS | {"kept": dk.ReplayAdjoint(keep_last=3)}).items():
        meta = dk.Unroller(adjoint, compile=execution).meta_gradient(inner, leaves, window, batch, stream, classes, PROGRAMS)
        for found, right in zip(meta[1:], truth, strict=True):
            assert relative(found, right) < 1e-10, name
    assert [bool(one) for one in truth.log_lr] == [2 <= t < 9 for t in range(rates)]


@pytest.mark.parametrize("ways", [{}, {"keep_last": 3}, {"checkpoint_every": 2}], ids=["plain", "kept", "every second"])
def test_decay_truncates_the_window(ways):
    """Each threshold gives, to the bit of rounding, the gradient through some shorter window to the same end; a higher one a shorter."""
    inner = learner(dk.SGD(lr=0.3), batch_per_class=2)
    leaves, batch, classes = problem(lr=0.3)
    stream, found = dk.Stream(5), []
    by_length = [reference(inner, leaves, dk.Window(start, 10), batch, stream, classes)[1].images for start in range(2, 10)]
    for decay in (0.0, 0.5, 0.9, 0.99):
        unroller = dk.Unroller(dk.ReplayAdjoint(decay=decay, **ways), compile="eager")
        images = unroller.meta_gradient(inner, leaves, dk.Window(2, 10), batch, stream, classes).images
        same = [start for start, one in enumerate(by_length, 2) if relative(images, one) < 1e-10]
        assert len(same) == 1
        found += same
    assert found == sorted(found)
    assert found[0] == 2
    assert found[-1] > 2


IN_PARTS = {
    "all, DSA by image": {"augment": dk.DSA(siamese=False)},
    "all, DSA": {"augment": dk.DSA()},
    "minibatch, flips": {"augment": dk.FlipRotate(), "batch_per_class": 2},
}


@pytest.mark.parametrize(("draws", "execution"), [*((name, "eager") for name in IN_PARTS), ("minibatch, flips", "trace")])
def test_parts_of_an_inner_step_add_up_to_the_whole(draws, execution):
    """One, two and three parts of a set of nine and of a minibatch of six, of unequal size too: those of the same draws."""
    inner = learner(OPTIMIZERS["Adam"], depth=1, learn_lr=True, lr_steps=4, **IN_PARTS[draws])
    leaves, batch, classes = problem(lr=inner.optimizer.lr, rates=4)
    window, stream, count = dk.Window(2, 5), dk.Stream(5), inner.inner_batch_size(classes)
    loss, truth = reference(inner, leaves, window, batch, stream, classes)
    adjoints = (dk.ReplayAdjoint(), dk.ReplayAdjoint(hessian_product="forward-over-reverse", checkpoint_every=2))
    for parts in (1, 2, 3) if execution == "eager" else (3,):
        for adjoint in adjoints if execution == "eager" else adjoints[:1]:
            own, unroller = attrs.evolve(inner, micro_batch=-(-count // parts)), dk.Unroller(adjoint, compile=execution)
            at_a_time = unroller.execution(own, (count, *SHAPE), leaves.images.device).micro_batch
            assert at_a_time == (None if parts == 1 else -(-count // parts))
            meta = unroller.meta_gradient(own, leaves, window, batch, stream, classes, PROGRAMS)
            assert relative(meta.loss, loss) < 1e-12
            for name in ("images", "labels", "log_lr"):
                assert relative(getattr(meta, name), getattr(truth, name)) < 1e-12, (parts, name)


def test_parts_in_bfloat16_point_where_the_whole_does():
    inner = learner(OPTIMIZERS["SGD"], depth=1)
    leaves, batch, classes = problem(torch.float32)
    whole, parts = (
        dk.Unroller(precision="bfloat16", compile="eager").meta_gradient(
            attrs.evolve(inner, micro_batch=size), leaves, dk.Window(1, 4), batch, dk.Stream(5), classes
        )
        for size in (None, 4)
    )
    assert not torch.equal(whole.images, parts.images)
    assert torch.nn.functional.cosine_similarity(whole.images.flatten(), parts.images.flatten(), dim=0) > 0.99


def test_memory_is_that_of_a_part():
    """Peak bytes of tensors: a set of 96 images in parts of 12 takes about what 12 take, and a fifth of what it takes together."""
    inner = learner(OPTIMIZERS["SGD"], depth=1)
    _, batch, _ = problem(torch.float32)

    def peak(count, **parts):
        classes = torch.arange(3).repeat_interleave(count // 3)
        labels = torch.nn.functional.one_hot(classes).float()
        leaves = OuterVariables(dk.Stream(1).normal(count, *SHAPE), labels, torch.tensor(0.01).log())
        own, unroller = attrs.evolve(inner, **parts), dk.Unroller(compile="eager")
        work = partial(unroller.meta_gradient, own, leaves, dk.Window(0, 1), batch, dk.Stream(5), classes)
        return process.peak_of_tensors(work, leaves.images.device)

    few, whole, parts = peak(12), peak(96), peak(96, micro_batch=12)
    assert parts < whole / 5
    assert parts < 1.5 * few


ENDS = ADJOINTS | {"replay, the last three steps kept": dk.ReplayAdjoint(keep_last=3)}


@pytest.mark.parametrize("adjoint", ENDS)
@pytest.mark.parametrize(("execution", "micro_batches"), [("eager", 1), ("eager", 3), pytest.param("trace", 1, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("ends", "places"), [(1, ()), (2, (6,)), (3, (4, 7)), (100, range(3, 9))])
def test_several_ends(adjoint, execution, micro_batches, ends, places):
    """The mean of the losses on the way and its gradient, by whole-window autograd."""
    inner = learner(dk.Adam(lr=0.01), batch_per_class=2, learn_lr=True)
    leaves, batch, classes = problem(lr=0.01)
    window, stream = dk.Window(2, 9), dk.Stream(5)
    loss, truth = reference(inner, leaves, window, batch, stream, classes, places)
    unroller = dk.Unroller(ENDS[adjoint], compile=execution, micro_batches=micro_batches)
    meta = unroller.meta_gradient(inner, leaves, window, batch, stream, classes, PROGRAMS, ends)
    assert relative(meta.loss, loss) < 1e-12
    for found, right in zip(meta[1:], truth, strict=True):
        assert relative(found, right) < 1e-10
    at_the_end = reference(inner, leaves, window, batch, stream, classes)[1]
    assert (relative(truth.images, at_the_end.images) > 0.01) == (ends > 1)  # or all would agree by leaving the ends out


@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_augmentation_is_replayed(adjoint):
    inner = learner(dk.Adam(lr=0.01), augment=dk.FlipRotate(), batch_per_class=2)
    leaves, batch, classes = problem()
    window, stream = dk.Window(2, 6), dk.Stream(5)
    _, truth = reference(inner, leaves, window, batch, stream, classes)
    meta = dk.Unroller(ADJOINTS[adjoint], compile="eager").meta_gradient(inner, leaves, window, batch, stream, classes)
    assert relative(meta.images, truth.images) < 1e-10


class Swapped(list):
    """Steps of a window, one of which has another step's draw when the adjoint comes back to it: it looks them up by slices."""

    wrong = None

    def __getitem__(self, key):
        found = super().__getitem__(key)
        at = 2 - (key.start if isinstance(key, slice) else key)
        if isinstance(key, slice) and 0 <= at < len(found):
            found[at] = found[at]._replace(draw=self.wrong)
        return found


@attrs.frozen
class OneWrongDraw:
    """The adjoint under test, with one wrong draw in its backward sweep only."""

    inner: dk.ReplayAdjoint

    def __call__(self, steps, end, theta, state, leaves, programs):
        swapped = Swapped(steps)
        swapped.wrong = steps[0].draw
        return self.inner(swapped, end, theta, state, leaves, programs)


@pytest.mark.parametrize("product", ["reverse-over-reverse", "forward-over-reverse"])
@pytest.mark.parametrize("optimizer", ["SGD", "momentum", "Adam"])
def test_negative_control_one_wrong_draw(optimizer, product):
    """A single step whose draw in the backward sweep is not the one of the forward pass must show: more than 1e-2."""
    inner = learner(OPTIMIZERS[optimizer], batch_per_class=1)
    leaves, batch, classes = problem()
    window, stream = dk.Window(2, 7), dk.Stream(5)
    adjoint = dk.ReplayAdjoint(hessian_product=product)
    right = dk.Unroller(adjoint, compile="eager").meta_gradient(inner, leaves, window, batch, stream, classes)
    wrong = dk.Unroller(OneWrongDraw(adjoint), compile="eager").meta_gradient(inner, leaves, window, batch, stream, classes)
    assert torch.equal(wrong.loss, right.loss)  # the forward pass is the same
    assert relative(wrong.images, right.images) > 1e-2


@pytest.mark.parametrize("leaf", ["images", "labels", "log_lr"])
@pytest.mark.parametrize("optimizer", ["SGD", "momentum", "Adam"])
def test_finite_differences(optimizer, leaf):
    """Central differences of the reference loss along a random direction, the best of a sweep over the step, to 1e-6.

    GELU, and an eps_root of 1e-6 for Adam: a difference across a kink, or near the root's pole, is not a derivative.
    """
    chosen = dk.Adam(lr=0.01, eps_root=1e-6) if optimizer == "Adam" else OPTIMIZERS[optimizer]
    inner = learner(chosen, learn_lr=True, batch_per_class=2)
    leaves, batch, classes = problem(lr=chosen.lr)
    # The whole run is the window: a finite difference also moves the steps before a window, which truncation leaves out.
    window, stream = dk.Window(0, 6), dk.Stream(5)
    meta = dk.Unroller().meta_gradient(inner, leaves, window, batch, stream, classes)
    x, gradient = getattr(leaves, leaf), getattr(meta, leaf)
    direction = dk.Stream(11).fold(leaf).normal(*x.shape, dtype=torch.float64)
    claimed = (gradient * direction).sum()

    def at(step):
        moved = leaves._replace(**{leaf: x + step * direction})
        return outer_loss(inner, moved, window, batch, stream, classes).detach()

    errors = [abs(((at(h) - at(-h)) / (2 * h) - claimed) / claimed).item() for h in (1e-3, 3e-4, 1e-4, 3e-5, 1e-5, 3e-6)]
    assert min(errors) < 1e-6, errors


@pytest.mark.parametrize("adjoint", ADJOINTS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_float32_is_close_to_float64(optimizer, adjoint):
    """1e-4 for a window that does not hold step 0: there Adam divides by |g| + eps and float32 cannot follow."""
    inner = learner(OPTIMIZERS[optimizer], batch_per_class=2)
    window, stream = dk.Window(3, 8), dk.Stream(5)
    results = []
    for dtype in (torch.float64, torch.float32):
        leaves, batch, classes = problem(dtype)
        # Both start from the same trajectory: float32 parameters are exact in float64.
        results.append(dk.Unroller(ADJOINTS[adjoint], compile="eager").meta_gradient(inner, leaves, window, batch, stream, classes))
    double, single = results
    assert single.images.dtype == torch.float32
    assert relative(single.images.double(), double.images) < 1e-4
    assert relative(single.labels.double(), double.labels) < 1e-4


def test_same_gradient_when_the_window_is_the_horizon():
    """RandomTruncation, TailTruncation and FullUnroll are one thing when nothing is truncated: to the bit."""
    inner = learner(dk.Adam(lr=0.01), batch_per_class=2)
    leaves, batch, classes = problem()
    policies = (dk.FullUnroll(6), dk.TailTruncation(6, 6), dk.RandomTruncation(6, 6), dk.RandomHorizon(6, 6), dk.FixedStart(0, 6))
    unroller, stream = dk.Unroller(), dk.Stream(5)
    gradients = [unroller.meta_gradient(inner, leaves, window_of(p), batch, stream, classes, PROGRAMS).images for p in policies]
    assert all(torch.equal(g, gradients[0]) for g in gradients)


def test_prefix_gets_no_gradient():
    """An image that only the prefix sees has a gradient of exactly zero."""
    inner = learner(dk.SGD(lr=0.05), batch_per_class=1)
    leaves, batch, classes = problem()
    window, stream = dk.Window(4, 6), dk.Stream(5)
    rows = [set(inner.draw(stream.fold("draw").fold(t), classes, (1, 8, 8)).rows.tolist()) for t in range(6)]
    before, within = set().union(*rows[:4]), set().union(*rows[4:])
    only_before = sorted(before - within)
    assert only_before, "the seed must leave an image that only the prefix sees"
    meta = dk.Unroller().meta_gradient(inner, leaves, window, batch, stream, classes)
    assert (meta.images[only_before] == 0).all()
    assert (meta.images[sorted(within)].flatten(1).norm(dim=1) > 0).all()
    # The prefix matters all the same: it makes the parameters that the window starts from.
    moved = leaves._replace(images=leaves.images.index_add(0, torch.tensor(only_before), torch.ones_like(leaves.images[only_before])))
    other = dk.Unroller().meta_gradient(inner, moved, window, batch, stream, classes)
    assert relative(other.images, meta.images) > 1e-3


def test_a_graph_of_the_caller_does_not_leak_in():
    inner = learner(dk.SGD(lr=0.05))
    leaves, batch, classes = problem()
    tracked = OuterVariables(*(x.clone().requires_grad_() for x in leaves))
    plain = dk.Unroller().meta_gradient(inner, leaves, dk.Window(1, 4), batch, dk.Stream(5), classes)
    other = dk.Unroller().meta_gradient(inner, tracked, dk.Window(1, 4), batch, dk.Stream(5), classes)
    assert torch.equal(plain.images, other.images)
    assert not other.images.requires_grad


def test_zero_gradients_give_no_nan():
    """A pixel that is black in every image leaves weights without gradient; Adam's root must stand that."""
    inner = learner(dk.Adam(lr=0.01), activation="relu")
    leaves, batch, classes = problem()
    dark = leaves._replace(images=torch.zeros_like(leaves.images))
    for adjoint in ADJOINTS.values():
        meta = dk.Unroller(adjoint, compile="eager").meta_gradient(inner, dark, dk.Window(0, 4), batch, dk.Stream(5), classes)
        assert meta.images.isfinite().all()


@pytest.mark.gpu
@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_gpu_agrees_with_cpu(adjoint):
    inner = learner(dk.Adam(lr=0.01), batch_per_class=2)
    leaves, batch, classes = problem()
    window, stream = dk.Window(2, 6), dk.Stream(5)
    there = OuterVariables(*(x.cuda() for x in leaves))
    cpu = dk.Unroller(ADJOINTS[adjoint], compile="eager").meta_gradient(inner, leaves, window, batch, stream, classes)
    gpu = dk.Unroller(ADJOINTS[adjoint], compile="eager").meta_gradient(
        inner, there, window, type(batch)(*(x.cuda() for x in batch)), stream, classes
    )
    assert relative(gpu.images.cpu(), cpu.images) < 1e-9

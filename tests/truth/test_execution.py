"""Every way to run a step gives the same gradient, is built once, and does not grow."""

import gc
import logging

import pytest
import torch
from torch.nn import functional as F

import distilkit as dk
from distilkit.errors import CombinationError, GradientError
from distilkit.functional.adjoints import Leaves
from distilkit.functional.programs import Programs
from distilkit.unroller import RealBatch, _programs
from tests.truth.problems import learner, problem, reference, relative

UNROLLERS = {
    "trace": dk.Unroller(compile="trace"),
    "trace, reverse over reverse": dk.Unroller(dk.ReplayAdjoint(product="reverse-over-reverse"), compile="trace"),
    "trace, every second state": dk.Unroller(dk.ReplayAdjoint(every=2), compile="trace"),
    "trace, micro-batches": dk.Unroller(compile="trace", micro_batches=4),
    "micro-batches": dk.Unroller(compile="off", micro_batches=3),
    "autograd, micro-batches": dk.Unroller(dk.AutogradAdjoint(), micro_batches=2),
    "host": dk.Unroller(dk.ReplayAdjoint(store="host"), compile="off"),
    "inductor": pytest.param(dk.Unroller(compile="inductor"), marks=pytest.mark.slow),
    "cudagraph": pytest.param(dk.Unroller(compile="cudagraph"), marks=pytest.mark.gpu),
}


def cases(table):
    return [pytest.param(*v.values, id=k, marks=v.marks) if hasattr(v, "marks") else pytest.param(v, id=k) for k, v in table.items()]


def on(device, *trees):
    return [type(t)(*(x.to(device) for x in t)) for t in trees]


@pytest.mark.parametrize("optimizer", [dk.SGD(lr=0.05, momentum=0.9), dk.Adam(lr=0.01)], ids=["momentum", "Adam"])
@pytest.mark.parametrize("unroller", cases(UNROLLERS))
def test_equals_whole_window_autograd(unroller, optimizer):
    inner = learner(optimizer, batch_per_class=2, learn_lr=True, augment=dk.FlipRotate())
    leaves, batch, classes = problem(lr=optimizer.lr)
    window, stream = dk.Window(2, 7), dk.Stream(5)
    loss, truth = reference(inner, leaves, window, batch, stream, classes)
    device = "cuda" if unroller.compile == "cudagraph" else "cpu"
    there, real = on(device, leaves, batch)
    meta = unroller.meta_gradient(inner, there, window, real, stream, classes)
    assert relative(meta.loss.cpu(), loss) < 1e-10
    for name in ("images", "labels", "log_lr"):
        assert relative(getattr(meta, name).cpu(), getattr(truth, name)) < 1e-10, name


@pytest.mark.parametrize("unroller", cases(UNROLLERS))
def test_float32_is_close_to_float64(unroller):
    inner = learner(dk.Adam(lr=0.01), batch_per_class=2)
    window, stream = dk.Window(3, 8), dk.Stream(5)
    leaves, batch, classes = problem()
    _, truth = reference(inner, leaves, window, batch, stream, classes)
    single, real = on(torch.float32, leaves, batch)
    if unroller.compile == "cudagraph":
        single, real = on("cuda", single, real)
    meta = unroller.meta_gradient(inner, single, window, real, stream, classes)
    assert relative(meta.images.cpu().double(), truth.images) < 1e-4


def test_many_networks_are_the_mean_of_single_ones():
    inner = learner(dk.Adam(lr=0.01))
    leaves, batch, classes = problem()
    many = dk.Unroller(networks_per_step=3).meta_gradient(inner, leaves, dk.Window(1, 4), batch, dk.Stream(5), classes)
    singles = [
        dk.Unroller().meta_gradient(inner, leaves, dk.Window(1, 4), batch, dk.Stream(5).fold("of many").fold(i), classes).images
        for i in range(3)
    ]
    assert relative(many.images, torch.stack(singles).mean(0)) < 1e-12
    assert relative(singles[0], singles[1]) > 1e-2


def smooth_problem():
    """A ConvNet on images with structure, at a size where bfloat16 means something."""
    stream = dk.Stream(3)
    inner = dk.Learner(dk.ConvNet(width=32, depth=3), dk.Adam(lr=1e-3)).bind((3, 32, 32), 10)
    classes = torch.arange(10)
    images = F.interpolate(stream.fold("i").normal(10, 3, 8, 8), size=32, mode="bilinear")
    real = F.interpolate(stream.fold("r").normal(100, 3, 8, 8), size=32, mode="bilinear") + images.repeat(10, 1, 1, 1)
    leaves = Leaves(images, torch.eye(10), torch.tensor(1e-3).log())
    return inner, leaves, RealBatch(real, torch.eye(10).repeat(10, 1)), classes


@pytest.mark.parametrize("start", [5, pytest.param(15, marks=pytest.mark.slow)])
def test_bfloat16_keeps_the_direction(start):
    """Cosine with float32 of at least 0.98 for windows that start at step 5 or later."""
    inner, leaves, batch, classes = smooth_problem()
    window = dk.Window(start, start + 5)
    full = dk.Unroller().meta_gradient(inner, leaves, window, batch, dk.Stream(1), classes)
    half = dk.Unroller(precision="bfloat16").meta_gradient(inner, leaves, window, batch, dk.Stream(1), classes)
    assert half.images.dtype == torch.float32
    cosine = F.cosine_similarity(full.images.flatten(), half.images.flatten(), dim=0)
    assert cosine > 0.98
    assert not torch.equal(full.images, half.images)


def test_bfloat16_takes_step_0_in_full():
    """A window that is only step 0 would lose its direction in bfloat16; it is taken in float32, and keeps it."""
    inner, leaves, batch, classes = smooth_problem()
    window = dk.Window(0, 1)
    full = dk.Unroller().meta_gradient(inner, leaves, window, batch, dk.Stream(1), classes)
    half = dk.Unroller(precision="bfloat16").meta_gradient(inner, leaves, window, batch, dk.Stream(1), classes)
    assert F.cosine_similarity(full.images.flatten(), half.images.flatten(), dim=0) > 0.98


def test_programs_are_built_once():
    """Three windows of different lengths and places, one set of programs: nothing is recorded after the first."""
    inner = learner(dk.Adam(lr=0.01), batch_per_class=2)
    leaves, batch, classes = problem()
    unroller = dk.Unroller(compile="trace")
    _programs.cache_clear()
    for k, window in enumerate([dk.Window(2, 5), dk.Window(0, 6), dk.Window(4, 7)]):
        unroller.meta_gradient(inner, leaves, window, batch, dk.Stream(k), classes)
        built = _programs("trace", unroller, inner).built
        assert {key[0] for key in built} == {"step in full", "back in full", "end in full"}
        assert len(built) == 3


@pytest.mark.slow
def test_inductor_does_not_recompile():
    from torch._dynamo.utils import counters

    inner = learner(dk.Adam(lr=0.02), batch_per_class=2)
    leaves, batch, classes = problem(torch.float32)
    unroller = dk.Unroller(compile="inductor")
    for k in range(8):
        if k == 3:
            counters.clear()
        unroller.meta_gradient(inner, leaves, dk.Window(k % 3, k % 3 + 3), batch, dk.Stream(k), classes)
    assert counters["stats"].get("unique_graphs", 0) == 0
    assert not counters["graph_break"]


@pytest.mark.slow
def test_memory_does_not_grow_over_500_outer_steps():
    distiller = dk.Distiller(
        dk.Digits(), dk.Learner(dk.MLP(hidden=(8,)), dk.Adam(lr=0.01)), dk.RandomTruncation(6, 3), outer=dk.Outer(steps=500, batch_size=64)
    )
    state, counts = distiller.init(), []
    for k in range(500):
        state, _ = distiller.step(state)
        if k in (50, 499):
            gc.collect()
            counts.append(sum(type(o) is torch.Tensor for o in gc.get_objects()))
    assert counts[1] <= counts[0] + 5


class Forked:
    """A network whose path depends on its input: it cannot be recorded."""

    def init(self, stream):
        return {"w": stream.normal(3, 64)}

    def apply(self, params, x):
        x = x.flatten(1)
        return x @ params["w"].T if x.sum() > 0 else -x @ params["w"].T


def test_what_cannot_be_recorded_runs_eagerly_and_says_so(caplog):
    leaves, batch, classes = problem()
    inner = dk.Learner(Forked(), dk.SGD(lr=0.05))
    with caplog.at_level(logging.INFO, logger="distilkit"):
        traced = dk.Unroller(compile="trace").meta_gradient(inner, leaves, dk.Window(1, 4), batch, dk.Stream(5), classes)
    eager = dk.Unroller(compile="off").meta_gradient(inner, leaves, dk.Window(1, 4), batch, dk.Stream(5), classes)
    assert torch.equal(traced.images, eager.images)
    assert "runs eagerly" in caplog.text


def test_a_program_that_disagrees_is_refused():
    calls = []

    def drifting(x):
        calls.append(1)
        return x * len(calls)

    with pytest.raises(GradientError, match="does not give what its function gives"):
        Programs("trace")("drifting", drifting)(torch.ones(3))


def test_cudagraph_without_a_gpu_is_refused():
    leaves, batch, classes = problem()
    with pytest.raises(CombinationError, match="needs a GPU"):
        dk.Unroller(compile="cudagraph").meta_gradient(learner(dk.SGD()), leaves, dk.Window(0, 2), batch, dk.Stream(0), classes)


def test_micro_batches_that_do_not_divide_are_explained():
    leaves, batch, classes = problem()
    with pytest.raises(CombinationError, match="does not divide the 24 images"):
        dk.Unroller(micro_batches=5).meta_gradient(learner(dk.SGD()), leaves, dk.Window(0, 2), batch, dk.Stream(0), classes)


@pytest.mark.gpu
def test_no_synchronisation_in_the_inner_loop():
    inner = learner(dk.Adam(lr=0.01), batch_per_class=2, augment=dk.FlipRotate())
    leaves, batch, classes = problem(torch.float32)
    leaves, batch = on("cuda", leaves, batch)
    unroller = dk.Unroller(compile="cudagraph")
    unroller.meta_gradient(inner, leaves, dk.Window(2, 6), batch, dk.Stream(0), classes)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            meta = unroller.meta_gradient(inner, leaves, dk.Window(2, 6), batch, dk.Stream(1), classes)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert meta.images.isfinite().all()

"""Every way to run a step gives the same gradient, is built once, and does not grow."""

import gc
import logging
import warnings

import optree
import pytest
import torch
import torchopt
from torch.nn import functional as F

import distilkit as dk
from distilkit.errors import CombinationError, GradientError
from distilkit.process import products
from distilkit.programs.agreement import within_rounding
from distilkit.programs.programs import Programs, record
from distilkit.unroll import execution as execution_module, offload, own_kernels
from distilkit.unroll.execution import ProgramCache, choose
from distilkit.unroll.inner import OuterVariables
from distilkit.unroll.problem import problem as inner_problem
from distilkit.unroller import RealBatch
from tests.unroll.problems import SHAPE, learner, problem, reference, relative

UNROLLERS = {
    "trace": dk.Unroller(compile="trace"),
    "trace, forward over reverse": dk.Unroller(dk.ReplayAdjoint(hessian_product="forward-over-reverse"), compile="trace"),
    "trace, every second state": dk.Unroller(dk.ReplayAdjoint(checkpoint_every=2), compile="trace"),
    "trace, micro-batches": dk.Unroller(compile="trace", micro_batches=4),
    "micro-batches": dk.Unroller(compile="eager", micro_batches=3),
    "autograd, micro-batches": dk.Unroller(dk.AutogradAdjoint(), micro_batches=2),
    "keep": dk.Unroller(dk.ReplayAdjoint(keep_last=9), compile="eager"),
    "trace, keep": dk.Unroller(dk.ReplayAdjoint(keep_last=9), compile="trace"),
    "trace, keep two, every second state": dk.Unroller(dk.ReplayAdjoint(keep_last=2, checkpoint_every=2), compile="trace"),
    "trace, channels last": dk.Unroller(compile="trace", channels_last="on"),
    "inductor": pytest.param(dk.Unroller(compile="inductor"), marks=pytest.mark.slow),
    "inductor, keep": pytest.param(dk.Unroller(dk.ReplayAdjoint(keep_last=2), compile="inductor"), marks=pytest.mark.slow),
    "cudagraph, keep": pytest.param(dk.Unroller(dk.ReplayAdjoint(keep_last=2), compile="cudagraph"), marks=pytest.mark.gpu),
    "cudagraph, host": pytest.param(
        dk.Unroller(dk.ReplayAdjoint(offload="host", checkpoint_every=2), compile="cudagraph"), marks=pytest.mark.gpu
    ),
    "cudagraph": pytest.param(dk.Unroller(compile="cudagraph"), marks=pytest.mark.gpu),
    "inductor-cudagraph": pytest.param(dk.Unroller(compile="inductor-cudagraph"), marks=pytest.mark.gpu),
}


def test_no_two_rows_are_the_same():
    for table in (UNROLLERS, MANY):
        rows = [row.values[0] if hasattr(row, "marks") else row for row in table.values()]
        assert len(set(rows)) == len(rows)


def cases(table):
    return [pytest.param(*v.values, id=k, marks=v.marks) if hasattr(v, "marks") else pytest.param(v, id=k) for k, v in table.items()]


def on(device, *trees):
    return [type(t)(*(x.to(device) for x in t)) for t in trees]


OPTIMIZERS = {"momentum": (dk.SGD(lr=0.05, momentum=0.9), 2), "Adam": (dk.Adam(lr=0.01), 1)}
ONCE = {"inductor": "momentum", "inductor, keep": "Adam"}  # half a minute each in a fresh venv


def with_optimizers():
    """Every way with every optimiser and depth; those that are compiled with one."""
    return [
        pytest.param(case.values[0], *pair, id=f"{case.id}-{name}", marks=case.marks)
        for case in cases(UNROLLERS)
        for name, pair in OPTIMIZERS.items()
        if ONCE.get(case.id, name) == name
    ]


@pytest.mark.parametrize(("unroller", "optimizer", "depth"), with_optimizers())
def test_equals_whole_window_autograd(unroller, optimizer, depth):
    rates = 4 if depth == 1 else 1
    inner = learner(optimizer, depth=depth, batch_per_class=2, learn_lr=True, lr_steps=rates, augment=dk.FlipRotate())
    leaves, batch, classes = problem(lr=optimizer.lr, rates=rates)
    window, stream = dk.Window(2, 7), dk.Stream(5)
    loss, truth = reference(inner, leaves, window, batch, stream, classes)
    device = "cuda" if "cudagraph" in unroller.compile else "cpu"
    there, real = on(device, leaves, batch)
    meta = unroller.meta_gradient(inner, there, window, real, stream, classes)
    assert relative(meta.loss.cpu(), loss) < 1e-10
    for name in ("images", "labels", "log_lr"):
        assert relative(getattr(meta, name).cpu(), getattr(truth, name)) < 1e-10, name


class Side:
    """A host that really copies, and as late as a stream may: what is on its way back is NaN until somebody waits for it."""

    def __init__(self):
        self.out, self.coming = 0, []

    def away(self, x):
        self.out += 1
        return x.clone()

    def back(self, host):
        here = torch.full_like(host, torch.nan if host.is_floating_point() else -1)
        self.coming.append((here, host))
        return here

    def wait(self):
        for here, host in self.coming:
            here.copy_(host)
            host.fill_(-7)  # a host copy is read once
        self.coming = []

    def arrived(self, x):
        return x.clone()


@pytest.fixture
def side(monkeypatch):
    made = Side()
    monkeypatch.setattr(offload, "_side", lambda device: made)
    return made


@pytest.mark.parametrize("optimizer", [dk.SGD(lr=0.05, momentum=0.9), dk.Adam(lr=0.01)], ids=["momentum", "Adam"])
@pytest.mark.parametrize(("every", "keep", "stored"), [(1, 0, 6), (2, 0, 3), (4, 0, 2), (2, 1, 3)])
def test_a_trajectory_that_waits_on_the_host_gives_the_same_bits(side, optimizer, every, keep, stored):
    """Every k-th of the six states goes out and comes back once, and none is used before it has arrived."""
    inner = learner(optimizer, batch_per_class=2, learn_lr=True)
    leaves, batch, classes = problem(lr=optimizer.lr)
    device, host = (
        dk.Unroller(dk.ReplayAdjoint(checkpoint_every=every, keep_last=keep, offload=store), compile="eager").meta_gradient(
            inner, leaves, dk.Window(2, 8), batch, dk.Stream(5), classes
        )
        for store in ("device", "host")
    )
    assert all(torch.equal(a, b) for a, b in zip(device, host, strict=True))
    tensors = len(optree.tree_leaves(inner.init(dk.Stream(0)).optimizer)) + 1  # of a state: parameters, and the optimiser's
    assert side.out == stored * tensors
    assert not side.coming


def test_what_is_fetched_later_is_not_mixed_up():
    """Two trees on their way at once, as when the next segment is fetched while this one is gone back through."""
    place = offload.Offload("device", torch.device("cpu"))
    place.side = Side()
    first, second = ({"x": torch.full((3,), float(k)), "count": torch.tensor(k)} for k in (1, 2))
    parked = [place.put(first), place.put(second)]
    first["x"].zero_()  # the device may write over what was put away
    coming = [place.prefetch(parked.pop()), place.prefetch(parked.pop())]
    for k, tree in zip((2, 1), map(place.get, coming), strict=True):
        assert torch.equal(tree["x"], torch.full((3,), float(k)))
        assert tree["count"] == k


def test_the_host_of_a_cpu_is_told_once_to_be_none(caplog):
    inner = learner(dk.SGD(lr=0.05))
    leaves, batch, classes = problem()
    offload._say_that_there_is_no_host.cache_clear()
    for store in ("device", "host", "host"):
        dk.Unroller(dk.ReplayAdjoint(offload=store), compile="eager").meta_gradient(
            inner, leaves, dk.Window(0, 2), batch, dk.Stream(5), classes
        )
        assert caplog.text.count('offload = "host" does nothing on a CPU') == (store == "host")


@pytest.mark.parametrize("unroller", cases(UNROLLERS))
def test_float32_is_close_to_float64(unroller):
    inner = learner(dk.Adam(lr=0.01), depth=1, batch_per_class=2)
    window, stream = dk.Window(3, 8), dk.Stream(5)
    leaves, batch, classes = problem()
    _, truth = reference(inner, leaves, window, batch, stream, classes)
    single, real = on(torch.float32, leaves, batch)
    if "cudagraph" in unroller.compile:
        single, real = on("cuda", single, real)
    meta = unroller.meta_gradient(inner, single, window, real, stream, classes)
    assert relative(meta.images.cpu().double(), truth.images) < 1e-4


PROGRAMS = ProgramCache()  # as a pipeline has one: what single networks take is recorded once
MANY = {
    "one by one": dk.Unroller(networks_per_step=3, side_by_side="off"),
    "side by side": dk.Unroller(networks_per_step=3, side_by_side="on"),
    "side by side, eager": dk.Unroller(networks_per_step=3, side_by_side="on", compile="eager"),
    "side by side, forward over reverse": dk.Unroller(
        dk.ReplayAdjoint(hessian_product="forward-over-reverse"), networks_per_step=3, side_by_side="on"
    ),
    "side by side, whole-window autograd": dk.Unroller(dk.AutogradAdjoint(), networks_per_step=3, side_by_side="on"),
}


@pytest.mark.parametrize(
    "optimizer", [dk.Adam(lr=0.01), dk.TorchOpt(lambda: torchopt.sgd(lr=0.05, momentum=0.5))], ids=["Adam", "TorchOpt"]
)
@pytest.mark.parametrize("unroller", MANY.values(), ids=MANY)
def test_many_networks_are_the_mean_of_single_ones(unroller, optimizer):
    rates = 3 if isinstance(optimizer, dk.Adam) else 1
    inner = learner(optimizer, depth=1, batch_per_class=2, learn_lr=True, lr_steps=rates, augment=dk.FlipRotate())
    leaves, batch, classes = problem(lr=optimizer.lr, rates=rates)
    window, stream = dk.Window(1, 4), dk.Stream(5)
    many = unroller.meta_gradient(inner, leaves, window, batch, stream, classes)
    singles = [
        dk.Unroller().meta_gradient(inner, leaves, window, batch, stream.fold("of many").fold(i), classes, PROGRAMS) for i in range(3)
    ]
    for name in ("loss", "images", "labels", "log_lr"):
        expected = torch.stack([getattr(one, name) for one in singles]).mean(0)
        assert relative(getattr(many, name), expected) < 1e-12, name
    assert relative(singles[0].images, singles[1].images) > 1e-2


def smooth_problem():
    """A ConvNet on images with structure, at a size where bfloat16 means something."""
    stream = dk.Stream(3)
    inner = dk.Learner(dk.ConvNet(width=32, depth=3), dk.Adam(lr=1e-3)).bind((3, 32, 32), 10)
    classes = torch.arange(10)
    images = F.interpolate(stream.fold("i").normal(10, 3, 8, 8), size=32, mode="bilinear")
    real = F.interpolate(stream.fold("r").normal(40, 3, 8, 8), size=32, mode="bilinear") + images.repeat(4, 1, 1, 1)
    leaves = OuterVariables(images, torch.eye(10), torch.tensor(1e-3).log())
    return inner, leaves, RealBatch(real, torch.eye(10).repeat(4, 1)), classes


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
    for k, window in enumerate([dk.Window(2, 5), dk.Window(0, 6), dk.Window(4, 7)]):
        unroller.meta_gradient(inner, leaves, window, batch, dk.Stream(k), classes)
        execution = unroller.execution(inner, (6, *SHAPE), leaves.images.device)
        built = unroller.programs(inner, execution).built
        assert {key[0] for key in built} == {"step in full", "back in full, reverse-over-reverse", "end in full"}
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
@pytest.mark.parametrize("keep", [0, 3])
def test_compiled_steps_give_the_same_bits_again(keep):
    """Built anew, and called again."""
    inner = learner(dk.Adam(lr=0.02), batch_per_class=2)
    leaves, batch, classes = problem(torch.float32)
    found = []
    for _ in range(2):
        unroller = dk.Unroller(dk.ReplayAdjoint(keep_last=keep), compile="inductor")
        found += [unroller.meta_gradient(inner, leaves, dk.Window(2, 7), batch, dk.Stream(1), classes) for _ in range(2)]
    assert all(torch.equal(one.images, found[0].images) for one in found)


@pytest.mark.slow
def test_memory_does_not_grow_over_200_outer_steps():
    distiller = dk.Distiller(
        dk.Digits(), dk.Learner(dk.MLP(hidden=(8,)), dk.Adam(lr=0.01)), dk.RandomTruncation(6, 3), outer=dk.Outer(steps=200, batch_size=64)
    )
    state, counts = distiller.init(), []
    for k in range(200):
        state, _ = distiller.step(state)
        if k in (50, 199):
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
    eager = dk.Unroller(compile="eager").meta_gradient(inner, leaves, dk.Window(1, 4), batch, dk.Stream(5), classes)
    assert torch.equal(traced.images, eager.images)
    assert "runs eagerly" in caplog.text


def test_what_is_within_rounding():
    """A rounding, a spike in a few entries where the program itself has spikes; not a wrong sign, and not a wrong number."""
    generator = torch.Generator().manual_seed(0)
    truth, noise = torch.randn(2, 10_000, generator=generator)
    nearby = truth + 1e-3 * noise
    spiked = truth + 1e-3 * noise.flip(0)
    spiked[:3] += 100
    assert within_rounding([truth], [truth * (1 + 1e-6)], [truth])
    assert within_rounding([truth], [spiked], [nearby])
    assert not within_rounding([truth], [-truth], [nearby])
    assert not within_rounding([truth], [truth * 1.1], [nearby])
    assert not within_rounding([torch.tensor(1.0)], [torch.tensor(1.1)], [torch.tensor(1.001)])
    assert not within_rounding([torch.tensor(1)], [torch.tensor(2)], [torch.tensor(1)])
    # A mean over many images, in which drawn nudges cancel: of bfloat16, a thousandth says nothing.
    one, nudged = torch.tensor(2.3), torch.tensor(2.30001)
    assert within_rounding([one], [one * 1.0009], [nudged], coarse=True)
    assert not within_rounding([one], [one * 1.0009], [nudged])
    assert not within_rounding([one], [one * 1.002], [nudged], coarse=True)
    assert not within_rounding([one], [one * torch.nan], [nudged], coarse=True)
    assert not within_rounding([truth], [truth * torch.nan], [nearby])
    broken = truth.clone()
    broken[::10] = 0  # a tenth of the entries
    assert not within_rounding([truth], [broken], [nearby])


class Straight(torch.autograd.Function):
    """A straight-through estimator: torch can record it, but not without mutations."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x.round()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, g):
        return g * 1.0


class Rounded:
    def init(self, stream):
        return {"w": stream.normal(3, 64)}

    def apply(self, params, x):
        return Straight.apply(4 * x.flatten(1) @ params["w"].T) / 4


@pytest.mark.parametrize("keep", [0, 2])
def test_own_derivatives_of_a_network_are_taken(keep):
    leaves, batch, classes = problem()
    inner = dk.Learner(Rounded(), dk.SGD(lr=0.05))
    found = [
        dk.Unroller(dk.ReplayAdjoint(keep_last=keep), compile=compile).meta_gradient(
            inner, leaves, dk.Window(1, 4), batch, dk.Stream(5), classes
        )
        for compile in ("eager", "trace")
    ]
    assert relative(found[1].images, found[0].images) < 1e-12
    assert found[0].images.norm() > 1e-6


def test_a_program_that_disagrees_is_refused():
    calls = []

    def drifting(x):
        calls.append(1)
        return x * len(calls)

    with pytest.raises(GradientError, match="does not give what its function gives"):
        Programs("trace")("drifting", drifting)(torch.ones(3))


def test_one_tensor_in_two_places_is_two_inputs():
    """A program recorded while two arguments were the same tensor must not take them for one later."""
    programs = Programs("trace")
    add = programs("add", lambda x, y: x + 2 * y)
    same = torch.ones(3)
    assert torch.equal(add(same, same), 3 * torch.ones(3))
    assert torch.equal(add(torch.ones(3), torch.zeros(3)), torch.ones(3))


def test_keep_needs_a_graph():
    with pytest.raises(CombinationError, match="makes none"):
        dk.ReplayAdjoint(keep_last=1, hessian_product="forward-over-reverse")


AUTO = {
    "small, on a CPU": (dk.Unroller(), dk.ConvNet(width=16), 10, ("trace", False, False)),
    "large, on a CPU": (dk.Unroller(), dk.ConvNet(width=128), 100, ("inductor", True, False)),
    "large, recorded as asked": (dk.Unroller(compile="trace"), dk.ConvNet(width=128), 100, ("trace", False, False)),
    "eager": (dk.Unroller(compile="eager"), dk.ConvNet(width=128), 100, ("eager", False, False)),
    "small ones together": (dk.Unroller(networks_per_step=2), dk.MLP(hidden=(8,)), 10, ("trace", False, True)),
    "large ones one by one": (dk.Unroller(networks_per_step=2), dk.ConvNet(width=64), 10, ("trace", False, False)),
}


@pytest.mark.parametrize(("unroller", "network", "rows", "expected"), AUTO.values(), ids=AUTO)
def test_auto_picks_by_size(unroller, network, rows, expected, monkeypatch):
    monkeypatch.setattr("distilkit.unroll.execution.compiler_here", lambda: "/usr/bin/g++")
    inner = dk.Learner(network, dk.Adam()).bind((3, 32, 32), 10)
    choose.cache_clear()
    execution = unroller.execution(inner, (rows, 3, 32, 32), torch.device("cpu"))
    assert execution[:3] == expected


ON_A_GPU = {
    "large": (dk.ConvNet(width=128), float("inf"), True, ("inductor-cudagraph", "on a GPU, a forward pass takes 10 GFLOP")),
    "large, without Triton": (dk.ConvNet(width=128), float("inf"), False, ("cudagraph", "there is no Triton")),
    "large, for a while": (dk.ConvNet(width=128), 100.0, True, ("cudagraph", "on a GPU")),
    "small": (dk.MLP(hidden=(8,)), float("inf"), True, ("cudagraph", "on a GPU")),
    "a few steps": (dk.MLP(hidden=(8,)), 10.0, True, ("eager", "too few")),
}


@pytest.mark.parametrize(("network", "calls", "triton", "expected"), ON_A_GPU.values(), ids=ON_A_GPU)
def test_auto_on_a_gpu(network, calls, triton, expected, monkeypatch):
    """Without one: what is asked of the device is answered by the CPU."""
    counted = execution_module.operations
    monkeypatch.setattr(execution_module, "operations", lambda learner, shape, device: counted(learner, shape))
    monkeypatch.setattr(own_kernels, "has_triton", lambda: triton)
    monkeypatch.setattr(own_kernels, "tried", lambda *_: own_kernels.Tried(False, 1.0, ""))
    inner = dk.Learner(network, dk.Adam()).bind((3, 32, 32), 10)
    choose.cache_clear()
    found = choose(inner, "auto", "auto", "auto", "float32", 1, (100, 3, 32, 32), torch.device("cuda"), calls)
    choose.cache_clear()
    assert found.kind == expected[0]
    assert expected[1] in found.why
    assert not found.channels_last


def test_auto_says_that_there_is_no_compiler(monkeypatch):
    monkeypatch.setattr("distilkit.unroll.execution.compiler_here", lambda: None)
    choose.cache_clear()
    inner = dk.Learner(dk.ConvNet(), dk.Adam()).bind((3, 32, 32), 10)
    execution = dk.Unroller().execution(inner, (100, 3, 32, 32), torch.device("cpu"))
    choose.cache_clear()
    assert execution.kind == "trace"
    assert "no C++ compiler" in str(execution)


def test_layouts_that_do_not_go_together_are_refused():
    leaves, batch, classes = problem()
    unroller = dk.Unroller(networks_per_step=2, side_by_side="on", channels_last="on")
    with pytest.raises(CombinationError, match="do not go together"):
        unroller.meta_gradient(learner(dk.SGD()), leaves, dk.Window(0, 2), batch, dk.Stream(0), classes)


@pytest.mark.parametrize("fused", [False, True])
def test_a_norm_is_one_operation_where_nothing_joins_several(fused):
    """Of a step and of the end: torch's own backward of a norm, or what it is made of."""
    inner = dk.Learner(dk.ConvNet(width=4, depth=1), dk.Adam()).bind((3, 8, 8), 2)
    leaves = OuterVariables(torch.randn(2, 3, 8, 8), torch.eye(2), torch.tensor(0.01).log())
    execution = dk.Unroller(compile="trace").execution(inner, (2, 3, 8, 8), torch.device("cpu"))
    made = inner_problem(inner, None, execution._replace(kind="inductor" if fused else "trace"))
    state = inner.init(dk.Stream(0))
    for function, arguments in (
        (made.step, (*state, leaves, inner.draw(dk.Stream(1), torch.arange(2), (3, 8, 8)))),
        (made.end, (state.params, leaves.images, leaves.labels)),
    ):
        names = {str(node.target) for node in record(function, arguments).graph.nodes}
        assert ("aten.native_group_norm_backward.default" in names) != fused


@pytest.mark.gpu
@pytest.mark.parametrize(("precision", "allowed"), [("float32", False), ("tf32", True)])
def test_tf32_is_a_choice(precision, allowed):
    with products(precision, torch.device("cuda")):
        assert torch.backends.cuda.matmul.allow_tf32 == allowed
        assert torch.backends.cudnn.allow_tf32 == allowed


@pytest.mark.parametrize("compile", ["cudagraph", "inductor-cudagraph"])
def test_graphs_without_a_gpu_are_refused(compile):
    leaves, batch, classes = problem()
    with pytest.raises(CombinationError, match="needs a GPU"):
        dk.Unroller(compile=compile).meta_gradient(learner(dk.SGD()), leaves, dk.Window(0, 2), batch, dk.Stream(0), classes)


def test_micro_batches_that_do_not_divide_are_explained():
    leaves, batch, classes = problem()
    with pytest.raises(CombinationError, match="does not divide the 24 images"):
        dk.Unroller(micro_batches=5).meta_gradient(learner(dk.SGD()), leaves, dk.Window(0, 2), batch, dk.Stream(0), classes)


@pytest.mark.gpu
@pytest.mark.parametrize("networks", [1, 3])
def test_no_synchronisation_in_the_inner_loop(networks):
    """With the classes on the CPU nothing waits for the GPU, from the fresh network to the gradient."""
    inner = learner(dk.Adam(lr=0.01), batch_per_class=2, augment=dk.FlipRotate())
    leaves, batch, classes = problem(torch.float32)
    leaves, batch = on("cuda", leaves, batch)
    unroller = dk.Unroller(compile="cudagraph", networks_per_step=networks)
    unroller.meta_gradient(inner, leaves, dk.Window(2, 6), batch, dk.Stream(0), classes)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it says that it is a prototype, after it was set
            torch.cuda.set_sync_debug_mode("error")
        for _ in range(3):
            meta = unroller.meta_gradient(inner, leaves, dk.Window(2, 6), batch, dk.Stream(1), classes)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert meta.images.isfinite().all()

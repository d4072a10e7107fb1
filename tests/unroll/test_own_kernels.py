"""Whether our kernels for a GPU are taken: where, why, and that a CPU knows nothing of them. No GPU: the try is a stub."""

import sys

import pytest
import torch

import distilkit as dk
from distilkit.errors import CombinationError, GradientError
from distilkit.programs.programs import record
from distilkit.unroll import own_kernels
from distilkit.unroll.execution import Execution, choose
from distilkit.unroll.inner import OuterVariables
from distilkit.unroll.own_kernels import Tried
from distilkit.unroll.problem import problem as inner_problem
from tests.unroll.problems import learner, problem, relative

CUDA = torch.device("cuda")
GOOD, SLOW, WRONG = Tried(True, 0.5, "half"), Tried(True, 1.2, "slow"), Tried(False, 1.0, "wrong")
NET = dk.ConvNet(width=4, depth=2)


def bound(network):
    return dk.Learner(network, dk.Adam()).bind((3, 32, 32), 10)


@pytest.fixture
def stub(monkeypatch):
    """Stands for a try; gives what was tried."""
    asked = []

    def answer(found, triton=True):
        monkeypatch.setattr(own_kernels, "tried", lambda *arguments: asked.append(arguments) or found)
        monkeypatch.setattr(own_kernels, "has_triton", lambda: triton)
        return asked

    return answer


@pytest.mark.parametrize(("found", "taken"), [(GOOD, True), (SLOW, False), (WRONG, False)])
def test_auto_takes_what_is_right_and_faster(found, taken, stub):
    asked = stub(found)
    assert own_kernels.pick(bound(NET), "auto", "trace", "bfloat16", (1000, 3, 32, 32), CUDA) == (taken, found.words)
    assert asked == [("trace", torch.bfloat16, (own_kernels.MOST_IMAGES, 4, 32, 32), "avg", CUDA)]


NOTHING_TO_TRY = {
    "torch": (NET, "torch", CUDA, True),
    "a CPU": (NET, "auto", torch.device("cpu"), True),
    "no Triton": (NET, "auto", CUDA, False),
    "another norm": (dk.ConvNet(width=4, depth=2, norm="group"), "auto", CUDA, True),
    "another activation": (dk.ConvNet(width=4, depth=2, activation="gelu"), "auto", CUDA, True),
    "no blocks": (dk.MLP(hidden=(4,)), "auto", CUDA, True),
}


@pytest.mark.parametrize(("network", "kernels", "device", "triton"), NOTHING_TO_TRY.values(), ids=NOTHING_TO_TRY)
def test_nothing_is_tried_where_there_is_nothing(network, kernels, device, triton, stub):
    asked = stub(GOOD, triton)
    assert own_kernels.pick(bound(network), kernels, "trace", "float32", (10, 3, 32, 32), device) == (False, "")
    assert not asked


def test_what_is_asked_for_and_cannot_be_is_refused(stub):
    stub(WRONG)
    with pytest.raises(GradientError, match="wrong"):
        own_kernels.pick(bound(NET), "triton", "trace", "float32", (10, 3, 32, 32), CUDA)
    with pytest.raises(CombinationError, match="not made of blocks"):
        own_kernels.pick(bound(dk.MLP(hidden=(4,))), "triton", "trace", "float32", (10, 3, 32, 32), CUDA)
    with pytest.raises(CombinationError, match="the work is on cpu"):
        choose(bound(NET), "trace", "auto", "auto", "float32", 1, (10, 3, 32, 32), torch.device("cpu"), kernels="triton")
    stub(SLOW)
    assert own_kernels.pick(bound(NET), "triton", "trace", "float32", (10, 3, 32, 32), CUDA)[0]


def test_auto_tries_nothing_that_is_settled(stub):
    """A forward derivative, a window as it is, and bits that are asked for."""
    asked = stub(GOOD)
    adjoints = (dk.ReplayAdjoint(hessian_product="forward-over-reverse"), dk.AutogradAdjoint(), dk.ReplayAdjoint())
    executions = []
    for adjoint in adjoints:
        torch.use_deterministic_algorithms(isinstance(adjoint, dk.ReplayAdjoint) and adjoint.hessian_product == "reverse-over-reverse")
        try:
            executions.append(dk.Unroller(adjoint, compile="cudagraph").execution(bound(NET), (10, 3, 32, 32), CUDA))
        finally:
            torch.use_deterministic_algorithms(False)
    assert not asked
    assert not any(one.kernels for one in executions)
    assert dk.Unroller(compile="cudagraph").execution(bound(NET), (10, 3, 32, 32), CUDA).kernels
    with pytest.raises(CombinationError, match="no forward derivative"):
        dk.Unroller(adjoints[0], kernels="triton").execution(bound(NET), (10, 3, 32, 32), CUDA)


def test_a_try_that_fails_is_told():
    """Here there is no GPU to start a kernel on, or no Triton at all."""
    if torch.cuda.is_available():
        pytest.skip("this is about a machine without a GPU")
    found = own_kernels.tried("eager", torch.float32, (2, 3, 4, 4), "avg", torch.device("cpu"))
    assert not found.right
    assert "do not run here" in found.words


def test_a_cpu_run_knows_nothing_of_them(monkeypatch):
    leaves, batch, classes = problem()
    for name in ("distilkit.functional.blocks", "distilkit.functional.triton_kernels"):
        monkeypatch.setitem(sys.modules, name, None)  # an import is an error
    with pytest.raises(ImportError):
        own_kernels.our_block("avg")
    inner, unroller = learner(dk.SGD(), activation="relu"), dk.Unroller(compile="trace")
    made = unroller.meta_gradient(inner, leaves, dk.Window(0, 1), batch, dk.Stream(0), classes)
    assert made.images.abs().sum() > 0


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_step_back_holds_few_operations(dtype):
    """Recorded, with our kernels and without: of each block four in place of about a hundred, and nothing else as large as its maps."""
    inner, shape = dk.Learner(NET, dk.SGD()).bind((3, 8, 8), 2), (2, 3, 8, 8)
    leaves = OuterVariables(torch.zeros(shape), torch.eye(2), torch.tensor(0.01).log())
    state, draw = inner.init(dk.Stream(0)), inner.draw(dk.Stream(1), torch.arange(2), shape[1:])
    names = {}
    for ours in (True, False):
        made = inner_problem(inner, dtype, Execution("trace", False, False, "float32", "", kernels=ours))
        back, like = dk.ReplayAdjoint().back(made), OuterVariables(*(torch.zeros_like(x) for x in leaves))
        graph = record(back, (*state, leaves, draw, torch.zeros_like(state.params), [], like))
        names[ours] = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    own = [name for name in names[True] if name.startswith("distilkit.")]
    assert len(own) == NET.depth * 4
    assert not [name for name in names[True] if "group_norm" in name or "avg_pool" in name or "threshold" in name]
    assert len(names[True]) < 0.6 * len(names[False])


@pytest.mark.gpu
def test_the_meta_gradient_is_the_same_on_a_gpu():
    leaves, batch, classes = (x.to("cuda") if isinstance(x, torch.Tensor) else type(x)(*(y.to("cuda") for y in x)) for x in problem())
    found = [
        dk.Unroller(compile="cudagraph", kernels=kernels).meta_gradient(
            learner(dk.SGD(), activation="relu"), leaves, dk.Window(1, 4), batch, dk.Stream(0), classes
        )
        for kernels in ("torch", "triton")
    ]
    assert relative(found[1].images, found[0].images) < 1e-9

"""Programs: pure functions made fast once, and called many thousands of times.

Every inner step is the same function of the same shapes, and so is every step back. Run eagerly, such a function spends most of
its time in the layers of torch that differentiate it: for a small network twenty times the arithmetic. A program is the function
after differentiation, recorded once as a plain list of tensor operations (`make_fx`), and then

    "eager"       not recorded at all: the function itself
    "trace"       the list of operations, run one after the other
    "inductor"    the list compiled by torch.compile: fused, for the longest runs
    "cudagraph"   the list captured as a CUDA graph and replayed (CUDA only)

The first call of a program also runs the eager function and compares. The recorded list does the same operations, so it must agree
to a few roundings, or it is an error. A compiler orders and fuses them, and where Adam divides a gradient that is nothing but
rounding by its own size, two right answers differ: what is compiled must agree to a hundredth, or the recorded list is used.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import optree
import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from distilkit.errors import GradientError

EXECUTIONS = ("eager", "trace", "inductor", "cudagraph")
Function = Callable[..., Any]


class Programs:
    """Programs by name, each built when it is first called.

    Args:
        execution: one of `EXECUTIONS`.
        notice: told what is built, and why something falls back.

    >>> programs = Programs("trace")
    >>> twice = programs("twice", lambda tree: {"y": tree["x"] * 2})
    >>> twice({"x": torch.ones(2)})["y"]
    tensor([2., 2.])
    """

    def __init__(self, execution: str = "eager", notice: Callable[[str], None] | None = None) -> None:
        self.execution = execution
        self.notice = notice or (lambda _: None)
        self.built: dict[tuple[Any, ...], Function] = {}

    def __call__(self, name: str, function: Function) -> Function:
        """Return `function`, made fast. It must be pure, and hold no tensor that changes from call to call."""
        if self.execution == "eager":
            return function

        def call(*arguments: Any) -> Any:
            flat: list[Any]
            flat, structure = optree.tree_flatten(arguments)  # type: ignore[arg-type]
            key = (name, structure, tuple((x.shape, x.dtype, x.device) if isinstance(x, Tensor) else x for x in flat))
            program = self.built.get(key)
            if program is None:
                program = self.built[key] = self._build(name, function, flat, structure)
            return program(*flat)

        return call

    def _build(self, name: str, function: Function, flat: Sequence[Any], structure: Any) -> Function:
        """Record, compile and check one program; it takes and is called with the flat arguments."""

        def eager(*leaves: Any) -> Any:
            return function(*optree.tree_unflatten(structure, leaves))

        try:
            graph, rebuild = record(function, flat, structure)
        except (RuntimeError, NotImplementedError, TypeError, GradientError) as error:
            self.notice(f"{name} runs eagerly: it cannot be recorded ({str(error).splitlines()[0]})")
            return eager
        truth = optree.tree_leaves(eager(*flat))
        if not agree(truth, graph(*flat), roundings=2000):
            raise GradientError(
                f"The program {name!r} does not give what its function gives: the function is not pure, or its path depends on the "
                "values of its input.",
                fix='--set unroller.compile="off"',
            )
        run = self._compiled(name, graph, flat)
        if run is not graph and not agree(truth, run(*flat), tolerance=1e-2):
            self.notice(f"{name} runs as recorded: what the compiler made of it differs by more than a hundredth")
            run = graph
        return lambda *leaves: rebuild(run(*leaves))

    def _compiled(self, name: str, graph: fx.GraphModule, flat: Sequence[Any]) -> Function:
        if self.execution == "cudagraph":
            return captured(graph, flat)
        if self.execution == "inductor":
            self.notice(f"compiling {name} ({len(graph.graph.nodes)} operations); this takes seconds to a minute, once")
            try:
                compiled = torch.compile(graph, fullgraph=True, dynamic=False)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # torch's own, of its own compiler
                    compiled(*flat)
                return compiled
            except Exception as error:  # the compiler raises many kinds; all mean that the recorded list is to be used
                self.notice(f"{name} is not compiled ({type(error).__name__}: {str(error).splitlines()[0]}); it runs as recorded")
        return graph


def record(function: Function, flat: Sequence[Any], structure: Any) -> tuple[fx.GraphModule, Callable[[Sequence[Any]], Any]]:
    """Record a pure function of a tree of tensors as a list of operations.

    Args:
        function: takes the arguments whose leaves are `flat`.
        flat: leaves of the arguments; tensors are inputs of the list, anything else is a constant of it.
        structure: optree structure of the arguments.

    Returns:
        the list, which takes and gives flat tensors, and what rebuilds the function's result from those.
    """
    shape: list[Any] = []

    def flattened(*leaves: Any) -> list[Tensor]:
        out, result = optree.tree_flatten(function(*optree.tree_unflatten(structure, leaves)))
        shape.append(result)
        return out

    with torch.no_grad():
        graph = make_fx(flattened)(*flat)
    shrink(graph)
    return graph, lambda out: optree.tree_unflatten(shape[0], out)


def shrink(graph: fx.GraphModule) -> None:
    """Drop what nobody uses: dead operations, and the halves of a convolution's backward that only dead operations asked for."""
    aten = torch.ops.aten
    graph.graph.eliminate_dead_code()
    for node in graph.graph.nodes:
        if node.target is aten.convolution_backward.default:
            used = {user.args[1] for user in node.users}
            mask = [wanted and i in used for i, wanted in enumerate(node.args[10])]
            node.update_arg(10, mask)
        if node.target is aten.detach.default:  # nothing is differentiated any more
            node.replace_all_uses_with(node.args[0])
    graph.graph.eliminate_dead_code()
    graph.recompile()


def captured(graph: fx.GraphModule, flat: Sequence[Any]) -> Function:
    """Capture a list of operations as a CUDA graph with static buffers; a call copies its arguments in and its results out."""
    buffers = [x.clone() if isinstance(x, Tensor) else x for x in flat]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # warm up outside of the capture, as torch.cuda.graph asks
        for _ in range(3):
            graph(*buffers)
    torch.cuda.current_stream().wait_stream(side)
    recorded = torch.cuda.CUDAGraph()
    with torch.cuda.graph(recorded):
        results = graph(*buffers)

    def replay(*leaves: Any) -> list[Tensor]:
        for buffer, leaf in zip(buffers, leaves, strict=True):
            if isinstance(buffer, Tensor) and buffer.data_ptr() != leaf.data_ptr():
                buffer.copy_(leaf, non_blocking=True)
        recorded.replay()
        return [r.clone() for r in results]

    return replay


def agree(truth: Sequence[Tensor], given: Sequence[Tensor], *, roundings: int = 0, tolerance: float = 0.0) -> bool:
    """Whether every tensor agrees: to so many roundings of its dtype, or to a relative tolerance, in norm."""
    for expected, actual in zip(truth, given, strict=True):
        if not expected.is_floating_point():
            if not torch.equal(expected, actual):
                return False
            continue
        scale = expected.double().norm()
        allowed = max(tolerance, roundings * torch.finfo(expected.dtype).eps) * scale
        if scale.isfinite() and not bool((expected.double() - actual.double()).norm() <= allowed):
            return False
    return True

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
rounding by its own size, two right answers differ by as much as one answer does when its input is rounded otherwise: what is
compiled must stay within ten times that, or the recorded list is used.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import optree
import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from distilkit.errors import GradientError
from distilkit.functional import memory
from distilkit.functional.partition import halve
from distilkit.functional.passes import improve

EXECUTIONS = ("eager", "trace", "inductor", "cudagraph")
Function = Callable[..., Any]


class Programs:
    """Programs by name, each built when it is first called.

    Args:
        execution: one of `EXECUTIONS`.
        notice: told what is built.
        warn: told why something falls back.

    >>> programs = Programs("trace")
    >>> twice = programs("twice", lambda tree: {"y": tree["x"] * 2})
    >>> twice({"x": torch.ones(2)})["y"]
    tensor([2., 2.])
    """

    def __init__(
        self,
        execution: str = "eager",
        notice: Callable[[str], None] = lambda _: None,
        warn: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.execution = execution
        self.notice, self.warn = notice, warn
        self.built: dict[tuple[Any, ...], Function] = {}
        self.pool = torch.cuda.graph_pool_handle() if execution == "cudagraph" else None

    def __call__(self, name: str, function: Function) -> Function:
        """Return `function`, made fast. It must be pure, and hold no tensor that changes from call to call."""
        if self.execution == "eager":
            return function

        return self._by_shapes(name, lambda arguments: self._whole(name, function, arguments))

    def halved(self, name: str, function: Function, late: Function) -> Function:
        """Return `function` made fast, where it gives a function itself: (result, rest), and rest(*late arguments) another result.

        Args:
            name: of the program.
            function: pure, of trees of tensors.
            late: from the arguments of `function`, tensors of the shapes that the late arguments will have.
        """
        if self.execution == "eager":
            return function

        return self._by_shapes(name, lambda arguments: self._halves(name, function, arguments, late(*arguments)))

    def _by_shapes(self, name: str, build: Callable[[Sequence[Any]], Function]) -> Function:
        """A function that has a program built the first time it sees arguments of some shapes, and calls that with the flat arguments."""

        def call(*arguments: Any) -> Any:
            flat, structure = _flat(arguments)
            key = _key(name, flat, structure)
            if key not in self.built:
                self.built[key] = build(arguments)
            return self.built[key](*flat)

        return call

    def _whole(self, name: str, function: Function, arguments: Sequence[Any]) -> Function:
        """Record, check and compile one program; it is called with the flat arguments."""
        flat, structure = _flat(arguments)
        graph, truth = self._recorded(name, function, arguments)
        if graph is None:
            return lambda *leaves: function(*optree.tree_unflatten(structure, leaves))
        result = optree.tree_structure(truth)
        run = self._fast(name, graph, flat, optree.tree_leaves(truth))
        return lambda *leaves: optree.tree_unflatten(result, run(*leaves))

    def _halves(self, name: str, function: Function, early: Sequence[Any], late: Sequence[Any]) -> Function:
        """Record, check, cut and compile one program; see `halved`. It is called with the flat early arguments."""

        def both(early: Any, late: Any) -> Any:
            result, rest = function(*early)
            return result, rest(*late)

        flat, structure = _flat(early)
        graph, truth = self._recorded(name, both, (early, late), halved=True)
        if graph is None:
            return lambda *leaves: function(*optree.tree_unflatten(structure, leaves))
        count, result, rest = len(optree.tree_leaves(truth[0])), optree.tree_structure(truth[0]), optree.tree_structure(truth[1])
        halves = halve(graph, len(flat), count)
        made = halves.first(*flat)
        first = self._fast(f"{name}, first half", halves.first, flat, made)
        waiting = [*made[count:], *(flat[i] for i in halves.again), *_flat(late)[0]]
        after = halves.second(*waiting)
        if not agree(optree.tree_leaves(truth), [*made[:count], *after], roundings=2000):
            raise GradientError(f"The halves of {name!r} do not give what the whole gives: a fault of distilkit.", fix="keep = 0")
        second = self._fast(f"{name}, second half", halves.second, waiting, after)

        def begin(*leaves: Any) -> tuple[Any, Function]:
            made = first(*leaves)
            waiting = [*made[count:], *(leaves[i] for i in halves.again)]
            return (
                optree.tree_unflatten(result, made[:count]),
                lambda *late: optree.tree_unflatten(rest, second(*waiting, *_flat(late)[0])),
            )

        return begin

    def _recorded(
        self, name: str, function: Function, arguments: Sequence[Any], *, halved: bool = False
    ) -> tuple[fx.GraphModule | None, Any]:
        """A function as a list of operations, checked against the function itself, and what that gives; no list if it cannot be."""
        try:
            graph = record(function, arguments, mutations=not halved)
        except UNRECORDABLE as error:
            self.warn(f"{name} runs eagerly: it cannot be recorded ({str(error).splitlines()[0]})")
            return None, None
        truth = function(*arguments)
        memory.give_back()  # the function held more than the list will
        flat, expected = _flat(arguments)[0], optree.tree_leaves(truth)
        if not agree(expected, graph(*flat), roundings=2000):
            # Where products are rounded (TF32), another routine for the same may differ by more than that.
            graph = record(function, arguments, mutations=not halved, faster=False)
            if agree(expected, graph(*flat), roundings=2000):
                return graph, truth
            raise GradientError(
                f"The program {name!r} does not give what its function gives: the function is not pure, or its path depends on the "
                "values of its input.",
                fix='--set unroller.compile="off"',
            )
        return graph, truth

    def _fast(self, name: str, graph: fx.GraphModule, flat: Sequence[Any], truth: Sequence[Tensor]) -> Function:
        """A recorded program, compiled if that is how programs run here and the compiler keeps its results."""
        run = self._compiled(name, graph, flat)
        if run is graph:
            return graph
        # Twice, with other values: a graph captured on the wrong device would give its first results for ever.
        moved = nudged(flat)
        there = graph(*moved)
        if faithful(truth, run(*flat), there) and faithful(there, run(*moved), truth):
            return run
        self.warn(f"{name} runs as recorded: what was compiled of it differs by more than roundings can")
        return graph

    def _compiled(self, name: str, graph: fx.GraphModule, flat: Sequence[Any]) -> Function:
        if self.execution == "cudagraph":
            try:
                return captured(graph, flat, self.pool)
            except (RuntimeError, torch.OutOfMemoryError) as error:
                self.warn(f"{name} is not captured ({str(error).splitlines()[0]}); it runs as recorded")
        if self.execution == "inductor":
            self.notice(f"compiling {name} ({len(graph.graph.nodes)} operations); this takes seconds to a minute, once")
            try:
                began = time.perf_counter()
                compiled = torch.compile(graph, fullgraph=True, dynamic=False)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # torch's own, of its own compiler
                    compiled(*flat)
                self.notice(f"compiled {name} in {time.perf_counter() - began:.0f} s")
                return compiled
            except Exception as error:  # the compiler raises many kinds; all mean that the recorded list is to be used
                self.warn(f"{name} is not compiled ({type(error).__name__}: {str(error).splitlines()[0]}); it runs as recorded")
        return graph


# What torch raises where a function cannot be recorded: for paths that depend on values, for rules that are missing.
UNRECORDABLE = (RuntimeError, NotImplementedError, TypeError, GradientError)


def record(function: Function, arguments: Sequence[Any], *, mutations: bool = True, faster: bool = True) -> fx.GraphModule:
    """Record a pure function of trees of tensors as a list of operations. Only shapes are worked out: it takes next to no memory.

    Args:
        function: called with the arguments.
        arguments: trees; their tensors are inputs of the list, anything else is a constant of it.
        mutations: take a list in which operations write over what others made, where torch cannot do without (it cannot for
            a `torch.autograd.Function` of the network).
        faster: put faster operations in the place of some.

    Returns:
        the list, which takes the flat arguments and gives the flat result.
    """
    flat, structure = _flat(arguments)
    # The recorder knows tensors by identity: one that comes twice would be one input, and its other place would be forgotten.
    seen: set[int] = set()
    flat = [x.clone() if isinstance(x, Tensor) and (id(x) in seen or seen.add(id(x))) else x for x in flat]  # type: ignore[func-returns-value]

    def flattened(*leaves: Any) -> list[Tensor]:
        made: list[Tensor] = optree.tree_leaves(function(*optree.tree_unflatten(structure, leaves)))
        return made

    def recorded(function: Function) -> fx.GraphModule:
        with torch.no_grad():
            return make_fx(function, tracing_mode="fake", _allow_non_fake_inputs=True)(*flat)

    try:
        graph = recorded(torch.func.functionalize(flattened))
    except UNRECORDABLE:
        if not mutations:
            raise
        graph = recorded(flattened)
    improve(graph, faster=faster)
    return graph


def _flat(arguments: Sequence[Any]) -> tuple[list[Any], Any]:
    return optree.tree_flatten(tuple(arguments))  # type: ignore[arg-type]


def _key(name: str, flat: Sequence[Any], structure: Any) -> tuple[Any, ...]:
    """What a program is built for: its name, and the shapes of its arguments."""
    return name, structure, tuple((x.shape, x.dtype, x.device) if isinstance(x, Tensor) else x for x in flat)


def captured(graph: fx.GraphModule, flat: Sequence[Any], pool: Any = None) -> Function:
    """Capture a list of operations as a CUDA graph with static buffers; a call copies its arguments in and its results out.

    Graphs of one memory pool share their scratch memory: they are replayed one after the other.
    """
    device = next(x.device for x in flat if isinstance(x, Tensor))
    with torch.cuda.device(device):
        buffers = [x.clone() if isinstance(x, Tensor) else x for x in flat]
        side = torch.cuda.Stream(device)
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):  # warm up outside of the capture, as torch.cuda.graph asks
            for _ in range(3):
                graph(*buffers)
        torch.cuda.current_stream(device).wait_stream(side)
        recorded = torch.cuda.CUDAGraph()
        with torch.cuda.graph(recorded, pool=pool, stream=side):
            results = graph(*buffers)

    def replay(*leaves: Any) -> list[Tensor]:
        with torch.cuda.device(device):
            for buffer, leaf in zip(buffers, leaves, strict=True):
                if isinstance(buffer, Tensor) and buffer.data_ptr() != leaf.data_ptr():
                    buffer.copy_(leaf, non_blocking=True)
            recorded.replay()
            return [r.clone() for r in results]

    return replay


def agree(truth: Sequence[Tensor], given: Sequence[Tensor], *, roundings: int) -> bool:
    """Whether every tensor agrees in norm, to so many roundings of its dtype."""
    for expected, actual in zip(truth, given, strict=True):
        if not expected.is_floating_point():
            if not torch.equal(expected, actual):
                return False
            continue
        scale = float(_exact(expected).norm())
        if math.isfinite(scale) and not distance(expected, actual) <= roundings * torch.finfo(expected.dtype).eps * scale:
            return False
    return True


def faithful(truth: Sequence[Tensor], given: Sequence[Tensor], nearby: Sequence[Tensor]) -> bool:
    """Whether results are those of the recorded program, as far as roundings let anybody tell.

    A tensor is, if it agrees to 2,000 roundings; or if it is no more than ten times as far off as the recorded program's own
    result for nudged inputs, in norm or, where a few entries near a singularity outweigh all others in the norm, in the median.
    """
    for expected, actual, other in zip(truth, given, nearby, strict=True):
        if agree([expected], [actual], roundings=2000):
            continue
        if not expected.is_floating_point():
            return False
        if distance(expected, actual) <= 10 * distance(expected, other):
            continue
        off, wobble = ((_exact(expected) - _exact(x)).abs().median() for x in (actual, other))
        if expected.numel() < 100 or not off <= 10 * wobble:
            return False
    return True


def distance(a: Tensor, b: Tensor) -> float:
    """Norm of the difference, in float64."""
    return float((_exact(a) - _exact(b)).norm())


def _exact(x: Tensor) -> Tensor:
    """In float64, which not every device has."""
    return x.double() if x.device.type in ("cpu", "cuda") else x.cpu().double()


def nudged(flat: Sequence[Any], *, roundings: int = 8) -> list[Any]:
    """The same inputs, moved by so many roundings of their dtype. What a result changes by, nobody can know better."""

    def moved(x: Any) -> Any:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            return x
        noise = torch.randn(x.shape, generator=torch.Generator(x.device).manual_seed(0), dtype=x.dtype, device=x.device)
        return x * (1 + roundings * torch.finfo(x.dtype).eps * noise)

    return [moved(x) for x in flat]

"""Programs: pure functions made fast once, and called many thousands of times.

Every inner step is the same function of the same shapes, and so is every step back. Run eagerly, such a function spends most of
its time in the layers of torch that differentiate it: for a small network twenty times the arithmetic. A program is the function
after differentiation, recorded once as a plain list of tensor operations (`make_fx`), and then

    "eager"       not recorded at all: the function itself
    "trace"       the list of operations, run one after the other
    "inductor"    the list compiled by torch.compile: fused, for the longest runs
    "cudagraph"   the list captured as a CUDA graph and replayed (CUDA only)
    "inductor-cudagraph"   what is compiled of it, captured (CUDA only)

The first call of a program also runs the eager function and compares. The recorded list does the same operations, so it must agree
to a few roundings. A compiler orders and fuses them, and where Adam divides a gradient that is nothing but rounding by its own
size, two right answers differ by as much as one answer does when its input is rounded otherwise: what is compiled must stay within
ten times that (`agreement`).

A program never takes a run down. What goes wrong while it is recorded, compiled or first run falls back one level: compiled and captured ->
captured -> recorded -> recorded in plain form -> the function itself, where what no graph can hold is only compiled. That is said once,
and noted in `Programs.fallbacks`. A recorded list that gives a wrong result is an error all the same, and so is memory that runs out, since
the next level takes more; only a compiled or captured program falls back from that, to the recorded one.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import optree
import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from distilkit import process
from distilkit.errors import GradientError
from distilkit.programs.agreement import COARSE, elsewhere, faithful, nudged, within_rounding
from distilkit.programs.capture import CaptureError, Scratch, captured, why_not
from distilkit.programs.partition import partition
from distilkit.programs.rewrites import improve

COMPILED = ("inductor", "inductor-cudagraph")
# What is tried, one after the other, before the recorded list.
LEVELS = {
    "eager": (),
    "trace": (),
    "inductor": ("inductor",),
    "cudagraph": ("cudagraph",),
    "inductor-cudagraph": ("inductor-cudagraph", "cudagraph"),
}
EXECUTIONS = tuple(LEVELS)
CAPTURED = ("cudagraph", "inductor-cudagraph")
Function = Callable[..., Any]
MOST_SHAPES = 3  # that a program is captured for at a time: two parts of a split may differ by an image


class WrongProgramError(GradientError):
    """A recorded program does not give what its function gives."""


class Programs:
    """Programs by name, each built when it is first called.

    Args:
        execution: one of `EXECUTIONS`.
        notice: told what is built.
        warn: told why something falls back.

    Attributes:
        fallbacks: by the name of a program that does not run as `execution` says, how it runs and why.

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
        self.recorded: dict[tuple[Any, ...], fx.GraphModule] = {}  # ahead of their first call, until that
        self.fallbacks: dict[str, str] = {}
        self.scratch = Scratch() if execution in CAPTURED else None

    def __call__(self, name: str, *ways: Function) -> Function:
        """Return a function, made fast.

        Args:
            name: of the program.
            ways: the function; and what gives the same in plain form (layout and operations), to fall back to. Each is pure, and holds no
                tensor that changes from call to call.
        """
        if self.execution != "eager":
            return self._by_shapes(name, ways, lambda way, arguments: self._build_whole(name, way, arguments))
        if len(ways) == 1:
            return ways[0]
        return self._by_shapes(name, ways, self._tried)

    def split(self, name: str, late: Function, *ways: Function) -> Function:
        """Return a function made fast, where it gives a function itself: (result, rest), and rest(*late arguments) another result.

        Args:
            name: of the program.
            late: from the arguments of the function, tensors of the shapes that the late arguments will have.
            ways: as in `__call__`.
        """
        if self.execution == "eager":
            return ways[0] if len(ways) == 1 else self._by_shapes(name, ways, self._tried)

        return self._by_shapes(name, ways, lambda way, arguments: self._build_split(name, way, arguments, late(*arguments)))

    def recording(self, name: str, function: Function, arguments: Sequence[Any], *, split: bool = False) -> fx.GraphModule:
        """The list of operations of a program, before it is first called: nothing is computed, and it is not recorded again then.

        Args:
            name: of the program.
            function: its first way.
            arguments: of the shapes that it will be called with; for one that is split, the early and the late ones.
            split: whether it will be built by `split`.
        """
        if split:
            function = _both(function)
        flat, structure = _flat(arguments)
        graph = record(function, arguments, mutations=not split)
        if self.execution != "eager":
            self.recorded[_key(name, flat, structure)] = graph
        return graph

    def _by_shapes(self, name: str, ways: Sequence[Function], build: Callable[[Function, Sequence[Any]], Function]) -> Function:
        """A function that has a program built the first time it sees arguments of some shapes, and calls that with the flat arguments."""

        def call(*arguments: Any) -> Any:
            flat, structure = _flat(arguments)
            key = _key(name, flat, structure)
            if key not in self.built:
                self._make_room(name)
                self.built[key] = self._build(name, ways, build, arguments)
            elif self.scratch is not None:
                self.built[key] = self.built.pop(key)  # the last that was called comes last
            return self.built[key](*flat)

        return call

    def _make_room(self, name: str) -> None:
        """Drop what was captured of a program for shapes that were not called for longest: each holds inputs and results of its own."""
        there = [key for key in self.built if key[0] == name] if self.scratch is not None else []
        for key in there[: max(0, len(there) + 1 - MOST_SHAPES)]:
            del self.built[key]

    def _build(
        self, name: str, ways: Sequence[Function], build: Callable[[Function, Sequence[Any]], Function], arguments: Sequence[Any]
    ) -> Function:
        """The first way that can be built; the last one as it is, if none can."""
        for left, way in zip(reversed(range(len(ways))), ways, strict=True):
            try:
                return build(way, arguments)
            except (WrongProgramError, CaptureError):
                raise
            except Exception as error:  # torch raises many kinds; all mean the same here
                if process.is_out_of_memory(error) or isinstance(error, torch.AcceleratorError):
                    raise  # a GPU that has met an error gives nothing but errors from then on
                eagerly = self.execution == "eager" or not left
                self._fall_back(name, "eagerly" + (", in plain form" if left else "") if eagerly else "recorded in plain form", error)
        return _unflattened(ways[-1], arguments)

    def _fall_back(self, name: str, how: str, error: Exception | str) -> None:
        """Say and note how a program runs instead, and why: once, however many shapes it is built for."""
        why = error if isinstance(error, str) else _in_a_line(error)
        if self.fallbacks.get(name, "").split(" (")[0] != how:
            self.warn(f"{name} runs {how}: {why}")
        self.fallbacks[name] = f"{how} ({why})"

    def _tried(self, function: Function, arguments: Sequence[Any]) -> Function:
        """A function that is not recorded, once it has been seen to work."""
        function(*arguments)
        return _unflattened(function, arguments)

    def _build_whole(self, name: str, function: Function, arguments: Sequence[Any]) -> Function:
        """Record, check and compile one program; it is called with the flat arguments."""
        graph, truth = self._recorded(name, function, arguments)
        result = optree.tree_structure(truth)
        run = self._compile_checked(name, graph, _flat(arguments)[0], optree.tree_leaves(truth))
        return lambda *leaves: optree.tree_unflatten(result, run(*leaves))

    def _build_split(self, name: str, function: Function, early: Sequence[Any], late: Sequence[Any]) -> Function:
        """Record, check, cut and compile one program; see `split`. It is called with the flat early arguments."""
        flat = _flat(early)[0]
        graph, truth = self._recorded(name, _both(function), (early, late), split=True)
        count, result, rest = len(optree.tree_leaves(truth[0])), optree.tree_structure(truth[0]), optree.tree_structure(truth[1])
        parts = partition(graph, len(flat), count)

        def waiting(made: Sequence[Tensor], leaves: Sequence[Any]) -> list[Any]:
            return [*made[count:], *(leaves[i] for i in parts.reused)]

        def through_both(*leaves: Any) -> list[Tensor]:
            made = parts.forward(*leaves[: len(flat)])
            return [*made[:count], *parts.backward(*waiting(made, leaves), *leaves[len(flat) :])]

        again = _again(_both(function), (early, late))
        if not faithful(through_both, [*flat, *_flat(late)[0]], optree.tree_leaves(truth), again, coarse=_rounds_coarsely(graph)):
            raise WrongProgramError(f"The halves of {name!r} do not give what the whole gives: a fault of distilkit.", fix="keep_last = 0")
        made = parts.forward(*flat)
        first = self._compile_checked(f"{name}, first half", parts.forward, flat, made)
        between = [*waiting(made, flat), *_flat(late)[0]]
        second = self._compile_checked(f"{name}, second half", parts.backward, between, parts.backward(*between))

        def begin(*leaves: Any) -> tuple[Any, Function]:
            made = first(*leaves)
            between = waiting(made, leaves)
            return (
                optree.tree_unflatten(result, made[:count]),
                lambda *late: optree.tree_unflatten(rest, second(*between, *_flat(late)[0])),
            )

        return begin

    def _recorded(self, name: str, function: Function, arguments: Sequence[Any], *, split: bool = False) -> tuple[fx.GraphModule, Any]:
        """A function as a list of operations, checked against the function itself, and what that gives."""
        flat, structure = _flat(arguments)
        graph = self.recorded.pop(_key(name, flat, structure), None) or record(function, arguments, mutations=not split)
        truth = function(*arguments)
        process.release_freed_memory()  # the function held more than the list will
        expected = optree.tree_leaves(truth)
        again = _again(function, arguments)
        if faithful(graph, flat, expected, again, coarse=_rounds_coarsely(graph)):
            return graph, truth
        # Where products are rounded (TF32), another routine for the same may differ by more than that.
        graph = record(function, arguments, mutations=not split, faster=False)
        if faithful(graph, flat, expected, again, coarse=_rounds_coarsely(graph)):
            self.notice(f"{name} runs without faster operations: they round otherwise by more than can be told from a fault")
            return graph, truth
        raise WrongProgramError(
            f"The program {name!r} does not give what its function gives: the function is not pure, or its path depends on the "
            "values of its input.",
            fix='compile = "eager"  # in [unroller], or in [evaluation] for the networks that judge the set',
        )

    def _compile_checked(self, name: str, graph: fx.GraphModule, flat: Sequence[Any], truth: Sequence[Tensor]) -> Function:
        """A recorded program, compiled and captured as programs are here, as far as that works and keeps its results."""
        levels = LEVELS[self.execution]
        reason = why_not(graph) if self.scratch is not None else None
        if reason:
            levels = ("inductor",) if self.execution in COMPILED else ()
            self._fall_back(name, "compiled" if levels else "as recorded", f"a CUDA graph cannot hold it: {reason}")
        for level, lower in zip(levels, (*levels[1:], None), strict=False):
            found = self._tried_level(level, name, graph, flat, truth)
            if not isinstance(found, str):
                return found
            self._fall_back(name, "as recorded, captured" if lower else "as recorded", found)
        return graph

    def _tried_level(self, level: str, name: str, graph: fx.GraphModule, flat: Sequence[Any], truth: Sequence[Tensor]) -> Function | str:
        """A recorded program as one of the levels has it; or why that is not to be used, in words, which hold on to nothing of it."""
        try:
            run = self._compiled_or_captured(level, name, graph, flat)
            coarse = _rounds_coarsely(graph)
            least = COARSE if coarse else 0.0
            # Twice, the second time with other values: a graph that does not read its inputs gives its first results.
            others = elsewhere(flat)
            if all(
                within_rounding(expected, run(*inputs), graph(*nudged(inputs, least=least)), coarse=coarse)
                for expected, inputs in ((truth, flat), (graph(*others), others))
            ):
                return run
        except (CaptureError, torch.AcceleratorError):
            raise
        except Exception as error:  # compilers raise many kinds; all mean that the recorded list is to be used
            return _in_a_line(error)
        return "what was compiled of it differs by more than roundings can"

    def _compiled_or_captured(self, level: str, name: str, graph: fx.GraphModule, flat: Sequence[Any]) -> Function:
        """A recorded program as one of the levels has it."""
        run = self._compiled(name, graph, flat) if level in COMPILED else graph
        if level not in CAPTURED or self.scratch is None:
            return run
        return captured(run, flat, self.scratch, instead="cudagraph" if level in COMPILED else "trace")

    def _compiled(self, name: str, graph: fx.GraphModule, flat: Sequence[Any]) -> Function:
        """A recorded program compiled by torch.compile, and called once."""
        self.notice(f"compiling {name} ({len(graph.graph.nodes)} operations); this takes seconds to a minute, once")
        began = time.perf_counter()
        compiled: Function = torch.compile(graph, fullgraph=True, dynamic=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own, of its own compiler
            compiled(*flat)
        self.notice(f"compiled {name} in {time.perf_counter() - began:.0f} s")
        return compiled


def _in_a_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip() or 'no words').splitlines()[0]}"


def _rounds_coarsely(graph: fx.GraphModule) -> bool:
    """Whether there is bfloat16 inside, whose roundings a compiler leaves out where it joins operations."""
    return any(torch.bfloat16 in node.kwargs.values() or torch.bfloat16 in node.args for node in graph.graph.nodes)


def _again(function: Function, arguments: Sequence[Any]) -> Callable[[], list[Tensor]]:
    """The flat results of a function, when they are asked for."""
    return lambda: optree.tree_leaves(function(*arguments))


def _both(function: Function) -> Function:
    """The function of a split program, and behind it that which it gives."""

    def both(early: Any, late: Any) -> Any:
        result, rest = function(*early)
        return result, rest(*late)

    return both


def _unflattened(function: Function, arguments: Sequence[Any]) -> Function:
    """A function that takes the leaves of its arguments."""
    structure = _flat(arguments)[1]
    return lambda *leaves: function(*optree.tree_unflatten(structure, leaves))


def record(function: Function, arguments: Sequence[Any], *, mutations: bool = True, faster: bool = True) -> fx.GraphModule:
    """Record a pure function of trees of tensors as a list of operations. Only shapes are worked out: it takes next to no memory.

    Args:
        function: called with the arguments.
        arguments: trees; their tensors are inputs of the list, anything else is a constant of it.
        mutations: take a list in which operations write over what others made, where torch cannot do without.
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
    except Exception:  # torch raises many kinds where a function cannot be recorded without mutations
        graph = recorded(flattened)
        try:
            graph = recorded(torch.func.functionalize(graph))  # what it cannot do for an autograd.Function, it can for its operations
        except Exception:
            if not mutations:
                raise
    improve(graph, faster=faster)
    return graph


def _flat(arguments: Sequence[Any]) -> tuple[list[Any], Any]:
    return optree.tree_flatten(tuple(arguments))  # type: ignore[arg-type]


def _key(name: str, flat: Sequence[Any], structure: Any) -> tuple[Any, ...]:
    """What a program is built for: its name, and the shapes of its arguments."""
    return name, structure, tuple((x.shape, x.dtype, x.device) if isinstance(x, Tensor) else x for x in flat)

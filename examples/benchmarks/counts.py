"""How many operations, bytes and floating point operations do the programs of a GPU hold, and what would they take? Counted, not measured.

    python examples/benchmarks/counts.py                           # prints a table, writes docs/results/counts.json and .png
    python examples/benchmarks/counts.py --quick --out /tmp/quick  # a test that it works

The step, the step back and the end (loss of real images and its gradient) of CIFAR-10 with 1 and 10 images a class, a ConvNet-3 that Adam
trains with FlipRotate, are recorded from shapes alone. Each is counted as it was before the faults that docs/performance.md lists were
mended ("before": gradients that nobody differentiates made of many operations, weight gradients as convolutions), as it is recorded now
("recorded"), and with the kernels of `distilkit.functional.blocks` ("kernels"). Bytes are what all but products and convolutions move.

"joined" is a bound of what a compiler can reach: all neighbouring operations between two products, convolutions or kernels of ours are one,
which reads each input once and writes each result once. The recorder is that of a CPU; where a GPU's list differs (a copy before weight
gradients), the rewriting of programs takes both to the same.

The model takes the time of a call as FLOP, bytes and launches, each at an assumed rate of an H100. It is there to be found wrong.
"""

from __future__ import annotations

import argparse
import operator
from typing import Any

import common
import torch
from limits import moves, multiplies
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils.flop_counter import flop_registry

QUESTION = "operations, bytes and FLOP of the programs of a GPU, recorded without one, and a model of their time"
QUICK = {"width": 8, "real": 4, "per_class": [1], "precision": ["bfloat16"]}
# Assumed, none of them measured: of an H100's library convolutions in NCHW, of its memory, and of a kernel in a graph.
RATES = {"flop": {"float32": 40e12, "bfloat16": 250e12}, "bytes": 2.6e12, "launch": 2e-6}
# An outer step of the paper's recipe: inner steps, the mean over places of its window of 60 in 200; steps back; thousands of real images.
CALLS = {"step": 130, "back": 60, "end": 5}
WAYS = ("before", "recorded", "kernels")
UNCHANGED = {"step": 3, "back": 3, "end": 0}  # inputs of a program that are the same in each call of an outer step: images, labels, rate
OURS, KERNEL, aten = "distilkit", 3, torch.ops.aten


def programs(problem: common.Problem, precision: str, way: str) -> dict[str, fx.GraphModule]:
    """The recorded programs. All that reaches into distilkit is here."""
    import distilkit as dk
    from distilkit.programs.programs import record
    from distilkit.unroll.execution import Execution
    from distilkit.unroll.inner import OuterVariables
    from distilkit.unroll.problem import problem as inner_problem

    learner, leaves, batch = problem
    execution = Execution("trace", False, False, precision, "", kernels=way == "kernels")
    inner = inner_problem(learner, execution.numerics.dtype, execution)._replace(fused=way == "before")
    theta, state = learner.init(dk.Stream(0))
    draw = learner.draw(dk.Stream(1), leaves.labels.argmax(1), tuple(leaves.images.shape[1:]))
    sig = [x for x in torch.utils._pytree.tree_leaves(state) if isinstance(x, Tensor) and x.is_floating_point()]
    total = OuterVariables(*(torch.zeros_like(x) for x in leaves))
    functions = {
        "step": (inner.step, (theta, state, leaves, draw)),
        "back": (dk.ReplayAdjoint().back(inner), (theta, state, leaves, draw, theta.clone(), [x.clone() for x in sig], total)),
        "end": (inner.end, (theta, *batch)),
    }
    return {name: record(function, given, faster=way != "before") for name, (function, given) in functions.items()}


def count(graph: fx.GraphModule, unchanged: int) -> dict[str, float]:
    """Operations, FLOP, bytes as recorded, operations and bytes where all that can be is joined, and copies into a graph and out of it.

    The two halves of a convolution's backward are two operations. `unchanged` inputs are the same in each call, and not copied again.
    """
    nodes = [node for node in graph.graph.nodes if node.op == "call_function"]
    for node in nodes:
        if "val" not in node.meta:  # put there by a rewriting
            given, named = _values(node)
            with next(x.fake_mode for x in given if isinstance(x, FakeTensor)):
                node.meta["val"] = node.target(*given, **named)
    # What a node is a view of, and the operation that made it. A part of a result with several is a thing of its own.
    base, maker = {node: node for node in graph.graph.nodes}, {node: node for node in graph.graph.nodes}
    for node in nodes:
        if not _works(node) and node.all_input_nodes:
            source = node.all_input_nodes[0]
            maker[node] = maker[source]
            base[node] = node if node.target is operator.getitem and isinstance(source.meta["val"], (list, tuple)) else base[source]
    working = [node for node in nodes if _works(node)]
    alone = {node for node in working if multiplies(node) or _is_ours(node)}
    halves = sum(sum(node.args[10]) - 1 for node in working if node.target is aten.convolution_backward.default)  # type: ignore[arg-type,misc]
    group = _groups(graph, alone, maker, [node for node in working if node not in alone])
    wanted: dict[fx.Node, set[fx.Node | None]] = {}  # by whom a tensor is read, None for the caller
    for node in [*working, graph.graph.output_node()]:
        for x in node.all_input_nodes:
            wanted.setdefault(base[x], set()).add(group.get(node, node) if node.op == "call_function" else None)
    joined, moved = set(group.values()), 0
    for one in joined:
        read = {
            (base[x], _size(x))
            for node in working
            if group.get(node) is one
            for x in node.all_input_nodes
            if group.get(maker[x]) is not one
        }
        written = [x for x, users in wanted.items() if group.get(maker[x]) is one and users - {one}]
        moved += sum(size for _, size in read) + sum(map(_size, written))
    inputs = [node for node in graph.graph.nodes if node.op == "placeholder" and isinstance(node.meta.get("val"), Tensor)]
    return {
        "operations": len(working) + halves,
        "flop": sum(map(_flop, working)),
        "bytes": sum(_moved(node, base) for node in working if moves(node)),
        "joined_operations": len(alone) + halves + len(joined),
        "joined_bytes": moved + sum(_moved(node, base) for node in alone if _is_ours(node)),
        "of_ours": sum(map(_is_ours, working)),
        "large_flop": sum(_flop(node) for node in working if _is_large(node)),
        "copies": len(inputs) - unchanged + len(graph.graph.output_node().all_input_nodes),
    }


def _groups(graph: fx.GraphModule, alone: set[fx.Node], maker: dict[fx.Node, fx.Node], joined: list[fx.Node]) -> dict[fx.Node, fx.Node]:
    """For each operation that can be joined, one that stands for its group: neighbours with as many of those that stand alone before."""
    depth: dict[fx.Node, int] = {}
    for node in graph.graph.nodes:
        depth[node] = max((depth[x] + (x in alone) for x in node.all_input_nodes), default=0)
    parent = {node: node for node in joined}

    def top(node: fx.Node) -> fx.Node:
        while parent[node] is not node:
            node = parent[node]
        return node

    for node in joined:
        for source in (maker[x] for x in node.all_input_nodes):
            if source in parent and depth[source] == depth[node]:
                parent[top(node)] = top(source)
    return {node: top(node) for node in joined}


def _works(node: fx.Node) -> bool:
    """Whether an operation takes a kernel: no view, no part of a result, nothing that only makes room."""
    return multiplies(node) or moves(node)


def _is_ours(node: fx.Node) -> bool:
    return str(node.target).startswith(OURS)


def _flop(node: fx.Node) -> float:
    if not multiplies(node):
        return 0.0
    given, named = _values(node)
    return float(flop_registry[node.target.overloadpacket](*given, **named, out_val=node.meta["val"]))  # type: ignore[union-attr]


def _is_large(node: fx.Node) -> bool:
    """Whether an operation is a convolution whose kernel is as large as the maps, nearly."""
    return node.target is aten.convolution.default and node.args[1].meta["val"].shape[-1] > KERNEL  # type: ignore[union-attr]


def _values(node: fx.Node) -> Any:
    """The arguments of an operation, as far as shapes go."""
    return fx.map_arg((node.args, node.kwargs), lambda x: x.meta["val"])


def _moved(node: fx.Node, base: dict[fx.Node, fx.Node]) -> int:
    """Bytes that an operation reads and writes."""
    return sum(size for _, size in {(base[x], _size(x)) for x in node.all_input_nodes}) + _size(node)


def _size(node: fx.Node) -> int:
    """Bytes of what an operation gives, where it is read or written whole."""
    value: Any = node.meta.get("val")
    made = value if isinstance(value, (list, tuple)) else [value]
    return sum(min(x.nbytes, x.untyped_storage().nbytes()) for x in made if isinstance(x, Tensor))


def measure(per_class: int, precision: str, way: str, width: int, real: int, threads: int, device: str) -> common.Row:
    """Count one case."""
    import distilkit as dk

    common.prepare(threads, device)
    problem = common.convnet(width, 10 * per_class, real, device)
    problem = problem._replace(learner=dk.fields.evolve(problem.learner, augment=dk.FlipRotate()))
    with torch.no_grad():
        return {name: count(graph, UNCHANGED[name]) for name, graph in programs(problem, precision, way).items()}


def terms(counted: dict[str, float], precision: str, form: str) -> dict[str, float]:
    """The model of one call: seconds of each term. `form` is "" for what is recorded, or "joined_"."""
    return {
        "products": counted["flop"] / RATES["flop"][precision],  # type: ignore[index]
        "memory": counted[f"{form}bytes"] / RATES["bytes"],  # type: ignore[operator]
        "launches": counted[f"{form}operations"] * RATES["launch"],  # type: ignore[operator]
        "copies": counted["copies"] * RATES["launch"],  # type: ignore[operator]
    }


def outer_step(row: common.Row, form: str) -> dict[str, float]:
    """The model of an outer step: seconds of each term."""
    parts = {name: terms(row[name], row["precision"], form) for name in CALLS}
    return {term: sum(CALLS[name] * parts[name][term] for name in CALLS) for term in ("products", "memory", "launches", "copies")}


def draw(rows: list[common.Row], given: argparse.Namespace) -> None:
    """The terms of the model, one bar for each case."""
    figure = common.figure(9, 0.32 * 2 * len(rows) + 1.5)
    axes = figure.subplots()
    bars = [(row, form) for row in rows for form in ("", "joined_")]
    left = [0.0] * len(bars)
    colors = {"products": common.BLUE, "memory": common.ORANGE, "launches": common.GREEN, "copies": common.GRAY}
    for term, color in colors.items():
        widths = [1e3 * row["model"][form or "recorded"][term] for row, form in bars]
        axes.barh(range(len(bars)), widths, left=left, color=color, label=term)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    names = [f"IPC {row['per_class']}, {row['precision']}, {row['way']}{', joined' if form else ''}" for row, form in bars]
    axes.set_yticks(range(len(bars)), names, fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("ms an outer step on an H100: a model, not measured")
    axes.legend(fontsize=8)
    common.save(figure, given)


def main() -> None:
    """Count every case, print, write and draw."""
    parser = common.parser(__doc__, repeats=1)
    parser.add_argument("--per-class", type=int, nargs="+", default=[1, 10])
    parser.add_argument("--precision", nargs="+", default=list(RATES["flop"]), choices=list(RATES["flop"]))  # type: ignore[call-overload]
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--real", type=int, default=1000, help="real images of one call of the end")
    given = common.parse(parser, QUICK)
    settings = {name: getattr(given, name) for name in ("width", "real", "threads", "device")}
    cases = [{"per_class": k, "precision": dtype, "way": way} for k in given.per_class for dtype in given.precision for way in WAYS]
    rows: list[common.Row] = []
    for case in cases:  # in this process: there is nothing to time
        row = case | measure(**case, **settings)
        rows.append(row)
        row["model"] = {form or "recorded": outer_step(row, form) for form in ("", "joined_")}
        for name in CALLS:
            one = row[name]
            print(
                f"IPC {row['per_class']:2} {row['precision']:9} {row['way']:9} {name:5} {one['flop'] / 1e9:7.1f} GFLOP, "
                f"{one['operations']:5.0f} operations, {one['bytes'] / 1e9:6.2f} GB; "
                f"joined {one['joined_operations']:4.0f}, {one['joined_bytes'] / 1e9:5.2f} GB"
            )
        print("   ", {form: f"{1e3 * sum(found.values()):.0f} ms" for form, found in row["model"].items()})
    common.write(given, QUESTION, settings, rows, rates=RATES, calls=CALLS)
    draw(rows, given)
    common.finish(given, rows)


if __name__ == "__main__":
    main()

"""Partition of a recorded program: what can be computed before some of its inputs are there, and what cannot."""

from __future__ import annotations

import operator
from typing import NamedTuple

import torch
from torch import Tensor, fx

aten = torch.ops.aten
# Pointwise, or nearly: recomputed in the backward part, since their inputs are saved anyway.
_POINTWISE = {
    *(aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor, aten.neg.default, aten.relu.default),
    *(aten.add.Scalar, aten.sub.Scalar, aten.mul.Scalar, aten.div.Scalar, aten.threshold_backward.default, aten._to_copy.default),
    *(aten.avg_pool2d.default, aten.avg_pool2d_backward.default, aten.clone.default, aten.sum.dim_IntList, aten.mean.dim),
}


class Partition(NamedTuple):
    """A program in two parts.

    Args:
        forward: takes the early inputs; gives the early results and what is saved.
        backward: takes what is saved, the early inputs named in `reused`, and the late inputs; gives the late results.
        reused: places of the early inputs that the second part takes too.
        saved_bytes: of what is saved.
    """

    forward: fx.GraphModule
    backward: fx.GraphModule
    reused: tuple[int, ...]
    saved_bytes: int


def partition(program: fx.GraphModule, early: int, results: int) -> Partition:
    """Cut a recorded program.

    Args:
        program: a list of operations without mutations.
        early: how many of its inputs are there at first; the rest comes late.
        results: how many of its results are wanted at first; none of them may depend on a late input.

    Returns:
        the two parts. Cheap results are recomputed, not saved.

    Raises:
        ValueError: an early result depends on a late input.
    """
    nodes = list(program.graph.nodes)
    inputs = [n for n in nodes if n.op == "placeholder"]
    late: set[fx.Node] = set(inputs[early:])
    for node in nodes:
        if any(used in late for used in node.all_input_nodes):
            late.add(node)
    outputs = list(nodes[-1].args[0])
    wanted, after = outputs[:results], outputs[results:]
    if any(node in late for node in wanted):
        raise ValueError("An early result depends on a late input.")
    late.discard(nodes[-1])
    operations = [n for n in nodes if n in late and n.op == "call_function"]
    saved = {used for n in operations for used in n.all_input_nodes if used not in late}
    saved |= {n for n in after if isinstance(n, fx.Node) and n not in late}
    repeated: set[fx.Node] = set()
    for node in reversed(nodes):  # from the last on, so that what a repeated one needs comes up after it
        if node in saved and _is_repeatable(node, saved):
            saved.discard(node)
            repeated.add(node)
            saved.update(node.all_input_nodes)
    order = [n for n in nodes if n in saved]
    stored = [n for n in order if n.op != "placeholder"]
    reused = tuple(i for i, n in enumerate(inputs[:early]) if n in saved)
    before, coming = inputs[:early], [*(inputs[i] for i in reused), *inputs[early:]]
    forward = _part(program, before, [n for n in nodes if n not in late], [*wanted, *stored])
    backward = _part(program, [*stored, *coming], [n for n in nodes if n in repeated or n in late], after)
    return Partition(forward, backward, reused, sum(_bytes(n) for n in stored))


def _is_repeatable(node: fx.Node, saved: set[fx.Node]) -> bool:
    """Whether to compute a node again: it is a view or a constant, or a cheap operation on what is saved anyway."""
    if node.op != "call_function" or node.target is operator.getitem:
        return False
    if not node.all_input_nodes:
        return True
    schema = getattr(node.target, "_schema", None)
    if schema is not None and schema.returns and schema.returns[0].alias_info is not None:
        return True
    if node.target not in _POINTWISE:
        return False
    size = sum(_bytes(used) for used in node.all_input_nodes if used not in saved and used.op != "placeholder")
    return size < _bytes(node)


def _part(program: fx.GraphModule, inputs: list[fx.Node], nodes: list[fx.Node], outputs: list[fx.Node]) -> fx.GraphModule:
    graph = fx.Graph()
    made: dict[fx.Node, fx.Node] = {}
    for k, node in enumerate(inputs):
        made[node] = graph.placeholder(f"input_{k}")
        made[node].meta = dict(node.meta)
    for node in nodes:
        if node not in made and node.op in ("call_function", "get_attr"):
            made[node] = graph.node_copy(node, lambda n: made[n])
    graph.output([made[n] for n in outputs])
    graph.eliminate_dead_code()
    return fx.GraphModule(program, graph)


def _bytes(node: fx.Node) -> int:
    value = node.meta.get("val")
    return value.numel() * value.element_size() if isinstance(value, Tensor) else 0

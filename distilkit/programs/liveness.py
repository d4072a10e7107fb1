"""Peak memory of a recorded program, from the shapes of its operations alone."""

from __future__ import annotations

import operator
from typing import Any

from torch import Tensor, fx


def peak_bytes(program: fx.GraphModule) -> int:
    """Most bytes that are alive at one time in one call of a recorded program, beyond its arguments.

    A result is born where it is made and dies after its last use; what the program gives lives to the end; a view has no memory of
    its own. Scratch memory inside of single operations is not seen.

    Args:
        program: from `distilkit.programs.programs.record`; its shapes are enough.

    >>> import torch
    >>> from distilkit.programs.programs import record
    >>> program = record(lambda x: (x * 2 + 1).sum(), [torch.ones(1000)])
    >>> peak_bytes(program)  # x * 2 and x * 2 + 1 are alive together: 2 * 4000 bytes
    8000
    """
    nodes = list(program.graph.nodes)
    owner: dict[fx.Node, fx.Node] = {}
    last: dict[fx.Node, int] = {}
    for i, node in enumerate(nodes):
        source = _viewed(node)
        owner[node] = node if source is None else owner[source]
        last[owner[node]] = i
        for used in node.all_input_nodes:
            last[owner[used]] = i
    dies: dict[int, list[fx.Node]] = {}
    for node, i in last.items():
        dies.setdefault(i, []).append(node)
    alive = peak = 0
    for i, node in enumerate(nodes):
        if owner[node] is node and node.op == "call_function":
            alive += bytes_of(node)
            peak = max(peak, alive)
        alive -= sum(bytes_of(done) for done in dies.get(i, []) if done.op == "call_function")
    return peak


def bytes_of(node: fx.Node) -> int:
    """Bytes of what a node gives."""
    return _bytes(node.meta.get("val"))


def _bytes(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    return sum(map(_bytes, value)) if isinstance(value, (list, tuple)) else 0


def _viewed(node: fx.Node) -> fx.Node | None:
    """What a node is a view of, or a part of; None for a node that owns what it holds."""
    if node.op != "call_function" or not node.all_input_nodes:
        return None
    schema = getattr(node.target, "_schema", None)
    if schema is None:  # one result of an operation with several
        return node.all_input_nodes[0] if node.target is operator.getitem else None
    shares = bool(schema.returns) and schema.returns[0].alias_info is not None
    return node.all_input_nodes[0] if shares else None

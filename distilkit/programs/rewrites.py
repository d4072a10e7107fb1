"""Rewrites of a recorded program: the same numbers from fewer or faster operations."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

aten = torch.ops.aten


def improve(graph: fx.GraphModule, *, faster: bool = True) -> None:
    """Rewrite a recorded list of operations in place; its results stay the same to rounding, and to the bit if not `faster`."""
    at_home(graph)
    shrink(graph.graph)
    any_strides(graph.graph)
    if faster:
        weight_gradients(graph.graph)
    graph.recompile()


def at_home(graph: fx.GraphModule) -> None:
    """Put constants of the function, such as buffers of a network, where its inputs are: once, and not in every call.

    A copy from the CPU makes the host wait, and a CUDA graph cannot hold it.
    """
    inputs = [node.meta.get("val") for node in graph.graph.nodes if node.op == "placeholder"]
    homes = {x.device for x in inputs if isinstance(x, torch.Tensor)}
    if len(homes) != 1:
        return
    (home,) = homes
    for node in graph.graph.nodes:
        constant = getattr(graph, str(node.target), None) if node.op == "get_attr" else None
        if not isinstance(constant, torch.Tensor) or constant.device == home:
            continue
        copies = [user for user in node.users if user.target is aten._to_copy.default and user.kwargs.get("device") == home]
        if len(copies) < len(node.users) and constant.dim() == 0:
            continue  # a number that is used where it lies
        setattr(graph, str(node.target), constant.to(home))
        for user in copies:
            rest = {key: value for key, value in user.kwargs.items() if key != "device" and value is not None}
            if rest.get("dtype", constant.dtype) == constant.dtype and not rest.keys() - {"dtype", "layout", "pin_memory", "non_blocking"}:
                user.replace_all_uses_with(node)


def shrink(graph: fx.Graph) -> None:
    """Drop what nobody uses: dead operations, and the halves of a convolution's backward that only dead operations asked for."""
    graph.eliminate_dead_code()
    for node in graph.nodes:
        if node.target is aten.convolution_backward.default:
            used = {user.args[1] for user in node.users}
            mask = [wanted and i in used for i, wanted in enumerate(node.args[10])]
            node.update_arg(10, mask)
        if node.target is aten.detach.default:  # nothing is differentiated any more
            node.replace_all_uses_with(node.args[0])
    graph.eliminate_dead_code()


def any_strides(graph: fx.Graph) -> None:
    """Make a program right whatever strides its operations give.

    A program is recorded from shapes: torch's own account of an operation promises strides, and a view is taken where those allow one.
    In some versions (torch 2.14 is one) that of group norm promises contiguous results, and a CPU gives channels last; a recorded view then
    fails. A reshape is a view where there can be one, and a copy where there cannot. Where operations write over what others made, a view
    must stay what it is.
    """
    if any(getattr(getattr(node.target, "_schema", None), "is_mutable", False) for node in graph.nodes):
        return
    for node in graph.nodes:
        if node.target in (aten.view.default, aten._unsafe_view.default):
            node.target = aten.reshape.default


def weight_gradients(graph: fx.Graph) -> None:
    """Take weight gradients inside of a second derivative by the routine that is made for them.

    Torch's second derivative of a convolution has one as a convolution of the transposed maps, whose kernel is as large as the maps
    themselves; three times slower on a CPU than `convolution_backward`, which gives the same.
    """
    for node in list(graph.nodes):
        if node.target is not aten.convolution.default:
            continue
        left, right, bias, stride, padding, dilation, is_transposed, _, groups = node.args
        plain = bias is None and not is_transposed and groups == 1
        if not (plain and _swaps(left) and _swaps(right) and node.users and all(_swaps(user) for user in node.users)):
            continue
        maps, upstream = _behind_copy(left).args[0], _behind_copy(right).args[0]
        for user in list(node.users):
            shape = list(user.meta["val"].shape)
            with graph.inserting_before(user):
                # Of the weight only the shape is read. Stride and dilation change places, as they did on the way here.
                weight = graph.call_function(aten.new_empty.default, (maps, shape))
                rest = (None, dilation, padding, stride, False, [0] * len(stride), 1, [False, True, False])
                both = graph.call_function(aten.convolution_backward.default, (upstream, maps, weight, *rest))
                gradient = graph.call_function(operator.getitem, (both, 1))
            gradient.meta = dict(user.meta)
            user.replace_all_uses_with(gradient)
    graph.eliminate_dead_code()


def _behind_copy(node: Any) -> Any:
    """What a node is a copy of, or itself: on CUDA, torch makes the transposed gradient contiguous before the convolution."""
    while isinstance(node, fx.Node) and node.target is aten.clone.default:
        node = node.args[0]
    return node


def _swaps(node: Any) -> bool:
    """Whether a node swaps the first two dimensions, and may copy the result."""
    node = _behind_copy(node)
    return isinstance(node, fx.Node) and node.target is aten.transpose.int and tuple(node.args[1:]) in ((0, 1), (1, 0))

"""Trees of tensors: one flat vector of parameters, and the floating leaves of an optimiser's state.

The parameters of a network live as one vector, so that an optimiser's update and the adjoint sums are a handful of kernels
whatever the depth of the network. TorchOpt states are trees whose counters are int64; only floating leaves are differentiated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import optree
import torch
from torch import Tensor

ALIGNMENT = 64  # bytes; every tensor that torch makes on a CPU begins at a multiple


@attrs.frozen
class Layout:
    """How named parameters lie in one flat vector.

    >>> layout = Layout.of({"weight": torch.ones(2, 3), "bias": torch.zeros(2)})
    >>> layout.size, layout.unravel(torch.arange(8.0))["bias"]
    (8, tensor([6., 7.]))
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, params: Mapping[str, Tensor]) -> Layout:
        """The layout of these named tensors, in their order."""
        return cls(tuple(params), tuple(tuple(p.shape) for p in params.values()))

    @property
    def sizes(self) -> list[int]:
        """Number of entries of each parameter."""
        return [math.prod(s) for s in self.shapes]

    @property
    def size(self) -> int:
        """Number of entries of the flat vector."""
        return sum(self.sizes)

    def ravel(self, params: Mapping[str, Tensor]) -> Tensor:
        """Named tensors -> one vector (size,)."""
        return torch.cat([params[n].reshape(-1) for n in self.names])

    def unravel(self, flat: Tensor) -> dict[str, Tensor]:
        """One vector (size,) -> named tensors that are views of it."""
        parts = flat.split(self.sizes)
        return {n: part.view(s) for n, part, s in zip(self.names, parts, self.shapes, strict=True)}


def split_floating(tree: Any) -> tuple[list[Tensor], Callable[[list[Tensor]], Any]]:
    """Return the floating leaves of a tree, and a function that puts others in their places.

    >>> leaves, rebuild = split_floating((torch.tensor([1.0]), torch.tensor(3)))
    >>> rebuild([leaves[0] * 2])
    (tensor([2.]), tensor(3))
    """
    leaves, structure = optree.tree_flatten(tree)
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.is_floating_point()]

    def rebuild(floats: list[Tensor]) -> Any:
        full = list(leaves)
        for place, value in zip(places, floats, strict=True):
            full[place] = value
        return optree.tree_unflatten(structure, full)

    return [leaves[i] for i in places], rebuild


def tensor_map(function: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """Apply a function to every tensor of a tree; other leaves stay."""
    return optree.tree_map(lambda x: function(x) if isinstance(x, Tensor) else x, tree)


def stack(trees: Sequence[Any]) -> Any:
    """Trees of the same shape as one, whose tensors have one more dimension in front."""
    return optree.tree_map(lambda *leaves: torch.stack(leaves), *trees)


def to_device(tree: Any, device: torch.device | str) -> Any:
    """Move every tensor of a tree to a device; to a GPU from pinned memory, so that nothing waits for the copy."""
    if torch.device(device).type != "cuda":
        return tensor_map(lambda x: x.to(device), tree)
    return tensor_map(lambda x: x.to(device) if x.is_cuda else x.pin_memory().to(device, non_blocking=True), tree)


def aligned(tensor: Tensor) -> Tensor:
    """The same tensor, at an address that torch itself would have given it.

    What is read from a file may lie at any address, and CPU kernels round the sums of one that lies elsewhere in another way: a run
    that goes on from such tensors is not, to the bit, the one that was not stopped.

    >>> aligned(torch.arange(4.0)[1:]).data_ptr() % ALIGNMENT
    0
    """
    return tensor if tensor.device.type != "cpu" or tensor.data_ptr() % ALIGNMENT == 0 else tensor.clone()

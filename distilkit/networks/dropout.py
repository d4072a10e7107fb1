"""Dropout in a user's module, whose masks are drawn before a step from its stream, so that the step can be replayed."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from distilkit.errors import CombinationError, DistilkitError
from distilkit.functional.streams import Stream

Masks = dict[str, torch.Tensor]

# How many dimensions of its input, from the first one on, have entries of their own in the mask: all, or images and channels.
KINDS: dict[type[nn.Module], int | None] = {nn.Dropout: None, nn.Dropout1d: 2, nn.Dropout2d: 2, nn.Dropout3d: 2}


class Masked(nn.Module):
    """Stands for a dropout layer: multiplies its input by its mask, which is a buffer, 1 in evaluation.

    Args:
        p: probability of an entry to be dropped.
        dims: as in `KINDS`.
    """

    mask: torch.Tensor

    def __init__(self, p: float, dims: int | None) -> None:
        super().__init__()
        self.p, self.dims = p, dims
        self.shape: tuple[int, ...] | None = None  # of the mask of one image, known from a first call
        self.register_buffer("mask", torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Drop what the mask says."""
        if self.shape is None:
            kept = x.ndim if self.dims is None else self.dims
            self.shape = (*x.shape[1:kept], *(1 for _ in x.shape[kept:]))
        if self.mask.ndim and self.mask.shape[0] != x.shape[0]:
            raise CombinationError(
                f"A dropout layer is called with {x.shape[0]} rows for {self.mask.shape[0]} images, and its masks are drawn by image.",
                fix="nn.Dropout(0)  # or a layer whose first dimension is the batch",
            )
        return x * self.mask.to(x.dtype)


def replaced(module: nn.Module) -> nn.Module:
    """The module with `Masked` layers in the place of its dropout layers that are in training mode."""
    if (dims := _dims(module)) is not False:
        return Masked(module.p, dims)  # type: ignore[arg-type]
    for layer in [*module.modules()]:
        for name, child in [*layer.named_children()]:
            if (dims := _dims(child)) is not False:
                setattr(layer, name, Masked(child.p, dims))  # type: ignore[arg-type]
    return module


def _dims(layer: Any) -> int | bool | None:
    """Of a dropout layer that drops something, as in `KINDS`; False of any other."""
    active = type(layer) in KINDS and layer.training and layer.p > 0
    return KINDS[type(layer)] if active else False


def forget_shapes(module: nn.Module) -> None:
    """Forget the shapes of masks, so that the next call tells them."""
    for layer in module.modules():
        if isinstance(layer, Masked):
            layer.shape = None


def masks(module: nn.Module, stream: Stream, count: int) -> Masks:
    """Draw the masks of a step on so many images, by the names of the buffers; empty where nothing is dropped.

    An entry is 0 with probability p, and 1 / (1 - p) otherwise, so that the mean stays.

    Raises:
        DistilkitError: the network was not bound, so that shapes are not known.
    """
    found: Masks = {}
    for name, layer in module.named_modules():
        if not isinstance(layer, Masked):
            continue
        if layer.shape is None:
            raise DistilkitError(f"The shape of what {name or 'the module'} drops is not known.", fix="network.bind(image_shape, classes)")
        kept = stream.fold(name).uniform(count, *layer.shape) >= layer.p
        found[f"{name}.mask" if name else "mask"] = kept.float() / (1 - layer.p) if layer.p < 1 else kept.float()
    return found

"""Pure building blocks of the networks: initial distributions, norms, activations and pooling.

A layout says which parameters a network has: a dict from the name that torch would give to an `Initial`, the shape and
the distribution that `torch.nn` uses by default. `draw` makes parameters of it, each from its own stream.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F

from distilkit.errors import CombinationError, FieldError
from distilkit.functional.streams import Stream

EPS = 1e-5
"""Added to the variance in every norm, torch's default."""

GROUPS = 4
"""Number of groups of the "group" norm, as in the code of DC and MTT."""


class Initial(NamedTuple):
    """Shape and initial distribution of one parameter: uniform on centre - bound to centre + bound.

    Args:
        shape: shape of the tensor.
        centre: the mean, 1 for the scale of a norm and otherwise 0.
        bound: half the width of the distribution; 0 makes it a constant.
    """

    shape: tuple[int, ...]
    centre: float
    bound: float


Layout = dict[str, Initial]


def draw(layout: Layout, stream: Stream) -> dict[str, torch.Tensor]:
    """Draw every parameter of a layout from `stream`, one fold a name, so that the order of the layers does not matter.

    >>> params = draw(linear_layout("head", 4, 2), Stream(0))
    >>> {name: tuple(p.shape) for name, p in params.items()}
    {'head.weight': (2, 4), 'head.bias': (2,)}
    """
    return {
        name: stream.fold(name).uniform(*i.shape).mul_(2 * i.bound).sub_(i.bound)
        if i.bound
        else torch.full(i.shape, i.centre, dtype=torch.float32)
        for name, i in layout.items()
    }


def conv_layout(name: str, inputs: int, outputs: int, kernel: int, *, bias: bool = True) -> Layout:
    """Parameters of a square convolution. Weight and bias are uniform on +-1/sqrt(fan_in), as `nn.Conv2d` draws them."""
    return _affine(name, (outputs, inputs, kernel, kernel), bias)


def linear_layout(name: str, inputs: int, outputs: int) -> Layout:
    """Parameters of a linear layer. Weight and bias are uniform on +-1/sqrt(inputs), as `nn.Linear` draws them."""
    return _affine(name, (outputs, inputs), True)


def norm_layout(kind: Norm, name: str, shape: tuple[int, int, int]) -> Layout:
    """Scale (ones) and shift (zeros) of a norm over feature maps of `shape` (C, H, W); nothing for "none".

    Layer norm has one number for each channel and pixel, as in the code of DC and MTT; the others one for each channel.

    Raises:
        FieldError: group norm with a number of channels that four groups do not share evenly.
        CombinationError: the norm would see one number at a time, and its output would be the shift alone.
    """
    if kind == "none":
        return {}
    channels, height, width = shape
    if kind == "group" and channels % GROUPS:
        raise FieldError("width", channels, f'with norm = "group", a multiple of its {GROUPS} groups', fix='norm="instance"')
    together = {"instance": 1, "group": channels // GROUPS, "layer": channels}.get(kind)
    if together is not None and together * height * width == 1:
        raise CombinationError(
            f'norm = "{kind}" sees a single number at a time where the feature maps are {height}x{width} ({name}): '
            "its output would not depend on the image.",
            fix='norm="batch"',
        )
    size = shape if kind == "layer" else (channels,)
    return {f"{name}.weight": Initial(size, 1.0, 0.0), f"{name}.bias": Initial(size, 0.0, 0.0)}


def _affine(name: str, shape: tuple[int, ...], bias: bool) -> Layout:
    bound = 1 / math.sqrt(math.prod(shape[1:]))
    layout = {f"{name}.weight": Initial(shape, 0.0, bound)}
    return layout | {f"{name}.bias": Initial(shape[:1], 0.0, bound)} if bias else layout


NormFunction = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
Map = Callable[[torch.Tensor], torch.Tensor]

Norm = Literal["instance", "group", "batch", "layer", "none"]
Activation = Literal["relu", "gelu", "leaky_relu", "tanh", "sigmoid", "silu", "elu", "softplus"]
Pooling = Literal["avg", "max", "none"]


def _instance(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return F.group_norm(x, x.shape[1], weight, bias, EPS)


def _group(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return F.group_norm(x, GROUPS, weight, bias, EPS)


def _batch(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    # No running averages: they would be state that changes inside a function that must be pure.
    return F.batch_norm(x, None, None, weight, bias, training=True, eps=EPS)


def _layer(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(x, x.shape[1:], weight, bias, EPS)


def _halve_mean(x: torch.Tensor) -> torch.Tensor:
    return F.avg_pool2d(x, 2)


def _halve_max(x: torch.Tensor) -> torch.Tensor:
    return F.max_pool2d(x, 2)


NORMS: dict[Norm, NormFunction | None] = {"instance": _instance, "group": _group, "batch": _batch, "layer": _layer, "none": None}
"""Norms by name: functions of (maps, scale, shift).

"batch" uses the mean and variance of the batch that it is given, at evaluation too, and keeps no running averages: the
prediction for an image then depends on the images beside it, and a batch of one 1x1 map is refused by torch.
"""

ACTIVATIONS: dict[Activation, Map] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "leaky_relu": F.leaky_relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "elu": F.elu,
    "softplus": F.softplus,
}
"""Activations by name, with torch's defaults (slope 0.01 in "leaky_relu", the exact error function in "gelu")."""

POOLINGS: dict[Pooling, Map | None] = {"avg": _halve_mean, "max": _halve_max, "none": None}
"""2x2 pooling with stride 2 by name; an odd last row or column is dropped."""

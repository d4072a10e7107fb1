"""MLP: linear layers with an activation between them, for images (flattened) and for plain feature vectors."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from distilkit import fields
from distilkit.networks import base
from distilkit.networks.layers import ACTIVATIONS, Activation, Layout, linear_layout


@fields.component
class MLP(base.LaidOut):
    """Fully connected network; two hidden layers of 128 are the MLP of DC (arXiv 2006.05929) and MTT.

    Parameters are named as in that code: fc_1, fc_2, ...

    Args:
        hidden: width of each hidden layer; an empty list makes it softmax regression.
        activation: a name in `distilkit.networks.layers.ACTIVATIONS`.
        image_shape: (C, H, W), or (D,) for feature vectors; left out, it is filled in from the data.
        classes: number of classes; left out, it is filled in from the data.

    >>> from distilkit.functional.streams import Stream
    >>> net = MLP(hidden=(16,)).bind((4,), 3)
    >>> net.apply(net.init(Stream(0)), torch.zeros(5, 4)).shape
    torch.Size([5, 3])
    """

    hidden: Sequence[int] = fields.integers(default=(128, 128), empty=True)
    activation: Activation = fields.choice(Activation, default="relu")
    image_shape: tuple[int, ...] | None = fields.integers(default=None, optional=True)
    classes: int | None = fields.integer(default=None, least=1, optional=True)

    def layout(self) -> Layout:
        """Names, shapes and initial distributions of the parameters; draws nothing."""
        image_shape, classes = base.bound(self)
        layout: Layout = {}
        for i, (inputs, outputs) in enumerate(itertools.pairwise((math.prod(image_shape), *self.hidden, classes)), start=1):
            layout |= linear_layout(f"fc_{i}", inputs, outputs)
        return layout

    def apply(self, params: base.Params, x: torch.Tensor) -> torch.Tensor:
        """Map images or features (N, *image_shape) to logits (N, classes)."""
        base.check_input(self, x)
        activation = ACTIVATIONS[self.activation]
        x = x.flatten(1)
        last = len(self.hidden) + 1
        for i in range(1, last):
            x = activation(F.linear(x, params[f"fc_{i}.weight"], params[f"fc_{i}.bias"]))
        return F.linear(x, params[f"fc_{last}.weight"], params[f"fc_{last}.bias"])

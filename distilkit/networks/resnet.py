"""ResNet in its small-image form: a 3x3 stem without max-pooling, four stages of basic blocks, global average, linear head."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from distilkit import fields
from distilkit.errors import FieldError
from distilkit.networks import base
from distilkit.networks.layers import ACTIVATIONS, NORMS, Activation, Layout, Norm, conv_layout, linear_layout, norm_layout

# Basic blocks in each of the four stages.
STAGES = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}


@fields.component
class ResNet(base.LaidOut):
    """ResNet of basic blocks for small images (He et al. 2016; the form of DC, MTT and kuangliu's CIFAR models).

    The code of DC and MTT averages 4x4 windows at the end, which is the whole map of a 32x32 image; here the whole map is
    averaged whatever its size, so other image sizes work too. Its variant with pooling in place of strides (ResNet18_AP)
    is not here. Convolutions have no bias. Parameters are named as in that code.

    Args:
        depth: 10, 18 or 34.
        width: channels of the stem and first stage; the others have 2, 4 and 8 times as many.
        norm: "instance", "group" (4 groups), "batch", "layer" or "none". "batch" uses the statistics of the batch it is given,
            at evaluation too, and keeps no running averages. "instance" needs images above 8x8: the last maps would be 1x1.
        activation: a name in `distilkit.networks.layers.ACTIVATIONS`.
        image_shape: (C, H, W); left out, it is filled in from the data.
        classes: number of classes; left out, it is filled in from the data.

    Raises:
        FieldError: a depth that is not in the family.
        CombinationError: the image is so small that the norm would see single numbers.

    >>> ResNet().bind((3, 32, 32), 10).layout()["classifier.weight"].shape
    (10, 512)
    """

    depth: int = fields.integer(default=18)
    width: int = fields.integer(default=64, least=1)
    norm: Norm = fields.choice(Norm, default="instance")
    activation: Activation = fields.choice(Activation, default="relu")
    image_shape: tuple[int, ...] | None = fields.integers(default=None, optional=True)
    classes: int | None = fields.integer(default=None, least=1, optional=True)

    def __attrs_post_init__(self) -> None:
        """Check the depth, and that the norm has something to normalise."""
        if self.depth not in STAGES:
            raise FieldError("depth", self.depth, "10, 18 or 34", fix="ResNet(depth=18)")
        if self.image_shape is not None and self.classes is not None:
            self.layout()

    def layout(self) -> Layout:
        """Names, shapes and initial distributions of the parameters; draws nothing."""
        channels, height, width = base.channels_height_width(self)
        layout = conv_layout("conv1", channels, self.width, 3, bias=False)
        layout |= norm_layout(self.norm, "bn1", (self.width, height, width))
        channels = self.width
        for name, outputs, stride, shortcut in self._blocks():
            # A 3x3 convolution with padding 1 and stride 2 rounds odd sizes up.
            height, width = -(-height // stride), -(-width // stride)
            maps = (outputs, height, width)
            layout |= conv_layout(f"{name}.conv1", channels, outputs, 3, bias=False) | norm_layout(self.norm, f"{name}.bn1", maps)
            layout |= conv_layout(f"{name}.conv2", outputs, outputs, 3, bias=False) | norm_layout(self.norm, f"{name}.bn2", maps)
            if shortcut:
                layout |= conv_layout(f"{name}.shortcut.0", channels, outputs, 1, bias=False)
                layout |= norm_layout(self.norm, f"{name}.shortcut.1", maps)
            channels = outputs
        return layout | linear_layout("classifier", channels, base.bound(self)[1])

    def apply(self, params: base.Params, x: torch.Tensor) -> torch.Tensor:
        """Map images (N, C, H, W) to logits (N, classes)."""
        base.check_input(self, x)
        activation, norm = ACTIVATIONS[self.activation], NORMS[self.norm]

        def convolve(x: torch.Tensor, conv: str, place: str, stride: int, padding: int = 1) -> torch.Tensor:
            x = F.conv2d(x, params[f"{conv}.weight"], stride=stride, padding=padding)
            return x if norm is None else norm(x, params[f"{place}.weight"], params[f"{place}.bias"])

        x = activation(convolve(x, "conv1", "bn1", 1))
        for name, _, stride, shortcut in self._blocks():
            y = activation(convolve(x, f"{name}.conv1", f"{name}.bn1", stride))
            y = convolve(y, f"{name}.conv2", f"{name}.bn2", 1)
            if shortcut:
                x = convolve(x, f"{name}.shortcut.0", f"{name}.shortcut.1", stride, padding=0)
            x = activation(y + x)
        return F.linear(x.mean((2, 3)), params["classifier.weight"], params["classifier.bias"])

    def _blocks(self) -> Iterator[tuple[str, int, int, bool]]:
        """Each basic block: its name, output channels, stride, and whether its shortcut has a convolution."""
        for stage, blocks in enumerate(STAGES[self.depth]):
            for i in range(blocks):
                down = stage > 0 and i == 0
                yield f"layer{stage + 1}.{i}", self.width * 2**stage, 2 if down else 1, down

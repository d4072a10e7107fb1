"""VGG in its small-image form: 3x3 convolutions in five stages, each ended by 2x2 pooling, and one linear layer as the head."""

from __future__ import annotations

from distilkit import fields
from distilkit.errors import FieldError
from distilkit.networks import base
from distilkit.networks.layers import Activation, Norm, Pooling
from distilkit.networks.stack import Block, Stack, StackNetwork

# Convolutions in each of the five stages.
STAGES = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


@fields.component
class VGG(StackNetwork):
    """VGG for 32x32 images (Simonyan and Zisserman 2015; the small-image form of DC, MTT and kuangliu's CIFAR models).

    Five poolings need images of at least 32x32. Larger images leave more than one pixel, which the head then takes all.
    The code of DC and MTT gives the first convolution of gray images a padding of 3, so that 28x28 counts as 32x32: that is
    `first_padding=3` here. Parameters are named as in that code.

    Args:
        depth: 11, 13, 16 or 19 layers with weights, as the paper counts them (its two hidden linear layers are not here).
        width: channels of the first stage; the others have 2, 4, 8 and 8 times as many.
        norm: "instance", "group" (4 groups), "batch", "layer" or "none". "batch" uses the statistics of the batch it is given,
            at evaluation too, and keeps no running averages.
        activation: a name in `distilkit.networks.layers.ACTIVATIONS`.
        pooling: "max", as in the paper, "avg" or "none".
        first_padding: zeros added on each side by the first convolution, pixels.
        image_shape: (C, H, W); left out, it is filled in from the data.
        classes: number of classes; left out, it is filled in from the data.

    Raises:
        FieldError: a depth that is not in the family.
        CombinationError: pooling would leave nothing of the image.

    >>> VGG(width=4).bind((3, 32, 32), 10).layout()["classifier.weight"].shape
    (10, 32)
    """

    depth: int = fields.integer(default=11)
    width: int = fields.integer(default=64, least=1)
    norm: Norm = fields.choice(Norm, default="instance")
    activation: Activation = fields.choice(Activation, default="relu")
    pooling: Pooling = fields.choice(Pooling, default="max")
    first_padding: int = fields.integer(default=1, least=0)
    image_shape: tuple[int, ...] | None = fields.integers(default=None, optional=True)
    classes: int | None = fields.integer(default=None, least=1, optional=True)

    def __attrs_post_init__(self) -> None:
        """Check the depth, and that the image is large enough."""
        if self.depth not in STAGES:
            raise FieldError("depth", self.depth, "11, 13, 16 or 19", fix="VGG(depth=11)")
        if self.image_shape is not None and self.classes is not None:
            self._stack().check(f"VGG-{self.depth}", *base.channels_height_width(self)[1:])
            self.layout()

    def _stack(self) -> Stack:
        first, *rest = (
            Block(self.width * scale, 3, 1, last)
            for scale, convs in zip((1, 2, 4, 8, 8), STAGES[self.depth], strict=True)
            for last in (*(False,) * (convs - 1), True)
        )
        return Stack((first._replace(padding=self.first_padding), *rest), self.norm, self.activation, self.pooling)

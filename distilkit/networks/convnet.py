"""ConvNet-D, the network of the field: D blocks of 3x3 convolution, norm, activation and 2x2 pooling, then a linear head."""

from __future__ import annotations

from distilkit import fields
from distilkit.errors import CombinationError, counted
from distilkit.networks import base
from distilkit.networks.layers import Activation, Norm, Pooling
from distilkit.networks.stack import Block, Stack, StackNetwork, halvings


@fields.component
class ConvNet(StackNetwork):
    """ConvNet-D (Gidaris and Komodakis 2018; DC, arXiv 2006.05929, section 4; RaT-BPTT, arXiv 2311.07025).

    The field's convention: depth 3 for 32x32 images, 4 for 64x64, 5 for 128x128. The code of DC and MTT gives the first
    convolution of gray images a padding of 3 (28x28 MNIST then has the shapes of a 32x32 image): that is
    `first_padding=3` here, never assumed. Parameters are named as in that code.

    Args:
        width: channels of every convolution.
        depth: number of blocks D.
        norm: "instance" (group norm with one channel a group), "group" (4 groups), "batch", "layer" or "none". "batch" uses
            the statistics of the batch it is given, at evaluation too, and keeps no running averages.
        activation: a name in `distilkit.networks.layers.ACTIVATIONS`, such as "relu" or "gelu".
        pooling: "avg", "max" or "none".
        first_padding: zeros added on each side by the first convolution, pixels.
        image_shape: (C, H, W); left out, it is filled in from the data.
        classes: number of classes; left out, it is filled in from the data.

    Raises:
        CombinationError: pooling would leave nothing of the image.

    >>> from distilkit.functional.streams import Stream
    >>> net = ConvNet().bind((3, 32, 32), 10)
    >>> sum(p.numel() for p in net.init(Stream(0)).values())
    320010
    """

    width: int = fields.integer(default=128, least=1)
    depth: int = fields.integer(default=3, least=1)
    norm: Norm = fields.choice(Norm, default="instance")
    activation: Activation = fields.choice(Activation, default="relu")
    pooling: Pooling = fields.choice(Pooling, default="avg")
    first_padding: int = fields.integer(default=1, least=0)
    image_shape: tuple[int, ...] | None = fields.integers(default=None, optional=True)
    classes: int | None = fields.integer(default=None, least=1, optional=True)

    def __attrs_post_init__(self) -> None:
        """Check that the image and the depth go together, and that the norm has something to normalise."""
        if self.image_shape is None or self.classes is None:
            return
        _, height, width = base.channels_height_width(self)
        side = min(height, width) + 2 * (self.first_padding - 1)
        if side < 1:
            raise CombinationError(f"Nothing is left of {height}x{width} after a 3x3 convolution without padding.", fix="first_padding=1")
        most = halvings(side)
        if self.pooling != "none" and self.depth > most:
            raise CombinationError(
                f"ConvNet of depth {self.depth} halves the image {counted(self.depth, 'time')}, and nothing is left of {height}x{width}: "
                f"the largest depth that fits is {most}.",
                fix=f"ConvNet(depth={most})" if most else f'ConvNet(depth={self.depth}, pooling="none")',
            )
        self.layout()

    def _stack(self) -> Stack:
        first = Block(self.width, 3, self.first_padding, True)
        blocks = (first, *(Block(self.width, 3, 1, True),) * (self.depth - 1))
        return Stack(blocks, self.norm, self.activation, self.pooling)

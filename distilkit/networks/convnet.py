"""ConvNet-D, the network of the field: D blocks of 3x3 convolution, norm, activation and 2x2 pooling, then a linear head."""

from __future__ import annotations

import attrs
import torch

from distilkit.errors import CombinationError
from distilkit.fields import choice, integer, integers
from distilkit.functional.streams import Stream
from distilkit.networks import base
from distilkit.networks.layers import ACTIVATIONS, NORMS, POOLINGS, Layout, draw
from distilkit.networks.stack import Block, Stack, halvings


@attrs.frozen
class ConvNet:
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

    >>> net = ConvNet().bind((3, 32, 32), 10)
    >>> sum(p.numel() for p in net.init(Stream(0)).values())
    320010
    """

    width: int = integer(128, least=1)
    depth: int = integer(3, least=1)
    norm: str = choice("instance", tuple(NORMS))
    activation: str = choice("relu", tuple(ACTIVATIONS))
    pooling: str = choice("avg", tuple(POOLINGS))
    first_padding: int = integer(1, least=0)
    image_shape: tuple[int, ...] | None = integers(None, optional=True)
    classes: int | None = integer(None, least=1, optional=True)

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
                f"ConvNet of depth {self.depth} halves the image {self.depth} times, and nothing is left of {height}x{width}: "
                f"the largest depth that fits is {most}.",
                fix=f"ConvNet(depth={most})" if most else f'ConvNet(depth={self.depth}, pooling="none")',
            )
        self.layout()

    def bind(self, image_shape: tuple[int, ...], classes: int) -> ConvNet:
        """Return this network for images of `image_shape` (C, H, W) and `classes` classes; see `base.bind`."""
        return base.bind(self, image_shape, classes)

    def layout(self) -> Layout:
        """Names, shapes and initial distributions of the parameters; draws nothing."""
        return self._stack().layout(base.channels_height_width(self), base.bound(self)[1])

    def init(self, stream: Stream) -> base.Params:
        """Draw parameters as torch does by default, float32 on the CPU, each from its own fold of `stream`."""
        return draw(self.layout(), stream)

    def apply(self, params: base.Params, x: torch.Tensor) -> torch.Tensor:
        """Map images (N, C, H, W) to logits (N, classes)."""
        base.check_input(self, x)
        return self._stack().apply(params, x)

    def _stack(self) -> Stack:
        first = Block(self.width, 3, self.first_padding, True)
        blocks = (first, *(Block(self.width, 3, 1, True),) * (self.depth - 1))
        return Stack(blocks, self.norm, self.activation, self.pooling)

"""AlexNet in its small-image form: five convolutions, three poolings and one linear layer as the head."""

from __future__ import annotations

import attrs
import torch

from distilkit.errors import FieldError
from distilkit.fields import choice, integer, integers
from distilkit.functional.streams import Stream
from distilkit.networks import base
from distilkit.networks.layers import ACTIVATIONS, NORMS, POOLINGS, Layout, draw
from distilkit.networks.stack import Block, Stack


@attrs.frozen
class AlexNet:
    """AlexNet for 32x32 images (Krizhevsky et al. 2012; the small-image form of DC, arXiv 2006.05929, and MTT).

    Convolutions of 128, 192, 256, 192 and 192 channels with kernels 5, 5, 3, 3 and 3; pooling after the first, second and
    last. The code of DC and MTT gives the first convolution of gray images a padding of 4, so that 28x28 counts as 32x32: that
    is `first_padding=4` here. Parameters are named as in that code.

    Args:
        width: channels of the first convolution, an even number; the others have 1.5, 2, 1.5 and 1.5 times as many.
        norm: "none", as in DC and MTT; or "instance", "group" (4 groups), "batch" or "layer". "batch" uses the statistics of
            the batch it is given, at evaluation too, and keeps no running averages.
        activation: a name in `distilkit.networks.layers.ACTIVATIONS`.
        pooling: "max", "avg" or "none".
        first_padding: zeros added on each side by the first convolution, pixels.
        image_shape: (C, H, W), at least 8x8; left out, it is filled in from the data.
        classes: number of classes; left out, it is filled in from the data.

    Raises:
        FieldError: an odd width.
        CombinationError: pooling would leave nothing of the image.

    >>> AlexNet().bind((3, 32, 32), 10).layout()["fc.weight"].shape
    (10, 3072)
    """

    width: int = integer(128, least=2)
    norm: str = choice("none", tuple(NORMS))
    activation: str = choice("relu", tuple(ACTIVATIONS))
    pooling: str = choice("max", tuple(POOLINGS))
    first_padding: int = integer(2, least=0)
    image_shape: tuple[int, ...] | None = integers(None, optional=True)
    classes: int | None = integer(None, least=1, optional=True)

    def __attrs_post_init__(self) -> None:
        """Check the width, and that the image is large enough."""
        if self.width % 2:
            raise FieldError("width", self.width, "an even whole number", fix=f"AlexNet(width={self.width + 1})")
        if self.image_shape is not None and self.classes is not None:
            self._stack().check("AlexNet", *base.channels_height_width(self)[1:])
            self.layout()

    def bind(self, image_shape: tuple[int, ...], classes: int) -> AlexNet:
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
        half = self.width // 2
        blocks = (
            Block(self.width, 5, self.first_padding, True),
            Block(3 * half, 5, 2, True),
            Block(4 * half, 3, 1, False),
            Block(3 * half, 3, 1, False),
            Block(3 * half, 3, 1, True),
        )
        return Stack(blocks, self.norm, self.activation, self.pooling, head="fc")

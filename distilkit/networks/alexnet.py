"""AlexNet in its small-image form: five convolutions, three poolings and one linear layer as the head."""

from __future__ import annotations

from distilkit import fields
from distilkit.errors import FieldError
from distilkit.networks import base
from distilkit.networks.layers import Activation, Norm, Pooling
from distilkit.networks.stack import Block, Stack, StackNetwork


@fields.component
class AlexNet(StackNetwork):
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

    width: int = fields.integer(default=128, least=2)
    norm: Norm = fields.choice(Norm, default="none")
    activation: Activation = fields.choice(Activation, default="relu")
    pooling: Pooling = fields.choice(Pooling, default="max")
    first_padding: int = fields.integer(default=2, least=0)
    image_shape: tuple[int, ...] | None = fields.integers(default=None, optional=True)
    classes: int | None = fields.integer(default=None, least=1, optional=True)

    def __attrs_post_init__(self) -> None:
        """Check the width, and that the image is large enough."""
        if self.width % 2:
            raise FieldError("width", self.width, "an even whole number", fix=f"AlexNet(width={self.width + 1})")
        if self.image_shape is not None and self.classes is not None:
            self._stack().check("AlexNet", *base.channels_height_width(self)[1:])
            self.layout()

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

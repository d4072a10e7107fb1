"""A stack of convolutions with a linear head, and `StackNetwork`, a network that is one: ConvNet, VGG and AlexNet.

Parameters are named as in the networks of the DC and MTT code, where the layers stand in one `nn.Sequential` called
`features`, so weights can be carried over either way with `load_state_dict`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F

from distilkit.errors import CombinationError
from distilkit.networks import base
from distilkit.networks.layers import (
    ACTIVATIONS,
    EPS,
    NORMS,
    POOLINGS,
    Activation,
    Layout,
    Norm,
    Pooling,
    conv_layout,
    linear_layout,
    norm_layout,
)


class Block(NamedTuple):
    """One convolution of a stack, with norm and activation behind it.

    Args:
        channels: output channels.
        kernel: side of the square kernel, pixels.
        padding: zeros added on each side, pixels.
        pools: whether 2x2 pooling follows.
    """

    channels: int
    kernel: int
    padding: int
    pools: bool


class Stack(NamedTuple):
    """Blocks of convolution, norm, activation and pooling, then a linear head.

    Args:
        blocks: the convolutions in order.
        norm: a name in `layers.NORMS`.
        activation: a name in `layers.ACTIVATIONS`.
        pooling: a name in `layers.POOLINGS`.
        head: name of the linear layer.
    """

    blocks: tuple[Block, ...]
    norm: Norm
    activation: Activation
    pooling: Pooling
    head: str = "classifier"

    def sizes(self, height: int, width: int) -> list[tuple[int, int]]:
        """Height and width after each convolution and, last, after everything; zero or less where nothing is left."""
        sizes = []
        for block in self.blocks:
            grow = 2 * block.padding - block.kernel + 1
            height, width = height + grow, width + grow
            sizes.append((height, width))
            if block.pools and self.pooling != "none":
                height, width = height // 2, width // 2
        return [*sizes, (height, width)]

    def check(self, name: str, height: int, width: int) -> None:
        """Refuse images that pooling would make empty.

        Raises:
            CombinationError: it says the smallest size that fits.
        """
        if min(self.sizes(height, width)[-1]) < 1:
            least = next(side for side in itertools.count(1) if min(self.sizes(side, side)[-1]) >= 1)
            raise CombinationError(
                f"{name} would have nothing left of a {height}x{width} image after its pooling: it takes {least}x{least} or more.",
                fix=f"ConvNet(depth={halvings(min(height, width))})" if min(height, width) > 1 else 'ConvNet(depth=1, pooling="none")',
            )

    def layout(self, image_shape: tuple[int, int, int], classes: int) -> Layout:
        """Names, shapes and initial distributions of all parameters."""
        channels, height, width = image_shape
        sizes = self.sizes(height, width)
        layout: Layout = {}
        for (block, conv, norm), size in zip(self._named(), sizes, strict=False):
            layout |= conv_layout(conv, channels, block.channels, block.kernel)
            layout |= norm_layout(self.norm, norm, (block.channels, *size))
            channels = block.channels
        return layout | linear_layout(self.head, channels * math.prod(sizes[-1]), classes)

    def apply(self, params: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        """Map images (N, C, H, W) to logits (N, classes)."""
        norm, activation, pool = NORMS[self.norm], ACTIVATIONS[self.activation], POOLINGS[self.pooling]
        for block, conv, place in self._named():
            x = F.conv2d(x, params[f"{conv}.weight"], params[f"{conv}.bias"], padding=block.padding)
            if norm is not None:
                x = norm(x, params[f"{place}.weight"], params[f"{place}.bias"])
            x = activation(x)
            if pool is not None and block.pools:
                x = pool(x)
        return F.linear(x.flatten(1), params[f"{self.head}.weight"], params[f"{self.head}.bias"])

    def apply_by_kernels(self, params: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        """The same where each block is instance norm, ReLU and pooling, by the kernels of `distilkit.functional.blocks`.

        The bias of a convolution is left out: it moves whole maps, which the norm moves back. Its derivative is zero, where torch's own
        operations give roundings.
        """
        from distilkit.functional.blocks import norm_relu_pool  # for a GPU only

        for block, conv, place in self._named():
            x = F.conv2d(x, params[f"{conv}.weight"], padding=block.padding)
            pooling = self.pooling if block.pools else "none"
            x = norm_relu_pool(x, params[f"{place}.weight"], params[f"{place}.bias"], pooling, EPS)
        return F.linear(x.flatten(1), params[f"{self.head}.weight"], params[f"{self.head}.bias"])

    def _named(self) -> Iterator[tuple[Block, str, str]]:
        """Each block with the names of its convolution and norm: places in the sequence, which activations and pools take up too."""
        place = 0
        for block in self.blocks:
            yield block, f"features.{place}", f"features.{place + 1}"
            place += 2 + (self.norm != "none") + (block.pools and self.pooling != "none")


class KernelMaps(NamedTuple):
    """Feature maps (channels, height, width) that kernels of our own take, and the pooling behind their norm and ReLU."""

    channels: int
    height: int
    width: int
    pooling: Pooling


class StackNetwork(base.LaidOut):
    """A network that is one stack: a subclass has fields, checks and `_stack`."""

    __slots__ = ()

    def _stack(self) -> Stack:
        """The convolutions and the head."""
        raise NotImplementedError

    def layout(self) -> Layout:
        """Names, shapes and initial distributions of the parameters; draws nothing."""
        return self._stack().layout(base.channels_height_width(self), base.bound(self)[1])

    def apply(self, params: base.Params, x: torch.Tensor) -> torch.Tensor:
        """Map images (N, C, H, W) to logits (N, classes)."""
        base.check_input(self, x)
        return self._stack().apply(params, x)

    def apply_by_kernels(self, params: base.Params, x: torch.Tensor) -> torch.Tensor:
        """`apply` on a GPU by kernels of our own, for a network that has `kernel_maps`."""
        base.check_input(self, x)
        return self._stack().apply_by_kernels(params, x)

    def kernel_maps(self) -> KernelMaps | None:
        """The maps behind the first convolution, where `apply_by_kernels` can be used: instance norm, ReLU, and maps of a size for it."""
        from distilkit.functional.blocks import LARGEST_MAP

        stack = self._stack()
        sizes = stack.sizes(*base.channels_height_width(self)[1:])[:-1]
        if stack.norm != "instance" or stack.activation != "relu" or max(map(math.prod, sizes)) > LARGEST_MAP:
            return None
        first = stack.blocks[0]
        return KernelMaps(first.channels, *sizes[0], stack.pooling if first.pools else "none")


def halvings(side: int) -> int:
    """How many times `side` pixels can be halved (rounding down) before nothing is left.

    >>> halvings(32), halvings(28)
    (5, 4)
    """
    return side.bit_length() - 1

"""Network, the contract, and LaidOut, what our own do alike: binding to a data set, drawing parameters, checking input."""

from __future__ import annotations

from typing import Any, Protocol, Self, TypeVar

import torch

from distilkit import fields
from distilkit.errors import CombinationError
from distilkit.functional.streams import Stream
from distilkit.networks.layers import Layout, draw

Params = dict[str, torch.Tensor]


class Network(Protocol):
    """A network as a frozen, hashable value; its parameters live outside it, in a dict.

    Any object with these two methods can take the place of one of ours. If it also has `bind(image_shape, classes)`, a learner calls
    that once the data is known, and uses what it returns. One that is random in training, by dropout say, has `sample(stream, count)`
    too, which draws that for a step on so many images, as a dict of tensors; `apply` takes it as a third argument, and is the network of
    tests without.
    """

    def init(self, stream: Stream, /) -> Params:
        """Draw initial parameters, float32 on the CPU, from the stream and from nothing else."""
        ...

    def apply(self, params: Params, images: torch.Tensor, /) -> torch.Tensor:
        """Map images (N, *image_shape) to logits (N, classes). A pure function."""
        ...


class Bindable(Protocol):
    """A network that is made for the data: `image_shape` and `classes` may be None until they are filled in."""

    @property
    def image_shape(self) -> tuple[int, ...] | None:
        """Shape of one image, such as (3, 32, 32), or None before binding."""
        ...

    @property
    def classes(self) -> int | None:
        """Number of classes, or None before binding."""
        ...


N = TypeVar("N", bound=Bindable)


def bind(network: N, image_shape: tuple[int, ...], classes: int) -> N:
    """Return `network` with `image_shape` and `classes` filled in; the checks of its class run again.

    Args:
        network: a frozen attrs value with the fields `image_shape` and `classes`.
        image_shape: shape of one image, (C, H, W), or (D,) for plain feature vectors.
        classes: number of classes.

    Returns:
        The bound network; the same object when nothing was missing.

    Raises:
        CombinationError: a field is set already, to another value.
    """
    given = {"image_shape": tuple(image_shape), "classes": classes}
    for field, value in given.items():
        own = getattr(network, field)
        if own is not None and own != value:
            raise CombinationError(
                f"{_name(network)} is set to {field} = {own!r}, and the data has {field} = {value!r}.",
                fix=f"{_name(network)}(..., {field}={value!r})",
            )
    if network.image_shape is not None and network.classes is not None:
        return network
    return fields.evolve(network, **given)


class LaidOut:
    """A network with a layout of its parameters, two fields `image_shape` and `classes`, and an `apply` of its own."""

    __slots__ = ()

    image_shape: tuple[int, ...] | None  # None before binding
    classes: int | None

    def layout(self) -> Layout:
        """Names, shapes and initial distributions of the parameters; draws nothing."""
        raise NotImplementedError

    def bind(self, image_shape: tuple[int, ...], classes: int) -> Self:
        """Return this network for images of `image_shape` and `classes` classes; see `base.bind`."""
        return bind(self, image_shape, classes)

    def init(self, stream: Stream) -> Params:
        """Draw parameters as torch does by default, float32 on the CPU, each from its own fold of `stream`."""
        return draw(self.layout(), stream)


def bound(network: Bindable) -> tuple[tuple[int, ...], int]:
    """Return (image_shape, classes) of a bound network.

    Raises:
        CombinationError: the network is not bound yet; the message holds the line to paste.
    """
    if network.image_shape is None or network.classes is None:
        missing = " and ".join(f for f in ("image_shape", "classes") if getattr(network, f) is None)
        raise CombinationError(
            f"{_name(network)} does not know its {missing} yet, so it has no parameters.",
            fix="network = network.bind(image_shape=(3, 32, 32), classes=10)",
        )
    return network.image_shape, network.classes


def check_input(network: Bindable, x: torch.Tensor) -> None:
    """Refuse a batch that is not (N, *image_shape): convolutions would take it and fail, or not fail, far from here."""
    shape, _ = bound(network)
    if x.shape[1:] != shape:
        raise CombinationError(
            f"{_name(network)} is bound to image_shape = {shape!r}, and was given a batch of shape {tuple(x.shape)!r}.",
            fix=f"x = x.reshape(-1, {', '.join(map(str, shape))})",
        )


def channels_height_width(network: Bindable) -> tuple[int, int, int]:
    """Return (C, H, W) of a network that needs images; feature vectors are refused with the network that takes them."""
    shape, _ = bound(network)
    if len(shape) != 3:
        raise CombinationError(
            f"{_name(network)} takes images of shape (channels, height, width), and image_shape = {shape!r} has {len(shape)} numbers.",
            fix="MLP()  # takes any shape",
        )
    return shape


def _name(network: Any) -> str:
    return type(network).__name__

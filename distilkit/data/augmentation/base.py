"""Augmentation: what one offers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from distilkit.errors import CombinationError
from distilkit.functional.streams import Stream, Streams


class Augmentation(Protocol):
    """A random change of images, in two parts, so that it can be replayed.

    One whose `sample` takes `Streams` as well as a `Stream`, and stacks what it draws, may say so with a class attribute
    `takes_streams = True`: the draws of many steps are then made together. One that changes each image by itself, and whose draws have an
    entry for each image in their first dimension, or one for all, may say so by `by_image = True`: `Learner.micro_batch` needs that.
    """

    def sample(self, stream: Stream, shape: tuple[int, ...], /) -> dict[str, torch.Tensor]:
        """Draw all that is random for a batch of a shape (N, C, H, W): small tensors, on the CPU."""
        ...

    def apply(self, images: torch.Tensor, draw: dict[str, torch.Tensor], /) -> torch.Tensor:
        """Change a batch (N, C, H, W). A pure function, twice differentiable in the images."""
        ...


def sample_each(augment: Augmentation, streams: Sequence[Stream], shapes: Sequence[tuple[int, ...]]) -> list[dict[str, torch.Tensor]]:
    """A draw from each stream, as `sample` gives it: made together where the augmentation can and the batches are of one shape.

    Args:
        augment: the augmentation.
        streams: of the draws.
        shapes: of the batch of each, (N, C, H, W).
    """
    if len(streams) < 2 or len({*shapes}) > 1 or not getattr(augment, "takes_streams", False):
        return [augment.sample(stream, shape) for stream, shape in zip(streams, shapes, strict=True)]
    together: Any = Streams(tuple(streams))
    drawn = augment.sample(together, shapes[0])
    # Each in memory of its own, as one that was drawn alone: what is made of a part of another may be rounded otherwise.
    return [{name: x[i].clone() for name, x in drawn.items()} for i in range(len(streams))]


def batch_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Number, height and width of a batch of images; refuses feature vectors."""
    if len(shape) != 4:
        raise CombinationError(
            f"Augmentation moves pixels, so it needs images (N, C, H, W), but the batch has shape {tuple(shape)}.", fix="augment=None"
        )
    return shape[0], shape[2], shape[3]

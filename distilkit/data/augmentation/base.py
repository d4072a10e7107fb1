"""Augmentation: what one offers."""

from __future__ import annotations

from typing import Protocol

import torch

from distilkit.errors import CombinationError
from distilkit.functional.streams import Stream


class Augmentation(Protocol):
    """A random change of images, in two parts, so that it can be replayed."""

    def sample(self, stream: Stream, shape: tuple[int, ...], /) -> dict[str, torch.Tensor]:
        """Draw all that is random for a batch of a shape (N, C, H, W): small tensors, on the CPU."""
        ...

    def apply(self, images: torch.Tensor, draw: dict[str, torch.Tensor], /) -> torch.Tensor:
        """Change a batch (N, C, H, W). A pure function, twice differentiable in the images."""
        ...


def batch_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Number, height and width of a batch of images; refuses feature vectors."""
    if len(shape) != 4:
        raise CombinationError(
            f"Augmentation moves pixels, so it needs images (N, C, H, W), but the batch has shape {tuple(shape)}.", fix="augment=None"
        )
    return shape[0], shape[2], shape[3]

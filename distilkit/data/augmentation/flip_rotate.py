"""The augmentation of the RaT-BPTT paper."""

from __future__ import annotations

from typing import ClassVar

import torch

from distilkit import fields
from distilkit.data.augmentation.base import batch_shape
from distilkit.data.augmentation.geometry import affine, rotations, stretches
from distilkit.functional.streams import AnyStream


@fields.component
class FlipRotate:
    """Either flip or rotate: one of the two for the whole batch, at even odds.

    Flipping mirrors each image left to right with probability one half; rotating turns each image by its own uniform angle,
    bilinearly, with zeros outside. The paper's code calls this `flip_rotate`.

    Args:
        degrees: the largest angle, either way.

    References:
        Feng, Vedantam, Kempe, "Embarrassingly Simple Dataset Distillation", ICLR 2024, arXiv 2311.07025, and its code.

    >>> from distilkit.functional.streams import Stream
    >>> x = torch.rand(3, 1, 8, 8)
    >>> augment = FlipRotate()
    >>> augment.apply(x, augment.sample(Stream(0).fold("augment"), x.shape)).shape
    torch.Size([3, 1, 8, 8])
    """

    takes_streams: ClassVar[bool] = True
    by_image: ClassVar[bool] = True
    degrees: float = fields.number(default=15.0, least=0, most=180)

    def sample(self, stream: AnyStream, shape: tuple[int, ...]) -> dict[str, torch.Tensor]:
        """Draw for one batch.

        Args:
            stream: the source of the draw, or several.
            shape: (N, C, H, W) of the batch.

        Returns:
            `matrix`, float32 (N, 2, 3) on the CPU, in pixels: see `geometry.affine`. Of several streams, (streams, N, 2, 3).
        """
        n, height, width = batch_shape(shape)
        mirrored = stream.fold("flip").uniform(n) < 0.5
        flips = stretches(1.0 - 2.0 * mirrored.float(), torch.ones(mirrored.shape))
        turns = rotations((2 * stream.fold("rotate").uniform(n) - 1) * self.degrees, height, width)
        flip = stream.fold("branch").integers(2, 1) == 0
        return {"matrix": torch.where(flip[..., None, None], flips, turns)}

    def apply(self, images: torch.Tensor, draw: dict[str, torch.Tensor]) -> torch.Tensor:
        """Augment a batch (N, C, H, W); linear in the images."""
        return affine(images, draw["matrix"])

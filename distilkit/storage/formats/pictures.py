"""PNG files of the samples, as a person sees them, for the formats "image-folder" and "hugging-face"."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from distilkit.data.distilled import DistilledSet
from distilkit.data.sources.pictures import DECODERS
from distilkit.errors import DistilkitError


def can_be_drawn(distilled: DistilledSet) -> bool:
    """Whether the samples are grey or colour images, which PNG holds."""
    return distilled.images.ndim == 4 and distilled.images.shape[1] in (1, 3)


def write_png(distilled: DistilledSet, folder: Path) -> list[str]:
    """Write a PNG for each sample and return their names, in the order of the rows."""
    names = [f"{i:06d}.png" for i in range(len(distilled))]
    for name, pixel in zip(names, distilled.pixels().cpu().numpy(), strict=True):
        Image.fromarray(pixel[0] if len(pixel) == 1 else pixel.transpose(1, 2, 0)).save(folder / name)
    return names


def read_png(paths: list[Path]) -> torch.Tensor:
    """Read images as float32 (N, C, H, W) in [0, 1]: grey where all are grey, else red, green, blue.

    Raises:
        DistilkitError: one is missing, is not an image, or is of another size than the first.
    """
    found: list[Image.Image] = []
    for path in paths:
        try:
            with Image.open(path, formats=DECODERS) as image:
                found.append(image.convert("L" if image.mode in ("1", "L") else "RGB"))
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            raise DistilkitError(f"{path} cannot be read as an image: {error}") from error
        if found[-1].size != found[0].size:
            raise DistilkitError(f"{path} is {found[-1].size} pixels large, but {paths[0]} is {found[0].size}; all must be of one size.")
    grey = all(image.mode == "L" for image in found)
    pixels = np.stack([np.atleast_3d(np.asarray(image if grey else image.convert("RGB"))) for image in found])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().float() / 255

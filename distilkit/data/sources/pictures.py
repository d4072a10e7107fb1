"""Reading image files of any size into one tensor."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from distilkit.errors import DistilkitError

# What may decode a file, whatever it is called: Pillow has decoders that start other programs (EPS).
DECODERS = ("PNG", "JPEG", "BMP", "GIF", "PPM", "TIFF", "WEBP")
SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}


def read_pictures(paths: Sequence[Path], size: int, *, fit: str, channels: int = 3) -> torch.Tensor:
    """Read and resize image files.

    Args:
        paths: the files.
        size: side of the result in pixels; files are resized bilinearly, with antialiasing, unless they have it already.
        fit: "crop" keeps proportions and cuts the middle out; "stretch" does not keep them.
        channels: 3 for colour, 1 for grey.

    Returns:
        uint8 (N, channels, size, size).

    Raises:
        DistilkitError: for a file that is no image; it is named.
    """
    out = np.empty((len(paths), size, size, channels), np.uint8)

    def read(i: int) -> None:
        try:
            with Image.open(paths[i], formats=DECODERS) as picture:
                out[i] = as_array(picture, size, fit=fit, channels=channels)
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise DistilkitError(f"{paths[i]} cannot be read as an image: {error}.") from error

    with ThreadPoolExecutor() as pool:  # decoding releases the GIL
        for _ in pool.map(read, range(len(paths))):
            pass
    return torch.from_numpy(out).permute(0, 3, 1, 2).contiguous()


def as_array(picture: Image.Image, size: int, *, fit: str, channels: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """One picture as uint8 (size, size, channels)."""
    picture = picture.convert("RGB" if channels == 3 else "L")
    if picture.size != (size, size):
        bilinear = Image.Resampling.BILINEAR
        picture = ImageOps.fit(picture, (size, size), bilinear) if fit == "crop" else picture.resize((size, size), bilinear)
    return np.asarray(picture, np.uint8).reshape(size, size, channels)


def pictures_below(place: Path) -> list[Path]:
    """All image files below a folder, in the order of their paths."""
    return sorted(p for p in place.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())

"""Distilled sets that come with the package, by the name of the recipe that made them: `fast/cifar10-ipc1`.

Each is a safetensors file beside its recipe. It holds the distilled images, labels and words, and none of the real images: the arrays
of a whitening are left out, and fitted on the data at hand (`Refittable`).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from distilkit import recipes

if TYPE_CHECKING:
    from distilkit.data.distilled import DistilledSet


def names() -> list[str]:
    """The names of all sets."""
    return [name for name in recipes.names() if _file(name).is_file()]


def comes_with_distilkit(path: str | os.PathLike[str]) -> bool:
    """Whether this is the name of such a set; a file or folder of that name comes first."""
    return not Path(path).exists() and Path(path).as_posix() in names()


def read(name: str | os.PathLike[str]) -> DistilledSet:
    """A set, with its preprocessing named."""
    from distilkit.storage.formats import lossless

    return lossless.loads(_file(Path(name).as_posix()).read_bytes(), Path(name).as_posix())


def write(distilled: DistilledSet, name: str) -> Path:
    """Put a set beside its recipe, in the place of an earlier one; for those who build the package.

    Returns:
        The path of the file.
    """
    import attrs

    from distilkit.data.preprocessing import Refittable
    from distilkit.storage.formats import lossless

    recipes.read(name)  # there is one, or an error that names the nearest
    light = attrs.evolve(distilled, preprocessing=Refittable.of(distilled.preprocessing))
    _file(name).unlink(missing_ok=True)
    lossless.write(light, _file(name), plain=False)
    return _file(name)


def _file(name: str) -> Path:
    return recipes.FOLDER / f"{name}.safetensors"

"""A cache on disk for whitening matrices, which take up to a minute to fit and depend on nothing but their input."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import platformdirs

from distilkit.data.preprocessing.base import Arrays


def cache_folder() -> Path:
    """The user's cache folder for distilkit; the environment variable DISTILKIT_CACHE overrides it."""
    chosen = os.environ.get("DISTILKIT_CACHE")
    return Path(chosen).expanduser() if chosen else Path(platformdirs.user_cache_dir("distilkit"))


def cached(key: str, names: Sequence[str], make: Callable[[], Arrays]) -> Arrays:
    """Return the arrays kept under `key`, or make and keep them.

    Args:
        key: a hash of all that the result depends on.
        names: of the arrays.
        make: computes the arrays.

    Returns:
        The arrays. A cache that cannot be read or written only costs time: it never fails the work.
    """
    path = cache_folder() / f"{key}.npz"
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as kept:
            return {name: kept[name] for name in names}
    except Exception:  # zipfile, zlib and numpy raise many kinds for what is damaged; all mean the same here
        arrays = make()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, suffix=".part")
    except OSError:
        return arrays
    part = Path(name)
    try:  # written beside its place and renamed, so that a reader or a kill never meets half a file
        with os.fdopen(handle, "wb") as out:
            np.savez(out, allow_pickle=False, **arrays)
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
    return arrays

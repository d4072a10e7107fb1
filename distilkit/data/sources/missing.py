"""Where datasets are looked for, and what is said when they are not there."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from distilkit.errors import MissingDataError


def folder(root: str) -> Path:
    """The absolute path of a folder; "~" is the home folder, relative paths start at the current one."""
    return Path(root).expanduser().absolute()


def missing(
    name: str, place: Path, files: Iterable[str], *, site: str | None = None, fix: str | None = None, why: str | None = None
) -> MissingDataError:
    """Say which files were looked for, where, and how to get them.

    Args:
        name: of the dataset.
        place: the folder that was searched.
        files: what should be in it.
        site: where the dataset is published.
        fix: a line to paste.
        why: what went wrong, when it is not just that files are absent.

    Returns:
        The error, to be raised.

    >>> print(missing("Toy", Path("/nowhere"), ["a.npy"], site="example.org"))
    Toy is not in /nowhere. Missing there: a.npy. It is published at example.org.
    """
    absent = [f for f in files if not (place / f).exists()]
    words = [f"{name} is not in {place}." if absent else f"{name} in {place} cannot be read."]
    if absent:
        words.append(f"Missing there: {', '.join(absent)}.")
    if why:
        words.append(f"The reader says: {' '.join(why.split())}.")
    if site:
        words.append(f"It is published at {site}.")
    return MissingDataError(" ".join(words), fix=fix)

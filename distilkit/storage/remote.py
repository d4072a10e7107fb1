"""A run at a URL, such as the copy that `--mirror` makes in a bucket: what is read of it is brought here, and is gone afterwards."""

from __future__ import annotations

import os
import posixpath
import re
import tempfile
import time
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec

from distilkit.errors import ResourceError, RunError
from distilkit.storage.integrity import damage
from distilkit.storage.layout import NAME

PAUSES = (0.2, 0.5, 1.0, 2.0, 5.0)  # seconds between two tries of what has failed: a run may be sending its results at this very moment
SPEC = "spec.toml"


def url_of(path: Any) -> str | None:
    """The URL that is meant by a path; None for a path of this machine. A `Path` has swallowed a slash, which is put back.

    >>> url_of(Path("s3://bucket/runs/mine")), url_of("runs/mine")
    ('s3://bucket/runs/mine', None)
    """
    if not isinstance(path, (str, os.PathLike)):
        return None
    text = os.fspath(path)
    found = re.fullmatch(r"([a-z][a-z0-9+.-]+):/+(.+)", text) if isinstance(text, str) and not os.path.lexists(text) else None
    return f"{found[1]}://{found[2]}" if found else None


def require_here(run: Any) -> None:
    """Refuse a URL, where something is done that needs a folder of this machine."""
    if (url := url_of(run)) is not None:
        raise RunError(
            f"{url} is a URL, and this needs a folder of this machine. dk.open, dk.load and dk.evaluate take URLs, and so do the commands "
            "show, report, sheet and evaluate."
        )


def file_system(url: str) -> tuple[Any, str]:
    """What reaches a URL, and the path there.

    Raises:
        RunError: there is no such kind of URL, or what it needs is not installed.
    """
    try:
        there, root = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:  # of which the first says what to install
        raise RunError(f"{url} cannot be reached: {error}", fix="pip install s3fs  # or gcsfs, adlfs: what fsspec needs for it") from error
    return there, str(root).rstrip("/")


@contextmanager
def brought(run: Any) -> Generator[Any, None, None]:
    """A run as a folder of this machine: it itself, or, of a URL, a temporary one with its spec and results.

    Raises:
        RunError: there are no results there, or what the kind of URL needs is not installed.
        ResourceError: it cannot be read.
    """
    url = url_of(run)
    if url is None:
        yield run
        return
    base, ending = (posixpath.dirname(url), NAME) if url.endswith(f"/{NAME}") else (url.rstrip("/"), "")
    with tempfile.TemporaryDirectory(prefix="distilkit-") as parent:
        folder = Path(parent) / (posixpath.basename(base) or "run")
        _bring(base, folder)
        yield folder / ending if ending else folder


def _bring(url: str, folder: Path) -> None:
    there, root = file_system(url)
    wrong = f"There are no results at {url}, but checkpoints: a run is about to send them, or its machine was lost."
    for pause in (*PAUSES, 0.0):
        try:
            there.invalidate_cache()
            names = sorted(posixpath.relpath(str(path), root) for path in there.find(root))
        except Exception as error:  # each file system has kinds of its own
            raise _unreadable(url, error) from error
        if f"{NAME}/zarr.json" in names:
            try:
                _get(there, root, folder, [name for name in names if name == SPEC or name.startswith(f"{NAME}/")])
                found = damage(folder / NAME)
                if not found:
                    return
                wrong = f"{url}/{NAME} is damaged, or was being sent each time it was looked at: {found[0]}"
            except Exception as error:  # as above; what was there a moment ago may have been taken away
                wrong = _unreadable(url, error).message
        elif not any(name.startswith("checkpoints/") for name in names):
            raise RunError(f"There is no run at {url}.")
        time.sleep(pause)
    raise RunError(wrong)


def _get(there: Any, root: str, folder: Path, names: Iterable[str]) -> None:
    for name in names:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        there.get_file(f"{root}/{name}", str(target))


def _unreadable(url: str, error: Exception) -> RunError:
    words = (str(error).strip() or type(error).__name__).splitlines()[0]
    if isinstance(error, FileNotFoundError):
        return RunError(f"There is no run at {url}: {words}")
    if isinstance(error, PermissionError) or "Credentials" in type(error).__name__:
        words += (
            " It needs credentials: of S3, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment, or a profile as `aws configure` "
            "makes it."
        )
    return ResourceError(f"{url} cannot be read: {words}")

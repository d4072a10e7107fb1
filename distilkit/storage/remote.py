"""A run at a URL, such as the copy that `--mirror` makes in a bucket: what is read of it is brought here, and is gone afterwards."""

from __future__ import annotations

import logging
import os
import posixpath
import re
import shlex
import shutil
import tempfile
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import fsspec

from distilkit.errors import Change, DistilkitError, ResourceError, RunError
from distilkit.storage.integrity import damage
from distilkit.storage.layout import NAME

PAUSES = (0.2, 0.5, 1.0, 2.0, 5.0)  # seconds between two tries of what has failed: a run may be sending its results at this very moment
SPEC = "spec.toml"
ROOT = f"{NAME}/zarr.json"
CHECKPOINTS = "checkpoints/"

# What file systems call size, time of change and version of a file; what else they tell may change when it is read.
STAMPS = ("size", "mtime", "modified", "created", "LastModified", "last_modified", "updated", "ETag", "etag", "generation")

logger = logging.getLogger("distilkit")

Result = TypeVar("Result")


def url_of(path: Any) -> str | None:
    """The URL that is meant by a path; None for a path of this machine. A `Path` has swallowed slashes, which are put back.

    >>> url_of(Path("s3://bucket/runs/mine")), url_of(Path("file:///mnt/mine")), url_of("runs/mine")
    ('s3://bucket/runs/mine', 'file:///mnt/mine', None)
    """
    if not isinstance(path, (str, os.PathLike)):
        return None
    text = os.fspath(path)
    found = re.fullmatch(r"([a-z][a-z0-9+.-]+):/+(.+)", text) if isinstance(text, str) and not os.path.lexists(text) else None
    if found is None:
        return None
    return text if "://" in text else f"{found[1]}:{'///' if found[1] in ('file', 'local') else '//'}{found[2]}"


def run_at(path: Any) -> str | None:
    """The URL of a run, of which a path may name the results; None for a path of this machine.

    >>> run_at("s3://bucket/runs/mine/results.zarr")
    's3://bucket/runs/mine'
    """
    url = url_of(path)
    return None if url is None else url.rstrip("/").removesuffix(f"/{NAME}").rstrip("/")


def require_here(place: Any, *, fix: str | None = None, changes: Sequence[Change] = ()) -> None:
    """Refuse a URL, where something is written to this machine.

    Args:
        place: where.
        fix: what to type instead, as for every error.
        changes: the same; a folder in runs/ when both are left out.

    Raises:
        RunError: it is one.
    """
    if (url := url_of(place)) is not None:
        raise RunError(
            f"{url} is a URL, and this is written to a folder of this machine. A run has a copy at a URL by --mirror, in Python mirror=.",
            fix=fix,
            changes=changes or ([] if fix else [Change("out", f"runs/{posixpath.basename(url.rstrip('/')) or 'mine'}")]),
        )


def file_system(url: str) -> tuple[Any, str]:
    """What reaches a URL, and the path there.

    Raises:
        RunError: there is no such kind of URL, what it needs is not installed, or a file: has two slashes.
    """
    if (found := re.fullmatch(r"(?:file|local)://(?![A-Za-z]:)([^/\\].*)", url)) is not None:
        here = Path(found[1]).expanduser().absolute().as_uri()
        raise RunError(f"{url} cannot be: behind its two slashes a machine would be named. The folder {found[1]} of this one is {here}.")
    try:
        there, root = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:  # of which the first says what to install
        raise RunError(f"{url} cannot be reached: {error}", fix="pip install s3fs  # or gcsfs, adlfs: what fsspec needs for it") from error
    return there, str(root).rstrip("/")


def tried(work: Callable[[], Result]) -> Result:
    """What work at a URL gives; it is tried several times, since networks fail now and then.

    Raises:
        Exception: of the last try, each file system has kinds of its own; at once, where no other try would help.
    """
    for pause in PAUSES:
        try:
            return work()
        except Exception as error:
            if is_final(error):
                raise
            logger.debug("trying again: %r", error)
            time.sleep(pause)
    return work()


def is_final(error: Exception) -> bool:
    """Whether what has failed at a URL fails each time: something is not there, or not for us."""
    return isinstance(error, (FileNotFoundError, PermissionError)) or "Credentials" in type(error).__name__


def listed(there: Any, root: str) -> dict[str, Any]:
    """What a file system tells of each file below a place, by its name.

    Raises:
        Exception: it cannot be looked at, each file system has kinds of its own.
    """
    there.invalidate_cache()
    with suppress(FileNotFoundError):
        there.ls(root)  # raises, where `find` leaves out a folder that it cannot look at
    return {posixpath.relpath(str(path), root): told for path, told in there.find(root, detail=True).items()}


def names_at(url: str) -> list[str]:
    """The files at a URL, by their names below it.

    Raises:
        RunError: there are none, or what the kind of URL needs is not installed.
        ResourceError: it cannot be read.
    """
    found = sorted(_listing(*file_system(url), url))
    if not found:
        raise RunError(f"There is no run at {url}.")
    return found


def text_at(url: str) -> str:
    """A file at a URL, in UTF-8.

    Raises:
        FileNotFoundError: it is not there.
        UnicodeDecodeError: it is not in UTF-8.
        RunError: it cannot be read, as above.
    """
    there, place = file_system(url)
    try:
        content: bytes = tried(partial(there.cat_file, place))
    except FileNotFoundError:
        raise
    except Exception as error:
        raise _unreadable(url, error) from error
    return content.decode("utf-8")


@contextmanager
def brought(run: Any) -> Generator[Any, None, None]:
    """A run as a folder of this machine: it itself, or, of a URL, a temporary one with its spec and results.

    Raises:
        RunError: there are no results there, or what the kind of URL needs is not installed.
        ResourceError: it cannot be read.
    """
    base = run_at(run)
    if base is None:
        yield run
        return
    with tempfile.TemporaryDirectory(prefix="distilkit-") as parent:
        folder = Path(parent) / (posixpath.basename(base) or "run")
        try:
            _bring(base, folder)
            yield folder / NAME if str(url_of(run)).rstrip("/").endswith(f"/{NAME}") else folder
        except DistilkitError as error:  # which is told when the folder is gone
            _rename(error, str(folder), base)
            raise


def _rename(error: DistilkitError, folder: str, url: str) -> None:
    """Have an error name the URL where it names the folder."""

    def renamed(value: Any) -> Any:
        return str(value).replace(folder, url) if isinstance(value, (str, Path)) else value

    error.message, error.fix = renamed(error.message), renamed(error.fix)
    error.changes = tuple(replace(change, value=renamed(change.value)) for change in error.changes)
    error.args = tuple(map(renamed, error.args))


@contextmanager
def as_it_lies(url: str) -> Generator[Path, None, None]:
    """Results and checkpoints of a run at a URL in a temporary folder, damaged or not, as they lay there at one moment.

    Raises:
        RunError: there is none, or it is being written all the time.
        ResourceError: it cannot be read.
    """
    there, root = file_system(url)
    for pause in (*PAUSES, 0.0):
        with tempfile.TemporaryDirectory(prefix="distilkit-") as parent:
            before = _listing(there, root, url)
            names = [name for name in before if name.startswith((CHECKPOINTS, f"{NAME}/"))]
            if not names:
                raise RunError(f"There is no run at {url}.")
            try:
                _get(there, root, Path(parent), names)
                quiet = _listing(there, root, url) == before
            except FileNotFoundError:  # it was there a moment ago
                quiet = False
            except Exception as error:
                raise _unreadable(url, error) from error
            if quiet:
                yield Path(parent)
                return
        time.sleep(pause)
    raise RunError(f"{url} was being written each time it was looked at.")


def _bring(url: str, folder: Path) -> None:
    there, root = file_system(url)
    wrong = (
        f"There are no results at {url}, but checkpoints: a run is about to send them, or its machine was lost. Then `distilkit resume "
        f"{shlex.quote(url)}` goes on with it."
    )
    for pause in (*PAUSES, 0.0):
        names = _listing(there, root, url)
        if ROOT in names:
            shutil.rmtree(folder, ignore_errors=True)  # of the try before
            try:
                _get(there, root, folder, _brought(names))
            except FileNotFoundError as error:  # as above
                wrong = _unreadable(url, error).message
            except Exception as error:
                raise _unreadable(url, error) from error
            else:
                found = damage(folder / NAME)
                if not found and _brought(_listing(there, root, url)) == _brought(names):
                    return
                wrong = f"{url}/{NAME} is damaged, or was being sent each time it was looked at{f': {found[0]}' if found else '.'}"
        elif not any(name.startswith(CHECKPOINTS) for name in names):
            raise RunError(f"There is no run at {url}.")
        time.sleep(pause)
    raise RunError(wrong)


def _brought(names: Mapping[str, Any]) -> dict[str, Any]:
    """Of the files there, spec and results."""
    return {name: told for name, told in sorted(names.items()) if name == SPEC or name.startswith(f"{NAME}/")}


def _listing(there: Any, root: str, url: str) -> dict[str, Any]:
    """What tells whether a file was written anew, of each file below a place, by its name."""
    try:
        found = tried(partial(listed, there, root))
        return {name: {key: told[key] for key in STAMPS if key in told} for name, told in found.items()}
    except Exception as error:
        raise _unreadable(url, error) from error


def _get(there: Any, root: str, folder: Path, names: Iterable[str]) -> None:
    for name in names:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        tried(partial(there.get_file, f"{root}/{name}", str(target)))


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

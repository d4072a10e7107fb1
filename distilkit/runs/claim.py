"""The claim on a folder: one run writes into it, and nothing that lies there is overwritten."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from distilkit.distiller import Distiller
from distilkit.errors import Change, RunError
from distilkit.runs.checkpoints import FOLDER, same_spec
from distilkit.storage.layout import NAME
from distilkit.storage.remote import SPEC, require_here, text_at
from distilkit.storage.store import require_writable

LOCK = ".lock"


def folder_for(distiller: Distiller, first: Path, url: str | None = None) -> Path:
    """The folder of the run of this pipeline among `first`, `first`-2 and so on, if nobody is at it; else a free one, which is made.

    Args:
        distiller: the pipeline.
        first: a folder.
        url: of the copy from which the run goes on, if it does.

    Raises:
        RunError: the run of that copy is under way in one of these folders.
    """
    folder, number = first, 2
    there = None if url is None else text_at(f"{url}/{SPEC}")
    while folder.exists():
        begun = (folder / FOLDER).exists() or not (folder / NAME).exists()  # results alone are no run that could go on
        if begun and (same_spec(distiller, folder / SPEC) or (there is not None and _says(folder / SPEC, there))):
            if not _is_locked(folder):
                return folder
            if url is not None:
                raise RunError(f"The run of {url} goes on in {folder} now: two that go on at once would write over each other's copy.")
        folder, number = first.with_name(f"{first.name}-{number}"), number + 1
    return free_folder(first)


def _says(path: Path, text: str) -> bool:
    try:
        return path.read_text(encoding="utf-8") == text
    except (OSError, ValueError):
        return False


def _is_locked(folder: Path) -> bool:
    try:
        with FileLock(folder / LOCK, timeout=0):
            return False
    except Timeout:
        return True


def free_folder(first: Path) -> Path:
    """Make the folder `first`, or `first`-2 and so on where that is taken. Of several processes at once, each gets one of its own.

    Raises:
        RunError: a folder cannot be made, or is a URL.
    """
    require_here(first)
    folder, number = first, 2
    while True:
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            folder, number = first.with_name(f"{first.name}-{number}"), number + 1
        except OSError as error:
            raise RunError(f"The folder {folder} cannot be made: {error.strerror}.", changes=[Change("out", "runs/another")]) from error
        else:
            return folder


@contextmanager
def claimed(directory: Path) -> Generator[None, None, None]:
    """Hold a folder for one run; it is made if it is not there, and taken away again if it is left empty.

    Raises:
        RunError: another process writes a run into it; it cannot be made.
    """
    require_writable(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = FileLock(directory / LOCK)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise RunError(f"Another process writes a run into {directory} now.", changes=[Change("out", f"{directory}-2")]) from error
    except OSError as error:
        raise RunError(f"The folder {directory} cannot be made: {error.strerror}.", changes=[Change("out", "runs/another")]) from error
    try:
        yield
    finally:
        (directory / LOCK).unlink(missing_ok=True)
        lock.release()
        with suppress(OSError):  # it is not empty
            directory.rmdir()

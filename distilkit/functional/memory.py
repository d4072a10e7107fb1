"""The memory of the process: keep what is freed, give it back, and measure it.

glibc hands every block of more than 32 MiB back to the system when it is freed, and the next one comes anew, a page at a time,
each cleared first. The feature maps of a ConvNet on a hundred images are such blocks: half of the time of a training step
went into that (measured with ConvNet-3 of width 128: 0.30 s a step, and 0.13 s when freed memory is kept). It is what a caching
allocator does on a GPU.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import torch

# Numbers of malloc.h. After M_MMAP_MAX = 0 every block lies in the heap; a trim threshold of -1 keeps the heap as large as it was.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
# What glibc arrives at by itself in a process that works with large blocks.
_USUAL = {_MMAP_MAX: 65536, _MMAP_THRESHOLD: 32 << 20, _TRIM_THRESHOLD: 64 << 20}
_KEPT = {_MMAP_MAX: 0, _TRIM_THRESHOLD: -1}
_SETTINGS = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")

_depth = 0


@contextmanager
def kept() -> Iterator[None]:
    """Keep freed memory for the next allocation as long as this lasts; then give it back to the system.

    It holds for the whole process, may be nested, and does nothing where the C library is not glibc, or where the environment
    sets malloc's behaviour itself (`MALLOC_MMAP_MAX_` and its like, `GLIBC_TUNABLES`).

    >>> with kept():
    ...     sum(range(10))
    45
    """
    global _depth
    library = _glibc()
    if library is None:
        yield
        return
    _depth += 1
    if _depth == 1:
        _set(library, _KEPT)
    try:
        yield
    finally:
        _depth -= 1
        if _depth == 0:
            _set(library, _USUAL)
            library.malloc_trim(0)


def give_back() -> None:
    """Give freed memory back to the system now, though `kept` goes on."""
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)


def resident() -> int:
    """Bytes of memory that the process holds now."""
    return int(psutil.Process().memory_info().rss)


def is_exhausted(error: BaseException) -> bool:
    """Whether an error says that there was no memory left.

    >>> is_exhausted(MemoryError()), is_exhausted(ValueError("no such thing"))
    (True, False)
    """
    words = ("out of memory", "not enough memory", "can't allocate memory")
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(said in str(error) for said in words)


@contextmanager
def peak() -> Iterator[list[int]]:
    """Measure the most that the process held at one time inside of the block.

    Yields:
        a list that holds that number of bytes after the block; it stays empty where the system does not tell (Linux does).
    """
    found: list[int] = []
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        yield found
        return
    yield found
    lines = Path("/proc/self/status").read_text().splitlines()
    found += [int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")]


def _set(library: Any, values: dict[int, int]) -> None:
    for parameter, value in values.items():
        library.mallopt(parameter, value)


@cache
def _glibc() -> Any:
    """The C library, if it is glibc and its behaviour is not set in the environment."""
    if any(name in os.environ for name in _SETTINGS):
        return None
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018  (only glibc has it)
    except (AttributeError, OSError, TypeError):
        return None
    return library

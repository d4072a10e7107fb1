"""This process: its memory, its CPU threads, the precision of its products, and what a piece of work costs in it.

What holds for the whole process is set here and nowhere else, and the amounts of work from which on threads and stacked networks are
worth it stand beside each other, to be compared.

Memory: glibc hands every block of more than 32 MiB back to the system when it is freed, and the next one comes anew, a page at a time,
each cleared first. The feature maps of a ConvNet on a hundred images are such blocks: half of the time of a training step
went into that (measured with ConvNet-3 of width 128: 0.30 s a step, and 0.13 s when freed memory is kept). It is what a caching
allocator does on a GPU.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import psutil
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from distilkit.errors import Change, CombinationError

Result = TypeVar("Result")

# Below this many floating point operations in one call, waking a second thread costs more than it saves: on a busy two-core
# machine, tiny networks ran up to 50 times slower on two threads (the waiting thread spins).
WORTH_THREADS = 5e7
# Below this many, starting operations takes longer than doing them, and networks side by side share the starts. Measured with four or
# eight networks of 10 images (torch 2.15; examples/benchmarks/networks.py and evaluation.py): twice as fast for an MLP of 2e5
# operations and a ConvNet of 9e5, 1.6 times for one of 3e6, even at 1.4e7, slower from 5e7 on. A GPU takes far more work to
# fill: there the limit is an estimate, not measured.
SMALL_WORK = {"cpu": 2e7, "cuda": 2e10}
STACKED = {"cpu": 200_000}  # entries of stacked parameters that stay in a CPU's cache while the optimiser goes over them

# Numbers of malloc.h. After M_MMAP_MAX = 0 every block lies in the heap; a trim threshold of -1 keeps the heap as large as it was.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
# What glibc arrives at by itself in a process that works with large blocks.
_USUAL = {_MMAP_MAX: 65536, _MMAP_THRESHOLD: 32 << 20, _TRIM_THRESHOLD: 64 << 20}
_KEPT = {_MMAP_MAX: 0, _TRIM_THRESHOLD: -1}
_SETTINGS = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")

_depth = 0
_chosen: torch.device | None = None


@contextmanager
def keep_freed_memory() -> Generator[None, None, None]:
    """Keep freed memory for the next allocation as long as this lasts; then give it back to the system.

    It holds for the whole process, may be nested, and does nothing where the C library is not glibc, or where the environment
    sets malloc's behaviour itself (`MALLOC_MMAP_MAX_` and its like, `GLIBC_TUNABLES`).

    >>> with keep_freed_memory():
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


def release_freed_memory() -> None:
    """Give freed memory back to the system now, though `keep_freed_memory` goes on."""
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)


def resident_memory() -> int:
    """Bytes of memory that the process holds now."""
    return int(psutil.Process().memory_info().rss)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there was no memory left.

    >>> is_out_of_memory(MemoryError()), is_out_of_memory(ValueError("no such thing"))
    (True, False)
    """
    words = ("out of memory", "not enough memory", "can't allocate memory")
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(said in str(error) for said in words)


@contextmanager
def peak_resident() -> Generator[list[int], None, None]:
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


def peak_of_tensors(work: Callable[[], object], device: torch.device) -> int:
    """Bytes of tensors at the peak of a piece of work, beyond what was there before.

    On a GPU the allocator says it. On a CPU it has no such count: the profiler reports every allocation and release, and the
    largest running sum is the peak. Either way it is tensors only, not the process.

    Args:
        work: is run once.
        device: where its tensors are.

    >>> peak_of_tensors(lambda: torch.ones(1000) + torch.ones(1000), torch.device("cpu")) >= 8000
    True
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # read at its first use: else it writes its own affairs to stderr
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        work()
    recorded: Any = profiler.profiler  # which has no types
    events = [event for event in recorded.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def count_operations(work: Callable[[], Result]) -> tuple[int, Result]:
    """Do a piece of work; return its floating point operations, those of products and convolutions, and what it gave.

    >>> count_operations(lambda: torch.ones(4, 4) @ torch.ones(4, 4))[0]
    128
    """
    with FlopCounterMode(display=False) as counter:
        result = work()
    return int(counter.get_total_flops()), result


def threads_for(work: Callable[[], object]) -> int:
    """Do a piece of work once, and return the number of CPU threads that as much is worth.

    >>> threads_for(lambda: torch.ones(4, 4) @ torch.ones(4, 4))
    1
    """
    with torch.no_grad():
        return 1 if count_operations(work)[0] < WORTH_THREADS else torch.get_num_threads()


@contextmanager
def thread_limit(count: int | None) -> Generator[None, None, None]:
    """Work with so many threads, or with as many as now, then go back to what was."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def named_device(name: str) -> torch.device:
    """The device of a name that torch knows; whether it is there shows when it is used.

    Raises:
        CombinationError: torch knows none of that name.

    >>> named_device("cuda:1")
    device(type='cuda', index=1)
    """
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise CombinationError(f"device = {name!r} is none that torch knows.", changes=[Change("device", "auto")]) from error


def usable_device(name: str) -> torch.device:
    """The device of a name, which can be used; a GPU where there is one, if it is "auto".

    Raises:
        CombinationError: it cannot be used here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = named_device(name)
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise CombinationError(
            f"device = {name!r} cannot be used here: {str(error).splitlines()[0]}", changes=[Change("device", "auto")]
        ) from error
    return device


@contextmanager
def large_products_on(device: torch.device) -> Generator[None, None, None]:
    """Take the large products of preparing data on this device, or where the data lies if it is no GPU; then as before."""
    global _chosen
    before, _chosen = _chosen, device
    try:
        yield
    finally:
        _chosen = before


def place_of_large_products(there: torch.device) -> torch.device:
    """Where products of data that lie there are taken: on a GPU, float64 is many times faster. The current one, where none was chosen.

    >>> with large_products_on(torch.device("cpu")):
    ...     place_of_large_products(torch.device("cpu"))
    device(type='cpu')
    """
    if _chosen is not None:
        return _chosen if _chosen.type == "cuda" else there
    return torch.device("cuda") if torch.cuda.is_available() else there


@contextmanager
def same_bits(device: torch.device, wanted: bool = True) -> Generator[None, None, None]:
    """Take only operations of a GPU that give the same bits every time, where that is wanted, and warn of those that have no such form.

    Some add numbers in the order in which they happen to come, as the gradient of an augmentation does, and cuDNN picks its routines by
    timing or takes such ones. On a CPU nothing has to be done. A process that has used cuBLAS before has to be started with
    CUBLAS_WORKSPACE_CONFIG=:4096:8 in its environment, since cuBLAS reads it once.
    """
    if device.type != "cuda" or not wanted:
        yield
        return
    missing = "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    cudnn = torch.backends.cudnn
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    flags = cudnn.deterministic, cudnn.benchmark
    torch.use_deterministic_algorithms(True, warn_only=True)
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        cudnn.deterministic, cudnn.benchmark = flags
        if missing:
            del os.environ["CUBLAS_WORKSPACE_CONFIG"]


@contextmanager
def products(precision: str, device: torch.device) -> Generator[None, None, None]:
    """Float32 means float32 on a GPU too: torch lets convolutions round to TF32 unless told otherwise."""
    if device.type != "cuda":
        yield
        return
    allowed = precision == "tf32"
    # These switches and not torch's newer `fp32_precision`: once that is set, torch.compile cannot read what it asks for.
    try:
        before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    except RuntimeError as error:
        raise CombinationError(
            f"This process has set torch's fp32_precision in a way that its allow_tf32 cannot say, and precision = {precision!r} needs to "
            f"set that ({str(error).split(',')[0]}).",
            fix='torch.backends.cuda.matmul.fp32_precision = torch.backends.cudnn.fp32_precision = "none"',
        ) from error
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


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

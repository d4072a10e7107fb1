"""Work that other processes do: numbered tasks on an executor, of this machine or of many, some of which may be lost with their worker.

An executor is anything with `submit(function, *arguments)` whose futures have `done()` and `result()`: those of `concurrent.futures`, of
Dask (`Client.get_executor()`) and of submitit. A whole number makes so many processes on this machine.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Protocol

import cloudpickle
import torch

from distilkit import process
from distilkit.errors import DistilkitError, FieldError

logger = logging.getLogger("distilkit")

ROUNDS = 3  # times that a task is given to a worker; what is lost every time is left to the caller
PAUSE = 0.1  # seconds between two looks at what is done


class Executor(Protocol):
    """Runs functions elsewhere."""

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> Any:
        """Return a future, with `done()` and `result()`."""
        ...


Workers = int | Executor | None


def share_out(
    work: Callable[[int], object], numbers: Sequence[int], workers: int | Executor, *, threads: int | None = None, seen: Callable[[], None]
) -> None:
    """Have `work(number)` done for each of the numbers, in any order; what is lost with its worker is given out again.

    Args:
        work: goes over to the workers once for each task, with all that it refers to; what it keeps, a worker keeps for the next task.
        numbers: of the tasks.
        workers: an executor, or how many processes of this machine.
        threads: CPU threads of a task; by default, as a worker has it, and of processes here their share.
        seen: is called now and then.

    Raises:
        Exception: what the work has raised.
    """
    own = isinstance(workers, int)
    if isinstance(workers, int):
        if workers < 1:
            raise FieldError("workers", workers, "a whole number, at least 1, or an executor", fix="workers=2")
        threads = threads or max(1, torch.get_num_threads() // workers)
    payload, left = cloudpickle.dumps(work), list(numbers)
    for _ in range(ROUNDS):
        with _executor(workers) as executor:
            left = _round(executor, payload, left, threads, seen)
        if not left:
            return
        logger.warning("%d units of work were lost with their workers%s", len(left), ", and are given out again" if own else "")
    logger.warning("%d units of work were lost with their workers %d times, and are done here", len(left), ROUNDS)


def _round(executor: Executor, payload: bytes, numbers: Sequence[int], threads: int | None, seen: Callable[[], None]) -> list[int]:
    """Give the tasks out once; those that were lost."""
    waiting: dict[int, Any] = {}
    lost: list[int] = []
    try:
        for number in numbers:
            try:
                waiting[number] = executor.submit(_take, payload, number, threads)
            except Exception:  # an executor whose workers are gone takes no more, and says so in its own words
                lost.append(number)
        while waiting:
            for number in [number for number, future in waiting.items() if future.done()]:
                try:
                    failed = waiting.pop(number).result()
                except Exception as error:  # of the executor: what the work raises comes as a result
                    logger.debug("unit %d was lost: %r", number, error)
                    lost.append(number)
                    continue
                if failed is not None:
                    raise failed
            seen()
            if waiting:
                time.sleep(PAUSE)
    finally:
        for future in waiting.values():
            if hasattr(future, "cancel"):
                future.cancel()
    return lost


@contextmanager
def _executor(workers: int | Executor) -> Generator[Executor, None, None]:
    if not isinstance(workers, int):
        yield workers
        return
    import loky

    pool = loky.ProcessPoolExecutor(workers)
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, kill_workers=True)  # whatever they are at: it is done, or nobody waits for it any more


def _take(payload: bytes, number: int, threads: int | None) -> Exception | None:
    """Do one task, in a worker; what it raised, in words that every process knows."""
    try:
        with process.thread_limit(threads):
            _revived(payload)(number)
    except DistilkitError as error:
        return error
    except Exception as error:
        return DistilkitError(f"A worker met {type(error).__name__}: {error}")
    return None


@lru_cache(maxsize=2)
def _revived(payload: bytes) -> Callable[[int], object]:
    """The work, made once in a worker: what it loads and builds, such as data, serves its next task."""
    work: Callable[[int], object] = cloudpickle.loads(payload)
    return work

"""Work that other processes do: numbered tasks on an executor, of this machine or of many, some of which may be lost with their worker.

An executor is anything with `submit(function, *arguments)` whose futures have `done()` and `result()`: those of `concurrent.futures`, of
Dask (`Client.get_executor()`) and of submitit. A whole number makes so many processes on this machine. The work itself waits in a file that
all of them reach, so that a task is no more than its number.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from multiprocessing import parent_process
from pathlib import Path
from typing import Any, Protocol

import cloudpickle
import torch

from distilkit import process
from distilkit.errors import DistilkitError, FieldError, RunError, counted

logger = logging.getLogger("distilkit")

ROUNDS = 3  # times in a row that all the tasks which are given out are lost; then they are left to the caller
PAUSE = 0.1  # seconds between two looks at what is done

# The tasks of one process take turns, where an executor has threads: they share what is loaded, and the programs that are built.
_turn = threading.Lock()


class Executor(Protocol):
    """Runs functions elsewhere."""

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> Any:
        """Return a future, with `done()` and `result()`."""
        ...


Workers = int | Executor | None


def share_out(
    work: Callable[[int], object],
    numbers: Sequence[int],
    workers: int | Executor,
    *,
    folder: Path,
    threads: int | None = None,
    seen: Callable[[int], None],
) -> dict[int, Any]:
    """Have `work(number)` done for each of the numbers, in any order; what is lost with its worker is given out again.

    Args:
        work: is read by each worker once, with all that it refers to; what it keeps, a worker keeps for the next task. What it returns
            can be pickled.
        numbers: of the tasks.
        workers: an executor, or how many processes of this machine.
        folder: one that all workers reach, for the work.
        threads: CPU threads of a task; by default, as a worker has it, and of processes here their share.
        seen: is called now and then, with how many are done.

    Returns:
        what the work has given, by number; without those that were lost again and again, which are left to the caller.

    Raises:
        FieldError: `workers` is neither a number nor an executor.
        Exception: what the work has raised.
    """
    own = isinstance(workers, int)
    if isinstance(workers, bool) or (own and workers < 1) or not (own or callable(getattr(workers, "submit", None))):  # type: ignore[operator]
        raise FieldError("workers", workers, "a whole number, at least 1, or an executor (an object with submit)", fix="workers=2")
    if isinstance(workers, int):
        threads = threads or max(1, torch.get_num_threads() // workers)
    content, found = cloudpickle.dumps(work), dict[int, Any]()
    digest = hashlib.sha256(content).hexdigest()
    place, left, fruitless = folder / f"{digest[:16]}.work", list(numbers), 0
    place.write_bytes(content)
    try:
        while left and fruitless < ROUNDS:
            before = len(left)
            with _executor(workers) as executor:
                left = _round(executor, (str(place), digest, threads), left, found, seen)
            fruitless = fruitless + 1 if len(left) == before else 0
            if left:
                logger.warning("%s lost with their workers", counted(len(left), "unit of work was", "units of work were"))
    finally:
        place.unlink(missing_ok=True)
    if left:
        logger.warning("what was lost %d times in a row is done here: %s", ROUNDS, counted(len(left), "unit of work", "units of work"))
    return found


def _round(
    executor: Executor, work: tuple[str, str, int | None], numbers: Sequence[int], found: dict[int, Any], seen: Callable[[int], None]
) -> list[int]:
    """Give the tasks out once, and take what is found; those that were lost."""
    waiting: dict[int, Any] = {}
    lost: list[int] = []
    together: Callable[[], Any] = getattr(executor, "batch", nullcontext)  # of submitit, which makes one array of SLURM of them
    try:
        with together():
            for number in numbers:
                try:
                    waiting[number] = executor.submit(_take, *work, number)
                except Exception as error:  # an executor whose workers are gone takes no more, and says so in its own words
                    logger.debug("unit %d was not taken: %r", number, error)
                    lost.append(number)
        while waiting:
            for number in [number for number, future in waiting.items() if future.done()]:
                try:
                    failed, result = waiting.pop(number).result()
                except Exception as error:  # of the executor: what the work raises comes as a result
                    logger.debug("unit %d was lost: %r", number, error)
                    lost.append(number)
                    continue
                if failed is not None:
                    raise failed
                found[number] = result
            seen(len(found))
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


def _take(place: str, digest: str, threads: int | None, number: int) -> tuple[Exception | None, Any]:
    """Do one task, in a worker: what it raised, in words that every process knows, and what it gave."""
    try:
        with _turn, process.thread_limit(threads):
            return None, _revived(place, digest)(number)
    except DistilkitError as error:
        return error, None
    except KeyboardInterrupt as error:
        if parent_process() is None:  # no worker, but where somebody has pressed Ctrl-C
            raise
        raise RuntimeError("The worker was told to end.") from error  # so that what it was at is given out again
    except Exception as error:
        return DistilkitError(f"A worker met {type(error).__name__}: {error}"), None


@lru_cache(maxsize=1)
def _revived(place: str, digest: str) -> Callable[[int], object]:
    """The work, made once in a worker: what it loads and builds, such as data, serves its next task."""
    try:
        content = Path(place).read_bytes()
    except OSError as error:
        raise RunError(f"A worker cannot read {place}: its folder has to be at the same path for all.") from error
    if hashlib.sha256(content).hexdigest() != digest:
        raise RunError(f"{place} is not what was given out.")
    work: Callable[[int], object] = cloudpickle.loads(content)
    return work

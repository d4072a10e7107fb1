"""How many CPU threads the work is worth."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch.utils.flop_counter import FlopCounterMode

# Below this many floating point operations in one call, waking a second thread costs more than it saves: on a busy two-core
# machine, tiny networks ran up to 50 times slower on two threads (the waiting thread spins).
SMALL_WORK = 5e7


def suggest(work: Callable[[], object]) -> int:
    """Run a piece of work once, count its floating point operations, and return the number of threads for it.

    >>> suggest(lambda: torch.ones(4, 4) @ torch.ones(4, 4))
    1
    """
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        work()
    return 1 if counter.get_total_flops() < SMALL_WORK else torch.get_num_threads()


@contextmanager
def use(count: int) -> Iterator[None]:
    """Work with so many threads, then go back to what was."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)

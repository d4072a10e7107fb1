"""What is made ahead: the next outer step's random numbers, while a GPU is still at this one.

Every random number of distilkit is a function of a seed and a name (`Stream`), so that it is the same whenever it is made, and what was
made in vain is thrown away. Nothing of this is in the state of a run, and one that goes on from a checkpoint draws the same.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

Result = TypeVar("Result")

DEVICES = ("cuda",)  # that work while the host goes on; a CPU would only do the same work earlier


class Ahead:
    """Results of work, made before they are asked for, by names that say all that they depend on. Each is given once.

    >>> ahead = Ahead()
    >>> ahead.make(("square", 3), lambda: 9)
    >>> ahead.take(("square", 3), lambda: 3 * 3), ahead.take(("square", 4), lambda: 4 * 4)
    (9, 16)
    """

    def __init__(self) -> None:
        self._made: dict[Hashable, Any] = {}

    def make(self, name: Hashable, work: Callable[[], object]) -> None:
        """Do some work now."""
        self._made[name] = work()

    def take(self, name: Hashable, work: Callable[[], Result]) -> Result:
        """What was made under a name; or do the work."""
        return self._made.pop(name) if name in self._made else work()

    def forget(self) -> None:
        """Throw away what nobody has taken."""
        self._made.clear()

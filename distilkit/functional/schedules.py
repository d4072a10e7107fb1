"""Schedules of the outer learning rate: a factor for every outer step."""

from __future__ import annotations

import math
from typing import Protocol

from distilkit import fields


class Schedule(Protocol):
    """What a schedule offers."""

    def factor(self, step: int, steps: int, /) -> float:
        """Factor on the learning rate at `step`, from 0, of `steps`."""
        ...


@fields.component
class Constant:
    """The same learning rate throughout, as in the paper.

    >>> Constant().factor(3, 10)
    1.0
    """

    def factor(self, step: int, steps: int) -> float:
        """Factor on the learning rate at `step` of `steps`."""
        return 1.0


@fields.component
class Cosine:
    """Half a cosine from 1 to `final`.

    Args:
        final: factor that the last step comes close to.

    >>> Cosine().factor(0, 10), round(Cosine().factor(5, 10), 3)
    (1.0, 0.5)
    """

    final: float = fields.number(default=0.0, least=0, most=1)

    def factor(self, step: int, steps: int) -> float:
        """Factor on the learning rate at `step` of `steps`."""
        progress = min(step / steps, 1.0)
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * progress)) / 2

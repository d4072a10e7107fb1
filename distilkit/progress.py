"""Progress: what long work tells of how it goes on.

`distilkit.display` shows it on a terminal and in a notebook. Any object with the methods does in its place; `dk.Silent()` shows nothing.

    class Printed(dk.Silent):
        def phase(self, words):
            print(words)

    dk.run(distiller, "runs/x", progress=Printed())
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Protocol


class Progress(Protocol):
    """Is told how work goes on. It cannot change the work, but what it raises ends it."""

    def phase(self, words: str, /) -> None:
        """A new part of the work begins: "distilling", "testing random real"."""
        ...

    def advance(self, done: int, total: int, /) -> None:
        """So many of all units of this part are done: outer steps of a run, units of a study."""
        ...

    def value(self, name: str, numbers: float | Sequence[float], /) -> None:
        """What came out: a number that changes with every unit, or one for each network, such as accuracies."""
        ...


def speaks() -> bool:
    """Whether this process is the one that tells how things go: the only one, or the first of those that torchrun has started."""
    return "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("RANK", "0") == "0"


class Silent:
    """Progress that shows nothing."""

    def phase(self, words: str, /) -> None:
        """Nothing."""

    def advance(self, done: int, total: int, /) -> None:
        """Nothing."""

    def value(self, name: str, numbers: float | Sequence[float], /) -> None:
        """Nothing."""


SILENT = Silent()


class Within:
    """Progress of a piece of larger work: its parts carry the name of the piece."""

    def __init__(self, progress: Progress, name: str) -> None:
        self._progress, self._name = progress, name

    def phase(self, words: str, /) -> None:
        """As NAME: words."""
        self._progress.phase(f"{self._name}: {words}")

    def advance(self, done: int, total: int, /) -> None:
        """Passed on."""
        self._progress.advance(done, total)

    def value(self, name: str, numbers: float | Sequence[float], /) -> None:
        """Passed on."""
        self._progress.value(name, numbers)


def duration(seconds: float) -> str:
    """A time in words.

    >>> duration(75), duration(3600), duration(10_000)
    ('75 s', '60 min', '2.8 h')
    """
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"

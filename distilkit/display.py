"""How long work goes on, on a terminal or in a notebook; plain lines where nobody looks."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from rich.console import Console as RichConsole
from rich.progress import (
    BarColumn,
    Progress as Bar,
    ProgressColumn,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.segment import Segment

from distilkit.errors import visible
from distilkit.progress import SILENT, Progress
from distilkit.storage.spread import plus_minus


class Console(RichConsole):
    """rich's console, where nobody who listens any more ends the work: a closed pipe, or a terminal that is gone."""

    def on_broken_pipe(self) -> None:
        """What is printed from now on goes nowhere."""
        self.quiet = True
        if not self.stderr and sys.stdout is not None:  # which is shared with all that a program of somebody else's has to say
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def render(self, renderable: Any, options: Any = None) -> Iterable[Segment]:
        """As rich does it, but what came from a file, such as a title, moves no cursor."""
        for part in super().render(renderable, options):
            yield part if part.control else part._replace(text=visible(part.text))

    def print(self, *objects: Any, **how: Any) -> None:
        """As rich does it."""
        try:
            super().print(*objects, **how)
        except OSError:
            self.on_broken_pipe()


@contextmanager
def shown(progress: Progress | None) -> Generator[Progress, None, None]:
    """What is told how work goes on: what was given, or else a display where somebody looks, on a terminal or in a notebook."""
    if progress is not None:
        yield progress
        return
    console = Console(stderr=True)
    if not (console.file.isatty() or console.is_jupyter):
        yield SILENT
        return
    with Display(console) as display:
        yield display


class Display:
    """Shows `distilkit.Progress` with rich: one line for each part of the work, with its numbers and the time left.

    Where nobody looks, on a pipe, it prints plain lines instead: the parts as they begin, and every tenth of one.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        columns: list[ProgressColumn] = [_text("{task.description}"), _text("{task.fields[count]}"), _text("{task.fields[numbers]}")]
        if console.width >= 110:  # 80 columns hold the numbers and the time left; the rest is for wider ones
            columns = [SpinnerColumn(), columns[0], BarColumn(bar_width=20), *columns[1:], TimeElapsedColumn()]
        # A terminal of the simplest kind cannot go back on a line, and a notebook moves widgets only.
        self._lively = console.is_interactive or (console.is_jupyter and find_spec("ipywidgets") is not None)
        self._progress = Bar(
            *columns,
            _text("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not self._lively,
            redirect_stdout=getattr(sys.stdout, "isatty", bool)(),  # or what a program prints into a file would come to the terminal
        )
        self._numbers: dict[str, str] = {}
        self._words, self._count = "", ""
        self._counted, self._first, self._tenth, self._began = False, 0, 0, 0.0
        self._task = self._begin("starting")

    def __enter__(self) -> Display:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        self._progress.stop()

    def phase(self, words: str) -> None:
        """Begin a line; that of the part before stays where it counted something."""
        self._end()
        self._task = self._begin(words)
        self._say(words)

    def advance(self, done: int, total: int) -> None:
        """Show how much is done."""
        if not self._counted:  # what earlier sessions and others have done says nothing about the speed
            self._counted, self._first = True, done - 1
        self._count, numbers = f"{done} of {total}", self._shown()
        self._progress.update(self._task, completed=done, total=total, count=f"{done}/{total}", numbers=numbers)
        if total and 10 * done // total > self._tenth:
            self._tenth = 10 * done // total
            left = (time.monotonic() - self._began) / max(1, done - self._first) * (total - done)
            self._say(f"{self._words}, {self._count}{f': {numbers}' if numbers else ''}, about {left:.0f} s left")

    def value(self, name: str, numbers: float | Sequence[float]) -> None:
        """Show a number beside the count; of several, one for each network, the mean, and on a pipe a line at once."""
        if isinstance(numbers, Sequence):
            words = plus_minus(numbers, 3)
            self._say(f"{self._words}{f', {self._count}' if self._count else ''}: {name} {words}")
            self._numbers[_SHORT.get(name, name)] = words.split()[0]
            self._progress.update(self._task, numbers=self._shown())
        else:
            self._numbers[name] = f"{numbers:.1e}" if name.startswith("|") else f"{numbers:.3f}"

    def _begin(self, words: str) -> TaskID:
        self._numbers, self._words, self._count = {}, words, ""
        self._counted, self._first, self._tenth, self._began = False, 0, 0, time.monotonic()
        return self._progress.add_task(words, total=None, count="", numbers="")

    def _end(self) -> None:
        """Close the line of a part: one that counted nothing goes."""
        if self._counted:
            self._progress.stop_task(self._task)
        else:
            self._progress.remove_task(self._task)

    def _shown(self) -> str:
        return " ".join(f"{name} {words}" for name, words in self._numbers.items())

    def _say(self, words: str) -> None:
        if not self._lively:
            plain_line(self._console, words)


def plain_line(console: Console, words: str) -> None:
    """Print words as they are."""
    console.print(words, markup=False, highlight=False, soft_wrap=True)


_SHORT = {"validation accuracy": "val"}  # the names of numbers that a narrow line has no room for


def _text(words: str) -> TextColumn:
    return TextColumn(words, markup=False)

"""The console: the progress of runs and studies, and the lines that the library logs; plain lines where nobody looks."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from distilkit.errors import RunError
from distilkit.storage.spread import plus_minus

if TYPE_CHECKING:
    from distilkit.distiller import StepInfo


class RunDisplay:
    """Shows a run as a rich progress line; see `distilkit.runs.run.Observer`. On a pipe it prints plain lines instead.

    Args:
        console: where to show it.
        steps: outer steps in all.
    """

    def __init__(self, console: Console, steps: int) -> None:
        self._console = console
        self._steps = steps
        self._validation = ""
        self._began = time.monotonic()
        columns = [TextColumn("{task.description}", markup=False), TextColumn("{task.fields[count]}"), TextColumn("{task.fields[numbers]}")]
        if console.width >= 110:  # 80 columns hold the numbers and the time left; the rest is for wider ones
            columns = [SpinnerColumn(), columns[0], BarColumn(bar_width=20), *columns[1:], TimeElapsedColumn()]  # type: ignore[list-item]
        self._progress = Progress(*columns, TextColumn("left"), TimeRemainingColumn(), console=console, disable=not console.is_terminal)
        self._task = self._progress.add_task("starting", total=steps, count="", numbers="")
        self._distilling = True

    def __enter__(self) -> RunDisplay:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def phase(self, words: str) -> None:
        """Show what is being done: the outer loop has a line with its time left, what comes after it a line of its own each."""
        self._say(words)
        if words.startswith("testing"):
            self._distilling = False
            self._task = self._progress.add_task(words, total=None, count="", numbers="")
        elif self._distilling:
            self._progress.update(self._task, description=words)

    def stepped(self, info: StepInfo) -> None:
        """Show the numbers of an outer step; on a pipe, of every tenth part of the run."""
        done = info.outer_step + 1
        numbers = f"loss {info.outer_loss:.3f} |g| {info.meta_gradient_norm:.1e}{self._validation}"
        if done % max(1, self._steps // 10) == 0:
            left = (time.monotonic() - self._began) / done * (self._steps - done)
            self._say(f"outer step {done} of {self._steps}: {numbers}, about {left:.0f} s left")
        self._progress.update(self._task, completed=done, count=f"{done}/{self._steps}", numbers=numbers)

    def validated(self, outer_step: int, accuracy: Any) -> None:
        """Show the validation accuracy."""
        self._validation = f" val {plus_minus(accuracy, 3).split()[0]}"
        self._say(f"outer step {outer_step}: validation accuracy {plus_minus(accuracy, 3)}")

    def _say(self, words: str) -> None:
        if not self._console.is_terminal:
            self._console.print(words, markup=False, highlight=False)


@contextmanager
def log_lines(console: Console) -> Iterator[None]:
    """Print what the library says on its logger, such as how steps are run and what is compiled, as lines of the console."""
    logger = logging.getLogger("distilkit")
    handler = _Lines(console)
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


class _Lines(logging.Handler):
    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        self._console.print(record.getMessage(), markup=False, highlight=False, soft_wrap=True)


class StudyDisplay:
    """Shows the parts of a study, each with a progress line; on a pipe, a line a tenth."""

    def __init__(self, console: Console, words: str = "") -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("starting", total=None)
        self._tenth = 0
        if words:
            self.phase(words)

    def __enter__(self) -> StudyDisplay:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def phase(self, words: str) -> None:
        """Show what is being done."""
        self._progress.remove_task(self._task)
        self._task, self._tenth = self._progress.add_task(words, total=None), 0
        if not self._console.is_terminal:
            self._console.print(words)

    def unit(self, done: int, total: int) -> None:
        """Show how much of it is done."""
        self._progress.update(self._task, completed=done, total=total)
        if not self._console.is_terminal and 10 * done // total > self._tenth:
            self._tenth = 10 * done // total
            self._console.print(f"{done} of {total}")


def wide_console() -> Console:
    """A console whose tables are not squeezed where nobody looks: on a pipe rich would take 80 columns."""
    return Console(highlight=False, soft_wrap=True, width=None if Console().is_terminal else 140)


@contextmanager
def stoppable(out: Path) -> Iterator[None]:
    """Ctrl-C in a study ends with words and not with a traceback."""
    try:
        yield
    except KeyboardInterrupt:
        raise RunError(f"Stopped. What was done until then is in {out}; the same command goes on from there.") from None


def show_figures(console: Console, out: Path, *figures: Path) -> None:
    """Say where the figures and the store of a study are."""
    for figure in figures:
        console.print(f"Look at   {figure}")
    console.print(f"Open it   xarray.open_datatree({str(out / 'results.zarr')!r})")

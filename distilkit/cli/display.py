"""The console of the commands: the lines that the library logs, what to type instead, and where results are."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from distilkit.display import Console, plain_line
from distilkit.errors import OPTIONS, Change, StoppedError
from distilkit.progress import speaks
from distilkit.spec.text import to_toml


def option(change: Change) -> str:
    """A change as an option of the command.

    >>> print(option(Change("images.per_class", 3)))
    --set images.per_class=3
    >>> print(option(Change("label_space", "logit")))
    --label-space logit
    >>> print(option(Change("budgets", [1, 2])))
    --budgets 1,2
    >>> print(option(Change("label_space", None)))
    the same without --label-space
    """
    if change.value is None:
        return f"the same without --{change.option or change.name.replace('_', '-')}"
    if change.name in ("out", "mirror", *OPTIONS):
        value = ",".join(map(str, change.value)) if isinstance(change.value, list) else str(change.value)
        return f"--{change.option or change.name.replace('_', '-')} {shlex.quote(value)}"
    value = change.value if isinstance(change.value, str) else to_toml(change.value)
    return f"--set {shlex.quote(f'{change.name}={value}')}"


@contextmanager
def log_lines(console: Console, level: int = logging.INFO) -> Generator[None, None, None]:
    """Print what the library says on its logger, such as what is compiled, as lines of the console; of several processes one does."""
    logger = logging.getLogger("distilkit")
    handler = _Lines(console) if speaks() else logging.NullHandler()
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(level)
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
        plain_line(self._console, record.getMessage())


@contextmanager
def stoppable(out: Path) -> Generator[None, None, None]:
    """Ctrl-C in a study ends with words and not with a traceback."""
    try:
        yield
    except KeyboardInterrupt:
        raise StoppedError(f"Stopped. What was done until then is in {out}; the same command goes on from there.") from None


def places(folder: Path, *figures: Path) -> list[str]:
    """Lines that say where the figures and the store of a run or a study are."""
    return [*(f"Look at   {figure}" for figure in figures), f"Open it   xarray.open_datatree({str(folder / 'results.zarr')!r})"]

"""How a command says what it has to say: to people, to a script (`--quiet`), or as one JSON document (`--json`)."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distilkit.cli.options import say
from distilkit.progress import SILENT, Progress, speaks

if TYPE_CHECKING:
    from distilkit.display import Console

WIDE = 200  # columns of a table where nobody looks: on a pipe rich would take 80, and squeeze it


class Output:
    """Where a command tells how it goes on, and the form in which it answers.

    Args:
        quiet: tell nothing of how it goes on but warnings, and of what came out only where it lies.
        as_json: answer with one JSON document, which is all that the output gets; the rest goes to the errors.
    """

    def __init__(self, quiet: bool = False, as_json: bool = False) -> None:
        self.quiet, self.as_json = quiet, as_json

    @cached_property
    def console(self) -> Console:
        """What is for people: the output, the errors beside a JSON document, nothing when quiet. Text is taken as it is."""
        from distilkit.display import Console

        width = None if Console(stderr=self.as_json).is_terminal else WIDE
        silent = self.quiet or not speaks()
        return Console(stderr=self.as_json, quiet=silent, width=width, highlight=False, markup=False, emoji=False, soft_wrap=True)

    @contextmanager
    def progress(self, *, logged: bool = False) -> Generator[Progress, None, None]:
        """What work is given to tell how it goes on; `logged`: beside it, what the library logs."""
        from distilkit.cli.display import log_lines
        from distilkit.display import Console, Display

        with ExitStack() as held:
            if logged and self.quiet:  # a warning is no progress
                held.enter_context(log_lines(Console(stderr=True), logging.WARNING))
            elif logged:
                held.enter_context(log_lines(self.console))
            yield SILENT if self.quiet else held.enter_context(Display(self.console))

    def answer(self, found: Mapping[str, Any], *shown: Any, written: Path | None = None) -> None:
        """Say what came out, once, at the end.

        Args:
            found: for a program: what `json_value` takes.
            shown: for people: lines, and what rich shows.
            written: for a script: the file or folder that was written.
        """
        if not speaks():
            return
        if self.as_json:
            say(json.dumps(json_value(found), indent=1))
        elif self.quiet:
            if written is not None:
                say(str(written))
        else:
            for one in shown:
                self.console.print(one)


def json_value(value: Any) -> Any:
    """A value as JSON has it: arrays as lists, paths as text, and a number that is not finite, which JSON has not, as None.

    >>> json_value({"accuracy": (0.5, float("nan")), "folder": Path("runs") / "x"})
    {'accuracy': [0.5, None], 'folder': 'runs/x'}
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): json_value(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_value(one) for one in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else json_value(value.tolist()) if hasattr(value, "tolist") else str(value)

"""What is wrong with a spec: one `Problem` for each fault, and one `SpecError` that holds all of them."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from distilkit.errors import DistilkitError, counted
from distilkit.spec.text import to_toml

_LONGEST = 60


@attrs.frozen
class Problem:
    """One fault in a spec.

    Args:
        path: where it is, such as `learner.optimizer.lr`; "" for the top of the spec.
        given: the plain value that the spec has there; None when it has none (TOML cannot write None).
        allowed: what may stand there, in words.
        fix: text to paste instead, when there is one.
        nearest: the known name (or path) closest to an unknown one.
        why: the fault as a full sentence, where "it takes <allowed>" does not say it.
    """

    path: str
    given: object
    allowed: str
    fix: str | None = None
    nearest: str | None = None
    why: str = ""

    @property
    def message(self) -> str:
        """The fault in words, without the fix.

        >>> Problem("learner.optimizer.lr", "fast", "a number, above 0").message
        'learner.optimizer.lr = "fast" cannot be: it takes a number, above 0.'
        """
        if self.why:
            said = self.why
        elif self.given is None:
            said = f"{self.path} is missing: it takes {self.allowed}."
        else:
            said = f"{self.path} = {shorten(self.given)} cannot be: it takes {self.allowed}."
        return f"{said} Did you mean {self.nearest}?" if self.nearest else said


class SpecError(DistilkitError):
    """A spec cannot be used. All its faults are reported at once.

    Args:
        problems: every fault that was found, in the order of the spec's fields.
        source: what was read, for the headline, such as the file's name.
    """

    def __init__(self, problems: Sequence[Problem], source: str = "the spec") -> None:
        self.problems = tuple(problems)
        self.source = source
        count = counted(len(self.problems), "problem")
        super().__init__("\n".join([f"{source} cannot be used, it has {count}:", *map(_entry, self.problems)]))


def shorten(value: object) -> str:
    """Return a value as TOML writes it, cut where it gets too long for a sentence."""
    written = to_toml(value)
    return written if len(written) <= _LONGEST else written[: _LONGEST - 3] + "..."


def _entry(problem: Problem) -> str:
    fix = f"\n    Try: {_indent(problem.fix, 9)}" if problem.fix else ""
    return f"  - {_indent(problem.message, 4)}{fix}"


def _indent(text: str, columns: int) -> str:
    return text.replace("\n", "\n" + " " * columns)

"""Errors for people: what was given, why it cannot be, and what to type instead.

Everything that distilkit raises on purpose is a `DistilkitError`. The command line prints these without a traceback and
leaves with their exit code; any other exception is a bug of ours and keeps its traceback.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


# Arguments of functions that commands have as options: what is `label_space="logit"` in Python is `--label-space logit` there.
OPTIONS = ("which", "format", "label_space", "preprocessing", "budgets", "strategy", "outer_steps")


@dataclass(frozen=True)
class Change:
    """What to change: Python and the command line have words of their own for it.

    Args:
        name: a value of the spec by its dotted name, such as "learner.optimizer.lr"; "out", where the results go; or an argument of
            functions that commands have as an option, `OPTIONS`.
        value: what it should be; a component is a table with its kind; None where it should be left out.
        option: what the command calls an argument, where that is another word.

    >>> str(Change("learner.optimizer.lr", 0.001)), str(Change("unroller.adjoint", {"kind": "ReplayAdjoint", "keep_last": 6}))
    ('lr=0.001  # of learner.optimizer', 'adjoint=dk.ReplayAdjoint(keep_last=6)  # of unroller')
    """

    name: str
    value: Any
    option: str | None = None

    def __str__(self) -> str:
        """In Python."""
        if self.name == "out":
            return f'"{self.value}"  # in its place'
        value = f'"{self.value}"' if isinstance(self.value, str) and not set(self.value) & set('"\\') else repr(self.value)
        if isinstance(self.value, Mapping):
            options = ", ".join(f"{key}={one!r}" for key, one in self.value.items() if key != "kind")
            value = f"dk.{self.value['kind']}({options})"
        part, _, last = self.name.rpartition(".")
        return f"{last}={value}  # of {part}" if part else f"{last}={value}"


class DistilkitError(Exception):
    """Base of all errors that distilkit raises on purpose.

    Args:
        message: one or more sentences: what was given and why it cannot be.
        fix: a line to type or paste instead, when there is one that is the same wherever it is typed.
        changes: one or more values to change instead, any of which helps; the command line tells them as its options.

    Attributes:
        exit_code: with which the command ends.
    """

    exit_code = 2

    def __init__(self, message: str, *, fix: str | None = None, changes: Sequence[Change] = ()) -> None:
        assert not (fix and changes), "one or the other"
        self.message = message
        self.changes = tuple(changes)
        self.fix = "\n  Or:  ".join(map(str, changes)) if changes else fix
        super().__init__(f"{message}\n  Try: {self.fix}" if self.fix else message)

    def __reduce__(self) -> tuple[Any, ...]:
        """As its message and attributes, whatever its class is made of: an error crosses processes as it is."""
        return _made_again, (type(self), self.args, self.__dict__)


def _made_again(cls: type[DistilkitError], args: tuple[Any, ...], attributes: dict[str, Any]) -> DistilkitError:
    error = cls.__new__(cls, *args)
    error.__dict__.update(attributes)
    return error


class FieldError(DistilkitError, ValueError):
    """One field of a component has a value that it cannot have.

    Args:
        field: name of the field, such as `width`.
        given: the value as it was given.
        allowed: what the field takes, in words, such as "a whole number, at least 1".
        fix: a line to paste instead, when there is one.
        changes: as of any error.
    """

    def __init__(self, field: str, given: object, allowed: str, *, fix: str | None = None, changes: Sequence[Change] = ()) -> None:
        self.field = field
        self.given = given
        self.allowed = allowed
        super().__init__(f"{field} = {given!r} cannot be: it takes {allowed}.", fix=fix, changes=changes)


class CombinationError(DistilkitError, ValueError):
    """Values that are each fine do not go together. The message names both sides and the way out."""


class MissingDataError(DistilkitError):
    """A dataset is not where it was looked for. The message says which files, where, and how to get them."""


class GradientError(DistilkitError):
    """A meta-gradient cannot be taken, or came out as something that must not be used (NaN, infinite, silently zero).

    Attributes:
        can_pass: whether another window may do, since only the numbers of this one went wrong.
    """

    exit_code = 3
    can_pass = False


class RunError(DistilkitError):
    """A run cannot start or go on: its folder is taken, its store cannot be read, or it belongs to another spec."""


class ResourceError(RunError):
    """Disk or memory is short, or does not answer. What was written before is whole."""

    exit_code = 4


class StoppedError(RunError):
    """Something was stopped before its end, and can go on."""

    exit_code = 130


def visible(text: str) -> str:
    r"""Text in which control characters, but for ends of lines and tabs, are written out: a terminal would do what they say.

    So are bytes of file names that are no UTF-8, which could not be printed.

    >>> print(visible("a" + chr(27) + "[2Jb"))
    a\x1b[2Jb
    """
    return _CONTROLS.sub(lambda found: repr(found[0])[1:-1], text)


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that is closest to `name`, or None when none is close (upper and lower case are one).

    >>> nearest("convnet", ["MLP", "ConvNet"])
    'ConvNet'
    """
    by_lower = {k.lower(): k for k in known}
    match = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[match[0]] if match else None


def counted(count: object, one: str, more: str | None = None) -> str:
    """A number of things: `more` is the word for several, that of one with an s when left out.

    >>> counted(1, "network"), counted(2, "network"), counted(2, "class", "classes")
    ('1 network', '2 networks', '2 classes')
    """
    return f"{count} {one if str(count) == '1' else more or f'{one}s'}"


def listing(names: Sequence[object], last: str = "or") -> str:
    """Join names for a sentence: `a, b or c`.

    >>> listing(["a", "b", "c"]), listing(["a", "b"], "and")
    ('a, b or c', 'a and b')
    """
    words = [str(n) for n in names]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}"

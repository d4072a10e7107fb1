"""Errors for people: what was given, why it cannot be, and what to type instead.

Everything that distilkit raises on purpose is a `DistilkitError`. The command line prints these without a traceback and
leaves with exit code 2; any other exception is a bug of ours and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class DistilkitError(Exception):
    """Base of all errors that distilkit raises on purpose.

    Args:
        message: one or more sentences: what was given and why it cannot be.
        fix: a line to type or paste instead, when there is one.
    """

    def __init__(self, message: str, *, fix: str | None = None) -> None:
        self.message = message
        self.fix = fix
        super().__init__(f"{message}\n  Try: {fix}" if fix else message)


class FieldError(DistilkitError, ValueError):
    """One field of a component has a value that it cannot have.

    Args:
        field: name of the field, such as `width`.
        given: the value as it was given.
        allowed: what the field takes, in words, such as "a whole number, at least 1".
        fix: a line to paste instead, when there is one.
    """

    def __init__(self, field: str, given: object, allowed: str, *, fix: str | None = None) -> None:
        self.field = field
        self.given = given
        self.allowed = allowed
        super().__init__(f"{field} = {given!r} cannot be: it takes {allowed}.", fix=fix)


class CombinationError(DistilkitError, ValueError):
    """Values that are each fine do not go together. The message names both sides and the way out."""


class MissingDataError(DistilkitError):
    """A dataset is not where it was looked for. The message says which files, where, and how to get them."""


class GradientError(DistilkitError):
    """A meta-gradient cannot be taken, or came out as something that must not be used (NaN, infinite, silently zero)."""


class RunError(DistilkitError):
    """A run cannot start or go on: its folder is taken, its store cannot be read, or it belongs to another spec."""


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that is closest to `name`, or None when none is close (upper and lower case are one).

    >>> nearest("convnet", ["MLP", "ConvNet"])
    'ConvNet'
    """
    by_lower = {k.lower(): k for k in known}
    match = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[match[0]] if match else None


def listing(names: Sequence[object], last: str = "or") -> str:
    """Join names for a sentence: `a, b or c`.

    >>> listing(["a", "b", "c"]), listing(["a", "b"], "and")
    ('a, b or c', 'a and b')
    """
    words = [str(n) for n in names]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}"

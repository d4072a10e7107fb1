"""TOML text and plain Python values: parsing with errors that show the line, and writing single values for messages."""

from __future__ import annotations

import datetime
import re
import shlex
from typing import Any

import tomlkit
import tomlkit.exceptions
from tomlkit.exceptions import ParseError, TOMLKitError

_BARE_WORD = re.compile(r"^\s*(?P<key>[\w.-]+)\s*=\s*(?P<word>[A-Za-z_][\w./:-]*)\s*(#.*)?$")
_TWICE = ("already exists", "Redefinition")


class TomlSyntaxError(ValueError):
    """The text is not TOML. `line` and `column` count from 1; `text` is that line, `reason` a sentence, `fix` a line to paste."""

    def __init__(self, reason: str, line: int, column: int, text: str, fix: str | None) -> None:
        self.reason, self.line, self.column, self.text, self.fix = reason, line, column, text, fix
        super().__init__(reason)


def parse(text: str) -> dict[str, Any]:
    r"""Parse TOML into plain dicts, lists and values.

    Raises:
        TomlSyntaxError: the text is not TOML.

    >>> parse("[outer]\nsteps = 3")
    {'outer': {'steps': 3}}
    """
    try:
        return tomlkit.parse(text).unwrap()
    except TOMLKitError as error:
        raise _explain(text, error) from None


def from_toml(text: str) -> Any:
    """Parse one value; what is not TOML is taken as a plain string, so that `--set kind=MLP` needs no quotes.

    >>> from_toml("[1, 2]"), from_toml("MLP")
    ([1, 2], 'MLP')
    """
    try:
        return tomlkit.value(text).unwrap()
    except TOMLKitError:
        return text


def to_toml(value: Any) -> str:
    """Write one plain value as TOML does, on one line.

    >>> to_toml({"kind": "MLP", "sizes": [3, True]})
    '{kind = "MLP", sizes = [3, true]}'
    """
    if isinstance(value, dict):
        return "{" + ", ".join(f"{tomlkit.key(k).as_string()} = {to_toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(to_toml(v) for v in value) + "]"
    if isinstance(value, (bool, int, float, str, datetime.date, datetime.time)):
        return tomlkit.item(value).as_string()
    return f"an object of class {type(value).__name__}"


def to_set(path: str, value: Any) -> str:
    """Write `path = value` as a command-line override, quoted for a shell.

    >>> to_set("learner.network.kind", "MLP")
    '--set learner.network.kind=MLP'
    """
    bare = isinstance(value, str) and value == from_toml(value)
    return "--set " + shlex.quote(f"{path}={value if bare else to_toml(value)}")


def _explain(text: str, error: TOMLKitError) -> TomlSyntaxError:
    lines = text.splitlines() or [""]
    reason = re.sub(r" at line \d+ col \d+$", "", str(error)).rstrip(".")
    if any(word in reason for word in _TWICE):
        number, column = _first_failing_line(lines), 1
        reason = reason.replace("Redefinition of an existing table", "This table already exists")
    elif "\\x00" in reason or isinstance(error, tomlkit.exceptions.UnexpectedEofError):
        number, column = len(lines), len(lines[-1]) + 1
        reason = "The text ends before a value, a list, a table or a string is finished"
    else:
        number, column = (error.line, error.col + 1) if isinstance(error, ParseError) else (1, 1)
        if isinstance(error, tomlkit.exceptions.InvalidControlChar):
            reason = "A string has to end on its own line (or it holds a control character)"
    line = lines[min(number, len(lines)) - 1]
    return TomlSyntaxError(reason, number, column, line, _quote_bare_word(line))


def _first_failing_line(lines: list[str]) -> int:
    """tomlkit notices a repeated key only at the end of its table, so look for the first line that makes it repeated."""
    for count in range(1, len(lines)):
        try:
            tomlkit.parse("\n".join(lines[:count]))
        except TOMLKitError as error:
            if any(word in str(error) for word in _TWICE):
                return count
    return len(lines)


def _quote_bare_word(line: str) -> str | None:
    match = _BARE_WORD.match(line)
    if match is None:
        return None
    word = match["word"]
    return f"{match['key']} = {word.lower() if word.lower() in ('true', 'false') else to_toml(word)}"

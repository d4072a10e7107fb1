"""What the metadata of fields says about a spec: keys, defaults, all known paths, and values to suggest in an error."""

from __future__ import annotations

import datetime
import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias

import attrs

from distilkit.errors import DistilkitError, nearest
from distilkit.spec import kinds
from distilkit.spec.text import from_toml

_EXAMPLES = (1, 0.5, 10, 1000, True, [1], "name")

Field: TypeAlias = "attrs.Attribute[Any]"


def join(path: str, key: str) -> str:
    """Return the path of `key` in the table at `path`; the top of the spec is ""."""
    return f"{path}.{key}" if path else key


def settable(cls: type) -> dict[str, Field]:
    """Return the fields of an attrs class that its constructor takes, by the name that TOML uses."""
    return {field.name: field for field in attrs.fields(cls) if field.init}


def is_table(field: Field) -> bool:
    """Say whether a field is a table in TOML (a component or a part), not a value."""
    return "slot" in field.metadata or "part" in field.metadata


def default_of(field: Field) -> Any:
    """Return a field's default, or `attrs.NOTHING` when it has none (or one that needs the finished object)."""
    default: Any = field.default
    if not isinstance(default, attrs.Factory):  # type: ignore[arg-type]  # a class, which the stubs call a function
        return default
    return attrs.NOTHING if default.takes_self else default.factory()


def converted(field: Field, value: Any) -> Any:
    """Return `value` as the field would hold it.

    Raises:
        FieldError: the field does not take it.
    """
    value = _as_tuples(value) if field.metadata.get("list") else value
    if field.converter is not None:
        value = field.converter(value)  # type: ignore[operator]
    if field.validator is not None:
        field.validator(None, field, value)
    return value


def suggestion(field: Field, given: Any = None) -> Any:
    """Return a value that the field takes: the given one rewritten if that can be, else the default, else an example.

    Returns:
        A plain value, or None when nothing was found.
    """
    default = default_of(field)
    options = field.metadata.get("options", ())
    close = nearest(given, options) if isinstance(given, str) else None
    rewritten = [] if given is None else _rewritten(given)
    for value in (*rewritten, close, default, *options, *_EXAMPLES):
        if value is None or value is attrs.NOTHING:
            continue
        try:
            converted(field, value)
        except DistilkitError:
            continue
        return value
    return None


def known_paths(cls: type, table: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """Yield every path that a spec may set, given the kinds that it has chosen (or the defaults have).

    Args:
        cls: the class of the table.
        table: the spec's table, plain values.
        path: the path of the table.
    """
    for name, field in settable(cls).items():
        here = join(path, name)
        yield here
        inner = table.get(name)
        inner = inner if isinstance(inner, Mapping) else {}
        inner_cls = field.metadata.get("part")
        if "slot" in field.metadata:
            yield join(here, "kind")
            slot, kind = field.metadata["slot"], inner.get("kind", kind_of_default(field))
            inner_cls = kinds.resolve(slot, kind) if isinstance(kind, str) and kind in kinds.KINDS[slot] else None
        if inner_cls is not None:
            yield from known_paths(inner_cls, inner, here)


def nearest_path(path: str, known: Iterable[str]) -> str | None:
    """Return the known path closest to `path`; one that ends in the same key comes before all others.

    >>> nearest_path("outer.lr", ["outer.clip", "learner.optimizer.lr", "outer.optimizer.lr"])
    'outer.optimizer.lr'
    """
    paths = list(known)
    same_key = [other for other in paths if other.rpartition(".")[2] == path.rpartition(".")[2]]
    close = difflib.get_close_matches(path, same_key or paths, n=1, cutoff=0.0 if same_key else 0.6)
    return close[0] if close else None


def kind_of_default(field: Field) -> str | None:
    """Return the kind of a component field's default, or None when it has no default or one without a name."""
    default = default_of(field)
    return None if default is None or default is attrs.NOTHING else kinds.kind_of(field.metadata["slot"], default)


def has_date(value: Any) -> bool:
    """Say whether a date or time, which no component takes, is anywhere in a plain value."""
    if isinstance(value, dict):
        return any(has_date(v) for v in value.values())
    if isinstance(value, list):
        return any(has_date(v) for v in value)
    return isinstance(value, (datetime.date, datetime.time))


def _rewritten(given: Any) -> list[Any]:
    """What the writer may have meant: "3" for 3, 3.0 for 3, 3 for [3], [3] for 3, a date for a text."""
    values: list[Any] = []
    if isinstance(given, str):
        values.append(from_toml(given))
        values.append(from_toml(given.lower()))
        values.append(from_toml(f"0{given}"))
    if isinstance(given, float) and given.is_integer():
        values.append(int(given))
    if isinstance(given, list) and len(given) == 1:
        values.append(given[0])
    if isinstance(given, (int, float, str)):
        values.append([given])
    if isinstance(given, (int, float, datetime.date, datetime.time)):
        values.append(str(given))
    return values


def _as_tuples(value: Any) -> Any:
    return tuple(_as_tuples(v) for v in value) if isinstance(value, (list, tuple)) else value

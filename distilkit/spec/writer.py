"""Components to TOML: the fully resolved spec, which `loads` turns into equal components again."""

from __future__ import annotations

from typing import Any

import tomlkit

from distilkit.errors import DistilkitError
from distilkit.spec import kinds
from distilkit.spec.hints import default_of, is_table, join, settable
from distilkit.spec.python import PythonComponent


def dumps(value: object) -> str:
    """Write a component tree as TOML, every field included; fields that are None are left out.

    Args:
        value: a whole pipeline (`Distiller`), or any component made with `distilkit.fields`.

    Returns:
        TOML text such that `loads(text, root=type(value))` equals `value`.

    Raises:
        DistilkitError: something in the tree has no form in TOML; the message names the field.
    """
    return tomlkit.dumps(to_tree(value))


def to_tree(value: object) -> dict[str, Any]:
    """Return a component tree as nested dicts of plain values, as `dumps` writes it; it can be written as JSON too.

    Args:
        value: a component made with `distilkit.fields`.

    Raises:
        DistilkitError: something in the tree has no form in TOML; the message names the field.
    """
    return _table(value, "")


def _table(value: Any, path: str) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    tables: dict[str, Any] = {}  # after the plain keys: in TOML a key below a [table] line belongs to that table
    for field in settable(type(value)).values():
        held, where = getattr(value, field.name), join(path, field.name)
        if held is None:
            if default_of(field) is None:
                continue
            if not is_table(field):
                raise DistilkitError(f"{where} is None, which TOML cannot write, and leaving it out would not mean None.")
            tables[field.name] = {"kind": "none"}
        elif "slot" in field.metadata:
            tables[field.name] = _component(held, field.metadata["slot"], where)
        elif "part" in field.metadata:
            if type(held) is not field.metadata["part"]:  # a subclass has no name in TOML
                raise _unwritable(held, where)
            tables[field.name] = _table(held, where)
        else:
            plain[field.name] = _plain(held, where)
    return plain | tables


def _component(value: Any, slot: str, path: str) -> dict[str, Any]:
    if isinstance(value, PythonComponent):
        return {"kind": "python", "target": value.target} | {k: _plain(v, join(path, k)) for k, v in value.arguments.items()}
    kind = kinds.kind_of(slot, value)
    if kind is None:
        raise _unwritable(value, path, own=slot in kinds.PYTHON_SLOTS)
    return {"kind": kind} | _table(value, path)


def _plain(value: Any, path: str) -> Any:
    """Copy a value as TOML has it; subclasses (NumPy's float64, enums of int) become the plain type."""
    for cls in (bool, int, float, str):
        if isinstance(value, cls):
            return cls(value)
    if isinstance(value, (list, tuple)):
        return [_plain(v, path) for v in value]
    if isinstance(value, dict) and all(isinstance(k, str) for k in value):
        return {k: _plain(v, join(path, k)) for k, v in value.items()}
    raise _unwritable(value, path)


def _unwritable(value: object, path: str, *, own: bool = False) -> DistilkitError:
    fix = None
    cls = type(value)
    if own and cls.__qualname__.isidentifier() and cls.__module__ != "__main__":  # a spec can name it
        call = f'distilkit.spec.PythonComponent("{cls.__module__}:{cls.__qualname__}", {{}})'
        fix = f"{path.rpartition('.')[2]}={call}  # with its arguments in the braces"
    return DistilkitError(f"{path} is a {type(value).__name__} made in Python, which a spec cannot write down.", fix=fix)

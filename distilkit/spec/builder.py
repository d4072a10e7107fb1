"""Plain values to components: strict, and every fault is found in one walk.

`Builder.table` builds one attrs class from one table; it asks `Builder.field` for each value, which goes down into the
tables of components and parts. A step that finds a fault records a `Problem` and returns `FAILED`, and the walk goes on
beside it. So only a walk without problems gives a result.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from distilkit.errors import DistilkitError, FieldError, listing, nearest
from distilkit.spec import kinds
from distilkit.spec.hints import (
    Field,
    converted,
    has_date,
    is_table,
    join,
    kind_of_default,
    known_paths,
    nearest_path,
    settable,
    suggestion,
)
from distilkit.spec.overrides import Overrides
from distilkit.spec.problems import Problem, shorten
from distilkit.spec.python import TARGET, PythonComponent
from distilkit.spec.text import TomlSyntaxError, parse, to_set, to_toml

FAILED = attrs.NOTHING


@attrs.define
class Builder:
    """Builds components from the plain tree of a spec and collects what is wrong with it.

    Args:
        root: the class of the whole spec.
        tree: the whole spec, plain values.
        trust: allow `kind = "python"`.
        overrides: what was set from outside: its problems get a `--set` line to type.
        problems: the faults found so far; the builder appends.
    """

    root: type
    tree: dict[str, Any]
    trust: bool
    overrides: Overrides
    problems: list[Problem]

    def table(self, cls: type, table: Mapping[str, Any], path: str) -> Any:
        """Build `cls` from the keys of its table."""
        fields = settable(cls)
        for key in table:
            if key not in fields:
                self.unknown_key(cls, table, path, key)
        arguments: dict[str, Any] = {}
        for name, field in fields.items():
            if name in table:
                arguments[field.alias or name] = self.field(field, table[name], join(path, name))
            elif field.default is attrs.NOTHING:
                arguments[name] = self.missing(field, join(path, name))
        if any(value is FAILED for value in arguments.values()):
            return FAILED
        try:
            return cls(**arguments)
        except FieldError as error:  # a check of one field that only the class itself can make
            return self.fail(join(path, error.field), error.given, error.allowed, error.fix)
        except DistilkitError as error:  # a check that involves several fields
            why = f"{path}: {error.message}" if path else error.message
            return self.fail(path, dict(table), "values that go together", self.mended(cls, path, error), why=why)

    def field(self, field: Field, given: Any, path: str) -> Any:
        """Return what the field holds for the value given in the spec."""
        slot, part = field.metadata.get("slot"), field.metadata.get("part")
        if not is_table(field):
            return self.plain(field, given, path)
        if not isinstance(given, dict):
            fix = f"[{path}]"
            if slot is not None:
                kind = (nearest(given, kinds.KINDS[slot]) if isinstance(given, str) else None) or self.likely_kind(field)
                fix = to_set(f"{path}.kind", kind) if path in self.overrides.given else f"{fix}\nkind = {to_toml(kind)}"
            return self.fail(path, given, "a table", fix, why=f"{path} = {shorten(given)} cannot be: it has to be a table, [{path}].")
        if field.metadata.get("optional") and given.get("kind") == "none":
            for key in [key for key in given if key != "kind"]:
                why = f'{join(path, key)} cannot be: with kind = "none" there is nothing to set.'
                self.fail(join(path, key), given[key], "no keys", why=why)
            return None
        built = self.table(part, given, path) if part is not None else self.component(field, given, path)
        if built is FAILED:
            return FAILED
        try:
            return converted(field, built)
        except DistilkitError as error:
            allowed = error.allowed if isinstance(error, FieldError) else error.message
            instead = error.fix.partition("=")[2] if error.fix else None  # what a factory is to give
            return self.fail(path, given, allowed, instead, why=f"{path} cannot be used: this place takes {allowed}.")

    def plain(self, field: Field, given: Any, path: str) -> Any:
        """Check a value that is not a table."""
        allowed = field.metadata.get("allowed", "a value")
        value = suggestion(field, given)
        fix = None if value is None else self.line(path, value)
        if isinstance(given, dict):
            return self.fail(path, given, allowed, fix, why=f"{path} cannot be a table: it takes {allowed}.")
        if has_date(given):
            return self.fail(path, given, allowed, fix, why=f"{path} = {shorten(given)} is a date or time: it takes {allowed}.")
        try:
            return converted(field, given)
        except FieldError as error:
            options = field.metadata.get("options", ())
            return self.fail(path, given, error.allowed, fix, nearest(given, options) if isinstance(given, str) else None)
        except DistilkitError as error:
            return self.fail(path, given, allowed, error.fix or fix, why=f"{path}: {error.message}")

    def component(self, field: Field, table: dict[str, Any], path: str) -> Any:
        """Build the component that the table's `kind` names."""
        slot = field.metadata["slot"]
        known = [*kinds.KINDS[slot], *(["python"] if slot in kinds.PYTHON_SLOTS else [])]
        kind, rest = table.get("kind"), {key: value for key, value in table.items() if key != "kind"}
        if kind == "python" and "python" in known:
            return self.python(rest, path)
        if not isinstance(kind, str) or kind not in known:
            close = nearest(kind, known) if isinstance(kind, str) else None
            names = [to_toml(name) for name in (*known, *(["none"] if field.metadata.get("optional") else []))]
            fix = self.line(join(path, "kind"), close or self.likely_kind(field))
            return self.fail(join(path, "kind"), kind, listing(names), fix, close)
        cls = kinds.resolve(slot, kind)
        return self.table(cls, self.without_keys_of_old_kind(cls, kind, rest, path), path)

    def python(self, table: dict[str, Any], path: str) -> Any:
        """Build a component with the user's own factory, if the spec is trusted."""
        if not self.trust:
            why = f'{path}.kind = "python" runs code, from {shorten(table.get("target", "?"))}, so it is refused unless you trust the spec.'
            fix = "--trust  # or trust=True in Python; only if you know this code"
            return self.fail(join(path, "kind"), "python", "a kind of distilkit", fix, why=why)
        target, arguments = table.get("target"), {key: value for key, value in table.items() if key != "target"}
        dates = [key for key, value in arguments.items() if has_date(value)]
        for key in dates:
            self.fail(join(path, key), arguments[key], "a value that is no date", self.line(join(path, key), str(arguments[key])))
        if not isinstance(target, str):
            return self.fail(join(path, "target"), target, TARGET, self.line(join(path, "target"), "my_module:my_factory"))
        if dates:
            return FAILED
        try:
            return PythonComponent(target, arguments)
        except FieldError as error:
            return self.fail(join(path, error.field), error.given, error.allowed, self.line(join(path, "target"), "my_module:my_factory"))
        except DistilkitError as error:
            return self.fail(join(path, "target"), target, TARGET, error.fix, why=f"{path}.target: {error.message}")

    def without_keys_of_old_kind(self, cls: type, kind: str, table: dict[str, Any], path: str) -> dict[str, Any]:
        """After `--set PATH.kind=...`, report the keys that only the kind in the file has: once, with the whole table to type."""
        old = self.overrides.old_kinds.get(path, kind)
        stale = [key for key in table if key not in settable(cls) and join(path, key) not in self.overrides.given]
        kept = {key: value for key, value in table.items() if key not in stale}
        if old == kind or not stale:
            return table
        keys = " and ".join(stale)
        why = f"{path}.kind was set to {kind}, but the spec also gives {keys} there, which belongs to {old} and which {kind} does not take."
        self.fail(join(path, "kind"), kind, f"the keys of {kind}", to_set(path, {"kind": kind, **kept}), why=why)
        return kept

    def missing(self, field: Field, path: str) -> Any:
        """Report a required key that the spec lacks."""
        allowed = field.metadata.get("allowed", "a value")
        if "slot" in field.metadata:
            kind = self.likely_kind(field)
            allowed = f"a table with a kind: {listing([to_toml(name) for name in kinds.KINDS[field.metadata['slot']]])}"
            return self.fail(path, None, allowed, f"[{path}]\nkind = {to_toml(kind)}")
        if "part" in field.metadata:
            keys = list(settable(field.metadata["part"]))
            return self.fail(path, None, f"a table with the keys {listing(keys)}" if keys else "a table", f"[{path}]")
        value = suggestion(field)
        return self.fail(path, None, allowed, None if value is None else self.line(path, value))

    def unknown_key(self, cls: type, table: Mapping[str, Any], path: str, key: str) -> None:
        """Report a key that the table's class does not have, with the nearest that it has (or that is elsewhere)."""
        here, fields = join(path, key), settable(cls)
        takes = f"the keys {listing(list(fields))}" if fields else "no keys"
        owner = f"[{path}] ({cls.__name__})" if path else "the top of the spec"
        for full, given in self.overrides.given.items():
            if full == here or full.startswith(here + "."):  # it came by --set: compare whole paths
                close = nearest_path(full, known_paths(self.root, self.tree))
                fix = to_set(close, given) if close else None
                self.fail(full, given, takes, fix, close, why=f"--set {full} names nothing in this spec: {owner} takes {takes}.")
                return
        value, fix = table[key], None
        close = nearest(key, fields)
        if close is None and key != "kind":  # perhaps it belongs to another table
            close = nearest_path(here, [known for known in known_paths(self.root, self.tree) if known.rpartition(".")[2] == key])
            fix = f"[{close.rpartition('.')[0]}]\n{key} = {to_toml(value)}" if close and not isinstance(value, dict) else None
        elif close and close not in table and isinstance(value, dict) == is_table(fields[close]):
            fix = f"[{join(path, close)}]" if isinstance(value, dict) else f"{close} = {to_toml(value)}"
        self.fail(here, value, takes, fix, close, why=f"{here} is not known: {owner} takes {takes}.")

    def likely_kind(self, field: Field) -> str:
        """The kind to suggest for a slot: that of the default, else the first."""
        return kind_of_default(field) or next(iter(kinds.KINDS[field.metadata["slot"]]))

    def line(self, path: str, value: Any) -> str:
        """The text to type for `path = value`: on the command line if that is where it came from, else in the file."""
        return to_set(path, value) if path in self.overrides.given else f"{path.rpartition('.')[2]} = {to_toml(value)}"

    def mended(self, cls: type, path: str, error: DistilkitError) -> str | None:
        """The text to type where values of a table do not go together: by `--set` if one of them came from there."""
        if error.changes:
            lines = [(change.name, change.value) for change in error.changes]
            return "\n  Or:  ".join(to_set(*line) if self.overrides.given else self.line(*line) for line in lines)
        try:
            lines = list(parse(error.fix or "").items())
        except TomlSyntaxError:  # it is not of a spec
            return error.fix
        own = any(full.startswith(f"{path}.") for full in self.overrides.given)
        told = own and lines and all(name in settable(cls) for name, _ in lines)
        return "  ".join(to_set(join(path, name), value) for name, value in lines) if told else error.fix

    def fail(self, path: str, given: Any, allowed: str, fix: str | None = None, close: str | None = None, *, why: str = "") -> Any:
        """Record a problem."""
        self.problems.append(Problem(path, given, allowed, fix, close, why))
        return FAILED

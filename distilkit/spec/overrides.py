"""`--set path=value`: changes to the plain tree of a spec, made before anything is checked."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import attrs

from distilkit.spec.problems import Problem, shorten
from distilkit.spec.text import from_toml, to_set


@attrs.frozen
class Overrides:
    """What the overrides did, for the error messages of the loader.

    Args:
        given: the value of each path that was set.
        old_kinds: by path of a table, the `kind` that stood in the spec before an override changed it.
    """

    given: dict[str, Any] = attrs.field(factory=dict)
    old_kinds: dict[str, Any] = attrs.field(factory=dict)


def apply_overrides(tree: dict[str, Any], overrides: Iterable[str]) -> tuple[Overrides, list[Problem]]:
    """Change `tree` in place; a later override wins over an earlier one.

    Args:
        tree: the plain tree of a spec.
        overrides: texts such as `outer.steps=10` or `learner.network={kind = "MLP"}` (which replaces the whole table).

    Returns:
        What was done, and a problem for each override that could not be followed.
    """
    done, problems = Overrides(), []
    for text in overrides:
        key, equals, written = text.partition("=")
        path = key.strip()
        if not equals or not all(path.split(".")):
            why = f"--set {text} is not of the form path=value."
            problems.append(Problem(path, text, "path=value", fix="--set seed=1", why=why))
            continue
        value = from_toml(written.strip())
        problem = _set(tree, path, value, done)
        if problem is None:
            done.given[path] = value
        else:
            problems.append(problem)
    return done, problems


def _set(tree: dict[str, Any], path: str, value: Any, done: Overrides) -> Problem | None:
    *folders, name = path.split(".")
    table: Any = tree
    for depth, folder in enumerate(folders, start=1):
        table = table.setdefault(folder, {})
        if not isinstance(table, dict):
            above = ".".join(folders[:depth])
            why = f"--set {path} cannot be followed: {above} = {shorten(table)} is a value, not a table."
            return Problem(path, value, "a path through tables", to_set(above, value), why=why)
    if name == "kind" and "kind" in table:
        done.old_kinds.setdefault(".".join(folders), table["kind"])
    table[name] = value
    return None

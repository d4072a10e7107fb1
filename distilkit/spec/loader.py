"""Specs to components: the text is parsed, overrides are made, and a `Builder` checks and builds the whole."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypeVar, overload

from distilkit.spec import kinds
from distilkit.spec.builder import Builder
from distilkit.spec.files import read_text
from distilkit.spec.overrides import apply_overrides
from distilkit.spec.problems import Problem, SpecError
from distilkit.spec.text import TomlSyntaxError, parse

if TYPE_CHECKING:
    from distilkit.distiller import Distiller

T = TypeVar("T")


@overload
def load(path: str | os.PathLike[str], overrides: Iterable[str] = (), *, root: None = None, trust: bool = False) -> Distiller: ...


@overload
def load(path: str | os.PathLike[str], overrides: Iterable[str] = (), *, root: type[T], trust: bool = False) -> T: ...


def load(path: str | os.PathLike[str], overrides: Iterable[str] = (), *, root: type[Any] | None = None, trust: bool = False) -> Any:
    """Read a TOML file as a component tree.

    Args:
        path: the file.
        overrides: changes such as `"outer.steps=10"`, made before the checks.
        root: the class of the whole spec; `Distiller` when left out.
        trust: allow `kind = "python"`, which runs code that the spec names.

    Returns:
        An instance of `root`.

    Raises:
        SpecError: the file is not there, is not TOML, or holds anything that the components do not take.
    """
    return loads(read_text(path), overrides, root=root, trust=trust, source=str(path))


@overload
def loads(text: str, overrides: Iterable[str] = (), *, root: None = None, trust: bool = False, source: str = "the spec") -> Distiller: ...


@overload
def loads(text: str, overrides: Iterable[str] = (), *, root: type[T], trust: bool = False, source: str = "the spec") -> T: ...


def loads(text: str, overrides: Iterable[str] = (), *, root: type[Any] | None = None, trust: bool = False, source: str = "the spec") -> Any:
    """Read TOML text as a component tree; the arguments are those of `load`.

    Args:
        text: TOML.
        overrides: changes such as `"outer.steps=10"`, made before the checks.
        root: the class of the whole spec; `Distiller` when left out.
        trust: allow `kind = "python"`, which runs code that the spec names.
        source: what to call the text in errors.

    Returns:
        An instance of `root`.

    Raises:
        SpecError: the text is not TOML, or holds anything that the components do not take.

    >>> from distilkit import fields
    >>> @fields.component
    ... class Outer:
    ...     steps: int = fields.integer(default=100, least=1)
    >>> loads("steps = 3", root=Outer)
    Outer(steps=3)
    """
    try:
        tree = parse(text)
    except TomlSyntaxError as error:
        where = f"line {error.line}, column {error.column}"
        why = f"{where} is not TOML: {error.reason}.\n{error.line:>4} | {error.text}"
        raise SpecError([Problem(where, error.text, "TOML", error.fix, why=why)], source) from None
    done, problems = apply_overrides(tree, overrides)
    cls = root if root is not None else kinds.import_name(kinds.ROOT)
    builder = Builder(cls, tree, trust, done, problems)
    built = builder.table(cls, tree, "")
    if builder.problems:
        raise SpecError(builder.problems, source)
    return built

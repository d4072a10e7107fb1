"""`@component` and its fields: values that type checkers know, and strict checks that say what is allowed.

    @fields.component
    class Cosine:
        final: float = fields.number(default=0.0, least=0, most=1)

A component is an `attrs.frozen` class. mypy and pyright take its constructor from the annotations (PEP 681), so the annotation of
a field is what a program may give it, and the function that makes the field is what is checked when it runs, the same from Python
and from TOML. attrs itself would take 3.7 or "3" for an `int`; these do not. A check raises `FieldError`, which carries the field's
name, what was given and what is allowed, so that the spec loader can report all of them at once under their paths. Checks that
involve two fields belong in `__attrs_post_init__` and raise `CombinationError`. The metadata of a field says what it takes in words
("allowed") and as JSON Schema ("schema"), which `distilkit.spec.schema` puts together for editors.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, dataclass_transform, get_args

import attrs

from distilkit.errors import FieldError, listing, visible

_LINES = {ord("\n"): "\0", ord("\t"): "\0"}  # one line is one line
Check = Callable[[Any, "attrs.Attribute[Any]", Any], None]
C = TypeVar("C")


def _field(default: Any, check: Check, metadata: dict[str, Any]) -> Any:
    # Components are immutable, so one default value can serve every instance.
    return attrs.field(default=default, validator=check, metadata=metadata)


def integer(*, default: Any = attrs.NOTHING, least: int | None = None, most: int | None = None, optional: bool = False) -> Any:
    """A whole number; `True`, 3.0 and "3" are refused."""
    allowed = "a whole number" + _bounds(least, most) + (" (or left out)" if optional else "")

    def check(_: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        if optional and value is None:
            return
        if isinstance(value, bool) or not isinstance(value, int) or not _within(value, least, most):
            raise FieldError(attribute.name, value, allowed)

    return _field(default, check, {"allowed": allowed, "schema": {"type": "integer"} | _limits(least, most)})


def number(
    *,
    default: Any = attrs.NOTHING,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    below: float | None = None,
    optional: bool = False,
    why: str = "",
) -> Any:
    """A finite real number; whole numbers are taken and kept as floats' equals, `True` and "0.1" are refused."""
    words = _bounds(least, most, above, below)
    allowed = "a number" + words + (" (or left out)" if optional else "") + (f" ({why})" if why else "")

    def check(_: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        if optional and value is None:
            return
        if not _is_real(value) or not _within(value, least, most, above, below):
            raise FieldError(attribute.name, value, allowed)

    return _field(default, check, {"allowed": allowed, "schema": {"type": "number"} | _limits(least, most, above, below)})


def flag(*, default: bool) -> Any:
    """`True` or `False`; 0 and "yes" are refused."""

    def check(_: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        if not isinstance(value, bool):
            raise FieldError(attribute.name, value, "true or false")

    return _field(default, check, {"allowed": "true or false", "schema": {"type": "boolean"}})


def text(*, default: Any = attrs.NOTHING, optional: bool = False) -> Any:
    """A string without control characters, which could do to a terminal what they like. A path is taken as its text."""
    allowed = "a text in quotes, without control characters"

    def check(_: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        if not (isinstance(value, str) or (optional and value is None)) or (value and visible(value.translate(_LINES)) != value):
            raise FieldError(attribute.name, value, allowed)

    return attrs.field(default=default, validator=check, converter=_as_text, metadata={"allowed": allowed, "schema": {"type": "string"}})


def choice(of: Any, *, default: str | None, optional: bool = False) -> Any:
    """One of the words of a `Literal`."""
    options: tuple[str, ...] = get_args(of)
    allowed = listing([f'"{o}"' for o in options])

    def check(_: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        if not (isinstance(value, str) and value in options) and not (optional and value is None):
            raise FieldError(attribute.name, value, allowed)

    return _field(default, check, {"allowed": allowed, "options": options, "schema": {"enum": list(options)}})


def integers(*, default: Any = attrs.NOTHING, least: int = 1, empty: bool = False, optional: bool = False) -> Any:
    """A sequence of whole numbers, kept as a tuple; TOML arrays arrive as lists."""
    allowed = f"whole numbers in a list, each{_bounds(least, None)}"

    def check(_: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        if optional and value is None:
            return
        good = isinstance(value, tuple) and (empty or len(value) > 0)
        if not good or not all(isinstance(v, int) and not isinstance(v, bool) and v >= least for v in value):
            raise FieldError(attribute.name, list(value) if isinstance(value, tuple) else value, allowed)

    schema = {"type": "array", "items": {"type": "integer"} | _limits(least, None), "minItems": 0 if empty else 1}
    return attrs.field(default=default, validator=check, converter=_as_tuple, metadata={"allowed": allowed, "list": True, "schema": schema})


def choices(of: Any, *, default: Sequence[str]) -> Any:
    """Several of the words of a `Literal`, kept as a tuple; may be empty."""
    options: tuple[str, ...] = get_args(of)
    allowed = "a list of " + listing([f'"{o}"' for o in options])

    def check(_: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        good = isinstance(value, tuple) and all(isinstance(v, str) and v in options for v in value) and len(set(value)) == len(value)
        if not good:
            raise FieldError(attribute.name, list(value) if isinstance(value, tuple) else value, allowed)

    schema = {"type": "array", "items": {"enum": list(options)}, "uniqueItems": True}
    return attrs.field(default=default, validator=check, converter=_as_tuple, metadata={"allowed": allowed, "list": True, "schema": schema})


def numbers(
    *,
    default: Any = attrs.NOTHING,
    length: int | None = None,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> Any:
    """Real numbers, of a fixed count or at least one, kept as a tuple; TOML arrays arrive as lists."""
    allowed = f"{f'{length} ' if length else ''}numbers in a list, each{_bounds(least, most, above, below)}"

    def check(_: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        good = isinstance(value, tuple) and (len(value) == length if length else bool(value))
        if not good or not all(_is_real(v) and _within(v, least, most, above, below) for v in value):
            raise FieldError(attribute.name, list(value) if isinstance(value, tuple) else value, allowed)

    schema: dict[str, Any] = {"type": "array", "items": {"type": "number"} | _limits(least, most, above, below), "minItems": length or 1}
    schema |= {"maxItems": length} if length else {}
    return attrs.field(default=default, validator=check, converter=_as_tuple, metadata={"allowed": allowed, "list": True, "schema": schema})


# What an object must be able to do to stand in a slot. The signatures are Protocols beside each family, such as `networks.Network`.
METHODS: dict[str, tuple[str, ...]] = {
    "data": ("load",),
    "preprocessing": ("fit",),
    "augmentation": ("sample", "apply"),
    "network": ("init", "apply"),
    "optimizer": ("transformation",),
    "loss": ("__call__",),
    "adjoint": ("__call__",),
    "truncation": ("init", "plan", "observe"),
    "schedule": ("factor",),
}


def slot(name: str, *, default: Any = attrs.NOTHING, optional: bool = False) -> Any:
    """A component of a family, one of `METHODS`: in TOML a table whose `kind` is looked up in `distilkit.spec.kinds`.

    In Python any object with the family's methods will do, so that a user's own component needs no base class.
    """
    methods = METHODS[name]
    allowed = f"a component for the slot {name!r} (an object with {listing(methods, 'and')})"

    def check(_: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        if optional and value is None:
            return
        made = value.built if getattr(type(value), "stands_for_built", False) else value  # kind = "python" in a spec
        if isinstance(value, type) or value is None or not all(callable(getattr(made, m, None)) for m in methods):
            hint = _in_place(name, value)
            raise FieldError(attribute.name, value, allowed, fix=f"{attribute.name}={hint}" if hint else None)

    return _field(default, check, {"allowed": allowed, "slot": name, "optional": optional})


def _in_place(slot: str, value: object) -> str | None:
    """What to type in place of what people give who know torch: a module, a dataset; a path; a class that was not called."""
    if slot == "network" and hasattr(value, "load_state_dict"):
        return f"dk.Functional(lambda: {value.__name__ if isinstance(value, type) else 'MyNet'}())"
    if slot == "data" and isinstance(value, (str, os.PathLike)):
        return f'dk.Arrays("{os.fspath(value)}")'
    if slot == "data" and hasattr(value, "__getitem__") and not isinstance(value, type):
        return "dk.Arrays(train_images=images, train_labels=labels)  # all of it, as two tensors"
    return f"{value.__name__}()" if isinstance(value, type) else None


def part(cls: type, *, default: Any = attrs.NOTHING, optional: bool = False) -> Any:
    """A component of exactly one class, such as `outer`: in TOML a table without a `kind`."""

    def check(_: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        if not (isinstance(value, cls) or (optional and value is None)):
            raise FieldError(attribute.name, value, f"a {cls.__name__}")

    return _field(default, check, {"allowed": f"a table of {cls.__name__}", "part": cls, "optional": optional})


@dataclass_transform(
    frozen_default=True, field_specifiers=(integer, number, flag, text, choice, choices, integers, numbers, slot, part, attrs.field)
)
def component(cls: type[C]) -> type[C]:
    """Make a class a component: immutable, compared by value, and known to type checkers.

    >>> @component
    ... class Cosine:
    ...     final: float = number(default=0.0, least=0, most=1)
    >>> Cosine(0.1)
    Cosine(final=0.1)
    """
    return attrs.frozen(cls)


def described(component: Any, parameters: int | None = None) -> str:
    """The `repr` of a component, without the addresses of what was made in Python, which are others in every process.

    Args:
        component: any.
        parameters: how many its network has; told where there was an address, since a function of one name may build several networks.

    >>> described([print, lambda: 0])
    '[<built-in function print>, <function <lambda>>]'
    """
    words = repr(component)
    plain = re.sub(r" at 0x[0-9a-fA-F]+", "", words)
    return plain if plain == words or parameters is None else f"{plain} of {parameters} parameters"


def evolve(value: C, **changes: Any) -> C:
    """The same component with some of its fields changed; the checks of its class run again.

    What `attrs.evolve` does, which type checkers refuse for classes that are declared by a decorator of ours.

    >>> @component
    ... class Cosine:
    ...     final: float = number(default=0.0, least=0, most=1)
    >>> evolve(Cosine(), final=0.1)
    Cosine(final=0.1)
    """
    changed: C = attrs.evolve(value, **changes)  # type: ignore[misc]
    return changed


def _limits(least: float | None, most: float | None, above: float | None = None, below: float | None = None) -> dict[str, float]:
    """Bounds as JSON Schema has them."""
    limits = {"minimum": least, "maximum": most, "exclusiveMinimum": above, "exclusiveMaximum": below}
    return {name: limit for name, limit in limits.items() if limit is not None}


def _as_text(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, (list, tuple)) else value


def _is_real(value: object) -> bool:
    """Whether it is a number that a float can hold: a whole number may be too large."""
    try:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def _within(value: float, least: float | None, most: float | None, above: float | None = None, below: float | None = None) -> bool:
    return (
        (least is None or value >= least)
        and (most is None or value <= most)
        and (above is None or value > above)
        and (below is None or value < below)
    )


def _bounds(least: float | None, most: float | None, above: float | None = None, below: float | None = None) -> str:
    words = [
        f"{word} {bound:g}"
        for word, bound in (("at least", least), ("above", above), ("at most", most), ("below", below))
        if bound is not None
    ]
    return ", " + " and ".join(words) if words else ""

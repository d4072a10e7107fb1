"""`kind = "python"`: a component of the user's own, named by `target = "module:factory"` in a spec.

    [learner.network]
    kind = "python"
    target = "my_networks:wide_mlp"
    width = 512                      # every other key goes to the factory

Loading such a spec runs code from `my_networks.py`, which is why `load` wants `trust=True` (`--trust` on the command line).
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import sys
import traceback
from collections.abc import Generator
from typing import Any, ClassVar

import attrs

from distilkit.errors import DistilkitError, FieldError, nearest

_TARGET = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")
TARGET = 'a text of the form "module:factory"'


@attrs.frozen(hash=False)
class PythonComponent:
    """What a factory of the user's own built, together with how it was built, so that it can be written to a spec again.

    Every attribute that is not a field here is that of the object built, so this stands wherever the object would.
    Two of these are equal when target and arguments are.

    Args:
        target: `"module:factory"`; the current folder is importable while the factory is imported and called.
        arguments: keyword arguments for the factory: plain values as TOML can write them.

    Raises:
        FieldError: `target` has another form, or `arguments` holds a key that the table itself uses.
        DistilkitError: the module or the factory is not there, or the factory raised.

    >>> PythonComponent("fractions:Fraction", {"numerator": 6, "denominator": 4}).numerator
    3
    """

    stands_for_built: ClassVar[bool] = True

    target: str = attrs.field()
    arguments: dict[str, Any] = attrs.field(factory=dict)
    built: Any = attrs.field(init=False, eq=False, repr=False)

    @built.default
    def _build(self) -> Any:
        target: Any = self.target
        if not isinstance(target, str) or not _TARGET.fullmatch(target):
            raise FieldError("target", self.target, TARGET)
        for key in ("kind", "target"):
            if key in self.arguments:
                raise FieldError("arguments", key, "names other than kind and target, which the spec's table itself uses")
        with _current_folder_importable():
            return _call(_factory(self.target), self.target, self.arguments)

    def __getattr__(self, name: str) -> Any:
        if name == "built" or (name.startswith("__") and name.endswith("__")):  # copy and pickle ask before `built` is there
            raise AttributeError(name)
        return getattr(self.built, name)

    def __call__(self, *arguments: Any, **more: Any) -> Any:
        """Call what was built: a loss or an adjoint."""
        return self.built(*arguments, **more)

    def __hash__(self) -> int:
        return hash((self.target, *sorted(self.arguments)))


def _factory(target: str) -> Any:
    module_name, _, name = target.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name in (module_name, module_name.partition(".")[0]):
            raise DistilkitError(
                f"The Python module {module_name} of target {target} was not found in {os.getcwd()} or among the installed packages."
            ) from error
        raise DistilkitError(f"Importing {module_name} failed: {_last_words(error)}") from error
    if not callable(getattr(module, name, None)):
        close = nearest(name, [n for n in vars(module) if callable(getattr(module, n)) and not n.startswith("_")])
        raise DistilkitError(
            f"The Python module {module_name} has no function or class called {name}.",
            fix=f'target = "{module_name}:{close}"' if close else None,
        )
    return getattr(module, name)


def _call(factory: Any, target: str, arguments: dict[str, Any]) -> Any:
    try:
        return factory(**arguments)
    except Exception as error:
        raise DistilkitError(f"Calling {target} failed: {_last_words(error)}") from error


def _last_words(error: BaseException) -> str:
    """The error and the line that raised it: all problems of a spec come out together, so tracebacks cannot."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    where = "" if frame.filename == __file__ else f" ({frame.filename}, line {frame.lineno})"
    return f"{type(error).__name__}: {error}{where}"


@contextlib.contextmanager
def _current_folder_importable() -> Generator[None, None, None]:
    folder = os.getcwd()
    sys.path.insert(0, folder)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(folder)

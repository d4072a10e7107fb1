"""Dataset distillation with exact, memory-flat meta-gradients.

`import distilkit as dk` gives every public name as `dk.NAME`. The names stand in `__init__.pyi`. One is imported when it is first asked
for (PEP 562), so that the import itself, and `distilkit --help`, need neither torch nor a second of time.
"""

import lazy_loader

__version__ = "0.1.0"

_public, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> object:
    """Import a public name from its room on first use."""
    if name in __all__:
        return _public(name)
    from distilkit.errors import nearest

    close = nearest(name, __all__)
    raise AttributeError(f"distilkit has no {name!r}" + (f"; did you mean dk.{close}?" if close else "."))

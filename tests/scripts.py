"""Scripts that are no modules, as modules: those of the CI and of the documentation."""

import importlib.util
import sys
from importlib.machinery import SourceFileLoader

import pytest


def script(path, name):
    """A script's names; it finds the files beside it, and no bytecode is left there."""
    spec = importlib.util.spec_from_loader(name, SourceFileLoader(name, str(path)))
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "dont_write_bytecode", True)
        patch.syspath_prepend(str(path.parent))
        spec.loader.exec_module(module)
    return module

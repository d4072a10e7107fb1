"""TOML specs: a pipeline written down, and read back strictly.

    distiller = load("digits.toml", ["outer.steps=10"])
    text = dumps(distiller)

Nothing here loads torch until a spec names a component that needs it.
"""

from distilkit.spec.loader import load, loads
from distilkit.spec.problems import Problem, SpecError
from distilkit.spec.python import PythonComponent
from distilkit.spec.writer import dumps, to_tree

__all__ = ["Problem", "PythonComponent", "SpecError", "dumps", "load", "loads", "to_tree"]

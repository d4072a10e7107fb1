"""`import distilkit` and `distilkit --help` are quick and leave torch alone; every public name is there when asked for."""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

import distilkit

# torch and the libraries that are heavy for the same reason; none is needed to say what the commands are.
HEAVY = ("torch", "torchvision", "torchopt", "sklearn", "matplotlib", "xarray", "zarr")
CODE = {
    "import distilkit": "import distilkit",
    "python -m distilkit --help": "import runpy; sys.argv = ['distilkit', '--help']; runpy.run_module('distilkit', run_name='__main__')",
}
# Rooms that must be readable without torch (design section 5); they may load the other libraries.
TORCHLESS = (
    "distilkit.errors",
    "distilkit.fields",
    "distilkit.spec",
    "distilkit.storage",
    "distilkit.report",
    "distilkit.cli.app",
    "distilkit.cli.run",
)
SECONDS = 1.0


def run(code: str) -> tuple[set[str], float]:
    """Run code in a fresh interpreter; return the top-level modules loaded at exit and the seconds it all took."""
    report = "import atexit, sys; atexit.register(lambda: sys.stderr.write('\\nLOADED ' + ' '.join(sys.modules)))"
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", f"{report}\n{code}"], capture_output=True, text=True, check=False, timeout=60)
    seconds = time.perf_counter() - start
    assert done.returncode == 0, done.stderr
    return {name.partition(".")[0] for name in done.stderr.rpartition("LOADED ")[2].split()}, seconds


@pytest.mark.parametrize("code", CODE.values(), ids=CODE)
def test_nothing_heavy_is_loaded(code: str) -> None:
    loaded, _ = run(code)
    assert "distilkit" in loaded
    assert not loaded & set(HEAVY)


@pytest.mark.alone
@pytest.mark.parametrize("code", CODE.values(), ids=CODE)
def test_it_is_quick(code: str) -> None:
    # The best of five: a busy machine can slow one run down, but none can speed one up.
    assert min(run(code)[1] for _ in range(5)) < SECONDS


@pytest.mark.parametrize("module", TORCHLESS)
def test_room_does_without_torch(module: str) -> None:
    assert "torch" not in run(f"import {module}")[0]


def test_the_check_sees_a_heavy_import() -> None:
    assert "matplotlib" in run("import matplotlib")[0]


@pytest.mark.parametrize("name", distilkit.__all__)
def test_public_name_resolves(name: str) -> None:
    value = getattr(distilkit, name)
    assert getattr(value, "__name__", name) == name
    assert name in dir(distilkit)


def test_names_are_listed_once_and_where_they_live() -> None:
    """Type checkers and the import read the same list; a name there comes from the module that defines it."""
    stub = Path(distilkit.__file__).with_suffix(".pyi")
    homes = {
        alias.name: f"distilkit.{node.module}"
        for node in ast.parse(stub.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert sorted(homes) == sorted(distilkit.__all__)
    wrong = {name: home for name, home in homes.items() if getattr(getattr(distilkit, name), "__module__", home) != home}
    rooms = ("distilkit.data.augmentation", "distilkit.data.preprocessing", "distilkit.evaluation", "distilkit.storage")
    assert not {name: home for name, home in wrong.items() if home not in rooms}


def test_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(AttributeError, match=r"did you mean dk\.ConvNet"):
        distilkit.Convnet  # noqa: B018
    assert not hasattr(distilkit, "xyzzy")

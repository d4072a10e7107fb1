"""Rooms import only downward, modules stay small, and the library never prints.

The rules are read from the source with `ast`, so an import inside a function or under TYPE_CHECKING counts like any other.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import distilkit

ROOT = Path(distilkit.__file__).parent

# Design section 5: a room may import the rooms in the groups before its own.
GROUPS = [
    {"ahead", "errors", "fields", "process", "progress", "ranks"},
    {"functional", "programs", "networks", "data", "recipes"},
    {"learner", "truncation", "boosting", "adaptive"},
    {"growth"},
    {"unroll"},
    {"unroller", "outer"},
    {"evaluation", "storage"},
    {"warm_start", "display"},
    {"distiller"},
    {"spec", "report"},
    {"runs"},
    {"studies"},
    {"cli"},
    {"__main__"},
]
LEVEL = {room: level for level, group in enumerate(GROUPS) for room in group}
# Within a group, only these.
BESIDE = {
    ("fields", "errors"),
    ("process", "errors"),
    ("ranks", "errors"),
    ("ranks", "process"),
    ("networks", "functional"),
    ("data", "functional"),
    ("evaluation", "storage"),
    ("adaptive", "truncation"),
}
# A module that must not know what its room may: an adjoint takes any pure functions, and is tested without a learner.
APART = {("unroll/adjoints.py", "learner"), ("unroll/inner.py", "learner"), ("unroll/offload.py", "learner")}
# The only import upward: `Distiller.run` is another name of `dk.run`, three lines that import it when they are called, and its types.
DOORS = {("distiller", "runs")}
NO_TORCH_AT_TOP = {"errors", "fields", "progress", "spec", "report", "cli", "__main__"}
NO_TORCH_AT_ALL = {"errors", "fields", "progress", "report", "recipes"}
LONGEST = 400


def imports(tree: ast.Module) -> Iterator[tuple[str, int, bool]]:
    """Yield every imported dotted name, its line, and whether it is imported when the module is."""
    lazy = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test))
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno, id(node) not in lazy) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            yield from ((f"{base}.{alias.name}", node.lineno, id(node) not in lazy) for alias in node.names)


def violations(root: Path, path: Path) -> list[str]:
    """Return what is wrong with one module of the package in `root`, a sentence each."""
    place = path.relative_to(root)
    room = place.parts[0].removesuffix(".py")
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source)
    wrong = []
    if len(source.splitlines()) > LONGEST:
        wrong.append(f"{place} has more than {LONGEST} lines")
    wrong += [
        f"{place}:{node.lineno} prints"
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    if room == "__init__":  # the table of public names points everywhere on purpose; test_lazy_import.py holds it lazy
        return wrong
    if room not in LEVEL:
        return [*wrong, f"{place} is in no room: add {room!r} to GROUPS"]
    for name, line, at_top in imports(tree):
        parts = name.split(".")
        if name.startswith("."):
            wrong.append(f"{place}:{line} imports relatively; write the name out")
        elif parts[0] == "torch":
            if room in NO_TORCH_AT_ALL or (room in NO_TORCH_AT_TOP and at_top):
                wrong.append(f"{place}:{line} imports torch")
        elif parts[0] == "distilkit":
            other = parts[1] if len(parts) > 1 else ""
            if other in {"__version__", room} or ((room, other) in DOORS and not at_top):
                continue
            if other not in LEVEL:
                wrong.append(f"{place}:{line} imports {name} past the rooms; import it from its room")
            elif (place.as_posix(), other) in APART:
                wrong.append(f"{place}:{line} imports {name}, which it must not know")
            elif LEVEL[other] > LEVEL[room] or (LEVEL[other] == LEVEL[room] and (room, other) not in BESIDE):
                wrong.append(f"{place}:{line} imports {name}, which is not below {room!r}")
    return wrong


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_module_keeps_the_rules(path: Path) -> None:
    assert violations(ROOT, path) == []


# What the checker must catch: where the module is, what stands in it, and a piece of the complaint.
PLANTED = {
    "upward": ("functional/losses.py", "from distilkit.distiller import Distiller", "not below 'functional'"),
    "upward, in a function": ("learner.py", "def f():\n    import distilkit.storage.layout", "not below 'learner'"),
    "upward, for types only": (
        "networks/convnet.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from distilkit.learner import Learner",
        "not below",
    ),
    "sideways": ("truncation.py", "from distilkit.learner import Learner", "not below 'truncation'"),
    "an adjoint that knows the learner": ("unroll/adjoints.py", "from distilkit.learner import Learner", "must not know"),
    "a door left open": ("distiller.py", "from distilkit.runs.run import run", "not below 'distiller'"),
    "data to networks": ("data/sources/base.py", "from distilkit.networks import MLP", "not below 'data'"),
    "through the front door": ("learner.py", "from distilkit import Stream", "past the rooms"),
    "through the front door whole": ("learner.py", "import distilkit", "past the rooms"),
    "relative": ("unroller.py", "from .learner import Learner", "relatively"),
    "a room without a place": ("helpers.py", "", "in no room"),
    "torch at the top of the spec": ("spec/loader.py", "import torch.nn", "imports torch"),
    "torch in a function of the report": ("report/page.py", "def f():\n    from torch import Tensor", "imports torch"),
    "print": ("functional/losses.py", "def f():\n    print(1)", "prints"),
    "too long": ("functional/losses.py", "\n" * (LONGEST + 1), "more than"),
}


@pytest.mark.parametrize(("place", "source", "complaint"), PLANTED.values(), ids=PLANTED)
def test_checker_catches_a_planted_violation(tmp_path: Path, place: str, source: str, complaint: str) -> None:
    path = tmp_path / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source, encoding="utf-8")
    (found,) = violations(tmp_path, path)
    assert complaint in found


# What it must let pass, so that the test above is not won by refusing everything.
ALLOWED = {
    "downward": ("distiller.py", "from distilkit.learner import Learner\nfrom distilkit.errors import RunError"),
    "own room": ("data/distilled.py", "from distilkit.data.preprocessing import Whiten"),
    "listed neighbour": ("networks/mlp.py", "from distilkit.functional.streams import Stream"),
    "a door": ("distiller.py", "def f():\n    from distilkit.runs.run import run"),
    "version": ("storage/layout.py", "from distilkit import __version__"),
    "torch in a function of the spec": ("spec/loader.py", "def f():\n    import torch"),
    "a doctest that prints": ("learner.py", '"""\n>>> print(1)\n1\n"""'),
}


@pytest.mark.parametrize(("place", "source"), ALLOWED.values(), ids=ALLOWED)
def test_checker_lets_honest_code_pass(tmp_path: Path, place: str, source: str) -> None:
    path = tmp_path / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source, encoding="utf-8")
    assert violations(tmp_path, path) == []


TREE = Path(__file__).parents[1] / "docs" / "architecture.md"


def listed(text: str) -> dict[str, str]:
    """The modules of the tree in a page, with the line of each."""
    folders: list[str] = []
    found = {}
    (block,) = re.findall(r"```text\ndistilkit/\n(.*?)```", text, flags=re.DOTALL)
    for line in block.splitlines():
        name, _, words = line.strip().partition(" ")
        folders[(len(line) - len(line.lstrip())) // 2 - 1 :] = [name]
        if not name.endswith("/"):
            path = "".join(folders)
            assert path not in found, path
            found[path] = words.strip()
    return found


def test_the_tree_of_the_page_is_the_tree() -> None:
    lines = listed(TREE.read_text(encoding="utf-8"))
    files = {path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py")}
    assert set(lines) == {file for file in files if not file.endswith("/__init__.py")}
    assert all(lines.values())
    assert len(set(lines.values())) == len(lines)
    folders = re.findall(r"(\w+)/ +\w", TREE.read_text(encoding="utf-8"))
    assert {Path(file).parent.name for file in files} == {"", *folders}


def test_the_table_of_the_page_is_the_order_of_the_rooms() -> None:
    rows = TREE.read_text(encoding="utf-8").partition("| rooms | why there |\n| --- | --- |\n")[2].splitlines()
    assert [set(re.findall(r"`(\w+)`", row.split("|")[1])) for row in rows] == GROUPS[:-1]

"""Type checkers find the mistakes that `user.py` marks, and no others. The package itself is checked by `.ci/run`."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
USER = Path(__file__).with_name("user.py")
PLANTED = {number for number, line in enumerate(USER.read_text(encoding="utf-8").splitlines(), 1) if re.search(r"  # E: ", line)}


def checked(*command: str) -> str:
    """What a checker prints. It runs in the project's folder, with the project's settings."""
    return subprocess.run([sys.executable, "-m", *command, str(USER)], cwd=ROOT, capture_output=True, text=True).stdout


def test_mistakes_are_planted():
    assert len(PLANTED) >= 20


def test_mypy_finds_them():
    printed = checked("mypy")  # what it keeps serves the check of the package
    found = {int(match[1]): match[0] for match in re.finditer(r"user\.py:(\d+): error: .*", printed)}
    assert found.keys() == PLANTED, printed


def test_pyright_finds_them():
    printed = checked("basedpyright", "--outputjson")
    errors = [one for one in json.loads(printed)["generalDiagnostics"] if one["severity"] == "error"]
    found = {one["range"]["start"]["line"] + 1: one["message"] for one in errors}
    assert found.keys() == PLANTED, found

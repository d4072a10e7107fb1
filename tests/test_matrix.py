"""The support matrix: its cells are what pyproject.toml allows, a failure is recorded as one, and its table shows it."""

import itertools
import json
import re
import sys
import tomllib
from functools import partial
from pathlib import Path

import attrs
import pytest
import torch

import distilkit as dk
from tests.scripts import script

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


matrix = script(ROOT / ".ci/matrix", "matrix")
matrix_checks = script(ROOT / ".ci/matrix_checks.py", "matrix_checks")
tables = script(ROOT / "docs/tools/tables.py", "tables")


def test_cells_are_the_torches_that_are_allowed():
    bounds = next(line for line in PROJECT["dependencies"] if line.startswith("torch>="))
    low, high = map(int, re.fullmatch(r"torch>=2\.(\d+),<2\.(\d+)", bounds).groups())
    told = {word for cell in matrix.CELLS.values() for word in cell.requirements}
    assert told == {f"torch==2.{minor}.*" for minor in range(low, high)}


def test_cells_are_the_pythons_that_are_named():
    named = {line.rsplit(" :: ")[-1] for line in PROJECT["classifiers"] if re.search(r"Python :: 3\.\d+$", line)}
    assert {cell.python for cell in matrix.CELLS.values()} == named
    assert PROJECT["requires-python"] == f">={min(named, key=lambda v: int(v.split('.')[1]))}"
    assert matrix.CELLS["lowest"] == matrix.Cell("3.11", (), "lowest-direct")


def test_every_dependency_declares_a_lowest_version():
    declared = matrix.declared()
    assert {"numpy", "torch", "torchvision", "h5py", "pytest"} <= set(declared)
    assert all(declared.values()), declared


def test_a_bound_that_cannot_be_installed_is_told():
    exact = matrix.declared()
    assert matrix.above_declared(exact | {"numpy": f"{exact['numpy']}.0"}) == ""
    assert f"numpy >= {exact['numpy']}, but 99.1" in matrix.above_declared(exact | {"numpy": "99.1"})


def test_a_python_that_is_not_here_is_left_to_uv():
    assert matrix.find_python("{}.{}".format(*sys.version_info)) == sys.executable
    assert matrix.find_python("3.99") == "3.99"


DYING = """#!/bin/sh
# Called as CHECKS --out FILE: the first time it dies within check b, the second time it goes on behind that.
if grep -q '"b"' "$3" 2>/dev/null; then
  echo '{"name": "c", "passed": true, "seconds": 1, "error": "", "note": ""}' >> "$3"
else
  echo '{"name": "a", "passed": true, "seconds": 1, "error": "", "note": ""}' >> "$3"
  echo '{"name": "b", "passed": false, "seconds": null, "error": "no outcome", "note": ""}' >> "$3"
  kill -SEGV $$
fi
"""


@pytest.mark.parametrize(
    ("python", "expected"),
    [
        (DYING, {"a": "", "b": "the process ended in the middle of it, or it hung: SIGSEGV", "c": ""}),
        ("#!/bin/sh\nexit 3\n", {"start of the checks": "exit code 3; see "}),
    ],
    ids=["in the middle", "at the start"],
)
def test_a_process_that_dies_is_a_failure(tmp_path, python, expected):
    program = tmp_path / "python"
    program.write_text(python)
    program.chmod(0o755)
    found = {check["name"]: check for check in matrix.run_checks("lowest", program, tmp_path, short=False)}
    assert list(found) == list(expected)
    for name, error in expected.items():
        assert found[name]["error"].startswith(error)
        assert found[name]["passed"] == (error == "")


def cell(passed, failed, **changes):
    checks = [{"name": "good", "passed": True, "seconds": 1.0, "error": "", "note": ""}] * passed
    checks += [{"name": "bad", "passed": False, "seconds": 1.0, "error": "ValueError: a | b", "note": ""}] * failed
    versions = {"python": "3.11.7", "torch": "2.11.0", "numpy": "2.0.0", "xarray": "2025.6.1", "zarr": "3.1.4"}
    processor = {"name": "A processor", "family": "6", "model": "143", "flags": ["avx2"], "cores": 2}
    about = {"date": "2026-11-26", "versions": versions, "processor": processor, "tree": matrix.fingerprint(), "short": False}
    return about | {"passed": passed, "failed": failed, "seconds": 1.0, "checks": checks} | changes


@pytest.mark.parametrize(("failed", "status"), [(0, 0), (1, 1)])
def test_a_failed_check_fails_the_command(tmp_path, monkeypatch, failed, status):
    monkeypatch.setattr(matrix, "run", lambda name, where, short: cell(2, failed))
    monkeypatch.setattr(sys, "argv", ["matrix", "torch-2.11", "--short", "--where", str(tmp_path)])
    assert matrix.main() == status
    assert json.loads((tmp_path / "matrix.json").read_text())["cells"]["torch-2.11"]["failed"] == failed


@pytest.mark.parametrize(
    ("recorded", "short", "again"),
    [({}, False, False), ({"tree": "another"}, False, True), ({"short": True}, False, True), ({"short": True}, True, False)],
)
def test_resume_leaves_out_what_is_recorded_for_this_tree(tmp_path, monkeypatch, recorded, short, again):
    out, ran = tmp_path / "matrix.json", []
    matrix.write(out, {"lowest": cell(1, 0, **recorded)})
    monkeypatch.setattr(matrix, "run", lambda name, where, short: ran.append(name) or cell(1, 0))
    words = ["--resume", "--where", str(tmp_path), "--out", str(out), *(["--short"] if short else [])]
    monkeypatch.setattr(sys, "argv", ["matrix", "lowest", *words])
    assert matrix.main() == 0
    assert ran == (["lowest"] if again else [])


def test_the_table_shows_every_cell_and_every_failure(tmp_path, monkeypatch):
    slower = cell(3, 0, short=True)
    slower["checks"] = [*slower["checks"][:2], slower["checks"][0] | {"name": "late", "note": "fell back: to recorded operations"}]
    matrix.write(tmp_path / "matrix.json", {"lowest": slower, "torch-2.11": cell(7, 1)})
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    lines = tables.on_page_markdown("<!-- table: matrix -->").splitlines()
    versions = "3.11.7 | 2.11.0 | 2.0.0 | 2025.6.1 | 3.1.4"
    assert lines[2] == f"| torch-2.11 | {versions} | 7 | 0 | 1 | 2026-11-26 |"
    assert lines[3] == f"| lowest, a few checks | {versions} | 3 | 1 | 0 | 2026-11-26 |"
    assert "- torch-2.11, bad: failed. `ValueError: a | b`" in lines
    assert "- lowest, late: `fell back: to recorded operations`" in lines
    assert "*Run on A processor (family 6, model 143) with avx2.*" in lines


def test_every_check_has_its_name_and_short_ones_are_few():
    checks = list(matrix_checks.checks())
    assert len({check.name for check in checks}) == len(checks)
    short = [check.name for check in checks if check.short]
    assert 6 <= len(short) <= 10
    assert {"tests/unroll/test_meta_gradient.py", "distilkit run examples/digits.toml, and evaluate"} <= set(short)


def test_every_two_settings_meet_in_a_compiled_check():
    names = [check.name.split(", ") for check in matrix_checks.checks() if check.name.startswith("ConvNet") and check.name.count(",") == 4]
    compiled = [row for row in names if row[1] != "trace"]
    settings = [
        ("ConvNet-3", "ConvNet-4"),
        ("auto", "inductor"),
        ("float32", "bfloat16"),
        ("channels last auto", "channels last on", "channels last off"),
    ]
    for left, right in itertools.combinations(range(4), 2):
        assert {(row[left], row[right]) for row in compiled} == {*itertools.product(settings[left], settings[right])}
    assert {row[4] for row in compiled} == {row[4] for row in names} == {"plain", *matrix_checks.WAYS}


def broken():
    raise ValueError("first line\nsecond line")


def test_a_failing_check_is_recorded_and_hides_no_other():
    found = []
    for check in (matrix_checks.Check("bad", broken), matrix_checks.Check("good", lambda: "slowly")):
        matrix_checks.one(check, found.append)
    assert [(one["name"], one["passed"], one["error"], one["note"]) for one in found] == [
        ("bad", False, "no outcome", ""),
        ("bad", False, "ValueError: first line", ""),
        ("good", False, "no outcome", ""),
        ("good", True, "", "slowly"),
    ]


SMALL = matrix_checks.Inner(dk.ConvNet(width=4, depth=2, activation="gelu"), side=8)


@pytest.mark.parametrize("cosine", [None, 0.99])
def test_a_wrong_gradient_fails_its_check(monkeypatch, cosine):
    check = partial(matrix_checks.compare, SMALL, cosine=cosine, compile="trace")
    assert check() == ""
    expected = matrix_checks.reference(SMALL)
    monkeypatch.setattr(matrix_checks, "reference", lambda inner: expected)
    for name, wrong in (("images", expected.images.flip(0)), ("labels", expected.labels * float("nan")), ("loss", expected.loss * 2)):
        planted = expected._replace(**{name: wrong})
        monkeypatch.setattr(matrix_checks, "meta_gradient", lambda *_, planted=planted: (planted, []))
        with pytest.raises(AssertionError, match=name):
            check()


@pytest.mark.parametrize(("rounded", "width"), [(2.0, 128), (9.0, 32)])
def test_networks_are_narrow_where_bfloat16_is_slow(rounded, width, monkeypatch):
    matrix_checks.width_in_bfloat16.cache_clear()
    monkeypatch.setattr(matrix_checks, "convolution_seconds", lambda dtype, *_: rounded if dtype is torch.bfloat16 else 1.0)
    made = [check.run for check in matrix_checks.checks() if "bfloat16" in check.name]
    matrix_checks.width_in_bfloat16.cache_clear()
    assert {run.args[0].network.width for run in made} == {width}
    assert {run.func is matrix_checks.narrowed for run in made} == {width == 32}
    assert matrix_checks.narrowed(SMALL, compile="trace") == "of width 4, as this processor is slow in bfloat16"


def test_a_fallback_is_noted(monkeypatch):
    network = attrs.evolve(SMALL.network, activation="relu")
    inner = SMALL._replace(network=network)
    matrix_checks.reference(inner)
    monkeypatch.setattr("distilkit.programs.programs.record", broken)
    assert matrix_checks.compare(inner, compile="trace").startswith("fell back: ")

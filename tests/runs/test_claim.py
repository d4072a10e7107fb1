"""One run, one folder: side by side, after a failure, and beside what lies there already."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import distilkit as dk
from distilkit.errors import RunError
from distilkit.runs.claim import claimed, free_folder
from tests.commands import Forked, command, distilkit

DIGITS = Path(__file__).parents[2] / "examples" / "digits.toml"
SHORT = ["outer.steps=2", "evaluation.seeds=1", "evaluation.steps=[1]", "evaluation.every=0", "evaluation.baselines=[]"]


def test_many_at_once_get_folders_of_their_own(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(free_folder, [tmp_path / "runs" / "seed"] * 8))
    assert {folder.name for folder in found} == {"seed", *(f"seed-{k}" for k in range(2, 9))}


def test_a_folder_in_use_is_refused(tmp_path):
    with claimed(tmp_path / "run"), pytest.raises(RunError, match=r"Another process writes(.|\n)*run-2"), claimed(tmp_path / "run"):
        pass
    assert not (tmp_path / "run").exists()  # nothing was written
    with claimed(tmp_path / "run"):  # and it is free again
        (tmp_path / "run" / "something").touch()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["something"]


def die_with_it(folder):
    held = claimed(Path(folder))
    held.__enter__()
    os._exit(9)


def test_a_lock_that_a_kill_left_is_no_lock(tmp_path):
    assert Forked(die_with_it, tmp_path, folder=tmp_path / "said").done().returncode == 9
    assert (tmp_path / ".lock").exists()
    with claimed(tmp_path):
        pass


def test_a_spec_that_lies_there_is_not_written_over(tmp_path):
    own = tmp_path / "spec.toml"
    own.write_text("# mine\n" + DIGITS.read_text())
    done = distilkit("run", own, "--out", tmp_path, *(f"--set={change}" for change in SHORT))
    assert done.returncode == 2
    assert "holds a spec.toml" in done.stderr
    assert own.read_text().startswith("# mine")


def test_a_run_that_cannot_start_leaves_nothing(tmp_path):
    done = distilkit("run", DIGITS, "--set", "images.per_class=900", *(f"--set={change}" for change in SHORT), cwd=tmp_path)
    assert done.returncode == 2
    assert not list((tmp_path / "runs").iterdir())


@pytest.mark.slow
def test_three_seeds_side_by_side(tmp_path):
    """The most usual thing to do: none is lost, and none is mixed with another."""
    words = ["run", DIGITS, *(f"--set={change}" for change in SHORT)]
    running = [Forked(command, *words, f"--set=seed={n}", folder=tmp_path / f"said {n}", cwd=tmp_path) for n in range(3)]
    for process in running:
        done = process.done()
        assert done.returncode == 0, done.stderr
    seeds = [dk.open(folder).attrs["seed"] for folder in (tmp_path / "runs").iterdir()]
    assert sorted(seeds) == [0, 1, 2]

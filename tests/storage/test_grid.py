"""Grids on disk: they go on after a kill, and two processes share one, to the same bits as one that was left alone."""

import shutil
import signal
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import distilkit as dk
from distilkit.errors import RunError
from distilkit.progress import Silent
from distilkit.storage import grid, require_writable, verify
from distilkit.storage.grid import done, fill
from tests.commands import FORKS, Forked

TEMPLATE = xr.Dataset(
    {
        "value": (("a", "b", "c"), np.full((5, 4, 3), np.nan)),
        "count": (("a", "b"), np.full((5, 4), -1)),
        "fixed": ("c", [1.0, 2.0, 3.0]),
        "taken": (("a", "c"), np.ones((5, 3), np.int8)),
    },
    {"a": np.arange(5), "b": np.arange(4), "c": np.arange(3)},
)
UNITS = {"a": 2, "b": 3}


def compute(region):
    a, b = np.meshgrid(TEMPLATE.a[region["a"]], TEMPLATE.b[region["b"]], indexing="ij")
    return {"value": np.sin(a[..., None] * 10 + b[..., None] + np.arange(3)), "count": a + b}


def same(one, two):
    return all(np.array_equal(one[name], two[name]) for name in {*one.variables, *two.variables})


def test_memory_and_disk_agree(tmp_path):
    one, two = fill(TEMPLATE, UNITS, compute, identity={}), fill(TEMPLATE, UNITS, compute, identity={}, folder=tmp_path / "grid")
    assert same(one, two)
    assert one["value"].notnull().all()
    assert np.isnan(TEMPLATE["value"]).all()
    assert done(tmp_path / "grid") == 6
    tree = dk.open(tmp_path / "grid")
    assert same(tree.to_dataset(), one)


def test_finished_units_are_not_repeated(tmp_path):
    calls = []

    def failing(region):
        if len(calls) == 4:
            raise KeyboardInterrupt
        calls.append(region)
        return compute(region)

    with pytest.raises(KeyboardInterrupt):
        fill(TEMPLATE, UNITS, failing, identity={}, folder=tmp_path)
    assert done(tmp_path) == 4
    again, told = [], []

    class Told(Silent):
        def advance(self, done, total):
            told.append((done, total))

    grid = fill(TEMPLATE, UNITS, lambda r: again.append(r) or compute(r), identity={}, folder=tmp_path, progress=Told())
    assert len(again) == 2
    assert not [r for r in again if r in calls]
    assert told[-1] == (6, 6)
    assert same(grid, fill(TEMPLATE, UNITS, compute, identity={}))


def test_another_grid_is_refused(tmp_path):
    fill(TEMPLATE, UNITS, compute, identity={"seed": 0}, folder=tmp_path / "grid")
    with pytest.raises(RunError, match=r"differs in seed \(0 there, 1 here\)"):
        fill(TEMPLATE, UNITS, compute, identity={"seed": 1}, folder=tmp_path / "grid")
    TEMPLATE.to_zarr(tmp_path / "run" / "results.zarr", zarr_format=3, consolidated=False)
    with pytest.raises(RunError, match="holds the results of a run"):
        fill(TEMPLATE, UNITS, compute, identity={}, folder=tmp_path / "run")


def work(folder, who, seconds):
    """In a process of its own: a grid whose units take a while, say which process did them, and can be done by several."""
    folder = Path(folder)
    template = xr.Dataset({"value": (("a", "b"), np.full((12, 5), np.nan))}, {"a": np.arange(12), "b": np.arange(5)})

    def compute(region):
        with open(folder / "log", "a") as log:
            log.write(f"{who} {region['a'].start}\n")
        time.sleep(float(seconds))
        return {"value": np.cos(template.a.values[region["a"]][:, None] * 7 + np.arange(5))}

    fill(template, {"a": 1}, compute, identity={}, folder=folder)


def start(folder, who, seconds):
    folder.mkdir(exist_ok=True)
    return Forked(work, folder, who, seconds, folder=folder.with_name(f"{folder.name} {who} said"))


def value(folder):
    with xr.open_zarr(folder / "results.zarr") as grid:
        return grid["value"].values


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.slow
def test_a_killed_grid_goes_on(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(whole, "x", 0).done(60).returncode == 0
    first = start(killed, "first", 0.05)
    wait_for(lambda: done(killed) >= 5)
    first.job.kill()
    assert first.done(60).returncode == -signal.SIGKILL
    kept = done(killed)
    assert 5 <= kept < 12
    assert start(killed, "second", 0).done(60).returncode == 0
    lines = [line.split() for line in (killed / "log").read_text().splitlines()]
    assert sum(who == "second" for who, _ in lines) == 12 - kept
    assert np.array_equal(value(killed), value(whole))


@pytest.mark.slow
def test_two_processes_share_a_grid(tmp_path):
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    assert start(alone, "x", 0).done(60).returncode == 0
    both = [start(shared, who, 0.1) for who in ("left", "right")]
    assert [process.done(120).returncode for process in both] == [0, 0]
    lines = [line.split() for line in (shared / "log").read_text().splitlines()]
    assert sorted(int(unit) for _, unit in lines) == list(range(12))  # none lost, none doubled
    assert {who for who, _ in lines} == {"left", "right"}
    assert np.array_equal(value(shared), value(alone))


def chunks(folder):
    return sorted(path for path in (folder / "results.zarr").rglob("*") if path.is_file() and path.name != "zarr.json")


@pytest.mark.parametrize("harm", ["lost", "damaged"])
def test_a_unit_that_is_lost_or_damaged_is_computed_again(harm, tmp_path):
    """Each chunk in turn: the grid is as it was, or, where no unit can mend it, an error says so."""
    whole = fill(TEMPLATE, UNITS, compute, identity={}, folder=tmp_path / "whole")
    mended = 0
    for number, original in enumerate(chunks(tmp_path / "whole")[:: 1 if harm == "lost" else 3]):
        folder = tmp_path / str(number)
        shutil.copytree(tmp_path / "whole", folder)
        chunk = folder / original.relative_to(tmp_path / "whole")
        if harm == "lost":
            chunk.unlink()
        else:
            content = bytearray(chunk.read_bytes())
            content[len(content) // 2] ^= 16
            chunk.write_bytes(content)
        assert verify(folder)[1]
        if original.relative_to(tmp_path / "whole" / "results.zarr").parts[0] in ("value", "count"):
            assert same(whole, fill(TEMPLATE, UNITS, compute, identity={}, folder=folder))
            assert not verify(folder)[1]
            mended += 1
        else:
            with pytest.raises(RunError, match="move it away"):
                fill(TEMPLATE, UNITS, compute, identity={}, folder=folder)
    assert mended >= (12 if harm == "lost" else 3)


def folders_at_once(folder):
    """What processes do that start together."""
    for number in range(40):
        require_writable(folder / str(number) / "deep")
        (folder / str(number)).mkdir(parents=True, exist_ok=True)


def test_looking_whether_a_folder_can_be_made_takes_none_away(tmp_path):
    with ProcessPoolExecutor(3, mp_context=FORKS) as pool:
        for done in [pool.submit(folders_at_once, tmp_path) for _ in range(3)]:
            done.result()
    assert len(list(tmp_path.iterdir())) == 40


def test_a_kill_while_the_grid_is_made(tmp_path, monkeypatch):
    real = grid.write_sealed

    def killed(data, store, encoding):
        real(data, store, encoding)
        (store / "zarr.json").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(grid, "write_sealed", killed)
        with pytest.raises(KeyboardInterrupt):
            fill(TEMPLATE, UNITS, compute, identity={}, folder=tmp_path)
    assert same(fill(TEMPLATE, UNITS, compute, identity={}, folder=tmp_path), fill(TEMPLATE, UNITS, compute, identity={}))


def test_a_store_that_is_gone_is_filled_anew(tmp_path):
    whole = fill(TEMPLATE, UNITS, compute, identity={}, folder=tmp_path)
    shutil.rmtree(tmp_path / "results.zarr")
    assert same(whole, fill(TEMPLATE, UNITS, compute, identity={}, folder=tmp_path))
    for content in ("", "[]", "{}", '{"attributes": 3}'):
        (tmp_path / "results.zarr" / "zarr.json").write_text(content)
        with pytest.raises(RunError, match="move it away"):
            fill(TEMPLATE, UNITS, compute, identity={}, folder=tmp_path)


def test_a_folder_that_cannot_be_written_is_told_before_the_work(tmp_path):
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "in", tmp_path / ("x" * 300), tmp_path / "a\0b"):
        with pytest.raises(RunError, match="cannot be written"):
            fill(TEMPLATE, UNITS, None, identity={}, folder=out)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]

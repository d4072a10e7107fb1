"""Grids that workers fill: whole and the same to the bit, whatever executor, also where one of them is killed or the executor is gone."""

import os
import signal
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import numpy as np
import pytest
import xarray as xr

from distilkit.errors import DistilkitError, FieldError
from distilkit.storage import workers as module
from distilkit.storage.grid import done, fill, units
from distilkit.storage.workers import ROUNDS, share_out

TEMPLATE = xr.Dataset({"value": (("a", "c"), np.full((6, 3), np.nan))}, {"a": np.arange(6)})
WHOLE = np.sin(np.arange(6)[:, None] * 10 + np.arange(3))


def filled(folder, workers=None, compute=None, **more):
    def usual(region):
        return {"value": np.sin(TEMPLATE.a.values[region["a"]][:, None] * 10 + np.arange(3))}

    return fill(TEMPLATE, {"a": 1}, compute or usual, identity={}, folder=folder, workers=workers, **more)["value"].values


class Later:
    """An executor of no known class: its futures have `done` and `result`, and nothing else. Its first `lost` tasks are lost."""

    def __init__(self, lost=0):
        self.lost, self.given = lost, 0

    def submit(self, fn, /, *args):
        self.given += 1
        lost = self.given <= self.lost

        class Ticket:
            def done(self):
                return True

            def result(self):
                if lost:
                    raise OSError("the machine is gone")
                return fn(*args)

        return Ticket()


class Gone:
    """An executor that takes nothing any more."""

    def submit(self, fn, /, *args):
        raise BrokenProcessPool("all workers are gone")


class Silent(Later):
    """One whose tasks are always lost."""

    def submit(self, fn, /, *args):
        future = Future()
        self.given += 1
        future.set_exception(BrokenProcessPool("gone"))
        return future


EXECUTORS = {
    "two processes": lambda: 2,
    "threads": lambda: ThreadPoolExecutor(2),
    "somebody's": Later,
    "one that loses three": lambda: Later(lost=3),
    "one that loses all": Silent,
    "one that is gone": Gone,
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) if name == "two processes" else name for name in EXECUTORS])
def test_a_grid_is_whole(name, tmp_path, caplog):
    executor = EXECUTORS[name]()
    assert np.array_equal(filled(tmp_path / "grid", executor), WHOLE)
    assert done(tmp_path / "grid") == 6
    assert ("is done here" in caplog.text) == (name in ("one that loses all", "one that is gone"))
    assert not [*tmp_path.rglob("*.work")]
    if name == "one that loses three":
        assert executor.given == 6 + 3
    if name == "one that loses all":
        assert executor.given == 6 * ROUNDS


@pytest.mark.slow
def test_a_worker_that_is_killed_loses_nothing(tmp_path):
    victim = tmp_path / "victim"

    def deadly(region):
        if region["a"].start == 2 and not victim.exists():
            victim.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return {"value": np.sin(TEMPLATE.a.values[region["a"]][:, None] * 10 + np.arange(3))}

    assert np.array_equal(filled(tmp_path / "grid", 2, deadly), WHOLE)
    assert victim.exists()


@pytest.mark.slow
@pytest.mark.usefixtures("forked_workers")
def test_what_the_work_raises_comes_back(tmp_path):
    def wrong(region):
        if region["a"].start == 1:
            raise FieldError("budget", 7, "at most 3")
        return {"value": np.zeros((1, 3))}

    with pytest.raises(FieldError, match="budget = 7 cannot be: it takes at most 3") as told:
        filled(tmp_path / "one", 2, wrong)
    assert told.value.field == "budget"

    def bug(region):
        raise ZeroDivisionError("by nought")

    with pytest.raises(DistilkitError, match="A worker met ZeroDivisionError: by nought"):
        filled(tmp_path / "two", ThreadPoolExecutor(1), bug)


@pytest.mark.slow
def test_what_a_worker_has_built_serves_its_next_task(tmp_path):
    """One that takes all six tasks makes the work once: what it loads, such as data, is loaded once."""

    class Heavy:
        def __reduce__(self):
            return noted, (str(tmp_path / "made"),)

    heavy = Heavy()

    def compute(region):
        assert heavy
        return {"value": np.sin(TEMPLATE.a.values[region["a"]][:, None] * 10 + np.arange(3))}

    with ProcessPoolExecutor(1) as pool:
        assert np.array_equal(filled(tmp_path / "grid", pool, compute), WHOLE)
    assert (tmp_path / "made").read_text() == "once\n"


def noted(path):
    """In the place of something heavy, in a worker."""
    with open(path, "a") as file:
        file.write("once\n")
    return "heavy"


def test_shards_leave_the_rest(tmp_path):
    second = filled(tmp_path, shard=(2, 3))
    assert (done(tmp_path), units(tmp_path)) == (2, 6)
    assert np.array_equal(np.isnan(second).all(1), [True, False, True, True, False, True])
    filled(tmp_path, shard=(1, 3))
    assert np.array_equal(filled(tmp_path, shard=(3, 3)), WHOLE)


def test_what_cannot_be_is_said(tmp_path):
    for more, words in [
        ({"shard": (0, 3)}, r"a part such as \(2, 8\)"),
        ({"shard": (4, 3)}, r"a part such as \(2, 8\)"),
        ({"workers": 0}, "at least 1, or an executor"),
        ({"workers": "4"}, "at least 1, or an executor"),
        ({"workers": True}, "at least 1, or an executor"),
    ]:
        with pytest.raises(FieldError, match=words):
            filled(tmp_path / "grid", **more)
    for more in ({"workers": 2}, {"shard": (1, 2)}):
        with pytest.raises(FieldError, match="a folder, where workers or shards write"):
            filled(None, **more)


def test_a_worker_that_is_told_to_end_is_lost_but_ctrl_c_ends_all(tmp_path, monkeypatch):
    def work(number):
        with (tmp_path / "begun").open("a") as begun:
            begun.write(".")
        if (tmp_path / "begun").stat().st_size == 1:
            raise KeyboardInterrupt("SIGTERM")
        return number

    with pytest.raises(KeyboardInterrupt):
        share_out(work, [1, 2], Later(), folder=tmp_path, seen=lambda _: None)
    (tmp_path / "begun").unlink()
    monkeypatch.setattr(module, "parent_process", lambda: "the process that gives out the work")
    assert share_out(work, [1, 2], Later(), folder=tmp_path, seen=lambda _: None) == {1: 1, 2: 2}
    assert (tmp_path / "begun").read_text() == "..."

"""Each operation on a file of a run fails once in turn: nothing that was there before is lost, and the next run goes on.

An audit hook of Python hears of every file that is opened to be written, every rename and every folder that is made, in whichever thread;
fsync, which has no audit event, is wrapped. In a "crash" every operation after the first that fails, fails too, as after a kill.
"""

import errno
import os
import random
import shutil
import sys

import pytest

import distilkit as dk
from distilkit.errors import ResourceError, RunError
from distilkit.runs import run as module
from distilkit.storage import verify
from tests.alike import same


class Fault:
    """Fails at the n-th operation below a folder."""

    def __init__(self):
        self.folder, self.at, self.stays, self.number, self.seen = None, 0, False, errno.EIO, 0
        sys.addaudithook(self.heard)  # which cannot be taken away again

    def arm(self, folder, at, number=errno.EIO, stays=False):
        self.folder, self.at, self.number, self.stays, self.seen = str(folder), at, number, stays, 0

    def disarm(self):
        self.folder = None
        return self.seen

    def heard(self, event, arguments):
        if self.folder is None or event not in ("open", "os.rename", "os.mkdir"):
            return
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        if isinstance(arguments[0], (str, os.PathLike)) and os.fspath(arguments[0]).startswith(self.folder):
            self.operation()

    def operation(self):
        self.seen += 1
        if self.seen == self.at or (self.stays and self.seen > self.at):
            raise OSError(self.number, os.strerror(self.number), self.folder)


FAULT = Fault()


pytestmark = pytest.mark.figures


@pytest.fixture(autouse=True)
def _syncs(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda number: FAULT.operation() if FAULT.folder else None)
    draw = module.save_figures  # of interest only where it fails
    monkeypatch.setattr(module, "save_figures", lambda *given: draw(*given) if FAULT.folder else None)
    monkeypatch.setattr(module, "FIRST_WRITE", 1e9)
    yield
    FAULT.disarm()


def tiny(steps=3):
    return dk.Distiller(
        dk.Digits(),
        dk.Learner(dk.MLP(hidden=(8,)), dk.Adam(lr=0.01)),
        dk.RandomTruncation(horizon=4, window=2),
        labels=dk.Labels(learn=True),
        outer=dk.Outer(steps=steps, batch_size=32),
        unroller=dk.Unroller(compile="eager"),
        evaluation=dk.Evaluation(compile="eager", seeds=1, steps=(3,), every=2, baselines=()),
        device="cpu",
    )


def go(folder, steps=3):
    """Writes at every turn, or at its end alone where each operation of a write is to be seen: there are hundreds."""
    return dk.run(tiny(steps), folder, checkpoint_every=0.0 if POINTS == "two" else 1e9)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run to which nothing happens."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    begun(folder)
    return go(folder)


def begun(folder):
    """A run of one step, which is to go on."""
    go(folder, steps=1)
    return dk.open(folder)


WAYS = [(number, stays) for number in (errno.ENOSPC, errno.EIO) for stays in (False, True)]
POINTS = os.environ.get("DISTILKIT_TEST_FAULTS", "two")  # or "each once", which takes five minutes


def points(total, way, wanted=POINTS):
    """Which operations fail in this way: two of them; or every fourth, so that each fails in one of the four ways."""
    k = WAYS.index(way)
    return sorted(random.Random(k).sample(range(1, total + 1), 2)) if wanted == "two" else range(1 + k, total + 1, 4)


def test_each_operation_fails_in_one_of_the_ways():
    assert sorted(at for way in WAYS for at in points(301, way, "each once")) == [*range(1, 302)]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "stays"), WAYS, ids=["ENOSPC once", "ENOSPC crash", "EIO once", "EIO crash"])
def test_an_operation_that_fails_costs_nothing_older(number, stays, whole, tmp_path):
    before = begun(tmp_path / "begun")
    shutil.copytree(tmp_path / "begun", tmp_path / "counted")
    FAULT.arm(tmp_path / "counted", 0)
    go(tmp_path / "counted")
    total = FAULT.disarm()
    assert total > 100
    for at in points(total, (number, stays)):
        folder = tmp_path / str(at)
        shutil.copytree(tmp_path / "begun", folder)
        FAULT.arm(folder, at, number, stays)
        told = None
        try:
            go(folder)
        except (ResourceError, RunError) as error:
            told = str(error)
        FAULT.disarm()
        assert told is None or os.strerror(number) in told, at
        assert not verify(folder)[1], at
        assert dk.open(folder)["history"].sizes["outer_step"] >= before["history"].sizes["outer_step"], at
        same(whole, go(folder))

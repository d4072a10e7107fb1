"""One thread for every test, since two that spin on two busy cores are slower than one; a cache for all; and what many tests take."""

import os
import shutil
from functools import partial

import hypothesis
import psutil
import pytest
import torch

torch.set_num_threads(1)
hypothesis.settings.register_profile("distilkit", deadline=None)  # a busy machine is no fault of an example
hypothesis.settings.load_profile("distilkit")

MEMORY, ROOM = "/dev/shm", 12 * 2**30  # of Linux; a container may have little of it
if os.access(MEMORY, os.W_OK) and min(shutil.disk_usage(MEMORY).free, psutil.virtual_memory().available) > ROOM:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", MEMORY)  # hundreds of small files a run, for which a disk takes its time


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="no CUDA device here")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory):
    """The folder of a run as small as one can be that has all a run can have: looks at validation, a best set, a test and baselines."""
    import distilkit as dk

    folder = tmp_path_factory.mktemp("digits") / "run"
    dk.Distiller(
        dk.Digits(),
        dk.Learner(dk.MLP(hidden=(12,)), dk.Adam(lr=0.01)),
        dk.RandomTruncation(horizon=6, window=3),
        labels=dk.Labels(learn=True),
        outer=dk.Outer(steps=4, batch_size=64, optimizer=dk.Adam(lr=0.05)),
        evaluation=dk.Evaluation(seeds=2, steps=(5, 10), every=2),
        title="digits",
    ).run(folder)
    return folder


@pytest.fixture
def forked_workers(monkeypatch):
    """Workers of this machine are copies of a process that has imported all, where what they do is looked at and not how they start."""
    import loky

    from tests.commands import FORKS

    monkeypatch.setattr(loky, "ProcessPoolExecutor", partial(loky.ProcessPoolExecutor, context=FORKS))


@pytest.fixture(autouse=True)
def _no_figures(request, monkeypatch):
    """Pictures are half of the time of a small run: those in this process draw them only in tests that look at them."""
    if "figures" not in request.keywords:
        monkeypatch.setattr("distilkit.runs.run.save_figures", lambda distiller, tree, directory: None)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda number: None)  # no test cuts the power, and a disk takes its time
    monkeypatch.setenv("DISTILKIT_CACHE", str(tmp_path_factory.getbasetemp() / "distilkit-cache"))


@pytest.fixture(scope="session")
def digits():
    """The real data that most tests take."""
    import distilkit as dk

    return dk.Digits().load(dk.Stream(0))


@pytest.fixture(scope="session")
def ten(digits):
    """The first real image of each class, as a set."""
    from distilkit.data.distilled import DistilledSet

    first = torch.tensor([int((digits.train.labels == c).nonzero()[0]) for c in range(10)])
    return DistilledSet(digits.train.images[first], torch.eye(10), torch.arange(10), digits.class_names, preprocessing=digits.preprocessing)

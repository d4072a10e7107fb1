"""Studies whose work others do: the same to the bit as here."""

import os
import signal
import threading
import time
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from unittest import mock

import numpy as np
import pytest
import torch
from filelock import FileLock

import distilkit as dk
from distilkit.errors import FieldError
from distilkit.storage.grid import done
from distilkit.studies import sources
from distilkit.studies.influence import influence
from tests.commands import FORKS, Forked, distilkit
from tests.studies.test_studies import tiny


@pytest.fixture(scope="module")
def pipeline():
    return tiny(threads=1)


@pytest.fixture(scope="module")
def made(pipeline):
    """A set of three images of each class, in two blocks."""
    return pipeline.distilled(pipeline.template(1))


def grid_of(made, pipeline, out, **how):
    return dk.subset_grid(made, [1, 2, 3], draws=4, pipeline=pipeline, together=4, out=out, **how)


STUDIES = {
    "subsets": grid_of,
    "sources": lambda made, pipeline, out, **how: dk.intercorrelation(pipeline, {3: made}, budgets=[1, 3], draws=2, out=out, **how),
    "influence": lambda made, pipeline, out, **how: influence(pipeline, made, dk.Stream(5), pairs="none", together=20, folder=out, **how),
    "gradients": lambda made, pipeline, out, **how: dk.gradient_study(pipeline, outer_steps=[0, 2], replicates=3, out=out, **how),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", STUDIES)
def test_two_processes_do_what_one_does(name, made, pipeline, tmp_path):
    one = STUDIES[name](made, pipeline, tmp_path / "one")
    with ProcessPoolExecutor(2, mp_context=FORKS) as pool:
        two = STUDIES[name](made, pipeline, tmp_path / "two", workers=pool)
    for variable in set(one.variables) - {"seconds", "peak_memory"}:
        np.testing.assert_array_equal(one[variable].values, two[variable].values, err_msg=variable)


@pytest.mark.slow
def test_dask_workers_one_of_which_is_killed(made, pipeline, tmp_path):
    distributed, dask = pytest.importorskip("distributed"), pytest.importorskip("dask")
    whole, folder = grid_of(made, pipeline, None), tmp_path / "grid"
    started = Forked(print, "here", folder=tmp_path / "said").done()  # so that the workers are copies of a process with all imports
    assert started.stdout == "here\n"
    with (
        mock.patch.dict(os.environ),  # in which Dask leaves what it sets for its workers, such as malloc's behaviour
        dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"}),
        distributed.LocalCluster(n_workers=3, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        killed = []

        def kill():
            victim = next(iter(client.run(os.getpid).values()))
            until = time.monotonic() + 120
            while done(folder) < 1 and time.monotonic() < until:
                time.sleep(0.01)
            os.kill(victim, signal.SIGKILL)
            killed.append(done(folder))

        killer = threading.Thread(target=kill)
        killer.start()
        grid = grid_of(made, pipeline, folder, workers=client.get_executor())
        killer.join()
    assert killed
    assert 1 <= killed[0] < done(folder) == 6
    np.testing.assert_array_equal(grid["accuracy"].values, whole["accuracy"].values)


@pytest.mark.slow
def test_submitit_jobs(made, pipeline, tmp_path):
    submitit = pytest.importorskip("submitit")
    executor = submitit.AutoExecutor(tmp_path / "jobs", cluster="local")
    grid = dk.subset_grid(made, [1], draws=2, pipeline=pipeline, out=tmp_path / "grid", workers=executor)
    whole = dk.subset_grid(made, [1], draws=2, pipeline=pipeline)
    np.testing.assert_array_equal(grid["accuracy"].values, whole["accuracy"].values)


@pytest.mark.slow
@pytest.mark.usefixtures("forked_workers")
def test_shards_of_the_command(tmp_path):
    run = tmp_path / "run"
    tiny(threads=1).run(run)
    words = ["subsets", run, "--budgets", "1,2", "--draws", "2", "--seeds", "2"]
    said = distilkit(*words, "--shard", "1/2")
    assert said.returncode == 0, said.stderr
    assert "50% is there" in said.stdout
    both = distilkit(*words, "--workers", "2")
    assert "100%" not in both.stdout
    assert (run / "subsets-random" / "budgets.png").exists()
    assert "--shard 1/8" in distilkit(*words, "--shard", "3/2").stderr


class Phases(dk.Silent):
    """What a study says it is at."""

    def __init__(self):
        self.said = []

    def phase(self, words):
        self.said.append(words)

    @property
    def distilled(self):
        return [words.partition(":")[0] for words in self.said if words.endswith(": distilling")]


def study(folder, phases, **how):
    tree = dk.intercorrelation_study(tiny(threads=1), folder, draws=2, influence_at=1, progress=phases, **how)
    return tree["sources"]["accuracy"].values, tree["influence"]["drop"].values


@pytest.mark.slow
def test_shards_of_the_intercorrelation_study(tmp_path):
    """The first makes all the sets, since nobody else has begun; the others find them, and each does its part of the rest."""
    whole, first, second, third = (Phases() for _ in range(4))
    expected = study(tmp_path / "one", whole)
    folder = tmp_path / "several"
    half, drops = study(folder, first, shard=(2, 2))
    assert first.distilled == ["direct-1", "boosted", "direct-3"]  # its own part of them first
    assert sorted(whole.distilled) == sorted(first.distilled)
    assert np.isnan(half).sum() > np.isnan(expected[0]).sum()
    assert np.isnan(drops).any()
    assert not (folder / "results.zarr").exists()
    study(folder, second, shard=(1, 2))
    found = study(folder, third)
    assert second.distilled == third.distilled == []
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_array_equal(one, other)
    assert dk.open(folder)["sources"]["accuracy"].equals(dk.open(tmp_path / "one")["sources"]["accuracy"])


@pytest.mark.slow
def test_a_set_that_another_process_makes_is_waited_for(tmp_path):
    phases = Phases()
    with FileLock(tmp_path / "boosted.lock") as other, ThreadPoolExecutor(1) as pool:
        found = pool.submit(study, tmp_path, phases)
        until = time.monotonic() + 300
        while not any("boosted: waiting for another process" in words for words in phases.said):
            assert time.monotonic() < until, phases.said
            time.sleep(0.05)
        assert phases.distilled == ["direct-1", "direct-3"]
        other.release()
        found.result()
    assert phases.distilled == ["direct-1", "direct-3", "boosted"]


class LosesOne:
    """Does all here, but for the first task: its worker has begun a run, and is gone."""

    def __init__(self, begin):
        self.begin = begin
        self.given = 0

    def submit(self, fn, *arguments):
        future = Future()
        self.given += 1
        if self.begin is None:
            future.set_result(fn(*arguments))
        else:
            self.begin()
            self.begin = None
            future.set_exception(OSError("the machine is gone"))
        return future


@pytest.mark.slow
def test_workers_distil_the_sets_of_a_study(pipeline, tmp_path):
    """The caller distils none; what a lost worker has begun goes on from its checkpoint."""
    folder, here, left = tmp_path / "study", Phases(), []
    executor = LosesOne(lambda: left.append(pipeline.run(folder / "boosted", stop_after=0)["history"]["seconds"].values))
    made = sources._all_made({"boosted": pipeline}, folder, executor, None, here)
    pipeline.run(tmp_path / "alone")
    assert torch.equal(made["boosted"].images, dk.load(tmp_path / "alone").images)
    seconds = dk.open(folder / "boosted")["history"]["seconds"].values
    assert 1 <= len(left[0]) < len(seconds) == 4
    np.testing.assert_array_equal(seconds[: len(left[0])], left[0])
    sources._all_made({"boosted": pipeline}, folder, executor, None, here)
    assert executor.given == 2  # a worker was lost, another went on, and what is finished is given to none
    assert here.distilled == []


def test_workers_need_a_folder(made, pipeline):
    with pytest.raises(FieldError, match="a folder, where workers or shards write"):
        grid_of(made, pipeline, None, workers=2)

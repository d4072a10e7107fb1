"""Several processes take one run: the same bits whatever their number, also where it changes on the way or one of them is lost."""

from itertools import chain
from pathlib import Path

import numpy as np
import psutil
import pytest
import xarray as xr
from hypothesis import given, strategies as st
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

import distilkit as dk
from distilkit import spec as specs
from distilkit.errors import CombinationError
from distilkit.evaluation import training_set
from distilkit.evaluation.measuring import streams
from distilkit.evaluation.training import groups
from distilkit.ranks import Ranks
from tests.commands import Forked, command, distilkit_in, in_processes, script

SPEC = """
title = "tiny"
threads = 1

[data]
kind = "Digits"

[learner.network]
kind = "MLP"
hidden = [{hidden}]

[learner.optimizer]
kind = "Adam"
lr = 0.01

[truncation]
kind = "RandomTruncation"
horizon = 6
window = 3

[unroller]
{unroller}

[images]
per_class = 1

[outer]
steps = {steps}
batch_size = 64

[outer.optimizer]
kind = "Adam"
lr = 0.01

[evaluation]
seeds = 3
steps = [10, 20]
every = {every}
baselines = ["random real"]
"""
FOUR_NETWORKS = "networks_per_step = 4"
FOUR_PARTS = "micro_batches = 4"
TWO_BY_TWO = "networks_per_step = 2\nmicro_batches = 2"


@pytest.fixture
def spec(tmp_path):
    def write(unroller, steps=20, hidden=16, every=10):
        path = tmp_path / "spec.toml"
        path.write_text(SPEC.format(unroller=unroller, steps=steps, hidden=hidden, every=every))
        return path

    return write


def run(processes, path, out, *more):
    done = distilkit_in(processes, path.parent, "run", path, "--out", out, *more)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def alone(path, out):
    """Without torchrun."""
    specs.load(path, ['unroller.side_by_side="off"']).run(out)


def require_same(one, other):
    """The stored results are the same to the bit, but for seconds."""
    one, other = (xr.open_datatree(Path(out) / "results.zarr") for out in (one, other))
    assert one.groups == other.groups
    for group in one.groups:
        variables = one[group].dataset.variables
        assert list(variables) == list(other[group].dataset.variables)
        for name in set(variables) - {"seconds"}:
            np.testing.assert_array_equal(one[group][name].values, other[group][name].values, err_msg=f"{group}/{name}")


@given(size=st.integers(1, 9), networks=st.integers(1, 9), parts=st.integers(1, 4))
def test_every_network_is_taken_and_no_process_is_idle(size, networks, parts):
    try:
        shares = Ranks(size=size).shares(networks, parts)
    except CombinationError:
        assert size > networks
        assert size % networks or size // networks > parts
        return
    taken = [list(shares.networks(rank)) for rank in range(size)]
    assert all(taken)
    assert sorted(chain.from_iterable(taken)) == sorted(list(range(networks)) * shares.members)
    assert shares.members <= parts
    for network in range(networks):
        rank, slot = shares.place(network)
        assert taken[rank][slot] == network


@pytest.mark.slow
def test_what_processes_tell_each_other(tmp_path):
    done = in_processes(2, tmp_path, script, Path(__file__).with_name("ranks_at_work.py"), 2)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "rank 0 is through\nrank 1 is through\n"


# Networks of 2,000 units are judged one by one, so that judging is shared out too.
SHARED = {"parts": (FOUR_PARTS, 2000, (2,)), "both": (TWO_BY_TWO, 16, (1, 2, 4))}


@pytest.mark.slow
@pytest.mark.parametrize("name", SHARED)
def test_any_number_of_processes_gives_the_same_bits(spec, tmp_path, name):
    unroller, hidden, numbers = SHARED[name]
    path = spec(unroller, hidden=hidden)
    alone(path, tmp_path / "plain")
    for processes in numbers:
        run(processes, path, tmp_path / str(processes))
        require_same(tmp_path / "plain", tmp_path / str(processes))


def test_networks_that_are_judged_one_by_one_are(spec):
    distiller = specs.load(spec(FOUR_PARTS, hidden=2000))
    own = streams(distiller.evaluation, dk.Stream(0))
    assert len(groups(distiller.bound, training_set(distiller.distilled(distiller.init()), distiller.bundle), own)) == 3


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(spec, tmp_path):
    """And elsewhere, from its copy."""
    path, out, url = spec(FOUR_NETWORKS), tmp_path / "pieces", f"file://{tmp_path}/copy"
    alone(path, tmp_path / "whole")
    said = run(2, path, tmp_path / "first", "--stop-after", "0.001", "--mirror", url).stdout
    assert "Stopped after 2 of 20 outer steps" in said
    assert f"distilkit resume {tmp_path / 'first'} --mirror {url}" in said
    fetched = distilkit_in(4, tmp_path, "resume", url, "--out", out, "--stop-after", "0.001")
    assert fetched.returncode == 0, fetched.stderr
    assert "Stopped after 4 of 20 outer steps" in fetched.stdout
    resumed = distilkit_in(1, tmp_path, "resume", out, "--stop-after", "0.001")
    assert resumed.returncode == 0
    assert "Stopped after 5 of 20 outer steps" in resumed.stdout
    run(1, path, out)
    require_same(tmp_path / "whole", out)


def job(*words):
    """What torchrun does, with processes that are copies of this one; `examples/benchmarks/processes.py` starts torchrun itself."""
    settings = {"min_nodes": 1, "max_nodes": 1, "nproc_per_node": 2, "rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0"}
    elastic_launch(LaunchConfig(**settings, run_id="job", max_restarts=1, monitor_interval=0.1, start_method="fork"), command)(*words)


@pytest.mark.slow
def test_a_process_that_is_lost_is_started_again_and_one_that_is_told_to_end_stores_what_it_has(spec, tmp_path):
    """The second of two processes is killed, both are started again, and then the job is told to end."""
    path, out = spec(FOUR_NETWORKS, steps=150, every=100), tmp_path / "out"
    one = Forked(job, "run", path, "--out", out, folder=tmp_path / "said", OMP_NUM_THREADS="1")
    one.has_said("distilling, 15 of 150")
    max(psutil.Process(one.job.pid).children(), key=lambda child: child.pid).kill()
    one.has_said("going on after")
    one.job.terminate()
    code, said, _ = one.done(100)
    assert code != 0
    done = xr.open_datatree(out / "results.zarr")["history"].sizes["outer_step"]
    assert 15 <= done < 150
    assert "Stopped. What was done until then is in" in said + one.err.read_text()
    run(2, path, out)
    alone(path, tmp_path / "whole")
    require_same(tmp_path / "whole", out)


@pytest.mark.slow
def test_what_cannot_be_is_said_once(spec, tmp_path):
    path = spec("networks_per_step = 1")
    code, _, said = distilkit_in(2, tmp_path, "run", path, "--out", tmp_path / "out")
    assert code == 2
    assert said.count("2 processes are too many for networks_per_step = 1 and micro_batches = 1") == 1
    assert "--set unroller.networks_per_step=2" in said
    assert not (tmp_path / "out").exists()  # so that what it says to type begins there
    path = spec('networks_per_step = 2\nside_by_side = "on"')
    code, _, said = distilkit_in(2, tmp_path, "run", path, "--out", tmp_path / "out2")
    assert code == 2
    assert said.count("--set unroller.side_by_side=off") == 1

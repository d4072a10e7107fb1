"""A run whose parts were made in Python, so that no spec can write it down: what can be done with it, and what is said of the rest."""

import numpy as np
import pytest
import xarray as xr
from torch import nn

import distilkit as dk
from distilkit.errors import RunError
from tests.commands import distilkit


def pipeline(steps=2, width=3):
    """Its network is another function at every call, as in another process."""

    def network():
        return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.GELU(), nn.Linear(width, 10))

    return dk.Distiller(
        dk.Digits(),
        dk.Learner(dk.Functional(network), dk.SGD(lr=0.1)),
        dk.FullUnroll(2),
        unroller=dk.Unroller(compile="eager"),
        outer=dk.Outer(steps=steps, batch_size=32),
        evaluation=dk.Evaluation(seeds=1, steps=(2,), every=1, baselines=()),
        device="cpu",
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The pipeline, and the folder of its run."""
    own, folder = pipeline(), tmp_path_factory.mktemp("python") / "run"
    own.run(folder)
    return own, folder


WORDS = {
    "subsets RUN": "dk.subset_grid('RUN', [1], draws=10, pipeline=distiller, out='RUN/subsets-random')  # in Python",
    "evaluate RUN": "dk.evaluate('RUN', data, learner, evaluation)  # in Python",
    "resume RUN": "dk.run(distiller, 'RUN')  # in Python",
    "sheet RUN --before": "distilkit sheet RUN",
    "sheet RUN --nearest": "--data CIFAR10.npz",
}


@pytest.mark.parametrize("typed", WORDS)
def test_a_command_that_needs_its_parts_says_what_to_type(made, typed):
    done = distilkit(*typed.replace("RUN", str(made[1])).split())
    assert done.returncode == 2
    assert "in Python" in done.stderr or "--data" in done.stderr
    assert f"Try: {WORDS[typed].replace('RUN', str(made[1]))}" in done.stderr


@pytest.mark.parametrize(
    "typed", ["show RUN", "verify RUN", "report RUN --out OUT.html", "sheet RUN --out OUT.png", "export RUN OUT.safetensors"]
)
def test_other_commands_do_without(made, typed, tmp_path):
    done = distilkit(*typed.replace("RUN", str(made[1])).replace("OUT", str(tmp_path / "out")).split())
    assert done.returncode == 0, done.stderr
    assert " at 0x" not in done.stdout  # which is another one in every process


def test_what_is_said_can_be_typed_and_goes_on_in_another_process(made, tmp_path):
    """Its grid and its run are known again by what their parts are called, and by how many parameters the network has."""
    own, folder = made
    grid = dk.subset_grid(folder, [1], draws=2, pipeline=own, out=tmp_path / "grid")
    assert np.array_equal(dk.subset_grid(folder, [1], draws=2, pipeline=pipeline(), out=tmp_path / "grid")["accuracy"], grid["accuracy"])
    with pytest.raises(RunError, match="another grid: it differs in networks"):
        dk.subset_grid(folder, [1], draws=2, pipeline=pipeline(width=4), out=tmp_path / "grid")
    assert dk.evaluate(folder, own.data, own.learner, own.evaluation)["accuracy"].notnull().all()
    copy = tmp_path / "longer"
    pipeline(steps=1).run(copy)
    assert dk.run(pipeline(steps=3), copy)["history"].sizes["outer_step"] == 3
    with pytest.raises(RunError, match="holds a run of another spec"):
        dk.run(pipeline(steps=3, width=4), copy)


def test_outer_steps_are_numbered_in_the_history_and_counted_elsewhere(made):
    """As the page on the format says it, read with xarray alone."""
    tree = xr.open_datatree(made[1] / "results.zarr")
    history, looks = tree["history"]["outer_step"], tree["evaluation"]["outer_step"]
    assert (history.values.tolist(), history.attrs["long_name"]) == ([0, 1], "outer step, counted from 0")
    assert (looks.values.tolist(), looks.attrs["long_name"]) == ([1, 2], "outer steps done")
    assert tree["distilled"].attrs["outer_step"] in (1, 2)

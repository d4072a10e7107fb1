"""The commands of the studies, as a person types them."""

import pytest
import xarray as xr

import distilkit as dk
from distilkit import spec as specs
from distilkit.errors import DistilkitError
from distilkit.storage.grid import done as count_done, units
from tests.commands import distilkit

SPEC = """
title = "tiny"
[data]
kind = "Digits"
[learner.network]
kind = "MLP"
hidden = [12]
[truncation]
kind = "RandomTruncation"
horizon = 6
window = 3
[boost]
blocks = [1, 2]
steps = 2
[outer]
batch_size = 64
[evaluation]
seeds = 2
steps = [5]
baselines = []
"""


@pytest.fixture
def spec(tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(SPEC)
    return path


@pytest.mark.slow
def test_run_and_subsets(spec, tmp_path):
    done = distilkit("run", spec, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "its first 1 of a class" in done.stdout
    run = tmp_path / "runs" / "tiny"
    for strategy, draws in (("random", 2), ("prefix", 1)):
        done = distilkit("subsets", run, "--draws", "2", "--strategy", strategy, "--networks", "MLP", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        grid = xr.open_zarr(run / f"subsets-{strategy}" / "results.zarr")
        assert dict(grid["accuracy"].sizes) == {"budget": 3, "draw": draws, "network": 1, "seed": 2}
        assert (run / f"subsets-{strategy}" / "subsets.png").exists()
    refused = distilkit("subsets", run, "--budgets", "4", cwd=tmp_path)
    assert refused.returncode == 2
    assert "the set has 3" in refused.stderr


def test_subsets_of_a_run_with_python_components(tmp_path, monkeypatch):
    """Refused with the option to type, which there is; and so in Python."""
    (tmp_path / "my_networks.py").write_text("import distilkit as dk\n\ndef small():\n    return dk.MLP(hidden=(4,))\n")
    monkeypatch.chdir(tmp_path)
    text = SPEC.replace('kind = "MLP"\nhidden = [12]', 'kind = "python"\ntarget = "my_networks:small"').replace(
        "blocks = [1, 2]", "blocks = [1]"
    )
    run = tmp_path / "run"
    specs.loads(text, ["boost.steps=1", "device=cpu", "evaluation.steps=[1]", "unroller.compile=eager"], trust=True).run(run)
    arguments = ["subsets", str(run), "--budgets", "1", "--draws", "1", "--seeds", "1"]

    refused = distilkit(*arguments)
    assert refused.returncode == 2
    assert "Try: --trust" in refused.stderr
    done = distilkit(*arguments, "--trust")
    assert done.returncode == 0, done.stderr
    assert xr.open_zarr(run / "subsets-random" / "results.zarr")["accuracy"].shape == (1, 1, 1, 1)
    with pytest.raises(DistilkitError, match="trust=True"):
        dk.subset_grid(run, [1], seeds=1)
    assert dk.subset_grid(run, [1], seeds=1, trust=True)["accuracy"].shape == (1, 1, 1, 1)


@pytest.mark.slow
def test_study_gradients(spec, tmp_path):
    arguments = ("study", "gradients", spec, "--at", "0,3", "--replicates", "3", "--policy", '{kind = "FullUnroll", horizon = 6}')
    ways = ("--with", "outer.ends=2", "--with", 'unroller.adjoint={kind="ReplayAdjoint",keep_last=1}')
    done = distilkit(*arguments, "--policy", '{kind = "TailTruncation", horizon = 6, window = 2}', *ways, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    study = dk.open(tmp_path / "runs" / "tiny-gradients").to_dataset()
    assert study["norm"].dims == ("policy", "optimizer", "outer_step", "replicate")
    assert study["policy"].values.tolist() == ["FullUnroll horizon 6", "TailTruncation horizon 6 window 2", *ways[1::2]]
    assert (study["window_start"].sel(policy="TailTruncation horizon 6 window 2") == 4).all()
    assert (tmp_path / "runs" / "tiny-gradients" / "gradients.png").exists()
    refused = distilkit(*arguments[:-1], '{kind = "FullUnrol", horizon = 6}', cwd=tmp_path)
    assert refused.returncode == 2
    assert "FullUnroll" in refused.stderr


@pytest.mark.slow
def test_study_intercorrelation(spec, tmp_path):
    done = distilkit("study", "intercorrelation", spec, "--draws", "2", "--influence", "1", "--out", "study", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for word in ("boosted prefix", "distilled directly", "herding real", "influence.png"):
        assert word in done.stdout
    assert {"sources", "influence"} <= set(dk.open(tmp_path / "study").children)


@pytest.mark.slow
def test_a_shard_of_the_intercorrelation_study_says_how_far_it_is(spec, tmp_path):
    words = ("study", "intercorrelation", spec, "--draws", "2", "--influence", "1", "--out", tmp_path / "study")
    assert "--shard 1/8" in distilkit(*words, "--shard", "0/2").stderr
    said = distilkit(*words, "--shard", "1/2")
    assert said.returncode == 0, said.stderr
    grids = [tmp_path / "study" / name for name in ("grid", "influence-1")]
    there, total = sum(map(count_done, grids)), sum(map(units, grids))
    assert total <= 2 * there <= total + 2  # the larger half of each
    assert f"Of {tmp_path / 'study'} {there / total:.0%} is there" in said.stdout.replace("\n", "")
    assert not (tmp_path / "study" / "results.zarr").exists()

"""`distilkit export`: a run's set in another format, and back."""

import pytest
import torch

import distilkit as dk
from distilkit.storage import formats
from tests.commands import distilkit


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "run"
    distiller = dk.Distiller(
        dk.Digits(),
        dk.Learner(dk.MLP(hidden=(8,)), dk.SGD(lr=0.1)),
        dk.FullUnroll(3),
        outer=dk.Outer(steps=2, batch_size=32),
        evaluation=dk.Evaluation(seeds=1, steps=(2,), baselines=()),
    )
    distiller.run(folder)
    return folder


@pytest.mark.parametrize("format", ["mtt", "safetensors", "image-folder", "hugging-face"])
def test_export_of_a_run_reads_back(run, tmp_path, format):
    out = tmp_path / ("set.safetensors" if format == "safetensors" else "set")
    done = distilkit("export", run, out, "--to", format)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{out}: 10 images, labels as one-hot\n"
    back, made = formats.read(out, format), dk.load(run)
    assert torch.equal(back.classes, made.classes)
    if format != "image-folder":
        assert torch.equal(back.images, made.images)
        assert back.preprocessing.fingerprint() == made.preprocessing.fingerprint()

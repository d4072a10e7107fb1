"""What stands beside distilled images: what they started from, and the nearest real ones, by computations of our own."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import distilkit as dk
from distilkit import spec
from distilkit.errors import RunError
from distilkit.runs import sheets
from tests.commands import distilkit


def test_the_start_is_made_again(digits_run):
    pipeline = spec.load(digits_run / "spec.toml")
    found = sheets.start_of(pipeline, pipeline.bundle, np.arange(10))
    assert torch.equal(found.images, pipeline.init().leaves.images.cpu())
    assert not torch.equal(found.images, dk.load(digits_run).images)
    with pytest.raises(RunError, match="starts from 10 images, and the set has 20"):
        sheets.start_of(pipeline, pipeline.bundle, np.arange(20) % 10)


def test_of_a_boosted_set_each_block_has_its_start():
    learner, boost = dk.Learner(dk.MLP(hidden=(4,)), dk.SGD(lr=0.1)), dk.BoostSchedule(blocks=(1, 2), steps=1)
    pipeline = dk.Distiller(dk.Digits(), learner, dk.FullUnroll(1), boost=boost, images=dk.Images(start="real"), device="cpu")
    state = pipeline.init()
    first, both = (pipeline.distilled(one) for one in (state, pipeline.add_block(state)))
    for made in (first, both):
        assert torch.equal(sheets.start_of(pipeline, pipeline.bundle, made.classes.numpy()).images, made.images)
    assert torch.equal(both.images[:10], first.images)
    distance = torch.cdist(both.images.flatten(1), pipeline.bundle.train.images.flatten(1)).min(1).values
    assert distance.max() == 0  # each is a real one


def test_the_nearest_real_images_are_nearest(digits, monkeypatch):
    monkeypatch.setattr(sheets, "AT_ONCE", 100)  # which is no divisor of the number of images
    images = torch.cat([digits.train.images[[7, 1203]], torch.randn(5, 1, 8, 8)])
    pixels, classes = sheets.nearest_images(images.numpy(), digits)
    rows = torch.stack([(digits.train.images - one).square().sum((1, 2, 3)).argmin() for one in images])
    assert rows[:2].tolist() == [7, 1203]
    assert np.array_equal(classes, digits.train.labels[rows])
    assert np.array_equal(pixels, (digits.preprocessing.inverse(digits.train.images[rows]).clamp(0, 1) * 255).round().to(torch.uint8))


def test_the_command_draws_both(digits_run, tmp_path, monkeypatch):
    drawn, sheet = {}, sheets.report.sheet
    monkeypatch.setattr(sheets.report, "sheet", lambda *given, **options: drawn.update(options) or sheet(*given, **options))
    done = distilkit("sheet", digits_run, "--before", "--nearest", "--out", tmp_path / "all.pdf")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "all.pdf").read_bytes().startswith(b"%PDF")
    pipeline = spec.load(digits_run / "spec.toml")
    assert np.array_equal(drawn["before"], sheets.start_of(pipeline, pipeline.bundle, np.arange(10)).pixels())
    near = sheets.nearest_images(dk.load(digits_run).images.numpy(), pipeline.bundle)
    assert all(map(np.array_equal, drawn["nearest"], near))
    assert drawn["real"] is None

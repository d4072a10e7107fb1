"""The loops in plain torch: the page's reaches what the set says, and the example's network is the field's."""

import statistics

import pytest
import torch

import distilkit as dk
from distilkit import spec
from tests.scripts import script
from tests.test_docs import PYTHON, ROOT


@pytest.mark.slow
def test_the_loop_of_the_page_reaches_what_the_set_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    changes = ["outer.steps=60", "evaluation.every=0", "evaluation.baselines=[]"]
    spec.load(ROOT / "examples" / "digits.toml", changes).run("runs/digits")
    load, loop, *_ = [block.text for block in PYTHON if block.page == "docs/using.md"]
    names = {}
    exec(load, names)
    said, found = names["how"]["test_accuracy"], []
    for seed in range(8):
        torch.manual_seed(seed)
        exec(loop, names)
        found.append(names["accuracy"])
    error = (statistics.variance(said) / len(said) + statistics.variance(found) / len(found)) ** 0.5
    assert abs(statistics.fmean(said) - statistics.fmean(found)) < 4 * error + 0.01, (said, found)
    assert statistics.fmean(found) > 0.7  # random real images reach 0.60


def test_the_network_of_the_example_is_the_fields():
    ours = dk.ConvNet(width=8, depth=3).bind((3, 32, 32), 10)
    parameters = ours.init(dk.Stream(0))
    theirs = script(ROOT / "examples" / "torch_loop.py", "torch_loop").convnet(width=8)
    with torch.no_grad():
        for one, value in zip(theirs.parameters(), parameters.values(), strict=True):
            one.copy_(value.reshape(one.shape))
    images = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(theirs(images), ours.apply(parameters, images))


def test_the_augmentation_of_the_example_flips_or_turns():
    """Each image is flipped or not; or each is turned: of one that is bright to the right, the slope turns by up to 15 degrees."""
    augment = script(ROOT / "examples" / "torch_loop.py", "torch_loop").flip_or_rotate
    x = torch.linspace(-1, 1, 33, dtype=torch.float64)
    images, angles, flips = x.expand(64, 1, 33, 33), [], 0
    for seed in range(10):
        torch.manual_seed(seed)
        made = augment(images)[:, 0, 8:-8, 8:-8]  # what is turned out of the image is black
        across, down = made.diff(dim=2).flatten(1) * 16, made.diff(dim=1).flatten(1) * 16
        if bool((down == 0).all()):
            right = (across.mean(1) > 0).sum()
            assert 10 < right < 54
            torch.testing.assert_close(across.abs(), torch.ones_like(across))
            flips += 1
        else:
            found = torch.atan2(down.mean(1), across.mean(1)).rad2deg()
            torch.testing.assert_close(torch.hypot(down.mean(1), across.mean(1)), torch.ones(64, dtype=torch.float64), atol=0.02, rtol=0)
            angles.append(found)
    turned = torch.cat(angles)
    assert 0 < flips < 10
    assert turned.abs().max() <= 15.1
    assert abs(float(turned.mean())) < 2
    assert 7 < float(turned.std()) < 10.5  # 30 / sqrt(12) = 8.7, of a uniform angle

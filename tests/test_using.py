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
    assert statistics.fmean(found) > 0.8


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
    """All of a batch is flipped or not, image by image, or every image is turned."""
    augment, images = script(ROOT / "examples" / "torch_loop.py", "torch_loop").flip_or_rotate, torch.rand(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    seen = set()
    for seed in range(10):
        torch.manual_seed(seed)
        made = augment(images)
        same, flipped = ((made == other).flatten(1).all(1) for other in (images, images.flip(3)))
        seen.add("flipped" if bool((same | flipped).all()) else "turned")
        assert 10 < int(flipped.sum()) < 54 if bool((same | flipped).all()) else not bool((same | flipped).any())
    assert seen == {"flipped", "turned"}

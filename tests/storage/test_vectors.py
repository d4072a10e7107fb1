"""Feature vectors: stored with their own dimensions, drawn as a heat map that says that they are no images."""

from __future__ import annotations

import warnings
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch

from distilkit import report, storage
from distilkit.data.distilled import DistilledSet
from distilkit.data.preprocessing import Standardize
from distilkit.functional.streams import Stream
from distilkit.report.vectors import MOST_ROWS
from distilkit.storage import layout


def vectors(n: int, d: int = 7, classes: int = 3) -> DistilledSet:
    images = Stream(0).normal(n, d)
    fitted = Standardize().fit(Stream(1).uniform(20, d))
    names = tuple(f"class {i}" for i in range(classes))
    owner = (torch.arange(n) * 2) % classes  # rows of a set need not lie by class
    return DistilledSet(images, torch.eye(classes)[owner], owner, names, preprocessing=fitted)


def tree(made: DistilledSet) -> layout.xr.DataTree:
    return layout.build({"distilled": storage.distilled_group(storage.to_arrays(made), 5)}, title="wine", spec={}, seed=0)


def test_they_are_stored_as_vectors_and_come_back(tmp_path: Path) -> None:
    made = vectors(4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        storage.write(tree(made), tmp_path)
        back = storage.load(tmp_path)
    assert torch.equal(back.images, made.images)
    assert back.preprocessing.fingerprint() == made.preprocessing.fingerprint()
    group = storage.open(tmp_path)["distilled"]
    assert group["image"].dims == group["pixel"].dims == ("sample", "feature")
    assert group["feature"].values.tolist() == list(range(7))
    assert "not an image" in group["pixel"].attrs["long_name"]


@pytest.mark.parametrize(("n", "classes"), [(1, 1), (9, 3), (MOST_ROWS + 50, 60)])
def test_the_sheet_draws_each_vector_and_says_what_it_is(tmp_path: Path, n: int, classes: int) -> None:
    made = vectors(n, classes=classes)
    figure = report.sheet_figure(tree(made))
    assert "not images" in figure.get_suptitle()
    assert ("drawn" in figure.get_suptitle()) == (n > MOST_ROWS)
    shown = np.asarray(figure.axes[0].images[0].get_array())
    assert shown.shape == (min(n, MOST_ROWS), 7)
    if n <= MOST_ROWS:
        order = np.argsort(made.classes.numpy(), kind="stable")
        np.testing.assert_allclose(shown, made.images.numpy()[order])
        assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == [f"class {i}" for i in range(classes)]
    picture = matplotlib.image.imread(report.sheet(tree(made), tmp_path / "sheet.png"))
    assert 150 < picture.shape[0] < 1200

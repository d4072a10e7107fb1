"""The sheet of a run's images, or of a set that comes with distilkit, beside real images of its data."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import attrs
import torch
import xarray as xr

from distilkit import report, storage
from distilkit.data.bundle import DataBundle
from distilkit.data.distilled import DistilledSet
from distilkit.data.preprocessing import require_same
from distilkit.report.grid import LONGEST
from distilkit.report.sheet import Pictures, Which
from distilkit.storage import layout


def draw_sheet(
    tree: xr.DataTree, out: Path, data: DataBundle | None, *, which: Which = "auto", rows: int | None = None, real: int | None = None
) -> Path:
    """Draw the images of a run, beside real ones where its data is given.

    Args:
        tree: the results of a run, or `tree_of` a set.
        out: the picture: .png, .pdf or .svg.
        data: that it was made of.
        which: the set to show, as in `distilkit.load`.
        rows: the most images of a class to show.
        real: real training images of each class; when left out three beside one distilled image, and two in each line beside more.

    Raises:
        RunError: there is no such set, no picture of that name, or there are too many images.
    """
    depth = report.images_shown(tree, which, rows)
    if real is None:
        real = 3 if depth == 1 else 2 * math.ceil(depth / LONGEST)
    beside = None if data is None or not depth else real_images(data, real)
    return report.sheet(tree, out, which=which, rows=rows, real=beside)


def real_images(bundle: DataBundle, count: int) -> Pictures | None:
    """The first real training images of each class, as the inverse of the preprocessing shows them, which may not keep their brightness.

    Returns:
        uint8 (M, C, H, W), and their classes, int (M,); None for feature vectors, or a count of 0.
    """
    train = bundle.train
    if len(bundle.image_shape) != 3 or not count:
        return None
    rows = torch.cat([(train.labels == c).nonzero()[:count, 0] for c in range(bundle.num_classes)])
    pixels = bundle.preprocessing.inverse(train.images[rows].cpu()).clamp(0, 1)
    return (pixels * 255).round().to(torch.uint8).numpy(), train.labels[rows].cpu().numpy()


def tree_of(made: DistilledSet, data: DataBundle | None, groups: dict[str, xr.Dataset] | None = None, **attributes: Any) -> xr.DataTree:
    """A set as a run stores it, with the pixels that the preprocessing of its data gives.

    Args:
        made: the set.
        data: the data that it was made of; None where its own preprocessing has its arrays.
        groups: more groups.
        attributes: title, spec and seed, as `layout.build` takes them, and device.

    Raises:
        CombinationError: the data is in another space.
    """
    if data is not None:
        require_same(made.preprocessing, data.preprocessing)
        made = attrs.evolve(made, preprocessing=data.preprocessing)  # the same, and one that can be run
    step = made.provenance.get("outer_step")  # somebody else's set may say anything
    group = storage.distilled_group(storage.to_arrays(made), step if isinstance(step, int) else 0)
    return layout.build({"distilled": group, **(groups or {})}, torch_version=torch.__version__, **attributes)

"""The sheet of a run's images, or of a set that comes with distilkit, beside real images of its data, and what they started from."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
import xarray as xr

from distilkit import fields, report, storage
from distilkit.data.bundle import DataBundle, Loaded
from distilkit.data.distilled import DistilledSet
from distilkit.data.preprocessing import require_same
from distilkit.distiller import Distiller
from distilkit.errors import RunError
from distilkit.report.grid import LONGEST
from distilkit.report.sheet import Pictures, Which
from distilkit.storage import layout

AT_ONCE = 10_000  # real images that are compared at once


def draw_sheet(
    tree: xr.DataTree,
    out: str | os.PathLike[str],
    data: DataBundle | None,
    *,
    which: Which = "auto",
    rows: int | None = None,
    real: int | None = None,
    start: Distiller | None = None,
    nearest: bool = False,
) -> Path:
    """Draw the images of a run, beside real ones where its data is given.

    Args:
        tree: the results of a run, or `tree_of` a set.
        out: the picture: .png, .pdf or .svg.
        data: that it was made of.
        which: the set to show, as in `distilkit.load`.
        rows: the most images of a class to show.
        real: real training images of each class; when left out none with `start` or `nearest`, three beside one distilled image, and
            two in each line beside more.
        start: the pipeline that made the set, to show what each image started from; it needs the data.
        nearest: show the nearest real training image of each distilled one; it needs the data.

    Raises:
        RunError: there is no such set, no picture of that name, or there are too many images; the pipeline makes another number of them.
    """
    depth = report.images_shown(tree, which, rows)
    if data is None or not depth:
        return report.sheet(tree, out, which=which, rows=rows)
    if real is None:
        real = 0 if start or nearest else 3 if depth == 1 else 2 * math.ceil(depth / LONGEST)
    own = tree[layout.group_of_set(tree, which)].to_dataset()
    before = None if start is None else start_of(start, data, own["label_class"].values).pixels().numpy()
    near = nearest_images(own["image"].values, data) if nearest else None
    return report.sheet(tree, out, which=which, rows=rows, real=real_images(data, real), before=before, nearest=near)


def start_of(pipeline: Distiller, data: DataBundle, classes: np.ndarray) -> DistilledSet:
    """What the images of a set started from: its seed and its data make it again.

    Args:
        pipeline: that made the set.
        data: of the pipeline, split as it splits them.
        classes: of the set's rows, int (N,).

    Raises:
        RunError: the pipeline makes other rows.
    """
    given = fields.evolve(pipeline, data=Loaded(data), device=str(data.train.labels.device))
    state = given.init()
    while len(state.leaves.images) < len(classes) and state.stage + 1 < len(given.stages):
        state = given.add_block(state)
    found: DistilledSet = given.distilled(state)
    if not np.array_equal(found.classes.numpy(), classes):
        raise RunError(f"Its spec starts from {len(found)} images, and the set has {len(classes)}: they cannot stand above each other.")
    return found


def nearest_images(images: np.ndarray, data: DataBundle) -> Pictures:
    """The real training image that is nearest to each distilled one, of whatever class, by Euclidean distance in preprocessed space.

    Args:
        images: float (N, C, H, W), preprocessed as the data.
        data: the real images.

    Returns:
        uint8 (N, C, H, W), and their classes, int (N,).
    """
    from sklearn.metrics import pairwise_distances_argmin_min  # here: it takes a second to import

    train, flat = data.train, images.reshape(len(images), -1)
    rows, least = np.zeros(len(images), np.int64), np.full(len(images), np.inf)
    for first in range(0, len(train), AT_ONCE):
        place, distance = pairwise_distances_argmin_min(flat, train.images[first : first + AT_ONCE].flatten(1).cpu().numpy())
        rows, least = np.where(distance < least, place + first, rows), np.minimum(distance, least)
    return _pictures(data, torch.from_numpy(rows))


def real_images(bundle: DataBundle, count: int) -> Pictures | None:
    """The first real training images of each class, as the inverse of the preprocessing shows them, which may not keep their brightness.

    Returns:
        uint8 (M, C, H, W), and their classes, int (M,); None for feature vectors, or a count of 0.
    """
    train = bundle.train
    if len(bundle.image_shape) != 3 or not count:
        return None
    rows = torch.cat([(train.labels == c).nonzero()[:count, 0] for c in range(bundle.num_classes)])
    return _pictures(bundle, rows)


def _pictures(bundle: DataBundle, rows: torch.Tensor) -> Pictures:
    """Training images, int64 (M,), as bytes, and their classes."""
    rows = rows.to(bundle.train.labels.device)
    pixels = bundle.preprocessing.inverse(bundle.train.images[rows].cpu()).clamp(0, 1)
    return (pixels * 255).round().to(torch.uint8).numpy(), bundle.train.labels[rows].cpu().numpy()


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

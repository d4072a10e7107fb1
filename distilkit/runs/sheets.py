"""The sheet of a run's images, or of a set that comes with distilkit, beside real images of its data."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import attrs
import numpy as np
import torch
import xarray as xr

from distilkit import report, storage
from distilkit.data.bundle import DataBundle
from distilkit.progress import SILENT, Progress
from distilkit.runs.open import pipeline_of
from distilkit.storage import layout, shipped

Pictures = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]


def draw_sheet(
    path: Any,
    out: Path,
    *,
    which: Literal["auto", "best", "last"] = "auto",
    rows: int | None = None,
    real: int | None = None,
    overrides: Iterable[str] = (),
    trust: bool = False,
    progress: Progress = SILENT,
) -> Path:
    """Draw the images of a run, or of a set that comes with distilkit, whose pixels want the data that it was made of.

    Args:
        path: the folder of the run, or the name of that set.
        out: the picture: .png, .pdf or .svg.
        which: the set to show, as in `distilkit.load`.
        rows: the most images of a class to show.
        real: real training images of each class beside them; as many as go with the set when left out. With 0, a run's data is not needed.
        overrides: of the spec, as for `--set`, such as another `data.root`.
        trust: allow the run's spec to name Python code.
        progress: is told what is being done.

    Raises:
        RunError: there is no run, or no picture of that name.
    """
    report.require_picture(out)
    own = shipped.comes_with_distilkit(path)
    tree = None if own else storage.open(path)
    bundle = None
    if own or real != 0:
        progress.phase("loading data")
        bundle = pipeline_of(path, overrides, trust=trust, instead="--real 0").bundle
    if tree is None:
        assert bundle is not None
        tree = _tree(path, bundle)
    counted = np.bincount(tree["distilled"].to_dataset()["label_class"].values)
    beside = None if bundle is None else real_images(bundle, report.real_beside(int(counted.max())) if real is None else real)
    return report.sheet(tree, out, which=which, rows=rows, real=beside)


def real_images(bundle: DataBundle, count: int) -> Pictures | None:
    """The first real training images of each class, uint8 (M, C, H, W), and their classes; None for feature vectors, or a count of 0."""
    train = bundle.train
    if len(bundle.image_shape) != 3 or not count:
        return None
    rows = torch.cat([(train.labels == c).nonzero()[:count, 0] for c in range(bundle.num_classes)])
    pixels = bundle.preprocessing.inverse(train.images[rows].cpu()).clamp(0, 1)
    return (pixels * 255).round().to(torch.uint8).numpy(), train.labels[rows].cpu().numpy()


def _tree(name: Any, bundle: DataBundle) -> xr.DataTree:
    """A set that comes with distilkit, as a run stores it: with pixels, which its whitening gives."""
    made = storage.load(name)
    shown = attrs.evolve(made, preprocessing=bundle.preprocessing)
    group = storage.distilled_group(storage.to_arrays(shown), int(made.provenance.get("outer_step", 0)))
    return layout.build({"distilled": group}, title=Path(name).as_posix(), spec={}, seed=0, torch_version=torch.__version__)

"""Which distilled samples stand in for each other: the interaction of every pair as a heat map."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from distilkit.errors import RunError
from distilkit.report.drawing import INK, MUTED, clean, new_figure, save
from distilkit.storage.spread import standard_error


def influence_map(data: xr.Dataset, path: str | os.PathLike[str]) -> Path:
    """Save a picture of the influence of samples.

    Args:
        data: with interaction (sample, other, seed) and drop (sample, seed), of `distilkit.studies.influence`.
        path: where the picture goes: .png, .pdf or .svg.

    Raises:
        RunError: there is no interaction.
    """
    return save(influence_figure(data), path)


def influence_figure(data: xr.Dataset) -> Figure:
    """The figure that `influence_map` saves: the fall of accuracy without one sample, and the interaction of pairs."""
    if "interaction" not in data:
        raise RunError(f"There is no interaction to draw; there is {sorted(map(str, data.data_vars))}.")
    # Samples of a class side by side; the numbers are points of accuracy.
    data = data.isel({dim: np.argsort(data["label_class"].values, kind="stable") for dim in ("sample", "other")})
    cells, single = 100 * data["interaction"].mean("seed"), 100 * data["drop"]
    count = data.sizes["sample"]
    figure = new_figure(6.2, 6.6)
    top, main = figure.subplots(2, 1, height_ratios=[1, 4], sharex=True)
    top.bar(range(count), single.mean("seed"), color=MUTED, width=0.8)
    error = standard_error(single.transpose("sample", "seed").values, axis=1)
    top.errorbar(range(count), single.mean("seed"), error, fmt="none", ecolor=INK, linewidth=0.8)
    top.set_ylabel("fall without it\n(points)", fontsize=7.5)
    top.spines[["top", "right"]].set_visible(False)
    top.tick_params(labelsize=7)
    limit = float(np.nanmax(np.abs(cells.values))) or 1.0
    picture = main.imshow(cells.values, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
    classes = data["label_class"].values
    for edge in np.flatnonzero(np.diff(classes)) + 0.5:
        main.axvline(edge, color=MUTED, linewidth=0.4)
        main.axhline(edge, color=MUTED, linewidth=0.4)
    middle = [np.flatnonzero(classes == c).mean() for c in np.unique(classes)]
    main.set_xticks(middle, [str(c) for c in np.unique(classes)], fontsize=7.5)
    main.set_yticks(middle, [str(c) for c in np.unique(classes)], fontsize=7.5)
    main.set_xlabel("distilled sample, by class", fontsize=8)
    main.set_ylabel("other sample, by class", fontsize=8)
    bar = figure.colorbar(picture, ax=main, shrink=0.9)
    bar.ax.tick_params(labelsize=7)
    bar.set_label("fall without both less the two single falls (points)", fontsize=7.5)
    figure.suptitle(clean(str(data.attrs.get("title", "interaction of distilled samples")), 80), fontsize=9, color=INK, parse_math=False)
    return figure

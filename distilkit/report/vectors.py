"""Distilled feature vectors as a heat map: they are no images, and the figure says so."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from distilkit.errors import counted
from distilkit.report.drawing import INK, MUTED, clean, new_figure

MOST_ROWS = 400
MOST_NAMES = 40


def vectors_figure(data: xr.Dataset, title: str) -> Figure:
    """A row for each sample, in the order of the classes, and a column for each entry of the vector.

    Args:
        data: the group `/distilled` or `/last`, whose image has the dimensions (sample, feature).
        title: title of the run.
    """
    owner = data["label_class"].values
    order = np.argsort(owner, kind="stable")
    # Too many to tell apart: as many of them as can be, from all classes.
    shown = order[np.unique(np.linspace(0, len(order) - 1, min(len(order), MOST_ROWS)).astype(int))] if len(order) else order
    values = data["image"].values[shown].astype(float)
    figure = new_figure(7.2, min(max(2.2, 0.16 * len(shown) + 1.4), 9))
    axes = figure.subplots()
    finite = np.abs(values[np.isfinite(values)])
    limit = float(finite.max()) if finite.size and finite.max() > 0 else 1.0
    picture = axes.imshow(values, aspect="auto", interpolation="nearest", cmap="RdBu_r", vmin=-limit, vmax=limit)
    bar = figure.colorbar(picture, ax=axes)
    bar.set_label("value after preprocessing", fontsize=7.5, color=MUTED)
    bar.ax.tick_params(labelsize=7, colors=MUTED)
    classes, first, counts = np.unique(owner[shown], return_index=True, return_counts=True)
    if len(classes) <= MOST_NAMES:
        names = [clean(str(data["class"].values[c]), 18) for c in classes]
        axes.set_yticks(first + (counts - 1) / 2, names, fontsize=6.5, color=INK, parse_math=False)
    for edge in first[1:]:
        axes.axhline(edge - 0.5, color=INK, linewidth=0.4)
    axes.set_xlabel("feature", fontsize=8.5, color=INK)
    axes.tick_params(length=0, labelsize=6.5)
    some = f"   {len(shown)} of {len(order)} drawn" if len(shown) < len(order) else ""
    steps = counted(data.attrs.get("outer_step", "?"), "outer step")
    words = f"{counted(len(order), 'distilled feature vector')} (not images) after {steps}{some}"
    figure.suptitle(f"{title}\n{words}", fontsize=9, color=INK, parse_math=False)
    return figure

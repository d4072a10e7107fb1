"""Accuracy by the number of images: by source with bands, and subset by subset as a heat map."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from distilkit.errors import RunError
from distilkit.report.drawing import BLUE, GREEN, INK, MUTED, ORANGE, PURPLE, clean, new_figure, save
from distilkit.storage.spread import spread

COLOURS = (ORANGE, BLUE, GREEN, PURPLE, MUTED, "#b3a125", INK)
MARKERS = "osD^vPX"


def budget_curves(data: xr.Dataset, path: str | os.PathLike[str]) -> Path:
    """Save a picture of accuracy against images per class, a line for each source.

    Args:
        data: with accuracy over budget and any of source, draw, network and seed: the group sources of the intercorrelation
            study, a subset grid, or a run's group prefixes.
        path: where the picture goes: .png, .pdf or .svg.

    Raises:
        RunError: there is no accuracy by budget.
    """
    return save(budget_figure(data), path)


def budget_figure(data: xr.Dataset) -> Figure:
    """The figure that `budget_curves` saves: the mean, and a band of one standard deviation (`storage.spread`) over draws and seeds."""
    accuracy = _accuracy(data)
    by = next((dim for dim in ("source", "network") if dim in accuracy.dims), None)
    names = [str(n) for n in accuracy[by].values] if by else [str(data.attrs.get("strategy", "prefix"))]
    figure = new_figure(6.4, 4.0)
    axes = figure.subplots()
    budgets = accuracy["budget"].values
    for i, name in enumerate(names):
        own = accuracy.isel({by: i}) if by else accuracy
        rest = [dim for dim in own.dims if dim != "budget"]
        mean, deviation = own.mean(rest).values, spread(own.transpose("budget", ...).values, tuple(range(1, own.ndim)))
        there, colour = np.isfinite(mean), COLOURS[i % len(COLOURS)]
        axes.plot(
            budgets[there], mean[there], MARKERS[i % len(MARKERS)] + "-", color=colour, markersize=4, linewidth=1.4, label=clean(name, 40)
        )
        low, high = (mean - deviation)[there], (mean + deviation)[there]
        axes.fill_between(budgets[there], low, high, color=colour, alpha=0.15, linewidth=0)
    axes.set_xscale("log")
    axes.set_xticks(budgets, [str(b) for b in budgets])
    axes.minorticks_off()
    axes.set_xlabel("images per class", fontsize=8.5, color=INK)
    axes.set_ylabel("test accuracy", fontsize=8.5, color=INK)
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g}%")
    axes.set_title(clean(str(data.attrs.get("title", "")), 80), fontsize=9, color=INK, loc="left", parse_math=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8, colors=MUTED)
    axes.grid(color="#e5e7eb", linewidth=0.6)
    for text in axes.legend(fontsize=7.5, frameon=False, loc="lower right").get_texts():
        text.set_parse_math(False)
    return figure


def subset_map(data: xr.Dataset, path: str | os.PathLike[str]) -> Path:
    """Save a picture of a subset grid: a panel for each network, a row for each draw, a column for each budget.

    Raises:
        RunError: there is no accuracy by budget and draw.
    """
    return save(subset_map_figure(data), path)


def subset_map_figure(data: xr.Dataset) -> Figure:
    """The figure that `subset_map` saves; each cell has the mean over seeds."""
    accuracy = _accuracy(data)
    if "draw" not in accuracy.dims:
        raise RunError(f"The subset map needs accuracy by draw; this has the dimensions {list(accuracy.dims)}.")
    by = next((dim for dim in ("source", "network") if dim in accuracy.dims), None)
    names = [clean(str(n), 40) for n in accuracy[by].values] if by else [""]
    cells = accuracy.mean("seed") if "seed" in accuracy.dims else accuracy
    columns, rows = cells.sizes["budget"], cells.sizes["draw"]
    figure = new_figure(1.3 + len(names) * max(1.6, 0.55 * columns), 1.3 + 0.27 * rows)
    axes = figure.subplots(1, len(names), squeeze=False, sharey=True)[0]
    low, high = float(cells.min()), float(cells.max())
    for i, (axis, name) in enumerate(zip(axes, names, strict=True)):
        values = (cells.isel({by: i}) if by else cells).transpose("draw", "budget").values
        axis.imshow(values, cmap="viridis", vmin=low, vmax=high, aspect="auto")
        for (r, c), value in np.ndenumerate(values):
            if np.isfinite(value):
                ink = "white" if value < (low + high) / 2 else "black"
                axis.text(c, r, f"{100 * value:.0f}", ha="center", va="center", fontsize=6.5, color=ink)
        axis.set_xticks(range(columns), [str(b) for b in cells["budget"].values], fontsize=7.5)
        axis.set_yticks(range(rows), [str(d) for d in cells["draw"].values], fontsize=7.5)
        axis.set_title(name, fontsize=8, color=INK, parse_math=False)
        axis.set_xlabel("images per class", fontsize=8)
        axis.spines[:].set_visible(False)
        axis.tick_params(length=0)
    axes[0].set_ylabel("draw of the subset", fontsize=8)
    figure.colorbar(axes[0].images[0], ax=axes, shrink=0.9, format=lambda value, _: f"{100 * value:.0f}%").ax.tick_params(labelsize=7)
    return figure


def _accuracy(data: xr.Dataset) -> xr.DataArray:
    if "accuracy" not in data or "budget" not in data["accuracy"].dims:
        raise RunError(f"There is no accuracy by budget to draw; there is {sorted(map(str, data.data_vars))}.")
    return data["accuracy"]

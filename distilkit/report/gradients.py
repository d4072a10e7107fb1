"""The gradient study as a figure: norm, variance and cosine of the meta-gradient by outer step, a line for each policy."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from distilkit.errors import RunError
from distilkit.report.drawing import BLUE, GREEN, INK, MUTED, ORANGE, PURPLE, clean, new_figure, save
from distilkit.storage.spread import told_cosine

COLOURS = (BLUE, ORANGE, PURPLE, GREEN, MUTED, INK)
MARKERS = "osD^vP"


def gradient_curves(data: xr.Dataset, path: str | os.PathLike[str]) -> Path:
    """Save a picture of a gradient study.

    Args:
        data: of `distilkit.gradient_study`.
        path: where the picture goes: .png, .pdf or .svg.

    Raises:
        RunError: it is no gradient study.
    """
    return save(gradient_figure(data), path)


def gradient_figure(data: xr.Dataset) -> Figure:
    """The figure that `gradient_curves` saves: a column for each inner optimiser; norm and variance on log axes."""
    lacking = [name for name in ("norm", "variance", "variance_clipped", "cosine") if name not in data]
    if lacking:
        raise RunError(f"This is no gradient study: it lacks {', '.join(lacking)}.")
    optimizers = [str(o) for o in data["optimizer"].values]
    figure = new_figure(1.2 + 4.3 * len(optimizers), 9.0)
    axes = figure.subplots(4, len(optimizers), squeeze=False, sharex=True, sharey="row")
    for column, name in zip(axes.T, optimizers, strict=True):
        own = data.sel(optimizer=name)
        _norms(column[0], own)
        _line(column[1], own, "variance", log=True)
        _line(column[2], own, "variance_clipped", log=True)
        _line(column[3], own, "cosine", log=False)
        column[3].set_ylim(min(-0.25, _lowest(data) - 0.1), 1.15)
        column[0].set_title(f"inner optimiser {clean(name, 30)}", fontsize=9, color=INK, loc="left", parse_math=False)
        column[-1].set_xticks(range(own.sizes["outer_step"]), [str(step) for step in own["outer_step"].values])
        column[-1].set_xlabel("outer steps done", fontsize=8.5)
    words = (
        "norm of\nsingle draws",
        "variance:\ntr Cov / |mean|²",
        "the same,\nclipped at 2 medians",
        "estimated cosine to\nthe full unroll's mean",
    )
    for axis, text in zip(axes[:, 0], words, strict=True):
        axis.set_ylabel(text, fontsize=8.5, color=INK)
    figure.align_ylabels(axes[:, 0])
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(which="both", labelsize=7.5, colors=MUTED)
        axis.grid(axis="y", color="#e5e7eb", linewidth=0.6)
    handles, labels = axes[1, 0].get_legend_handles_labels()
    columns = 4 if max(map(len, labels), default=0) <= 30 else 2
    for label in figure.legend(handles, labels, fontsize=8, frameon=False, loc="outside lower center", ncols=columns).get_texts():
        label.set_parse_math(False)
    title = clean(str(data.attrs.get("title", "")), 60)
    figure.suptitle(
        f"{title}\n{data.sizes['replicate']} meta-gradients a point; not shown where they are too few to tell",
        fontsize=10,
        color=INK,
        parse_math=False,
    )
    return figure


def _lowest(data: xr.Dataset) -> float:
    """The least cosine that is shown."""
    told = told_cosine(data["cosine"].values, data["cosine_error"].values)
    return float(np.nan_to_num(told, nan=1.0).min(initial=1.0))


def _places(data: xr.Dataset) -> np.ndarray:
    """Where the policies stand, one place a step and side by side within it, so that their marks do not hide each other."""
    steps, count = data.sizes["outer_step"], data.sizes["policy"]
    places: np.ndarray = np.arange(steps)[None] + (np.arange(count) - (count - 1) / 2)[:, None] * min(0.12, 0.6 / count)
    return places


def _style(i: int) -> str:
    """Marker and line of the i-th policy: dashed where colours begin anew."""
    return MARKERS[i % len(MARKERS)] + ("-" if i < len(COLOURS) else "--")


def _norms(axes: Axes, data: xr.Dataset) -> None:
    """Every single draw as a point, and a line through their medians."""
    axes.set_yscale("log")
    for i, x in enumerate(_places(data)):
        colour, norms = COLOURS[i % len(COLOURS)], data["norm"].isel(policy=i).transpose("outer_step", "replicate").values
        axes.plot(np.repeat(x, norms.shape[1]), norms.ravel(), ".", color=colour, alpha=0.35, markersize=3, linewidth=0)
        axes.plot(x, np.median(norms, axis=1), _style(i), color=colour, markersize=4, linewidth=1.3)


def _line(axes: Axes, data: xr.Dataset, name: str, *, log: bool) -> None:
    """The estimate with its standard error; where that is as large as a variance, or too large for a cosine, there is nothing to show."""
    if log:
        axes.set_yscale("log")
    for i, x in enumerate(_places(data)):
        values, error = data[name].isel(policy=i).values, data[f"{name}_error"].isel(policy=i).values
        values = np.where(error < values, values, np.nan) if log else told_cosine(values, error)
        good, colour = np.isfinite(values), COLOURS[i % len(COLOURS)]
        lower = np.minimum(error, 0.9 * values) if log else error
        axes.errorbar(
            x[good],
            values[good],
            np.stack([lower[good], error[good]]),
            fmt=_style(i),
            color=colour,
            markersize=4,
            linewidth=1.3,
            elinewidth=0.8,
            label=clean(str(data["policy"].values[i]), 56),
        )

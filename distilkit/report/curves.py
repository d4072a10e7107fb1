"""How a run went: loss, meta-gradient and validation accuracy by outer step."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from distilkit.errors import RunError, counted, listing
from distilkit.report.drawing import BLUE, GREEN, INK, MUTED, ORANGE, PURPLE, clean, new_figure, save
from distilkit.storage.spread import plus_minus, spread

LINES = (ORANGE, PURPLE, MUTED, INK)


def curves(tree: xr.DataTree, path: str | os.PathLike[str]) -> Path:
    """Save a picture of the history of a run.

    Args:
        tree: the results of a run, with `/history`; `/evaluation` and `/baselines` are drawn where they are there.
        path: where the picture goes: .png, .pdf or .svg.

    Returns:
        The path of the picture.

    Raises:
        RunError: the run has no history.
    """
    return save(curves_figure(tree), path)


def curves_figure(tree: xr.DataTree) -> Figure:
    """The figure that `curves` saves: a panel each for the outer loss, the meta-gradient norm and, if there is any, the accuracy."""
    if "history" not in tree.children:
        raise RunError(f"The run has no group /history to draw; it has {sorted(tree.children)}.")
    history = tree["history"].to_dataset()
    evaluation = tree["evaluation"].to_dataset() if "evaluation" in tree.children else xr.Dataset()
    baselines = tree["baselines"].to_dataset() if "baselines" in tree.children else xr.Dataset()
    panels = [name for name in ("outer_loss", "meta_gradient_norm") if name in history]
    measured = any(name in group for group in (evaluation, baselines) for name in ("accuracy", "validation_accuracy"))
    count = len(panels) + measured
    figure = new_figure(7.2, 2.1 * max(count, 1) + 0.5)
    axes = figure.subplots(max(count, 1), 1, sharex=True, squeeze=False)[:, 0]
    for axis, name in zip(axes, panels, strict=False):
        _series(axis, history[name], log=name == "meta_gradient_norm")
    if measured:
        _accuracy(axes[-1], evaluation, baselines)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(which="both", labelsize=7.5, colors=MUTED)
        axis.grid(axis="y", color="#e5e7eb", linewidth=0.6)
    axes[-1].set_xlabel("outer step", fontsize=8.5, color=INK)
    figure.suptitle(clean(str(tree.attrs.get("title", "")) or "history"), fontsize=10, color=INK, parse_math=False)
    return figure


def _series(axes: Axes, series: xr.DataArray, *, log: bool) -> None:
    """Every value in light ink, and in dark ink the running median, which spikes do not bend."""
    steps, values = series["outer_step"].values, series.values.astype(float)
    good = np.isfinite(values) & (values > 0 if log else True)
    if log and good.any():
        axes.set_yscale("log")
    many = good.sum() > 100
    axes.plot(steps[good], values[good], color=BLUE, linewidth=0.7 if many else 1.3, alpha=0.35 if many else 1, label="each step")
    if many:
        width = max(5, int(good.sum()) // 25)
        median = xr.DataArray(values[good], dims="i").rolling(i=width, center=True, min_periods=1).median()
        axes.plot(steps[good], median, color=BLUE, linewidth=1.4, label=f"median of {width}")
        axes.legend(fontsize=7, frameon=False, loc="upper right")
    lost = int((~good).sum())
    missing = f" ({counted(lost, 'value')} not drawn: not finite or not positive)" if lost else ""
    words = clean(str(series.attrs.get("long_name", series.name)), 80) + missing
    axes.set_title(words, fontsize=8.5, color=INK, loc="left", parse_math=False)


def _accuracy(axes: Axes, evaluation: xr.Dataset, baselines: xr.Dataset) -> None:
    if "validation_accuracy" in evaluation and evaluation.sizes["outer_step"]:
        by_step = evaluation["validation_accuracy"]
        mean = by_step.mean("seed")
        axes.plot(by_step["outer_step"], mean, "o-", color=GREEN, markersize=3, linewidth=1.3, label="distilled, validation")
        if by_step.sizes["seed"] > 1:
            deviation = spread(by_step.transpose("outer_step", "seed").values, axis=1)
            low, high = mean.values - deviation, mean.values + deviation
            axes.fill_between(by_step["outer_step"].values, low, high, color=GREEN, alpha=0.18, linewidth=0)
    if "accuracy" in evaluation:
        tested = clean(f"distilled ({evaluation.attrs['set']}), test" if "set" in evaluation.attrs else "distilled, test")
        _level(axes, evaluation["accuracy"], tested, GREEN, "--")
    if "accuracy" in baselines:
        for i, name in enumerate(baselines["baseline"].values):
            _level(axes, baselines["accuracy"][i], f"{clean(str(name), 30)}, test", LINES[i % len(LINES)], ":")
    seeds = evaluation.sizes.get("seed", 0)
    words = f"accuracy: mean and standard deviation over {seeds} seeds" if seeds > 1 else "accuracy"
    axes.set_title(words + _training_steps(json.loads(evaluation.attrs.get("protocol", "{}"))), fontsize=8.5, color=INK, loc="left")
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g}%")
    figure = axes.get_figure(root=True)
    assert figure is not None  # these axes were made by it
    for text in figure.legend(
        *axes.get_legend_handles_labels(), fontsize=7, frameon=False, loc="outside lower center", ncols=2
    ).get_texts():
        text.set_parse_math(False)


def _training_steps(protocol: dict[str, Any]) -> str:
    """How long the networks were trained, from the words of `Evaluation.words`: what was selected, or what can be."""
    steps = [protocol["selected_training_steps"]] if "selected_training_steps" in protocol else protocol.get("training_steps", [])
    return f", {counted(listing(steps), 'training step')}" if steps else ""


def _level(axes: Axes, accuracy: xr.DataArray, name: str, color: str, style: str) -> None:
    values = accuracy.values[np.isfinite(accuracy.values)]
    if len(values):
        axes.axhline(values.mean(), color=color, linestyle=style, linewidth=1.2, label=f"{name}: {plus_minus(100 * values, 1)}%")

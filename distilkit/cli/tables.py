"""Tables: what a run, a plan, an evaluation, a study and the recipes look like on the console, by the numbers of `rows`."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import attrs
import numpy as np
import xarray as xr
from rich.table import Table
from rich.text import Text

from distilkit import recipes
from distilkit.cli.rows import SCORES, Row, evaluation_rows, gradients_rows, results_rows, sources_rows, subsets_rows
from distilkit.errors import counted
from distilkit.progress import duration
from distilkit.storage import shipped
from distilkit.storage.spread import plus_minus, told_cosine

if TYPE_CHECKING:
    from distilkit.runs.estimate import Plan

WIDE = 120  # columns of a terminal that hold all of a recipe


def recipes_values() -> list[Row]:
    """What the recipes say of themselves, and whether the set of one is here."""
    ready = shipped.names()
    return [attrs.asdict(recipes.describe(name)) | {"set_is_here": name in ready} for name in recipes.names()]


def recipes_table(width: int = WIDE) -> Table:
    """What the recipes say of themselves; where there is little room, without what stands in brackets, and what their names say too."""
    table = Table(title="Recipes: test accuracy in percent, as published")
    wide = width >= WIDE
    for heading in ("name", "data", "per class", "published", "memory", "cost", "its set") if wide else ("name", "published", "cost"):
        name = heading == "name"  # which is to be typed, and so stays in one piece
        table.add_column(heading, justify="right" if heading == "per class" else "left", overflow="fold", no_wrap=name)
    for one in recipes_values():
        if wide:
            here = "here" if one["set_is_here"] else ""
            table.add_row(*(str(one[key]) for key in ("name", "data", "per_class", "published", "memory", "cost")), here)
        else:
            table.add_row(one["name"], one["published"].partition(" (")[0], one["cost"].partition(" (")[0])
    return table


def plan_table(found: Plan, title: str) -> Table:
    """Memory by what holds it, and time."""
    several = found.processes > 1
    table = Table(title=Text(f"{title}: what {f'each of {found.processes} processes' if several else 'a run'} takes"), show_header=False)
    table.add_column()
    table.add_column(justify="right")
    what = "process, libraries and real data" if found.device == "CPU" else "real data"
    table.add_row(Text(f"Memory at its peak, of {gib(found.available)} on this {found.device}"), gib(found.peak))
    for words, size in ((what, found.baseline_bytes), ("loading the data", found.loading_peak)):
        table.add_row(f"  {words}", gib(size))
    table.add_row(f"  trajectory of {counted(found.longest_window, 'step')}", gib(found.trajectory_bytes))
    table.add_row("  one step, and what checks it", gib(found.step_peak))
    table.add_row("  or training and testing networks", gib(found.evaluation_peak) if found.seconds is not None else "not probed")
    if several:
        table.add_row("  or telling each other meta-gradients", gib(found.exchange_peak))
        if found.device == "CPU":
            table.add_row(f"All {found.processes} on one machine, at most", gib(found.processes * found.peak))
        table.add_row("Meta-gradients that it gets in an outer step", f"{found.exchange_bytes / 1e6:.3g} MB")
    total, through = found.inner_steps
    table.add_row("Inner steps of an outer step, on average", f"{total:.0f}, the gradient through {through:.0f}")
    if found.seconds is not None and found.build_seconds is not None:
        table.add_row("Time of an outer step" + (", without getting them" if several else ""), f"{found.seconds:.3g} s")
        table.add_row("  building programs, once", f"{found.build_seconds:.3g} s")
        table.add_row(
            f"  {counted(found.outer_steps, 'outer step')} in all, without evaluation", duration(found.seconds * found.outer_steps)
        )
    return table


def gib(size: float) -> str:
    """Bytes in words."""
    return f"{size / 2**30:.2f} GiB"


def evaluation_table(result: xr.Dataset, title: str) -> Table:
    """Test accuracy after each number of training steps, of the distilled set and of what was trained beside it."""
    table = Table(title=title)
    several = "network" in result
    for heading in ("trained on", *(["network"] if several else []), "steps", "mean", "std", "networks"):
        table.add_column(heading, justify="left" if heading in ("trained on", "network") else "right")
    for row in evaluation_rows(result):
        network = [row["network"] or ""] if several else []
        table.add_row(row["trained_on"], *network, str(row["training_steps"]), *_accuracy(row, 4))
    return table


def evaluation_words(result: xr.Dataset) -> list[str]:
    """What was selected, and on what; the paper's protocol; DD-Ranking's scores."""
    selected_on, lines = json.loads(result.attrs["protocol"])["selected_on"], []
    each = [(f"{name}: ", result.sel(network=name)) for name in result.network.values] if "network" in result else [("", result)]
    if selected_on is None:
        lines.append("There is no validation split, so no number of steps was selected.")
    for front, one in each:
        if selected_on is not None:
            best = one.accuracy.sel(training_steps=one.selected_steps)
            lines.append(f"{front}Selected on the {selected_on}: {counted(int(one.selected_steps), 'step')}, {plus_minus(best)}")
        lines.append(
            f"{front}Paper protocol (the largest mean above, chosen on the test images, so optimistic): {float(one.paper_protocol):.4f}"
        )
    return lines + [f"{result[name].attrs['long_name']}: {plus_minus(result[name])}" for name in SCORES if name in result]


def _accuracy(row: Row, digits: int) -> tuple[str, str, str]:
    """Three cells: mean, standard deviation, which a single value has none of, and how many networks there are, and of them diverged."""
    count, lost = len(row["accuracy"]), row["diverged"]
    deviation = f"{row['std']:.{digits}f}" if count > 1 else "-"
    return f"{row['mean']:.{digits}f}", deviation, f"{count} ({lost} diverged)" if lost else str(count)


def results_table(tree: xr.DataTree) -> Table:
    """Test accuracy of the distilled set and of the baselines."""
    table = Table(title=Text(f"{tree.attrs['title']}: test accuracy"))
    for heading, justify in (("trained on", "left"), ("images", "right"), ("mean", "right"), ("std", "right"), ("seeds", "right")):
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]
    for row in results_rows(tree):
        table.add_row(row["trained_on"], "all" if row["images"] is None else str(row["images"]), *_accuracy(row, 3))
    return table


def training_words(found: Row) -> list[str]:
    """How to train on a set that was tested, from the values of its run: lines, none for one that was not.

    >>> how = {"steps": 40, "network": "MLP(hidden=(8,), image_shape=(1, 8, 8), classes=10)", "optimizer": "SGD(lr=0.1)"}
    >>> training_words({"folder": "runs/x", "set": {"training": how}})
    ["Train on it   distilkit.load('runs/x').dataset(), for 40 steps: MLP(hidden=(8,)), SGD(lr=0.1)"]
    """
    how = found.get("set", {}).get("training")
    if not how:
        return []
    network = re.sub(r", image_shape=.*\)$", ")", how["network"])
    parts = [network, how["optimizer"], "at the learned rate" if how.get("learned_rate") else "", how.get("augment") or ""]
    with_it = ", ".join(filter(None, parts))
    return [f"Train on it   distilkit.load({str(found['folder'])!r}).dataset(), for {counted(how['steps'], 'step')}: {with_it}"]


def subsets_table(grid: xr.Dataset, title: str) -> Table:
    """Mean and standard deviations of the accuracy of subsets, by network and budget."""
    table, rows = Table(title=title), subsets_rows(grid)
    # A single draw or seed has no spread, of which a column would be empty.
    spreads = [name for name in ("std_over_draws", "std_over_seeds") if not all(np.isnan(row[name]) for row in rows)]
    for heading in ("network", "images per class", "mean", *(name.replace("_", " ") for name in spreads)):
        table.add_column(heading, justify="left" if heading == "network" else "right")
    for row in rows:
        numbers = (row[name] for name in ("mean", *spreads))
        table.add_row(row["network"], str(row["images_per_class"]), *("-" if np.isnan(n) else f"{n:.3f}" for n in numbers))
    return table


def sources_table(sources: xr.Dataset) -> Table:
    """Mean and standard deviation of the accuracy over draws and seeds, by source and budget."""
    table = Table(title=f"test accuracy, mean ± std over draws and {counted(sources.sizes['seed'], 'seed')}")
    table.add_column("source")
    for budget in sources["budget"].values:
        table.add_column(f"{budget} per class", justify="right")
    by_source: dict[str, list[str]] = {}
    for row in sources_rows(sources):
        deviation = "" if np.isnan(row["std"]) else f" ± {row['std']:.3f}"
        by_source.setdefault(row["source"], []).append(f"{row['mean']:.3f}{deviation}")
    for name, cells in by_source.items():
        table.add_row(name, *cells)
    return table


def _cosine(row: Row, name: str) -> str:
    """An estimated cosine and its error, where they tell something."""
    told = told_cosine(row[name], row[f"{name}_error"])
    return "not told" if np.isnan(told) else f"{told:.2f} ± {row[f'{name}_error']:.2f}"


def gradients_table(study: xr.Dataset) -> Table:
    """Variance, bias and cost by policy, inner optimiser and outer step."""
    table = Table(title=f"{study.attrs['title']}: {study.sizes['replicate']} meta-gradients each, full horizon {study.attrs['horizon']}")
    headings = (
        "policy",
        "optimiser",
        "outer step",
        "norm (median)",
        "variance",
        "clipped",
        "cosine to full",
        "same end",
        "one draw to full",
        "seconds",
        "gain a second, %",
        "peak MB",
    )
    for heading in headings:
        table.add_column(heading, justify="left" if heading in headings[:2] else "right")
    for row in gradients_rows(study):
        worth = row["gain_per_second"]  # a part of a step along the mean of the full unroll
        table.add_row(
            row["policy"],
            row["optimizer"],
            str(row["outer_step"]),
            f"{row['norm']:.2e}",
            f"{row['variance']:.3g} ± {row['variance_error']:.2g}",
            f"{row['variance_clipped']:.3g} ± {row['variance_clipped_error']:.2g}",
            _cosine(row, "cosine"),
            f"{row['same_end_cosine']:.2f}",
            _cosine(row, "alignment"),
            f"{row['seconds']:.3f}",
            "not told" if np.isnan(worth) else f"{100 * worth:.2g}",
            f"{row['peak_memory'] / 1e6:.1f}",
        )
    return table

"""Tables: what a run, a plan, an evaluation, a study and the recipes look like on the console."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from rich.table import Table
from rich.text import Text

from distilkit import recipes
from distilkit.progress import duration
from distilkit.storage import shipped
from distilkit.storage.layout import tested
from distilkit.storage.spread import plus_minus, spread
from distilkit.studies.statistics import gain

if TYPE_CHECKING:
    from distilkit.runs.estimate import Plan

WIDE = 120  # columns of a terminal that hold all of a recipe


def recipes_table(width: int = WIDE) -> Table:
    """What the recipes say of themselves; where there is little room, without what stands in brackets, and what their names say too."""
    table = Table(title="Recipes: test accuracy in percent, as published")
    wide = width >= WIDE
    for heading in ("name", "data", "per class", "published", "memory", "cost", "its set") if wide else ("name", "published", "cost"):
        name = heading == "name"  # which is to be typed, and so stays in one piece
        table.add_column(heading, justify="right" if heading == "per class" else "left", overflow="fold", no_wrap=name)
    ready = shipped.names()
    for one in map(recipes.describe, recipes.names()):
        if wide:
            here = "here" if one.name in ready else ""
            table.add_row(one.name, one.data, str(one.per_class), one.published, one.memory, one.cost, here)
        else:
            table.add_row(one.name, one.published.partition(" (")[0], one.cost.partition(" (")[0])
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
    table.add_row(f"  trajectory of {found.longest_window} steps", gib(found.trajectory_bytes))
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
        table.add_row(f"  all {found.outer_steps} outer steps, without evaluation", duration(found.seconds * found.outer_steps))
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
    accuracy = result.accuracy
    rows = [(["distilled", str(n)], accuracy.sel(network=n)) for n in result.network.values] if several else [(["distilled"], accuracy)]
    if "baseline_accuracy" in result:
        beside = [""] if several else []
        rows += [([str(b), *beside], result.baseline_accuracy.sel(baseline=b)) for b in result.baseline.values]
    for words, table_of_one in rows:
        for steps in result.training_steps.values:
            one = table_of_one.sel(training_steps=steps)
            table.add_row(*words, str(steps), f"{float(one.mean()):.4f}", _deviation(one, 4), _count(one))
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
            lines.append(f"{front}Selected on the {selected_on}: {int(one.selected_steps)} steps, {plus_minus(best)}")
        lines.append(
            f"{front}Paper protocol (the largest mean above, chosen on the test images, so optimistic): {float(one.paper_protocol):.4f}"
        )
    scores = ("hard_label_recovery", "improvement_over_random", "label_robust_score", "augmentation_robust_score")
    return lines + [f"{result[name].attrs['long_name']}: {plus_minus(result[name])}" for name in scores if name in result]


def _count(accuracy: xr.DataArray) -> str:
    """How many networks there are, and how many of them diverged and so are in neither mean nor deviation."""
    lost = int(accuracy.isnull().sum())
    return f"{accuracy.size} ({lost} diverged)" if lost else str(accuracy.size)


def _deviation(values: xr.DataArray, digits: int) -> str:
    """Standard deviation, for a cell of a table; a single value has none."""
    return f"{spread(values):.{digits}f}" if values.size > 1 else "-"


def results_table(tree: xr.DataTree) -> Table:
    """Test accuracy of the distilled set and of the baselines."""
    table = Table(title=Text(f"{tree.attrs['title']}: test accuracy"))
    for heading, justify in (("trained on", "left"), ("images", "right"), ("mean", "right"), ("std", "right"), ("seeds", "right")):
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]
    for name, count, accuracy in tested(tree):
        table.add_row(name, count, f"{float(accuracy.mean()):.3f}", _deviation(accuracy, 3), _count(accuracy))
    return table


def subsets_table(grid: xr.Dataset, title: str) -> Table:
    """Mean and standard deviations of the accuracy of subsets, by network and budget."""
    table = Table(title=title)
    for heading in ("network", "images per class", "mean", "std over draws", "std over seeds"):
        table.add_column(heading, justify="left" if heading == "network" else "right")
    for name in grid["network"].values:
        for budget in grid["budget"].values:
            own = grid["accuracy"].sel(network=name, budget=budget)
            by_draw = own.transpose("draw", "seed").values
            numbers = (by_draw.mean(), spread(by_draw.mean(1)), spread(by_draw, axis=1).mean())
            table.add_row(str(name), str(budget), *("-" if np.isnan(n) else f"{n:.3f}" for n in numbers))
    return table


def sources_table(sources: xr.Dataset) -> Table:
    """Mean and standard deviation of the accuracy over draws and seeds, by source and budget."""
    table = Table(title=f"test accuracy, mean ± std over draws and {sources.sizes['seed']} seeds")
    table.add_column("source")
    for budget in sources["budget"].values:
        table.add_column(f"{budget} per class", justify="right")
    for name in sources["source"].values:
        own = sources["accuracy"].sel(source=name)
        table.add_row(str(name), *(plus_minus(own.sel(budget=b), 3) for b in own["budget"]))
    return table


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
    for name in study["optimizer"].values:
        for step in study["outer_step"].values:
            for policy in study["policy"].values:
                own = study.sel(optimizer=name, outer_step=step, policy=policy)
                table.add_row(
                    str(policy),
                    str(name),
                    str(step),
                    f"{float(own['norm'].median()):.2e}",
                    f"{float(own['variance']):.3g} ± {float(own['variance_error']):.2g}",
                    f"{float(own['variance_clipped']):.3g} ± {float(own['variance_clipped_error']):.2g}",
                    f"{float(own['cosine']):.2f} ± {float(own['cosine_error']):.2f}",
                    f"{float(own['same_end_cosine'].mean()):.2f}",
                    f"{float(own['alignment']):.2f} ± {float(own['alignment_error']):.2f}",
                    f"{float(own['seconds'].median()):.3f}",
                    _gain(own),
                    f"{float(own['peak_memory']) / 1e6:.1f}",
                )
    return table


def _gain(own: xr.Dataset) -> str:
    """What a second gives, in percent of a step along the mean of the full unroll."""
    worth = gain(float(own["alignment"]), float(own["alignment_error"]), float(own["seconds"].median()))
    return "not told" if np.isnan(worth) else f"{100 * worth:.2g}"

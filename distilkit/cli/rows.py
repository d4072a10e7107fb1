"""What came out, as plain values: the rows of the tables, and what `--json` prints. The page In scripts tells what each is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
import xarray as xr

from distilkit.cli.display import option
from distilkit.storage.layout import tested
from distilkit.storage.spread import spread
from distilkit.studies.statistics import gain

if TYPE_CHECKING:
    from distilkit.runs.estimate import Plan

Row = dict[str, Any]

SCORES = ("hard_label_recovery", "improvement_over_random", "label_robust_score", "augmentation_robust_score")  # of DD-Ranking


def accuracies(values: xr.DataArray | np.ndarray) -> Row:
    """Accuracies of networks, of which those that diverged are NaN and in neither mean nor deviation.

    >>> accuracies(np.array([0.5, 0.7, np.nan]))["mean"], accuracies(np.array([0.5]))["std"]
    (0.6, nan)
    """
    numbers = np.asarray(values, np.float64).ravel()
    there = numbers[~np.isnan(numbers)]
    mean = float(there.mean()) if there.size else np.nan
    return {"mean": mean, "std": float(spread(there)), "diverged": int(numbers.size - there.size), "accuracy": numbers.tolist()}


def run_values(tree: xr.DataTree, folder: Path) -> Row:
    """All that is known of a run, or of a stored evaluation or study."""
    found: Row = {"folder": folder, "title": tree.attrs.get("title")}
    if "history" in tree.children:
        history = tree["history"].to_dataset()
        found["status"] = "finished" if tree.attrs.get("finished") else "stopped"
        seconds = float(history["seconds"].sum()) if "seconds" in history else None
        found |= {"outer_steps": history.sizes["outer_step"], "seconds": seconds}
    if "distilled" in tree.children:
        about = tree["distilled"].attrs
        found["set"] = {"outer_step": about.get("outer_step"), "validation_accuracy": about.get("validation_accuracy")}
        found["set"]["training"] = json.loads(about.get("provenance", "{}")).get("training")
    if "evaluation" in tree.children:
        evaluation = tree["evaluation"].to_dataset()
        if "outer_step" in evaluation.coords:
            looks = evaluation["validation_accuracy"]
            found["validation"] = [{"outer_step": int(n), **accuracies(looks.sel(outer_step=n))} for n in looks["outer_step"].values]
        if "training_steps" in evaluation.coords:
            found["tests"] = evaluation_rows(evaluation)
        elif "accuracy" in evaluation:
            found["tests"] = results_rows(tree)
    return found | {"files": files_of(folder)}


def files_of(folder: Path) -> list[Path]:
    """What a person opens of a run."""
    named = [folder / name for name in ("spec.toml", "results.zarr", "report.html") if (folder / name).exists()]
    return named + sorted(folder.glob("*.png"))


def results_rows(tree: xr.DataTree) -> list[Row]:
    """Test accuracy of the distilled set of a run, and of the baselines, after the number of training steps that was selected for each."""
    rows = []
    for (name, count, values), steps in zip(tested(tree), _selected_steps(tree), strict=True):
        images = int(count) if count.isdigit() else None
        rows.append({"trained_on": name, "images": images, "training_steps": steps} | accuracies(values))
    return rows


def _selected_steps(tree: xr.DataTree) -> list[int | None]:
    """For each of `tested`, in its order."""
    own = json.loads(tree["evaluation"].attrs.get("protocol", "{}")).get("selected_training_steps")
    found: list[int | None] = []
    if "prefixes" in tree.children:
        found += [int(n) for n in tree["prefixes"].to_dataset()["training_steps"].values[:-1]]
    found.append(own)
    if "baselines" in tree.children:
        baselines = tree["baselines"].to_dataset()
        by_name = json.loads(baselines.attrs.get("protocol", "{}")).get("selected_training_steps", {})
        found += [by_name.get(str(name)) for name in baselines["baseline"].values]
    return found


def evaluation_rows(result: xr.Dataset) -> list[Row]:
    """Test accuracy after each number of training steps, of the distilled set and of what was trained beside it."""
    accuracy = result["accuracy"]
    several = "network" in result.coords
    tables: list[tuple[str, str | None, xr.DataArray]] = [("distilled", None, accuracy)]
    if several:
        tables = [("distilled", str(name), accuracy.sel(network=name)) for name in result["network"].values]
    if "baseline_accuracy" in result:
        tables += [(str(b), None, result["baseline_accuracy"].sel(baseline=b)) for b in result["baseline"].values]
    return [
        {"trained_on": name, "network": network, "training_steps": int(n)} | accuracies(table.sel(training_steps=n))
        for name, network, table in tables
        for n in result["training_steps"].values
    ]


def evaluation_values(result: xr.Dataset, path: Path, out: Path | None) -> Row:
    """All that an evaluation has found."""
    several = "network" in result.coords
    each = [(str(name), result.sel(network=name)) for name in result["network"].values] if several else [(None, result)]
    selected = []
    for name, one in each:
        best: Row = {"network": name, "paper_protocol": float(one["paper_protocol"])}
        if "selected_steps" in one:
            steps = int(one["selected_steps"])
            best |= {"training_steps": steps} | accuracies(one["accuracy"].sel(training_steps=steps))
        selected.append(best)
    return {
        "evaluated": path,
        "folder": out,
        "data": result.attrs["data"],
        "test_images": int(result.attrs["test_images"]),
        "tests": evaluation_rows(result),
        "selected_on": json.loads(result.attrs["protocol"])["selected_on"],
        "selected": selected,
        "scores": {name: _score(result[name]) for name in SCORES if name in result},
    }


def _score(values: xr.DataArray) -> Row:
    found = accuracies(values)
    return {"mean": found["mean"], "std": found["std"], "each": found["accuracy"]}


def plan_values(found: Plan, title: str) -> Row:
    """A plan with what follows from it; sizes in bytes."""
    own = {field.name: getattr(found, field.name) for field in attrs.fields(type(found)) if field.name != "advice"}
    advice = [{"why": words, "name": one.name, "value": one.value, "option": option(one)} for words, one in found.advice]
    return {"title": title, "fits": found.fits, "peak": found.peak, **own, "advice": advice}


def study_values(folder: Path, figures: Sequence[Path], rows: Sequence[Row], computed: float = 1.0) -> Row:
    """A study and where it lies; `computed` is the part of its grid that is there."""
    return {"folder": folder, "store": folder / "results.zarr", "computed": computed, "figures": list(figures), "rows": list(rows)}


def subsets_rows(grid: xr.Dataset) -> list[Row]:
    """Mean and standard deviations of the accuracy of subsets, by network and budget."""
    rows = []
    for name in grid["network"].values:
        for budget in grid["budget"].values:
            by_draw = grid["accuracy"].sel(network=name, budget=budget).transpose("draw", "seed").values
            own = [accuracies(draw) for draw in by_draw]
            rows.append(
                {
                    "network": str(name),
                    "images_per_class": int(budget),
                    "mean": accuracies(by_draw)["mean"],
                    "std_over_draws": accuracies(np.array([draw["mean"] for draw in own]))["std"],
                    "std_over_seeds": accuracies(np.array([draw["std"] for draw in own]))["mean"],
                }
            )
    return rows


def sources_rows(sources: xr.Dataset) -> list[Row]:
    """Mean and standard deviation of the accuracy over draws and seeds, by source and budget."""
    rows = []
    for name in sources["source"].values:
        for budget in sources["budget"].values:
            found = accuracies(sources["accuracy"].sel(source=name, budget=budget))
            rows.append({"source": str(name), "images_per_class": int(budget), "mean": found["mean"], "std": found["std"]})
    return rows


def gradients_rows(study: xr.Dataset) -> list[Row]:
    """Norm, variance, bias and cost by policy, inner optimiser and outer step; norm and seconds are medians, memory is in bytes."""
    rows = []
    for name in study["optimizer"].values:
        for step in study["outer_step"].values:
            for policy in study["policy"].values:
                own = study.sel(optimizer=name, outer_step=step, policy=policy)
                row: Row = {"policy": str(policy), "optimizer": str(name), "outer_step": int(step), "norm": float(own["norm"].median())}
                for measured in ("variance", "variance_clipped", "cosine", "alignment"):
                    row |= {measured: float(own[measured]), f"{measured}_error": float(own[f"{measured}_error"])}
                row |= {"same_end_cosine": float(own["same_end_cosine"].mean()), "seconds": float(own["seconds"].median())}
                row["gain_per_second"] = gain(row["alignment"], row["alignment_error"], row["seconds"])
                rows.append(row | {"peak_memory": float(own["peak_memory"])})
    return rows

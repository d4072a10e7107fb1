"""How does the cost of one meta-gradient grow with the window, the steps before it, the images per class and the network's width?

    python examples/benchmarks/slopes.py                           # prints a table, writes docs/results/slopes.json and .png
    python examples/benchmarks/slopes.py --precision bfloat16 --windows 5 10 20
    python examples/benchmarks/slopes.py --quick --out /tmp/quick  # a test that it works

One factor at a time around a centre: ConvNet-3 of width 64, ten images per class, a window of ten steps from step 0. The horizon grows
by steps before the window (the prefix); the real batch stays at 100 images. Every case runs as the centre does where that
is left to `Unroller` (compiled or recorded), so that a line has no step in it. Lines are fitted; for the width, on logarithms.

Seconds and "held" memory, what the process grows by, come from one process; "alive" memory from another, whose malloc gives
back at once what is freed (`common.ALIVE`), so that holes in the heap do not hide the slope. The warm-up is outside of both.
"""

from __future__ import annotations

import argparse
import math
from typing import Any, NamedTuple

import common
import numpy as np

QUESTION = "seconds and peak memory of one meta-gradient against window, prefix, images per class and width"
QUICK = {"centre": [2, 0, 1, 8], "windows": [4], "prefixes": [3], "per_class": [], "widths": [12]}


class Factor(NamedTuple):
    """Something that the cost depends on. unit: of the slope, or None for a power law."""

    option: str
    words: str
    unit: str | None


FACTORS = {
    "window": Factor("windows", "window (inner steps)", "a step"),
    "prefix": Factor("prefixes", "steps before the window", "a step"),
    "images_per_class": Factor("per_class", "images per class", "an image per class"),
    "width": Factor("widths", "width of the network", None),
}
MEASURES = {"seconds": ("seconds", 1.0, "s"), "alive_bytes": ("peak memory (MiB)", 2.0**20, "MiB")}


def measure(
    window: int, prefix: int, images_per_class: int, width: int, real: int, precision: str, compile: str, threads: int, device: str
) -> common.Row:
    """Run one case in this process."""
    import distilkit as dk

    common.prepare(threads, device)
    problem = common.convnet(width, 10 * images_per_class, real, device)
    unroller, stream = dk.Unroller(precision=precision, compile=compile), dk.Stream(0)
    unroller.meta_gradient(problem.learner, problem.leaves, common.warm_up(unroller), problem.batch, stream)
    with common.metered(device, trim=True) as reading:
        unroller.meta_gradient(problem.learner, problem.leaves, dk.Window(prefix, prefix + window), problem.batch, stream)
    return {"seconds": reading.seconds, "held_bytes": reading.peak - reading.before}


def as_at_centre(centre: common.Row, given: argparse.Namespace) -> str:
    """What `compile` stands for at the centre. The one place that asks `Unroller` how it would run."""
    import torch

    import distilkit as dk

    if given.compile != "auto":
        return str(given.compile)
    problem = common.convnet(centre["width"], 10 * centre["images_per_class"], 1)
    kind = dk.Unroller().execution(problem.learner, tuple(problem.leaves.images.shape), torch.device(given.device)).kind
    return kind


def fit(factor: Factor, x: list[float], y: list[float]) -> dict[str, float]:
    """A line through the medians; of logarithms where the factor has a power law."""
    if factor.unit is None:
        exponent, logarithm = common.line([(math.log(a), math.log(b)) for a, b in zip(x, y, strict=True)])
        return {"exponent": exponent, "factor": math.exp(logarithm)}
    slope, intercept = common.line(list(zip(x, y, strict=True)))
    return {"slope": slope, "intercept": intercept}


def fitted_at(fitted: dict[str, float], x: Any) -> Any:
    """The fitted values at x."""
    return fitted["factor"] * x ** fitted["exponent"] if "exponent" in fitted else fitted["slope"] * x + fitted["intercept"]


def words(factor: Factor, fitted: dict[str, float], scale: float, unit: str) -> str:
    """A fit, for people."""
    return f"width to the {fitted['exponent']:.2f}" if factor.unit is None else f"{fitted['slope'] / scale:.3g} {unit} {factor.unit}"


def along(name: str, rows: list[common.Row], centre: common.Row) -> list[common.Row]:
    """The rows that differ from the centre in one factor only, in its order."""
    good = [row for row in rows if "failed" not in row and all(row[other] == centre[other] for other in FACTORS if other != name)]
    return sorted(good, key=lambda row: float(row[name]))


def draw(rows: list[common.Row], fits: dict[str, Any], centre: common.Row, title: str, given: argparse.Namespace) -> None:
    """Plot seconds and memory against each factor, with the fitted lines."""
    figure = common.figure(14, 6.6)
    grid = figure.subplots(2, len(FACTORS), sharey="row")
    for column, (name, factor) in enumerate(FACTORS.items()):
        found = along(name, rows, centre)
        if not found:
            continue
        x = [row[name] for row in found]
        for place, (measured, (label, scale, unit)) in enumerate(MEASURES.items()):
            axes = grid[place, column]
            single = [(row[name], value / scale) for row in found for value in row[measured]["values"]]
            axes.plot(*zip(*single, strict=True), "_", color=common.GRAY, markersize=9, label="single values")
            axes.plot(x, [row[measured]["median"] / scale for row in found], "o", color=common.BLUE, label="median")
            if measured == "alive_bytes":
                held = [row["held_bytes"]["median"] / scale for row in found]
                axes.plot(x, held, "^", color=common.ORANGE, label="held by the process, median")
            if name in fits:
                fitted, dense = fits[name][measured], np.linspace(min(x), max(x), 50)
                axes.plot(dense, fitted_at(fitted, dense) / scale, color=common.BLUE, linewidth=1, label="fit")
                axes.set_title(words(factor, fitted, scale, unit), fontsize=10)
            axes.set_xlabel(factor.words)
            axes.set_xticks(x)
            axes.grid(alpha=0.3, linewidth=0.5)
            if column == 0:
                axes.set_ylabel(label)
    for first in grid[:, 0]:
        first.set_ylim(bottom=0)  # of the whole row, now that all of it is there
    figure.legend(*grid[1, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    figure.suptitle(title, fontsize=10)
    common.save(figure, given)


def main() -> None:
    """Measure every case, print, write and draw."""
    parser = common.parser(__doc__, repeats=3)
    parser.add_argument("--centre", type=int, nargs=4, default=[10, 0, 10, 64], metavar=tuple(n.upper() for n in FACTORS))
    parser.add_argument("--windows", type=int, nargs="*", default=[5, 10, 20, 40])
    parser.add_argument("--prefixes", type=int, nargs="*", default=[0, 10, 20, 40, 60])
    parser.add_argument("--per-class", type=int, nargs="*", default=[1, 5, 10, 20])
    parser.add_argument("--widths", type=int, nargs="*", default=[32, 64, 128])
    parser.add_argument("--real", type=int, default=100, help="real images")
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--compile", default="auto")
    given = common.parse(parser, QUICK)
    if given.case:
        common.answer(measure(**given.case))
        return
    centre: common.Row = dict(zip(FACTORS, given.centre, strict=True))
    cases = [centre]
    for name, factor in FACTORS.items():
        cases += [case for value in getattr(given, factor.option) if (case := centre | {name: value}) not in cases]
    settings = {name: getattr(given, name) for name in ("real", "precision", "threads", "device")}
    settings["compile"] = as_at_centre(centre, given)
    rows = common.run(cases, settings, given)
    alive = rows if given.quick or common.on_gpu(given.device) else common.run(cases, settings, given, env=common.ALIVE)
    for row, other in zip(rows, alive, strict=True):
        if "failed" in other:
            row["failed"] = other["failed"]
        elif "failed" not in row:
            row["alive_bytes"] = other["held_bytes"]
    fits: dict[str, Any] = {}
    for name, factor in FACTORS.items():
        found = along(name, rows, centre)
        for row in found:
            cost = f"{row['seconds']['median']:8.3f} s   peak {row['alive_bytes']['median'] / 2**20:8.1f} MiB alive"
            print(f"{factor.words:24s} {row[name]:4d}   {cost}, {row['held_bytes']['median'] / 2**20:8.1f} MiB held")
        if len(found) > 1:
            x = [row[name] for row in found]
            fits[name] = {measured: fit(factor, x, [row[measured]["median"] for row in found]) for measured in MEASURES}
            told = [words(factor, fits[name][measured], scale, unit) for measured, (_, scale, unit) in MEASURES.items()]
            print(f"{factor.words:24s}        seconds: {told[0]}; memory: {told[1]}")
    common.write(given, QUESTION, settings, rows, network="ConvNet-3, Adam", centre=centre, fits=fits)
    around = f"window {centre['window']}, prefix {centre['prefix']}, {centre['images_per_class']} images per class, width {centre['width']}"
    draw(rows, fits, centre, f"One meta-gradient of a ConvNet-3 in {given.precision}, one factor at a time around {around}", given)
    common.finish(given, rows)


if __name__ == "__main__":
    main()

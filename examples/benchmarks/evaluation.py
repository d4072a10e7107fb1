"""Is training networks side by side faster than one by one, and does `distilkit.evaluation` pick the faster way?

    python examples/benchmarks/evaluation.py                           # prints a table, writes docs/results/evaluation.json and .png
    python examples/benchmarks/evaluation.py --only MLP
    python examples/benchmarks/evaluation.py --quick --out /tmp/quick  # a test that it works

For each network: 8 of them are trained for a few steps on 10 images both ways, in turn, after a run of each that is not timed; the
median of the ratios of neighbouring runs is given. Ratios of neighbours hold on a busy machine; the milliseconds do not. `picked` is
how many networks `distilkit.evaluation` trains side by side by itself.
"""

from __future__ import annotations

import argparse
import time

import common
import torch

import distilkit as dk
from distilkit.evaluation.training import Mode, TrainingSet, cost, side_by_side, train

QUESTION = "time of training networks one by one over time side by side"
QUICK = {"only": "MLP 128", "pairs": 1}
NETWORKS = 8
IMAGES = 10
CASES = {  # name: (network, image shape, steps of a run)
    "MLP 128, 8x8": (dk.MLP(hidden=(128,)), (1, 8, 8), 60),
    "MLP 128, 28x28": (dk.MLP(hidden=(128,)), (1, 28, 28), 20),
    "MLP 256, 28x28": (dk.MLP(hidden=(256,)), (1, 28, 28), 20),
    "ConvNet-2, 16, 8x8": (dk.ConvNet(width=16, depth=2), (1, 8, 8), 20),
    "ConvNet-2, 32, 8x8": (dk.ConvNet(width=32, depth=2), (1, 8, 8), 20),
    "ConvNet-3, 32, 28x28": (dk.ConvNet(width=32, depth=3), (1, 28, 28), 6),
    "ConvNet-3, 128, 32x32": (dk.ConvNet(width=128, depth=3), (3, 32, 32), 2),
}


def seconds(learner: dk.Learner, training: TrainingSet, steps: int, together: int, device: str) -> float:
    """Wall time of one step of a run, the networks' start included."""
    streams = [dk.Stream(0).fold(i) for i in range(NETWORKS)]
    common.wait(device)
    began = time.perf_counter()
    for _ in train(learner, training, streams, [steps], together=together, mode=Mode(compile="trace")):
        pass
    common.wait(device)
    return (time.perf_counter() - began) / steps


def measure(network: str, pairs: int, threads: int, device: str) -> common.Row:
    """Run one case in this process."""
    common.prepare(threads, device)
    architecture, shape, steps = CASES[network]
    learner = dk.Learner(architecture, dk.Adam()).bind(shape, 10)
    images = dk.Stream(1).normal(IMAGES, *shape).to(device)
    classes = torch.arange(IMAGES) % 10
    training = TrainingSet(images, torch.eye(10)[classes].to(device), classes)
    alone, together = [], []
    for timed in [False] + [True] * pairs:
        both = [seconds(learner, training, steps, count, device) for count in (1, NETWORKS)]
        if timed:
            alone.append(both[0])
            together.append(both[1])
    facts = {
        "operations": cost(learner, images).operations,
        "parameters": learner.layout.size,
        "picked": side_by_side(learner, images, NETWORKS),
    }
    ratios = [a / b for a, b in zip(alone, together, strict=True)]
    return {"one_by_one_seconds": alone, "side_by_side_seconds": together, "ratio": ratios, "facts": facts}


def draw(rows: list[common.Row], given: argparse.Namespace) -> None:
    """Plot the ratios, and what is picked."""
    figure = common.figure(7.5, 1.3 + 0.4 * len(rows))
    axes = figure.subplots()
    for place, row in enumerate(rows):
        color = common.BLUE if row["picked"] > 1 else common.GRAY
        axes.barh(place, row["ratio"]["median"] - 1, left=1, height=0.6, color=color)
        axes.plot(row["ratio"]["values"], [place] * row["ratio"]["n"], "|", color="black", markersize=7)
    names = [f"{row['network']}: {row['operations']:.0e} operations, {row['parameters']} parameters" for row in rows]
    axes.set_yticks(range(len(rows)), names, fontsize=8)
    axes.invert_yaxis()
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xscale("log")
    ticks = [t for t in (0.25, 0.5, 1, 2, 4, 8) if axes.get_xlim()[0] <= t <= axes.get_xlim()[1]]
    axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("time one by one / time side by side", fontsize=9)
    title = f"{NETWORKS} networks, {IMAGES} images; blue: trained side by side by default, gray: one by one; |: single pairs of runs"
    figure.suptitle(title, fontsize=8)
    common.save(figure, given)


def main() -> None:
    """Measure, print, write and draw."""
    parser = common.parser(__doc__, repeats=1, threads=1)
    parser.add_argument("--pairs", type=int, default=5, help="timed runs of each way, in turn, in each process")
    parser.add_argument("--only", default="", help="networks whose name holds this")
    given = common.parse(parser, QUICK)
    if given.case:
        common.answer(measure(**given.case))
        return
    settings = {name: getattr(given, name) for name in ("pairs", "threads", "device")}
    rows = common.run([{"network": name} for name in CASES if given.only in name], settings, given)
    good = [row for row in rows if "failed" not in row]
    print(f"{'':22} {'operations':>10} {'parameters':>10} {'one by one':>11} {'side by side':>12} {'ratio':>6} {'picked':>7}")
    for row in good:
        alone, together = (row[f"{way}_seconds"]["median"] * 1e3 for way in ("one_by_one", "side_by_side"))
        start = f"{row['network']:22} {row['operations']:10.1e} {row['parameters']:10}"
        print(f"{start} {alone:8.2f} ms {together:9.2f} ms {row['ratio']['median']:6.2f} {row['picked']:7}")
    common.write(given, QUESTION, settings, rows, networks=NETWORKS, images=IMAGES)
    draw(good, given)
    common.finish(given, rows)


if __name__ == "__main__":
    main()

"""What does it take to have the images of an inner step go through the network in parts (`Learner.micro_batch`)?

    python examples/benchmarks/micro_batches.py                           # prints a table, writes docs/results/micro_batches.json and .png
    python examples/benchmarks/micro_batches.py --images 1000 --sizes 0 200 50
    python examples/benchmarks/micro_batches.py --quick --out /tmp/quick  # a test that it works

One meta-gradient through a window from step 0 on, of a distilled set that is taken whole in every inner step. Memory is what the process
holds at its peak above what it held before: while programs are built and checked, which a run does first, and after that. It is resident
memory, with freed memory kept as a run keeps it.
"""

from __future__ import annotations

import argparse

import common

QUESTION = "memory of a meta-gradient against the number of distilled images that are taken at one time"
QUICK = {"images": 20, "real": 10, "width": 8, "window": 1, "sizes": [0, 5]}


def measure(size: int, images: int, real: int, width: int, window: int, compile: str, threads: int, device: str) -> common.Row:
    """Run one case in this process."""
    import attrs

    import distilkit as dk

    common.prepare(threads, device)
    problem = common.convnet(width, images, real, device)
    learner = attrs.evolve(problem.learner, micro_batch=size or None)
    unroller, stream = dk.Unroller(compile=compile), dk.Stream(0)
    with common.metered(device, trim=True) as first:
        unroller.meta_gradient(learner, problem.leaves, common.warm_up(unroller), problem.batch, stream)
    with common.metered(device, trim=True) as then:
        unroller.meta_gradient(learner, problem.leaves, dk.Window(0, window), problem.batch, stream)
    return {"first_bytes": first.peak - first.before, "held_bytes": then.peak - then.before}


def draw(rows: list[common.Row], given: argparse.Namespace) -> None:
    """Plot memory, a group of bars for each number of images."""
    figure = common.figure(7, 0.9 + 0.6 * len(rows))
    axes = figure.subplots()
    places = [*range(len(rows))]
    names = {"first_bytes": "while programs are built", "held_bytes": "after that"}
    for shift, (key, color) in zip((-0.2, 0.2), (("first_bytes", common.ORANGE), ("held_bytes", common.BLUE)), strict=True):
        values = [row[key]["median"] / 2**30 for row in rows]
        bars = axes.barh([p + shift for p in places], values, 0.38, color=color, label=names[key])
        axes.bar_label(bars, fmt="%.2f", fontsize=8, padding=2)
    axes.set_yticks(places, [f"{row['size'] or given.images} of {given.images} images at a time" for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel("GiB at the peak, above what was held before", fontsize=9)
    axes.margins(x=0.12)
    axes.tick_params(labelsize=8)
    axes.legend(fontsize=8, frameon=False, loc="lower right")
    common.save(figure, given)


def main() -> None:
    """Measure every case, print, write and draw."""
    parser = common.parser(__doc__, repeats=1, threads=1)
    parser.add_argument("--images", type=int, default=500, help="distilled images of an inner step")
    parser.add_argument("--sizes", type=int, nargs="+", default=[0, 100, 50], help="of them at one time; 0: all")
    parser.add_argument("--real", type=int, default=100)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--window", type=int, default=2)
    parser.add_argument("--compile", default="trace")
    given = common.parse(parser, QUICK)
    if given.case:
        common.answer(measure(**given.case))
        return
    settings = {name: getattr(given, name) for name in ("images", "real", "width", "window", "compile", "threads", "device")}
    rows = common.run([{"size": size} for size in given.sizes], settings, given)
    good = [row for row in rows if "failed" not in row]
    for row in good:
        first, held = (row[key]["median"] / 2**30 for key in ("first_bytes", "held_bytes"))
        print(f"{row['size'] or given.images:5d} at a time: {first:.2f} GiB, then {held:.2f} GiB")
    draw(good, given)
    common.write(given, QUESTION, settings, rows, network=f"ConvNet-3 of width {given.width}, Adam")
    common.finish(given, rows)


if __name__ == "__main__":
    main()

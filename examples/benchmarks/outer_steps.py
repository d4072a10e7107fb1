"""How many outer steps a second does distilkit take on CIFAR-10 with the paper's settings, at 1, 10 and 50 images per class?

    python examples/benchmarks/outer_steps.py                           # prints a table, writes docs/results/outer_steps.json and .png
    python examples/benchmarks/outer_steps.py --ipc 10 --batch 1000 --steps 1
    python examples/benchmarks/outer_steps.py --quick --out /tmp/quick  # a test that it works

The recipes `paper/cifar10-ipc*` as they are, with noise in the place of CIFAR-10, so that nothing is downloaded. An outer step is
`Distiller.step`: the steps before the window, the window, the loss on the real batch, and the move of the images. Its window lies in the
middle of the horizon, at (horizon - window) / 2: the recipes draw the place evenly, the cost grows linearly with it, so this one
costs as much as the mean of all. On a CPU the real batch is taken 100 images at a time. Programs are built, outside of the clock,
by a step through a short window.
"""

from __future__ import annotations

import argparse

import common

QUESTION = "outer steps a second on CIFAR-10's shapes with the paper's settings"
QUICK = {"ipc": [1, 10], "steps": 1, "width": 8, "window": 2, "horizon": 4, "batch": 20, "precision": ["float32"], "compile": "trace"}
AT_A_TIME = 100  # real images on a CPU


def measure(
    ipc: int,
    precision: str,
    compile: str,
    steps: int,
    batch: int | None,
    window: int | None,
    horizon: int | None,
    width: int | None,
    threads: int,
    device: str,
) -> common.Row:
    """Run one case in this process."""
    import attrs

    import distilkit as dk
    from distilkit import process, spec

    common.prepare(threads, device)
    values = {"outer.batch_size": batch, "truncation.window": window, "truncation.horizon": horizon, "learner.network.width": width}
    changes = [f"{key}={value}" for key, value in values.items() if value is not None]
    recipe = spec.load(f"paper/cifar10-ipc{ipc}", [*changes, f'unroller.precision="{precision}"', f'unroller.compile="{compile}"'])
    real = recipe.outer.batch_size
    data = common.noise(max(2 * real, 10 * ipc), 10)
    unroller = recipe.unroller
    if not common.on_gpu(device):
        unroller = attrs.evolve(unroller, micro_batches=next(p for p in range(-(-real // AT_A_TIME), real + 1) if real % p == 0))
    start, length = (recipe.truncation.horizon - recipe.truncation.window) // 2, recipe.truncation.window
    timed = attrs.evolve(recipe, data=data, unroller=unroller, truncation=dk.FixedStart(start, length), device=device)
    # Its unroller and learner are equal, so it builds the same programs.
    short = attrs.evolve(timed, truncation=dk.FixedStart(0, common.warm_up(unroller).length))
    seconds, peaks = [], []
    with process.keep_freed_memory():  # as `distilkit.run` does
        short.step(short.init())
        state = timed.init()
        for _ in range(steps):
            with common.metered(device) as reading:
                state, _ = timed.step(state)
            seconds.append(reading.seconds)
            peaks.append(reading.peak)
    inner = start + length
    return {
        "seconds": seconds,
        "outer_steps_per_second": [1 / x for x in seconds],
        "inner_steps_per_second": [inner / x for x in seconds],
        "peak_bytes": peaks,
        "facts": {
            "inner_steps": inner,
            "window": [start, inner],
            "distilled_images": 10 * ipc,
            "distilled_images_in_a_step": 10 * (recipe.learner.batch_per_class or ipc),
            "real_batch": real,
            "micro_batches": unroller.micro_batches,
            "network": f"ConvNet-{recipe.learner.network.depth} of width {recipe.learner.network.width}",
        },
    }


def draw(rows: list[common.Row], given: argparse.Namespace) -> None:
    """Plot the rates as bars."""
    figure = common.figure(9, 3.8)
    counts = list(dict.fromkeys(row["ipc"] for row in rows))
    precisions = list(dict.fromkeys(row["precision"] for row in rows))
    panels = {"outer_steps_per_second": "outer steps a second", "inner_steps_per_second": "inner steps a second"}
    for axes, (name, label) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        for number, precision in enumerate(precisions):
            found = [row for row in rows if row["precision"] == precision]
            places = [counts.index(row["ipc"]) + (number - (len(precisions) - 1) / 2) * 0.38 for row in found]
            bars = axes.bar(
                places, [row[name]["median"] for row in found], 0.36, color=(common.BLUE, common.PURPLE)[number % 2], label=precision
            )
            axes.bar_label(bars, fmt="{:.3g}", fontsize=8, label_type="center", color="white")
            for place, row in zip(places, found, strict=True):
                axes.plot([place] * row[name]["n"], row[name]["values"], "_", color="black", markersize=8)
        axes.set_xticks(range(len(counts)), [str(count) for count in counts])
        axes.set(xlabel="images per class", ylabel=label)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    row = rows[0]
    start, stop = row["window"]
    figure.suptitle(f"{row['network']}, window {start} to {stop}, {row['real_batch']} real images; -: single steps", fontsize=10)
    common.save(figure, given)


def main() -> None:
    """Measure every case, print, write and draw."""
    parser = common.parser(__doc__, repeats=1)
    parser.add_argument("--ipc", type=int, nargs="+", default=[1, 10, 50], choices=[1, 10, 50], help="images per class")
    parser.add_argument("--precision", nargs="+", default=["float32", "bfloat16"], choices=["float32", "tf32", "bfloat16"])
    parser.add_argument("--compile", default="auto", help="of the unroller")
    parser.add_argument("--steps", type=int, default=2, help="outer steps to time in each process")
    parser.add_argument("--batch", type=int, help="real images of an outer step; the recipe's own by default, as for the next three")
    parser.add_argument("--window", type=int)
    parser.add_argument("--horizon", type=int)
    parser.add_argument("--width", type=int)
    given = common.parse(parser, QUICK)
    if given.case:
        common.answer(measure(**given.case))
        return
    settings = {name: getattr(given, name) for name in ("compile", "steps", "batch", "window", "horizon", "width", "threads", "device")}
    rows = common.run([{"ipc": ipc, "precision": precision} for ipc in given.ipc for precision in given.precision], settings, given)
    good = [row for row in rows if "failed" not in row]
    for row in good:
        rates = (
            f"{row['outer_steps_per_second']['median']:8.4f} outer steps/s, {row['inner_steps_per_second']['median']:8.2f} inner steps/s"
        )
        took = f"{row['seconds']['median']:8.2f} s a step, peak {row['peak_bytes']['median'] / 2**30:.2f} GiB"
        print(f"{row['ipc']:3d} images per class, {row['precision']:8s} {rates}   {took}")
    common.write(given, QUESTION, settings, rows, placement="the middle of the horizon, whose cost is the mean over all places")
    if good:
        draw(good, given)
    common.finish(given, rows)


if __name__ == "__main__":
    main()

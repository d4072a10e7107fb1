"""How does the peak memory of one meta-gradient grow with the window, by replay and by whole-window autograd?

    python examples/benchmarks/memory.py                           # prints a table, writes docs/results/memory.json and .png
    python examples/benchmarks/memory.py --width 128 --images 100 --windows 5 10 20 40 60
    python examples/benchmarks/memory.py --quick --out /tmp/quick  # a test that it works

Replay keeps (theta, optimiser state) of every step of the window and the activations of one; whole-window autograd
keeps the activations of all. The table's last lines are the growth per step, fitted, beside the bytes of parameters plus
optimiser state. Peaks are above what the process held before, with a malloc that gives back what is freed (`common.ALIVE`).
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import common

QUESTION = "peak memory of one meta-gradient against the window"
QUICK = {"windows": [2, 6], "width": 8, "images": 10, "adjoints": ["replay", "autograd"]}
ADJOINTS: dict[str, tuple[str, dict[str, Any]]] = {
    "replay": ("ReplayAdjoint", {}),
    "replay, forward over reverse": ("ReplayAdjoint", {"hessian_product": "forward-over-reverse"}),
    "autograd": ("AutogradAdjoint", {}),
}


def measure(adjoint: str, window: int, width: int, size: int, images: int, threads: int, device: str) -> common.Row:
    """Run one case in this process: peak memory in bytes above what was held before it."""
    import distilkit as dk
    from distilkit.functional.pytrees import split_floating

    common.prepare(threads, device)
    problem = common.convnet(width, images, images, device, size)
    name, arguments = ADJOINTS[adjoint]
    unroller, stream = dk.Unroller(getattr(dk, name)(**arguments)), dk.Stream(0)
    unroller.meta_gradient(problem.learner, problem.leaves, common.warm_up(unroller), problem.batch, stream)
    with common.metered(device, trim=True) as reading:
        unroller.meta_gradient(problem.learner, problem.leaves, dk.Window(0, window), problem.batch, stream)
    state = problem.learner.init(stream)
    per_step = 4 * (state.params.numel() + sum(s.numel() for s in split_floating(state.optimizer)[0]))
    return {"peak_bytes": reading.peak - reading.before, "facts": {"state_bytes": per_step}}


def draw(rows: list[common.Row], growth: dict[str, float], title: str, given: argparse.Namespace) -> None:
    """Plot peak memory against the window."""
    figure = common.figure(6, 3.8)
    axes = figure.subplots()
    for (name, slope), marker, color in zip(growth.items(), "os^", (common.BLUE, common.PURPLE, common.ORANGE), strict=False):
        peaks = [(row["window"], row["peak_bytes"]["median"] / 2**20) for row in rows if row["adjoint"] == name]
        axes.plot(*zip(*peaks, strict=True), marker=marker, color=color, label=f"{name}: {slope / 2**20:.2g} MiB a step")
    axes.set(xlabel="window (inner steps)", ylabel="peak memory (MiB)", xticks=sorted({row["window"] for row in rows}))
    common.log_axis(axes)
    axes.set_title(title, fontsize=10)
    axes.legend(fontsize=8)
    common.save(figure, given)


def main() -> None:
    """Measure every case, print the table, write and draw the results."""
    parser = common.parser(__doc__, repeats=3)
    parser.add_argument("--adjoints", nargs="+", default=list(ADJOINTS), choices=list(ADJOINTS))
    parser.add_argument("--windows", type=int, nargs="+", default=[5, 10, 20, 40])
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--images", type=int, default=20)
    given = common.parse(parser, QUICK)
    if given.case:
        common.answer(measure(**given.case))
        return
    settings = {name: getattr(given, name) for name in ("width", "size", "images", "threads", "device")}
    cases = [{"adjoint": adjoint, "window": window} for adjoint in given.adjoints for window in given.windows]
    rows = common.run(cases, settings, given, env=common.ALIVE)
    good = [row for row in rows if "failed" not in row]
    for row in good:
        print(f"{row['adjoint']:30s} window {row['window']:3d}   peak {row['peak_bytes']['median'] / 2**20:8.1f} MiB")
    growth, state = {}, good[0]["state_bytes"] if good else 0
    for adjoint in given.adjoints:
        points = [(row["window"], row["peak_bytes"]["median"]) for row in good if row["adjoint"] == adjoint]
        if len(points) > 1:
            growth[adjoint] = slope = common.line(points)[0]
            print(f"{adjoint:30s} grows by {slope / 2**20:7.2f} MiB a step, {slope / state:6.2f} times parameters plus optimiser state")
    network = f"ConvNet-3 of width {given.width}, Adam"
    common.write(given, QUESTION, settings, rows, network=network, growth_bytes_per_step=growth, state_bytes=state)
    title = f"ConvNet-3 of width {given.width}, {given.images} images of 3x{given.size}x{given.size}"
    draw(good, growth, title, given)
    common.finish(given, rows)
    if not given.quick and any(slope > 1.5 * state for adjoint, slope in growth.items() if adjoint.startswith("replay")):
        sys.exit("replay grows by more than 1.5 times parameters plus optimiser state a step")


if __name__ == "__main__":
    main()

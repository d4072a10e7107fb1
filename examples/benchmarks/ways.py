"""What does each way of running a step cost: as it is, recorded, compiled, captured as a CUDA graph, compiled and captured?

    python examples/benchmarks/ways.py                            # prints a table, writes docs/results/ways.json and .png
    python examples/benchmarks/ways.py --device cuda --images 10 100 --precision float32 tf32 bfloat16
    python examples/benchmarks/ways.py --quick --out /tmp/quick   # a test that it works

The three programs of a meta-gradient, a step, a step back and the end (loss on real images and its gradient), are clocked one call at
a time, each waited for. Then whole meta-gradients are, which wait once: `host_seconds` is until all of one is started, `seconds` until it
is there. Each is taken twice with the same draws, to see whether it has the same bits, and once more with `process.same_bits`. Building is
outside of these clocks, and told as `build_seconds`. What a way fell back to is told with the rest.
"""

from __future__ import annotations

import argparse
import itertools
import time
from typing import Any

import common

QUESTION = "time of a step's programs and of a whole meta-gradient, by how they are run"
QUICK = {"compile": ["trace", "eager"], "precision": ["float32"], "images": [10], "width": 8, "window": 2, "horizon": 4, "real": 20}
PROGRAMS = {"step": "step", "back": "step back", "end": "end"}


def measure(
    compile: str, precision: str, images: int, kernels: str, width: int, window: int, horizon: int, real: int, threads: int, device: str
) -> common.Row:
    """Run one case in this process."""
    import attrs
    import torch
    from limits import in_use

    import distilkit as dk
    from distilkit import process

    common.prepare(threads, device)
    problem, stream = common.convnet(width, images, real, device), dk.Stream(3)
    classes = torch.arange(images) % 10
    unroller = dk.Unroller(dk.ReplayAdjoint(), precision=precision, compile=compile, kernels=kernels)
    start = (horizon - window) // 2  # whose cost is the mean over all places

    def meta_gradient(window: dk.Window, unroller: dk.Unroller = unroller) -> Any:
        return unroller.meta_gradient(problem.learner, problem.leaves, window, problem.batch, stream, classes)

    with process.keep_freed_memory():
        began = time.perf_counter()
        meta_gradient(dk.Window(0, 2))
        common.wait(device)
        build = time.perf_counter() - began
        seconds, host, made = [], [], []
        with common.metered(device) as reading:
            for _ in range(3):
                began = time.perf_counter()
                made.append(meta_gradient(dk.Window(start, start + window)))
                host.append(time.perf_counter() - began)
                common.wait(device)
                seconds.append(time.perf_counter() - began)
        with process.same_bits(torch.device(device)):
            anew = attrs.evolve(unroller)  # whose graphs are captured under it
            same = [meta_gradient(dk.Window(start, start + window), anew) for _ in range(2)]
    execution = unroller.execution(problem.learner, tuple(problem.leaves.images.shape), problem.leaves.images.device)
    fallbacks = unroller.programs(problem.learner, execution).fallbacks
    clocked = in_use(problem, precision, compile, min(window, 10), device, kernels)
    suffix = next(name for name in clocked.seconds if name.startswith("end")).removeprefix("end")
    calls = {name: next(one for one in clocked.seconds if one.startswith(name + suffix)) for name in PROGRAMS}
    return {
        **{f"{name}_seconds": clocked.seconds[one] for name, one in calls.items()},
        "seconds": seconds[1:],
        "host_seconds": host[1:],
        "build_seconds": build,
        "peak_bytes": reading.peak,
        "facts": {
            "same_bits": bool(torch.equal(made[1].images, made[2].images)),
            "same_bits_asked_for": bool(torch.equal(same[0].images, same[1].images)),
            "fallbacks": dict(fallbacks),
            "ran_as": str(execution),
            "window_of": [start, start + window],
        },
    }


def draw(rows: list[common.Row], given: argparse.Namespace) -> None:
    """Plot the time of a meta-gradient as bars, and that until it is started within them."""
    figure = common.figure(9, 0.9 + 0.28 * len(rows))
    axes = figure.subplots()
    names = [f"{row['compile']}, {row['precision']}, {row['images']} images{', our kernels' * (row['kernels'] != 'torch')}" for row in rows]
    bars = axes.barh(names, [1e3 * row["seconds"]["median"] for row in rows], color=common.BLUE, label="done")
    axes.barh(names, [1e3 * row["host_seconds"]["median"] for row in rows], 0.3, color=common.ORANGE, label="started")
    axes.bar_label(bars, fmt="{:.3g}", fontsize=8, padding=2)
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.set_xlabel(f"ms a meta-gradient: window {given.window} amid {given.horizon} steps, {given.real} real images", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.legend(fontsize=8, frameon=False, loc="lower right")
    common.save(figure, given)


def main() -> None:
    """Measure every case, print, write and draw."""
    parser = common.parser(__doc__, repeats=1)
    parser.add_argument("--compile", nargs="+", help="by default all that the device has")
    parser.add_argument("--precision", nargs="+", default=["float32", "bfloat16"], choices=["float32", "tf32", "bfloat16"])
    parser.add_argument("--images", type=int, nargs="+", default=[10, 100], help="distilled images, all in a step")
    parser.add_argument(
        "--kernels", nargs="+", choices=["torch", "triton"], help="of norms, ReLU and pooling; by default all that the device has"
    )
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--window", type=int, default=60)
    parser.add_argument("--horizon", type=int, default=200)
    parser.add_argument("--real", type=int, default=1000, help="real images of a meta-gradient")
    given = common.parse(parser, QUICK)
    if given.case:
        common.answer(measure(**given.case))
        return
    graphs = ["cudagraph", "inductor-cudagraph"] if common.on_gpu(given.device) else []
    kinds = given.compile or ["eager", "trace", "inductor", *graphs]
    kernels = given.kernels or (["torch", "triton"] if common.on_gpu(given.device) else ["torch"])
    settings = {name: getattr(given, name) for name in ("width", "window", "horizon", "real", "threads", "device")}
    each = itertools.product(given.images, given.precision, kinds, kernels)
    cases = [{"compile": c, "precision": p, "images": n, "kernels": k} for n, p, c, k in each]
    rows = common.run(cases, settings, given)
    good = [row for row in rows if "failed" not in row]
    for row in good:
        programs = "  ".join(f"{title} {1e3 * row[f'{name}_seconds']['median']:8.3f}" for name, title in PROGRAMS.items())
        whole = f"meta-gradient {1e3 * row['seconds']['median']:9.1f}, started {1e3 * row['host_seconds']['median']:9.1f}"
        bits = f"same bits: {row['same_bits']}, asked for: {row['same_bits_asked_for']}"
        which = f"{row['images']:4d} {row['precision']:8s} {row['compile']:18s} {row['kernels']:6s}"
        print(f"{which} ms: {programs}  {whole}  {bits}  {row['fallbacks'] or ''}")
    common.write(given, QUESTION, settings, rows, network=f"ConvNet-3 of width {given.width}, Adam")
    if good:
        draw(good, given)
    common.finish(given, rows)


if __name__ == "__main__":
    main()

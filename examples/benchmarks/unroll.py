"""What does one meta-gradient cost, in seconds and memory, beside `higher` 0.2.1 and TorchOpt's MetaAdam?

    pip install higher==0.2.1
    python examples/benchmarks/unroll.py                           # prints a table, writes docs/results/unroll.json and .png
    python examples/benchmarks/unroll.py --windows 10 --repeats 1
    python examples/benchmarks/unroll.py --quick --out /tmp/quick  # a test that it works

Every side trains the same ConvNet-3 by Adam on the same images for a window from step 0, takes the loss on as many real images, and
differentiates it with respect to the training images. The warm-up (a window of two steps, which loads libraries and builds programs)
is outside of the clock. Peak memory is the most that the process held during the call that is timed, its libraries included.

"recorded" runs programs as they were recorded, not compiled. "freed memory kept" runs a rival inside of
`distilkit.process.keep_freed_memory`, which `Unroller` enters in every call: what that gains is the allocator's, not ours.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import common
import torch
from torch import Tensor, nn
from torch.nn import functional as F

QUESTION = "seconds and peak memory of one meta-gradient against the window, beside higher and TorchOpt's MetaAdam"
QUICK = {"windows": [2, 3], "width": 8, "images": 10, "sides": ["distilkit, float32", "higher", "TorchOpt MetaAdam"]}
Taker = Callable[[int], Tensor]  # a window's length to the meta-gradient of the images


def network(width: int) -> nn.Module:
    """ConvNet-3 as a module, with one group for each channel as instance norm."""
    layers: list[nn.Module] = []
    channels = 3
    for _ in range(3):
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.GroupNorm(width, width), nn.ReLU(), nn.AvgPool2d(2)]
        channels = width
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * 16, 10))


def distilkit_side(problem: common.Problem, width: int, **unroller: Any) -> Taker:
    """Our side."""
    import distilkit as dk

    taker = dk.Unroller(**unroller)

    def take(window: int) -> Tensor:
        return taker.meta_gradient(problem.learner, problem.leaves, dk.Window(0, window), problem.batch, dk.Stream(0)).images

    take(common.warm_up(taker).length)
    return take


def higher_side(problem: common.Problem, width: int) -> Taker:
    """The engine of the reference implementation: reverse mode over a window of `higher`'s differentiable Adam."""
    higher = importlib.import_module("higher")
    images, labels, real, real_labels = _tensors(problem)
    net = network(width).to(images.device)

    def take(window: int) -> Tensor:
        x = images.clone().requires_grad_()
        with higher.innerloop_ctx(net, torch.optim.Adam(net.parameters(), lr=1e-3), copy_initial_weights=True) as (copy, steps):
            for _ in range(window):
                steps.step(F.cross_entropy(copy(x), labels))
            return torch.autograd.grad(F.cross_entropy(copy(real), real_labels), x)[0]

    return take


def torchopt_side(problem: common.Problem, width: int) -> Taker:
    """TorchOpt's own differentiable Adam, with the eps_root that it needs for a finite meta-gradient."""
    torchopt = importlib.import_module("torchopt")
    images, labels, real, real_labels = _tensors(problem)
    net = network(width).to(images.device)
    start = torchopt.extract_state_dict(net, by="copy")

    def take(window: int) -> Tensor:
        torchopt.recover_state_dict(net, start)
        optimizer = torchopt.MetaAdam(net, lr=1e-3, eps_root=1e-16)
        x = images.clone().requires_grad_()
        for _ in range(window):
            optimizer.step(F.cross_entropy(net(x), labels))
        return torch.autograd.grad(F.cross_entropy(net(real), real_labels), x)[0]

    return take


def kept_side(problem: common.Problem, width: int, side: Callable[[common.Problem, int], Taker]) -> Taker:
    """A rival whose freed memory is kept for the length of a call, as `Unroller` keeps its own."""
    from distilkit import process

    take = side(problem, width)

    def kept(window: int) -> Tensor:
        with process.keep_freed_memory():
            return take(window)

    return kept


def _tensors(problem: common.Problem) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    leaves, batch = problem.leaves, problem.batch
    return leaves.images, leaves.labels.argmax(1), batch.images, batch.labels.argmax(1)


SIDES: dict[str, Callable[[common.Problem, int], Taker]] = {
    "distilkit, float32": distilkit_side,
    "distilkit, float32, recorded": partial(distilkit_side, compile="trace"),
    "distilkit, bfloat16": partial(distilkit_side, precision="bfloat16"),
    "distilkit, bfloat16, recorded": partial(distilkit_side, precision="bfloat16", compile="trace"),
    "higher": higher_side,
    "higher, freed memory kept": partial(kept_side, side=higher_side),
    "TorchOpt MetaAdam": torchopt_side,
    "TorchOpt MetaAdam, freed memory kept": partial(kept_side, side=torchopt_side),
}
NEEDS = {"higher": "higher", "TorchOpt": "torchopt"}  # how a side's name begins: the package
COLORS = {"distilkit, float32": common.BLUE, "distilkit, bfloat16": common.PURPLE, "higher": common.ORANGE, "TorchOpt": common.GREEN}


def measure(side: str, window: int, width: int, images: int, threads: int, device: str) -> common.Row:
    """Run one case in this process."""
    common.prepare(threads, device)
    torch.manual_seed(0)
    take = SIDES[side](common.convnet(width, images, images, device), width)
    take(2)
    with common.metered(device) as reading:
        gradient = take(window)
    if not gradient.isfinite().all():
        raise FloatingPointError(f"the meta-gradient of {side} is not finite")
    return {"seconds": reading.seconds, "peak_bytes": reading.peak, "before_bytes": reading.before}


def skipped(side: str, window: int, rows: Sequence[common.Row], given: argparse.Namespace) -> str | None:
    """Why a side is not run at a window, given what it took at others; None if it is run."""
    for start, package in NEEDS.items():
        if side.startswith(start) and not common.installed(package):
            return f"{package} is not installed"
    if common.on_gpu(given.device) and "kept" in side:
        return "on a GPU torch keeps freed memory by itself"
    earlier = [row for row in rows if row["side"] == side and row["window"] < window]
    if any("failed" in row for row in earlier):
        return "it failed at a smaller window"
    points = [(row["window"], row["peak_bytes"]["median"]) for row in earlier if row["peak_bytes"]]
    if len(points) == 1:
        points.append((0, next(row["before_bytes"]["median"] for row in earlier if row["peak_bytes"])))
    if len(points) < 2:
        return None
    slope, intercept = common.line(points)
    peak = (slope * window + intercept) / 2**30
    if peak <= given.max_gib:
        return None
    return f"it would take about {peak:.3g} GiB, going by smaller windows, and the limit is {given.max_gib:g} GiB"


def compare(rows: Sequence[common.Row]) -> None:
    """Add to each row of one window how many times as fast as `higher` it is."""
    base = next((row["seconds"]["median"] for row in rows if row["side"] == "higher" and row.get("seconds")), None)
    for row in rows:
        row["times_as_fast_as_higher"] = base / row["seconds"]["median"] if base and row.get("seconds") else None


def show(row: common.Row) -> None:
    """Print one line of the table."""
    start = f"window {row['window']:3d}  {row['side']:38s}"
    if not row.get("seconds"):
        print(f"{start} {row.get('reason') or row['failed']}", flush=True)
        return
    ratio = row["times_as_fast_as_higher"]
    words = "" if ratio is None else f"   {ratio:5.2f} times as fast as higher"
    print(f"{start} {row['seconds']['median']:8.2f} s   peak {row['peak_bytes']['median'] / 2**30:6.2f} GiB{words}", flush=True)


def draw(rows: Sequence[common.Row], title: str, given: argparse.Namespace) -> None:
    """Plot seconds and peak memory against the window."""
    figure = common.figure(9.5, 5)
    left, right = figure.subplots(1, 2)
    for side in dict.fromkeys(row["side"] for row in rows):
        found = [row for row in rows if row["side"] == side and row.get("seconds")]
        if not found:
            continue
        color = next(c for start, c in COLORS.items() if side.startswith(start))
        extra = side.endswith(("recorded", "kept"))
        look: dict[str, Any] = {"color": color, "linestyle": "--" if extra else "-", "marker": "s" if extra else "o", "markersize": 4}
        windows = [row["window"] for row in found]
        left.plot(windows, [row["seconds"]["median"] for row in found], label=side, **look)
        right.plot(windows, [row["peak_bytes"]["median"] / 2**30 for row in found], **look)
    for axes, label in ((left, "seconds"), (right, "peak memory (GiB)")):
        axes.set(xlabel="window (inner steps)", ylabel=label, xticks=sorted({row["window"] for row in rows}))
        common.log_axis(axes)
    figure.suptitle(title, fontsize=10)
    figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    common.save(figure, given)


def main() -> None:
    """Measure every side, interleaved; print, write and draw the medians."""
    parser = common.parser(__doc__, repeats=3)
    parser.add_argument("--windows", type=int, nargs="+", default=[5, 10, 20, 40, 60])
    parser.add_argument("--sides", nargs="+", default=list(SIDES), choices=list(SIDES), metavar="SIDE", help=f"of {list(SIDES)}")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--images", type=int, default=100, help="distilled images, and real ones")
    parser.add_argument("--max-gib", type=float, default=20, help="a side that would need more at a window is left out there")
    given = common.parse(parser, QUICK)
    if given.case:
        common.answer(measure(**given.case))
        return
    settings = {name: getattr(given, name) for name in ("width", "images", "threads", "device")}
    rows: list[common.Row] = []
    for window in sorted(given.windows):
        why = {side: skipped(side, window, rows, given) for side in given.sides}
        found = common.run([{"side": side, "window": window} for side in given.sides if why[side] is None], settings, given)
        empty = {"seconds": None, "peak_bytes": None}
        here = [{"side": s, "window": window, **empty, "reason": reason} for s, reason in why.items() if reason] + found
        here.sort(key=lambda row: given.sides.index(row["side"]))
        compare(here)
        for row in here:
            show(row)
        rows += here
        words = {"network": f"ConvNet-3 of width {given.width}, Adam", "max_gib": given.max_gib}
        common.write(given, QUESTION, settings, rows, packages=["higher", "torchopt"], **words)
    title = f"One meta-gradient: ConvNet-3 of width {given.width}, {given.images} images of 3x32x32, Adam"
    draw(rows, title, given)
    common.finish(given, rows)


if __name__ == "__main__":
    main()

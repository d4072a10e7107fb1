"""One meta-gradient beside `higher` 0.2.1 and TorchOpt's MetaAdam: seconds and peak memory, each case in fresh processes.

    pip install higher==0.2.1
    python examples/benchmarks/unroll.py --windows 10 --repeats 3      # prints a table, writes docs/results/unroll.json

Every side trains the same ConvNet-3 by Adam on the same images for a window from step 0, takes the loss on as many real images, and
differentiates it with respect to the training images. The warm-up (a window of two steps, which loads libraries and records programs)
is outside of the clock.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"


def network(width: int) -> nn.Module:
    """ConvNet-3 as a module, with one group for each channel as instance norm."""
    layers: list[nn.Module] = []
    channels = 3
    for _ in range(3):
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.GroupNorm(width, width), nn.ReLU(), nn.AvgPool2d(2)]
        channels = width
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * 16, 10))


def distilkit_side(**unroller: object) -> Callable[..., Callable[[int], torch.Tensor]]:
    """Our side: a function of the window that gives the meta-gradient of the images."""

    def make(images: torch.Tensor, labels: torch.Tensor, real: torch.Tensor, width: int) -> Callable[[int], torch.Tensor]:
        import distilkit as dk
        from distilkit.functional.adjoints import Leaves
        from distilkit.unroller import RealBatch

        learner = dk.Learner(dk.ConvNet(width=width), dk.Adam(lr=1e-3)).bind((3, 32, 32), 10)
        leaves, batch = (
            Leaves(images, F.one_hot(labels, 10).float(), torch.tensor(1e-3).log()),
            RealBatch(real, F.one_hot(labels, 10).float()),
        )
        taker = dk.Unroller(**unroller)
        return lambda window: taker.meta_gradient(learner, leaves, dk.Window(0, window), batch, dk.Stream(0)).images

    return make


def higher_side(images: torch.Tensor, labels: torch.Tensor, real: torch.Tensor, width: int) -> Callable[[int], torch.Tensor]:
    """The engine of the reference implementation: reverse mode over a window of `higher`'s differentiable Adam."""
    import higher

    net = network(width)

    def run(window: int) -> torch.Tensor:
        x = images.clone().requires_grad_()
        with higher.innerloop_ctx(net, torch.optim.Adam(net.parameters(), lr=1e-3), copy_initial_weights=True) as (copy, steps):
            for _ in range(window):
                steps.step(F.cross_entropy(copy(x), labels))
            return torch.autograd.grad(F.cross_entropy(copy(real), labels), x)[0]

    return run


def torchopt_side(images: torch.Tensor, labels: torch.Tensor, real: torch.Tensor, width: int) -> Callable[[int], torch.Tensor]:
    """TorchOpt's own differentiable Adam, with the eps_root that it needs for a finite meta-gradient."""
    import torchopt

    net = network(width)
    start = torchopt.extract_state_dict(net, by="copy")

    def run(window: int) -> torch.Tensor:
        torchopt.recover_state_dict(net, start)
        optimizer = torchopt.MetaAdam(net, lr=1e-3, eps_root=1e-16)
        x = images.clone().requires_grad_()
        for _ in range(window):
            optimizer.step(F.cross_entropy(net(x), labels))
        return torch.autograd.grad(F.cross_entropy(net(real), labels), x)[0]

    return run


SIDES = {
    "distilkit, float32": distilkit_side(),
    "distilkit, float32, inductor": distilkit_side(compile="inductor"),
    "distilkit, bfloat16": distilkit_side(precision="bfloat16"),
    "distilkit, bfloat16, inductor": distilkit_side(precision="bfloat16", compile="inductor"),
    "higher": higher_side,
    "TorchOpt MetaAdam": torchopt_side,
}


def measure(side: str, window: int, options: argparse.Namespace) -> dict[str, float]:
    """Run one case in this process."""
    torch.set_num_threads(options.threads)
    generator = torch.Generator().manual_seed(0)
    images, real = (torch.randn(options.images, 3, 32, 32, generator=generator) for _ in range(2))
    labels = torch.arange(options.images) % 10
    run = SIDES[side](images, labels, real, options.width)
    run(2)
    before = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    Path("/proc/self/clear_refs").write_text("5")
    began = time.perf_counter()
    gradient = run(window)
    seconds = time.perf_counter() - began
    assert gradient.isfinite().all()
    peak = next(int(line.split()[1]) * 1024 for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return {"seconds": seconds, "peak": peak, "before": before}


def main() -> None:
    """Measure every side, interleaved, and print and write the medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--windows", type=int, nargs="+", default=[5, 10, 20, 40, 60])
    parser.add_argument("--sides", nargs="+", default=list(SIDES), choices=list(SIDES))
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS / "unroll.json")
    parser.add_argument("--case", nargs=2, metavar=("SIDE", "WINDOW"), help="run one case and print it as JSON")
    options = parser.parse_args()
    if options.case:
        print(json.dumps(measure(options.case[0], int(options.case[1]), options)))
        return
    same = [f"--{k}={getattr(options, k)}" for k in ("width", "images", "threads")]
    rows = []
    for window in options.windows:
        found: dict[str, list[dict[str, float]]] = {side: [] for side in options.sides}
        for _ in range(options.repeats):
            for side in options.sides:
                done = subprocess.run(
                    [sys.executable, __file__, *same, "--case", side, str(window)], capture_output=True, text=True, check=True
                )
                found[side].append(json.loads(done.stdout.splitlines()[-1]))
        for side, cases in found.items():
            row = {"window": window, "side": side} | {key: float(np.median([c[key] for c in cases])) for key in ("seconds", "peak")}
            rows.append(row)
            print(f"window {window:3d}  {side:32s} {row['seconds']:8.2f} s   peak {row['peak'] / 2**30:6.2f} GiB", flush=True)
    versions = {"torch": torch.__version__, "machine": f"{platform.machine()}, {options.threads} threads", "n": options.repeats}
    words = {"network": f"ConvNet-3 of width {options.width}", "images": options.images, "statistic": "median over processes"}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(words | versions | {"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Peak memory of one meta-gradient against the window, each case in a process of its own.

    python examples/benchmarks/memory.py            # prints a table, writes docs/results/memory.json
    python examples/benchmarks/memory.py --width 128 --size 32 --images 100 --windows 5 10 20 40 60

Replay keeps (theta, optimiser state) of every step of the window and the activations of one; whole-window autograd
keeps the activations of all. The table's last lines are the growth per step, fitted, beside the bytes of parameters plus
optimiser state.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import platform
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np

ADJOINTS = {
    "replay": ("ReplayAdjoint", {}),
    "replay, forward over reverse": ("ReplayAdjoint", {"product": "forward-over-reverse"}),
    "autograd": ("AutogradAdjoint", {}),
}
# glibc keeps freed memory in a heap with holes, and that is counted as resident. With these it maps every tensor of more than
# 64 KiB on its own and gives it back when it dies, so that what is measured is what is alive.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_MMAP_MAX_": "1000000", "MALLOC_TRIM_THRESHOLD_": "65536"}
RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"


def measure(adjoint: str, window: int, options: argparse.Namespace) -> dict[str, float]:
    """Run one case in this process: peak resident memory in bytes above what the process had before it."""
    import torch

    import distilkit as dk
    from distilkit.functional.adjoints import Leaves
    from distilkit.functional.pytrees import split_floating
    from distilkit.unroller import RealBatch

    torch.set_num_threads(options.threads)
    stream, shape = dk.Stream(0), (3, options.size, options.size)
    learner = dk.Learner(dk.ConvNet(width=options.width), dk.Adam(lr=1e-3)).bind(shape, 10)
    labels = torch.eye(10)[torch.arange(options.images) % 10]
    leaves = Leaves(stream.fold("images").normal(options.images, *shape), labels, torch.tensor(1e-3).log())
    batch = RealBatch(stream.fold("real").normal(options.images, *shape), labels)
    unroller = dk.Unroller(getattr(dk, ADJOINTS[adjoint][0])(**ADJOINTS[adjoint][1]))
    unroller.meta_gradient(learner, leaves, dk.Window(0, 2), batch, stream)  # loads what is loaded once
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what the warm-up freed goes back to the system, or it would count as held before
    before = _resident()
    _reset_peak()
    unroller.meta_gradient(learner, leaves, dk.Window(0, window), batch, stream)
    state = learner.init(stream)
    per_step = 4 * (state.params.numel() + sum(s.numel() for s in split_floating(state.optimizer)[0]))
    return {"peak": _peak() - before, "state": per_step}


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def draw(result: dict[str, object], path: Path) -> None:
    """Plot peak memory against the window."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), dpi=150, layout="constrained")
    axes = figure.subplots()
    for (name, peaks), marker in zip(result["peak_bytes"].items(), "os^", strict=True):
        slope = result["growth_bytes_per_step"][name] / 2**20
        axes.plot(result["windows"], [p / 2**20 for p in peaks], marker=marker, label=f"{name}: {slope:.2g} MiB a step")
    axes.set(xlabel="window (inner steps)", ylabel="peak memory (MiB)", yscale="log", title=f"{result['network']}, {result['images']}")
    axes.legend()
    figure.savefig(path)


def main() -> None:
    """Measure every case, print the table, write and draw the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--windows", type=int, nargs="+", default=[5, 10, 20, 40])
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS / "memory.json")
    parser.add_argument("--case", nargs=2, metavar=("ADJOINT", "WINDOW"), help="run one case and print it as JSON")
    options = parser.parse_args()
    if options.case:
        print(json.dumps(measure(options.case[0], int(options.case[1]), options)))
        return
    import torch

    same = [f"--{k}={getattr(options, k)}" for k in ("width", "size", "images", "threads")]
    peaks: dict[str, list[float]] = {}
    state = 0.0
    for adjoint in ADJOINTS:
        for window in options.windows:
            command = [sys.executable, __file__, *same, "--case", adjoint, str(window)]
            found = []
            for _ in range(options.repeats):
                done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | MALLOC)
                case = json.loads(done.stdout.splitlines()[-1])
                found.append(case["peak"])
                state = case["state"]
            peaks.setdefault(adjoint, []).append(float(np.median(found)))
            print(f"{adjoint:30s} window {window:3d}   peak {np.median(found) / 2**20:8.1f} MiB", flush=True)
    growth = {a: float(np.polyfit(options.windows, p, 1)[0]) for a, p in peaks.items()}
    for adjoint, slope in growth.items():
        print(f"{adjoint:30s} grows by {slope / 2**20:7.2f} MiB a step, {slope / state:6.2f} times parameters plus optimiser state")
    result = {
        "question": "peak memory of one meta-gradient against the window",
        "network": f"ConvNet-3 of width {options.width}",
        "images": f"{options.images} images of 3x{options.size}x{options.size}",
        "optimizer": "Adam",
        "windows": options.windows,
        "peak_bytes": peaks,
        "growth_bytes_per_step": growth,
        "state_bytes": state,
        "n": options.repeats,
        "statistic": "median over processes",
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {options.threads} threads",
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    draw(result, options.out.with_suffix(".png"))
    if any(growth[a] > 1.5 * state for a in growth if a.startswith("replay")):
        sys.exit("replay grows by more than 1.5 times parameters plus optimiser state a step")
    print(f"written to {options.out} and {options.out.with_suffix('.png')}")


if __name__ == "__main__":
    main()

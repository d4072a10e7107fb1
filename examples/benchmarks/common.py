"""What the benchmarks share: cases in fresh processes, medians, what they ran on, JSON and figures. Linux only (/proc).

A benchmark is a script with one question. A person runs it; it runs itself, as `NAME.py --case JSON`, once for each case and repeat.
Such a process warms up, measures, and prints what it found as JSON in its last line: numbers, or lists of numbers, by name, and
under "facts" what needs no median.
"""

from __future__ import annotations

import argparse
import ctypes
import datetime
import gc
import importlib.metadata
import importlib.util
import io
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest import mock

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    import distilkit as dk
    from distilkit.unroll.inner import OuterVariables
    from distilkit.unroller import RealBatch

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"
# glibc keeps freed memory in a heap with holes, and that is counted as resident. With these it maps every tensor of more than
# 64 KiB on its own and gives it back when it dies, so that what is measured is what is alive. It costs time.
ALIVE = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_MMAP_MAX_": "1000000", "MALLOC_TRIM_THRESHOLD_": "65536"}
BLUE, ORANGE, GREEN, PURPLE, GRAY = "#2563ab", "#c2560c", "#2f7d4f", "#7a4ba0", "#6b7280"

Row = dict[str, Any]


class CaseError(Exception):
    """A case's process failed; the text says how."""


class Reading:
    """What `metered` found. seconds: wall time. before, peak: bytes held at the start, and the most that was held."""

    seconds: float
    before: int
    peak: int


class Problem(NamedTuple):
    """An inner problem: a bound learner, what is distilled, and real data."""

    learner: dk.Learner
    leaves: OuterVariables
    batch: RealBatch


def parser(doc: str | None, *, repeats: int, threads: int = 2) -> argparse.ArgumentParser:
    """A parser with the options that every benchmark has."""
    made = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    made.add_argument("--threads", type=int, default=threads)
    made.add_argument("--device", default="cpu")
    made.add_argument("--repeats", type=int, default=repeats, help="fresh processes for each case")
    made.add_argument("--out", type=Path, help=f"the JSON to write, or a folder for it; by default {RESULTS}")
    made.add_argument("--quick", action="store_true", help="small sizes and no meaning: a test that the script works")
    made.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)
    return made


def parse(made: argparse.ArgumentParser, quick: Mapping[str, Any]) -> argparse.Namespace:
    """Parse the command line; with --quick, `quick` takes the place of the defaults, and docs/results is left alone."""
    if "--quick" in sys.argv[1:]:
        made.set_defaults(repeats=1, threads=1, out=Path(tempfile.gettempdir()) / "distilkit-benchmarks", **quick)
    given = made.parse_args()
    out = given.out or RESULTS
    given.out = out if out.suffix == ".json" else out / f"{Path(sys.argv[0]).stem}.json"
    return given


def run(cases: Sequence[Row], settings: Row, given: argparse.Namespace, env: Mapping[str, str] | None = None) -> list[Row]:
    """Run every case `given.repeats` times, in turn, each time in a fresh process; with --quick, in this one.

    Args:
        cases: what differs.
        settings: what all have in common.
        given: the command line.
        env: environment variables to set.

    Returns:
        for each case, it and what was found: {"median", "n", "values"} of every number; or "failed", and the reason.
    """
    failed: dict[int, str] = {}

    def one(number: int) -> Row:
        if number not in failed:
            try:
                return here(cases[number] | settings) if given.quick else fresh(cases[number] | settings, env)
            except CaseError as error:
                failed[number] = str(error)
        return {}

    jobs = [(repeat, number) for repeat in range(given.repeats) for number in range(len(cases))]
    found = []
    for _, number in jobs:
        found.append(one(number))
        _keep([cases[n] | result for (_, n), result in zip(jobs, found, strict=False)], given)
    rows = []
    for number, case in enumerate(cases):
        results = [result for (_, n), result in zip(jobs, found, strict=True) if n == number]
        rows.append(case | ({"failed": failed[number]} if number in failed else summary(results)))
    return rows


def _keep(found: Sequence[Row], given: argparse.Namespace) -> None:
    """Write down what has been measured so far, where the whole will be: a process that is ended early has not worked for nothing."""
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps({"under_way": True, "rows": list(found)}, indent=1) + "\n", encoding="utf-8")


def fresh(case: Row, env: Mapping[str, str] | None = None) -> Row:
    """Run one case of this script in a fresh process."""
    command = [sys.executable, sys.argv[0], "--case", json.dumps(case)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | dict(env or {}))
    if done.returncode == 0:
        result: Row = json.loads(done.stdout.splitlines()[-1])
        return result
    if done.returncode < 0:
        raise CaseError(f"killed by {signal.Signals(-done.returncode).name}")
    raise CaseError((done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1])


def here(case: Row) -> Row:
    """Run one case of this script in this process, by the same words, which spares the start of another: its times have no meaning."""
    said = io.StringIO()
    with mock.patch.object(sys, "argv", [sys.argv[0], "--case", json.dumps(case)]), redirect_stdout(said):
        sys.modules["__main__"].main()
    result: Row = json.loads(said.getvalue().splitlines()[-1])
    return result


def answer(found: Row) -> None:
    """Print what a case's process found, as its last act."""
    print(json.dumps(found))
    gc.freeze()  # Python looks through all objects once more before it ends, which takes a second with torch


def line(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The slope and the intercept of a straight line through (x, y), by least squares.

    >>> tuple(round(x, 9) for x in line([(0, 1), (2, 5)]))
    (2.0, 1.0)
    """
    x, y = (np.array(values, dtype=float) for values in zip(*points, strict=True))
    slope, intercept = np.polyfit(x, y, 1)
    return float(slope), float(intercept)


def summary(results: Sequence[Row]) -> Row:
    """Medians over repeats.

    >>> summary([{"seconds": 3.0, "facts": {"size": 4}}, {"seconds": 1.0}])
    {'size': 4, 'seconds': {'median': 2.0, 'n': 2, 'values': [3.0, 1.0]}}
    """
    row: Row = dict(results[0].get("facts", {}))
    for name in (key for key in results[0] if key != "facts"):
        values = [value for result in results for value in (result[name] if isinstance(result[name], list) else [result[name]])]
        row[name] = {"median": statistics.median(values), "n": len(values), "values": values}
    return row


def write(
    given: argparse.Namespace, question: str, settings: Row, rows: Sequence[Row], *, packages: Sequence[str] = (), **more: Any
) -> None:
    """Write the JSON. `packages`: others that took part. `more`: what else belongs into it."""
    record = {
        "question": question,
        "statistic": "median; values are all single ones",
        "n": given.repeats,
        "n_of": "fresh processes for each case",
        "settings": settings,
        "versions": versions(packages),
        "hardware": hardware(given.threads, given.device),
        "date": datetime.date.today().isoformat(),
        **({"quick": True} if given.quick else {}),
        **more,
        "rows": list(rows),
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def finish(given: argparse.Namespace, rows: Sequence[Row]) -> None:
    """Say where the results are; exit with an error if a case failed."""
    print(f"written to {given.out} and {given.out.with_suffix('.png').name}")
    broken = [row for row in rows if "failed" in row]
    if broken:
        sys.exit("\n".join(f"failed: {row}" for row in broken))


def installed(package: str) -> bool:
    """Whether a package can be imported."""
    return importlib.util.find_spec(package) is not None


def versions(packages: Sequence[str] = ()) -> dict[str, str]:
    """Versions of Python, torch, distilkit and others."""
    import torch

    import distilkit

    others = {name: importlib.metadata.version(name) for name in packages if installed(name)}
    return {"python": platform.python_version(), "torch": torch.__version__, "distilkit": distilkit.__version__} | others


# What tells machines under one name apart: instructions for wide and for rounded arithmetic.
FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "avx512_vp2intersect", "avx_vnni", "amx_bf16", "amx_tile")


def hardware(threads: int, device: str) -> Row:
    """What the cases ran on. Processors of one name differ by two in peak rate, so family, model and instructions are told too."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    known = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in reversed(lines))}
    gpu = {}
    if on_gpu(device):
        import torch

        gpu = {"gpu": torch.cuda.get_device_name(device)}
    return {
        "cpu": known.get("model name", platform.machine()),
        "family": known.get("cpu family", ""),
        "model": known.get("model", ""),
        "flags": [flag for flag in FLAGS if flag in known.get("flags", "").split()],
        "cores": os.cpu_count(),
        "threads": threads,
        "bound": os.environ.get("OMP_PROC_BIND", "no"),
        "device": device,
    } | gpu


def on_gpu(device: str) -> bool:
    """Whether a device is a GPU."""
    return device.startswith("cuda")


def prepare(threads: int, device: str) -> None:
    """Set up a case's process: its threads, and on a GPU float32 that is float32, for every side."""
    import torch

    torch.set_num_threads(threads)
    if on_gpu(device):
        torch.cuda.set_device(device)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


def wait(device: str) -> None:
    """Wait for the device to finish."""
    if on_gpu(device):
        import torch

        torch.cuda.synchronize()


@contextmanager
def metered(device: str, *, trim: bool = False) -> Iterator[Reading]:
    """Time what happens inside, and measure the most memory that is held meanwhile.

    On a CPU that is resident memory of the process. On a GPU it is what torch holds at the peak, with the memory of CUDA graphs, over the
    tensors that there were before.

    Args:
        device: where the work is done.
        trim: give memory that was freed before back to the system first, so that it does not count as held.
    """
    reading = Reading()
    gc.collect()
    wait(device)
    if on_gpu(device):
        import torch

        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        reading.before = torch.cuda.memory_allocated()
    else:
        if trim:
            ctypes.CDLL(None).malloc_trim(0)
        reading.before = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        Path("/proc/self/clear_refs").write_text("5")
    began = time.perf_counter()
    yield reading
    wait(device)
    reading.seconds = time.perf_counter() - began
    if on_gpu(device):
        reading.peak = torch.cuda.max_memory_reserved()  # what is handed out does not count what a graph uses in its own pool
    else:
        lines = Path("/proc/self/status").read_text().splitlines()
        reading.peak = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def convnet(width: int = 128, images: int = 100, real: int = 100, device: str = "cpu", size: int = 32) -> Problem:
    """The problem of the paper's shapes: a ConvNet-3 that Adam trains on 3x32x32 images of ten classes."""
    import torch

    import distilkit as dk
    from distilkit.unroll.inner import OuterVariables
    from distilkit.unroller import RealBatch

    shape, stream = (3, size, size), dk.Stream(0)
    learner = dk.Learner(dk.ConvNet(width=width), dk.Adam(lr=1e-3)).bind(shape, 10)
    labels = [torch.eye(10)[torch.arange(count) % 10].to(device) for count in (images, real)]
    leaves = OuterVariables(stream.fold("images").normal(images, *shape).to(device), labels[0], torch.tensor(1e-3).log().to(device))
    return Problem(learner, leaves, RealBatch(stream.fold("real").normal(real, *shape).to(device), labels[1]))


def noise(train: int, test: int, validation: int = 0) -> dk.Arrays:
    """Noise of CIFAR-10's shapes in the place of real images, so that nothing is downloaded."""
    import torch

    import distilkit as dk

    stream = dk.Stream(0)
    return dk.Arrays(
        name="noise",
        validation=validation,
        preprocessing=dk.Identity(),
        train_images=stream.fold("train").normal(train, 3, 32, 32),
        train_labels=torch.arange(train) % 10,
        test_images=stream.fold("test").normal(test, 3, 32, 32),
        test_labels=torch.arange(test) % 10,
    )


def warm_up(unroller: dk.Unroller) -> dk.Window:
    """A window after which all programs of any other one are built: it holds step 0 and another, and the last, which may be kept."""
    import distilkit as dk

    return dk.Window(0, 2 + getattr(unroller.adjoint, "keep_last", 0))


def figure(width: float, height: float) -> Figure:
    """A figure of a size in inches, without pyplot."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=130, layout="constrained", facecolor="white")


def log_axis(axes: Axes) -> None:
    """Make the y axis logarithmic, with plain numbers, and draw a grid."""

    def plain(value: float, _: object) -> str:
        low, high = axes.get_ylim()
        return f"{value:.3g}" if high < 4 * low or f"{value:e}"[0] in "125" else ""

    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(plain)
    axes.yaxis.set_minor_formatter(plain)
    axes.grid(alpha=0.3, which="both", linewidth=0.5)


def save(made: Figure, given: argparse.Namespace) -> None:
    """Save a figure beside the JSON."""
    given.out.parent.mkdir(parents=True, exist_ok=True)
    made.savefig(given.out.with_suffix(".png"))

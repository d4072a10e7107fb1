"""The first half hour with a GPU: the tests that need one, and all measurements that wait for one, each against a clock.

    python examples/benchmarks/gpu_first.py                          # writes a file for each part, and a summary, to docs/results/gpu
    python examples/benchmarks/gpu_first.py --only tests ways --minutes 9
    python examples/benchmarks/gpu_first.py --quick --out /tmp/quick   # a test that it works

Parts run in the order of their worth, each in a process of its own that is ended when its time is up; the cases that it has measured until
then are in its file. All parts want more than half an hour: what there is no time for is told, and taken by --only in another call. A part
that fails does not keep the next from running. `headline` goes on from its own last checkpoint in each call.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import common

QUESTION = "what a GPU gives: tests, rates, ways to run a step, judging, outer steps, memory beside higher, a headline"
HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


STOP = "{stop}"  # in a command: the minutes that are left, less those that a run may take to end


class Part(NamedTuple):
    """A command, and the minutes that it may take. quick: whether it belongs into a test that the script works. good: exit statuses."""

    command: list[str]
    minutes: float
    quick: bool = False
    good: tuple[int, ...] = (0,)


def parts(given: argparse.Namespace) -> dict[str, Part]:
    """By name, most useful first."""
    quick = ["--quick"] if given.quick else []

    def benchmark(name: str, *options: str) -> list[str]:
        options = () if given.quick else options
        out = given.out.parent / f"{given.out.stem}-{name}.json"
        return [sys.executable, str(HERE / f"{name}.py"), "--device", given.device, "--out", str(out), *quick, *options]

    tests = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "-W", "default", "-m", "gpu", str(ROOT / "tests")]
    run = given.out.parent / "headline" if given.quick else ROOT / "runs" / "gpu_first"
    device = [f"--device={given.device}", f"--stop-after={STOP}", f"--out={run}"]
    headline = [sys.executable, "-m", "distilkit", "run", "digits" if given.quick else given.headline, *device]
    small = ["outer.steps=2", "evaluation.seeds=1", "evaluation.steps=[5]", "evaluation.every=0", "evaluation.baselines=[]"]
    headline += [word for change in [*(small if given.quick else []), *(given.set or [])] for word in ("--set", change)]
    precision = ["--precision", "float32", "tf32", "bfloat16"]
    return {
        "tests": Part(tests, 9),
        "ways": Part(benchmark("ways", *precision), 9, quick=True),
        "limits": Part(benchmark("limits", "--repeats", "1"), 4),
        "outer steps": Part(benchmark("outer_steps", *precision, "--steps", "5"), 6),
        "judging": Part(benchmark("judging", "--repeats", "1"), 4),
        "networks": Part(benchmark("networks", "--repeats", "1"), 4),
        "beside higher": Part(benchmark("unroll", "--repeats", "1"), 9),
        "headline": Part(headline, 9.5, quick=True, good=(0, 130)),  # 130: stopped as asked
    }


def run(name: str, part: Part, minutes: float) -> common.Row:
    """Run a part for no longer than that, with its words on the screen; what it did."""
    command = [word.replace(STOP, f"{max(minutes - 1, 0.05):.2f}m") for word in part.command]
    print(f"{name}: {' '.join(command)}", flush=True)
    began = time.perf_counter()
    child = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, start_new_session=True)
    code: int | None = None
    try:
        code = child.wait(60 * minutes)
    except subprocess.TimeoutExpired:
        pass
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)  # with the processes that it has started
            child.wait()
    seconds, words = time.perf_counter() - began, " ".join(command[1:])
    print(f"{name}: {'its time was up' if code is None else f'exit status {code}'} after {seconds:.0f} s\n", flush=True)
    return {"part": name, "seconds": seconds, "exit": code, "good": code in part.good, "command": words.replace(str(ROOT), ".")}


def draw(rows: list[common.Row], given: argparse.Namespace) -> None:
    """Plot where the time went."""
    figure = common.figure(8, 0.9 + 0.3 * len(rows))
    axes = figure.subplots()
    colors = [common.BLUE if row["good"] else common.ORANGE for row in rows]
    axes.bar_label(axes.barh([row["part"] for row in rows], [row["seconds"] for row in rows], color=colors), fmt="{:.0f}", fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.set_xlabel("seconds; orange: failed, or its time was up", fontsize=9)
    common.save(figure, given)


def main() -> None:
    """Run the parts, and write down how each ended."""
    parser = common.parser(__doc__, repeats=1)
    parser.set_defaults(device="cuda", out=common.RESULTS / "gpu" / "gpu_first.json")
    parser.add_argument("--only", nargs="+", help="parts by name, such as tests ways")
    parser.add_argument("--minutes", type=float, default=27.0, help="for all parts together")
    parser.add_argument("--headline", default="paper/cifar10-ipc1", help="the recipe that goes on for what is left")
    parser.add_argument("--set", action="append", metavar="KEY=VALUE", help="changes of it, as of `distilkit run`")
    given = common.parse(parser, {"device": "cpu"})
    chosen = {name: part for name, part in parts(given).items() if given.only is None or name in given.only}
    if given.only and (unknown := set(given.only) - set(chosen)):
        parser.error(f"there is no part {', '.join(sorted(unknown))}; there are {', '.join(parts(given))}")
    rows: list[common.Row] = []
    given.out.parent.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * given.minutes
    try:
        for name, part in chosen.items():
            left = (end - time.monotonic()) / 60
            if given.quick and not part.quick:
                continue
            if left < 1 and not given.quick:
                print(f"{name}: no time is left for it; --only {name!r} takes it in another call", flush=True)
                rows.append({"part": name, "seconds": 0.0, "exit": None, "good": False, "command": ""})
                continue
            rows.append(run(name, part, min(left, part.minutes)))
    finally:  # and not before: to ask what GPU it is takes some of its memory
        if rows:
            common.write(given, QUESTION, {"device": given.device}, rows)
            draw(rows, given)
    common.finish(given, [row | {"failed": f"exit status {row['exit']}"} for row in rows if not row["good"] and row["exit"] is not None])


if __name__ == "__main__":
    main()

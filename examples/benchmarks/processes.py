"""How much faster is an outer step when several processes take it, and does a cost model of three terms say so beforehand?

    python examples/benchmarks/processes.py                            # prints a table, writes docs/results/processes.json and .png
    torchrun is started by the script itself: --processes 1 2 4, on one machine
    python examples/benchmarks/processes.py --quick --out /tmp/quick   # a test that it works

A meta-gradient of N networks whose real batch has M parts takes about

    t(P) = fixed + ceil(N / P) unroll + ceil(N / P) ceil(M / members) part + exchange

in P processes, where `members` = P / N processes share the parts of a network's real batch if P is above N, and is 1 otherwise. The
terms are from one process: `part` is the slope over parts, `unroll` over networks, and `fixed` is what is left. `exchange` is what one
collective operation on so many numbers takes between the processes that measure. All that is predicted is then measured too.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from typing import Any

import common

QUESTION = "time of a meta-gradient by processes, networks and parts of the real batch, beside what a cost model says"
QUICK = {"processes": [1, 2], "width": 8, "window": 2, "horizon": 4, "real": 40, "steps": 2}
MARK = "measured: "
# networks and parts: the first three give the terms of the model, in one process.
ONE, MORE_PARTS, MORE_NETWORKS = (1, 1), (1, 2), (2, 1)


def measure(
    processes: int, networks: int, parts: int, width: int, window: int, horizon: int, real: int, steps: int, threads: int, device: str
) -> common.Row:
    """Work in this process, or start torchrun, whose first process says what it found."""
    case = {"networks": networks, "parts": parts, "width": width, "window": window, "horizon": horizon, "real": real, "steps": steps}
    if processes == 1:
        common.prepare(threads, device)
        return work(**case, device=device)
    words = ["--standalone", f"--nproc-per-node={processes}", sys.argv[0], "--worker", json.dumps(case | {"device": device})]
    env = os.environ | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", *words], capture_output=True, text=True, env=env, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    if done.returncode or not lines:
        raise common.CaseError((done.stderr.strip() or "nothing was said").splitlines()[-1])
    found: common.Row = json.loads(lines[-1].removeprefix(MARK))
    return found


def work(networks: int, parts: int, width: int, window: int, horizon: int, real: int, steps: int, device: str) -> common.Row:
    """One of the processes: the same meta-gradient several times, and one exchange of as many numbers, several times."""
    import torch

    import distilkit as dk
    from distilkit import process, ranks

    with ranks.joined(torch.device(device)) as world, process.keep_freed_memory():
        problem, stream = common.convnet(width, 10, real * parts, device), dk.Stream(3)
        unroller = dk.Unroller(networks_per_step=networks, micro_batches=parts)
        start = (horizon - window) // 2  # whose cost is the mean over all places

        def once() -> Any:
            return unroller.meta_gradient(problem.learner, problem.leaves, dk.Window(start, start + window), problem.batch, stream)

        once()
        seconds, passing = [], []
        rows = torch.zeros(-(-networks // world.size), sum(x.numel() for x in problem.leaves) + 1, device=device)
        known = ranks.fingerprint(problem.leaves)
        for _ in range(steps):
            world.exchange(None)  # all begin together
            began = time.perf_counter()
            once()
            common.wait(device)
            seconds.append(time.perf_counter() - began)
            world.exchange(None)
            began = time.perf_counter()
            world.exchange_rows(rows, known)
            common.wait(device)
            passing.append(time.perf_counter() - began)
        found = {"seconds": seconds, "exchange_seconds": passing}
        if world.first:
            print(MARK + json.dumps(found), flush=True)
    return found


def predicted(row: common.Row, rows: list[common.Row]) -> float:
    """Seconds that the model gives for a case, by what was measured in one process."""
    one, parts, networks = (
        next(r for r in rows if (r["processes"], r["networks"], r["parts"]) == (1, *case))["seconds"]["median"]
        for case in (ONE, MORE_PARTS, MORE_NETWORKS)
    )
    part = parts - one
    unroll = networks - one - part  # a network more takes its unroll, and its part of the real batch
    fixed = one - unroll - part
    here, members = math.ceil(row["networks"] / row["processes"]), max(1, row["processes"] // row["networks"])
    taken = here * (unroll + math.ceil(row["parts"] / members) * part)
    return fixed + taken + (row["exchange_seconds"]["median"] if row["processes"] > 1 else 0.0)


def draw(rows: list[common.Row], given: argparse.Namespace) -> None:
    """Plot measured and predicted seconds, a group of bars for each case."""
    figure = common.figure(8, 0.9 + 0.45 * len(rows))
    axes = figure.subplots()
    names = [f"{row['processes']} processes, {row['networks']} networks, {row['parts']} parts" for row in rows]
    places = range(len(rows))
    bars = axes.barh([p - 0.2 for p in places], [row["seconds"]["median"] for row in rows], 0.38, color=common.BLUE, label="measured")
    more = axes.barh([p + 0.2 for p in places], [row["predicted_seconds"] for row in rows], 0.38, color=common.ORANGE, label="the model")
    for each in (bars, more):
        axes.bar_label(each, fmt="%.3g", fontsize=8, padding=2)
    axes.set_yticks([*places], names)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel(
        f"seconds a meta-gradient: window {given.window} amid {given.horizon} steps, {given.real} real images a part", fontsize=9
    )
    axes.tick_params(labelsize=8)
    axes.legend(fontsize=8, frameon=False, loc="lower right")
    common.save(figure, given)


def main() -> None:
    """Measure every case, print, write and draw."""
    parser = common.parser(__doc__, repeats=2, threads=1)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--window", type=int, default=20)
    parser.add_argument("--horizon", type=int, default=40)
    parser.add_argument("--real", type=int, default=500, help="real images of a part")
    parser.add_argument("--steps", type=int, default=5, help="meta-gradients that are clocked in each start")
    parser.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    given = common.parse(parser, QUICK)
    if given.worker:
        work(**given.worker)
        return
    if given.case:
        common.answer(measure(**given.case))
        return
    settings = {name: getattr(given, name) for name in ("width", "window", "horizon", "real", "steps", "threads", "device")}
    cases = [{"processes": 1, "networks": n, "parts": m} for n, m in (ONE, MORE_PARTS, MORE_NETWORKS)]
    for count in (count for count in given.processes if count > 1):
        shapes = ((count, 1), (2 * count, 1), (1, count))
        cases += [{"processes": count, "networks": n, "parts": m} for n, m in (shapes[-1:] if given.quick else shapes)]
    rows = common.run(cases, settings, given)
    good = [row for row in rows if "failed" not in row]
    if len(good) == len(rows):
        for row in rows:
            row["predicted_seconds"] = predicted(row, rows)
            ratio = row["seconds"]["median"] / row["predicted_seconds"]
            print(
                f"{row['processes']} processes, {row['networks']} networks, {row['parts']} parts: {row['seconds']['median']:.3f} s, "
                f"the model {row['predicted_seconds']:.3f} s ({ratio:.2f} of it)"
            )
        draw(rows, given)
    common.write(given, QUESTION, settings, rows, network=f"ConvNet-3 of width {given.width}, Adam, ten images")
    common.finish(given, rows)


if __name__ == "__main__":
    main()

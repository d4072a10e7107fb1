"""Ill-treat runs as life does, go on, and compare what they end with to runs that were left alone.

    python examples/reliability.py               # half an hour; a line for each trial, and docs/results/reliability.json
    python examples/reliability.py --kills 20 --pairs 0 --seeds 0 --stops 0

kills   with -9 at random moments: plain, boosted, adaptive, several networks a step, in turn. After each the store opens, and
        `distilkit verify` finds nothing; a run that comes to its end holds the numbers of the one that was not killed.
pairs   two runs of different seeds started at once into one --out: one has it and is right, the other is told.
seeds   three seeds started at once without --out: a folder for each, and each right.
stops   one run in ten pieces by --stop-after.

Numbers are compared to the bit, but for seconds. Exit code 1 where something went wrong.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

import distilkit as dk
from distilkit.storage import holds_results, verify

ROOT = Path(__file__).resolve().parents[1]
SMALL = ["device=cpu", "threads=1", "evaluation.seeds=2", "evaluation.steps=[20]", "evaluation.every=20"]
RUNS = {
    "plain": ("digits.toml", ["outer.steps=150"]),
    "boosted": ("boost_digits.toml", ["boost.steps=40", "evaluation.every=40"]),
    "adaptive": ("digits.toml", ["outer.steps=60", 'truncation={kind="AdaptiveTruncation",horizon=40,window=20,spread=5}']),
    "several networks": ("digits.toml", ["outer.steps=60", "unroller.networks_per_step=2", "learner.learn_lr=true"]),
}
Trial = dict[str, Any]  # with "wrong": what went wrong, in words


def command(spec: str, settings: list[str], *more: str) -> list[str]:
    """Of one run."""
    changes = [f"--set={one}" for one in (*SMALL, *settings)]
    return [sys.executable, "-m", "distilkit", "run", str(ROOT / "examples" / spec), *more, *changes]


def start(words: list[str], cwd: Path) -> subprocess.Popen[str]:
    """Start a process and do not wait for it."""
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=cwd)


def differences(left: Path, right: Path) -> list[str]:
    """What two runs hold that is not the same, but for seconds."""
    a, b = dk.open(left), dk.open(right)
    found = sorted({*a.children} ^ {*b.children})
    for group in sorted({*a.children} & {*b.children}):
        for name, array in a[group].to_dataset().variables.items():
            other = b[group].to_dataset().variables.get(name)
            if name != "seconds" and (other is None or not np.array_equal(array.values, other.values, equal_nan=array.dtype.kind == "f")):
                found.append(f"{group}/{name}")
    return found


def kills(count: int, work: Path, chance: random.Random) -> Iterator[Trial]:
    """Kill so many times."""
    whole, seconds, names = {}, {}, list(RUNS)
    for name, given in RUNS.items():
        began, whole[name] = time.monotonic(), work / f"whole {name}"
        subprocess.run(command(*given, "--out", str(whole[name])), check=True, capture_output=True)
        seconds[name] = time.monotonic() - began
    killed = ended = 0
    while killed < count:
        name = names[ended % len(names)]
        out = work / f"killed {name}"
        process = start(command(*RUNS[name], "--out", str(out)), work)
        try:
            said = process.communicate(timeout=chance.uniform(0.2, 1.2) * seconds[name])[1]
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            killed += 1
            trial: Trial = {"killed": name, "outer_steps": None, "wrong": []}  # None: before the first write
            if holds_results(out):
                trial |= {"outer_steps": dk.open(out)["history"].sizes["outer_step"], "wrong": verify(out)[1]}
            yield trial
        else:
            ended += 1
            yield {"ended": name, "wrong": [said.strip()] if process.returncode else differences(whole[name], out)}
            shutil.rmtree(out)


def alone(work: Path, seeds: int) -> list[Path]:
    """A run of each seed that nothing happens to."""
    for seed in range(seeds):
        subprocess.run(command("digits.toml", ["outer.steps=20", f"seed={seed}"], "--out", str(work / f"seed {seed}")), check=True)
    return [work / f"seed {seed}" for seed in range(seeds)]


def pairs(count: int, work: Path, whole: list[Path]) -> Iterator[Trial]:
    """Two runs into one folder at once, so many times."""
    for number in range(count):
        out = work / f"pair {number}"
        both = [start(command("digits.toml", ["outer.steps=20", f"seed={seed}"], "--out", str(out)), work) for seed in range(2)]
        said = [process.communicate()[1] for process in both]
        codes = [process.returncode for process in both]
        told = "Another process writes" in "".join(said)
        wrong = [] if sorted(codes) == [0, 2] and told else [f"exit codes {codes}: {said}"]
        if not wrong:
            wrong = differences(whole[codes.index(0)], out)
        yield {"pair": number, "exit_codes": codes, "wrong": wrong}


def seeds(count: int, work: Path, whole: list[Path]) -> Iterator[Trial]:
    """Three seeds at once without --out, so many times."""
    for number in range(count):
        folder = work / f"seeds {number}"
        folder.mkdir()
        three = [start(command("digits.toml", ["outer.steps=20", f"seed={seed}"]), folder) for seed in range(3)]
        wrong = [said for process in three if (said := process.communicate()[1]) and process.returncode]
        made = {dk.open(run).attrs["seed"]: run for run in (folder / "runs").iterdir()}
        wrong += [] if sorted(made) == [0, 1, 2] else [f"seeds {sorted(made)} in {len(made)} folders"]
        wrong += [one for seed, run in made.items() for one in differences(whole[seed], run)]
        yield {"three_seeds": number, "wrong": wrong}


def stops(count: int, work: Path) -> Iterator[Trial]:
    """One run in so many pieces or more: each is over after its first outer step, or the first networks that it trains or tests."""
    given, out = ("digits.toml", [f"outer.steps={count}"]), work / "pieces"
    subprocess.run(command(*given, "--out", str(work / "one piece")), check=True, capture_output=True)
    pieces, code = 0, 130
    while code == 130 and pieces < 20 * count:
        words = command(*given, "--out", str(out), "--stop-after", "0s")
        pieces, code = pieces + 1, subprocess.run(words, check=False, capture_output=True).returncode
    yield {
        "pieces": pieces,
        "wrong": [f"exit code {code}"] if code or pieces < count else differences(work / "one piece", out),
    }


def main() -> int:
    """Do all that was asked for, and write it down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, count in (("kills", 100), ("pairs", 8), ("seeds", 6), ("stops", 10), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=count)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "reliability.json")
    given = parser.parse_args()
    work, trials = Path(tempfile.mkdtemp()), []
    whole = alone(work, 3) if given.pairs or given.seeds else []
    parts = [kills(given.kills, work, random.Random(given.seed))] if given.kills else []
    parts += [pairs(given.pairs, work, whole), seeds(given.seeds, work, whole)]
    parts += [stops(given.stops, work)] if given.stops else []
    for part in parts:
        for trial in part:
            trials.append(trial)
            print(json.dumps(trial), flush=True)
    wrong = sum(bool(trial["wrong"]) for trial in trials)
    counts = {name: sum(name in trial for trial in trials) for name in ("killed", "ended", "pair", "three_seeds", "pieces")}
    about = {"date": datetime.date.today().isoformat(), "torch": torch.__version__, "machine": platform.machine(), "cores": os.cpu_count()}
    given.out.write_text(json.dumps(about | counts | {"wrong": wrong, "trials": trials}, indent=1) + "\n", encoding="utf-8")
    shutil.rmtree(work)
    print(f"{counts}; wrong: {wrong}")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())

"""Kill a run with -9 at random moments, go on, and compare what it ends with to a run that nobody killed.

    python examples/reliability.py --kills 100            # some minutes; prints a line a kill, and writes docs/results/kills.json

Plain, boosted and with a policy that learns, in turn. After every kill the store must open, and `distilkit verify` must find nothing; a run
that comes to its end must hold the same numbers as the one that was not killed, but for seconds. Exit code 1 where one does not.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import distilkit as dk
from distilkit.storage import verify

ROOT = Path(__file__).resolve().parents[1]
SMALL = ["device=cpu", "threads=1", "evaluation.seeds=2", "evaluation.steps=[20]", "evaluation.every=20"]
RUNS = {
    "plain": ("digits.toml", ["outer.steps=150"]),
    "boosted": ("boost_digits.toml", ["boost.steps=40", "evaluation.every=40"]),
    "several networks": ("digits.toml", ["outer.steps=60", "unroller.networks_per_step=2", "learner.learn_lr=true"]),
}


def command(spec: str, settings: list[str], out: Path) -> list[str]:
    """Of one run."""
    changes = [f"--set={one}" for one in (*SMALL, *settings)]
    return [sys.executable, "-m", "distilkit", "run", str(ROOT / "examples" / spec), "--out", str(out), *changes]


def differences(left: Path, right: Path) -> list[str]:
    """What two runs hold that is not the same, but for seconds."""
    a, b, found = dk.open(left), dk.open(right), []
    for group in sorted({*a.children, *b.children}):
        if group not in a.children or group not in b.children:
            found.append(group)
            continue
        for name, array in a[group].to_dataset().variables.items():
            other = b[group].to_dataset().variables.get(name)
            if name != "seconds" and (other is None or not np.array_equal(array.values, other.values, equal_nan=array.dtype.kind == "f")):
                found.append(f"{group}/{name}")
    return found


def main() -> int:
    """Kill, go on, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "kills.json")
    given = parser.parse_args()
    chance, work, log, bad = random.Random(given.seed), Path(tempfile.mkdtemp()), [], 0
    seconds = {}
    for name, (spec, settings) in RUNS.items():
        began = time.monotonic()
        subprocess.run(command(spec, settings, work / f"whole-{name}"), check=True, capture_output=True)
        seconds[name] = time.monotonic() - began
    names, kills, ended = list(RUNS), 0, 0
    while kills < given.kills:
        name = names[ended % len(names)]
        out = work / f"killed-{name}"
        process = subprocess.Popen(command(*RUNS[name], out), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        try:
            said = process.communicate(timeout=chance.uniform(0.2, 1.2) * seconds[name])[1]
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            kills += 1
            entry: dict[str, Any] = {"kill": kills, "run": name}
            if (out / "results.zarr").exists() or (out / "results.zarr.old").exists():
                tree, (_, wrong) = dk.open(out), verify(out)
                done = {g: tree[g].sizes.get("outer_step") for g in ("history",)}["history"]
                entry |= {"outer_steps": done, "damage": wrong, "groups": sorted(tree.children)}
                bad += bool(wrong)
            log.append(entry)
            print(json.dumps(entry), flush=True)
            continue
        wrong = [said.strip()] if process.returncode else differences(work / f"whole-{name}", out)
        ended, bad = ended + 1, bad + bool(wrong)
        log.append({"run": name, "ended": True, "differences": wrong})
        print(json.dumps(log[-1]), flush=True)
        shutil.rmtree(out)
    about = {"date": datetime.date.today().isoformat(), "torch": torch.__version__, "machine": platform.machine(), "kills": kills}
    given.out.write_text(json.dumps(about | {"ended": ended, "bad": bad, "log": log}, indent=1) + "\n", encoding="utf-8")
    shutil.rmtree(work)
    print(f"{kills} kills, {ended} runs came to their end, {bad} of all that went wrong")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())

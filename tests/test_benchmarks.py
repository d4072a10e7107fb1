"""Every benchmark runs, in small, and leaves numbers and a picture."""

import importlib
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# gpu_first runs `ways`.
SCRIPTS = sorted(path for path in (ROOT / "examples/benchmarks").glob("*.py") if path.stem not in ("common", "ways"))


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_runs_in_small(script, tmp_path):
    command = [sys.executable, str(script), "--quick", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stdout + done.stderr
    for name in (script.stem, *(["gpu_first-ways"] if script.stem == "gpu_first" else [])):
        record = json.loads((tmp_path / f"{name}.json").read_text())
        assert record["rows"]
        assert {"question", "n", "versions", "hardware", "date"} <= set(record)
        assert (tmp_path / f"{name}.png").stat().st_size > 5000


@pytest.mark.slow
def test_the_ablation_goes_on(tmp_path):
    """Three runs in two calls: what is there is not run again. A seed more takes fewer steps or more, and is drawn in the same figure."""
    script, out = ROOT / "examples/ablation.py", tmp_path / "ablation.json"
    command = [sys.executable, str(script), "--data", "digits", "--seconds", "0.5", "--networks", "2", "--threads", "1", "--out", str(out)]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    for ways, *more in (["RaT-BPTT"], "--seeds", "0", "1"), (["RaT-BPTT", "short inner runs first"], "--workers", "2"):
        done = subprocess.run([*command, *more, "--only", *ways], capture_output=True, text=True, check=False, env=env)
        assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(out.read_text())
    assert [(one["way"], one["seed"]) for one in found] == [("RaT-BPTT", 0), ("RaT-BPTT", 1), ("short inner runs first", 0)]
    for one in found:
        looks = one["looks"]
        assert looks["outer_step"][-1] == one["outer_steps"]
        assert looks["seconds"][-1] == pytest.approx(one["seconds"])
        assert sorted(looks["seconds"]) == looks["seconds"]
        assert 0.1 < one["mean"] <= 1
    assert (tmp_path / "ablation-digits.png").stat().st_size > 5000


def test_several_processes_add_to_the_ablation(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    add = importlib.import_module("ablation").add
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: add(tmp_path / "found.json", {"seed": number}), range(40)))
    assert sorted(one["seed"] for one in json.loads((tmp_path / "found.json").read_text())) == list(range(40))


def test_every_way_of_the_ablation_is_a_pipeline(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    ablation = importlib.import_module("ablation")
    for data in ablation.SPECS:
        made = [ablation.pipeline(data, way, 0, 30, 2, 1) for way in ablation.ways_of(data)]
        assert len({repr(one) for one in made}) == len(made)
    ten = ablation.pipeline("cifar10", "RaT-BPTT", 0, 30, 2, 1, per_class=10)
    assert (ten.images.per_class, ten.learner.batch_per_class) == (10, 1)

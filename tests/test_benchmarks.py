"""Every benchmark runs, in small, and leaves numbers and a picture."""

import importlib
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.commands import Forked, script

ROOT = Path(__file__).resolve().parents[1]
# gpu_first runs `ways`.
SCRIPTS = sorted(path for path in (ROOT / "examples/benchmarks").glob("*.py") if path.stem not in ("common", "ways"))


@pytest.mark.slow
@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_runs_in_small(path, tmp_path):
    done = Forked(script, path, "--quick", "--out", tmp_path, folder=tmp_path / "said", PYTHONPATH=str(ROOT)).done()
    assert done.returncode == 0, done.stdout + done.stderr
    for name in (path.stem, *(["gpu_first-ways"] if path.stem == "gpu_first" else [])):
        record = json.loads((tmp_path / f"{name}.json").read_text())
        assert record["rows"]
        assert {"question", "n", "versions", "hardware", "date"} <= set(record)
        assert (tmp_path / f"{name}.png").stat().st_size > 5000


def test_a_case_is_measured_in_a_process_of_its_own(monkeypatch, tmp_path):
    """Without --quick. What it says last is the result, and how it ended is told."""
    monkeypatch.syspath_prepend(str(ROOT / "examples/benchmarks"))
    common = importlib.import_module("common")
    lines = ["import json, os, sys", "case = json.loads(sys.argv[2])", "exec(case['first'])", "print('on the way')"]
    (tmp_path / "measure.py").write_text("\n".join([*lines, "print(json.dumps([sys.argv[1], os.getpid(), os.environ['SET']]))"]))
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "measure.py")])
    word, number, setting = common.fresh({"first": ""}, {"SET": "so"})
    assert (word, setting) == ("--case", "so")
    assert number != os.getpid()
    with pytest.raises(common.CaseError, match="ValueError: too large"):
        common.fresh({"first": "raise ValueError('too large')"})
    with pytest.raises(common.CaseError, match="killed by SIGKILL"):
        common.fresh({"first": "os.kill(os.getpid(), 9)"})


@pytest.mark.slow
def test_the_ablation_goes_on(tmp_path):
    """Three runs in two calls: what is there is not run again. A seed more takes fewer steps or more, and is drawn in the same figure."""
    out = tmp_path / "ablation.json"
    given = ["--data", "digits", "--seconds", "0.2", "--networks", "1", "--threads", "1", "--out", out]
    for ways, *more in (["RaT-BPTT"], "--seeds", "0", "1"), (["RaT-BPTT", "short inner runs first"], "--workers", "2"):
        words = [ROOT / "examples/ablation.py", *given, *more, "--only", *ways]
        done = Forked(script, *words, folder=tmp_path / f"said {len(ways)}", PYTHONPATH=str(ROOT)).done()
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

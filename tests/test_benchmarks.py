"""Every benchmark runs, in small, and leaves numbers and a picture."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted(path for path in (ROOT / "examples/benchmarks").glob("*.py") if path.stem != "common")


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_runs_in_small(script, tmp_path):
    command = [sys.executable, str(script), "--quick", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads((tmp_path / f"{script.stem}.json").read_text())
    assert record["rows"]
    assert {"question", "n", "versions", "hardware", "date"} <= set(record)
    assert (tmp_path / f"{script.stem}.png").stat().st_size > 5000

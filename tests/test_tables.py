"""Tables of pages that are made of data files: what they tell of records whose answers are known."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import distilkit as dk
from distilkit import spec as specs
from tests import commands
from tests.scripts import script

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def tables(tmp_path, monkeypatch):
    module = script(ROOT / "docs/tools/tables.py", "tables")
    monkeypatch.setattr(module, "RESULTS", tmp_path)
    return module


def ablated(way, seed, mean, curve):
    return {
        "data": "cifar10",
        "way": way,
        "seed": seed,
        "budget": 60.0,
        "width": 128,
        "mean": mean,
        "judges": 192,
        "per_class": 1,
        "wider": {"width": 192, "values": [mean + 0.05, mean + 0.15]},
        "outer_steps": 30,
        "seconds": 60.0,
        "looks": {"outer_step": [10, 20, 30], "seconds": [20.0, 40.0, 60.0], "accuracy": curve},
        "hardware": "a processor",
        "threads": 1,
        "torch": "2.14.1",
    }


def test_the_ablation_says_when_a_way_is_where_the_papers_ends(tables, tmp_path):
    """RaT-BPTT ends at a mean of 0.31: one way is there at the second look in the mean, the other never."""
    record = [
        ablated("RaT-BPTT", 0, 0.29, [0.1, 0.2, 0.30]),
        ablated("RaT-BPTT", 1, 0.31, [0.1, 0.2, 0.32]),
        ablated("better", 0, 0.40, [0.2, 0.30, 0.4]),
        ablated("better", 1, 0.42, [0.2, 0.33, 0.4]),
        ablated("worse", 0, 0.25, [0.1, 0.2, 0.25]),
    ]
    (tmp_path / "ablation.json").write_text(json.dumps([*record, ablated("RaT-BPTT", 0, 0.5, [0.5, 0.5, 0.5]) | {"per_class": 10}]))
    lines = tables.on_page_markdown("<!-- table: ablation -->").splitlines()
    assert "test accuracy at width 192" in lines[0]
    assert lines[2:5] == [
        "| better | 41.0 ± 1.4 | 51.0 ± 1.4 | 2 | 40.0 | 30 | 60 | 40 s |",
        "| RaT-BPTT | 30.0 ± 1.4 | 40.0 ± 1.4 | 2 | 31.0 | 30 | 60 | 60 s |",
        "| worse | 25.0 | 35.0 | 1 | 25.0 | 30 | 60 | never |",
    ]
    assert lines[6] == "*cifar10, one image a class: 60 s of outer steps planned, width 128; a processor, one thread, torch 2.14.1.*"
    assert lines[10].startswith("| RaT-BPTT | 50.0 |")
    assert lines[12].startswith("*cifar10, 10 images a class: 60 s")
    (tmp_path / "ablation.json").write_text(json.dumps([record[0] | {"wider": None, "judges": 128}]))
    assert "at width" not in tables.on_page_markdown("<!-- table: ablation -->").splitlines()[0]


def test_labels_stand_side_by_side(tables, tmp_path):
    rows = [
        {"images": "distilled", "labels": "soft", "values": [0.4, 0.5]},
        {"images": "distilled", "labels": "hard", "values": [0.3, 0.3]},
        {"images": "random real", "labels": "hard", "values": [0.1, 0.2]},
    ]
    one = {"row": "CIFAR-10, 1", "set": "fast/x", "teacher": {"steps": 7, "accuracy": 0.8}, "rows": rows}
    one |= {"hardware": "a processor", "torch": "2.14.1", "date": "2026-11-27"}
    (tmp_path / "labels.json").write_text(json.dumps({"sets": [one]}))
    lines = tables.on_page_markdown("<!-- table: labels -->").splitlines()
    assert lines[2] == "| CIFAR-10, 1 | distilled | 30.0 ± 0.0 (2) | 45.0 ± 7.1 (2) |"
    assert lines[3] == "| CIFAR-10, 1 | random real | 15.0 ± 7.1 (2) |  |"
    assert "the teacher has 80.0 % after 7 steps" in lines[5]


def test_the_share_of_signal_stands_by_set_and_frequency(tables, tmp_path):
    part = {"share": 0.017, "error": 0.0037, "length": 1.0}
    one = {"set": "fast/x", "batch_size": 500, "draws": 40, "images": part, "labels": part | {"share": 0.2}, "truncation": "FullUnroll(40)"}
    one |= {
        "bands": [part | {"from": 0}, part | {"from": 4, "share": -0.001}],
        "hardware": "a processor",
        "torch": "2.14.1",
        "date": "today",
    }
    (tmp_path / "signal.json").write_text(json.dumps({"sets": [one, one | {"set": "vectors", "bands": []}]}))
    lines = tables.on_page_markdown("<!-- table: signal -->").splitlines()
    assert lines[2] == "| `fast/x` | 500 | 40 | 1.7 ± 0.4 | 20.0 ± 0.4 | 1.7 ± 0.4 | -0.1 ± 0.4 |"
    assert lines[3] == "| `vectors` | 500 | 40 | 1.7 ± 0.4 | 20.0 ± 0.4 |  |  |"


def test_what_pictures_cost_is_measured(digits_run, monkeypatch, tmp_path, tables):
    """Each way is judged once, those that change nothing alike, and what was found is a table."""
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    measure = importlib.import_module("pictures_cost")
    out = tmp_path / "pictures.json"
    monkeypatch.setattr(sys, "argv", ["pictures_cost.py", str(digits_run), "--networks", "2", "--out", str(out)])
    measure.main()
    measure.main()
    (found,) = json.loads(out.read_text())["sets"]
    assert specs.loads(found["spec"]).evaluation.seeds == 2
    made, data = dk.load(digits_run), dk.Digits().load(dk.Stream(0))
    ways = measure.ways(made, data)
    assert [row["way"] for row in found["rows"]] == list(ways)
    looks = [one.preprocessing.inverse(one.images) for one in ways.values()]
    assert (looks[1] - looks[0]).abs().max() <= 0.5 / 255 + 1e-6
    assert torch.allclose(looks[2], looks[0].clamp(0, 1), atol=1e-6)
    assert torch.allclose(looks[3], looks[4], atol=1e-6)
    assert found["outside"] == pytest.approx(((looks[0] - looks[2]).abs() > 0).float().mean())
    for one in list(ways.values())[5:]:
        assert one.label_space == "one-hot"
        assert torch.equal(one.labels, torch.eye(10)[one.classes])
    lines = tables.on_page_markdown("<!-- table: pictures -->").splitlines()
    assert lines[0] == f"| the set | {found['title']} |"
    assert lines[2].startswith("| as it is | ")


def test_the_share_of_signal_is_measured(monkeypatch):
    """Of planted signal, what was planted; on digits, of all frequencies together what all images have, as Parseval says."""
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    measure = importlib.import_module("signal_share")
    random = np.random.default_rng(0)
    found = measure.share(random.normal(size=(100, 30, 10)) + 0.1 * np.ones(10))  # 0.01 of 1.01
    assert abs(found["share"] - 0.01 / 1.01) < 4 * found["error"] < 0.02
    shares = [measure.share(random.normal(size=(20, 300))) for _ in range(200)]
    assert 0.9 < np.std([one["share"] for one in shares]) / np.mean([one["error"] for one in shares]) < 1.1
    images, labels, at = measure.drawn(specs.load(ROOT / "examples/digits.toml"), 6, dk.Silent())
    assert (images.shape[1:], labels.shape) == (at.shape, (6, 10, 10))
    assert len({one.tobytes() for one in images}) == 6
    bands = measure.by_frequency(images, at)
    assert sum(band["length"] ** 2 for band in bands) == pytest.approx(measure.share(images)["length"] ** 2)
    assert sum(band["share"] * band["length"] ** 2 for band in bands) == pytest.approx(
        measure.share(images)["share"] * measure.share(images)["length"] ** 2
    )


@pytest.mark.slow
def test_what_the_labels_give_is_measured(tmp_path):
    """On digits: the script runs, its numbers are accuracies of both kinds of labels, and take the place of earlier ones of that set."""
    spec = ROOT / "examples/digits.toml"
    run, out = tmp_path / "run", tmp_path / "labels.json"
    specs.load(spec, ["outer.steps=30", "evaluation.every=0", "evaluation.seeds=2", "evaluation.baselines=[]"]).run(run)
    words = [ROOT / "examples/labels.py", run, "--row", "digits, 1", "--teacher-steps", "300", "--out", out]
    others = [{"row": "digits, 1", "set": str(run), "rows": []}, {"row": "digits, 10", "set": str(run), "rows": []}]
    out.write_text(json.dumps({"sets": others}))
    done = commands.Forked(commands.script, *words, folder=tmp_path / "said").done()
    assert done.returncode == 0, done.stdout + done.stderr
    other, found = json.loads(out.read_text())["sets"]
    assert other == others[1]
    rows = {(row["images"], row["labels"]): row["mean"] for row in found["rows"]}
    assert len(rows) == 8
    assert rows["distilled", "soft"] > 0.5
    assert all(0.1 < mean < 1 for mean in rows.values())
    assert found["teacher"]["accuracy"] > 0.85


def test_a_gradient_study_tells_what_a_second_gains_where_it_can_be_told(tables, tmp_path):
    """One draw at 0.5 ± 0.1 in two seconds; one that is not told from zero; one that has no error at all."""
    names = (
        "optimizer,outer_step,policy,variance,variance_error,variance_clipped,cosine,cosine_error,alignment,alignment_error,seconds_median"
    )
    rows = ["Adam,0,one,2,1,2,0.9,0.1,0.5,0.1,2", "Adam,0,two,2,1,2,1.29,0.6,0.1,0.1,2", "Adam,0,three,2,1,2,1.01,0.02,,,0.25"]
    (tmp_path / "a-study.csv").write_text("\n".join([names, *rows]) + "\n")
    lines = tables.on_page_markdown("<!-- table: gradients of a_study -->").splitlines()
    assert lines[0].endswith("| one draw | seconds | gain a second, % |")
    assert [line.split(" | ", 4)[-1] for line in lines[2:5]] == [
        "0.90 | 0.50 ± 0.10 | 2 | 12 |",
        "not told | 0.10 ± 0.10 | 2 | not told |",  # no cosine is 1.29
        "1.00 | not told | 0.25 | not told |",
    ]

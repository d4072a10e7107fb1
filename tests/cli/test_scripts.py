"""`--quiet` and `--json`: what a script is told is what is stored, and nothing stands beside it."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

import distilkit as dk
from distilkit import recipes, spec
from distilkit.cli.output import json_value
from distilkit.runs import estimate
from tests.cli.test_cli import GOOD
from tests.cli.test_study_commands import SPEC as BOOSTED
from tests.commands import distilkit

PAGE = Path(__file__).parents[2] / "docs" / "scripts.md"


@pytest.fixture
def place(tmp_path, digits_run):
    """A folder with two specs and a finished run."""
    (tmp_path / "tiny.toml").write_text(GOOD)
    (tmp_path / "boosted.toml").write_text(BOOSTED)
    shutil.copytree(digits_run, tmp_path / "run")
    return tmp_path


def not_json(word):
    raise AssertionError(f"{word} is not JSON")


def read(text):
    """JSON, and strictly so: without NaN."""
    return json.loads(text, parse_constant=not_json)


def same_accuracies(row, values):
    """Whether a row holds these accuracies, with the mean and the deviation that numpy gives."""
    numbers = np.asarray(values, float)
    assert row["accuracy"] == numbers.tolist()
    assert row["mean"] == pytest.approx(numbers.mean())
    assert row["std"] == pytest.approx(numbers.std(ddof=1))
    assert row["diverged"] == 0


def is_run(found, place, folder="run", status="finished"):
    tree = dk.open(place / folder)
    assert (found["folder"], found["status"], found["title"]) == (folder, status, tree.attrs["title"])
    assert found["outer_steps"] == tree["history"].sizes["outer_step"]
    assert found["seconds"] == pytest.approx(float(tree["history"]["seconds"].sum()))
    assert found["set"]["outer_step"] == tree["distilled"].attrs["outer_step"]
    assert found["set"]["validation_accuracy"] == tree["distilled"].attrs["validation_accuracy"]
    looks = tree["evaluation"]["validation_accuracy"]
    assert [row["outer_step"] for row in found["validation"]] == looks["outer_step"].values.tolist()
    for row in found["validation"]:
        same_accuracies(row, looks.sel(outer_step=row["outer_step"]))
    steps = json.loads(tree["evaluation"].attrs["protocol"])["selected_training_steps"]
    assert found["set"]["training"]["steps"] == steps
    beside = json.loads(tree["baselines"].attrs["protocol"])["selected_training_steps"]
    stored = {"distilled": (10, steps, tree["evaluation"]["accuracy"])}
    for name, images in (("random real", 10), ("full data", None)):
        stored[name] = (images, beside[name], tree["baselines"]["accuracy"].sel(baseline=name))
    assert [row["trained_on"] for row in found["tests"]] == list(stored)
    for row in found["tests"]:
        images, selected, values = stored[row["trained_on"]]
        assert (row["images"], row["training_steps"]) == (images, selected)
        same_accuracies(row, values)
    assert {Path(path).name for path in found["files"]} == {"spec.toml", "results.zarr", "distilled.png", "history.png"}
    assert all((place / path).exists() for path in found["files"])


def is_new_run(found, place):
    is_run(found, place, "new")


def is_evaluation(found, place):
    result = dk.open(place / "judged")["evaluation"].to_dataset()
    assert (found["folder"], found["data"], found["test_images"]) == ("judged", result.attrs["data"], result.attrs["test_images"])
    rows = [(row["trained_on"], row["training_steps"]) for row in found["tests"]]
    assert rows == [("distilled", 3), ("distilled", 5), ("random real", 3), ("random real", 5)]
    for row in found["tests"]:
        values = result["accuracy"] if row["trained_on"] == "distilled" else result["baseline_accuracy"].sel(baseline="random real")
        same_accuracies(row, values.sel(training_steps=row["training_steps"]))
    (selected,) = found["selected"]
    assert (selected["network"], selected["training_steps"]) == (None, int(result["selected_steps"]))
    assert selected["paper_protocol"] == float(result["paper_protocol"])
    same_accuracies(selected, result["accuracy"].sel(training_steps=selected["training_steps"]))
    assert found["scores"] == {}


def is_spec(found, place):
    loaded = spec.load(place / "tiny.toml", ["outer.steps=7"])
    assert found["outer"]["steps"] == 7
    assert found == json_value(spec.to_tree(loaded))


def is_plan(found, place):
    planned = dk.plan(spec.load(place / "tiny.toml"), probe=False)
    assert (found["longest_window"], found["outer_steps"], found["seconds"]) == (3, 4, None)
    assert (found["trajectory_bytes"], found["step_peak"]) == (planned.trajectory_bytes, planned.step_peak)
    assert found["fits"] is True
    assert found["peak"] < found["available"]


def is_recipes(found, place):
    assert [one["name"] for one in found["recipes"]] == recipes.names()
    own = next(one for one in found["recipes"] if one["name"] == "fast/cifar10-ipc1")
    assert (own["per_class"], own["set_is_here"]) == (1, True)


def is_verified(found, place):
    assert (found["run"], found["whole"], found["damage"]) == ("run", True, [])
    assert any("checkpoint" in line for line in found["checked"])


def is_doctor(found, place):
    by_name = {one["what"]: one for one in found["findings"]}
    assert by_name["memory"]["number"] > 2**20
    assert by_name["processor"]["number"] is None
    assert set(by_name["disk"]) == {"what", "found", "advice", "number"}


def is_subsets(found, place):
    grid = dk.open(place / "run" / "subsets-random").to_dataset()
    assert (found["folder"], found["computed"]) == ("run/subsets-random", 1.0)
    (row,) = found["rows"]
    own = grid["accuracy"].sel(network=row["network"], budget=row["images_per_class"])
    assert row["mean"] == pytest.approx(float(own.mean()))
    assert row["std_over_draws"] == pytest.approx(float(own.mean("seed").std("draw", ddof=1)))
    assert all((place / path).is_file() for path in found["figures"])
    assert (place / found["store"]).is_dir()


def is_shard(found, place):
    assert (found["folder"], found["rows"], found["figures"]) == ("run/subsets-random", [], [])
    assert 0 < found["computed"] <= 1


def is_gradients(found, place):
    study = dk.open(place / "runs" / "tiny-gradients").to_dataset()
    assert len(found["rows"]) == study.sizes["policy"] * study.sizes["outer_step"]
    for row in found["rows"]:
        own = study.sel(policy=row["policy"], optimizer=row["optimizer"], outer_step=row["outer_step"])
        assert row["norm"] == pytest.approx(float(own["norm"].median()))
        assert row["variance"] == pytest.approx(float(own["variance"]))
        assert row["peak_memory"] == float(own["peak_memory"])


def is_intercorrelation(found, place):
    sources = dk.open(place / "runs" / "tiny-study")["sources"].to_dataset()
    assert len(found["rows"]) == sources.sizes["source"] * sources.sizes["budget"]
    for row in found["rows"]:
        own = sources["accuracy"].sel(source=row["source"], budget=row["images_per_class"])
        there = own.values[~np.isnan(own.values)]
        assert row["mean"] == (pytest.approx(there.mean()) if len(there) else None)
    assert len(found["figures"]) == 3


def is_file(name):
    def check(found, place):
        assert found["file"] == name
        assert (place / name).exists()

    return check


FEW = ["--draws", "2", "--seeds", "2"]
# name: (the command, what is checked of its document, the line that --quiet prints: None of a command that does not have it)
COMMANDS = {
    "run": (["run", "tiny.toml", "--out", "new"], is_new_run, "new\n"),
    "resume": (["resume", "run"], is_run, "run\n"),
    "show": (["show", "run"], is_run, None),
    "evaluate": (
        ["evaluate", "run", "--steps", "3,5", "--seeds", "3", "--baselines", "random real", "--out", "judged"],
        is_evaluation,
        "judged\n",
    ),
    "validate": (["validate", "tiny.toml", "--set", "outer.steps=7"], is_spec, ""),
    "plan": (["plan", "tiny.toml", "--no-probe"], is_plan, None),
    "recipes": (["recipes"], is_recipes, None),
    "verify": (["verify", "run"], is_verified, ""),
    "doctor": (["doctor"], is_doctor, None),
    "subsets": (["subsets", "run", "--budgets", "1", *FEW], is_subsets, "run/subsets-random\n"),
    "subsets in parts": (["subsets", "run", "--budgets", "1", *FEW, "--shard", "1/2"], is_shard, "run/subsets-random\n"),
    "new": (["new", "mine.toml"], is_file("mine.toml"), "mine.toml\n"),
    "export": (["export", "run", "set.safetensors"], is_file("set.safetensors"), "set.safetensors\n"),
    "sheet": (["sheet", "run", "--real", "0"], is_file("run/sheet.png"), "run/sheet.png\n"),
    "report": (["report", "run"], is_file("run/report.html"), "run/report.html\n"),
}
STUDIES = {
    "study gradients": (["study", "gradients", "boosted.toml", "--at", "0", "--replicates", "3"], is_gradients, "runs/tiny-gradients\n"),
    "study intercorrelation": (["study", "intercorrelation", "boosted.toml", "--draws", "2"], is_intercorrelation, "runs/tiny-study\n"),
}
ALL = [*COMMANDS, *(pytest.param(name, marks=pytest.mark.slow) for name in STUDIES)]


def documented():
    """The keys of the page, by command."""
    table = PAGE.read_text().partition("| command | keys |")[2].partition("| key |")[0]
    rows = re.findall(r"^\| (`[a-z ,`]+`) \| (.+) \|$", table, re.MULTILINE)
    return {name: re.findall(r"`(\w+)`", keys) for names, keys in rows for name in re.findall(r"`([a-z ]+)`", names)}


@pytest.mark.figures
@pytest.mark.parametrize("name", ALL)
def test_json_is_one_document_with_what_is_stored(name, place):
    words, check, quiet = (COMMANDS | STUDIES)[name]
    both = [] if quiet is None else ["--quiet"]
    done = distilkit(*words, "--json", *both, cwd=place)
    assert done.returncode == 0, done.stderr
    assert quiet is None or done.stderr == ""
    found = read(done.stdout)
    check(found, place)
    keys = documented()[re.match(r"[a-z]+( (?:gradients|intercorrelation))?", name)[0]]
    assert list(found) == (keys or list(found))
    assert keys or name == "validate"


@pytest.mark.parametrize("name", [name for name in COMMANDS if COMMANDS[name][2] is not None])
def test_quiet_says_where_the_result_is(name, place):
    words, _, expected = COMMANDS[name]
    done = distilkit(*words, "--quiet", cwd=place)
    assert (done.returncode, done.stdout, done.stderr) == (0, expected, "")
    assert not expected or (place / expected.strip()).exists()


def test_a_plan_that_does_not_fit_says_what_would(place, monkeypatch):
    monkeypatch.setattr("distilkit.runs.estimate._total", lambda device: 2**20)
    monkeypatch.setattr("distilkit.runs.estimate._held", lambda device: 0)
    monkeypatch.setattr("distilkit.runs.plan.plan", lambda distiller, **_: estimate.from_shapes(distiller))  # without what loading took
    found = read(distilkit("plan", "tiny.toml", "--no-probe", "--json", "--set", "learner.network.hidden=[2000]", cwd=place).stdout)
    assert (found["fits"], found["available"]) == (False, 2**20)
    for advice in found["advice"]:
        assert set(advice) == {"why", "name", "value", "option"}
        assert advice["option"].startswith(f"--set {advice['name']}=")
    assert found["advice"]


@pytest.mark.figures
def test_progress_goes_to_the_errors(place):
    done = distilkit("run", "tiny.toml", "--json", "--out", "new", cwd=place)
    assert "distilling" in done.stderr
    is_new_run(read(done.stdout), place)


def test_a_run_that_was_stopped_says_so(place):
    done = distilkit("run", "tiny.toml", "--json", "--out", "new", "--stop-after", "0s", "--set", "evaluation.every=0", cwd=place)
    found = read(done.stdout)
    assert (done.returncode, found["status"], found["outer_steps"]) == (130, "stopped", 1)
    assert found["set"] == {"outer_step": 1, "validation_accuracy": None, "training": None}
    assert "tests" not in found
    assert "distilkit resume new" in done.stderr
    quiet = distilkit("resume", "new", "--quiet", "--stop-after", "0s", cwd=place)
    assert (quiet.returncode, quiet.stdout) == (130, "new\n")


def test_damage_is_in_the_document(place):
    chunk = next((place / "run" / "results.zarr" / "distilled" / "image").glob("c.*"))
    chunk.write_bytes(chunk.read_bytes()[:-1] + b"\x00")
    done = distilkit("verify", "run", "--json", cwd=place)
    found = read(done.stdout)
    assert (done.returncode, found["whole"]) == (2, False)
    assert found["damage"]
    assert "is damaged" in done.stderr


def test_an_error_prints_no_document(place):
    done = distilkit("run", "tiny.toml", "--json", "--set", "outer.stepz=3", cwd=place)
    assert (done.returncode, done.stdout) == (2, "")
    assert "outer.steps" in done.stderr


def test_quiet_tells_a_warning(place, monkeypatch):
    def cannot(*_):
        raise ValueError("no ink")

    monkeypatch.setattr("distilkit.runs.run.save_figures", cannot)
    done = distilkit("run", "tiny.toml", "--quiet", "--out", "new", cwd=place)
    assert (done.returncode, done.stdout) == (0, "new\n")
    assert "no ink" in done.stderr


def test_quiet_without_a_result_is_refused(place):
    done = distilkit("evaluate", "run", "--quiet", cwd=place)
    assert done.returncode == 2
    assert "Try: --out runs/run-judged" in done.stderr


def test_what_json_has_no_word_for():
    given = {"nan": np.float32("nan"), "inf": [float("inf")], "whole": np.int64(3), "yes": np.bool_(True), 1: (np.array([0.5]), dk.Silent)}
    assert json_value(given) == {"nan": None, "inf": [None], "whole": 3, "yes": True, "1": [[0.5], str(dk.Silent)]}

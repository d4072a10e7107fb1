"""The command line as a person meets it: its exit code and its words. Some tests start a process, the others need none."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import xarray as xr

from tests.commands import distilkit

ROOT = Path(__file__).parents[2]

GOOD = """
title = "tiny"
[data]
kind = "Digits"
[learner.network]
kind = "MLP"
hidden = [12]
[learner.optimizer]
kind = "Adam"
lr = 0.01
[truncation]
kind = "RandomTruncation"
horizon = 6
window = 3
[outer]
steps = 4
[evaluation]
seeds = 2
steps = [5]
every = 2
"""


def process(*arguments, cwd=None):
    command = [sys.executable, "-W", "error", "-m", "distilkit", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=300)


@pytest.fixture
def spec(tmp_path):
    path = tmp_path / "good.toml"
    path.write_text(GOOD)
    return path


def test_run_makes_what_it_says(spec, tmp_path):
    done = process("run", spec, "--set", "outer.steps=3", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "tiny"
    tree = xr.open_datatree(folder / "results.zarr")
    assert tree["history"].sizes["outer_step"] == 3
    for word in ("validation accuracy", "distilled", "random real", "full data", "xarray.open_datatree"):
        assert word in done.stdout
    assert "Train on it   distilkit.load('runs/tiny').dataset(), for " in done.stdout
    assert (folder / "distilled.png").exists()
    drawn = distilkit("sheet", "runs/tiny", "--real", "0", "--out", "paper.pdf", cwd=tmp_path)
    assert drawn.returncode == 0, drawn.stderr
    assert "paper.pdf" in drawn.stdout
    assert (tmp_path / "paper.pdf").read_bytes().startswith(b"%PDF")
    assert distilkit("sheet", "runs/tiny", "--rows", "1", cwd=tmp_path).returncode == 0
    assert (folder / "sheet.png").exists()
    assert distilkit("sheet", "runs/tiny/results.zarr", "--which", "last", cwd=tmp_path).returncode == 0
    assert "Try: --which best" in distilkit("sheet", "runs/tiny", "--which", "bets", cwd=tmp_path).stderr
    assert "Try: --out runs/tiny/sheet.png" in distilkit("sheet", "runs/tiny", "--out", "runs/tiny", cwd=tmp_path).stderr
    refused = distilkit("sheet", "runs/tiny", "--out", "paper.docx", cwd=tmp_path)
    assert refused.returncode == 2
    assert "Try: --out paper.png" in refused.stderr
    again = distilkit("run", spec, "--set", "outer.steps=1", "--set", "evaluation.baselines=[]", cwd=tmp_path)
    assert again.returncode == 0
    assert (tmp_path / "runs" / "tiny-2" / "results.zarr").exists()


def test_run_refuses_a_folder_that_is_taken(spec, tmp_path):
    (tmp_path / "taken" / "results.zarr").mkdir(parents=True)
    done = distilkit("run", spec, "--out", tmp_path / "taken")
    assert done.returncode == 2
    assert "another run" in done.stderr
    assert "Traceback" not in done.stderr


def test_validate_prints_the_whole_spec(spec, tmp_path):
    done = distilkit("validate", spec)
    assert done.returncode == 0, done.stderr
    assert "eps_root" in done.stdout
    resolved = tmp_path / "resolved.toml"
    resolved.write_text(done.stdout)
    assert distilkit("validate", resolved).stdout.split("# ")[0] == done.stdout.split("# ")[0]


# name: (what is replaced in the good spec, by what, what the message must hold)
WRONG = {
    "text for a number": ("lr = 0.01", 'lr = "0.01"', ["learner.optimizer.lr", '"0.01"', "Try: lr = 0.01"]),
    "fraction for a whole number": ("steps = 4", "steps = 3.7", ["outer.steps", "3.7", "whole number"]),
    "true for a number": ("seeds = 2", "seeds = true", ["evaluation.seeds", "whole number"]),
    "unknown kind": ('kind = "MLP"', 'kind = "MLPP"', ["learner.network.kind", "MLPP", "MLP"]),
    "kind in lower case": ('kind = "Adam"', 'kind = "adam"', ["learner.optimizer.kind", "Adam"]),
    "unknown key": ("hidden = [12]", "hiden = [12]", ["learner.network.hiden", "hidden"]),
    "unknown table": ("[evaluation]", "[evalution]", ["evalution", "evaluation"]),
    "negative size": ("steps = 4", "steps = -4", ["outer.steps", "-4", "at least 1"]),
    "negative learning rate": ("lr = 0.01", "lr = -0.01", ["learner.optimizer.lr", "above 0"]),
    "zero eps_root": ("lr = 0.01", "eps_root = 0", ["learner.optimizer.eps_root", "above 0", "derivative"]),
    "window above horizon": ("window = 3", "window = 60", ["truncation", "60", "horizon = 6"]),
    "horizon left out": ("horizon = 6\n", "", ["truncation.horizon"]),
    "kind left out": ('kind = "RandomTruncation"\n', "", ["truncation", "kind", "RandomTruncation"]),
    "table left out": ('[data]\nkind = "Digits"\n', "", ["data", "Digits"]),
    "value for a table": ('[data]\nkind = "Digits"', 'data = "Digits"', ["data", "table"]),
    "number for a list": ("hidden = [12]", "hidden = 12", ["learner.network.hidden", "list"]),
    "word in a list": ("hidden = [12]", 'hidden = [12, "a"]', ["learner.network.hidden"]),
    "steps that fall": ("steps = [5]", "steps = [9, 5]", ["evaluation", "rise"]),
    "unknown choice": ('title = "tiny"', 'title = "tiny"\n[images]\nstart = "reel"', ["images.start", "real"]),
    "toml that is none": ("steps = 4", "steps = = 4", ["line 16", "steps = = 4"]),
    "text without quotes": ('title = "tiny"', "title = tiny", ["line 2", "title = tiny"]),
    "python without trust": ('kind = "Digits"', 'kind = "python"\ntarget = "a:b"', ["data", "--trust"]),
    "more than the images": (
        "[learner.network]",
        "[learner]\nbatch_per_class = 3\n[learner.network]",
        ["batch_per_class = 3", "per_class = 1"],
    ),
    "device that is none": ('title = "tiny"', 'title = "tiny"\ndevice = "cudda"', ["cudda", "auto"]),
}


@pytest.mark.parametrize("command", ["validate", "run"])
@pytest.mark.parametrize("name", WRONG)
def test_wrong_specs_are_explained(name, command, tmp_path):
    """Exit code 2, no traceback, nothing written, and a message that names the path and the way out."""
    before, after, words = WRONG[name]
    assert before in GOOD
    path = tmp_path / "wrong.toml"
    path.write_text(GOOD.replace(before, after, 1))
    done = distilkit(command, path, cwd=tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr, done.stderr
    assert not (tmp_path / "runs").exists()


def test_a_wrong_spec_as_a_process(tmp_path):
    path = tmp_path / "wrong.toml"
    path.write_text(GOOD.replace("lr = 0.01", "lr = -1"))
    done = process("run", path, cwd=tmp_path)
    assert (done.returncode, "Traceback" in done.stderr, "learner.optimizer.lr" in done.stderr) == (2, False, True)


def test_too_few_images_for_the_baselines_is_known_at_the_start(spec, tmp_path):
    done = distilkit("run", spec, "--set", "images.per_class=200", "--out", tmp_path / "run")
    assert done.returncode == 2
    assert "images.per_class=" in done.stderr
    assert not (tmp_path / "run" / "results.zarr").exists()


def test_a_run_that_could_not_begin_takes_no_name(spec, tmp_path):
    assert distilkit("run", spec, "--set", "images.per_class=200", cwd=tmp_path).returncode == 2
    done = distilkit("run", spec, "--set", "outer.steps=1", "--set", 'evaluation.baselines=["random real"]', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "tiny" / "results.zarr").exists()


def test_an_out_that_cannot_be_made(spec, tmp_path):
    (tmp_path / "file").write_text("")
    done = distilkit("run", spec, "--out", tmp_path / "file" / "run")
    assert done.returncode == 2
    assert "cannot be written: Not a directory" in done.stderr


def test_progress_fits_80_columns():
    """Step, outer loss, norm of the meta-gradient, validation accuracy and time left."""
    import io

    from rich.console import Console

    from distilkit.display import Display

    shown = io.StringIO()
    with Display(Console(file=shown, width=80, force_terminal=True)) as display:
        display.phase("distilling")
        display.value("loss", 1.234)
        display.value("|g|", 0.0123)
        display.value("validation accuracy", [0.9, 0.92])
        display.advance(123, 400)
    line = shown.getvalue()
    for words in ("123/400", "loss 1.234", "|g| 1.2e-02", "val 0.910", "left", ":--"):
        assert words in line, line


def test_accuracies_of_a_part_without_a_count_are_shown():
    """Those of `evaluate`, on a terminal; a part that counted nothing leaves no line."""
    import io

    from rich.console import Console

    from distilkit.display import Display

    shown = io.StringIO()
    with Display(Console(file=shown, width=120, force_terminal=True)) as display:
        display.phase("training 2 networks")
        display.value("test accuracy after 5 steps", [0.25, 0.35])
        display._progress.refresh()
        assert "0.300" in shown.getvalue()
    assert display._progress.tasks == []


def test_time_left_leaves_out_what_was_there_before():
    import io

    from rich.console import Console

    from distilkit.display import Display

    shown = io.StringIO()
    with Display(Console(file=shown, width=200)) as display:
        display.phase("a study")
        display.advance(899, 1000)
        display._began -= 10
        display.advance(900, 1000)
        display.advance(0, 0)
    assert "a study, 900 of 1000, about 500 s left" in shown.getvalue()


def test_all_errors_come_at_once(tmp_path):
    path = tmp_path / "wrong.toml"
    path.write_text(GOOD.replace("lr = 0.01", "lr = -1").replace("steps = 4", "steps = 0").replace("hidden", "hiden"))
    done = distilkit("validate", path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    for place in ("learner.optimizer.lr", "outer.steps", "learner.network.hiden"):
        assert place in done.stderr


def test_a_missing_file_names_its_neighbours(tmp_path, spec):
    done = distilkit("run", tmp_path / "god.toml")
    assert done.returncode == 2
    assert "good.toml" in done.stderr
    assert "Traceback" not in done.stderr


def test_set_goes_through_the_same_checks(spec):
    done = distilkit("validate", spec, "--set", "outer.stepz=3", "--set", "truncation.window=7")
    assert done.returncode == 2
    assert "outer.steps" in done.stderr
    assert "Try: --set truncation.window=6" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.toml")), ids=lambda path: path.stem)
def test_an_example_is_a_valid_spec(path):
    done = distilkit("validate", path)
    assert done.returncode == 0, done.stderr
    assert f"{path} is a valid spec" in done.stdout


def test_the_same_command_goes_on_and_fresh_begins_anew(tmp_path):
    """Without --out: stopped at once, then resumed by the same command; another seed and --fresh take folders of their own."""
    spec = tmp_path / "tiny.toml"
    spec.write_text(GOOD)
    stopped = distilkit("run", spec, "--stop-after", "0s", cwd=tmp_path)
    assert stopped.returncode == 130
    assert "distilkit resume runs/tiny" in stopped.stderr
    assert distilkit("resume", "runs/tiny", "--stop-after", "1h", cwd=tmp_path).returncode == 0
    again = distilkit("run", spec, cwd=tmp_path)
    assert again.returncode == 0
    assert "is finished" in again.stdout
    assert distilkit("run", spec, "--set", "seed=1", cwd=tmp_path).returncode == 0
    assert distilkit("run", spec, "--fresh", cwd=tmp_path).returncode == 0
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["tiny", "tiny-2", "tiny-3"]
    more = distilkit("resume", "runs/tiny", "--set", "outer.steps=5", cwd=tmp_path)
    assert more.returncode == 0
    assert xr.open_datatree(tmp_path / "runs" / "tiny" / "results.zarr")["history"].sizes["outer_step"] == 5


@pytest.mark.parametrize(
    ("arguments", "words"),
    {
        "no time": (["run", "SPEC", "--stop-after", "soon"], "a time such as 90s"),
        "no run": (["resume", "nowhere"], "the path does not exist"),
        "no results": (["verify", "nowhere"], "the path does not exist"),
        "another run": (["resume", "runs/tiny", "--set", "seed=7"], "seed: 0 there, 7 here"),
    }.values(),
)
def test_what_cannot_go_on_says_why(arguments, words, tmp_path):
    spec = tmp_path / "tiny.toml"
    spec.write_text(GOOD)
    if "runs/tiny" in arguments:
        distilkit("run", spec, "--stop-after", "0s", cwd=tmp_path)
    done = distilkit(*(spec if word == "SPEC" else word for word in arguments), cwd=tmp_path)
    assert done.returncode == 2
    assert words in done.stderr


def test_seed_and_device_are_settings_like_others(tmp_path):
    (tmp_path / "tiny.toml").write_text(GOOD)
    by_name = distilkit("validate", "tiny.toml", "--seed", 3, "--device", "cpu", cwd=tmp_path)
    assert by_name.stdout == distilkit("validate", "tiny.toml", "--set", "seed=3", "--set", "device=cpu", cwd=tmp_path).stdout
    assert "seed = 3" in by_name.stdout
    assert distilkit("validate", "tiny.toml", "--set", "seed=2", "--seed", 3, cwd=tmp_path).stdout == by_name.stdout.replace(
        '"cpu"', '"auto"'
    )
    wrong = distilkit("validate", "tiny.toml", "--device", "gpu", cwd=tmp_path)
    assert (wrong.returncode, "device" in wrong.stderr) == (2, True)


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("run paper/cifar10-ipc5", "paper/cifar10-ipc50"),
        ("plan dig", "digits"),
        ("veri", "verify"),
        ("run mine.t", ""),
        ("subsets run --strategy pre", "prefix"),
    ],
)
def test_a_shell_completes_commands_and_recipes(typed, expected):
    """As bash asks for it; where nothing comes back, it completes files."""
    words = ["distilkit", *typed.split()]
    asked = {"_DISTILKIT_COMPLETE": "complete_bash", "COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1)}
    program = Path(sys.executable).with_name("distilkit")
    done = subprocess.run([program], capture_output=True, text=True, check=False, env=os.environ | asked)
    assert (done.stdout.split(), done.stderr) == (expected.split(), "")

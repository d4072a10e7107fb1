"""Specs and command lines as a tired person, a broken disk or somebody with bad intent may write them: words, soon, and nothing else."""

import io
import random
import re
import shutil
import sys
import time
from pathlib import Path

import pytest

import distilkit as dk
from distilkit import recipes, spec
from distilkit.cli import main
from distilkit.cli.tables import results_table
from distilkit.display import Console
from distilkit.errors import DistilkitError
from tests.commands import distilkit

EXAMPLES = Path(__file__).parents[2] / "examples"
VALUES = [
    *("", "0", "-1", "1e999", "-0.0", "nan", "inf", "1" + "0" * 400, "true", "3.5", '"x"', '""', "[]", "[1, [2]]", "{}", '{kind = "MLP"}'),
    *(
        "2026-11-26",
        "0x10",
        "1_0",
        "[1, 'a']",
        "{kind = 3}",
        '"../../etc/passwd"',
        '"\\u001b]0;owned\\u0007"',
        '"\\u0000"',
        '"' + "é" * 5000 + '"',
    ),
    *(
        '{kind = "python", target = "os:system"}',
        "[" * 50 + "]" * 50,
        "[" * 3000,
        '"""',
        "=",
        "#",
        "\x1b[31m",
        "\x00",
        "a.b",
        "9223372036854775808",
    ),
]
SLOWEST = 5.0  # seconds, for any of them


def hurt(text, chance):
    """The text of a spec with one to three things wrong."""
    for _ in range(chance.randint(1, 3)):
        lines = text.splitlines() or [""]
        at, how = chance.randrange(len(lines)), chance.randrange(8)
        key = lines[at].partition("=")[0] or "x "
        if how == 0:
            lines[at] = f"{key}= {chance.choice(VALUES)}"
        elif how == 1:
            del lines[at]
        elif how == 2:
            lines.insert(at, chance.choice(lines))
        elif how == 3:
            lines[at] = lines[at][: chance.randrange(len(lines[at]) + 1)]
        elif how == 4:
            place = chance.randrange(len(lines[at]) + 1)
            lines[at] = lines[at][:place] + chance.choice("\"'[]{}=.#\\\x00\x1b\u202e é9-,") + lines[at][place:]
        elif how == 5:
            lines[at] = re.sub(r"\w+", lambda word: word[0][::-1] if chance.random() < 0.3 else word[0], lines[at])
        elif how == 6:
            lines.insert(at, f"{key}= {chance.choice(VALUES)}")
        else:
            lines[at] = chance.choice(("[", "[[", "")) + key.strip() + chance.choice(("]", "]]", ".x = 1"))
        text = "\n".join(lines)
    return text


def in_words(done):
    """Whether a command ended as it should: done, or told in words without anything that a terminal would obey."""
    said = done.stdout + done.stderr
    return done.returncode in (0, 2) and "Traceback" not in said and not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", said)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(2))
def test_specs_with_anything_in_them(part, tmp_path):
    texts = [recipes.read(name) for name in recipes.names()] + [path.read_text() for path in sorted(EXAMPLES.glob("*.toml"))]
    chance, refused = random.Random(part), 0
    for number in range(500):
        text = hurt(chance.choice(texts), chance)
        (tmp_path / "spec.toml").write_bytes(text.encode("utf-8", "surrogatepass"))
        began = time.monotonic()
        if number % 10 == 0:  # most without the command, whose making takes as long again
            done = distilkit("validate", tmp_path / "spec.toml")
            assert in_words(done), (text, done)
            refused += done.returncode == 2
        else:
            try:
                spec.load(tmp_path / "spec.toml")
            except DistilkitError:
                refused += 1
        assert time.monotonic() - began < SLOWEST, text
    assert 250 < refused < 500
    assert [path.name for path in tmp_path.iterdir()] == ["spec.toml"]


DIGITS = EXAMPLES / "digits.toml"
MISTAKES = {  # a command, and what it says; RUN is a run
    "a whole number that no float holds": (["validate", DIGITS, "--set", f"learner.optimizer.lr={'1' * 400}"], "learner.optimizer.lr"),
    "an escape in a title": (["validate", DIGITS, "--set", 'title="\x1b]0;OWNED\x07"'], "without control characters"),
    "more threads than there can be": (["run", DIGITS, "--set", "threads=1000000"], "at most 1024"),
    "a number of images that is a word": (["subsets", "RUN", "--budgets", "a"], "--budgets 1,2,5"),
    "half an image": (["subsets", "RUN", "--budgets", "1.5"], "--budgets 1,2,5"),
    "an empty place in a list": (["subsets", "RUN", "--budgets", "1,,2"], "--budgets 1,2,5"),
    "the same twice": (["subsets", "RUN", "--budgets", "1,1"], "none twice"),
    "no draws": (["subsets", "RUN", "--draws", "0"], "draws"),
    "a step that is a word": (["study", "gradients", DIGITS, "--at", "a"], "--at 1,2,5"),
    "no step": (["study", "gradients", DIGITS, "--at", ""], "outer_steps"),
    "a network twice": (["evaluate", "RUN", "--networks", "MLP,MLP"], "MLP is there twice"),
    "what a run says itself": (["evaluate", "RUN", "--preprocessing", "nonsense"], "is a run, which says its preprocessing itself"),
    "and to export": (["export", "RUN", "set", "--label-space", "logit"], "is a run, which says its label space itself"),
    "an export to nowhere": (["export", "RUN", "", "--to", "safetensors"], "no name for a file"),
    "an export into a file": (["export", "RUN", "taken/set", "--to", "mtt"], "Not a directory"),
    "a file in the place of a folder": (["evaluate", "RUN", "--out", "taken"], "taken cannot be written"),
    "a file by the name of a store": (["evaluate", "RUN", "--out", "stored"], "stored holds results already"),
    "and where a run would go": (["run", DIGITS, "--out", "stored"], "stored holds the results of another run"),
    "a name that is no UTF-8": (["validate", "\udcff.toml"], r"\udcff.toml"),
    "or of a grid": (["subsets", "RUN", "--out", "taken"], "taken cannot be written"),
    "or of a study": (["study", "gradients", DIGITS, "--out", "taken"], "taken cannot be written"),
    "or of another": (
        ["study", "intercorrelation", EXAMPLES / "boost_digits.toml", "--out", "taken"],
        "taken cannot be written",
    ),
    "or of a run": (["run", DIGITS, "--out", "taken/run"], "cannot be written"),
    "a name of 300 letters": (["run", DIGITS, "--out", "x" * 300], "File name too long"),
    "a time that is none": (["run", DIGITS, "--stop-after", "soon"], "--stop-after 9m"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_told_before_the_work(name, digits_run, tmp_path):
    words, said = MISTAKES[name]
    (tmp_path / "taken").touch()
    (tmp_path / "stored").mkdir()
    (tmp_path / "stored" / "results.zarr").touch()
    done = distilkit(*(digits_run if word == "RUN" else word for word in words), cwd=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr
    assert in_words(done)
    assert "accuracy" not in done.stdout
    assert {path.name for path in tmp_path.rglob("*")} == {"taken", "stored", "results.zarr"}


def test_what_needs_many_times_the_memory_is_refused(tmp_path):
    done = distilkit("run", DIGITS, "--set", 'truncation={kind = "FullUnroll", horizon = 1000000000000}', cwd=tmp_path)
    assert done.returncode == 4
    assert "this cannot be done here" in done.stderr
    assert not list(tmp_path.rglob("spec.toml"))  # or the next try would find the folder taken
    assert "--set" in done.stderr


def test_a_title_from_a_file_moves_no_cursor(digits_run, tmp_path):
    """Of a store of somebody else, on a terminal."""
    tree = dk.open(digits_run)
    tree.attrs["title"] = "a\x1b]0;OWNED\x07\x9b2J"
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, color_system=None, width=200)
    console.print(results_table(tree))
    console.print(tree.attrs["title"])
    assert "\x1b]0" not in out.getvalue()
    assert "\x9b" not in out.getvalue()
    assert r"\x1b]0;OWNED" in out.getvalue()


def test_a_fault_of_ours_is_told_and_shown_where_asked_for(digits_run, monkeypatch, capsys):
    def broken(run):
        raise TypeError("a fault")

    monkeypatch.setattr("distilkit.storage.verify", broken)
    monkeypatch.setattr(sys, "argv", ["distilkit", "verify", str(digits_run)])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 1
    assert "TypeError: a fault" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["distilkit", "verify", "--debug", str(digits_run)])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 1
    assert "Traceback" in capsys.readouterr().err


def test_memory_that_runs_out_in_any_command_is_told(digits_run, monkeypatch):
    def full(run):
        raise MemoryError

    monkeypatch.setattr("distilkit.storage.verify", full)
    done = distilkit("verify", digits_run)
    assert done.returncode == 4
    assert "not enough memory" in done.stderr


WORDS = [
    "",
    " ",
    "a",
    "-1",
    "0",
    "1.5",
    "1,,2",
    "1e999",
    "9" * 400,
    "é" * 300,
    "x" * 5000,
    "../..",
    "/dev/null",
    "/proc/self/mem",
    "{",
    "[",
    "=",
    "a=",
    "=a",
]
WORDS += [
    "\x1b]0;owned\x07",
    "--",
    "-",
    "--set",
    "--help=",
    "a\0b",
    "$(touch owned)",
    "`touch owned`",
    "{kind='python'}",
    "nan",
    "\udcff",
    ".",
    "~",
    "*",
]
USES = {
    "run": (["{spec}"], ["--out", "--set", "--stop-after", "--fresh", "--trust"]),
    "resume": (["{run}"], ["--set", "--stop-after", "--trust"]),
    "validate": (["{spec}"], ["--set", "--trust"]),
    "plan": (["{spec}"], ["--set", "--no-probe", "--trust"]),
    "verify": (["{run}"], []),
    "recipes": ([], []),
    "recipes show": (["paper/cifar10-ipc1"], []),
    "evaluate": (
        ["{run}"],
        ["--data", "--recipe", "--format", "--label-space", "--preprocessing", "--steps", "--seeds", "--select", "--networks", "--lr"],
    ),
    "evaluate --set seed=1": (["{run}"], ["--baselines", "--ranking", "--seed", "--out", "--set", "--trust"]),
    "export": (["{run}", "{out}"], ["--to", "--format", "--label-space", "--preprocessing", "--data", "--plain"]),
    "import": (["{run}", "--out", "{out}"], ["--format", "--label-space", "--preprocessing", "--data"]),
    "subsets": (["{run}"], ["--budgets", "--draws", "--strategy", "--networks", "--seeds", "--out", "--trust"]),
    "study gradients": (["{spec}"], ["--at", "--replicates", "--policy", "--optimizer", "--out", "--set", "--trust"]),
    "study intercorrelation": (["{spec}"], ["--draws", "--influence", "--out", "--set", "--trust"]),
    "study": ([], []),
    "no such command": ([], []),
}


def line(chance, places):
    """A command with one to three things that are wrong, or odd."""
    name = chance.choice(list(USES))
    given, options = USES[name]
    words = [places.get(word, word) for word in given]
    for _ in range(chance.randint(1, 3)):
        how = chance.randrange(5) if words else 3
        if how == 0:
            words[chance.randrange(len(words))] = chance.choice(WORDS)
        elif how == 1:
            del words[chance.randrange(len(words))]
        elif how == 2 and options:
            words += [chance.choice(options)]
        else:
            words += [chance.choice(options or ["--nonsense"]), chance.choice(WORDS)]
    return [*name.split(), *words]


@pytest.mark.slow
@pytest.mark.parametrize("part", range(3))
def test_command_lines_with_anything_in_them(part, digits_run, tmp_path, monkeypatch):
    """The data of spec and run are not there, so that what slips through begins no work."""
    missing = 'kind = "CIFAR10"\nroot = "nowhere"\ndownload = false'
    path, run = tmp_path / "in" / "spec.toml", tmp_path / "in" / "run"
    run.parent.mkdir()
    path.write_text((EXAMPLES / "boost_digits.toml").read_text().replace('kind = "Digits"', missing))
    shutil.copytree(digits_run, run)
    (run / "spec.toml").write_text((run / "spec.toml").read_text().replace('kind = "Digits"', missing))
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "in").rglob("*")}
    chance, beside = random.Random(part), {path.name for path in tmp_path.parent.iterdir()}
    for number in range(100):
        cwd = tmp_path / "cwd" / str(number)
        cwd.mkdir(parents=True)
        words = line(chance, {"{spec}": path, "{run}": run, "{out}": cwd / "set"})
        began = time.monotonic()
        done = distilkit(*words, cwd=cwd)
        assert in_words(done), (words, done)
        assert time.monotonic() - began < SLOWEST, words
        assert {path for path in cwd.rglob("*") if path.name == "owned"} == set()
    assert not any(home.iterdir())
    assert {path.name for path in tmp_path.iterdir()} == {"in", "home", "cwd"}
    assert {path.name for path in tmp_path.parent.iterdir()} == beside
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "in").rglob("*")} == before

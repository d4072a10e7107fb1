"""What a command tells of itself: an example that can be typed, options that are called alike, and what to type where a word is none."""

import shlex
import shutil

import pytest
import typer.main

from distilkit.cli.app import app
from tests.commands import distilkit
from tests.test_docs import parser


def commands_in(group, above=()):
    """All commands, by the words that call them."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands_in(command, (*above, name))
        else:
            yield (*above, name), command


COMMANDS = dict(commands_in(typer.main.get_command(app)))
# What is shown is all that comes of it; or it prints one document.
NOT_QUIET = {("plan",), ("show",), ("doctor",), ("schema",), ("recipes", "show")}


def example(words):
    epilog = COMMANDS[words].epilog or ""
    assert epilog.startswith(f"Example: distilkit {' '.join(words)}")
    return shlex.split(epilog.removeprefix("Example: distilkit "))


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_has_an_example_and_the_options_that_all_have(words):
    parser(typer.main.get_command(app)).main(example(words), "distilkit", standalone_mode=False)
    options = {option for parameter in COMMANDS[words].params for option in parameter.opts}
    assert len("Example: distilkit ") + len(COMMANDS[words].epilog) < 95  # one line of most terminals
    assert "--json" in options or words in {("schema",), ("recipes", "show")}
    assert "--quiet" in options or words in NOT_QUIET
    assert ("--device" in options) == ("--trust" in options) or words == ("sheet",)  # what reads a spec to compute
    assert "--set" in options or "--trust" not in options
    assert "--quiet" not in options or {"--out", "--set", "out", "path", "run"} & options


# In this order: import reads what export has written.
RUN = ["validate", "new", "schema", "recipes show", "show", "verify", "doctor", "export", "import"]


def test_examples_do_what_they_say(digits_run, tmp_path):
    shutil.copytree(digits_run, tmp_path / "runs/digits")
    for name in RUN:
        done = distilkit(*example(tuple(name.split())), cwd=tmp_path)
        assert done.returncode == 0, (name, done.stderr)
        assert done.stdout, name
    for made in ("mine.toml", "spec.json", "pictures/labels.csv", "mine.safetensors"):
        assert (tmp_path / made).is_file(), made


@pytest.mark.slow
@pytest.mark.parametrize("name", ["run", "resume", "plan", "evaluate", "sheet", "report", "subsets"])
def test_examples_that_take_longer(name, digits_run, tmp_path):
    shutil.copytree(digits_run, tmp_path / "runs/digits")
    few = ["--set", "outer.steps=20", "--set", "evaluation.every=0", "--set", "evaluation.seeds=1"] if name == "run" else []
    done = distilkit(*example(tuple(name.split())), *few, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


GUESSES = {
    "recipes digit": "Try: digits",
    "digits": "Try: distilkit run digits",
    "mine.toml": "Try: distilkit run mine.toml",
    "gradients digits": "Try: distilkit study gradients",
    "study digits": "Try: distilkit study gradients digits",
    "list": "Try: distilkit recipes",
    "help": "Try: distilkit --help",
    "study gradient": "Did you mean 'gradients'?",
    "repot": "Did you mean 'report'",
}


@pytest.mark.parametrize("typed", GUESSES)
def test_a_word_that_is_no_command_says_what_to_type(typed):
    done = distilkit(*typed.split())
    assert done.returncode == 2
    assert GUESSES[typed] in done.stderr


def test_recipes_with_a_name_is_recipes_show():
    assert distilkit("recipes", "digits").stdout == distilkit("recipes", "show", "digits").stdout

"""The pages do what they say: their Python runs, their specs load, their commands parse, and what they include is there.

A Python block that cannot be run here has `<!-- not run: the reason -->` on the line above its fence; there is none so far.
"""

import re
import shlex
import shutil
import tomllib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import tomlkit
import typer

import distilkit as dk
from distilkit import recipes, spec
from distilkit.cli.app import app
from tests.test_architecture import GROUPS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
INCLUDE = re.compile(r'--8<-- "([^"]+)"')
NOT_RUN = re.compile(r"<!-- not run: (\S.*) -->")


class Block(NamedTuple):
    """A fenced block: its page, the line of its fence, its language, its text, and the line of text above it."""

    page: str
    line: int
    language: str
    text: str
    above: str

    def __str__(self):
        return f"{self.page}:{self.line}"


def blocks_of(page):
    lines, above, found = page.read_text(encoding="utf-8").splitlines(), "", []
    numbers = iter(range(len(lines)))
    for i in numbers:
        if lines[i].lstrip().startswith("```"):
            end = next(j for j in range(i + 1, len(lines)) if lines[j].strip() == "```")
            text = "\n".join(lines[i + 1 : end])
            text = INCLUDE.sub(lambda m: (ROOT / m[1]).read_text(encoding="utf-8"), text)
            found.append(Block(str(page.relative_to(ROOT)), i + 1, lines[i].strip()[3:].strip(), text, above))
            for _ in range(i, end):
                next(numbers)
        elif lines[i].strip():
            above = lines[i].strip()
    return found


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
PYTHON = [b for b in BLOCKS if b.language == "python" and not NOT_RUN.fullmatch(b.above)]
TOML = [b for b in BLOCKS if b.language == "toml"]
BASH = [b for b in BLOCKS if b.language == "bash"]


def test_every_block_is_known_and_there_are_some():
    assert {b.language for b in BLOCKS} == {"python", "toml", "bash", "text", "yaml"}
    assert {b.page for b in PYTHON} >= {"README.md", "docs/index.md", "docs/first-run.md", "docs/data.md", "docs/analysis.md"}
    assert len(TOML) > 5
    assert len(COMMANDS) > 20


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_is_included_is_there(page):
    """A marker that has lost its form is shown as text by mkdocs, which does not complain."""
    text = page.read_text(encoding="utf-8")
    marked = [line for line in text.splitlines() if re.search(r"--\s*8\s*<", line)]
    assert all(INCLUDE.fullmatch(line) for line in marked), marked
    assert all((ROOT / name).is_file() for name in INCLUDE.findall(text))


# What a page needs to be there before its Python runs: names, and runs in its folder.
BEFORE = {
    "docs/data.md": """
import numpy as np
labels, names = np.arange(85) % 17, np.array([f"mineral {c}" for c in range(17)])
images = np.random.default_rng(0).integers(0, 256, (85, 5, 64, 64), dtype=np.uint8)
""",
    "docs/performance.md": """
import distilkit as dk
distiller = dk.Distiller(dk.Digits(), dk.Learner(dk.MLP(hidden=(8,)), dk.SGD(lr=0.1)), dk.FullUnroll(2), outer=dk.Outer(batch_size=32))
state = distiller.init()
""",
    "docs/boosting.md": "import distilkit as dk",
}
# Two outer steps and two networks in place of a minute.
SHORTER = {"outer=dk.Outer(steps=400,": "evaluation=dk.Evaluation(seeds=1, steps=(2,)), outer=dk.Outer(steps=2,"}


@pytest.fixture(scope="session")
def boosted_run(tmp_path_factory):
    """A boosted run with a grid of subsets, as small as the pages need it."""
    folder = tmp_path_factory.mktemp("boosted") / "run"
    dk.Distiller(
        dk.Digits(),
        dk.Learner(dk.MLP(hidden=(8,)), dk.SGD(lr=0.1)),
        dk.FullUnroll(2),
        boost=dk.BoostSchedule(blocks=(1, 1, 1), steps=1),
        outer=dk.Outer(batch_size=32),
        evaluation=dk.Evaluation(seeds=1, steps=(2,), baselines=()),
    ).run(folder)
    dk.subset_grid(folder, [1, 2], draws=2, out=folder / "subsets-random")
    return folder


@pytest.fixture
def place(tmp_path, monkeypatch, digits_run, boosted_run):
    """A folder with the runs that the pages open."""
    shutil.copytree(digits_run, tmp_path / "runs" / "digits")
    shutil.copytree(boosted_run, tmp_path / "runs" / "boost-digits")
    shutil.copytree(ROOT / "examples" / "extending", tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def between(place, page):
    """What the page tells to do in a shell between its blocks."""
    if page == "docs/tutorial.md":
        assert set(np.load(place / "mine.npz")) == {f"{split}_{what}" for split in ("train", "test") for what in ("images", "labels")}
        shutil.copytree(place / "runs" / "digits", place / "runs" / "mine")
    if page == "docs/data.md":  # `distilkit run minerals.toml then does all of it`
        text = next(b.text for b in TOML if b.page == page and "minerals" in b.text)
        small = ["outer.steps=1", "truncation.horizon=2", "truncation.window=1", "learner.network.width=2"]
        spec.loads(text, [*small, "evaluation.seeds=1", "evaluation.steps=[1]", "evaluation.every=0", "evaluation.baselines=[]"]).run(
            "runs/minerals"
        )


@pytest.mark.parametrize("page", sorted({b.page for b in PYTHON}))
def test_python_runs(page, place):
    """The blocks of a page, one after the other with the same names, in a folder with no more than the runs that pages open."""
    if page == "docs/index.md":
        shutil.rmtree(place / "runs" / "digits")  # it makes it
    names = {"__name__": page}
    exec(BEFORE.get(page, ""), names)
    for number, block in enumerate(b for b in PYTHON if b.page == page):
        text = block.text
        for long, short in SHORTER.items():
            text = text.replace(long, short)
        assert "steps=400" not in text
        exec(compile("\n" * block.line + text, ROOT / page, "exec"), names)
        if number == 0:
            between(place, page)


def merged(base, more):
    """A table with the tables of another in it; one that names its kind replaces what was there."""
    if "kind" in more:
        return more
    return base | {key: merged(base.get(key, {}), value) if isinstance(value, dict) else value for key, value in more.items()}


def holds(tree, part):
    """Whether a tree has all values of another."""
    return all(holds(tree[key], value) if isinstance(value, dict) else tree[key] == value for key, value in part.items())


@pytest.mark.parametrize("block", TOML, ids=str)
def test_toml_loads(block, tmp_path, monkeypatch):
    """A part of a spec is set into a whole one."""
    for own in BLOCKS:
        if own.text.startswith("# own_parts.py"):
            (tmp_path / "own_parts.py").write_text(own.text)
    shutil.copy(ROOT / "examples" / "extending" / "my_parts.py", tmp_path)
    np.savez(tmp_path / "minerals.npz", images=np.zeros((34, 5, 64, 64), np.uint8), labels=np.arange(34) % 17)
    monkeypatch.chdir(tmp_path)
    base = tomllib.loads((ROOT / "examples" / "digits.toml").read_text())
    given = tomllib.loads(block.text)
    base["images"].pop("per_class", None)  # a boosted set has it from its blocks
    loaded = spec.loads(tomlkit.dumps(merged(base, given)), trust=True)
    assert holds(spec.to_tree(loaded), given)


def commands_of(block):
    """The command lines of ours in a bash block, as lists of words, without what the shell takes for itself."""
    found = []
    for line in block.text.replace("\\\n", " ").splitlines():
        for part in line.split("&&"):
            words = shlex.split(part, comments=True)
            words = words[: min((words.index(end) for end in (">", "|") if end in words), default=None)]
            while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
                words = words[1:]
            if words[:1] == ["torchrun"] and "-m" in words:
                words = words[words.index("-m") + 1 :]
            if words and words[0] == "distilkit":
                found.append((str(block), words[1:]))
    return found


COMMANDS = [command for block in BASH for command in commands_of(block)]


def parser(command):
    """A command, or a group of them, that does nothing but return what it was given."""
    for own in getattr(command, "commands", {}).values():
        parser(own)
    if not hasattr(command, "commands"):
        command.callback = lambda **given: given
    return command


@pytest.mark.parametrize(("where", "words"), COMMANDS, ids=[f"{where} {' '.join(words)}"[:70] for where, words in COMMANDS])
def test_commands_parse(where, words, monkeypatch):
    """Each option is one that the command has, each of its values of the type that it takes; of a spec that is here, each --set too."""
    monkeypatch.chdir(ROOT)
    given = parser(typer.main.get_command(app)).main(words, "distilkit", standalone_mode=False) or {}  # --help gives nothing
    source = str(given.get("spec") or given.get("recipe"))
    if Path(source).is_file() or source in recipes.names():
        assert isinstance(spec.load(source, given.get("set_", ())), dk.Distiller)


@pytest.mark.parametrize("words", ["run", "run a.toml --sett x=1", "rum a.toml", "evaluate a --seeds few", "study gradient a.toml"])
def test_a_wrong_command_does_not_parse(words):
    with pytest.raises(Exception, match=r".") as caught:
        parser(typer.main.get_command(app)).main(words.split(), "distilkit", standalone_mode=False)
    assert caught.value.exit_code == 2


def test_contributing_names_the_rooms_in_their_order():
    text = " ".join((ROOT / "CONTRIBUTING.md").read_text().split())
    rooms = re.search(r"Rooms import downward only:\*\* (.*?)\. `tests", text)[1]
    assert [set(group.split(", ")) for group in rooms.split(" | ")] == GROUPS[:-1]

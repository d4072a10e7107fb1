"""Progress where somebody looks: on a terminal and in a notebook, from Python too."""

import io
import os
import pty
import select

import pytest

import distilkit as dk
from distilkit.display import Console, shown
from distilkit.progress import SILENT
from tests.commands import FORKS, write_to
from tests.pipelines import BARE, tiny

RUN = """
import distilkit as dk
from tests.pipelines import BARE, tiny
dk.run(tiny(evaluation=BARE), {folder!r}{silent})
print("done")
"""


def program(code, out, err):
    """In a process of its own."""
    write_to(out, err)
    exec(code, {"__name__": "__main__"})


def on_a_terminal(code, out=None):
    """What a program writes whose errors go to a terminal, and its output too, or into a file."""
    ours, theirs = pty.openpty()
    terminal, words = os.ttyname(theirs), b""
    process = FORKS.Process(target=program, args=(code, out or terminal, terminal))
    process.start()
    while select.select([ours], [], [], 0.05)[0] or process.is_alive():
        words += os.read(ours, 4096) if select.select([ours], [], [], 0)[0] else b""
    process.join()
    assert process.exitcode == 0, words.decode()
    os.close(theirs)
    os.close(ours)
    return words.decode()


def test_a_run_from_python_shows_itself_on_a_terminal(tmp_path):
    words = on_a_terminal(RUN.format(folder=str(tmp_path / "run"), silent=""))
    assert "distilling" in words
    assert "6/6" in words
    assert "done" in words


def test_it_is_silent_when_asked_and_where_nobody_looks(tmp_path):
    assert "distilling" not in on_a_terminal(RUN.format(folder=str(tmp_path / "asked"), silent=", dk.Silent()"))
    files = [tmp_path / "out", tmp_path / "err"]
    process = FORKS.Process(target=program, args=(RUN.format(folder=str(tmp_path / "piped"), silent=""), *files))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert [path.read_text() for path in files] == ["done\n", ""]


def test_what_a_program_prints_goes_where_it_did(tmp_path):
    """Into the file, while the bar is on the terminal."""
    code = """
import distilkit as dk
from distilkit.display import shown
with shown(None) as progress:
    progress.phase("distilling")
    print("a line of the program")
"""
    words = on_a_terminal(code, tmp_path / "log.txt")
    assert "a line" not in words
    assert (tmp_path / "log.txt").read_text() == "a line of the program\n"


def test_what_was_given_is_told():
    class Phases(dk.Silent):
        def __init__(self):
            self.words = []

        def phase(self, words):
            self.words.append(words)

    told = Phases()
    with shown(told) as progress:
        progress.phase("one")
    assert told.words == ["one"]
    with shown(None) as progress:
        assert progress is SILENT  # pytest reads what is written


@pytest.mark.parametrize("widgets", [True, False])
def test_a_notebook_without_widgets_gets_lines(monkeypatch, widgets):
    """rich moves a bar in a notebook by widgets only, and warns where there are none."""

    class Notebook(Console):
        def __init__(self, **_):
            super().__init__(file=io.StringIO(), width=100)
            self.is_jupyter = True

    lines = []
    monkeypatch.setattr("rich.jupyter.display", lambda _, text: lines.append(text))
    monkeypatch.setattr("rich.live.Live.start", lambda *_, **__: None)
    monkeypatch.setattr("distilkit.display.find_spec", lambda name: object() if widgets else None)
    monkeypatch.setattr("distilkit.display.Console", Notebook)
    with shown(None) as progress:
        progress.phase("distilling")
        progress.advance(5, 10)
        assert any("distilling, 5 of 10" in text for text in lines) is not widgets


def test_studies_and_evaluations_show_themselves_too(tmp_path, monkeypatch):
    import distilkit.display as module

    seen = []

    class Watching(dk.Silent):
        def phase(self, words):
            seen.append(words)

        def advance(self, done, total):
            seen.append(f"{done}/{total}")

    monkeypatch.setattr(module, "SILENT", Watching())
    distiller = tiny(evaluation=BARE)
    dk.plan(distiller, probe=False)
    distiller.run(tmp_path / "run")
    dk.evaluate(tmp_path / "run")
    dk.subset_grid(tmp_path / "run", [1])
    said = {"loading data", "working out shapes", "distilling", "training 1 network for 2 steps", "testing subsets", "1/1"}
    assert said <= set(seen)
    dk.gradient_study(distiller, {"full": dk.FullUnroll(2)}, outer_steps=[0], replicates=3)
    assert "taking meta-gradients" in seen

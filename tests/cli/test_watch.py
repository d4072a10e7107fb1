"""`distilkit report --watch`: the page follows a run, loads itself anew as long as it does, and no longer."""

import os
from types import SimpleNamespace

import pytest

from distilkit import storage
from distilkit.cli import report as watching
from tests.commands import distilkit
from tests.report.test_figures import tree
from tests.report.test_page import Reader

RELOAD = '<meta http-equiv="refresh" content="3.0">'


def store(folder, steps, *, finished=False):
    """What a run has stored after so many outer steps."""
    made = tree(steps=steps, seeds=3 if finished else 0)
    made.attrs["finished"] = finished
    storage.write(made, folder)


@pytest.fixture
def watched(tmp_path, monkeypatch):
    """Watch `run` and `other`; instead of each wait something happens, and what the page is then is kept."""

    def watch(*happens, runs=("run",)):
        pages, events = [], iter(happens)

        def sleep(seconds):
            assert seconds == watching.POLL
            page = tmp_path / "run" / "report.html"
            pages.append((page.read_text(encoding="utf-8"), os.stat(page).st_ino) if page.exists() else None)
            next(events)()

        monkeypatch.setattr(watching, "time", SimpleNamespace(sleep=sleep))
        done = distilkit("report", *runs, "--watch", cwd=tmp_path)
        assert next(events, None) is None
        return done, pages, tmp_path / "run" / "report.html"

    return watch


def nothing():
    """A run that has written nothing since."""


def ctrl_c():
    raise KeyboardInterrupt


def test_the_page_follows_a_run_to_its_end(watched, tmp_path):
    store(tmp_path / "run", 3)
    done, pages, page = watched(nothing, lambda: store(tmp_path / "run", 12), nothing, lambda: store(tmp_path / "run", 40, finished=True))
    assert done.returncode == 0, done.stderr
    first, second, third, fourth = pages
    assert first == second
    assert third == fourth
    assert first[1] != third[1]
    for text, steps in ((first[0], "3"), (third[0], "12")):
        assert RELOAD in text
        assert f"outer steps {steps} " in Reader(text).text
        assert "finished no: it goes on" in Reader(text).text
    last = page.read_text(encoding="utf-8")
    assert "refresh" not in last
    assert "outer steps 40" in Reader(last).text
    assert "random $real" in last
    assert sorted(path.name for path in page.parent.iterdir()) == ["report.html", "results.zarr"]
    assert done.stdout.count("run/report.html") == 2


def test_ctrl_c_leaves_a_page_that_stays(watched, tmp_path):
    store(tmp_path / "run", 3)
    done, pages, page = watched(nothing, ctrl_c)
    assert (done.returncode, done.stderr) == (0, "")
    assert RELOAD in pages[0][0]
    assert "refresh" not in page.read_text(encoding="utf-8")


def test_it_waits_for_the_first_results(watched, tmp_path):
    (tmp_path / "run").mkdir()
    done, pages, page = watched(nothing, lambda: store(tmp_path / "run", 0), lambda: store(tmp_path / "run", 5, finished=True))
    assert done.returncode == 0, done.stderr
    assert pages[:2] == [None, None]
    assert RELOAD in pages[2][0]
    assert "No results yet: run." in done.stdout
    assert "outer steps 5" in Reader(page.read_text(encoding="utf-8")).text


def test_nothing_was_there_when_it_was_stopped(watched, tmp_path):
    (tmp_path / "run").mkdir()
    done, *_ = watched(ctrl_c)
    assert done.returncode == 2
    assert "before there were results at run" in done.stderr


def test_of_two_runs_it_waits_for_the_last(watched, tmp_path):
    store(tmp_path / "run", 9, finished=True)
    store(tmp_path / "other", 3)
    done, pages, page = watched(lambda: store(tmp_path / "other", 9, finished=True), runs=("run", "other"))
    assert done.returncode == 0, done.stderr
    assert RELOAD in pages[0][0]
    assert "refresh" not in page.read_text(encoding="utf-8")


def test_damage_is_told_once_and_the_page_stays(watched, tmp_path):
    store(tmp_path / "run", 3)

    def damage():
        (tmp_path / "run" / "results.zarr" / "zarr.json").write_text("{")

    done, pages, _ = watched(damage, nothing, lambda: store(tmp_path / "run", 5, finished=True))
    assert done.returncode == 0, done.stderr
    assert pages[0] == pages[1] == pages[2]
    assert done.stdout.count("as a Zarr store") == 1


def test_what_is_damaged_for_good_ends_it(watched, tmp_path):
    store(tmp_path / "run", 3)
    (tmp_path / "run" / "results.zarr" / "zarr.json").write_text("{")
    done, *_ = watched(*[nothing] * (watching.PATIENCE - 1))
    assert done.returncode == 2
    assert "as a Zarr store" in done.stderr


def test_a_run_that_is_named_twice_is_watched_once(watched, tmp_path):
    store(tmp_path / "run", 3)
    done, *_ = watched(lambda: store(tmp_path / "run", 5, finished=True), runs=("run", "run"))
    assert done.returncode == 0, done.stderr


def test_a_run_that_is_done_is_written_once(watched, tmp_path):
    store(tmp_path / "run", 5, finished=True)
    done, pages, page = watched()
    assert (done.returncode, pages) == (0, [])
    assert "refresh" not in page.read_text(encoding="utf-8")
    unnamed = distilkit("report", "run", "--watch", "--out", "page.pdf", cwd=tmp_path)
    assert (unnamed.returncode, "Try: --out page.html" in unnamed.stderr) == (2, True)
    missing = distilkit("report", "nowhere", "--watch", cwd=tmp_path)
    assert (missing.returncode, "does not exist" in missing.stderr) == (2, True)


def test_a_run_without_a_step_has_a_page(tmp_path):
    store(tmp_path / "run", 0)
    assert distilkit("report", "run", cwd=tmp_path).returncode == 0
    assert "outer steps 0 " in Reader((tmp_path / "run" / "report.html").read_text(encoding="utf-8")).text

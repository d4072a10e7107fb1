"""The page of runs and studies: all that is stored is on it, and it asks no network for anything."""

from __future__ import annotations

import base64
import io
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
import xarray as xr
from PIL import Image

from distilkit import report
from distilkit.errors import RunError
from tests.commands import distilkit
from tests.report.test_figures import arrays, tree
from tests.report.test_study_figures import influence, sources, study

OPEN = {"meta", "link", "img", "br", "hr", "input"}  # that have no end


class Reader(HTMLParser):
    """The elements of a page; that they nest is checked on the way."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.words: list[str] = []
        self.links: list[str | None] = []
        self.named: set[str | None] = set()
        self.feed(text)
        assert not self.stack

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.named.add(given.get("id"))
        if tag == "img":
            self.images.append(given)
        if tag in ("a", "link"):
            self.links.append(given.get("href"))
        assert tag != "script"
        if tag not in OPEN:
            self.stack.append(tag)

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def studied() -> dict[str, xr.DataTree]:
    return {
        "runs/gradients": xr.DataTree(study()),
        "runs/study": xr.DataTree.from_dict({"/": xr.Dataset(attrs={"title": "digits"}), "sources": sources(), "influence": influence()}),
    }


def test_all_of_a_run_is_on_its_page():
    made = tree(best=arrays(3, 2, blocks=2))
    made.attrs["spec"] = '{"title": "one <b>two", "seed": 0, "boost": null, "truncation": {"kind": "FullUnroll", "horizon": 5}}'
    made.attrs["references"] = "Somebody: A paper."
    read = Reader(report.page_text({"runs/one & two": made}))
    assert "distilled $digits" in read.text
    assert "runs/one & two" in read.text
    for row in ("distilled 6 61.0 ± 1.0 % 3", "random $real 6 32.0 ± 2.8 % 2", "full data all 90.0 % 1"):
        assert row in read.text
    assert "FullUnroll(horizon = 5)" in read.text
    assert 'title = "one <b>two"' in read.text
    assert "Somebody: A paper." in read.text
    shown = [image for image in read.images if "label" in (image["alt"] or "")]
    assert [image["alt"] for image in shown[:2]] == [f"class 0, block {k}: label class 0 1.00" for k in (1, 2)]
    pixels = made["distilled"]["pixel"].values
    for image, truth in zip(shown, pixels, strict=True):
        data = base64.b64decode(str(image["src"]).removeprefix("data:image/png;base64,"))
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), np.moveaxis(truth, 0, -1))


def test_it_asks_for_nothing_and_every_picture_has_words():
    text = report.page_text({"one": tree(), **studied()})
    read = Reader(text)
    assert all(str(image["src"]).startswith("data:image/") and image["alt"] for image in read.images)
    assert {str(link) for link in read.links} == {"#run-1", "#run-2", "#run-3"}
    assert {"run-1", "run-2", "run-3"} <= read.named
    assert not re.search(r"url\(|@import|src=\"(?!data:)", text)
    assert len([image for image in read.images if "svg" in str(image["src"])[:30]]) == 4


def test_the_same_gives_the_same():
    one, other = tree(), tree(steps=41)
    one.attrs["created"] = other.attrs["created"] = "today"
    assert report.page_text({"one": one}) == report.page_text({"one": one.copy(deep=True)})
    assert report.page_text({"one": one}) != report.page_text({"one": other})


def test_runs_are_side_by_side_also_one_that_is_not_judged_yet():
    read = Reader(report.page_text({"one": tree(), "two": tree(seeds=0)}))
    assert "2 runs and studies" in read.text
    assert read.text.count("distilled $digits") >= 5  # title of the tab, both rows, both headings
    assert "not judged yet" in read.text


@pytest.mark.parametrize(("channels", "side"), [(1, 8), (3, 5), (2, 4)])
def test_images_of_any_kind(channels, side):
    made = tree(channels=channels, side=side)
    assert len([i for i in Reader(report.page_text({"one": made})).images if "png" in str(i["src"])[:20]]) == 6


def test_real_images_stand_beside():
    made, real = tree(), np.random.default_rng(3).integers(0, 255, (4, 3, 8, 8), dtype=np.uint8)
    read = Reader(report.page_text({"one": made, "two": made}, real={"one": (real, np.array([2, 0, 2, 1])), "two": "They are gone."}))
    beside = [image for image in read.images if "a real image" in (image["alt"] or "")]
    assert [image["alt"] for image in beside] == [f"class {c}: a real image" for c in (0, 1, 2, 2)]
    data = base64.b64decode(str(beside[0]["src"]).removeprefix("data:image/png;base64,"))
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), np.moveaxis(real[1], 0, -1))
    assert "They are gone." in read.text
    with pytest.raises(RunError, match="do not go with"):
        report.page_text({"one": made}, real={"one": (real[:, :1], np.zeros(4))})


def test_soft_labels_of_few_images_are_written_below():
    made = tree(ipc=1)
    made["distilled"]["label"][0] = [0.5, 0.25, 0.0]
    assert "class 0 0.50, class 1 0.25" in Reader(report.page_text({"one": made})).text


def test_no_name_of_a_page_is_refused(tmp_path):
    with pytest.raises(RunError, match=r"no name of a page") as told:
        report.page({"one": tree()}, tmp_path / "page.pdf")
    assert "page.html" in str(told.value)
    with pytest.raises(RunError, match="no run"):
        report.page({}, tmp_path / "page.html")


def test_the_command(tmp_path):
    assert distilkit("run", "digits", "--set", "outer.steps=2", "--set", "evaluation.seeds=1", "--out", "one", cwd=tmp_path).returncode == 0
    done = distilkit("report", "one", cwd=tmp_path)
    assert (done.returncode, done.stdout.split()) == (0, ["Look", "at", "one/report.html"])
    read = Reader((tmp_path / "one/report.html").read_text(encoding="utf-8"))
    assert "random real" in read.text
    assert len(read.images) == 11 + 20
    assert [image["alt"] for image in read.images].count("7: a real image") == 2
    spec = tmp_path / "one/spec.toml"  # the run of another machine, whose data is not on this one
    spec.write_text(spec.read_text(encoding="utf-8").replace('kind = "Digits"', 'kind = "Arrays"\npath = "gone.npz"'), encoding="utf-8")
    assert distilkit("report", "one", cwd=tmp_path).returncode == 0
    read = Reader((tmp_path / "one/report.html").read_text(encoding="utf-8"))
    assert len(read.images) == 11
    assert "Real images are left out: " in read.text
    assert "gone.npz" in read.text
    assert distilkit("report", "one", "--real", "0", cwd=tmp_path).returncode == 0
    assert "Real images" not in (tmp_path / "one/report.html").read_text(encoding="utf-8")
    nothing = distilkit("report", "two", cwd=tmp_path)
    assert nothing.returncode == 2
    assert "two" in nothing.stderr


@pytest.mark.skipif(shutil.which("chromium") is None, reason="there is no Chromium")
@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
def test_a_browser_shows_it(tmp_path, width, scheme):
    """It says nothing on its console, and what it draws is no empty page, on paper of the colour that is asked for."""
    page = report.page({"one": tree(), **studied()}, tmp_path / "page.html")
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0", f"--window-size={width},3000"]
    command.append(f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}")
    done = subprocess.run(
        [*command, f"--screenshot={tmp_path / 'page.png'}", page.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    assert "CONSOLE" not in done.stderr
    shot = np.asarray(Image.open(tmp_path / "page.png").convert("L"))
    assert shot.shape == (3000, width)
    assert 0.005 < (shot < 128).mean() < 0.995
    assert (np.median(shot) < 50) == (scheme == "dark")

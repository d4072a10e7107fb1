"""The command `distilkit report`: a page of runs and studies, written once, or anew with each write of runs that go on."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import xarray as xr

from distilkit import storage
from distilkit.cli.evaluate import evolved
from distilkit.cli.output import Output
from distilkit.data.preprocessing import Identity
from distilkit.data.sources.huggingface import HuggingFace
from distilkit.errors import CombinationError, DistilkitError, RunError
from distilkit.functional.streams import Stream
from distilkit.report import images_shown, page
from distilkit.report.sheet import Pictures
from distilkit.runs.open import pipeline_of
from distilkit.runs.sheets import real_images
from distilkit.storage.remote import url_of
from distilkit.storage.store import find

POLL = 3.0  # seconds between two looks at the files of runs, and after which a browser loads the page anew
PATIENCE = 20  # looks at results that cannot be read, and do not change: a run writes twice in that time
STORE = "zarr.json"  # which is another file after each write


def show_report(runs: Sequence[Path], target: Path, output: Output, *, watch: bool, real: int) -> None:
    """Write the page, and say where it lies.

    Args:
        runs: folders of runs and studies.
        target: the page.
        output: how to tell it.
        watch: write it anew when a run has written, until all runs are finished or Ctrl-C. Until then it loads itself anew in a browser.
        real: real images of each class beside the distilled ones, where the data lies at hand.

    Raises:
        RunError: there is nothing to tell of; when it watches, a folder that is there may still be without results.
    """
    if watch and (urls := [url for path in runs if (url := url_of(path))]):
        raise CombinationError(f"--watch looks at folders of this machine, and {urls[0]} is a URL.", fix=f"distilkit report {urls[0]}")
    if watch:
        _watch(runs, target, output, real)
    else:
        trees = {url_of(path) or path.as_posix(): storage.open(path) for path in runs}
        page(trees, target, real=_beside(trees, {}, real))
    output.answer({"file": target}, f"Look at   {target}", written=target)


def _beside(trees: Mapping[str, xr.DataTree], known: dict[str, Pictures | str], count: int) -> dict[str, Pictures | str]:
    """Real images of each run, or why there are none; what is known already is not looked for again."""
    asked = [name for name, tree in trees.items() if name not in known and count and "distilled" in tree.children and images_shown(tree)]
    return known | {name: _real(name, count) for name in asked}


def _real(path: str, count: int) -> Pictures | str:
    """The first training images of each class, as they are. What is not on this machine is not fetched for a report."""
    try:
        source = pipeline_of(path).data
        if isinstance(source, HuggingFace) and not Path(source.path).expanduser().is_dir():
            return "Real images are left out: they are on the Hugging Face Hub."
        bundle = evolved(source, preprocessing=Identity(), download=False).load(Stream(0).fold("data"))
    except DistilkitError as error:
        return f"Real images are left out: {error.message}"
    return real_images(bundle, count) or ""


def _watch(runs: Sequence[Path], target: Path, output: Output, real: int) -> None:
    runs = list({path.absolute(): path for path in runs}.values())  # each once
    trees: dict[str, xr.DataTree] = {}
    seen: list[tuple[int, int] | None] = []
    failed, looks = seen, 0
    beside: dict[str, Pictures | str] = {}
    said = ""
    try:
        while True:
            now = [_written(path) for path in runs]
            if now != seen:
                try:
                    found = {path.as_posix(): storage.open(path) for path, there in zip(runs, now, strict=True) if there}
                except RunError as error:  # it is damaged, or written at this very moment: look again
                    looks = looks + 1 if now == failed else 1
                    if looks == PATIENCE:  # nobody writes
                        raise
                    words, failed = str(error), now
                else:
                    trees, seen, words = found, now, _words(runs, found, target)
                    going = len(trees) < len(runs) or not all(tree.attrs.get("finished", True) for tree in trees.values())
                    if trees:
                        beside = _beside(trees, beside, real)
                        page(trees, target, reload=POLL if going else None, real=beside)
                    if not going:
                        return
                if words != said:
                    output.console.print(words)
                    said = words
            time.sleep(POLL)
    except KeyboardInterrupt:
        if not trees:
            raise RunError(f"Stopped before there were results at {', '.join(map(str, runs))}.") from None
        page(trees, target, real=beside)


def _written(path: Path) -> tuple[int, int] | None:
    """What tells one write of a store from another; None where there is a folder without results.

    Raises:
        RunError: there is no folder.
    """
    if path.is_dir() and not storage.holds_results(path):
        return None
    try:
        state = (find(path) / STORE).stat()
    except FileNotFoundError:  # it is being replaced, by another in any case
        return 0, 0
    return state.st_mtime_ns, state.st_ino


def _words(runs: Sequence[Path], trees: dict[str, xr.DataTree], target: Path) -> str:
    waiting = ", ".join(str(path) for path in runs if path.as_posix() not in trees)
    lines = [f"Look at   {target}   (Ctrl-C ends the watch, and no run)"] if trees else []
    if waiting:
        lines.append(f"No results yet: {waiting}. A run writes the first five seconds after it has begun.")
    return "\n".join(lines)

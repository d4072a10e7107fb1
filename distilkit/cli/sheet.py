"""The command `distilkit sheet`: a picture of the images of a run, or of a set that comes with distilkit or was imported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from distilkit import storage
from distilkit.cli.evaluate import assemble, in_space, source_of
from distilkit.cli.output import Output
from distilkit.data.bundle import DataBundle
from distilkit.data.distilled import DistilledSet
from distilkit.errors import CombinationError
from distilkit.functional.streams import Stream
from distilkit.progress import Progress
from distilkit.report import images_shown, require_picture
from distilkit.runs.open import pipeline_of, spec_file
from distilkit.runs.sheets import draw_sheet, tree_of
from distilkit.storage import is_run
from distilkit.storage.remote import brought


def show_sheet(
    path: Path,
    out: Path,
    case: dict[str, Any],
    output: Output,
    *,
    which: Any,
    rows: int | None,
    real: int | None,
    before: bool = False,
    nearest: bool = False,
) -> None:
    """Draw the images of a run or a set, and say where the picture lies.

    Args:
        path: of the run or the set, or the name of one that comes with distilkit.
        out: the picture.
        case: the options of `assemble`, which loads the data.
        output: how to tell it.
        which: the set to show, as in `distilkit.load`.
        rows: the most images of a class to show.
        real: real images of each class beside them; with 0, the data of a run is not needed. An imported set knows none: it is given.
        before: show what each image started from, which the spec and the data of its run make again.
        nearest: show the real training image that is nearest to each.

    Raises:
        CombinationError: what is asked for cannot be told of such a set.
    """
    require_picture(out)
    needed = bool(real or nearest)
    with output.progress() as progress, brought(path) as path:
        if before:
            _require_start(path, case["data"])
        if is_run(path):
            tree = storage.open(path)
            depth = images_shown(tree, which, rows)
            if not depth and (rows or real or before or nearest):
                words = "which are drawn as a heat map, without --rows, --real, --before and --nearest"
                raise CombinationError(f"{path} holds feature vectors, {words}.")
            data = None
            if depth and (real != 0 or before or nearest):
                if spec_file(path).is_file():
                    data = assemble(path, **case, progress=progress).data
                else:
                    data = _given(path, storage.load(path, which), case, needed, progress)
        else:
            made = storage.load(path, which)  # there is one, before its data is loaded
            # One that comes with distilkit knows its data.
            data = _given(path, made, case, needed, progress) if storage.is_set(path) else assemble(path, **case, progress=progress).data
            tree = tree_of(made, data, title=path.as_posix(), spec={}, seed=0)
        progress.phase("drawing")
        start = pipeline_of(path, trust=case["trust"]) if before else None
        drawn = draw_sheet(tree, out, data, which=which, rows=rows, real=real, start=start, nearest=nearest)
    output.answer({"file": drawn}, f"Look at   {drawn}", written=drawn)


def _require_start(path: Path, data: str | None) -> None:
    """Refuse to tell what a set started from where its spec is not known, or the split of its data is not."""
    if not storage.says_all(path) and storage.is_set(path):
        raise CombinationError(
            f"{path} is a set without the spec of its run, which would make again what its images started from.",
            fix="distilkit sheet RUN --before",
        )
    if is_run(path) and not spec_file(path).is_file():
        raise CombinationError(
            f"What the images of {path} started from is made again from its spec, and it has none: parts of it were made "
            "in Python. There, draw_sheet of distilkit.runs.sheets takes its pipeline as start.",
            fix=f"distilkit sheet {path}",
        )
    if data is not None and is_run(path):
        raise CombinationError(
            f"What the images of {path} started from is made again from the data of its own spec, and --data gives others.",
            fix=f"distilkit sheet {path} --before",
        )


def _given(path: Path, made: DistilledSet, case: dict[str, Any], needed: bool, progress: Progress) -> DataBundle | None:
    """The data that is given for an imported set, or for a run that has no spec, if it is."""
    if case["overrides"]:
        raise CombinationError(f"{path} has no spec, of which --set could change a value.")
    if case["data"] is None and needed:
        raise CombinationError(f"{path} does not know where its real images lie.", fix="--data CIFAR10.npz")
    if case["data"] is None:
        return None
    progress.phase("loading data")
    source = in_space(source_of(case["data"]), made, held_out=False)
    bundle: DataBundle = source.load(Stream(0).fold("data"))
    return bundle

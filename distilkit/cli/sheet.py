"""The command `distilkit sheet`: a picture of the images of a run, or of a set that comes with distilkit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from distilkit import storage
from distilkit.cli.evaluate import assemble
from distilkit.cli.output import Output
from distilkit.errors import CombinationError
from distilkit.report import images_shown, require_picture
from distilkit.runs.sheets import draw_sheet, tree_of
from distilkit.storage import is_run


def show_sheet(path: Path, out: Path, case: dict[str, Any], output: Output, *, which: Any, rows: int | None, real: int | None) -> None:
    """Draw the images of a run, or of a set that comes with distilkit, and say where the picture lies.

    Args:
        path: of the run, or that set's name.
        out: the picture.
        case: the options of `assemble`, which loads the data.
        output: how to tell it.
        which: the set to show, as in `distilkit.load`.
        rows: the most images of a class to show.
        real: real images of each class beside them; with 0, the data of a run is not needed.
    """
    require_picture(out)
    with output.progress() as progress:
        if is_run(path):
            tree = storage.open(path)
            depth = images_shown(tree, which, rows)
            if not depth and (rows or real):
                raise CombinationError(f"{path} holds feature vectors, which are drawn as a heat map, without --rows and --real.")
            data = assemble(path, **case, progress=progress).data if depth and real != 0 else None
        else:
            made = storage.load(path, which)  # there is one, before its data is loaded
            data = assemble(path, **case, progress=progress).data
            tree = tree_of(made, data, title=path.as_posix(), spec={}, seed=0)
        progress.phase("drawing")
        drawn = draw_sheet(tree, out, data, which=which, rows=rows, real=real)
    output.answer({"file": drawn}, f"Look at   {drawn}", written=drawn)

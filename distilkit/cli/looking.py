"""The commands that look at what is there: `show`, `verify`, `doctor`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from distilkit.cli.options import Json, Quiet, folder_of
from distilkit.cli.output import Output
from distilkit.errors import counted

commands = typer.Typer()


@commands.command(epilog="Example: distilkit show runs/digits")
def show(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run or a study, or the URL of a copy.")], as_json: Json = False
) -> None:
    """Tell what is stored of a run: how far it is, its accuracies, and where everything lies."""
    from distilkit import storage
    from distilkit.cli.rows import run_values
    from distilkit.cli.tables import evaluation_table, results_table, training_words
    from distilkit.runs.open import spec_file, unwritable
    from distilkit.storage.remote import url_of

    tree, folder, url = storage.open(run), folder_of(run), url_of(run)
    found = run_values(tree, folder)
    if url is not None:
        found |= {"folder": url, "files": [url]}
    shown: list[Any] = []
    if "status" in found:
        if unwritable(tree) or (url is None and not spec_file(folder).is_file()):
            again = f"dk.run(distiller, {str(folder)!r}{'' if url is None else f', mirror={url!r}'}) goes on, in Python"
        else:
            again = f"distilkit resume {shlex.quote(url or str(folder))} goes on"
        goes_on = f"{'stopped' if url is None else 'under way, or stopped'}; {again}"
        state = "finished" if found["status"] == "finished" else goes_on
        shown.append(f"{found['title']}: {counted(found['outer_steps'], 'outer step')}, {state}")
    if "tests" in found:
        evaluation = tree["evaluation"].to_dataset()
        shown.append(evaluation_table(evaluation, found["title"]) if "training_steps" in evaluation.coords else results_table(tree))
    Output(as_json=as_json).answer(found, *shown, *(f"  {path}" for path in found["files"]), *training_words(found))


@commands.command(epilog="Example: distilkit verify runs/digits")
def verify(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run, or the URL of its copy.")],
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Check that nothing of a run is damaged: results, and what it would go on from."""
    from distilkit.errors import RunError
    from distilkit.storage import verify as check
    from distilkit.storage.remote import url_of

    name = url_of(run) or run
    checked, wrong = check(run)
    found = {"run": name, "whole": not wrong, "checked": checked, "damage": wrong}
    Output(quiet, as_json).answer(found, *(f"whole: {line}" for line in checked))
    if wrong:
        what = "is damaged" if any(" is not whole: " not in line for line in wrong) else "is not whole"
        raise RunError("\n  ".join([f"{name} {what}:", *wrong]))


@commands.command(epilog="Example: distilkit doctor")
def doctor(as_json: Json = False) -> None:
    """Tell what this machine has for a run: versions, processor, GPU, compiler, memory, disk, data; and what to do about what it lacks."""
    from rich.table import Table

    from distilkit.runs.doctor import examine

    table, found = Table(show_header=False, box=None), examine()
    for one in found:
        table.add_row(one.what, one.found)
    advice = (f"  {one.what}: {one.advice}" for one in found if one.advice)
    Output(as_json=as_json).answer({"findings": [one._asdict() for one in found]}, table, *advice)

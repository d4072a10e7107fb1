"""The commands that look at what is there: `show`, `verify`, `doctor`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from distilkit.cli.options import folder_of, say

commands = typer.Typer()


@commands.command()
def show(run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run or a study.")]) -> None:
    """Tell what is stored of a run: how far it is, its accuracies, and where everything lies."""
    from distilkit import storage
    from distilkit.cli.tables import results_table
    from distilkit.display import Console

    tree, folder, console = storage.open(run), folder_of(run), Console()
    if "history" in tree.children:
        steps = tree["history"].sizes["outer_step"]
        state = "finished" if tree.attrs.get("finished") else f"stopped; distilkit resume {shlex.quote(str(folder))} goes on"
        say(f"{tree.attrs['title']}: {steps} outer steps, {state}")
    if "evaluation" in tree.children and "accuracy" in tree["evaluation"]:
        console.print(results_table(tree))
    for name in ("spec.toml", "results.zarr", "report.html"):
        if (folder / name).exists():
            say(f"  {folder / name}")
    for picture in sorted(folder.glob("*.png")):
        say(f"  {picture}")


@commands.command()
def verify(run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")]) -> None:
    """Check that nothing of a run is damaged: results, and what it would go on from."""
    from distilkit.errors import RunError
    from distilkit.storage import verify as check

    checked, wrong = check(run)
    for line in checked:
        say(f"whole: {line}")
    if wrong:
        raise RunError("\n  ".join([f"{run} is damaged:", *wrong]))


@commands.command()
def doctor() -> None:
    """Tell what this machine has for a run: versions, processor, GPU, compiler, memory, disk, data; and what to do about what it lacks."""
    from rich.table import Table

    from distilkit.display import Console
    from distilkit.runs.doctor import examine

    table, found = Table(show_header=False, box=None), examine()
    for one in found:
        table.add_row(one.what, one.found)
    Console(highlight=False).print(table)
    for one in found:
        if one.advice:
            say(f"  {one.what}: {one.advice}")

"""The commands `distilkit run`, `distilkit plan` and `distilkit recipes`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from distilkit.cli.display import log_lines, option
from distilkit.cli.tables import gib, plan_table, recipes_table, results_table
from distilkit.display import Console, Display
from distilkit.errors import StoppedError
from distilkit.progress import speaks

if TYPE_CHECKING:
    from distilkit.distiller import Distiller


def show_run(distiller: Distiller, directory: Path, stop_after: float | None = None, mirror: str | None = None) -> None:
    """Run a distiller or go on with it, show how it goes, then its table and where everything lies.

    Raises:
        StoppedError: it is not at its end.
    """
    from distilkit import ranks
    from distilkit.runs.run import run

    console = Console(quiet=not speaks())
    go_on = f"distilkit resume {shlex.quote(str(directory))}"
    with ranks.joined(distiller.torch_device) as world:
        several = world.joined
        try:
            with log_lines(console), Display(console) as display:
                tree = run(distiller, directory, display, stop_after=stop_after, mirror=mirror)
        except KeyboardInterrupt:
            raise StoppedError(f"Stopped. What was done until then is in {directory}.", fix=go_on) from None
    if not tree.attrs["finished"]:
        done = tree["history"].sizes["outer_step"]
        stopped = StoppedError(
            f"Stopped after {done} of {distiller.outer_steps} outer steps, as asked; they are in {directory}.", fix=go_on
        )
        if not several:
            raise stopped
        console.print(str(stopped), markup=False, highlight=False, soft_wrap=True)  # torchrun would take another exit code for a failure
        return
    console.print(results_table(tree))
    for line in (f"Look at   {directory / 'distilled.png'}", f"Open it   xarray.open_datatree({str(directory / 'results.zarr')!r})"):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def show_plan(distiller: Distiller, probe: bool, processes: int = 1) -> None:
    """Estimate what a run takes, and print it."""
    from distilkit.runs.plan import plan

    console = Console(highlight=False, soft_wrap=True)
    with log_lines(console), Display(console) as display:
        found = plan(distiller, probe=probe, processes=processes, progress=display)
    console.print(plan_table(found, distiller.title))
    if found.seconds is None:
        console.print(f"inner steps: {found.execution}", markup=False)
    if not found.fits:
        console.print(f"This will not fit into {gib(found.available)}. Try one or more of:")
    for words, change in found.advice:
        console.print(f"  {option(change)}   ({words})", markup=False)


def show_recipes() -> None:
    """Print a table of the recipes; on a pipe, no cell is cut."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    console.print(recipes_table(console.width))
    console.print("distilkit recipes show NAME prints one; distilkit run NAME runs it.", highlight=False)
    console.print("distilkit evaluate NAME judges the set that comes with one; distilkit.load(NAME) gives it.", highlight=False)

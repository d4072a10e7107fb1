"""What a person sees while a run goes on: a progress line, and a table at the end."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import xarray as xr
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from distilkit.errors import RunError

if TYPE_CHECKING:
    from distilkit.distiller import Distiller, StepInfo


class RunDisplay:
    """Shows a run as a rich progress line; see `distilkit.running.Observer`."""

    def __init__(self, console: Console, steps: int) -> None:
        self._console = console
        self._steps = steps
        self._validation = ""
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("starting", total=steps, numbers="")

    def __enter__(self) -> RunDisplay:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def phase(self, words: str) -> None:
        """Show what is being done; on a pipe, as a line of its own."""
        self._progress.update(self._task, description=words)
        if not self._console.is_terminal:
            self._console.print(words)

    def stepped(self, info: StepInfo) -> None:
        """Show the numbers of an outer step."""
        if not self._console.is_terminal and (info.outer_step + 1) % max(1, self._steps // 10) == 0:
            self._console.print(f"outer step {info.outer_step + 1}: outer loss {info.outer_loss:.3f}")
        numbers = f"loss {info.outer_loss:.3f}  |meta-gradient| {info.meta_gradient_norm:.2e}{self._validation}"
        self._progress.update(self._task, completed=info.outer_step + 1, numbers=numbers)

    def validated(self, outer_step: int, accuracy: Any) -> None:
        """Show the validation accuracy; on a pipe, as a line of its own."""
        self._validation = f"  validation {accuracy.mean():.3f}"
        if not self._console.is_terminal:
            self._console.print(f"outer step {outer_step}: validation accuracy {accuracy.mean():.3f} ± {accuracy.std():.3f}")


def show_run(distiller: Distiller, directory: Path) -> None:
    """Run a distiller, show how it goes on, then its table and where everything lies."""
    console = Console()
    try:
        with RunDisplay(console, distiller.outer.steps) as display:
            tree = distiller.run(directory, display)
    except KeyboardInterrupt:
        raise RunError(f"Stopped. What was done until then is in {directory}.") from None
    console.print(results_table(tree))
    console.print(f"Look at   {directory / 'distilled.png'}", highlight=False, soft_wrap=True)
    console.print(f"Open it   xarray.open_datatree({str(directory / 'results.zarr')!r})", highlight=False, soft_wrap=True)


def results_table(tree: xr.DataTree) -> Table:
    """Test accuracy of the distilled set and of the baselines."""
    table = Table(title=f"{tree.attrs['title']}: test accuracy")
    for heading, justify in (("trained on", "left"), ("images", "right"), ("mean", "right"), ("std", "right"), ("seeds", "right")):
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]
    images = str(tree["distilled"].sizes["sample"])
    rows = [("distilled", images, tree["evaluation"].to_dataset()["accuracy"])]
    if "baselines" in tree.children:
        baselines = tree["baselines"].to_dataset()["accuracy"]
        names = [str(name) for name in baselines["baseline"].values]
        rows += [(name, "all" if name == "full data" else images, baselines.sel(baseline=name)) for name in names]
    for name, count, accuracy in rows:
        table.add_row(name, count, f"{float(accuracy.mean()):.3f}", f"{float(accuracy.std()):.3f}", str(accuracy.sizes["seed"]))
    return table

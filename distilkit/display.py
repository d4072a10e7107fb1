"""What a person sees while a run goes on: a progress line, and a table at the end."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xarray as xr
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from distilkit import recipes
from distilkit.errors import RunError
from distilkit.storage.spread import plus_minus, spread

if TYPE_CHECKING:
    from distilkit.distiller import Distiller, StepInfo
    from distilkit.planning import Plan


class RunDisplay:
    """Shows a run as a rich progress line; see `distilkit.running.Observer`. On a pipe it prints plain lines instead.

    Args:
        console: where to show it.
        steps: outer steps in all.
    """

    def __init__(self, console: Console, steps: int) -> None:
        self._console = console
        self._steps = steps
        self._validation = ""
        self._began = time.monotonic()
        columns = [TextColumn("{task.description}", markup=False), TextColumn("{task.fields[count]}"), TextColumn("{task.fields[numbers]}")]
        if console.width >= 110:  # 80 columns hold the numbers and the time left; the rest is for wider ones
            columns = [SpinnerColumn(), columns[0], BarColumn(bar_width=20), *columns[1:], TimeElapsedColumn()]  # type: ignore[list-item]
        self._progress = Progress(*columns, TextColumn("left"), TimeRemainingColumn(), console=console, disable=not console.is_terminal)
        self._task = self._progress.add_task("starting", total=steps, count="", numbers="")
        self._distilling = True

    def __enter__(self) -> RunDisplay:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def phase(self, words: str) -> None:
        """Show what is being done: the outer loop has a line with its time left, what comes after it a line of its own each."""
        self._say(words)
        if words.startswith("testing"):
            self._distilling = False
            self._task = self._progress.add_task(words, total=None, count="", numbers="")
        elif self._distilling:
            self._progress.update(self._task, description=words)

    def stepped(self, info: StepInfo) -> None:
        """Show the numbers of an outer step; on a pipe, of every tenth part of the run."""
        done = info.outer_step + 1
        numbers = f"loss {info.outer_loss:.3f} |g| {info.meta_gradient_norm:.1e}{self._validation}"
        if done % max(1, self._steps // 10) == 0:
            left = (time.monotonic() - self._began) / done * (self._steps - done)
            self._say(f"outer step {done} of {self._steps}: {numbers}, about {left:.0f} s left")
        self._progress.update(self._task, completed=done, count=f"{done}/{self._steps}", numbers=numbers)

    def validated(self, outer_step: int, accuracy: Any) -> None:
        """Show the validation accuracy."""
        self._validation = f" val {accuracy.mean():.3f}"
        self._say(f"outer step {outer_step}: validation accuracy {plus_minus(accuracy, 3)}")

    def _say(self, words: str) -> None:
        if not self._console.is_terminal:
            self._console.print(words, markup=False, highlight=False)


def show_run(distiller: Distiller, directory: Path) -> None:
    """Run a distiller, show how it goes on, then its table and where everything lies."""
    console = Console()
    try:
        with log_lines(console), RunDisplay(console, distiller.outer_steps) as display:
            tree = distiller.run(directory, display)
    except KeyboardInterrupt:
        raise RunError(f"Stopped. What was done until then is in {directory}.") from None
    console.print(results_table(tree))
    for line in (f"Look at   {directory / 'distilled.png'}", f"Open it   xarray.open_datatree({str(directory / 'results.zarr')!r})"):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def show_plan(distiller: Distiller, probe: bool) -> None:
    """Estimate what a run takes, and print it."""
    from distilkit.planning import plan

    console = Console(highlight=False, soft_wrap=True)
    with log_lines(console):
        found = plan(distiller, probe=probe, notice=console.print)
    console.print(plan_table(found, distiller.title))
    if found.seconds is None:
        console.print(f"inner steps: {found.execution}", markup=False)
    if not found.fits:
        console.print(f"This will not fit into {_gib(found.total)}. Try one or more of:")
    for words, line in found.advice:
        console.print(f"  {line}   ({words})", markup=False)


def plan_table(found: Plan, title: str) -> Table:
    """Memory by what holds it, and time."""
    table = Table(title=Text(f"{title}: what a run takes"), show_header=False)
    table.add_column()
    table.add_column(justify="right")
    what = "process, libraries and real data" if found.device == "CPU" else "real data"
    table.add_row(Text(f"Memory at its peak, of {_gib(found.total)} on this {found.device}"), _gib(found.peak))
    for words, size in ((what, found.held), ("loading the data", found.loading)):
        table.add_row(f"  {words}", _gib(size))
    table.add_row(f"  trajectory of {found.longest} steps", _gib(found.trajectory))
    table.add_row("  one step, and what checks it", _gib(found.work))
    table.add_row("  or training and testing networks", _gib(found.evaluation) if found.seconds is not None else "not probed")
    total, through = found.inner_steps
    table.add_row("Inner steps of an outer step, on average", f"{total:.0f}, the gradient through {through:.0f}")
    if found.seconds is not None and found.first is not None:
        table.add_row("Time of an outer step", f"{found.seconds:.3g} s")
        table.add_row("  building programs, once", f"{found.first:.3g} s")
        table.add_row(f"  all {found.outer_steps} outer steps, without evaluation", _duration(found.seconds * found.outer_steps))
    return table


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


@contextmanager
def log_lines(console: Console) -> Iterator[None]:
    """Print what the library says on its logger, such as how steps are run and what is compiled, as lines of the console."""
    logger = logging.getLogger("distilkit")
    handler = _Lines(console)
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


class _Lines(logging.Handler):
    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        self._console.print(record.getMessage(), markup=False, highlight=False, soft_wrap=True)


def show_recipes() -> None:
    """Print a table of the recipes; on a pipe, no cell is cut."""
    table = Table(title="Recipes: test accuracy in percent, as published")
    for heading in ("name", "data", "per class", "published", "memory", "cost"):
        table.add_column(heading, justify="right" if heading == "per class" else "left", overflow="fold")
    for one in map(recipes.describe, recipes.names()):
        table.add_row(one.name, one.data, str(one.per_class), one.published, one.memory, one.cost)
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    console.print(table)
    console.print("distilkit recipes show NAME prints one; distilkit run NAME runs it.", highlight=False)


def show_evaluation(path: Path, case: dict[str, Any], judged: dict[str, Any], out: Path | None) -> None:
    """Evaluate a run or a set, show how it goes on, then its table; store it if a folder is given.

    Args:
        path: of the run or set.
        case: the options of `judging.assemble`.
        judged: the options of `judging.evaluate`; `networks` are names, and `rates` belong to them.
        out: a folder, or None.
    """
    from distilkit import judging

    console = Console(highlight=False, soft_wrap=True)
    if out is not None:
        judging.require_free(out)
    found = judging.assemble(path, **case, notice=console.print)
    names, rates = judged.pop("networks"), judged.pop("rates")
    networks = judging.parse_networks(names, rates, found.learner, found.evaluation)
    result = judging.evaluate(found, networks=networks, notice=console.print, **judged)
    console.print(evaluation_table(result, f"{path.name}: accuracy on {result.attrs['test_images']} test images of {result.attrs['data']}"))
    for line in evaluation_words(result):
        console.print(line)
    if out is not None:
        judging.save(result, found, out)
        console.print(f"Stored in {out}")


def evaluation_table(result: xr.Dataset, title: str) -> Table:
    """Test accuracy after each number of training steps, of the distilled set and of what was trained beside it."""
    table = Table(title=title)
    for heading in ("trained on", "network", "steps", "mean", "std", "networks"):
        table.add_column(heading, justify="left" if heading in ("trained on", "network") else "right")
    accuracy = result.accuracy
    rows = (
        [("distilled", str(n), accuracy.sel(network=n)) for n in result.network.values]
        if "network" in result
        else [("distilled", "", accuracy)]
    )
    if "baseline_accuracy" in result:
        rows += [(str(b), "", result.baseline_accuracy.sel(baseline=b)) for b in result.baseline.values]
    for what, network, table_of_one in rows:
        for steps in result.training_steps.values:
            one = table_of_one.sel(training_steps=steps)
            table.add_row(what, network, str(steps), f"{float(one.mean()):.4f}", _deviation(one, 4), str(one.size))
    return table


def evaluation_words(result: xr.Dataset) -> list[str]:
    """What was selected, and on what; the paper's protocol; DD-Ranking's scores."""
    selected_on, lines = json.loads(result.attrs["protocol"])["selected_on"], []
    each = [(f"{name}: ", result.sel(network=name)) for name in result.network.values] if "network" in result else [("", result)]
    if selected_on is None:
        lines.append("There is no validation split, so no number of steps was selected.")
    for front, one in each:
        if selected_on is not None:
            best = one.accuracy.sel(training_steps=one.selected_steps)
            lines.append(f"{front}Selected on the {selected_on}: {int(one.selected_steps)} steps, {plus_minus(best)}")
        lines.append(
            f"{front}Paper protocol (the largest mean above, chosen on the test images, so optimistic): {float(one.paper_protocol):.4f}"
        )
    scores = ("hard_label_recovery", "improvement_over_random", "label_robust_score", "augmentation_robust_score")
    return lines + [f"{result[name].attrs['long_name']}: {plus_minus(result[name])}" for name in scores if name in result]


def _deviation(values: xr.DataArray, digits: int) -> str:
    """Standard deviation, for a cell of a table; a single value has none."""
    return f"{spread(values):.{digits}f}" if values.size > 1 else "-"


def results_table(tree: xr.DataTree) -> Table:
    """Test accuracy of the distilled set and of the baselines."""
    table = Table(title=Text(f"{tree.attrs['title']}: test accuracy"))
    for heading, justify in (("trained on", "left"), ("images", "right"), ("mean", "right"), ("std", "right"), ("seeds", "right")):
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]
    images = str(tree["distilled"].sizes["sample"])
    rows = [("distilled", images, tree["evaluation"].to_dataset()["accuracy"])]
    if "prefixes" in tree.children:
        prefixes = tree["prefixes"].to_dataset()["accuracy"]
        classes = tree["distilled"].sizes["class"]
        rows[:0] = [(f"its first {int(b)} of a class", str(int(b) * classes), prefixes.sel(budget=b)) for b in prefixes["budget"][:-1]]
    if "baselines" in tree.children:
        baselines = tree["baselines"].to_dataset()["accuracy"]
        names = [str(name) for name in baselines["baseline"].values]
        rows += [(name, "all" if name == "full data" else images, baselines.sel(baseline=name)) for name in names]
    for name, count, accuracy in rows:
        table.add_row(name, count, f"{float(accuracy.mean()):.3f}", _deviation(accuracy, 3), str(accuracy.sizes["seed"]))
    return table

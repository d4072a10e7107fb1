"""The commands `distilkit run`, `distilkit plan` and `distilkit recipes`."""

from __future__ import annotations

import shlex
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distilkit.cli.display import option, places
from distilkit.cli.options import runs_folder
from distilkit.cli.output import Output
from distilkit.cli.rows import plan_values, run_values
from distilkit.cli.tables import gib, plan_table, recipes_table, recipes_values, results_table, training_words
from distilkit.errors import Change, CombinationError, StoppedError, counted

if TYPE_CHECKING:
    from distilkit.distiller import Distiller


@contextmanager
def placed(
    distiller: Distiller, out: Path | None, usual: Path, *, fresh: bool = False, url: str | None = None
) -> Generator[Path, None, None]:
    """The folder of a run.

    Args:
        distiller: of the run.
        out: a folder that was asked for, or None.
        usual: where it lies otherwise: the first of `usual`, `usual`-2 and so on that holds this run, or else is free.
        fresh: take one that is free in any case.
        url: of the copy from which the run goes on, if it does.

    Raises:
        RunError: the run of that copy is under way here.
        CombinationError: `fresh` in a job of torchrun.
    """
    from distilkit import ranks
    from distilkit.runs.claim import folder_for, free_folder

    folder = out or usual
    with ranks.joined(distiller.torch_device) as world:
        if fresh and world.joined:
            raise CombinationError("--fresh would begin anew at every restart of torchrun.", fix=f"--out {folder}-2")
        if fresh:
            folder = world.first_does(partial(free_folder, folder))
        elif out is None:
            folder = world.first_does(partial(folder_for, distiller, folder, url))
        try:
            yield folder
        finally:
            if world.first and (fresh or out is None):  # a folder made here, if the run was refused before it wrote anything
                with suppress(OSError):  # it is not empty
                    folder.rmdir()


def show_copy(
    url: str,
    distiller: Distiller,
    out: Path | None,
    output: Output,
    *,
    mirror: str | None = None,
    **how: Any,
) -> None:
    """Go on here with the run whose copy lies at a URL, and copy it there still; `how` is more of `show_run`.

    Raises:
        CombinationError: it is to be copied elsewhere.
        RunError: `out` holds another run.
    """
    if mirror is not None and mirror.rstrip("/") != url:
        raise CombinationError(f"A run that goes on from {url} has its copy there.", changes=[Change("mirror", None)])
    with placed(distiller, out, runs_folder(url.rpartition("/")[2]), url=url) as folder:
        show_run(distiller, folder, output, mirror=url, **how)


def show_run(
    distiller: Distiller,
    directory: Path,
    output: Output,
    log: Sequence[str] = (),
    *,
    stop_after: float | None = None,
    mirror: str | None = None,
) -> None:
    """Run a distiller or go on with it, show how it goes, then its table and where everything lies.

    Raises:
        StoppedError: it is not at its end.
    """
    from distilkit import ranks
    from distilkit.runs.loggers import named
    from distilkit.runs.run import run

    go_on = f"distilkit resume {shlex.quote(str(directory))}" + (f" --mirror {shlex.quote(mirror)}" if mirror is not None else "")
    with ranks.joined(distiller.torch_device) as world:
        several = world.joined
        try:
            loggers = [named(name) for name in log]
            with output.progress(logged=True) as progress:
                tree = run(distiller, directory, progress, stop_after=stop_after, mirror=mirror, loggers=loggers)
        except KeyboardInterrupt:
            raise StoppedError(f"Stopped. What was done until then is in {directory}.", fix=go_on) from None
    if not tree.attrs["finished"]:
        done = tree["history"].sizes["outer_step"]
        stopped = StoppedError(
            f"Stopped after {done} of {counted(distiller.outer_steps, 'outer step')}, as asked; they are in {directory}.", fix=go_on
        )
        # torchrun would take another exit code than 0 for a failure
        output.answer(run_values(tree, directory), *([str(stopped)] if several else []), written=directory)
        if not several:
            raise stopped
        return
    found = run_values(tree, directory)
    lines = [*places(directory, directory / "distilled.png"), *training_words(found)]
    output.answer(found, results_table(tree), *lines, written=directory)


def show_plan(distiller: Distiller, probe: bool, processes: int, output: Output) -> None:
    """Estimate what a run takes, and print it."""
    from distilkit.runs.plan import plan

    with output.progress(logged=True) as progress:
        found = plan(distiller, probe=probe, processes=processes, progress=progress)
    lines = [f"inner steps: {found.execution}"] if found.seconds is None else []
    if not found.fits:
        lines.append(f"This will not fit into {gib(found.available)}. Try one or more of:")
    lines += [f"  {option(change)}   ({words})" for words, change in found.advice]
    output.answer(plan_values(found, distiller.title), plan_table(found, distiller.title), *lines)


def show_recipes(output: Output) -> None:
    """Print a table of the recipes."""
    output.answer(
        {"recipes": recipes_values()},
        recipes_table(output.console.width),
        "distilkit recipes show NAME prints one; distilkit run NAME runs it.",
        "distilkit evaluate NAME judges the set that comes with one; distilkit.load(NAME) gives it.",
    )

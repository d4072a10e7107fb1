"""What a person sees of a study: progress with the time left, a table at the end, and where the figures are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from distilkit import report
from distilkit.errors import RunError
from distilkit.storage.spread import plus_minus, spread

if TYPE_CHECKING:
    from distilkit.distiller import Distiller


class StudyDisplay:
    """Shows the parts of a study, each with a progress line; on a pipe, a line a tenth."""

    def __init__(self, console: Console, words: str = "") -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("starting", total=None)
        self._tenth = 0
        if words:
            self.phase(words)

    def __enter__(self) -> StudyDisplay:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def phase(self, words: str) -> None:
        """Show what is being done."""
        self._progress.remove_task(self._task)
        self._task, self._tenth = self._progress.add_task(words, total=None), 0
        if not self._console.is_terminal:
            self._console.print(words)

    def unit(self, done: int, total: int) -> None:
        """Show how much of it is done."""
        self._progress.update(self._task, completed=done, total=total)
        if not self._console.is_terminal and 10 * done // total > self._tenth:
            self._tenth = 10 * done // total
            self._console.print(f"{done} of {total}")


def show_subsets(
    run: Path, budgets: Sequence[int], draws: int, strategy: str, networks: Sequence[str], seeds: int | None, out: Path, trust: bool
) -> None:
    """Fill a subset grid and draw it; see `distilkit.subset_grid`."""
    from distilkit import judging, studies

    console = _console()
    made, pipeline = studies.with_pipeline(run, trust=trust)
    if not budgets:
        whole = int(made.class_counts().min())
        budgets = [*(2**i for i in range(whole.bit_length()) if 2**i < whole), whole]
    chosen = judging.parse_networks(networks, [], pipeline.learner, pipeline.evaluation) or None
    with _stoppable(out), StudyDisplay(console, f"testing subsets of {run}") as display:
        grid = studies.subset_grid(made, budgets, draws, chosen, seeds, strategy, pipeline=pipeline, out=out, notice=display.unit)
    table = Table(title=f"{run.name}: {strategy} subsets, test accuracy")
    for heading in ("network", "images per class", "mean", "std over draws", "std over seeds"):
        table.add_column(heading, justify="left" if heading == "network" else "right")
    for name in grid["network"].values:
        for budget in grid["budget"].values:
            own = grid["accuracy"].sel(network=name, budget=budget)
            by_draw = own.transpose("draw", "seed").values
            numbers = (by_draw.mean(), spread(by_draw.mean(1)), spread(by_draw, axis=1).mean())
            table.add_row(str(name), str(budget), *("-" if np.isnan(n) else f"{n:.3f}" for n in numbers))
    console.print(table)
    grid.attrs["title"] = f"{run.name}: {strategy} subsets"
    _show(console, out, report.budget_curves(grid, out / "budgets.png"), report.subset_map(grid, out / "subsets.png"))


def show_intercorrelation(pipeline: Distiller, draws: int, influence_at: int | None, out: Path) -> None:
    """Run the intercorrelation study and draw it; see `distilkit.studies.intercorrelation_study`."""
    from distilkit import studies

    console = _console()
    with _stoppable(out), StudyDisplay(console) as display:
        tree = studies.intercorrelation_study(pipeline, out, draws=draws, influence_at=influence_at, observer=display)
    sources = tree["sources"].to_dataset().assign_attrs(title=tree.attrs["title"])
    console.print(sources_table(sources))
    _show(
        console,
        out,
        report.budget_curves(sources, out / "budgets.png"),
        report.subset_map(sources.sel(source=["subset of the large set", "random real"]), out / "subsets.png"),
        report.influence_map(tree["influence"].to_dataset(), out / "influence.png"),
    )


def sources_table(sources: xr.Dataset) -> Table:
    """Mean and standard deviation of the accuracy over draws and seeds, by source and budget."""
    table = Table(title=f"test accuracy, mean ± std over draws and {sources.sizes['seed']} seeds")
    table.add_column("source")
    for budget in sources["budget"].values:
        table.add_column(f"{budget} per class", justify="right")
    for name in sources["source"].values:
        own = sources["accuracy"].sel(source=name)
        table.add_row(str(name), *(plus_minus(own.sel(budget=b), 3) for b in own["budget"]))
    return table


def show_gradients(
    pipeline: Distiller, at: Sequence[int], replicates: int, policies: Sequence[str], optimizers: Sequence[str], out: Path
) -> None:
    """Run the gradient study and draw it; see `distilkit.gradient_study`. Policies and optimisers are inline TOML tables."""
    from distilkit import studies

    console = _console()
    chosen = {_words(text): _component("truncation", text) for text in policies}
    inner = {_words(text): _component("optimizer", text) for text in optimizers}
    with _stoppable(out), StudyDisplay(console, "taking meta-gradients") as display:
        study = studies.gradient_study(pipeline, chosen or None, inner or None, at, replicates, out=out, notice=display.unit)
    console.print(gradients_table(study))
    _show(console, out, report.gradient_curves(study, out / "gradients.png"))


def gradients_table(study: xr.Dataset) -> Table:
    """Variance, bias and cost by policy, inner optimiser and outer step."""
    table = Table(title=f"{study.attrs['title']}: {study.sizes['replicate']} meta-gradients each, full horizon {study.attrs['horizon']}")
    headings = (
        "policy",
        "optimiser",
        "outer step",
        "norm (median)",
        "variance",
        "clipped",
        "cosine to full",
        "same end",
        "seconds",
        "peak MB",
    )
    for heading in headings:
        table.add_column(heading, justify="left" if heading in headings[:2] else "right")
    for name in study["optimizer"].values:
        for step in study["outer_step"].values:
            for policy in study["policy"].values:
                own = study.sel(optimizer=name, outer_step=step, policy=policy)
                table.add_row(
                    str(policy),
                    str(name),
                    str(step),
                    f"{float(own['norm'].median()):.2e}",
                    f"{float(own['variance']):.3g} ± {float(own['variance_error']):.2g}",
                    f"{float(own['variance_clipped']):.3g} ± {float(own['variance_clipped_error']):.2g}",
                    f"{float(own['cosine']):.2f} ± {float(own['cosine_error']):.2f}",
                    f"{float(own['same_end_cosine'].mean()):.2f}",
                    f"{float(own['seconds'].median()):.3f}",
                    f"{float(own['peak_memory']) / 1e6:.1f}",
                )
    return table


def _console() -> Console:
    """A console whose tables are not squeezed where nobody looks: on a pipe rich would take 80 columns."""
    return Console(highlight=False, soft_wrap=True, width=None if Console().is_terminal else 140)


def _component(slot: str, text: str) -> Any:
    """A component from an inline TOML table."""
    import attrs

    from distilkit import fields
    from distilkit.spec import loads

    holder = attrs.make_class("Holder", {slot: fields.component(slot)}, frozen=True)
    return getattr(loads(f"{slot} = {text}", root=holder, source=f"--{'policy' if slot == 'truncation' else slot}"), slot)


def _words(text: str) -> str:
    """A name for a component that was given as a table."""
    return " ".join(text.replace("kind", "").translate(str.maketrans("{}=\"',", "      ")).split())


@contextmanager
def _stoppable(out: Path) -> Iterator[None]:
    """Ctrl-C in a study ends with words and not with a traceback."""
    try:
        yield
    except KeyboardInterrupt:
        raise RunError(f"Stopped. What was done until then is in {out}; the same command goes on from there.") from None


def _show(console: Console, out: Path, *figures: Path) -> None:
    for figure in figures:
        console.print(f"Look at   {figure}")
    console.print(f"Open it   xarray.open_datatree({str(out / 'results.zarr')!r})")

"""The commands `distilkit subsets` and `distilkit study`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distilkit import report
from distilkit.cli.display import places, stoppable
from distilkit.cli.output import Output
from distilkit.cli.rows import gradients_rows, sources_rows, study_values, subsets_rows
from distilkit.cli.tables import gradients_table, sources_table, subsets_table

if TYPE_CHECKING:
    from distilkit.distiller import Distiller


def show_subsets(
    run: Path,
    budgets: Sequence[int],
    draws: int,
    strategy: str,
    networks: Sequence[str],
    seeds: int | None,
    out: Path,
    case: Mapping[str, Any],
    how: Mapping[str, Any],
    output: Output,
) -> None:
    """Fill a subset grid and draw it, see `distilkit.subset_grid`; `case` are options of `pipeline_of`, `how` the workers and the shard."""
    from distilkit.cli.evaluate import parse_networks
    from distilkit.runs.open import with_pipeline
    from distilkit.storage.remote import require_here
    from distilkit.studies.subsets import subset_grid

    require_here(out)
    there = f"dk.subset_grid({str(run)!r}, {list(budgets) or [1]}, draws={draws}, pipeline=distiller, out={str(out)!r})  # in Python"
    made, pipeline = with_pipeline(run, **case, instead=there)
    if not budgets:
        whole = int(made.class_counts().min())
        budgets = [*(2**i for i in range(whole.bit_length()) if 2**i < whole), whole]
    chosen = parse_networks(networks, [], pipeline.learner, pipeline.evaluation) or None
    with stoppable(out), output.progress() as progress:
        grid = subset_grid(made, budgets, draws, chosen, seeds, strategy, pipeline=pipeline, out=out, progress=progress, **how)
    if how["shard"]:
        return show_part(output, out, out)
    table = subsets_table(grid, f"{run.name}: {strategy} subsets, test accuracy")
    grid.attrs["title"] = f"{run.name}: {strategy} subsets"
    figures = [report.budget_curves(grid, out / "budgets.png"), report.subset_map(grid, out / "subsets.png")]
    output.answer(study_values(out, figures, subsets_rows(grid)), table, *places(out, *figures), written=out)


def show_intercorrelation(
    pipeline: Distiller, draws: int, influence_at: int | None, out: Path, how: Mapping[str, Any], output: Output
) -> None:
    """Run the intercorrelation study and draw it; `how` are the workers and the shard. See `distilkit.intercorrelation_study`."""
    from distilkit.studies.sources import intercorrelation_study

    with stoppable(out), output.progress() as progress:
        tree = intercorrelation_study(pipeline, out, draws=draws, influence_at=influence_at, progress=progress, **how)
    if how["shard"]:
        return show_part(output, out, *(path.parent for path in out.glob("*/units")))
    sources = tree["sources"].to_dataset().assign_attrs(title=tree.attrs["title"])
    figures = [
        report.budget_curves(sources, out / "budgets.png"),
        report.subset_map(sources.sel(source=["subset of the large set", "random real"]), out / "subsets.png"),
        report.influence_map(tree["influence"].to_dataset(), out / "influence.png"),
    ]
    output.answer(study_values(out, figures, sources_rows(sources)), sources_table(sources), *places(out, *figures), written=out)


def show_gradients(
    pipeline: Distiller,
    at: Sequence[int] | None,
    replicates: int,
    policies: Sequence[str],
    optimizers: Sequence[str],
    changed: Mapping[str, Distiller],
    out: Path,
    how: Mapping[str, Any],
    output: Output,
) -> None:
    """Run the gradient study and draw it; `how` are the workers and the shard. See `distilkit.gradient_study`.

    Policies and optimisers are inline TOML tables; `changed` are pipelines that stand beside the policies, by name.
    """
    from distilkit.studies.gradients import gradient_study, usual_policies

    chosen: dict[str, Any] = {_words(text): _component("truncation", text) for text in policies}
    if changed:
        chosen = (chosen or usual_policies(pipeline.truncation)) | dict(changed)
    inner = {_words(text): _component("optimizer", text) for text in optimizers}
    with stoppable(out), output.progress() as progress:
        study = gradient_study(pipeline, chosen or None, inner or None, at, replicates, out=out, progress=progress, **how)
    if how["shard"]:
        return show_part(output, out, out)
    figures = [report.gradient_curves(study, out / "gradients.png")]
    output.answer(study_values(out, figures, gradients_rows(study)), gradients_table(study), *places(out, *figures), written=out)


def show_part(output: Output, out: Path, *grids: Path) -> None:
    """Say how far the grids in a folder are whose shard is done; means, variances and tables take all of them."""
    from distilkit.storage.grid import done, units

    there = sum(map(done, grids)) / sum(map(units, grids))
    words = f"Of {out} {there:.0%} is there. The same command without --shard does what is left, or waits for it, and shows all."
    output.answer(study_values(out, [], [], there), words, written=out)


def _component(slot: str, text: str) -> Any:
    """A component from an inline TOML table."""
    import attrs

    from distilkit import fields
    from distilkit.spec import loads

    holder = attrs.make_class("Holder", {slot: fields.slot(slot)}, frozen=True)
    return getattr(loads(f"{slot} = {text}", root=holder, source=f"--{'policy' if slot == 'truncation' else slot}"), slot)


def _words(text: str) -> str:
    """A name for a component that was given as a table."""
    return " ".join(text.replace("kind", "").translate(str.maketrans("{}=\"',", "      ")).split())

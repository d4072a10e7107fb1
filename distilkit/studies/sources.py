"""The intercorrelation study: is a part of a large distilled set as good as a small set that was distilled as such?

Feng, Vedantam and Kempe (2024) found that it is not, and made boosting to mend it. The study puts at every budget, side by side:
random subsets of the large set, a set distilled directly, the boosted prefix, and real images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import xarray as xr
from filelock import FileLock, Timeout

from distilkit import fields, storage
from distilkit.data.distilled import DistilledSet
from distilkit.display import shown
from distilkit.distiller import Distiller
from distilkit.errors import CombinationError, counted, listing
from distilkit.evaluation import TrainingSet, score_sets, training_set
from distilkit.evaluation.baselines import CORESETS, coreset
from distilkit.progress import SILENT, Progress, Within
from distilkit.runs.record import spec_of
from distilkit.runs.run import run
from distilkit.storage.grid import Region, fill, part_of
from distilkit.storage.layout import build, coordinate, variable
from distilkit.storage.workers import Executor, Workers, share_out
from distilkit.studies.influence import influence
from distilkit.studies.subsets import fingerprint, orders, subset_rows

SUBSET, DIRECT, PREFIX = "subset of the large set", "distilled directly", "boosted prefix"
ONE_DRAW = (DIRECT, PREFIX, "herding real")


def intercorrelation(
    pipeline: Distiller,
    direct: Mapping[int, DistilledSet],
    boosted: DistilledSet | None = None,
    *,
    budgets: Sequence[int] | None = None,
    draws: int = 10,
    coresets: Sequence[str] = CORESETS,
    together: int = 64,
    out: Path | None = None,
    workers: Workers = None,
    shard: tuple[int, int] | None = None,
    progress: Progress | None = None,
) -> xr.Dataset:
    """Compare sets of the same size from different sources.

    Args:
        pipeline: gives the data, the learner, the protocol and the seed.
        direct: distilled sets by their images per class. Subsets are taken of the largest.
        boosted: a set made with a boost schedule; its first rows of each class are the prefixes.
        budgets: images of each class; the keys of `direct` when left out.
        draws: random subsets, and draws of real images, at each budget.
        coresets: of real images: "random real", "k-means real", "herding real".
        together: about how many networks are trained in one unit of work.
        out: a folder for the measurements as they are made, or None.
        workers: who measures, see `subset_grid`.
        shard: as there.
        progress: is told how many units are done. None shows it on a terminal and in a notebook; `dk.Silent()` never.

    Returns:
        accuracy (source, budget, draw, seed), NaN where a source has no set of that size or only one draw.
    """
    with shown(progress) as progress:
        budgets = sorted(direct) if budgets is None else list(budgets)
        protocol, stream = pipeline.evaluation, pipeline.stream.fold("intercorrelation")
        sources = [SUBSET, DIRECT, *([PREFIX] if boosted is not None else []), *coresets]
        large = direct[max(direct)]

        def sets(source: str, budget: int, some: range) -> list[TrainingSet]:
            data = pipeline.bundle  # which a worker loads for itself
            if source == SUBSET:
                order = orders("random", large, draws, stream.fold("rows"))
                return [training_set(large.subset(subset_rows(large.classes, budget, order[draw])), data) for draw in some]
            if source == DIRECT:
                return [training_set(direct[budget], data)] if budget in direct else []
            if source == PREFIX:
                assert boosted is not None
                order = orders("prefix", boosted, 1, stream)[0]
                return [training_set(boosted.subset(subset_rows(boosted.classes, budget, order)), data)]
            made = coreset(source, data, budget, len(some), stream.fold(source).fold(budget).fold(some.start))
            return [attrs.evolve(made, images=made.images[i], labels=made.labels[i]) for i in range(len(some))]

        def compute(region: Region) -> dict[str, np.ndarray]:
            source, budget = sources[region["source"].start], budgets[region["budget"].start]
            some = range(region["draw"].start, region["draw"].stop)
            found = np.full((1, 1, len(some), protocol.seeds), np.nan)
            wanted = range(0, 1) if source in ONE_DRAW else some
            if (source not in ONE_DRAW or some.start == 0) and (given := sets(source, budget, wanted)):
                scores = score_sets(pipeline.bound, given, pipeline.bundle, protocol, stream.fold("networks"), programs=pipeline.programs)
                found[0, 0, : len(given)] = [s.test for s in scores]
            return {"accuracy": found}

        shape = (len(sources), len(budgets), draws, protocol.seeds)
        dims = ("source", "budget", "draw", "seed")
        template = xr.Dataset(
            {"accuracy": variable(dims, np.full(shape, np.nan), "test accuracy of networks trained on the set")},
            {
                "source": coordinate("source", sources, "where the set comes from"),
                "budget": coordinate("budget", np.array(budgets, np.int64), "images of each class"),
                "draw": coordinate("draw", np.arange(draws), "draw of the set"),
                "seed": coordinate("seed", np.arange(protocol.seeds)),
            },
        )
        identity = {
            "study": "intercorrelation",
            "direct": {str(budget): fingerprint(made) for budget, made in direct.items()},
            "boosted": None if boosted is None else fingerprint(boosted),
            "sources": sources,
            "budgets": budgets,
            "draws": draws,
            "protocol": protocol.to_json(),
            "learner": fields.described(pipeline.learner, pipeline.bound.layout.size),
            "seed": pipeline.seed,
        }
        units = {"source": 1, "budget": 1, "draw": max(1, together // protocol.seeds)}
        progress.phase("comparing the sources")
        how: dict[str, Any] = {"workers": workers, "shard": shard, "threads": pipeline.threads}
        return fill(template, units, compute, identity=identity, folder=out, progress=progress, **how)


def intercorrelation_study(
    pipeline: Distiller,
    out: str | Path,
    *,
    draws: int = 10,
    influence_at: int | None = None,
    workers: Workers = None,
    shard: tuple[int, int] | None = None,
    progress: Progress | None = None,
) -> xr.DataTree:
    """Make all the sets that the study needs, compare them, and measure the influence of samples on each other.

    A set that is distilled directly at a budget gets as many outer steps as the boosted run has spent when it reaches that
    budget; one that `images.stored` has given it counts as none. What is finished is not made again: a study that was stopped goes on.
    Several processes with the folder in common share the work, the sets too: each is made by one, and the others wait for it.

    Args:
        pipeline: with a boost schedule.
        out: a folder: OUT/boosted and OUT/direct-N hold the runs, OUT/results.zarr the study.
        draws: random subsets, and draws of real images, at each budget.
        influence_at: images per class of the direct set whose samples are removed one and two at a time; the second budget
            when left out.
        workers: who distils and measures the sets, see `subset_grid`. A set whose worker is lost goes on from its checkpoint.
        shard: (i, n) makes the i-th of n parts of the sets, then those that nobody has begun, since every comparison needs all; it
            waits for those that others are at. Then it does its part of the comparisons, and stores no results.zarr.
        progress: is told how the study goes on. None shows it on a terminal and in a notebook; `dk.Silent()` never.

    Returns:
        the tree with the groups sources and influence (see `intercorrelation` and `studies.influence`). Of a shard, what is not
        there yet is NaN.

    Raises:
        CombinationError: the pipeline has no boost schedule.
    """
    folder = Path(out)
    if pipeline.boost is None:
        raise CombinationError("The intercorrelation study compares boosted prefixes, and this spec has no boost schedule.", fix="[boost]")
    budgets = pipeline.boost.budgets
    at = influence_at or budgets[min(1, len(budgets) - 1)]
    if at not in budgets:
        raise CombinationError(
            f"influence_at = {at}, and the sets distilled directly will have {counted(listing(budgets), 'image')} per class."
        )
    storage.require_writable(folder)
    with shown(progress) as progress:
        return _studied(pipeline, folder, draws, at, {"workers": workers, "shard": shard}, progress)


def _studied(pipeline: Distiller, folder: Path, draws: int, at: int, how: Mapping[str, Any], progress: Progress) -> xr.DataTree:
    judged, steps = fields.evolve(pipeline.evaluation, baselines=()), 0
    pipelines = {"boosted": fields.evolve(pipeline, evaluation=judged)}
    for stage in pipeline.stages:
        steps += stage.steps
        pipelines[f"direct-{stage.per_class}"] = fields.evolve(
            pipeline,
            boost=None,
            images=fields.evolve(pipeline.images, per_class=stage.per_class, stored=None),
            outer=fields.evolve(pipeline.outer, steps=steps),
            truncation=stage.truncation,
            learner=fields.evolve(pipeline.learner, batch_per_class=pipeline.stage_learner(stage).batch_per_class),
            evaluation=judged,
            title=f"{pipeline.title}-direct-{stage.per_class}",
        )
    made = _all_made(pipelines, folder, how["workers"], how["shard"], progress)
    direct = {stage.per_class: made[f"direct-{stage.per_class}"] for stage in pipeline.stages}
    sources = intercorrelation(pipeline, direct, made["boosted"], draws=draws, out=folder / "grid", progress=progress, **how)
    progress.phase(f"removing samples of the set with {counted(at, 'image')} per class")
    pairs = "all" if len(direct[at]) <= 30 else "same class"
    removed = influence(
        pipeline,
        direct[at],
        pipeline.stream.fold("influence"),
        pairs=pairs,
        folder=folder / f"influence-{at}",
        identity={
            "set": fingerprint(direct[at]),
            "learner": fields.described(pipeline.learner, pipeline.bound.layout.size),
            "seed": pipeline.seed,
        },
        progress=progress,
        **how,
    )
    groups = {"sources": sources.drop_attrs(deep=False), "influence": removed}
    tree = build(groups, title=f"{pipeline.title}: intercorrelation", spec=spec_of(pipeline), seed=pipeline.seed)
    if how["shard"] is None:
        with FileLock(folder / "results.lock"):  # another process may be through at the same time, with the same
            storage.write(tree, folder)
    return tree


def _all_made(
    pipelines: Mapping[str, Distiller], folder: Path, workers: Workers, shard: tuple[int, int] | None, progress: Progress
) -> dict[str, DistilledSet]:
    """The sets of these runs by name: those of a shard first, then what nobody is at, and in the end what other processes make."""
    names, made = list(pipelines), dict[str, DistilledSet]()
    own = [names[i] for i in part_of(len(names), shard)]
    left = [*own, *(name for name in names if name not in own)]
    folder.mkdir(parents=True, exist_ok=True)
    if workers is not None:
        _distil_on(workers, pipelines, left, folder, progress)
    for timeout in (0, -1):
        for name in list(left):
            if timeout:
                progress.phase(f"{name}: waiting for another process, which distils it")
            try:
                with FileLock(folder / f"{name}.lock", timeout=timeout):  # ends with its process: what a kill has left goes on here
                    made[name] = _made(pipelines[name], folder / name, progress)
            except Timeout:
                continue
            left.remove(name)
    return made


def _distil_on(workers: int | Executor, pipelines: Mapping[str, Distiller], names: Sequence[str], folder: Path, progress: Progress) -> None:
    """Have workers distil the sets that are not finished, but for those that another process is at."""

    def is_finished(name: str) -> bool:
        return storage.holds_results(folder / name) and bool(storage.open(folder / name).attrs.get("finished"))

    def work(number: int) -> None:
        with suppress(Timeout), FileLock(folder / f"{names[number]}.lock", timeout=0):
            run(pipelines[names[number]], folder / names[number], SILENT)

    waiting = [number for number, name in enumerate(names) if not is_finished(name)]
    before, threads = len(names) - len(waiting), pipelines[names[0]].threads
    progress.phase("distilling the sets on workers")
    share_out(work, waiting, workers, folder=folder, threads=threads, seen=lambda done: progress.advance(before + done, len(names)))


def _made(pipeline: Distiller, folder: Path, progress: Progress) -> DistilledSet:
    """The set of a run, which goes on if it was stopped."""
    run(pipeline, folder, Within(progress, folder.name))
    return storage.load(folder)

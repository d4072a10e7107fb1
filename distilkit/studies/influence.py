"""Intercorrelation of distilled samples: how much accuracy falls when samples go, alone and two at a time.

    drop(i)           = accuracy(S) - accuracy(S without i)
    drop(i, j)        = accuracy(S) - accuracy(S without i and j)
    interaction(i, j) = drop(i, j) - drop(i) - drop(j)

An interaction above 0 means that the two stood in for each other; below 0, that each was of little use without the other. The
same networks (initial parameters and draws) are trained on S and on what is left of it, so that differences are paired by seed.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
import xarray as xr

from distilkit.data.distilled import DistilledSet
from distilkit.distiller import Distiller
from distilkit.errors import FieldError
from distilkit.evaluation import Evaluation, TrainingSet, score_sets, training_set
from distilkit.functional.streams import Stream
from distilkit.progress import SILENT, Progress
from distilkit.storage.grid import Region, fill
from distilkit.storage.layout import coordinate, variable
from distilkit.storage.workers import Workers

NONE = -1


def removals(classes: torch.Tensor, pairs: str) -> list[tuple[int, int]]:
    """What is removed, one or two rows at a time; -1 stands for nobody. First nothing, then each row, then the pairs.

    Args:
        classes: int64 (N,).
        pairs: "none", "same class" or "all".

    >>> removals(torch.tensor([0, 0, 1]), "same class")
    [(-1, -1), (0, -1), (1, -1), (2, -1), (0, 1)]
    """
    if pairs not in ("none", "same class", "all"):
        raise FieldError("pairs", pairs, '"none", "same class" or "all"')
    count = range(len(classes))
    both = [(i, j) for i, j in itertools.combinations(count, 2) if pairs == "all" or (pairs != "none" and classes[i] == classes[j])]
    return [(NONE, NONE), *((i, NONE) for i in count), *both]


def influence(
    pipeline: Distiller,
    distilled: DistilledSet,
    stream: Stream,
    *,
    evaluation: Evaluation | None = None,
    pairs: str = "same class",
    together: int = 64,
    folder: Path | None = None,
    identity: Mapping[str, Any] | None = None,
    workers: Workers = None,
    shard: tuple[int, int] | None = None,
    progress: Progress = SILENT,
) -> xr.Dataset:
    """Measure the influence of every row of a set, and of pairs of rows.

    Args:
        pipeline: gives the data, the learner and the protocol.
        distilled: the set.
        stream: network i takes `stream.fold(i)`, whatever is removed.
        evaluation: the protocol, if it is another.
        pairs: which pairs of rows: "none", "same class" or "all".
        together: about how many networks are trained in one unit of work.
        folder: where the measurements are stored as they are made (see `grid.fill`), or None.
        identity: what names this set and recipe in the folder.
        workers: who measures, see `subset_grid`.
        shard: as there.
        progress: is told how many units are done.

    Returns:
        accuracy (seed); drop (sample, seed); joint_drop and interaction (sample, other, seed), NaN for pairs that were not
        measured, symmetric. Of a shard, what rests on a removal that is not measured yet is NaN too.
    """
    cases = removals(distilled.classes, pairs)
    protocol = evaluation or pipeline.evaluation
    count, seeds = len(distilled), protocol.seeds
    template = xr.Dataset(
        {
            "accuracy": variable(("removal", "seed"), np.full((len(cases), seeds), np.nan), "test accuracy without the removed samples"),
            "removed": variable(("removal", "place"), np.array(cases, np.int64), "rows that are removed; -1 for none"),
        },
        {
            "removal": coordinate("removal", np.arange(len(cases)), "number of the removal"),
            "place": coordinate("place", np.arange(2), "first or second removed row"),
            "seed": coordinate("seed", np.arange(seeds)),
        },
    )

    def compute(region: Region) -> dict[str, np.ndarray]:
        some, training = cases[region["removal"]], training_set(distilled, pipeline.bundle)  # on the device of the worker
        found = np.empty((len(some), seeds))
        by_classes: dict[tuple[int, ...], list[int]] = {}
        for place, case in enumerate(some):
            by_classes.setdefault(tuple(training.classes[_left(count, case)].tolist()), []).append(place)
        for places in by_classes.values():  # sets of one call have the same classes, row by row
            sets = [_without(training, _left(count, some[p])) for p in places]
            found[places] = [
                s.test for s in score_sets(pipeline.bound, sets, pipeline.bundle, protocol, stream, programs=pipeline.programs)
            ]
        return {"accuracy": found}

    units = {"removal": max(1, together // seeds)}
    words = {"study": "influence", "pairs": pairs, "protocol": protocol.to_json(), **(identity or {})}
    how: dict[str, Any] = {"workers": workers, "shard": shard, "threads": pipeline.threads}
    measured = fill(template, units, compute, identity=words, folder=folder, progress=progress, **how)
    return _drops(measured["accuracy"].values, cases, distilled.classes.numpy())


def _left(count: int, case: tuple[int, int]) -> torch.Tensor:
    return torch.tensor([row for row in range(count) if row not in case])


def _without(training: TrainingSet, rows: torch.Tensor) -> TrainingSet:
    return attrs.evolve(training, images=training.images[rows], labels=training.labels[rows], classes=training.classes[rows])


def _drops(accuracy: np.ndarray, cases: list[tuple[int, int]], classes: np.ndarray) -> xr.Dataset:
    """Differences from the whole set."""
    count, seeds = len(classes), accuracy.shape[1]
    fall = accuracy[0] - accuracy
    single, joint = fall[1 : count + 1], np.full((count, count, seeds), np.nan)
    for (i, j), value in zip(cases[count + 1 :], fall[count + 1 :], strict=True):
        joint[i, j] = joint[j, i] = value
    pair = ("sample", "other", "seed")
    return xr.Dataset(
        {
            "accuracy": variable("seed", accuracy[0], "test accuracy with all samples"),
            "drop": variable(("sample", "seed"), single, "fall of accuracy without the sample"),
            "joint_drop": variable(pair, joint, "fall of accuracy without both samples"),
            "interaction": variable(pair, joint - single[:, None] - single[None], "joint fall less the two single falls"),
        },
        {
            "sample": coordinate("sample", np.arange(count)),
            "other": coordinate("other", np.arange(count), "other distilled sample"),
            "seed": coordinate("seed", np.arange(seeds)),
            "label_class": variable("sample", classes, "index of the class that the sample stands for"),
        },
    )

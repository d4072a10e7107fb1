"""Subsets of a distilled set: which rows, how well networks do that are trained on them, and the grid of many of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
import xarray as xr
from torch import Tensor
from torch.nn import functional as F

from distilkit import fields
from distilkit.data.bundle import DataBundle
from distilkit.data.distilled import DistilledSet
from distilkit.data.preprocessing.base import hash_tensor, hash_words
from distilkit.display import shown
from distilkit.distiller import Distiller
from distilkit.errors import Change, CombinationError, FieldError, listing, nearest
from distilkit.evaluation import Evaluation, score_sets, training_set
from distilkit.evaluation.baselines import full_data
from distilkit.evaluation.measuring import streams, trained
from distilkit.functional.streams import Stream
from distilkit.learner import Learner
from distilkit.progress import Progress
from distilkit.runs.open import with_pipeline
from distilkit.storage import require_writable
from distilkit.storage.grid import Region, fill
from distilkit.storage.layout import coordinate, variable
from distilkit.storage.workers import Workers
from distilkit.unroll.execution import ProgramCache

STRATEGIES = ("random", "prefix", "easiest", "hardest")


def subset_grid(
    distilled: DistilledSet | str | Path,
    budgets: Sequence[int],
    draws: int = 1,
    networks: Mapping[str, Any] | None = None,
    seeds: int | None = None,
    strategy: str = "random",
    *,
    pipeline: Distiller | None = None,
    out: str | Path | None = None,
    together: int = 64,
    workers: Workers = None,
    shard: tuple[int, int] | None = None,
    trust: bool = False,
    progress: Progress | None = None,
) -> xr.Dataset:
    """Test accuracy of subsets of a distilled set, by how many images of each class are left.

    Args:
        distilled: the set, or the folder of its run, or the URL of its copy.
        budgets: images of each class.
        draws: subsets of each size, for strategy "random"; the subsets of one draw are nested. The others have one.
        networks: what to train, by name: networks or whole learners. None takes the pipeline's learner.
        seeds: networks trained on each subset; the pipeline's `evaluation.seeds` when left out.
        strategy: "random"; "prefix", block by block; "easiest" or "hardest" first, by the loss of the image's class under
            networks trained on all real images.
        pipeline: gives the data, the learner, the protocol and the seed; that of the run when left out.
        out: a folder for the grid. A grid that was killed goes on there, and several processes may fill it at one time.
        together: about how many networks are trained in one unit of work.
        workers: how many processes of this machine share the work, or an executor of many machines that reach the folder: any of
            `concurrent.futures`, Dask's `Client.get_executor()`, submitit's. None does it here.
        shard: (i, n) does the i-th of n parts of the work and leaves the others, i from 1.
        trust: allow the run's spec to name Python code.
        progress: is told how many units are done. None shows it on a terminal and in a notebook; `dk.Silent()` never.

    Returns:
        accuracy (budget, draw, network, seed), a fraction; training_steps (budget, draw, network), selected on validation; taken
        (budget, draw, sample), 1 where the sample is in the subset. Of a shard, what is not there yet is NaN, and -1 of a whole number.

    Raises:
        CombinationError: a budget that the set cannot serve, or a set without its pipeline.
        RunError: `out` holds another grid.
    """
    with shown(progress) as progress:
        if out is not None:
            require_writable(out)
        progress.phase("loading data")
        made, pipeline = with_pipeline(distilled, pipeline, trust=trust)
        protocol = pipeline.evaluation if seeds is None else fields.evolve(pipeline.evaluation, seeds=seeds)
        learners = {name: bound(pipeline, network) for name, network in (networks or {"the learner's": pipeline.learner}).items()}
        data, stream = pipeline.bundle, pipeline.stream.fold("subsets")
        hard = None
        if strategy in ("easiest", "hardest"):
            hard = difficulty(
                pipeline.bound, made, data, fields.evolve(protocol, labels="soft"), stream.fold("difficulty"), pipeline.programs
            )
        order = orders(strategy, made, draws, stream.fold("rows"), hard)
        rows = {(budget, draw): subset_rows(made.classes, budget, order[draw]) for budget in budgets for draw in range(draws)}

        def compute(region: Region) -> dict[str, np.ndarray]:
            budget, name = budgets[region["budget"].start], list(learners)[region["network"].start]
            picked = [rows[budget, draw] for draw in range(region["draw"].start, region["draw"].stop)]
            whole = training_set(made, pipeline.bundle)  # on the device of the worker
            sets = [attrs.evolve(whole, images=whole.images[r], labels=whole.labels[r], classes=whole.classes[r]) for r in picked]
            scores = score_sets(learners[name], sets, pipeline.bundle, protocol, stream.fold("networks"), programs=pipeline.programs)
            accuracy, steps = np.stack([s.test for s in scores]), np.array([s.steps for s in scores], np.int64)
            return {"accuracy": accuracy[None, :, None], "training_steps": steps[None, :, None]}

        identity = {
            "study": "subsets",
            "set": fingerprint(made),
            "budgets": list(budgets),
            "draws": draws,
            "networks": {name: fields.described(learner, learner.layout.size) for name, learner in learners.items()},
            "strategy": strategy,
            "protocol": protocol.to_json(),
            "seed": pipeline.seed,
            "data": fields.described(pipeline.data),
        }
        template = _template(made, budgets, draws, list(learners), protocol.seeds, rows, hard)
        units = {"budget": 1, "draw": max(1, together // protocol.seeds), "network": 1}
        folder = None if out is None else Path(out)
        progress.phase("testing subsets")
        how: dict[str, Any] = {"workers": workers, "shard": shard, "threads": pipeline.threads}
        grid = fill(template, units, compute, identity=identity, folder=folder, progress=progress, **how)
        return grid.assign_attrs(strategy=strategy)


def _template(
    made: DistilledSet,
    budgets: Sequence[int],
    draws: int,
    networks: list[str],
    seeds: int,
    rows: Mapping[tuple[int, int], torch.Tensor],
    hard: torch.Tensor | None,
) -> xr.Dataset:
    shape = (len(budgets), draws, len(networks), seeds)
    taken = np.zeros((len(budgets), draws, len(made)), np.int8)
    for (budget, draw), picked in rows.items():
        taken[list(budgets).index(budget), draw, picked.numpy()] = 1
    data = {
        "accuracy": variable(
            ("budget", "draw", "network", "seed"), np.full(shape, np.nan), "test accuracy of networks trained on the subset"
        ),
        "training_steps": variable(("budget", "draw", "network"), np.full(shape[:3], -1), "training steps, selected on validation"),
        "taken": variable(("budget", "draw", "sample"), taken, "1 where the sample is in the subset"),
    }
    if hard is not None:
        data["difficulty"] = variable("sample", hard.numpy(), "cross-entropy of the sample's class under networks trained on real images")
    coords = {
        "budget": coordinate("budget", np.array(budgets, np.int64), "images of each class"),
        "draw": coordinate("draw", np.arange(draws), "draw of the subset"),
        "network": coordinate("network", networks, "what is trained"),
        "seed": coordinate("seed", np.arange(seeds)),
        "sample": coordinate("sample", np.arange(len(made))),
        "label_class": variable("sample", made.classes.numpy(), "index of the class that the sample stands for"),
        "block": variable("sample", made.block.numpy(), "boost block of the sample, from 0"),
    }
    return xr.Dataset(data, coords)


def bound(pipeline: Distiller, network: Any) -> Learner:
    """A network, or a whole learner, bound to the pipeline's data."""
    shape, classes = pipeline.bundle.image_shape, pipeline.bundle.num_classes
    return network.bind(shape, classes) if isinstance(network, Learner) else pipeline.learner.with_network(network, shape, classes)


def fingerprint(made: DistilledSet) -> str:
    """A hash of a set's images and labels."""
    return hash_words({name: hash_tensor(getattr(made, name)) for name in ("images", "labels", "classes")})


def subset_rows(classes: Tensor, budget: int, order: Tensor) -> Tensor:
    """The first `budget` rows of each class in an order.

    Args:
        classes: int64 (N,), the class of each row.
        budget: rows of each class.
        order: int64 (N,), a permutation of the rows.

    Returns:
        int64 (budget * classes,), class by class.

    Raises:
        CombinationError: a class has fewer rows.

    >>> subset_rows(torch.tensor([0, 1, 0, 1]), 1, torch.tensor([2, 0, 1, 3])).tolist()
    [2, 1]
    """
    sorted_classes = classes[order]
    fewest = int(classes.bincount().min())
    if not 1 <= budget <= fewest:
        raise CombinationError(
            f"A subset of {budget} images of each class cannot be: the set has {fewest}.", changes=[Change("budgets", [fewest])]
        )
    return torch.cat([order[sorted_classes == c][:budget] for c in range(int(classes.max()) + 1)])


def orders(strategy: str, distilled: DistilledSet, draws: int, stream: Stream, difficulty: Tensor | None = None) -> Tensor:
    """The order in which a strategy takes the rows, for each draw: int64 (draws, N).

    Args:
        strategy: "random", another order for each draw, so that the subsets of one draw are nested; "prefix", as the rows are:
            block by block; "easiest" or "hardest" first, by `difficulty`.
        distilled: the set.
        draws: how many; 1 for all strategies but "random".
        stream: draw i takes `stream.fold(i)`.
        difficulty: (N,), for "easiest" and "hardest".

    Raises:
        FieldError: the strategy is not known.
        CombinationError: several draws of a strategy that has only one.
    """
    if strategy not in STRATEGIES:
        near = nearest(strategy, STRATEGIES)
        changes = [Change("strategy", near)] if near else []
        raise FieldError("strategy", strategy, listing([f'"{s}"' for s in STRATEGIES]), changes=changes)
    if draws < 1:
        raise FieldError("draws", draws, "a whole number, at least 1", fix="draws=10")
    if strategy == "random":
        return torch.stack([stream.fold(i).permutation(len(distilled)) for i in range(draws)])
    if draws != 1:
        raise CombinationError(f'draws = {draws}, but strategy = "{strategy}" has one subset of each size.', fix="draws=1")
    if strategy == "prefix":
        return torch.arange(len(distilled))[None]
    if difficulty is None:
        raise CombinationError(f'strategy = "{strategy}" needs the difficulty of each row.')
    return difficulty.cpu().argsort(descending=strategy == "hardest", stable=True)[None]


def difficulty(
    learner: Learner,
    distilled: DistilledSet,
    data: DataBundle,
    evaluation: Evaluation,
    stream: Stream,
    programs: ProgramCache | None = None,
) -> Tensor:
    """How hard each distilled image is: the cross-entropy of the class that it stands for, under networks trained on all real images.

    Args:
        learner: bound to the data.
        distilled: the set.
        data: the real data.
        evaluation: how many networks, and their last number of training steps.
        stream: network i takes `stream.fold(i)`.
        programs: where what is built is kept, such as `Distiller.programs`.

    Returns:
        float64 (N,), the mean over the networks.
    """
    last, training = fields.evolve(evaluation, steps=evaluation.steps[-1:]), full_data(data, evaluation.batch_size)
    (networks,) = trained(learner, training, last, streams(last, stream), programs)
    images, classes = distilled.images.to(data.train.images.device), distilled.classes.to(data.train.images.device)
    with torch.no_grad():
        losses = [F.cross_entropy(networks.learner.logits(p, images).double(), classes, reduction="none") for p in networks.params]
    return torch.stack(losses).mean(0).cpu()

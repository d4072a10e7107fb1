"""The subset grid: how good are parts of a distilled set?"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
import xarray as xr

from distilkit import spec, storage
from distilkit.data import DistilledSet
from distilkit.distiller import Distiller
from distilkit.errors import CombinationError, RunError
from distilkit.evaluation import training_set
from distilkit.evaluation.grids import Region, fill
from distilkit.evaluation.subsets import difficulty, orders, score_sets, subset_rows
from distilkit.learner import Learner
from distilkit.storage.layout import coordinate, variable


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
    trust: bool = False,
    notice: Callable[[int, int], None] = lambda done, total: None,
) -> xr.Dataset:
    """Test accuracy of subsets of a distilled set, by how many images of each class are left.

    Args:
        distilled: the set, or the folder of its run.
        budgets: images of each class.
        draws: subsets of each size, for strategy "random"; the subsets of one draw are nested. The others have one.
        networks: what to train, by name: networks or whole learners. None takes the pipeline's learner.
        seeds: networks trained on each subset; the pipeline's `evaluation.seeds` when left out.
        strategy: "random"; "prefix", block by block; "easiest" or "hardest" first, by the loss of the image's class under
            networks trained on all real images.
        pipeline: gives the data, the learner, the protocol and the seed; that of the run when left out.
        out: a folder for the grid. A grid that was killed goes on there, and several processes may fill it at one time.
        together: about how many networks are trained in one unit of work.
        trust: allow the run's spec to name Python code.
        notice: told (units done, all units).

    Returns:
        accuracy (budget, draw, network, seed), a fraction; training_steps (budget, draw, network), selected on validation; taken
        (budget, draw, sample), 1 where the sample is in the subset.

    Raises:
        CombinationError: a budget that the set cannot serve, or a set without its pipeline.
        RunError: `out` holds another grid.
    """
    made, pipeline = with_pipeline(distilled, pipeline, trust=trust)
    protocol = pipeline.evaluation if seeds is None else attrs.evolve(pipeline.evaluation, seeds=seeds)
    learners = {name: bound(pipeline, network) for name, network in (networks or {"the learner's": pipeline.learner}).items()}
    data, stream = pipeline.bundle, pipeline.stream.fold("subsets")
    hard = None
    if strategy in ("easiest", "hardest"):
        hard = difficulty(pipeline.bound, made, data, attrs.evolve(protocol, labels="soft"), stream.fold("difficulty"))
    order = orders(strategy, made, draws, stream.fold("rows"), hard)
    rows = {(budget, draw): subset_rows(made.classes, budget, order[draw]) for budget in budgets for draw in range(draws)}
    whole = training_set(made, data)

    def compute(region: Region) -> dict[str, np.ndarray]:
        budget, name = budgets[region["budget"].start], list(learners)[region["network"].start]
        picked = [rows[budget, draw] for draw in range(region["draw"].start, region["draw"].stop)]
        sets = [attrs.evolve(whole, images=whole.images[r], labels=whole.labels[r], classes=whole.classes[r]) for r in picked]
        accuracy, steps = score_sets(learners[name], sets, data, protocol, stream.fold("networks"))
        return {"accuracy": accuracy[None, :, None], "training_steps": steps[None, :, None]}

    identity = {
        "study": "subsets",
        "set": fingerprint(made),
        "budgets": list(budgets),
        "draws": draws,
        "networks": {name: repr(learner) for name, learner in learners.items()},
        "strategy": strategy,
        "protocol": protocol.words(),
        "seed": pipeline.seed,
        "data": repr(pipeline.data),
    }
    template = _template(made, budgets, draws, list(learners), protocol.seeds, rows, hard)
    units = {"budget": 1, "draw": max(1, together // protocol.seeds), "network": 1}
    folder = None if out is None else Path(out)
    return fill(template, units, compute, identity=identity, folder=folder, notice=notice).assign_attrs(strategy=strategy)


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


def with_pipeline(
    distilled: DistilledSet | str | Path, pipeline: Distiller | None = None, *, trust: bool = False
) -> tuple[DistilledSet, Distiller]:
    """A distilled set on the CPU and the pipeline that says how it is judged.

    Args:
        distilled: the set, or the folder of its run.
        pipeline: that of the run when left out.
        trust: allow the run's spec to name Python code.

    Raises:
        CombinationError: a set was given without a pipeline.
        RunError: the run has no spec to take the pipeline from.
    """
    if isinstance(distilled, DistilledSet):
        if pipeline is None:
            raise CombinationError(
                "A DistilledSet does not know the data and the learner that it is judged with.",
                fix="pipeline=dk.Distiller(data, learner, ...)",
            )
        return distilled.to("cpu"), pipeline
    made = storage.load(distilled)
    if pipeline is None:
        path = Path(distilled) / "spec.toml"
        if not path.exists():
            raise RunError(f"{path} is not there, so it is not known how the run judges its set.", fix="pipeline=dk.Distiller(...)")
        pipeline = spec.load(path, trust=trust)
    assert isinstance(pipeline, Distiller)
    return made, pipeline


def bound(pipeline: Distiller, network: Any) -> Learner:
    """A network, or a whole learner, bound to the pipeline's data."""
    learner = network if isinstance(network, Learner) else attrs.evolve(pipeline.learner, network=network)
    return learner.bind(pipeline.bundle.image_shape, pipeline.bundle.classes)


def fingerprint(made: DistilledSet) -> str:
    """A hash of a set's images and labels."""
    digest = hashlib.blake2b(digest_size=12)
    for tensor in (made.images, made.labels, made.classes):
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()

"""Subsets of a distilled set: which rows, and how well networks do that are trained on many of them."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from distilkit.boosting import fitted
from distilkit.data import DataBundle, DistilledSet
from distilkit.errors import CombinationError, FieldError, listing, nearest
from distilkit.evaluation.baselines import full_data
from distilkit.evaluation.protocol import Evaluation, Table, selection_split
from distilkit.evaluation.training import TrainingSet, accuracy, train
from distilkit.functional.streams import Stream
from distilkit.learner import Learner

STRATEGIES = ("random", "prefix", "easiest", "hardest")


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
        raise CombinationError(f"A subset of {budget} images of each class cannot be: the set has {fewest}.", fix=f"budgets=[{fewest}]")
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
        raise FieldError("strategy", strategy, listing([f'"{s}"' for s in STRATEGIES]), fix=f'strategy="{near}"' if near else None)
    if strategy == "random":
        return torch.stack([stream.fold(i).permutation(len(distilled)) for i in range(draws)])
    if draws != 1:
        raise CombinationError(f'draws = {draws}, but strategy = "{strategy}" has one subset of each size.', fix="draws=1")
    if strategy == "prefix":
        return torch.arange(len(distilled))[None]
    if difficulty is None:
        raise CombinationError(f'strategy = "{strategy}" needs the difficulty of each row.')
    return difficulty.cpu().argsort(descending=strategy == "hardest", stable=True)[None]


def difficulty(learner: Learner, distilled: DistilledSet, data: DataBundle, evaluation: Evaluation, stream: Stream) -> Tensor:
    """How hard each distilled image is: the cross-entropy of the class that it stands for, under networks trained on all real images.

    Args:
        learner: bound to the data.
        distilled: the set.
        data: the real data.
        evaluation: how many networks, and their last number of training steps.
        stream: network i takes `stream.fold(i)`.

    Returns:
        float64 (N,), the mean over the networks.
    """
    learner, training = evaluation.trainer(learner, full_data(data, evaluation.batch_size))
    streams = [stream.fold(i) for i in range(evaluation.seeds)]
    ((_, params),) = train(learner, training, streams, evaluation.steps[-1:], mode=evaluation.mode)
    images, classes = distilled.images.to(data.train.images.device), distilled.classes.to(data.train.images.device)
    with torch.no_grad():
        losses = [F.cross_entropy(learner.logits(p, images).double(), classes, reduction="none") for p in params]
    return torch.stack(losses).mean(0).cpu()


def score_sets(
    learner: Learner, sets: Sequence[TrainingSet], data: DataBundle, evaluation: Evaluation, stream: Stream
) -> tuple[Table, np.ndarray]:
    """Test accuracy of networks trained on many sets of the same size and classes, side by side.

    Network i of every set takes `stream.fold(i)`, so two sets differ by nothing but their rows. The number of training steps is
    selected for each set by the mean over its networks on validation.

    Args:
        learner: bound to the data; a larger `batch_per_class` than the sets can serve is made smaller.
        sets: each one set, with images (N, ...).
        data: selects the number of steps on its validation split; the test split is used once for each set.
        evaluation: the protocol.
        stream: of the evaluation.

    Returns:
        accuracy, float64 (sets, seeds), and the numbers of training steps, int64 (sets,).
    """
    first, seeds = sets[0], evaluation.seeds
    counts = first.classes.bincount()
    learner = fitted(learner, counts[counts > 0].tolist())
    stacked = attrs.evolve(
        first,
        images=torch.stack([s.images for s in sets]).repeat_interleave(seeds, 0),
        labels=torch.stack([s.labels for s in sets]).repeat_interleave(seeds, 0),
    )
    learner, stacked = evaluation.trainer(learner, stacked)
    streams = [stream.fold(i) for _ in sets for i in range(seeds)]
    choosing = data.test if evaluation.select == "paper" else selection_split(data)
    chosen, kept = [], []
    for _, params in train(learner, stacked, streams, evaluation.steps, mode=evaluation.mode):
        chosen.append(accuracy(learner, params, choosing, evaluation.mode).view(len(sets), seeds).mean(1))
        kept.append(params.view(len(sets), seeds, -1))
    best = torch.stack(chosen).argmax(0)
    final = torch.cat([kept[int(b)][i] for i, b in enumerate(best)])
    tested = accuracy(learner, final, data.test, evaluation.mode).view(len(sets), seeds)
    return tested.numpy(), np.array(evaluation.steps, np.int64)[best.numpy()]

"""Scores of training sets: networks are trained on one and measured, and of their numbers of training steps one is selected.

All go through `trained`, which gives networks after each of the protocol's numbers of training steps. `score` selects a number on the
validation split and tests there; `score_sets` does the same for many sets at once; `measure` selects none and gives the whole table.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import attrs
import numpy as np
import torch
from torch import Tensor

from distilkit.boosting import with_batch_that_fits
from distilkit.data.bundle import DataBundle, Split
from distilkit.data.distilled import DistilledSet
from distilkit.data.preprocessing import require_same
from distilkit.errors import CombinationError
from distilkit.evaluation.baselines import chosen_images, full_data, members_of_classes
from distilkit.evaluation.protocol import Evaluation
from distilkit.evaluation.training import Mode, TrainingSet, accuracy, mean_or_zero, train
from distilkit.functional.streams import Stream
from distilkit.learner import Learner
from distilkit.progress import SILENT, Progress
from distilkit.unroll.execution import ProgramCache, require_values

Table = np.ndarray[Any, np.dtype[np.float64]]

SELECTION_IMAGES = 10_000  # training images that choices are made on where there is no validation split


class Trained(NamedTuple):
    """Networks that were trained on a set.

    Args:
        steps: for how many training steps.
        learner: whose networks they are, bound.
        params: (networks, P).
        mode: how they are run.
    """

    steps: int
    learner: Learner
    params: Tensor
    mode: Mode

    def accuracy(self, split: Split) -> Table:
        """Fractions (networks,); NaN for a network that diverged."""
        found: Table = accuracy(self.learner, self.params, split, self.mode).numpy()
        return found


def trained(
    learner: Learner, training: TrainingSet, evaluation: Evaluation, streams: Sequence[Stream], programs: ProgramCache | None = None
) -> Iterator[Trained]:
    """Train networks as a protocol says, and give them after each of its numbers of training steps.

    Args:
        learner: bound to the data.
        training: what to train on: one set for all networks, or a set for each.
        evaluation: the protocol.
        streams: one for each network.
        programs: where what is built is kept, such as `Distiller.programs`; None builds anew.
    """
    learner, training = evaluation.trainer(learner, training)
    mode = evaluation.mode(programs)
    for steps, params in train(learner, training, streams, evaluation.steps, mode=mode):
        yield Trained(steps, learner, params, mode)


def measure(
    learner: Learner,
    training: TrainingSet,
    splits: Mapping[str, Split],
    evaluation: Evaluation,
    stream: Stream,
    progress: Progress = SILENT,
    programs: ProgramCache | None = None,
) -> dict[str, Table]:
    """Train networks on a training set and measure them after each number of steps, without choosing one.

    Args:
        learner: bound to the data.
        training: what to train on.
        splits: what to measure on, by name.
        evaluation: the protocol.
        stream: of the evaluation; network i takes `stream.fold(i)`.
        progress: is told the accuracies after each number of steps.
        programs: as for `trained`.

    Returns:
        fractions (lengths, seeds) by the name of the split.
    """
    rows: dict[str, list[Table]] = {name: [] for name in splits}
    for networks in trained(learner, training, evaluation, streams(evaluation, stream), programs):
        for name, split in splits.items():
            rows[name].append(networks.accuracy(split))
            progress.value(f"{name} accuracy after {networks.steps} steps", rows[name][-1].tolist())
    return {name: np.stack(row) for name, row in rows.items()}


def streams(evaluation: Evaluation, stream: Stream) -> list[Stream]:
    """One stream for each network."""
    return [stream.fold(i) for i in range(evaluation.seeds)]


@attrs.frozen
class Score:
    """Accuracy of one training set.

    Args:
        validation: fractions (lengths, seeds) on what choices are made on: after each number of training steps, for each network; NaN for
            one that diverged, which counts as never right where a choice is made.
        test: fractions (seeds,) after the steps that were best there; empty when the test split was not used.
        steps: that number of training steps.
    """

    validation: Table = attrs.field(eq=attrs.cmp_using(np.array_equal))
    test: Table = attrs.field(eq=attrs.cmp_using(np.array_equal))
    steps: int

    @property
    def selected(self) -> Table:
        """Accuracy by seed at the best number of steps, on what choices are made on."""
        best: Table = self.validation[int(mean_or_zero(self.validation).argmax())]
        return best


def score(
    learner: Learner,
    training: TrainingSet,
    data: DataBundle,
    evaluation: Evaluation,
    stream: Stream,
    *,
    test: bool,
    programs: ProgramCache | None = None,
) -> Score:
    """Train networks on a training set, select the number of training steps, and test there.

    Args:
        learner: bound to the data.
        training: what to train on: one set for all networks, or a draw of it for each.
        data: its validation split selects the number of steps (or a part of the training images, where there is no such
            split); its test split is used only if `test`, or if the protocol is the paper's.
        evaluation: the protocol.
        stream: of the evaluation; network i takes `stream.fold(i)`.
        test: measure on the test split, at the selected number of steps.
        programs: where what is built is kept, such as `Distiller.programs`; None builds anew.
    """
    return _scores(learner, training, 1, data, evaluation, stream, test=test, programs=programs)[0]


def score_sets(
    learner: Learner,
    sets: Sequence[TrainingSet],
    data: DataBundle,
    evaluation: Evaluation,
    stream: Stream,
    *,
    programs: ProgramCache | None = None,
) -> list[Score]:
    """The score of each of many sets of the same size and classes, whose networks are trained side by side.

    Network i of every set takes `stream.fold(i)`, so two sets differ by nothing but their rows.

    Args:
        learner: bound to the data; a larger `batch_per_class` than the sets can serve is made smaller.
        sets: each one set, with images (N, ...); all have the learning rate and the label space of the first.
        data: as for `score`; the test split is used once for each set.
        evaluation: the protocol.
        stream: of the evaluation.
        programs: as for `score`.
    """
    first, seeds = sets[0], evaluation.seeds
    counts = first.classes.bincount()
    stacked = attrs.evolve(
        first,
        images=torch.stack([s.images for s in sets]).repeat_interleave(seeds, 0),
        labels=torch.stack([s.labels for s in sets]).repeat_interleave(seeds, 0),
    )
    return _scores(
        with_batch_that_fits(learner, counts[counts > 0].tolist()),
        stacked,
        len(sets),
        data,
        evaluation,
        stream,
        test=True,
        programs=programs,
    )


def _scores(
    learner: Learner,
    training: TrainingSet,
    sets: int,
    data: DataBundle,
    evaluation: Evaluation,
    stream: Stream,
    *,
    test: bool,
    programs: ProgramCache | None,
) -> list[Score]:
    """Of so many sets, whose networks follow each other; of each set's networks those after the best number of steps are kept."""
    seeds, choosing = evaluation.seeds, data.test if evaluation.select == "paper" else selection_split(data)
    own = streams(evaluation, stream) * sets
    rows, best, kept = [], np.full(sets, -1.0), None
    for networks in trained(learner, training, evaluation, own, programs):
        rows.append(networks.accuracy(choosing).reshape(sets, seeds))
        mean = mean_or_zero(rows[-1])
        better = torch.from_numpy((mean > best).repeat(seeds)).to(networks.params.device)
        kept = networks if kept is None else networks._replace(params=torch.where(better[:, None], networks.params, kept.params))
        best = np.maximum(best, mean)
    tables = np.stack(rows)
    picked = mean_or_zero(tables).argmax(0)
    if not test or kept is None:
        tested = np.zeros((sets, 0))
    elif choosing is data.test:
        tested = tables[picked, np.arange(sets)]
    else:
        tested = kept.accuracy(data.test).reshape(sets, seeds)
    return [Score(tables[:, i], tested[i], evaluation.steps[picked[i]]) for i in range(sets)]


def selection_split(data: DataBundle) -> Split:
    """What choices are made on: the validation split; where that is empty, some training images, never the test split."""
    if len(data.validation):
        return data.validation
    rows = Stream(0, ("selection",)).permutation(len(data.train))[:SELECTION_IMAGES].to(data.train.labels.device)
    return Split(data.train.images[rows], data.train.labels[rows])


def training_set(distilled: DistilledSet, data: DataBundle) -> TrainingSet:
    """A distilled set as something to train on, on the device of the data.

    Raises:
        CombinationError: it was made under other preprocessing than the data's, or does not fit its images or classes.
    """
    if (distilled.image_shape, len(distilled.class_names)) != (data.image_shape, data.num_classes):
        raise CombinationError(
            f"The distilled set has images of shape {distilled.image_shape} and {len(distilled.class_names)} classes, and the data "
            f"{data.name!r} has {data.image_shape} and {data.num_classes}."
        )
    require_same(distilled.preprocessing, data.preprocessing)
    device = data.train.images.device
    log_lr = None if distilled.inner_lr is None else torch.tensor(distilled.inner_lr, device=device).log()
    return TrainingSet(
        distilled.images.to(device), distilled.labels.to(device), distilled.classes, log_lr=log_lr, label_space=distilled.label_space
    )


def baseline_set(name: str, data: DataBundle, per_class: int, evaluation: Evaluation, stream: Stream) -> TrainingSet:
    """What a baseline trains on: all real images, or `per_class` of each class, another draw from `stream` for every network."""
    if name == "full data":
        return full_data(data, evaluation.batch_size)
    return chosen_images(name, data, per_class, evaluation.seeds, stream)


def require_feasible(evaluation: Evaluation, learner: Learner, data: DataBundle, per_class: int) -> None:
    """Refuse at the start what would end a run at its end.

    Args:
        evaluation: the protocol.
        learner: bound.
        data: the real data.
        per_class: images of each class that the small baselines get.

    Raises:
        CombinationError: a baseline of real images wants more of a class than there are; networks cannot be run as `evaluation.compile`
            says; a part of the learner is not a value.
    """
    device = data.train.images.device
    if evaluation.compile == "cudagraph" and device.type != "cuda":
        raise CombinationError(f'evaluation.compile = "cudagraph" needs a GPU, and the work is on {device}.', fix='compile = "auto"')
    require_values(learner, evaluation.optimizer, evaluation.augment)
    if set(evaluation.baselines) - {"full data"}:
        members_of_classes(data, per_class)

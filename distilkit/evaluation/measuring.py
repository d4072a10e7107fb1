"""Fresh networks, trained on a set and measured after each of the protocol's numbers of training steps; and what they may be trained on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from distilkit.data.bundle import DataBundle, Split
from distilkit.data.distilled import DistilledSet
from distilkit.data.preprocessing import require_same
from distilkit.errors import CombinationError, counted
from distilkit.evaluation.baselines import chosen_images, full_data, members_of_classes
from distilkit.evaluation.protocol import Evaluation
from distilkit.evaluation.training import Mode, TrainingSet, accuracy, train
from distilkit.functional.streams import Stream
from distilkit.learner import Learner
from distilkit.programs.programs import CAPTURED
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
        in_all: how many there will be, of which these may be some.
    """

    steps: int
    learner: Learner
    params: Tensor
    mode: Mode
    in_all: int

    def accuracy(self, split: Split) -> Table:
        """Fractions (networks,); NaN for a network that diverged."""
        found: Table = accuracy(self.learner, self.params, split, self.mode, self.in_all).numpy()
        return found


def trained(
    learner: Learner,
    training: TrainingSet,
    evaluation: Evaluation,
    streams: Sequence[Stream],
    programs: ProgramCache | None = None,
    *,
    together: int | None = None,
    networks: int | None = None,
) -> Iterator[Trained]:
    """Train networks as a protocol says, and give them after each of its numbers of training steps.

    Args:
        learner: bound to the data.
        training: what to train on: one set for all networks, or a set for each.
        evaluation: the protocol.
        streams: one for each network.
        programs: where what is built is kept, such as `Distiller.programs`; None builds anew.
        together: how many to train side by side, as for `train`.
        networks: how many there will be in all, where these are some of them.
    """
    learner, training = evaluation.trainer(learner, training)
    mode = evaluation.mode(programs)
    in_all = networks or len(streams)
    for steps, params in train(learner, training, streams, evaluation.steps, together=together, mode=mode, networks=in_all):
        yield Trained(steps, learner, params, mode, in_all)


def measure(
    learner: Learner,
    training: TrainingSet,
    splits: Mapping[str, Split],
    evaluation: Evaluation,
    stream: Stream,
    progress: Progress = SILENT,
    programs: ProgramCache | None = None,
    some: slice = slice(None),
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
        some: which of the networks; all when left out.

    Returns:
        fractions (lengths, networks) by the name of the split.
    """
    rows: dict[str, list[Table]] = {name: [] for name in splits}
    own = streams(evaluation, stream)
    for networks in trained(learner, training.part(some), evaluation, own[some], programs, networks=len(own)):
        for name, split in splits.items():
            rows[name].append(networks.accuracy(split))
            progress.value(f"{name} accuracy after {counted(networks.steps, 'step')}", rows[name][-1].tolist())
    return {name: np.stack(row) for name, row in rows.items()}


def streams(evaluation: Evaluation, stream: Stream) -> list[Stream]:
    """One stream for each network."""
    return [stream.fold(i) for i in range(evaluation.seeds)]


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
    if evaluation.compile in CAPTURED and device.type != "cuda":
        raise CombinationError(
            f'evaluation.compile = "{evaluation.compile}" needs a GPU, and the work is on {device}.', fix='compile = "auto"'
        )
    require_values(learner, evaluation.optimizer, evaluation.augment)
    if set(evaluation.baselines) - {"full data"}:
        members_of_classes(data, per_class)

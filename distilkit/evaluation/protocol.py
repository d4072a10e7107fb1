"""How a distilled set is judged: fresh networks are trained on it and tested on real images.

Choices (which iterate, how many training steps) are made on the validation split; the test split is used once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import attrs
import numpy as np
import torch
from torch import Tensor

from distilkit import fields
from distilkit.data import DataBundle, DistilledSet, Split
from distilkit.data.preprocessing import require_same
from distilkit.errors import CombinationError
from distilkit.evaluation.baselines import TrainingSet, chosen_images, full_data
from distilkit.evaluation.training import accuracy, train
from distilkit.functional.streams import Stream
from distilkit.learner import Learner


@attrs.frozen
class Evaluation:
    """The evaluation protocol.

    Args:
        seeds: fresh networks, each with its own random stream.
        steps: numbers of training steps to look at, rising; the one with the best mean validation accuracy is reported.
        every: outer steps between two looks at the validation accuracy during a run; 0 for none.
        optimizer: of the training; None takes the learner's.
        baselines: what is trained in the same way for comparison: "random real", "k-means real" (the real image next to
            each centre) and "full data".
        batch_size: rows of a training step on the full data.

    >>> Evaluation(seeds=3).seeds
    3
    """

    seeds: int = fields.integer(5, least=1)
    steps: tuple[int, ...] = fields.integers((100, 300))
    every: int = fields.integer(0, least=0)
    optimizer: Any = fields.component("optimizer", None, methods=("transformation",), optional=True)
    baselines: tuple[str, ...] = fields.choices(("random real", "full data"), ["random real", "k-means real", "full data"])
    batch_size: int = fields.integer(128, least=1)

    def __attrs_post_init__(self) -> None:
        if list(self.steps) != sorted(set(self.steps)):
            raise CombinationError(
                f"evaluation.steps = {list(self.steps)} must rise, each number once.", fix=f"steps = {sorted(set(self.steps))}"
            )

    def words(self) -> dict[str, Any]:
        """The protocol as JSON-able words, for the stored result."""
        return {
            "networks": self.seeds,
            "training_steps": list(self.steps),
            "optimizer": "the learner's" if self.optimizer is None else repr(self.optimizer),
            "selected_on": "validation split",
        }


@attrs.frozen
class Score:
    """Accuracy of one training set.

    Args:
        validation: fractions (lengths, seeds): after each number of training steps, for each network.
        test: fractions (seeds,) after the steps that were best on validation; empty when the test split was not used.
        steps: that number of training steps.
    """

    validation: np.ndarray[Any, np.dtype[np.float64]] = attrs.field(eq=attrs.cmp_using(np.array_equal))
    test: np.ndarray[Any, np.dtype[np.float64]] = attrs.field(eq=attrs.cmp_using(np.array_equal))
    steps: int

    @property
    def selected(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Validation accuracy by seed at the best number of steps."""
        best: np.ndarray[Any, np.dtype[np.float64]] = self.validation[int(self.validation.mean(1).argmax())]
        return best


def score(learner: Learner, training: TrainingSet, data: DataBundle, evaluation: Evaluation, stream: Stream, *, test: bool) -> Score:
    """Train networks on a training set and measure them.

    Args:
        learner: bound to the data.
        training: what to train on.
        data: its validation split selects the number of steps; its test split is used only if `test`.
        evaluation: the protocol.
        stream: of the evaluation; network i takes `stream.fold(i)`.
        test: measure on the test split, at the selected number of steps.
    """
    if evaluation.optimizer is not None:
        learner = attrs.evolve(learner, optimizer=evaluation.optimizer, learn_lr=False)
    elif training.log_lr is not None:
        learner = attrs.evolve(learner, learn_lr=True)
    validation: Split = data.validation if len(data.validation) else data.train
    images, labels, classes = training.images, training.labels, training.classes
    streams = [stream.fold(i) for i in range(evaluation.seeds)]
    kept: dict[int, Tensor] = {}
    rows = []
    for length, params in train(
        learner, images, labels, classes, streams, evaluation.steps, batch_size=training.batch_size, log_lr=training.log_lr
    ):
        rows.append(accuracy(learner, params, validation.images, validation.labels).numpy())
        kept[length] = params
    table = np.stack(rows)
    best = evaluation.steps[int(table.mean(1).argmax())]
    final = accuracy(learner, kept[best], data.test.images, data.test.labels).numpy() if test else np.zeros(0)
    return Score(table, final, best)


def training_set(distilled: DistilledSet, data: DataBundle) -> TrainingSet:
    """A distilled set as something to train on, on the device of the data.

    Raises:
        CombinationError: it was made under other preprocessing than the data's.
    """
    require_same(distilled.preprocessing, data.preprocessing)
    device = data.train.images.device
    log_lr = None if distilled.inner_lr is None else torch.tensor(distilled.inner_lr, device=device).log()
    return TrainingSet(distilled.images.to(device), distilled.labels.to(device), distilled.classes, log_lr=log_lr)


def baseline_scores(
    learner: Learner,
    data: DataBundle,
    per_class: int,
    evaluation: Evaluation,
    stream: Stream,
    notice: Callable[[str], None] = lambda _: None,
) -> Mapping[str, Score]:
    """Test accuracy of the baselines, with the same recipe and as many networks.

    Args:
        learner: bound to the data.
        data: the real data.
        per_class: images of each class that the small baselines get.
        evaluation: the protocol; it names the baselines.
        stream: of the baselines; "real images" for network i are drawn from their own stream, one draw for each network.
        notice: told the name of each baseline as it starts.
    """
    scores = {}
    plain = attrs.evolve(learner, learn_lr=False)
    for name in evaluation.baselines:
        notice(name)
        own = stream.fold(name)
        if name == "full data":
            training = full_data(data, evaluation.batch_size)
        else:
            training = chosen_images(name, data, per_class, evaluation.seeds, own.fold("images"))
        scores[name] = score(plain, training, data, evaluation, own.fold("networks"), test=True)
    return scores

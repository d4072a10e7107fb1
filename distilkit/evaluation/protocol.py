"""How a distilled set is judged: fresh networks are trained on it and tested on real images.

Choices (which iterate, how many training steps) are made on the validation split, and the test split is used once. The
protocol of the RaT-BPTT paper, which chooses on the test split, is there under its own name: `select="paper"`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import attrs
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from distilkit import fields
from distilkit.data import Augmentation, DataBundle, DistilledSet, Split
from distilkit.data.preprocessing import require_same
from distilkit.errors import CombinationError
from distilkit.evaluation.baselines import chosen_images, full_data, members_of_classes
from distilkit.evaluation.training import Mode, TrainingSet, accuracy, mean_or_zero, train
from distilkit.functional.losses import MSE
from distilkit.functional.optimizers import Optimizer
from distilkit.functional.streams import Stream
from distilkit.learner import Learner
from distilkit.progress import SILENT, Progress
from distilkit.unroll.strategy import Compile, Precision, ProgramCache, require_values

Table = np.ndarray[Any, np.dtype[np.float64]]

SELECTION_IMAGES = 10_000  # training images that choices are made on where there is no validation split
OPTIMISTIC = "test split (the paper's protocol: the largest mean on the test images, which is optimistic)"

LabelUse = Literal["soft", "hard"]

Selection = Literal["validation", "paper"]
Baseline = Literal["random real", "k-means real", "full data"]


@fields.component
class Evaluation:
    """The evaluation protocol.

    Labels, by the label space of the set, when `labels = "soft"`: "one-hot" and "probability" are targets as they are,
    never normalised; "logit" goes through a softmax; "centred" (one-hot less 1/K) is fitted by squared error, whatever the
    learner's loss, since cross-entropy has no meaning for negative targets. With `labels = "hard"`, each set becomes one-hot
    at its largest label.

    The paper's protocol [method.md section 1]: networks like the inner one, tested after 300, 600, 1000 and 3000 steps; the
    mean over 8 networks; then the maximum over the lengths and over the iterates of a run, on the test images.

    Args:
        seeds: fresh networks, each with its own random stream.
        steps: numbers of training steps to look at, rising; the one with the best mean accuracy on validation is reported.
        every: outer steps between two looks at the validation accuracy during a run; 0 for none.
        optimizer: of the training; None takes the learner's.
        augment: of the training; None takes the learner's.
        augmented: false trains without any augmentation, whatever the learner has.
        labels: "soft" or "hard".
        baselines: what is trained in the same way for comparison: "random real", "k-means real" (the real image next to
            each centre) and "full data".
        batch_size: rows of a training step on the full data.
        select: what choices are made on: "validation", or "paper" for the test split, which is optimistic.
        precision: of the arithmetic inside of the networks: "float32", "tf32" (on a GPU) or "bfloat16".
        compile: how training steps are run, as in `Unroller`; "auto" builds programs where there are enough steps to win that back.

    Raises:
        CombinationError: the steps do not rise, or there is an augmentation that would not be used.

    >>> Evaluation(seeds=3).seeds
    3
    """

    seeds: int = fields.integer(default=5, least=1)
    steps: Sequence[int] = fields.integers(default=(100, 300))
    every: int = fields.integer(default=100, least=0)
    optimizer: Optimizer | None = fields.slot("optimizer", default=None, optional=True)
    augment: Augmentation | None = fields.slot("augmentation", default=None, optional=True)
    augmented: bool = fields.flag(default=True)
    labels: LabelUse = fields.choice(LabelUse, default="soft")
    baselines: Sequence[Baseline] = fields.choices(Baseline, default=("random real", "full data"))
    batch_size: int = fields.integer(default=128, least=1)
    select: Selection = fields.choice(Selection, default="validation")
    precision: Precision = fields.choice(Precision, default="float32")
    compile: Compile = fields.choice(Compile, default="auto")

    def __attrs_post_init__(self) -> None:
        if list(self.steps) != sorted(set(self.steps)):
            raise CombinationError(
                f"evaluation.steps = {list(self.steps)} must rise, each number once.", fix=f"steps = {sorted(set(self.steps))}"
            )
        if self.augment is not None and not self.augmented:
            raise CombinationError("evaluation.augment is given, and evaluation.augmented = false turns it off.", fix="augmented = true")

    def mode(self, programs: ProgramCache | None = None) -> Mode:
        """How networks are run, with programs that are kept there, or for as long as this is used."""
        return Mode(self.precision, self.compile, programs or ProgramCache())

    def words(self, data: DataBundle | None = None) -> dict[str, Any]:
        """The protocol as JSON-able words, for the stored result; the data tells whether there is a validation split."""
        selected_on = "validation split"
        if data is not None and not len(data.validation):
            selected_on = "training images, since there is no validation split"
        return {
            "networks": self.seeds,
            "training_steps": list(self.steps),
            "optimizer": "the learner's" if self.optimizer is None else repr(self.optimizer),
            "augmentation": ("the learner's" if self.augment is None else repr(self.augment)) if self.augmented else "none",
            "labels": self.labels,
            "precision": self.precision,
            "selected_on": OPTIMISTIC if self.select == "paper" else selected_on,
            "baselines": "the same recipe, at the declared learning rate where the set has a learned one",
        }

    def trainer(self, learner: Learner, training: TrainingSet) -> tuple[Learner, TrainingSet]:
        """How a set is trained on under this protocol: the learner, with optimiser, augmentation and loss, and the set with its targets."""
        if self.optimizer is not None:
            learner = fields.evolve(learner, optimizer=self.optimizer, learn_lr=False)
        else:
            learner = fields.evolve(learner, learn_lr=training.log_lr is not None)
        augment = (self.augment if self.augment is not None else learner.augment) if self.augmented else None
        learner = fields.evolve(learner, augment=augment)
        if self.labels == "soft" and training.label_space == "centred":
            learner = fields.evolve(learner, loss=MSE())
        labels = targets(training.labels, training.label_space, hard=self.labels == "hard")
        return learner, attrs.evolve(training, labels=labels, label_space="one-hot")


def targets(labels: Tensor, label_space: str, *, hard: bool) -> Tensor:
    """Labels as the targets of a loss; see `Evaluation`.

    Args:
        labels: (..., K).
        label_space: "one-hot", "probability", "logit" or "centred".
        hard: make them one-hot at the largest.

    >>> targets(torch.tensor([[2.0, 0.0]]), "logit", hard=True)
    tensor([[1., 0.]])
    """
    if hard:
        return F.one_hot(labels.argmax(-1), labels.shape[-1]).to(labels.dtype)
    return labels.softmax(-1) if label_space == "logit" else labels


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
    """Train networks on a training set and measure them.

    Args:
        learner: bound to the data.
        training: what to train on.
        data: its validation split selects the number of steps (or a part of the training images, where there is no such
            split); its test split is used only if `test`, or if the protocol is the paper's.
        evaluation: the protocol.
        stream: of the evaluation; network i takes `stream.fold(i)`.
        test: measure on the test split, at the selected number of steps.
        programs: where what is built is kept, such as `Distiller.programs`; None builds anew.
    """
    learner, training = evaluation.trainer(learner, training)
    mode = evaluation.mode(programs)
    choosing = data.test if evaluation.select == "paper" else selection_split(data)
    kept: dict[int, Tensor] = {}
    rows = []
    for length, params in train(learner, training, streams(evaluation, stream), evaluation.steps, mode=mode):
        rows.append(accuracy(learner, params, choosing, mode).numpy())
        kept[length] = params
    table = np.stack(rows)
    best = int(mean_or_zero(table).argmax())
    steps = evaluation.steps[best]
    if not test:
        return Score(table, np.zeros(0), steps)
    return Score(table, table[best] if choosing is data.test else accuracy(learner, kept[steps], data.test, mode).numpy(), steps)


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
        programs: where what is built is kept, such as `Distiller.programs`; None builds anew.

    Returns:
        fractions (lengths, seeds) by the name of the split.
    """
    learner, training = evaluation.trainer(learner, training)
    mode = evaluation.mode(programs)
    rows: dict[str, list[Any]] = {name: [] for name in splits}
    for length, params in train(learner, training, streams(evaluation, stream), evaluation.steps, mode=mode):
        for name, split in splits.items():
            rows[name].append(accuracy(learner, params, split, mode).numpy())
            progress.value(f"{name} accuracy after {length} steps", rows[name][-1].tolist())
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
    if (distilled.image_shape, len(distilled.class_names)) != (data.image_shape, data.classes):
        raise CombinationError(
            f"The distilled set has images of shape {distilled.image_shape} and {len(distilled.class_names)} classes, and the data "
            f"{data.name!r} has {data.image_shape} and {data.classes}."
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


def require_usable(evaluation: Evaluation, learner: Learner, data: DataBundle, per_class: int) -> None:
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


def baseline_scores(
    learner: Learner,
    data: DataBundle,
    per_class: int,
    evaluation: Evaluation,
    stream: Stream,
    progress: Progress = SILENT,
    programs: ProgramCache | None = None,
) -> Mapping[str, Score]:
    """Test accuracy of the baselines, with the same recipe and as many networks.

    Args:
        learner: bound to the data.
        data: the real data.
        per_class: images of each class that the small baselines get.
        evaluation: the protocol; it names the baselines.
        stream: of the baselines; "real images" for network i are drawn from their own stream, one draw for each network.
        progress: is told of each baseline as it starts.
        programs: where what is built is kept, such as `Distiller.programs`; None builds anew.
    """
    scores: dict[str, Score] = {}
    for name in evaluation.baselines:
        progress.phase(f"testing {name}")
        own = stream.fold(name)
        training = baseline_set(name, data, per_class, evaluation, own.fold("images"))
        scores[name] = score(learner, training, data, evaluation, own.fold("networks"), test=True, programs=programs)
    return scores

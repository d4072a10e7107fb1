"""How a distilled set is judged: fresh networks are trained on it and tested on real images.

Choices (which iterate, how many training steps) are made on the validation split, and the test split is used once. The
protocol of the RaT-BPTT paper, which chooses on the test split, is there under its own name: `select="paper"`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import attrs
from torch import Tensor
from torch.nn import functional as F

from distilkit import fields
from distilkit.data.augmentation import Augmentation
from distilkit.data.bundle import DataBundle
from distilkit.errors import CombinationError
from distilkit.evaluation.training import Mode, TrainingSet
from distilkit.functional.losses import MSE
from distilkit.functional.optimizers import Optimizer
from distilkit.learner import Learner
from distilkit.unroll.execution import Compile, Precision, ProgramCache

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

    def to_json(self, data: DataBundle | None = None) -> dict[str, Any]:
        """The protocol as JSON-able words, for the stored result; the data tells whether there is a validation split."""
        selected_on = "validation split"
        if data is not None and not len(data.validation):
            selected_on = "training images, since there is no validation split"
        return {
            "networks": self.seeds,
            "training_steps": list(self.steps),
            "optimizer": "the learner's" if self.optimizer is None else fields.described(self.optimizer),
            "augmentation": ("the learner's" if self.augment is None else fields.described(self.augment)) if self.augmented else "none",
            "labels": self.labels,
            "precision": self.precision,
            "selected_on": OPTIMISTIC if self.select == "paper" else selected_on,
            "baselines": "the same recipe, at the declared learning rate where the set has a learned one",
        }

    def trainer(self, learner: Learner, training: TrainingSet) -> tuple[Learner, TrainingSet]:
        """How a set is trained on under this protocol: the learner, with optimiser, augmentation and loss, and the set with its targets."""
        if self.optimizer is not None:
            learner = fields.evolve(learner, optimizer=self.optimizer, learn_lr=False, lr_steps=1)
        else:
            rates = 1 if training.log_lr is None else training.log_lr.numel()
            learner = fields.evolve(learner, learn_lr=training.log_lr is not None, lr_steps=rates)
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

    >>> import torch
    >>> targets(torch.tensor([[2.0, 0.0]]), "logit", hard=True)
    tensor([[1., 0.]])
    """
    if hard:
        return F.one_hot(labels.argmax(-1), labels.shape[-1]).to(labels.dtype)
    return labels.softmax(-1) if label_space == "logit" else labels

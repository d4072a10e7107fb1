"""The scores of DD-Ranking, on fractions and from seeded streams.

With accuracies as fractions, and network i of each kind compared with network i of the others:

    HLR   = acc(all real images) - acc(synthetic, hard labels)                      hard label recovery; less is better
    IOR   = acc(synthetic) - acc(random real)                                       improvement over random, in the set's own way
    LRS   = f(w IOR - (1 - w) HLR)                                                  label-robust score
    ARS   = f(w IOR_augmented + (1 - w) IOR_plain)                                  augmentation-robust score
    f(x)  = (e^x - e^-1) / (e - e^-1)

f takes [-1, 1] to [0, 1], so all of these need fractions; differences above 1 are refused as percentages.

Where this departs from DD-Ranking's code: a network is tested once, after a number of steps that was chosen on validation,
not at the best of many looks at the test images; random real images have hard labels, since there is no teacher here to label
them; "hard" is the class that a row stands for, as in its code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import attrs
import numpy as np
from torch.nn import functional as F

from distilkit import fields
from distilkit.data.bundle import DataBundle
from distilkit.data.distilled import DistilledSet
from distilkit.errors import CombinationError, FieldError
from distilkit.evaluation.baselines import chosen_images, full_data
from distilkit.evaluation.measuring import Table, training_set
from distilkit.evaluation.protocol import Evaluation
from distilkit.evaluation.scoring import Score, score
from distilkit.evaluation.training import TrainingSet, mean_or_zero
from distilkit.functional.streams import Stream
from distilkit.learner import Learner
from distilkit.progress import SILENT, Progress
from distilkit.unroll.execution import ProgramCache

LEARNING_RATES = (0.001, 0.005, 0.01, 0.05, 0.1)  # that DD-Ranking tries
Numbers = TypeVar("Numbers", float, Table)


def label_robust_score(improvement: Numbers, recovery: Numbers, weight: float = 0.5) -> Numbers:
    """LRS, see the top of this file.

    Args:
        improvement: IOR, a difference of fractions.
        recovery: HLR, a difference of fractions.
        weight: w, of the improvement.

    Returns:
        0 for the worst set that can be (IOR -1, HLR 1), 1 for the best.

    >>> label_robust_score(1.0, -1.0), label_robust_score(-1.0, 1.0)
    (1.0, 0.0)
    """
    scaled: Numbers = _normalised(_weighted(improvement, -_difference("recovery", recovery), weight))
    return scaled


def augmentation_robust_score(augmented: Numbers, plain: Numbers, weight: float = 0.5) -> Numbers:
    """ARS, see the top of this file.

    Args:
        augmented: synthetic less random, both trained with augmentation; a difference of fractions.
        plain: the same without augmentation.
        weight: w, of the first.

    >>> round(augmentation_robust_score(0.3, 0.1), 4)
    0.3631
    """
    scaled: Numbers = _normalised(_weighted(augmented, plain, weight))
    return scaled


@attrs.frozen(eq=False)
class Ranking:
    """DD-Ranking's scores of one set, each with one value a seed.

    Args:
        accuracy: test accuracies (seeds,), fractions: "synthetic", "synthetic hard", "synthetic plain", "random", "random plain",
            "full data".
        weight: w.
    """

    accuracy: dict[str, Table]
    weight: float = 0.5

    @property
    def hard_label_recovery(self) -> Table:
        """HLR (seeds,)."""
        return self.accuracy["full data"] - self.accuracy["synthetic hard"]

    @property
    def improvement_over_random(self) -> Table:
        """IOR (seeds,)."""
        return self.accuracy["synthetic"] - self.accuracy["random"]

    @property
    def label_robust_score(self) -> Table:
        """LRS (seeds,)."""
        return label_robust_score(self.improvement_over_random, self.hard_label_recovery, self.weight)

    @property
    def augmentation_robust_score(self) -> Table:
        """ARS (seeds,)."""
        return augmentation_robust_score(
            self.improvement_over_random, self.accuracy["synthetic plain"] - self.accuracy["random plain"], self.weight
        )


def rank(
    learner: Learner,
    distilled: DistilledSet,
    data: DataBundle,
    evaluation: Evaluation,
    stream: Stream,
    *,
    learning_rates: Sequence[float] | None = None,
    weight: float = 0.5,
    progress: Progress = SILENT,
    programs: ProgramCache | None = None,
) -> Ranking:
    """Train what DD-Ranking's scores need, and test it.

    Args:
        learner: bound to the data; its augmentation (or the protocol's) is the one that "plain" goes without.
        distilled: the set.
        data: the real data, in the set's own preprocessing.
        evaluation: the protocol.
        stream: of the ranking.
        learning_rates: tried for hard labels and for random images, the best on validation is taken, as DD-Ranking does with
            `LEARNING_RATES`; None takes the recipe's own for all.
        weight: w in LRS and ARS.
        progress: is told what is trained as it starts.
        programs: where what is built is kept, such as `Distiller.programs`.

    Raises:
        CombinationError: the classes of the set differ in their number of images.
    """
    per_class = distilled.per_class
    if per_class is None:
        raise CombinationError(
            "DD-Ranking compares with as many random real images of each class, and the set's classes differ in their number."
        )
    soft, tuned = training_set(distilled, data), list(learning_rates or ())
    one_hot = F.one_hot(distilled.classes, data.num_classes).to(soft.labels)
    hard = attrs.evolve(soft, labels=one_hot, label_space="one-hot")
    random = chosen_images("random real", data, per_class, evaluation.seeds, stream.fold("images"))
    plain = fields.evolve(evaluation, augment=None, augmented=False)
    jobs: dict[str, tuple[TrainingSet, Evaluation, list[float]]] = {
        "synthetic": (soft, evaluation, []),
        "synthetic hard": (hard, evaluation, tuned),
        "synthetic plain": (soft, plain, []),
        "random": (random, evaluation, tuned),
        "random plain": (random, plain, tuned),
        "full data": (full_data(data, evaluation.batch_size), evaluation, []),
    }
    found, programs = {}, programs or ProgramCache()
    for name, (training, protocol, rates) in jobs.items():
        progress.phase(f"DD-Ranking: {name}")
        found[name] = _tuned(learner, training, data, protocol, stream.fold(name), rates, programs).test
    return Ranking(found, weight)


def _tuned(
    learner: Learner,
    training: TrainingSet,
    data: DataBundle,
    evaluation: Evaluation,
    stream: Stream,
    rates: Sequence[float],
    programs: ProgramCache,
) -> Score:
    """The score at the learning rate that is best on what choices are made on; each rate gets the same networks."""
    protocols = [fields.evolve(evaluation, optimizer=fields.evolve(evaluation.optimizer or learner.optimizer, lr=rate)) for rate in rates]

    def scored(protocol: Evaluation, test: bool) -> Score:
        return score(learner, training, data, protocol, stream, test=test, programs=programs)

    best = max(protocols, key=lambda p: float(mean_or_zero(scored(p, False).selected)), default=evaluation)
    return scored(best, True)


def _weighted(first: Any, second: Any, weight: float) -> Any:
    if not 0 <= weight <= 1:
        raise FieldError("weight", weight, "a number from 0 to 1")
    return weight * _difference("improvement", first) + (1 - weight) * _difference("plain", second)


def _difference(name: str, value: Any) -> Any:
    if np.abs(value).max() > 1:
        raise FieldError(name, value, "a difference of fractions, from -1 to 1 (percentages are to be divided by 100)")
    return value


def _normalised(x: Any) -> Any:
    scaled = (np.exp(x) - np.exp(-1)) / (np.e - np.exp(-1))
    return scaled if np.ndim(x) else float(scaled)

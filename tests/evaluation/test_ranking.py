"""DD-Ranking's scores: their range, their signs, and what they are made of."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, strategies as st

import distilkit as dk
from distilkit.data.bundle import DataBundle
from distilkit.data.distilled import DistilledSet
from distilkit.errors import DistilkitError
from distilkit.evaluation import Evaluation, augmentation_robust_score, label_robust_score, rank

LEARNER = dk.Learner(dk.MLP(hidden=(16,)), dk.Adam(lr=0.02), augment=dk.FlipRotate()).bind((1, 8, 8), 10)
PROTOCOL = Evaluation(seeds=2, steps=(20,))
differences = st.floats(-1, 1)


@given(differences, differences, st.floats(0, 1))
def test_label_robust_score_is_the_formula(improvement: float, recovery: float, weight: float) -> None:
    alpha = weight * improvement - (1 - weight) * recovery
    wanted = (math.exp(alpha) - 1 / math.e) / (math.e - 1 / math.e)
    assert math.isclose(label_robust_score(improvement, recovery, weight), wanted, abs_tol=1e-12)
    assert -1e-12 <= wanted <= 1 + 1e-12
    assert math.isclose(augmentation_robust_score(improvement, -recovery, weight), wanted, abs_tol=1e-12)


def test_better_sets_score_higher() -> None:
    assert label_robust_score(0.3, 0.1) > label_robust_score(0.2, 0.1) > label_robust_score(0.2, 0.2)
    assert augmentation_robust_score(0.3, 0.1) > augmentation_robust_score(0.3, 0.0)


@pytest.mark.parametrize("wrong", [(53.2, 0.1, 0.5), (0.1, 53.2, 0.5), (0.1, 0.1, 2.0)])
def test_percentages_are_refused(wrong: tuple[float, float, float]) -> None:
    with pytest.raises(DistilkitError):
        label_robust_score(*wrong)


def test_ranking_of_a_set(ten: DistilledSet, digits: DataBundle) -> None:
    found = rank(LEARNER, ten, digits, PROTOCOL, dk.Stream(0))
    accuracy = found.accuracy
    assert all(a.shape == (2,) for a in accuracy.values())
    assert np.allclose(found.hard_label_recovery, accuracy["full data"] - accuracy["synthetic hard"])
    assert np.allclose(found.improvement_over_random, accuracy["synthetic"] - accuracy["random"])
    plain = accuracy["synthetic plain"] - accuracy["random plain"]
    assert np.allclose(found.augmentation_robust_score, augmentation_robust_score(found.improvement_over_random, plain))
    assert (found.hard_label_recovery > 0).all()  # ten real images are not as good as all
    again = rank(LEARNER, ten, digits, PROTOCOL, dk.Stream(0))
    assert all(np.array_equal(accuracy[name], again.accuracy[name]) for name in accuracy)
    other = rank(LEARNER, ten, digits, PROTOCOL, dk.Stream(1))
    assert any(not np.array_equal(accuracy[name], other.accuracy[name]) for name in accuracy)


def test_learning_rate_is_chosen_without_the_test_split(ten: DistilledSet, digits: DataBundle) -> None:
    """Of a good rate and two hopeless ones, the good one: so the tuned accuracy is that of the good rate."""
    good, tuned = (rank(LEARNER, ten, digits, PROTOCOL, dk.Stream(0), learning_rates=r) for r in ([0.02], [1e-6, 0.02, 1e-7]))
    assert all(np.array_equal(good.accuracy[name], tuned.accuracy[name]) for name in good.accuracy)

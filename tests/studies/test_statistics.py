"""The estimators of the gradient study on vectors whose mean and covariance are known."""

import numpy as np
import pytest

from distilkit.studies.statistics import alignment, cosine, jackknife, relative_variance, squared_mean, total_variance

DIMENSION, REPLICATES, TRIALS = 60, 8, 4000


@pytest.fixture(scope="module")
def samples():
    """Many studies of 8 vectors of length 60 each, with a covariance that is neither round nor diagonal."""
    rng = np.random.default_rng(0)
    mean = rng.normal(size=DIMENSION)
    root = rng.normal(size=(DIMENSION, DIMENSION)) * np.linspace(0.1, 1, DIMENSION)
    noise = rng.normal(size=(TRIALS, REPLICATES, DIMENSION))
    return mean, root @ root.T, mean + noise @ root.T, noise


def gram(vectors, others=None):
    return vectors @ np.swapaxes(vectors if others is None else others, -1, -2)


def test_estimates_are_unbiased(samples):
    mean, covariance, vectors, _ = samples
    for estimate, truth in ((squared_mean, mean @ mean), (total_variance, np.trace(covariance))):
        found = np.array([estimate(g) for g in gram(vectors)])
        error = found.std(ddof=1) / np.sqrt(TRIALS)
        assert abs(found.mean() - truth) < 4 * error
        assert error < 0.15 * truth
    # The plain estimate of |mu|^2 is off by tr(Sigma)/K, and this test can see that.
    plain = np.array([g.mean() for g in gram(vectors)])
    assert plain.mean() - mean @ mean == pytest.approx(np.trace(covariance) / REPLICATES, rel=0.1)


def test_total_variance_is_the_usual_sum_of_squares(samples):
    vectors = samples[2][0]
    assert total_variance(gram(vectors)) == pytest.approx(vectors.var(axis=0, ddof=1).sum())
    squared = (vectors.mean(0) ** 2).sum() - vectors.var(axis=0, ddof=1).sum() / REPLICATES
    assert squared_mean(gram(vectors)) == pytest.approx(squared)


def test_many_replicates_find_the_truth():
    rng = np.random.default_rng(1)
    mean, other = rng.normal(size=(2, DIMENSION))
    scale = rng.uniform(0.5, 3, DIMENSION)
    noise = rng.normal(size=(4000, DIMENSION)) * scale
    first, second = mean + noise, other + 2 * noise  # the same randomness, as of one network under two policies
    ratio = relative_variance(gram(first))
    assert ratio == pytest.approx((scale**2).sum() / (mean @ mean), rel=0.03)
    angle = cosine(gram(first), gram(second), gram(first, second))
    assert angle == pytest.approx(mean @ other / np.linalg.norm(mean) / np.linalg.norm(other), abs=0.01)


def test_alignment_is_the_cosine_times_what_noise_leaves():
    rng = np.random.default_rng(3)
    mean, other = rng.normal(size=(2, DIMENSION))
    scale = rng.uniform(0.5, 3, DIMENSION)
    noise = rng.normal(size=(4000, DIMENSION)) * scale
    first, second = mean + noise, other + 2 * noise
    angle = mean @ other / np.linalg.norm(mean) / np.linalg.norm(other)
    left = np.sqrt(mean @ mean / (mean @ mean + (scale**2).sum()))
    found = alignment(gram(first), gram(second), gram(first, second))
    assert found == pytest.approx(angle * left, abs=0.01)
    # What a step at its best length gains on a bowl, |x - f|^2 / 2 from 0, as a share of what the step along f itself gains.
    best = (first @ other).mean() / (first**2).sum(1).mean()
    gained = (((0 - other) ** 2).sum() - ((best * first - other) ** 2).sum(1).mean()) / (other @ other)
    assert gained == pytest.approx(found**2, abs=0.01)


def test_shared_randomness_does_not_look_like_a_shared_direction():
    rng = np.random.default_rng(2)
    mean, other = np.zeros((2, DIMENSION))
    mean[0] = other[1] = 4.0  # orthogonal
    noise = rng.normal(size=(500, 16, DIMENSION))
    found = [cosine(gram(a), gram(b), gram(a, b)) for a, b in zip(mean + noise, other + noise, strict=True)]
    assert abs(np.mean(found)) < 4 * np.std(found) / np.sqrt(500)
    naive = [
        (a.mean(0) @ b.mean(0)) / np.linalg.norm(a.mean(0)) / np.linalg.norm(b.mean(0))
        for a, b in zip(mean + noise, other + noise, strict=True)
    ]
    assert np.mean(naive) > 0.1


def test_the_jackknife_says_how_far_estimates_scatter(samples):
    """Its mean over many studies is near the scatter of the estimate among them, for a statistic that is near linear."""
    grams = gram(samples[2][:1000])
    scatter = np.std([total_variance(g) for g in grams], ddof=1)
    claimed = np.sqrt(np.mean([jackknife(total_variance, g) ** 2 for g in grams]))
    assert claimed == pytest.approx(scatter, rel=0.15)


def test_no_mean_is_said_to_be_none():
    opposite = np.array([[1.0, 0.0], [-1.0, 0.0]])
    assert relative_variance(gram(opposite)) == np.inf
    assert np.isnan(cosine(gram(opposite), gram(opposite), gram(opposite)))
    assert np.isnan(alignment(gram(opposite), gram(opposite), gram(opposite)))
    assert np.isnan(jackknife(relative_variance, np.eye(3)))

"""Unbiased statistics of K independent random vectors, from their inner products alone.

For g_1, ..., g_K independent with mean mu and covariance Sigma, and G_kl = <g_k, g_l>:

    |mu|^2     is estimated by the mean of G_kl over k != l
    tr(Sigma)  by the mean of G_kk less that

Both are unbiased. (The plain |mean of g|^2 is too large by tr(Sigma)/K, which hides a large variance.) For two kinds of vectors
that share their randomness pairwise, <mu, nu> is estimated by the mean of <g_k, f_l> over k != l.

Errors are the jackknife's: the spread of the estimate when one replicate is left out.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Matrix = np.ndarray


def squared_mean(gram: Matrix) -> float:
    """Estimate |mu|^2, or <mu, nu> from a cross matrix: the mean off the diagonal of (K, K). It can come out negative.

    >>> squared_mean(np.array([[9.0, 1.0], [1.0, 9.0]]))
    1.0
    """
    count = len(gram)
    return float((gram.sum() - np.trace(gram)) / (count * (count - 1)))


def total_variance(gram: Matrix) -> float:
    """Estimate tr(Sigma) from the inner products (K, K)."""
    return float(np.trace(gram) / len(gram) - squared_mean(gram))


def relative_variance(gram: Matrix) -> float:
    """tr(Sigma) / |mu|^2: the variance of one draw in units of the squared length of the mean.

    Infinite where |mu|^2 is not told from zero: K draws are then too few.
    """
    squared = squared_mean(gram)
    return total_variance(gram) / squared if squared > 0 else np.inf


def clipped(gram: Matrix, factor: float = 2.0) -> Matrix:
    """Inner products (K, K) after each vector is clipped to `factor` times the median norm.

    >>> np.sqrt(np.diag(clipped(np.diag([1.0, 1.0, 100.0])))).tolist()
    [1.0, 1.0, 2.0]
    """
    norms = np.sqrt(np.diag(gram))
    scale = np.minimum(1.0, factor * np.median(norms) / np.maximum(norms, np.finfo(float).tiny))
    product: Matrix = scale[:, None] * gram * scale
    return product


def cosine(gram: Matrix, other: Matrix, cross: Matrix) -> float:
    """Estimate the cosine between two means, from the inner products within and across; NaN where a length is not told from zero.

    A ratio of three estimates, each of which is without bias: where noise is large it leaves [-1, 1], and `storage.spread.told_cosine`
    says what is shown of it.

    Args:
        gram: (K, K), of the first kind.
        other: (K, K), of the second kind.
        cross: (K, K), first kind by second kind; entries (k, k) share their randomness and are not used.
    """
    lengths = squared_mean(gram), squared_mean(other)
    return squared_mean(cross) / float(np.sqrt(lengths[0] * lengths[1])) if min(lengths) > 0 else np.nan


def alignment(gram: Matrix, other: Matrix, cross: Matrix) -> float:
    """Cosine of one draw of the first kind to the mean of the second, <E g, E f> / sqrt(E |g|^2 |E f|^2): bias and noise in one number.

    Its square is what a step along a draw can be expected to gain, as a share of what a step along E f gains, each at its best length on a
    smooth loss (the descent lemma). Without noise it is `cosine`; noise brings it nearer to zero. NaN where |E f| is not told from zero.

    Args:
        gram: (K, K), of the first kind.
        other: (K, K), of the second kind.
        cross: (K, K), first kind by second kind; entries (k, k) share their randomness and are not used.
    """
    power, length = float(np.trace(gram) / len(gram)), squared_mean(other)
    return squared_mean(cross) / float(np.sqrt(power * length)) if min(power, length) > 0 else np.nan


def gain(alignment: float, error: float, seconds: float) -> float:
    """What a second gives, by `alignment`, its error and the seconds of a draw: the squared alignment over them.

    NaN where the alignment is not told from zero, by two errors.

    >>> gain(0.5, 0.1, 2.0), gain(0.1, 0.1, 2.0)
    (0.125, nan)
    """
    return alignment**2 / seconds if alignment > 2 * error else np.nan


def jackknife(estimate: Callable[..., float], *matrices: Matrix) -> float:
    """Standard error of an estimate that is made from (K, K) matrices, by leaving out one replicate at a time.

    NaN where an estimate without one replicate is not finite.
    """
    count = len(matrices[0])
    without = np.array([estimate(*(np.delete(np.delete(m, k, 0), k, 1) for m in matrices)) for k in range(count)])
    return float(np.sqrt((count - 1) / count * ((without - without.mean()) ** 2).sum())) if np.isfinite(without).all() else np.nan

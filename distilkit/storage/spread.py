"""What stands behind a ±: one statistic, in every table, figure and line that distilkit prints."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def spread(values: npt.ArrayLike, axis: int | tuple[int, ...] | None = None) -> Any:
    """Standard deviation of a sample (divided by n - 1): how much single networks, draws or runs differ.

    NaN stands for what was not measured and is left out. A single value has no spread, and neither has none: NaN.

    Args:
        values: numbers, such as the accuracies of several networks.
        axis: over which dimensions; None for all.

    Returns:
        A float, or an array of the other dimensions.

    >>> float(spread([1.0, 3.0, 5.0, float("nan")])), float(spread([0.5]))
    (2.0, nan)
    """
    numbers = np.asarray(values, np.float64)
    there = ~np.isnan(numbers)
    count = there.sum(axis, keepdims=True)
    mean = np.where(there, numbers, 0).sum(axis, keepdims=True) / np.maximum(count, 1)
    squares = (np.where(there, numbers - mean, 0) ** 2).sum(axis)
    count = there.sum(axis)
    return np.where(count > 1, np.sqrt(squares / np.maximum(count - 1, 1)), np.nan)[()]


def standard_error(values: npt.ArrayLike, axis: int | tuple[int, ...] | None = None) -> Any:
    """Standard error of the mean: `spread` divided by the root of how many values there are. Arguments as there."""
    count = (~np.isnan(np.asarray(values, np.float64))).sum(axis)
    return spread(values, axis) / np.sqrt(np.maximum(count, 1))


MOST_ERROR = 0.4  # of a cosine that is told


def told_cosine(value: npt.ArrayLike, error: npt.ArrayLike) -> Any:
    """A cosine that was estimated, as it is shown: between -1 and 1, and NaN where its standard error is 0.4 or more.

    A ratio of unbiased estimates, as in `distilkit.studies.statistics`, is no cosine of vectors: noise may take it above 1. The nearest
    number that a cosine can be is the better estimate.

    >>> told_cosine([0.8, 1.01, 1.29], [0.1, 0.02, 0.6]).tolist()
    [0.8, 1.0, nan]
    """
    return np.where(np.asarray(error, np.float64) < MOST_ERROR, np.clip(np.asarray(value, np.float64), -1, 1), np.nan)[()]


def plus_minus(values: npt.ArrayLike, digits: int = 4) -> str:
    """Mean ± spread as text; the mean alone where there is no spread.

    >>> plus_minus([0.5, 0.7], 3), plus_minus([0.5], 3)
    ('0.600 ± 0.141', '0.500')
    """
    numbers = np.asarray(values, np.float64)
    there = numbers[~np.isnan(numbers)]
    mean, scatter = there.mean() if there.size else np.nan, spread(there)
    return f"{mean:.{digits}f}" if np.isnan(scatter) else f"{mean:.{digits}f} ± {scatter:.{digits}f}"

"""Micro-batches: a batch that goes through a network in parts, one after the other, whose losses and gradients are added up."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

from torch import Tensor


class Part(NamedTuple):
    """A micro-batch of an inner step.

    share: of all images of the step that it holds, so that the loss of the step is the sum of share times the mean loss of each part. rows:
    where its images lie in the distilled set. images (n, ...), labels (n, K). draw: what is random in it.
    """

    share: float
    rows: slice | Tensor
    images: Tensor
    labels: Tensor
    draw: Any


def micro_batches(count: int, most: int) -> list[slice]:
    """Cut a batch into the fewest parts of at most so many images, as equal as can be: their sizes differ by one at most.

    >>> micro_batches(10, 4)
    [slice(0, 4, None), slice(4, 7, None), slice(7, 10, None)]
    """
    parts = -(-count // most)
    each, larger = divmod(count, parts)
    ends = [each * k + min(k, larger) for k in range(parts + 1)]
    return [slice(begin, end) for begin, end in pairwise(ends)]

"""Agreement of two results of a program, as far as roundings let anybody tell."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

# A sixteenth of a rounding of bfloat16. A rounding of float32 is lost in most of the entries that are then rounded to bfloat16, and moves
# the result by less than the roundings do that a compiler leaves out.
COARSE = 2.0**-12
BFLOAT16 = torch.finfo(torch.bfloat16).eps


def agree(truth: Sequence[Tensor], given: Sequence[Tensor], *, roundings: int) -> bool:
    """Whether every tensor agrees in norm, to so many roundings of its dtype."""
    for expected, actual in zip(truth, given, strict=True):
        if not expected.is_floating_point():
            if not torch.equal(expected, actual):
                return False
            continue
        scale = float(_exact(expected).norm())
        if math.isfinite(scale) and not distance(expected, actual) <= roundings * torch.finfo(expected.dtype).eps * scale:
            return False
    return True


def faithful(
    program: Callable[..., Sequence[Tensor]],
    flat: Sequence[Any],
    truth: Sequence[Tensor],
    again: Callable[[], Sequence[Tensor]],
    *,
    coarse: bool = False,
) -> bool:
    """Whether a recorded program gives the truth.

    To 2,000 roundings; or, where its own result moves by more than that when its inputs are rounded otherwise, to ten times that; or to ten
    times what two runs of the function itself differ by, as they do where a GPU adds in the order in which numbers happen to come. Two
    runs of a pure function differ by roundings only: by no more than that first yardstick, or a rounding of bfloat16 in every entry where
    there are such. And to a twentieth in any case.

    Args:
        program: the recorded one.
        flat: its inputs.
        truth: what the function gives for them.
        again: runs the function once more; called where nothing else explains a difference.
        coarse: whether there are roundings to bfloat16 inside.
    """
    given = program(*flat)
    if agree(truth, given, roundings=2000):
        return True
    moved, second = program(*nudged(flat, least=COARSE if coarse else 0.0)), None
    for i, (right, found, other) in enumerate(zip(truth, given, moved, strict=True)):
        most, rounding = 0.05 * distance(right, torch.zeros_like(right)), 10 * distance(found, other)
        if agree([right], [found], roundings=2000) or distance(right, found) <= min(rounding, most):
            continue
        second = again() if second is None else second
        differ, pure = distance(right, second[i]), max(rounding, 20 * BFLOAT16 * most if coarse else 0.0)
        if not (differ <= pure and distance(right, found) <= min(10 * differ, most)):
            return False
    return True


def within_rounding(expected: Sequence[Tensor], actual: Sequence[Tensor], perturbed: Sequence[Tensor], *, coarse: bool = False) -> bool:
    """Whether results are those of the recorded program, as far as roundings let anybody tell.

    A tensor is, if it agrees to 2,000 roundings; or if it is no more than ten times as far off as the recorded program's own
    result for nudged inputs, in norm. Where a few entries near a singularity outweigh all others, in the norm of all but the largest
    hundredth. With `coarse`, for programs that round to bfloat16 inside, an eighth of such a rounding is allowed in any case: nudges
    cancel in a loss, which is a mean over many images, where roundings that a compiler leaves out all lie on one side.
    """
    for right, given, other in zip(expected, actual, perturbed, strict=True):
        if agree([right], [given], roundings=2000):
            continue
        if not right.is_floating_point():
            return False
        least = BFLOAT16 / 8 * distance(right, torch.zeros_like(right)) if coarse else 0.0
        if distance(right, given) <= max(10 * distance(right, other), least):
            continue
        if right.numel() < 100 or not _trimmed(right, given) <= 10 * _trimmed(right, other):
            return False
    return True


def _trimmed(a: Tensor, b: Tensor) -> float:
    """Norm of the difference without the hundredth of its entries that is largest."""
    sizes = (_exact(a) - _exact(b)).abs().flatten().sort().values
    return float(sizes[: len(sizes) - len(sizes) // 100].norm())


def distance(a: Tensor, b: Tensor) -> float:
    """Norm of the difference, in float64."""
    return float((_exact(a) - _exact(b)).norm())


def _exact(x: Tensor) -> Tensor:
    """In float64, which not every device has."""
    return x.double() if x.device.type in ("cpu", "cuda") else x.cpu().double()


def nudged(flat: Sequence[Any], *, roundings: int = 8, least: float = 0.0) -> list[Any]:
    """The same inputs, moved by so many roundings of their dtype. What a result changes by, nobody can know better.

    Args:
        flat: the inputs.
        roundings: how many.
        least: part of their size by which they are moved at least, for programs that round more coarsely inside than their inputs are.
    """

    def moved(x: Any) -> Any:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            return x
        noise = torch.randn(x.shape, generator=torch.Generator(x.device).manual_seed(0), dtype=x.dtype, device=x.device)
        return x * (1 + max(roundings * torch.finfo(x.dtype).eps, least) * noise)

    return [moved(x) for x in flat]


def elsewhere(flat: Sequence[Any]) -> list[Any]:
    """Other inputs of the same kind: floats moved by percents and kept within the range that they had, whole numbers in another order.

    A single whole number stays as it is: no other is known to make sense.
    """

    def moved(x: Any, other: Any) -> Any:
        if not isinstance(x, Tensor) or not x.dim() or not x.numel():
            return other
        return other.clamp(x.min(), x.max()) if x.is_floating_point() else x.flip(0)

    return [moved(x, other) for x, other in zip(flat, nudged(flat, least=2.0**-5), strict=True)]

"""What `precision = "auto"` stands for: by the clock, and on a GPU also by where the meta-gradient then points.

A convolution tells which precisions are faster than float32 here (`faster`). On a GPU each of those, the lowest first, has to give a
meta-gradient of the run's own data that points where that in float32 does (`pick`); where one does not, the next is tried, and float32 is
the last. On a CPU the clock decides alone: there only bfloat16 is lower, whose cosine was measured (docs/performance.md).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import lru_cache
from math import nan

import torch
from torch import Tensor
from torch.nn import functional as F

from distilkit import process
from distilkit.programs.programs import CAPTURED
from distilkit.unroll.rates import convolution_seconds

LOWER = {"cpu": ("bfloat16",), "cuda": ("bfloat16", "tf32")}  # than float32, the lowest first
WORTH_ROUNDING = 0.75  # of its time in float32 that a convolution may take in a lower precision, for "auto" to take that
WORTH_WORDS = 2.0  # from so many times on bfloat16 that was asked for is called slow; a processor without AVX-512 took 13 to 34 times
LEAST_COSINE = 0.98  # with the float32 meta-gradient: what windows from step 5 on have in bfloat16, at least
COMPARED = ("cuda",)  # devices on which the meta-gradient is looked at too
PROBED = 10  # inner steps that it goes back through

logger = logging.getLogger("distilkit")


def faster(kind: str, channels_last: bool, device: torch.device) -> tuple[dict[str, str], str]:
    """The precisions that are faster than float32 here.

    Args:
        kind: how steps are run, one of `distilkit.programs.programs.EXECUTIONS`.
        channels_last: whether images lie in memory as (N, H, W, C).
        device: where the work is done.

    Returns:
        what the clock says of each that is, by name, the lowest first; and what it says of all that were tried.
    """
    if kind not in ("inductor", *CAPTURED):  # what is only recorded spends its time elsewhere, and norms are slow in bfloat16
        return {}, "float32, since nothing is compiled"
    shares = {name: share(name, channels_last, device) for name in LOWER.get(device.type, ("bfloat16",))}
    words = {name: taking(name, part) for name, part in shares.items()}
    return {name: words[name] for name, part in shares.items() if part <= WORTH_ROUNDING}, ", ".join(words.values())


def pick(found: Mapping[str, str], gradient: Callable[[str], Tensor]) -> tuple[str, str]:
    """The first of some precisions in which the meta-gradient points where that in float32 does; float32 if none does.

    Args:
        found: what is said of each, by name, in the order in which they are tried.
        gradient: a meta-gradient in a precision, a tensor of any shape; not finite, or an error, in one that will not do.

    Returns:
        the precision, and why.

    >>> gradients = {"float32": torch.tensor([1.0, 0.0]), "bfloat16": torch.tensor([1.0, 1.0]), "tf32": torch.tensor([1.0, 0.01])}
    >>> pick({"bfloat16": "fast", "tf32": "less fast"}, gradients.__getitem__)[0]
    'tf32'
    """
    reasons: list[str] = []
    if not found:
        return "float32", "nothing is faster"
    truth = gradient("float32").double().flatten()
    for name, why in found.items():
        try:
            cosine, failed = float(F.cosine_similarity(gradient(name).double().flatten(), truth, dim=0)), ""
        except Exception as error:  # of torch or of a network that knows no such dtype
            if process.is_out_of_memory(error) or isinstance(error, torch.AcceleratorError):
                raise
            cosine, failed = nan, f": {type(error).__name__}: {(str(error) or 'no words').splitlines()[0]}"
        reasons.append(f"{why}, and the cosine of its meta-gradient with that in float32 is {cosine:.4f}{failed}")
        if cosine >= LEAST_COSINE:
            return name, "; ".join(reasons)
    return "float32", f"{'; '.join(reasons)}; at least {LEAST_COSINE:g} is wanted"


def share(precision: str, channels_last: bool, device: torch.device) -> float:
    """Of a convolution's time in float32 that one in a lower precision takes here."""
    dtype, products = (torch.bfloat16, "float32") if precision == "bfloat16" else (torch.float32, precision)
    return convolution_seconds(dtype, channels_last, device, products) / convolution_seconds(torch.float32, channels_last, device)


@lru_cache(maxsize=2)
def say_if_slow(channels_last: bool, device: torch.device) -> None:
    """Once for each layout, where bfloat16 was asked for and is slow."""
    if (part := share("bfloat16", channels_last, device)) >= WORTH_WORDS:
        logger.warning("precision = bfloat16 is slow on this processor: %s", taking("bfloat16", part))


def taking(precision: str, part: float) -> str:
    """What the clock says of a precision."""
    return f"a convolution in {precision} takes {part:.2f} times as long as in float32"

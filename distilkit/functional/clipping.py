"""Clipping of the meta-gradient by a running average of its norm."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from distilkit import fields

SPIKE = 10.0  # a norm counts for so many averages at most

Average = Literal["clipped", "raw"]


@fields.component
class EMAClip:
    """Clip the norm to `factor` times an exponential moving average of the norms.

    With `average = "raw"` this is the rule of the paper's code (Feng et al., 2024):

        ema = decay ema + (1 - decay) |g|;   g = g min(1, factor ema / |g|)

    There one spike of 400 times the average lifts the average, and with it the limit, so that 80 times the usual norm passes,
    and an outer Adam then takes tiny steps for as long as it remembers. With `average = "clipped"`, the default, the limit
    comes from the average before, and a spike counts for ten averages at most, so that one alone does little, and a change that
    lasts is followed within a few steps:

        limit = factor ema;   g = g min(1, limit / |g|);   ema = decay ema + (1 - decay) min(|g|, 10 ema)

    The average starts at the first norm that is not zero, and until then nothing is clipped.

    Args:
        decay: of the moving average.
        factor: norms above this many averages are clipped.
        average: what the average is taken of.

    >>> clip = EMAClip()
    >>> ema = clip.init()
    >>> for norm in (1.0, 1.0, 100.0):
    ...     g, ema, scale = clip.apply(torch.tensor([norm]), ema)
    >>> g.item()
    2.0
    """

    decay: float = fields.number(default=0.9, least=0, below=1)
    factor: float = fields.number(default=2.0, above=0)
    average: Average = fields.choice(Average, default="clipped")

    def init(self) -> Tensor:
        """The average before the first step: not a number, which means none yet."""
        return torch.tensor(float("nan"))

    def apply(self, gradient: Tensor, ema: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return (clipped gradient, new average, the factor it was scaled by). Nothing waits for the device."""
        norm = gradient.norm()
        ema = ema.to(norm)
        ema = torch.where(ema > 0, ema, norm)  # no average yet
        if self.average == "raw":
            ema = self.decay * ema + (1 - self.decay) * norm
        limit = self.factor * ema
        if self.average == "clipped":
            ema = self.decay * ema + (1 - self.decay) * torch.minimum(norm, SPIKE * ema)
        scale = (limit / norm.clamp_min(torch.finfo(norm.dtype).tiny)).clamp(max=1.0)
        scale = torch.where(norm > 0, scale, torch.ones_like(scale))
        return gradient * scale, ema, scale

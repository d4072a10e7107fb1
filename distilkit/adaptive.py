"""Adaptive truncation: windows where a trial run of the inner problem says that the gradient is, and how that changes over a distillation.

After AT-BPTT (NeurIPS 2025, arXiv 2510.04838), written from its description.
"""

from __future__ import annotations

import math
from typing import TypedDict

import torch
from torch import Tensor

from distilkit import fields
from distilkit.errors import CombinationError
from distilkit.functional.streams import Stream
from distilkit.truncation import Probe, StepInfo, Window, require_window_fits


class AdaptiveState(TypedDict):
    """stage: 0, 1 or 2. calm: probes in a row with little change. accuracy: of the last probe. norms: (T,), all zero before the first."""

    stage: int
    calm: int
    accuracy: float
    norms: Tensor


@fields.component
class AdaptiveTruncation:
    """AT-BPTT (arXiv 2510.04838): the place of the window by the norms of the inner gradient, its length by how they change.

    Every `probe_every` outer steps a fresh network is trained for T steps, without a meta-gradient. With n_t the norm of its gradient at
    step t, a window starts at t with probability softmax(n_t / tau) early in the distillation, uniformly in the middle, and
    softmax(-n_t / tau) late. A window at t has W - d + 2 d r_t steps, r_t in [0, 1] the rank of |n_t - n_(t-1)|; one that would
    end behind T starts earlier. The next stage begins when the accuracy of the trial runs on real training images has changed by less than
    `calm_change[stage]` for `calm_probes[stage]` T probes in a row.

    Args:
        horizon: inner steps T at most.
        window: W, the mean number of steps that the gradient flows through.
        spread: d, at most W - 1; 0 keeps the length.
        temperature: tau.
        probe_every: outer steps between two trial runs; the paper's is an epoch of the real data.
        calm_change: of accuracy, fractions, for the end of the early and of the middle stage.
        calm_probes: fractions of T, for the same.

    >>> policy = AdaptiveTruncation(horizon=40, window=10, spread=2)
    >>> policy.plan(policy.init(), 0, Stream(0))[0].length in range(8, 13)
    True
    """

    horizon: int = fields.integer(least=1)
    window: int = fields.integer(least=1)
    spread: int = fields.integer(default=0, least=0)
    temperature: float = fields.number(default=1.0, above=0)
    probe_every: int = fields.integer(default=10, least=1)
    calm_change: tuple[float, float] = fields.numbers(default=(0.015, 0.01), length=2, least=0)
    calm_probes: tuple[float, float] = fields.numbers(default=(0.15, 0.125), length=2, least=0)

    def __attrs_post_init__(self) -> None:
        require_window_fits(self)
        if self.spread >= self.window:
            raise CombinationError(
                f"spread = {self.spread} would leave windows of {self.window - self.spread} steps: it is below window.",
                fix=f"spread = {self.window // 4}",
            )

    def init(self) -> AdaptiveState:
        """Early, and no norms."""
        return {"stage": 0, "calm": 0, "accuracy": math.nan, "norms": torch.zeros(self.horizon, dtype=torch.float64)}

    def probe_steps(self, state: AdaptiveState, outer_step: int) -> int:
        """T steps at the first outer step of all, and at every `probe_every`-th."""
        return self.horizon if outer_step % self.probe_every == 0 or math.isnan(state["accuracy"]) else 0

    def observe_probe(self, state: AdaptiveState, probe: Probe) -> AdaptiveState:
        """Keep the norms, and see whether a stage is over."""
        stage, calm = state["stage"], state["calm"]
        if stage < len(self.calm_change):
            calm = calm + 1 if abs(probe.accuracy - state["accuracy"]) < self.calm_change[stage] else 0
            if calm >= max(1, self.calm_probes[stage] * self.horizon):
                stage, calm = stage + 1, 0
        return {"stage": stage, "calm": calm, "accuracy": probe.accuracy, "norms": probe.norms}

    def probabilities(self, state: AdaptiveState) -> Tensor:
        """Of each inner step to be where a window starts: float64 (T,)."""
        sign = (1, 0, -1)[state["stage"]]
        return torch.softmax(sign * state["norms"] / self.temperature, 0)

    def lengths(self, state: AdaptiveState) -> list[int]:
        """Of a window at each inner step."""
        change = state["norms"].diff().abs()
        change = torch.cat([change[:1], change]) if len(change) else torch.zeros(1)  # the first step has none before it
        ranks = change.argsort(stable=True).argsort(stable=True) / max(1, self.horizon - 1)
        if not state["norms"].any():
            ranks = torch.full_like(ranks, 0.5)
        return [min(self.horizon, self.window - self.spread + round(2 * self.spread * rank)) for rank in ranks.tolist()]

    def plan(self, state: AdaptiveState, outer_step: int, stream: Stream) -> tuple[Window, AdaptiveState]:
        """A window by the norms that are known."""
        place = float(stream.fold(outer_step).uniform(1, dtype=torch.float64))
        start = int(torch.searchsorted(self.probabilities(state).cumsum(0), place).clamp(max=self.horizon - 1))
        length = self.lengths(state)[start]
        start = min(start, self.horizon - length)
        return Window(start, start + length), state

    def observe(self, state: AdaptiveState, info: StepInfo) -> AdaptiveState:
        """Nothing to learn from an outer step itself."""
        return state

"""Truncation policies: through which inner steps the meta-gradient flows.

A policy is a frozen value. `init` gives its state, `plan` picks the window of an outer step, `observe` may learn from the
step's info. To write your own, give a class these three methods; nothing else has to change.

The inner run goes from step 0 to `stop`; the meta-gradient flows through steps start, ..., stop - 1 only, and the outer loss
is taken at `stop`. The steps before `start` run without gradient, and their optimiser state enters as a constant.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

from torch import Tensor

from distilkit import fields
from distilkit.errors import CombinationError
from distilkit.functional.streams import Stream


class Window(NamedTuple):
    """Inner steps start, ..., stop - 1.

    >>> Window(20, 40).length
    20
    """

    start: int
    stop: int

    @property
    def length(self) -> int:
        """Number of steps that the meta-gradient flows through."""
        return self.stop - self.start


class StepInfo(NamedTuple):
    """Diagnostics of one outer step, never fed back (but by `TruncationPolicy.observe`).

    meta_gradient_norm: of the images, before clipping. clip_scale: what clipping multiplied it by. seconds: wall clock.
    attempts: how many windows were drawn until one gave finite numbers; 1 where all is well.
    """

    outer_step: int
    outer_loss: float
    meta_gradient_norm: float
    clip_scale: float
    window: Window
    seconds: float
    stage: int = 0
    attempts: int = 1


S = TypeVar("S")


class TruncationPolicy(Protocol[S]):
    """What a truncation policy with a state of type `S` offers."""

    def init(self) -> S:
        """State before the first outer step, a tree of tensors and numbers."""
        ...

    def plan(self, state: S, outer_step: int, stream: Stream, /) -> tuple[Window, S]:
        """Pick the window of an outer step; all randomness comes from `stream`. It is a pure function.

        On a GPU it is also asked ahead, before `observe` was told of the step before: by then its window is a guess.
        """
        ...

    def observe(self, state: S, info: StepInfo, /) -> S:
        """Take notice of what the outer step gave, and return the new state."""
        ...


class Probe(NamedTuple):
    """What a trial run found: a fresh network, trained on the set as it is.

    norms: float64 (steps,), of the gradient of the training loss with respect to the parameters, before each step.
    accuracy: of the trained network on the real batch of this outer step, a fraction.
    """

    norms: Tensor
    accuracy: float


@runtime_checkable
class ProbingPolicy(TruncationPolicy[S], Protocol[S]):
    """A truncation policy that asks for trial runs."""

    def probe_steps(self, state: S, outer_step: int, /) -> int:
        """How many inner steps the trial run before this outer step has; 0 for none."""
        ...

    def observe_probe(self, state: S, probe: Probe, /) -> S:
        """Take notice of what it found, and return the new state."""
        ...


def probing(policy: Any) -> ProbingPolicy[Any] | None:
    """The policy, if it asks for trial runs."""
    return policy if isinstance(policy, ProbingPolicy) else None


class _Stateless:
    """A policy that keeps no state."""

    __slots__ = ()

    def init(self) -> tuple[()]:
        """Nothing to keep."""
        return ()

    def observe(self, state: tuple[()], info: StepInfo) -> tuple[()]:
        """Nothing to learn."""
        return state


def require_window_fits(policy: Any) -> None:
    """Refuse a window that is longer than the inner run."""
    if policy.window > policy.horizon:
        raise CombinationError(
            f"window = {policy.window} is longer than horizon = {policy.horizon}: the window is a part of the inner run.",
            fix=f"window = {policy.horizon}",
        )


@fields.component
class FullUnroll(_Stateless):
    """Plain backpropagation through time (BPTT): through the whole inner run.

    Args:
        horizon: inner steps T.

    >>> FullUnroll(40).plan((), 0, Stream(0))[0]
    Window(start=0, stop=40)
    """

    horizon: int = fields.integer(least=1)

    def plan(self, state: tuple[()], outer_step: int, stream: Stream) -> tuple[Window, tuple[()]]:
        """[0, T)."""
        return Window(0, self.horizon), state


@fields.component
class TailTruncation(_Stateless):
    """Truncated BPTT (T-BPTT): through the last `window` steps of the inner run.

    Args:
        horizon: inner steps T.
        window: steps M that the gradient flows through.

    >>> TailTruncation(40, 10).plan((), 0, Stream(0))[0]
    Window(start=30, stop=40)
    """

    horizon: int = fields.integer(least=1)
    window: int = fields.integer(least=1)

    def __attrs_post_init__(self) -> None:
        require_window_fits(self)

    def plan(self, state: tuple[()], outer_step: int, stream: Stream) -> tuple[Window, tuple[()]]:
        """[T - M, T)."""
        return Window(self.horizon - self.window, self.horizon), state


@fields.component
class RandomHorizon(_Stateless):
    """R-BPTT: the inner run ends at random, and the gradient flows through all of it.

    Args:
        horizon: the longest inner run T.
        shortest: the shortest one.

    >>> RandomHorizon(40, 40).plan((), 0, Stream(0))[0]
    Window(start=0, stop=40)
    """

    horizon: int = fields.integer(least=1)
    shortest: int = fields.integer(default=1, least=1)

    def __attrs_post_init__(self) -> None:
        if self.shortest > self.horizon:
            raise CombinationError(f"shortest = {self.shortest} is longer than horizon = {self.horizon}.", fix=f"shortest = {self.horizon}")

    def plan(self, state: tuple[()], outer_step: int, stream: Stream) -> tuple[Window, tuple[()]]:
        """[0, N) with N uniform on shortest..T."""
        extra = stream.fold(outer_step).integers(self.horizon - self.shortest + 1).item()
        return Window(0, self.shortest + int(extra)), state


@fields.component
class RandomTruncation(_Stateless):
    """RaT-BPTT, the paper's method (Feng, Vedantam and Kempe, 2024, section 3): a window at a random place.

    Args:
        horizon: inner steps T at most.
        window: steps M that the gradient flows through.
        redraw_every: outer steps that share one window. The paper's code keeps it for an epoch of real data (10 outer steps
            on CIFAR-10 at a batch of 5,000); 1 draws it afresh each time.
        stratified: draw places without replacement: of T - M + 1 windows in a row, no two are at the same place. Averages over outer
            steps, as Adam's, are then calmer; each window alone is as uniform as before.

    >>> RandomTruncation(40, 40).plan((), 0, Stream(0))[0]
    Window(start=0, stop=40)
    """

    horizon: int = fields.integer(least=1)
    window: int = fields.integer(least=1)
    redraw_every: int = fields.integer(default=1, least=1)
    stratified: bool = fields.flag(default=False)

    def __attrs_post_init__(self) -> None:
        require_window_fits(self)

    def plan(self, state: tuple[()], outer_step: int, stream: Stream) -> tuple[Window, tuple[()]]:
        """[s, s + M) with s uniform on 0..T - M."""
        drawn, places = outer_step // self.redraw_every, self.horizon - self.window + 1
        if self.stratified:
            start = int(stream.fold("strata").fold(drawn // places).permutation(places)[drawn % places])
        else:
            start = int(stream.fold(drawn).integers(places).item())
        return Window(start, start + self.window), state


@fields.component
class FixedStart(_Stateless):
    """The authors' "stabilised" recipe: a window at a fixed place.

    Args:
        start: first step of the window.
        window: steps that the gradient flows through.

    >>> FixedStart(40, 90).plan((), 0, Stream(0))[0]
    Window(start=40, stop=130)
    """

    start: int = fields.integer(least=0)
    window: int = fields.integer(least=1)

    def plan(self, state: tuple[()], outer_step: int, stream: Stream) -> tuple[Window, tuple[()]]:
        """[start, start + M)."""
        return Window(self.start, self.start + self.window), state


@fields.component
class Growing:
    """Another policy whose inner runs are short at first, and so cheap and calm, and grow with the outer steps.

    Places and lengths of its windows are scaled by a fraction that rises from `first` to 1 over `steps` outer steps, in a straight line.
    A window that leaves out the first step of all still does.

    Args:
        policy: the other one.
        first: the fraction at outer step 0.
        steps: outer steps until windows are as long as the policy has them.

    >>> policy = Growing(FixedStart(start=1, window=39), first=0.25, steps=100)
    >>> [policy.plan((), k, Stream(0))[0] for k in (0, 50, 100)]
    [Window(start=1, stop=10), Window(start=1, stop=25), Window(start=1, stop=40)]
    """

    policy: Any = fields.slot("truncation")
    first: float = fields.number(default=0.25, above=0, most=1)
    steps: int = fields.integer(default=500, least=1)

    def __attrs_post_init__(self) -> None:
        if probing(self.policy) is not None:
            raise CombinationError(f"{type(self.policy).__name__} chooses by trial runs of the whole length, and cannot grow.")

    def init(self) -> Any:
        """The other policy's."""
        return self.policy.init()

    def plan(self, state: Any, outer_step: int, stream: Stream) -> tuple[Window, Any]:
        """Its window, scaled."""
        window, state = self.policy.plan(state, outer_step, stream)
        fraction = self.first + (1 - self.first) * min(1.0, outer_step / self.steps)
        start = math.ceil(fraction * window.start)
        return Window(start, max(start + 1, round(fraction * window.stop))), state

    def observe(self, state: Any, info: StepInfo) -> Any:
        """As the other policy does."""
        return self.policy.observe(state, info)

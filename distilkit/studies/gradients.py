"""The gradient study: norm, variance, bias and cost of the meta-gradient, by truncation policy or other way of taking it.

At chosen points of a distillation the images S are kept as they are, and K meta-gradients are taken with each policy, each on a
fresh network, a fresh real batch and a fresh window. With g_k the gradient with respect to all images, as one vector:

    variance   tr Cov(g) / |E g|^2                        of one draw, in units of the squared length of the mean
    clipped    the same after each draw is clipped to twice the median norm of its kind, as a distiller's clip does: single
               spikes, from windows that hold inner step 0 with Adam, can be most of the plain variance
    cosine     between E g and E g_full                   bias of the direction; g_full is FullUnroll over the longest horizon T
    alignment  between one draw g_k and E g_full          bias and noise in one number; its square is what a step along g_k is worth,
               where a step along E g_full is worth 1, and over `seconds` that is what a way gives for its time
    same end   between g_k and the exact gradient of the very loss whose window g_k was taken through: what truncation does
               alone, when the random end of the window is left out

A policy that ends its window before T differentiates another outer loss, that of a network trained for fewer steps. `cosine`
counts this as bias against the goal at T; `same end` does not. Both expectations are estimated without bias from inner products
(see `distilkit.studies.statistics`). Replicate k has the same network, draws and real batch for all policies. A way with several networks
a step has networks of its own; one with several ends is compared with the exact gradient of the loss at the last.

Feng, Vedantam and Kempe (2024) plot the norm of the meta-gradient, by outer step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import attrs
import numpy as np
import torch
import xarray as xr
from filelock import FileLock
from torch import Tensor

from distilkit import fields, process
from distilkit.display import shown
from distilkit.distiller import Distiller, DistillerState
from distilkit.errors import Change, CombinationError, FieldError, listing
from distilkit.functional.streams import Stream
from distilkit.learner import Learner
from distilkit.progress import Progress
from distilkit.storage import checkpoint, require_writable
from distilkit.storage.grid import Region, fill
from distilkit.storage.workers import Workers
from distilkit.studies.gradients_layout import VARIABLES, gradients_template
from distilkit.studies.statistics import alignment, clipped, cosine, jackknife, relative_variance, squared_mean
from distilkit.truncation import FullUnroll, RandomHorizon, RandomTruncation, TailTruncation, Window, probing
from distilkit.unroll.inner import OuterVariables
from distilkit.unroller import RealBatch, Unroller


class Draw(NamedTuple):
    """One meta-gradient: its vector, on the CPU in float64, its outer loss and its time in seconds."""

    vector: Tensor
    loss: float
    seconds: float


def usual_policies(truncation: Any) -> dict[str, Any]:
    """The four policies of the paper's comparison, with the horizon and window of a policy (a window of half the horizon without one).

    >>> list(usual_policies(RandomTruncation(40, 20)))
    ['full unroll', 'tail', 'random horizon', 'random truncation']
    """
    horizon = getattr(truncation, "horizon", None) or truncation.plan(truncation.init(), 0, Stream(0))[0].stop
    window = getattr(truncation, "window", None) or max(1, horizon // 2)
    return {
        "full unroll": FullUnroll(horizon),
        "tail": TailTruncation(horizon, window),
        "random horizon": RandomHorizon(horizon, min(window, horizon)),
        "random truncation": RandomTruncation(horizon, window),
    }


def usual_points(outer_steps: int) -> list[int]:
    """At which outer steps a distillation of so many is studied: 0, 50 and 200, or, where it is shorter, the start, a quarter and the end.

    >>> usual_points(400), usual_points(100)
    ([0, 50, 200], [0, 25, 100])
    """
    return [0, 50, 200] if outer_steps >= 200 else sorted({0, outer_steps // 4, outer_steps})


class Problem(NamedTuple):
    """What the meta-gradients are taken of: a bound learner, the outer variables, and the class that each row is drawn as, (N,)."""

    learner: Learner
    leaves: OuterVariables
    groups: Tensor


class Way(NamedTuple):
    """A way of taking the meta-gradient of a pipeline's images.

    policy: truncation policy. unroller, ends: as `Distiller.unroller` and `Outer.ends`. plain: whether policy is all that differs from
    the pipeline.
    """

    policy: Any
    unroller: Unroller
    ends: int
    plain: bool


def _way(pipeline: Distiller, given: Any) -> Way:
    """That of a truncation policy, or of another pipeline."""
    if not isinstance(given, Distiller):
        return Way(given, pipeline.unroller, pipeline.outer.ends, True)
    same = (given.unroller, given.outer.ends) == (pipeline.unroller, pipeline.outer.ends)
    return Way(given.truncation, given.unroller, given.outer.ends, same)


def _require_same(pipeline: Distiller, name: str, other: Distiller) -> None:
    """Refuse a pipeline that differs in what the study holds fixed: the difference would do nothing, and pass for one that did."""
    outer = fields.evolve(other.outer, ends=pipeline.outer.ends)
    rest = fields.evolve(other, truncation=pipeline.truncation, unroller=pipeline.unroller, outer=outer)
    of: Any = Distiller
    wrong = [one.name for one in attrs.fields(of) if repr(getattr(rest, one.name)) != repr(getattr(pipeline, one.name))]
    if wrong:
        raise CombinationError(
            f"{name!r} differs from the pipeline in its {listing(wrong, 'and')}, and of another pipeline the study takes truncation, "
            "unroller and outer.ends only. Other inner optimisers are given as such.",
        )


def gradient_study(
    pipeline: Distiller,
    policies: Mapping[str, Any] | None = None,
    optimizers: Mapping[str, Any] | None = None,
    outer_steps: Sequence[int] | None = None,
    replicates: int = 16,
    *,
    horizon: int | None = None,
    out: str | Path | None = None,
    workers: Workers = None,
    shard: tuple[int, int] | None = None,
    progress: Progress | None = None,
) -> xr.Dataset:
    """Measure meta-gradients along a distillation.

    Args:
        pipeline: is distilled with its own policy up to the last of the outer steps. It gives data, learner and adjoint.
        policies: truncation policies by name; the four of `usual_policies` when left out. Each is asked in its first state, and after
            its trial run if it asks for one. A `Distiller` may stand for one, such as
            `dk.evolve(pipeline, outer=dk.evolve(pipeline.outer, ends=3))`: its truncation, `unroller` and `outer.ends` count then,
            and all else is that of the study.
        optimizers: inner optimisers by name, that the meta-gradients are taken through; the pipeline's when left out.
        outer_steps: points of the distillation, as outer steps done; `usual_points` when left out.
        replicates: K, at least 3.
        horizon: T of the full unroll that `cosine` compares with; the longest of the pipeline's and the policies' windows when left out.
        out: a folder; the study goes on there after a kill, and several processes may fill it.
        workers: who takes the meta-gradients of an optimiser at an outer step, see `subset_grid`.
        shard: as there.
        progress: is told how many units are done. None shows it on a terminal and in a notebook; `dk.Silent()` never.

    Returns:
        the variables in `gradients_layout.VARIABLES` over (policy, optimizer, outer_step, ...).

    Raises:
        CombinationError: fewer than 3 replicates, an outer step beyond the pipeline's last, or a pipeline that differs in more.
    """
    with shown(progress) as progress:
        if out is not None:
            require_writable(out)
        chosen = dict(policies or usual_policies(pipeline.truncation))
        inner = dict(optimizers or {type(pipeline.learner.optimizer).__name__: pipeline.learner.optimizer})
        points = usual_points(pipeline.outer_steps) if outer_steps is None else sorted(set(outer_steps))
        for name, one in chosen.items():
            if isinstance(one, Distiller):
                _require_same(pipeline, name, one)
        if replicates < 3:
            raise CombinationError(f"replicates = {replicates} are too few for a variance and its error.", fix="replicates=16")
        if not points or points[0] < 0:
            raise FieldError("outer_steps", points, "one or more whole numbers, each at least 0", fix="outer_steps=[0, 50]")
        if points[-1] > pipeline.outer_steps:
            raise CombinationError(
                f"A study at outer step {points[-1]} cannot be: the pipeline ends after {pipeline.outer_steps}.",
                changes=[Change("outer_steps", usual_points(pipeline.outer_steps), "at")],
            )
        streams = [pipeline.stream.fold("gradient study").fold(k) for k in range(replicates)]
        asked = [one.truncation if isinstance(one, Distiller) else one for one in (*chosen.values(), pipeline)]
        stops = [_plan(policy, policy.init(), stream).stop for policy in asked for stream in streams]
        longest = horizon or max([*stops, *(getattr(policy, "horizon", 0) for policy in asked)])
        folder = None if out is None else Path(out)
        states = _States(pipeline, folder)

        def compute(region: Region) -> dict[str, np.ndarray]:
            name, point = list(inner)[region["optimizer"].start], points[region["outer_step"].start]
            taken = _unit(pipeline, states.at(point), inner[name], list(chosen.values()), streams, longest)
            return {key: values[:, None, None] for key, values in taken.items()}

        identity = {
            "study": "gradients",
            "pipeline": fields.described(pipeline, pipeline.bound.layout.size),
            "policies": {name: fields.described(policy) for name, policy in chosen.items()},
            "optimizers": {name: fields.described(optimizer) for name, optimizer in inner.items()},
            "outer_steps": points,
            "replicates": replicates,
            "horizon": longest,
        }
        template = gradients_template(list(chosen), list(inner), points, replicates).assign_attrs(horizon=longest, title=pipeline.title)
        units = {"optimizer": 1, "outer_step": 1}
        progress.phase("taking meta-gradients")
        how: dict[str, Any] = {"workers": workers, "shard": shard, "threads": pipeline.threads}
        return fill(template, units, compute, identity=identity, folder=folder, progress=progress, **how)


def _plan(policy: Any, state: Any, stream: Stream) -> Window:
    """The window of a policy at its first step, with the replicate's own randomness."""
    window: Window = policy.plan(state, 0, stream.fold("window"))[0]
    return window


@attrs.define
class _States:
    """The states of a distillation at rising outer steps, kept as checkpoints where there is a folder."""

    pipeline: Distiller
    folder: Path | None
    state: DistillerState | None = None

    def at(self, step: int) -> DistillerState:
        if self.folder is None:
            return self._distilled(step)
        with FileLock(self.folder / "states.lock"):  # what another process is at is waited for, not made twice
            place = self.folder / "states" / str(step)
            kept = checkpoint.latest(place)
            if kept is not None:
                state: DistillerState = checkpoint.unflatten(self.pipeline.template(kept.meta["stage"]), kept.tensors)
                self.state = state
                return state
            state = self._distilled(step)
            checkpoint.save(place, step, checkpoint.flatten(state), {"stage": state.stage})
            return state

    def _distilled(self, step: int) -> DistillerState:
        state = self.state
        if state is None or state.step > step:
            state = self.pipeline.init()
        while state.step < step:
            state, _ = self.pipeline.step(state)
        self.state = state
        return state


def _unit(
    pipeline: Distiller, state: DistillerState, optimizer: Any, given: Sequence[Any], streams: Sequence[Stream], horizon: int
) -> dict[str, np.ndarray]:
    """All ways and replicates at one outer step, with one inner optimiser: arrays with the ways first."""
    stage = pipeline.stages[state.stage]
    log_lr = state.leaves.log_lr
    if optimizer != pipeline.learner.optimizer:
        log_lr = torch.full_like(log_lr, optimizer.lr).log()
    learner = fields.evolve(pipeline.stage_learner(stage), optimizer=optimizer)
    problem = Problem(learner, state.leaves._replace(log_lr=log_lr), pipeline.sampling_groups(stage))
    take = _meta_gradient_sampler(pipeline, _way(pipeline, pipeline.truncation), problem)
    known: dict[tuple[Window, int], Draw] = {}

    def inner(k: int) -> Stream:
        return streams[k].fold("inner").fold(state.step)

    def draw(window: Window, k: int) -> Draw:
        if (window, k) not in known:
            known[window, k] = take(window, inner(k))
        return known[window, k]

    count = range(len(streams))
    full = torch.stack([draw(Window(0, horizon), k).vector for k in count])
    rows: list[dict[str, Any]] = []
    for way in (_way(pipeline, one) for one in given):
        planned = _windows(pipeline, way, problem, streams, state.step)
        own = take if way.plain else _meta_gradient_sampler(pipeline, way, problem)
        draws = [draw(window, k) if way.plain else own(window, inner(k)) for k, window in enumerate(planned)]
        exact = [draw(Window(0, window.stop), k).vector for k, window in enumerate(planned)]
        vectors = torch.stack([d.vector for d in draws])
        gram, cross = (vectors @ vectors.T).numpy(), (vectors @ full.T).numpy()
        reference = (full @ full.T).numpy()
        longest = max(planned, key=lambda w: (w.length, w.stop))
        rows.append(
            {
                "norm": vectors.norm(dim=1).numpy(),
                "outer_loss": [d.loss for d in draws],
                "window_start": [w.start for w in planned],
                "window_stop": [w.stop for w in planned],
                "seconds": [d.seconds for d in draws],
                "same_end_cosine": torch.cosine_similarity(vectors, torch.stack(exact)).numpy(),
                "inner_product": gram,
                "inner_product_full": cross,
                "variance": relative_variance(gram),
                "variance_error": jackknife(relative_variance, gram),
                "variance_clipped": relative_variance(clipped(gram)),
                "variance_clipped_error": jackknife(lambda g: relative_variance(clipped(g)), gram),
                "cosine": cosine(gram, reference, cross),
                "cosine_error": jackknife(cosine, gram, reference, cross),
                "alignment": alignment(gram, reference, cross),
                "alignment_error": jackknife(alignment, gram, reference, cross),
                "mean_norm": np.sqrt(max(squared_mean(gram), 0.0)),
                "peak_memory": process.peak_of_tensors(lambda own=own, w=longest: own(w, streams[0]), pipeline.torch_device),  # type: ignore[misc]
            }
        )
    return {key: np.stack([np.asarray(row[key], np.float64) for row in rows]) for key in VARIABLES}


def _windows(pipeline: Distiller, way: Way, problem: Problem, streams: Sequence[Stream], step: int) -> list[Window]:
    """The window of each replicate, after the trial run that a policy may ask for."""
    policy = probing(way.policy)
    state = way.policy.init()
    steps = policy.probe_steps(state, 0) if policy else 0
    if policy is not None and steps:
        stream = pipeline.stream.fold("gradient study").fold("probe").fold(step)
        batch = _real_batch(pipeline, stream)
        found = way.unroller.probe(problem.learner, problem.leaves, steps, batch, stream, problem.groups, pipeline.programs)
        state = policy.observe_probe(state, found)
    return [_plan(way.policy, state, stream) for stream in streams]


def _real_batch(pipeline: Distiller, stream: Stream) -> RealBatch:
    rows = stream.fold("batch").permutation(len(pipeline.bundle.train))[: pipeline.outer.batch_size]
    return pipeline.real_batch(rows, stream.fold("augment"))


def _meta_gradient_sampler(pipeline: Distiller, way: Way, problem: Problem) -> Callable[[Window, Stream], Draw]:
    """What takes one meta-gradient: a fresh network, fresh draws and a fresh real batch from the stream. Its programs are built."""
    learner, leaves, groups = problem

    def take(window: Window, stream: Stream) -> Draw:
        batch = _real_batch(pipeline, stream)
        began = time.perf_counter()
        meta = way.unroller.meta_gradient(learner, leaves, window, batch, stream, groups, pipeline.programs, way.ends)
        loss = float(meta.loss)  # waits for the device
        return Draw(meta.images.flatten().double().cpu(), loss, time.perf_counter() - began)

    take(Window(0, 2), pipeline.stream.fold("gradient study").fold("first"))  # so that no first call is timed
    return take

"""The inner problem of a learner: training one network, or several side by side, as pure functions that an adjoint differentiates."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor

from distilkit.functional import optimizers
from distilkit.functional.parts import Part
from distilkit.functional.pytrees import stack, to_device
from distilkit.functional.streams import Stream
from distilkit.learner import Draw, Learner, LearnerState, Numerics, rate_of
from distilkit.programs.programs import COMPILED
from distilkit.unroll.execution import Execution
from distilkit.unroll.inner import InnerProblem, OuterVariables


def problem(learner: Learner, dtype: torch.dtype | None, execution: Execution, *, own_sets: bool = False) -> InnerProblem:
    """The inner problem of one network, parameters (P,), or of several side by side, parameters (networks, P).

    Side by side, each loss is a sum over the networks. A network's loss knows its own parameters only, so the derivative of the
    sum with respect to those is its own, and that with respect to the images the sum of all: any adjoint serves as it is.

    Args:
        learner: bound.
        dtype: of the arithmetic inside of the network; None leaves that of the parameters.
        execution: how it will be run.
        own_sets: side by side, each network has images and labels of its own, (networks, N, ...).
    """
    numerics = Numerics(dtype, execution.channels_last, execution.kernels)
    fused = execution.kind in COMPILED
    name = "in bfloat16" if dtype else "in full"
    usual = execution._replace(channels_last=False, kernels=False)
    plain = problem(learner, dtype, usual, own_sets=own_sets) if usual != execution else None

    def loss(theta: Tensor, images: Tensor, labels: Tensor, draw: Draw) -> Tensor:
        return learner.objective(theta, images, labels, draw, numerics)

    def update(theta: Tensor, inner: Any, gradient: Tensor, log_lr: Tensor, draw: Draw) -> tuple[Tensor, Any]:
        return learner.update(LearnerState(theta, inner), gradient, rate_of(log_lr, draw))

    def outer(theta: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        value: Tensor = learner.loss(learner.logits(theta, images, numerics), labels)
        return value

    def parts(leaves: OuterVariables, draw: Draw) -> Iterable[Part]:
        return learner.parts(leaves.images, leaves.labels, draw)

    if not execution.side_by_side:
        return InnerProblem(loss, update, outer, name, plain, fused, parts if execution.micro_batch else None)

    own = 0 if own_sets else None

    def losses(theta: Tensor, images: Tensor, labels: Tensor, draw: Draw) -> Tensor:
        total: Tensor = torch.func.vmap(loss, in_dims=(0, own, own, draw.in_dims))(theta, images, labels, draw).sum()
        return total

    def updates(theta: Tensor, inner: Any, gradient: Tensor, log_lr: Tensor, draw: Draw) -> tuple[Tensor, Any]:
        lr = rate_of(log_lr, draw).exp() if learner.learn_lr else None
        return optimizers.update_many(learner.optimizer, gradient, inner, theta, lr)

    def outers(theta: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        total: Tensor = torch.func.vmap(outer, in_dims=(0, None, None))(theta, images, labels).sum()
        return total

    return InnerProblem(losses, updates, outers, f"{name}, side by side{', a set for each' if own_sets else ''}", plain, fused)


def start(learner: Learner, streams: Sequence[Stream], images: Tensor, execution: Execution) -> LearnerState:
    """Fresh networks, one for each stream: a single one, or all stacked to (networks, P)."""
    fresh = [learner.init(stream.fold("network"), device=images.device, dtype=images.dtype) for stream in streams]
    if not execution.side_by_side:
        return fresh[0]
    params = torch.stack([one.params for one in fresh])
    return LearnerState(params, optimizers.init_many(learner.optimizer, params))


class Drawn(NamedTuple):
    """What is random in an inner run: the fresh networks, and the draws of its first steps, on the device."""

    fresh: LearnerState
    draws: Sequence[Draw]


def draws(learner: Learner, streams: Sequence[Stream], steps: range, classes: Tensor, images: Tensor, execution: Execution) -> list[Draw]:
    """What is random in these inner steps, on the device; side by side, stacked to (networks, ...)."""
    own = [stream.fold("draw") for stream in streams]
    made = learner.draws([one.fold(t) for t in steps for one in own], classes, tuple(images.shape[1:]), [t for t in steps for _ in streams])
    return on_device(by_step(made, len(streams), stacked=execution.side_by_side), images.device)


def by_step(made: Sequence[Draw], networks: int, *, stacked: bool) -> list[Draw]:
    """The draws of each step, where those of its networks follow each other: stacked, or that of the only network."""
    return [stack(made[k : k + networks]) if stacked else made[k] for k in range(0, len(made), networks)]


def on_device(made: list[Draw], device: torch.device) -> list[Draw]:
    """All draws of some steps on the device, in one transfer, so that no step waits for one."""
    if device.type == "cpu" or not made or not optree.tree_leaves(made[0]):  # type: ignore[arg-type]
        return made
    shapes = {tuple(x.shape for x in optree.tree_leaves(draw)) for draw in made}  # type: ignore[arg-type,var-annotated]
    if len(shapes) > 1:
        return [to_device(draw, device) for draw in made]  # random classes with unequal numbers of images
    stacked = to_device(stack(made), device)
    return [optree.tree_map(lambda x, t=t: x[t], stacked) for t in range(len(made))]  # type: ignore[misc]

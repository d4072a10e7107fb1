"""The outer problem: which images and labels are distilled, how they start, and how each is moved."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import attrs
import torch
from torch import Tensor
from torch.nn import functional as F

from distilkit import fields
from distilkit.data.augmentation import Augmentation
from distilkit.data.bundle import DataBundle, Split
from distilkit.errors import Change, CombinationError, GradientError, listing
from distilkit.functional import optimizers
from distilkit.functional.clipping import EMAClip
from distilkit.functional.optimizers import Optimizer
from distilkit.functional.schedules import Constant, Schedule
from distilkit.functional.streams import Stream
from distilkit.truncation import StepInfo
from distilkit.unroll.inner import OuterVariables

ImageStart = Literal["noise", "real"]


@fields.component
class Images:
    """How many images are distilled, and what they start as.

    Args:
        per_class: images per class (IPC). With a `boost` schedule, its blocks decide, and this is left out or equals their sum.
        start: "noise" is Gaussian, each image scaled to unit L2 norm, as in the paper's code; "real" takes random training
            images of the class.
        stored: start from a distilled set in place of that, from its labels too, and from its learned rate where the learner goes on to
            learn it: the folder of a run, the name of a set that comes with distilkit such as "fast/cifar10-ipc1", or what
            `distilkit import` or `distilkit export` wrote. With a `boost` schedule it is the first block, and `start` says how later
            ones begin. A run reads it once, at its start.
    """

    per_class: int = fields.integer(default=1, least=1)
    start: ImageStart = fields.choice(ImageStart, default="noise")
    stored: str | None = fields.text(default=None, optional=True)

    def init(self, data: DataBundle, stream: Stream, count: int | None = None, skip: int = 0) -> tuple[Tensor, Tensor]:
        """Return images (N, ...) float32 and classes (N,) int64, class by class.

        Args:
            data: the real data.
            stream: of the start.
            count: images of each class; `per_class` when left out.
            skip: images of each class that are there already, from earlier blocks: real starts go on behind them, so that no
                image is taken twice, and noise is drawn afresh.

        Raises:
            CombinationError: a class has fewer training images than are needed, and the start is real.
        """
        count = self.per_class if count is None else count
        classes = torch.arange(data.num_classes).repeat_interleave(count)
        if self.start == "real":
            rows = random_rows(data.train, data.class_names, skip + count, stream).view(data.num_classes, -1)[:, skip:].reshape(-1)
            return data.train.images[rows].clone(), classes
        noise = (stream.fold(skip) if skip else stream).normal(len(classes), *data.image_shape)
        norms = noise.flatten(1).norm(dim=1).view(-1, *[1] * len(data.image_shape))
        return noise / norms, classes


def random_rows(split: Split, class_names: tuple[str, ...], per_class: int, stream: Stream) -> Tensor:
    """Rows of random images of a split, the same number of each class, without replacement: int64 (classes * per_class,)."""
    labels = split.labels.cpu()
    picked = []
    for c, name in enumerate(class_names):
        rows = (labels == c).nonzero()[:, 0]
        if len(rows) < per_class:
            raise CombinationError(
                f"per_class = {per_class}, but class {name!r} has {len(rows)} training images to start from.",
                changes=[Change("images.per_class", len(rows)) if len(rows) else Change("images.start", "noise")],
            )
        picked.append(rows[stream.fold(c).permutation(len(rows))[:per_class]])
    return torch.cat(picked)


@fields.component
class Labels:
    """Labels of the distilled images.

    Args:
        learn: learn them as soft targets, starting at one-hot and kept at 0 or above (they are never normalised; paper's code).
        optimizer: for the labels; None takes the images' one.
        clip: clipping of the labels' meta-gradient, or None as in the paper's code. A spike that is clipped for the images
            only still throws the labels off.
    """

    learn: bool = fields.flag(default=False)
    clip: EMAClip | None = fields.part(EMAClip, default=EMAClip(), optional=True)
    optimizer: Optimizer | None = fields.slot("optimizer", default=None, optional=True)

    def init(self, classes: Tensor, count: int) -> Tensor:
        """One-hot float32 (N, count)."""
        return F.one_hot(classes, count).float()


@fields.component
class Outer:
    """The outer optimisation: what moves the distilled images.

    Args:
        steps: outer steps.
        batch_size: real images that the outer loss is taken on, drawn without replacement within an epoch.
        optimizer: of the images.
        lr_optimizer: of the logarithm of the inner learning rate, where the learner learns it; None takes `optimizer`.
        schedule: factor on all outer learning rates by step.
        average: decay of a running average of the set over the outer steps, which then is what is validated, tested and stored; at
            step k of a stage it is no more than (1 + k) / (10 + k). 0 for none.
        ends: places of a window where the outer loss is taken, evenly spread up to its end: the set is made for
            networks on their way too, for three more forward passes of the real batch each.
        clip: clipping of the images' meta-gradient (and, by its own average, of the learning rate's), or None.
        augment: augmentation of the real batch, or None.
    """

    steps: int = fields.integer(default=1000, least=1)
    batch_size: int = fields.integer(default=256, least=1)
    optimizer: Optimizer = fields.slot("optimizer", default=optimizers.Adam(lr=1e-3))
    lr_optimizer: Optimizer | None = fields.slot("optimizer", default=None, optional=True)
    average: float = fields.number(default=0.0, least=0, below=1)
    ends: int = fields.integer(default=1, least=1)
    schedule: Schedule = fields.slot("schedule", default=Constant())
    clip: EMAClip | None = fields.part(EMAClip, default=EMAClip(), optional=True)
    augment: Augmentation | None = fields.slot("augmentation", default=None, optional=True)

    def batch_rows(self, step: int, size: int, stream: Stream, batch_size: int | None = None) -> Tensor:
        """Rows of the real batch of an outer step: int64 (batch,). Every epoch is a new order of all images, without a rest in the end."""
        batch = min(batch_size or self.batch_size, size)
        per_epoch = size // batch
        epoch, place = divmod(step, per_epoch)
        return stream.fold(epoch).permutation(size)[place * batch : (place + 1) * batch]


class VariableState(NamedTuple):
    """What a `VariableUpdate` keeps: a TorchOpt state for each block of rows, and the running average of its clip."""

    optimizers: tuple[Any, ...]
    average: Tensor


@attrs.frozen
class VariableUpdate:
    """How one outer variable is moved: an outer optimiser and a clip, or not at all.

    Args:
        optimizer: the outer optimiser.
        clip: clipping of its meta-gradient, or None.
        learn: False leaves the variable as it is.
    """

    optimizer: Optimizer
    clip: EMAClip | None
    learn: bool = True

    def init(self, variable: Tensor) -> VariableState:
        """The state before the first outer step; the variable is one block."""
        return VariableState((optimizers.init(self.optimizer, variable),), EMAClip().init().to(variable.device))

    def add_block(self, state: VariableState, block: Tensor) -> VariableState:
        """The state with another block of rows behind the others: theirs is carried, the new one's is fresh."""
        return VariableState((*state.optimizers, optimizers.init(self.optimizer, block)), state.average)

    def update(
        self,
        variable: Tensor,
        gradient: Tensor,
        state: VariableState,
        factor: float,
        rows: Sequence[int] | None = None,
        scales: Sequence[float] = (1.0,),
    ) -> tuple[Tensor, VariableState, Tensor]:
        """Move a variable.

        Args:
            variable: what is moved.
            gradient: of its shape.
            state: from `init`, `add_block` or the update before.
            factor: on the learning rate.
            rows: of each block; None for a variable that is one block.
            scales: factor on the step of each block. At 0 the block stays as it is, to the bit.

        Returns:
            the moved variable, the new state, and what clipping multiplied the gradient by.
        """
        scale = torch.ones((), device=variable.device)
        if not self.learn:
            return variable, state, scale
        average = state.average
        if self.clip is not None:
            gradient, average, scale = self.clip.apply(gradient, average)
        parts, gradients = ([variable], [gradient]) if rows is None else (variable.split(list(rows)), gradient.split(list(rows)))
        moved, kept = [], []
        for part, g, own, beta in zip(parts, gradients, state.optimizers, scales, strict=True):
            after = (part, own)
            if beta != 0:
                after = optimizers.update(self.optimizer, g, own, part, self.optimizer.lr * factor * beta)
            moved.append(after[0])
            kept.append(after[1])
        return moved[0] if len(moved) == 1 else torch.cat(moved), VariableState(tuple(kept), average), scale


class OuterState(NamedTuple):
    """What an `OuterUpdate` keeps of each variable."""

    images: VariableState
    labels: VariableState
    log_lr: VariableState


class DistillerState(NamedTuple):
    """All that changes from one outer step to the next, a tree of tensors and numbers.

    step: outer steps done. leaves: images, labels and log_lr. optimizers: the state of what moves them.
    policy: state of the truncation policy. stage: of the boost schedule, from 0. stage_step: outer steps done in the stage.
    average: the running average of the leaves, where `Outer.average` asks for one.
    """

    step: int
    leaves: OuterVariables
    optimizers: OuterState
    policy: Any
    stage: int = 0
    stage_step: int = 0
    average: OuterVariables | None = None

    @property
    def result(self) -> OuterVariables:
        """What the distilled set is made of: the average, or the leaves."""
        return self.leaves if self.average is None else self.average


class OuterUpdate(NamedTuple):
    """How images, labels and the logarithm of the inner learning rate are moved, each in its own way."""

    images: VariableUpdate
    labels: VariableUpdate
    log_lr: VariableUpdate

    @classmethod
    def of(cls, outer: Outer, labels: Labels, learn_lr: bool) -> OuterUpdate:
        """As an outer problem says; `learn_lr`: whether the learning rate is learned."""
        return cls(
            VariableUpdate(outer.optimizer, outer.clip),
            VariableUpdate(labels.optimizer or outer.optimizer, labels.clip, labels.learn),
            VariableUpdate(outer.lr_optimizer or outer.optimizer, outer.clip, learn_lr),
        )

    def init(self, variables: OuterVariables) -> OuterState:
        """The state before the first outer step."""
        return OuterState(*(one.init(variable) for one, variable in zip(self, variables, strict=True)))

    def add_block(self, state: OuterState, block: OuterVariables) -> OuterState:
        """The state with another block of images and labels behind the others. Learned rates are for all blocks."""
        images = self.images.add_block(state.images, block.images)
        return OuterState(images, self.labels.add_block(state.labels, block.labels), state.log_lr)

    def update(
        self,
        variables: OuterVariables,
        gradient: OuterVariables,
        state: OuterState,
        factor: float,
        rows: Sequence[int],
        scales: Sequence[float],
    ) -> tuple[OuterVariables, OuterState, Tensor]:
        """Take one outer step.

        Args:
            variables: what is moved.
            gradient: the meta-gradient.
            state: from `init`, `add_block` or the update before.
            factor: of the schedule, on all learning rates.
            rows: of each block of images and labels.
            scales: factor on the step of each block.

        Returns:
            the moved variables, the new state, and what clipping multiplied the images' gradient by.
        """
        images, images_state, scale = self.images.update(variables.images, gradient.images, state.images, factor, rows, scales)
        labels, labels_state, _ = self.labels.update(variables.labels, gradient.labels, state.labels, factor, rows, scales)
        log_lr, log_lr_state, _ = self.log_lr.update(variables.log_lr, gradient.log_lr, state.log_lr, factor)
        if self.labels.learn:
            labels = labels.clamp_min(0)
        return OuterVariables(images, labels, log_lr), OuterState(images_state, labels_state, log_lr_state), scale

    def norms(self, gradient: OuterVariables) -> list[Tensor]:
        """Of the meta-gradient, of each variable that is learned: the images' first."""
        return [g.norm() for g, one in zip(gradient, self, strict=True) if one.learn]


def with_block(rows: OuterVariables, new: OuterVariables) -> OuterVariables:
    """Rows with those of a new block behind them."""
    return OuterVariables(torch.cat([rows.images, new.images]), torch.cat([rows.labels, new.labels]), rows.log_lr)


def averaged(average: OuterVariables, leaves: OuterVariables, decay: float, step: int) -> OuterVariables:
    """The running average after a step, the `step`-th of a stage: with less decay at first, so that the start is soon forgotten."""
    keep = min(decay, (1 + step) / (10 + step))
    return OuterVariables(*(keep * old + (1 - keep) * new for old, new in zip(average, leaves, strict=True)))


def require_finite_move(step: int, moved: float, outer: Outer, learn_lr: bool) -> None:
    """Raise GradientError when an outer step has left a set that could not be stored: `moved`, a sum over all of it, is not finite."""
    if math.isfinite(moved):
        return
    moving = {"optimizer": outer.optimizer} | ({"lr_optimizer": outer.lr_optimizer} if learn_lr else {})
    raise GradientError(
        f"Outer step {step} moved images, labels or learning rate to values that are not finite, or to a rate of zero.",
        changes=[Change(f"outer.{name}.lr", float(f"{one.lr / 10:g}")) for name, one in moving.items() if one is not None],
    )


def require_finite(info: StepInfo, others: Sequence[float], lr: float) -> None:
    """Raise GradientError when a step's loss or a norm of its meta-gradient is not finite, or the images have none at all.

    Args:
        info: of the step.
        others: norms of the meta-gradient of the other leaves that are learned.
        lr: the inner learning rate, to name a smaller one.
    """
    smaller = [Change("learner.optimizer.lr", float(f"{lr / 10:g}"))]
    where = f"Outer step {info.outer_step}, through the window {info.window.start} to {info.window.stop}"
    if not all(math.isfinite(x) for x in (info.outer_loss, info.meta_gradient_norm, *others)):
        error = GradientError(
            f"{where}: the outer loss is {info.outer_loss:g} and the norm of the meta-gradient {info.meta_gradient_norm:g} (labels and "
            f"learning rate, if learned: {listing([f'{x:g}' for x in others], 'and') if others else 'not learned'}). The inner run or its "
            "derivative has blown up; a smaller inner learning rate or a shorter window holds it.",
            changes=smaller,
        )
        error.can_pass = True
        raise error
    if info.meta_gradient_norm == 0:
        raise GradientError(
            f"{where}: the meta-gradient of the images is exactly zero, so nothing can be learned. A network or loss that detaches its "
            "input, or whose units are all dead, as under too high an inner learning rate, does this.",
            changes=smaller,
        )

"""The distiller: a pipeline of components that turns real data into a distilled set.

A `Distiller` is a value. `init` gives the state, `step` takes one outer step and returns (state, info), `run` does all of it
into a folder. Everything that changes is in the state, and all randomness comes from the seed by name and step, so any two
runs of one distiller agree to the bit, however often they stop to evaluate.
"""

from __future__ import annotations

import time
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import attrs
import torch
from torch import Tensor
from torch.nn import functional as F

from distilkit import fields
from distilkit.data import DataBundle, DistilledSet
from distilkit.errors import CombinationError, GradientError
from distilkit.evaluation import Evaluation
from distilkit.functional.adjoints import Leaves
from distilkit.functional.streams import Stream
from distilkit.learner import Learner
from distilkit.parts import Images, Labels, Mover, MoverState, Outer
from distilkit.truncation import Window
from distilkit.unroller import MetaGradient, RealBatch, Unroller

if TYPE_CHECKING:
    import xarray

    from distilkit.running import Observer


class DistillerState(NamedTuple):
    """All that changes from one outer step to the next, a tree of tensors and numbers.

    step: outer steps done. leaves: images, labels and log_lr. movers: the state of what moves each of them, in that order.
    policy: state of the truncation policy.
    """

    step: int
    leaves: Leaves
    movers: tuple[MoverState, ...]
    policy: Any


class StepInfo(NamedTuple):
    """Diagnostics of one outer step, never fed back (but for `TruncationPolicy.observe`).

    meta_gradient_norm: of the images, before clipping. clip_scale: what clipping multiplied it by. seconds: wall clock.
    """

    outer_step: int
    outer_loss: float
    meta_gradient_norm: float
    clip_scale: float
    window: Window
    seconds: float


@attrs.frozen
class Distiller:
    """A dataset distillation pipeline.

    Args:
        data: a source of real data, such as `Digits()`.
        learner: the inner problem.
        truncation: which inner steps the meta-gradient flows through, such as `RandomTruncation(horizon=40, window=20)`.
        unroller: how the meta-gradient is taken.
        images: how many, and what they start as.
        labels: fixed or learned.
        outer: the outer optimisation.
        evaluation: how the set is judged.
        seed: of all randomness but the data's test split.
        title: a name for people, and for the run's folder.
        device: "auto" takes a GPU where there is one; or a torch device such as "cpu" or "cuda:1".
        threads: CPU threads; None picks by the size of the work.

    Raises:
        CombinationError: parts that do not go together, naming both.

    >>> import distilkit as dk
    >>> distiller = dk.Distiller(
    ...     dk.Digits(), dk.Learner(dk.MLP(hidden=(16,)), dk.SGD(lr=0.1)), dk.RandomTruncation(horizon=6, window=3)
    ... )
    >>> state, info = distiller.step(distiller.init())
    >>> state.step, info.window.length
    (1, 3)
    """

    data: Any = fields.component("data", methods=("load",))
    learner: Learner = fields.part(Learner)
    truncation: Any = fields.component("truncation", methods=("init", "plan", "observe"))
    unroller: Unroller = fields.part(Unroller, Unroller())
    images: Images = fields.part(Images, Images())
    labels: Labels = fields.part(Labels, Labels())
    outer: Outer = fields.part(Outer, Outer())
    evaluation: Evaluation = fields.part(Evaluation, Evaluation())
    seed: int = fields.integer(0, least=0)
    title: str = fields.text("distilled")
    device: str = fields.text("auto")
    threads: int | None = fields.integer(None, least=1, optional=True)

    def __attrs_post_init__(self) -> None:
        batch = self.learner.batch_per_class
        if batch is not None and batch > self.images.per_class:
            raise CombinationError(
                f"learner.batch_per_class = {batch}, and there are images.per_class = {self.images.per_class} images of a class.",
                fix=f"batch_per_class = {self.images.per_class}",
            )

    @property
    def stream(self) -> Stream:
        """The stream that all others are folded from."""
        return Stream(self.seed)

    @cached_property
    def torch_device(self) -> torch.device:
        """The device that the work is done on."""
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            device = torch.device(self.device)
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            raise CombinationError(
                f"device = {self.device!r} cannot be used here: {str(error).splitlines()[0]}", fix='device = "auto"'
            ) from error
        return device

    @cached_property
    def bundle(self) -> DataBundle:
        """The real data, loaded on first use, on the device."""
        bundle: DataBundle = self.data.load(self.stream.fold("data"))
        return bundle.to(self.torch_device)

    @cached_property
    def bound(self) -> Learner:
        """The learner with its network made for this data."""
        return self.learner.bind(self.bundle.image_shape, self.bundle.classes)

    @cached_property
    def classes(self) -> Tensor:
        """int64 (N,): the class of each distilled image, on the CPU."""
        return torch.arange(self.bundle.classes).repeat_interleave(self.images.per_class)

    def init(self) -> DistillerState:
        """The state before the first outer step."""
        images, classes = self.images.init(self.bundle, self.stream.fold("images"))
        labels = self.labels.init(classes, self.bundle.classes)
        log_lr = torch.tensor(self.learner.optimizer.lr, dtype=torch.float32).log()
        leaves = Leaves(*(x.to(self.torch_device) for x in (images, labels, log_lr)))
        states = tuple(mover.init(leaf) for mover, leaf in zip(self._movers, leaves, strict=True))
        return DistillerState(0, leaves, states, self.truncation.init())

    def step(self, state: DistillerState) -> tuple[DistillerState, StepInfo]:
        """Take one outer step.

        Returns:
            the new state, and what happened.

        Raises:
            GradientError: the loss or the meta-gradient is not finite; the state given is still good.
        """
        began = time.perf_counter()
        window, policy = self.truncation.plan(state.policy, state.step, self.stream.fold("window"))
        meta = self.meta_gradient(state, window)
        factor = self.outer.schedule.factor(state.step, self.outer.steps)
        moved = [
            mover.move(leaf, gradient, own, factor)
            for mover, leaf, gradient, own in zip(
                self._movers, state.leaves, (meta.images, meta.labels, meta.log_lr), state.movers, strict=True
            )
        ]
        (images, labels, log_lr), movers, (scale, *_) = zip(*moved, strict=True)
        # One wait for the device, at the end.
        loss_value, norm_value, scale_value = torch.stack([meta.loss, meta.images.norm(), scale]).tolist()
        info = StepInfo(state.step, loss_value, norm_value, scale_value, window, time.perf_counter() - began)
        _require_finite(info)
        labels = labels.clamp_min(0) if self.labels.learn else labels
        policy = self.truncation.observe(policy, info)
        return DistillerState(state.step + 1, Leaves(images, labels, log_lr), movers, policy), info

    def meta_gradient(self, state: DistillerState, window: Window) -> MetaGradient:
        """The meta-gradient at a state through a window, on this outer step's real batch and fresh network."""
        train = self.bundle.train
        rows = self.outer.batch_rows(state.step, len(train), self.stream.fold("batch")).to(self.torch_device)
        images, labels = train.images[rows], F.one_hot(train.labels[rows], self.bundle.classes).float()
        if self.outer.augment is not None:
            draw = self.outer.augment.sample(self.stream.fold("augment").fold(state.step), tuple(images.shape))
            images = self.outer.augment.apply(images, {k: v.to(self.torch_device) for k, v in draw.items()})
        stream = self.stream.fold("inner").fold(state.step)
        return self.unroller.meta_gradient(self.bound, state.leaves, window, RealBatch(images, labels), stream, self.classes)

    def distilled(self, state: DistillerState) -> DistilledSet:
        """The distilled set at a state, on the CPU."""
        leaves = Leaves(*(x.detach().cpu() for x in state.leaves))
        return DistilledSet(
            images=leaves.images,
            labels=leaves.labels,
            classes=self.classes,
            class_names=self.bundle.class_names,
            label_space="probability" if self.labels.learn else "one-hot",
            inner_lr=float(leaves.log_lr.exp()) if self.learner.learn_lr else None,
            preprocessing=self.bundle.preprocessing,
            provenance={"title": self.title, "data": self.bundle.name, "seed": self.seed, "outer_step": state.step},
        )

    def run(self, directory: str | Path, observer: Observer | None = None) -> xarray.DataTree:
        """Distil, evaluate and store; see `distilkit.running.run`."""
        from distilkit.running import run

        return run(self, Path(directory), observer)

    @property
    def _movers(self) -> tuple[Mover, Mover, Mover]:
        outer, labels = self.outer, self.labels
        return (
            Mover(outer.optimizer, outer.clip),
            Mover(labels.optimizer or outer.optimizer, labels.clip, labels.learn),
            Mover(outer.lr_optimizer or outer.optimizer, outer.clip, self.learner.learn_lr),
        )


def _require_finite(info: StepInfo) -> None:
    if not all(torch.tensor([info.outer_loss, info.meta_gradient_norm]).isfinite()):
        raise GradientError(
            f"Outer step {info.outer_step}: the outer loss is {info.outer_loss:g} and the norm of the meta-gradient "
            f"{info.meta_gradient_norm:g}, through the window {info.window.start} to {info.window.stop}. The inner run or its "
            "derivative has blown up; a smaller inner learning rate or a shorter window holds it.",
            fix="--set learner.optimizer.lr=0.001",
        )

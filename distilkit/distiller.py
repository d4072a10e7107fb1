"""The distiller: a pipeline of components that turns real data into a distilled set.

A `Distiller` is a value. `init` gives the state, `step` takes one outer step and returns (state, info), `run` does all of it
into a folder. Everything that changes is in the state, and all randomness comes from the seed by name and step, so any two
runs of one distiller agree to the bit, however often they stop to evaluate.
"""

from __future__ import annotations

import logging
import time
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from distilkit import ahead, fields, process, warm_start
from distilkit.ahead import Ahead
from distilkit.boosting import BoostSchedule, Stage, require_minibatch, sampling_groups, single_stage, with_batch_that_fits
from distilkit.data.bundle import DataBundle, DataSource
from distilkit.data.distilled import DistilledSet
from distilkit.errors import Change, CombinationError, counted
from distilkit.evaluation import Evaluation
from distilkit.functional.pytrees import to_device
from distilkit.functional.streams import Stream
from distilkit.growth import Growth, Piece, pieces
from distilkit.learner import Learner
from distilkit.outer import (
    DistillerState as DistillerState,
    Images,
    Labels,
    Outer,
    OuterUpdate,
    averaged,
    require_finite,
    require_finite_move,
    with_block,
)
from distilkit.progress import Progress
from distilkit.storage.formats.raw import is_one_hot
from distilkit.truncation import StepInfo, TruncationPolicy, Window, probing
from distilkit.unroll.execution import Execution, ProgramCache, decided
from distilkit.unroll.inner import OuterVariables
from distilkit.unroller import MetaGradient, RealBatch, Unroller

if TYPE_CHECKING:
    import xarray

logger = logging.getLogger("distilkit")


@fields.component
class Distiller:
    """A dataset distillation pipeline.

    Args:
        data: a source of real data, such as `Digits()`.
        learner: the inner problem.
        truncation: which inner steps the meta-gradient flows through, such as `RandomTruncation(horizon=40, window=20)`.
        unroller: how the meta-gradient is taken.
        boost: stages in which the set grows, or None to distil it at once.
        growth: cheaper outer steps at first, by narrower networks and smaller real batches, or None.
        images: how many, and what they start as.
        labels: fixed or learned.
        outer: the outer optimisation.
        evaluation: how the set is judged.
        seed: of all randomness but the data's test split.
        title: a name for people, and for the run's folder.
        device: "auto" takes a GPU where there is one; or a torch device such as "cpu" or "cuda:1".
        deterministic: on a GPU, have `run` take only operations that give the same bits every time, which takes longer (not measured yet).
            On a CPU the same seed gives the same bits anyway.
        threads: CPU threads of `run`; None reads the data with what torch takes, and picks for the rest by the size of the work.

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

    data: DataSource = fields.slot("data")
    learner: Learner = fields.part(Learner)
    truncation: TruncationPolicy[Any] = fields.slot("truncation")
    unroller: Unroller = fields.part(Unroller, default=Unroller())
    boost: BoostSchedule | None = fields.part(BoostSchedule, default=None, optional=True)
    growth: Growth | None = fields.part(Growth, default=None, optional=True)
    images: Images = fields.part(Images, default=Images())
    labels: Labels = fields.part(Labels, default=Labels())
    outer: Outer = fields.part(Outer, default=Outer())
    evaluation: Evaluation = fields.part(Evaluation, default=Evaluation())
    seed: int = fields.integer(default=0, least=0)
    title: str = fields.text(default="distilled")
    device: str = fields.text(default="auto")
    deterministic: bool = fields.flag(default=False)
    threads: int | None = fields.integer(default=None, least=1, most=1024, optional=True)

    def __attrs_post_init__(self) -> None:
        if self.boost is not None and self.images.per_class not in (1, self.boost.per_class):
            raise CombinationError(
                f"images.per_class = {self.images.per_class}, and boost.blocks = {list(self.boost.blocks)} add up to "
                f"{self.boost.per_class}. The blocks decide; leave per_class out, or make the two equal.",
                changes=[Change("images.per_class", self.boost.per_class)],
            )
        require_minibatch(self.stages[-1], self.boost, self.learner)
        for piece in self.pieces:
            piece.learner(self.learner)  # a network that cannot grow is told here
        horizon = getattr(self.truncation, "horizon", None)
        if horizon is not None and self.learner.lr_steps > horizon:
            raise CombinationError(
                f"learner.lr_steps = {self.learner.lr_steps}, and inner runs have {counted(horizon, 'step')}: later rates would not be "
                "learned.",
                changes=[Change("learner.lr_steps", horizon)],
            )
        if self.device != "auto":
            process.named_device(self.device)

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        """The stages of the run; one when there is no boosting."""
        if self.boost is None:
            return single_stage(self.images.per_class, self.outer.steps, self.truncation)
        return self.boost.stages(self.outer.steps, self.truncation)

    @cached_property
    def pieces(self) -> tuple[Piece, ...]:
        """The stages, each in the parts of `growth`."""
        return pieces(self.stages, self.growth)

    @property
    def per_class(self) -> int:
        """Images per class of the whole set."""
        return self.stages[-1].per_class

    @property
    def outer_steps(self) -> int:
        """Outer steps of all stages together."""
        return sum(stage.steps for stage in self.stages)

    @property
    def stream(self) -> Stream:
        """The stream that all others are folded from."""
        return Stream(self.seed)

    @cached_property
    def torch_device(self) -> torch.device:
        """The device that the work is done on."""
        return process.usable_device(self.device)

    @cached_property
    def bundle(self) -> DataBundle:
        """The real data, loaded on first use, on the device; what is fitted to them depends on the threads in its last bits."""
        with process.thread_limit(self.threads), process.large_products_on(self.torch_device):
            bundle: DataBundle = self.data.load(self.stream.fold("data"))
        return bundle.to(self.torch_device)

    @cached_property
    def bound(self) -> Learner:
        """The learner with its network made for this data."""
        return self.learner.bind(self.bundle.image_shape, self.bundle.num_classes)

    @cached_property
    def update(self) -> OuterUpdate:
        """How images, labels and the inner learning rate are moved."""
        return OuterUpdate.of(self.outer, self.labels, self.learner.learn_lr)

    def init(self, *, stored: bool = True) -> DistillerState:
        """The state before the first outer step; with `stored=False` as if `images.stored` were left out, for its shapes."""
        rate, several = torch.tensor(self.learner.optimizer.lr, dtype=torch.float32).log(), self.learner.lr_steps
        leaves = self._block(self.stages[0], rate.repeat(several) if several > 1 else rate, stored=stored)
        average = leaves if self.outer.average else None
        return DistillerState(0, leaves, self.update.init(leaves), self.stages[0].truncation.init(), average=average)

    def enter_stage(self, state: DistillerState) -> DistillerState:
        """The state from which the next outer step is taken: the same, or, where a stage is over, with the next block added."""
        if state.stage_step < self.stages[state.stage].steps or state.stage + 1 == len(self.stages):
            return state
        return self.add_block(state)

    def add_block(self, state: DistillerState) -> DistillerState:
        """The state with the next block added, at the start of the next stage. Earlier rows, and what moves them, stay."""
        stage = self.stages[state.stage + 1]
        old, new = state.leaves, self._block(stage, state.leaves.log_lr)
        average = None if state.average is None else with_block(state.average, new)
        optimizers = self.update.add_block(state.optimizers, new)
        return DistillerState(state.step, with_block(old, new), optimizers, stage.truncation.init(), stage.number, 0, average)

    def template(self, stage: int) -> DistillerState:
        """A state of the shape that states have in a stage, for `storage.checkpoint.unflatten`."""
        state = self.init(stored=False)  # the set that a run has started from may be gone
        for _ in range(stage):
            state = self.add_block(state)
        return state

    def step(self, state: DistillerState, attempt: int = 1) -> tuple[DistillerState, StepInfo]:
        """Take one outer step; where a stage of the boost schedule is over, the next one begins with it.

        Args:
            state: before the step.
            attempt: 2 and so on for a step whose numbers were not finite: the window and the network are drawn anew.

        Returns:
            the new state, and what happened.

        Raises:
            GradientError: the loss or the meta-gradient is not finite, or exactly zero for the images; the state given is still good.
        """
        began = time.perf_counter()
        state = self.enter_stage(state)
        if state.step and state.stage_step == self.piece(state).first:
            self.programs.drop_captured()  # which were of other shapes
        stage, stream = self.stages[state.stage], self._attempt(attempt)
        state = self._probed(state, stream)
        window, policy = stage.truncation.plan(state.policy, state.step, stream.fold("window"))
        meta = self.meta_gradient(state, window, stream)
        gradient = OuterVariables(meta.images, meta.labels, meta.log_lr)
        factor, rows = self.outer.schedule.factor(state.stage_step, stage.steps), stage.rows(self.bundle.num_classes)
        leaves, optimizers, scale = self.update.update(state.leaves, gradient, state.optimizers, factor, rows, stage.scales)
        # Finite, unless an entry is not, or the learning rate is one that no float32 holds: the set could not be stored.
        moved = torch.stack([variable.sum() for variable in leaves]).sum() + 0 * (leaves.log_lr.exp() + (-leaves.log_lr).exp()).sum()
        told = torch.stack([meta.loss, scale, *self.update.norms(gradient), moved])
        if self.torch_device.type in ahead.DEVICES:
            self.draw_ahead(DistillerState(state.step + 1, leaves, optimizers, policy, state.stage, state.stage_step + 1))
        loss_value, scale_value, norm_value, *others, moved_value = told.tolist()  # the one wait for the device
        info = StepInfo(state.step, loss_value, norm_value, scale_value, window, time.perf_counter() - began, state.stage, attempt)
        require_finite(info, others, self.learner.optimizer.lr)
        require_finite_move(state.step, moved_value, self.outer, self.learner.learn_lr)
        policy = stage.truncation.observe(policy, info)
        average = None if state.average is None else averaged(state.average, leaves, self.outer.average, state.stage_step)
        return DistillerState(state.step + 1, leaves, optimizers, policy, state.stage, state.stage_step + 1, average), info

    def _probed(self, state: DistillerState, stream: Stream) -> DistillerState:
        """The state with a policy that has seen its trial run, if it asks for one before this outer step."""
        stage = self.stages[state.stage]
        policy = probing(stage.truncation)
        steps = policy.probe_steps(state.policy, state.step) if policy else 0
        if policy is None or not steps:
            return state
        learner, drawn_from = self.piece_learner(self.piece(state)), self.sampling_groups(stage)
        batch, inner = self.outer_batch(state), stream.fold("probe").fold(state.step)
        found = self.resolved_unroller.probe(learner, state.leaves, steps, batch, inner, drawn_from, self.programs)
        return state._replace(policy=policy.observe_probe(state.policy, found))

    def where_not_finite(self, state: DistillerState, attempt: int = 1) -> str:
        """Where the inner run of such a step stops being finite, as a sentence, for a step that ended so."""
        state = self.enter_stage(state)
        stage, stream = self.stages[state.stage], self._attempt(attempt)
        window, _ = stage.truncation.plan(self._probed(state, stream).policy, state.step, stream.fold("window"))
        learner, drawn_from = self.piece_learner(self.piece(state)), self.sampling_groups(stage)
        inner = stream.fold("inner").fold(state.step)
        return self.resolved_unroller.where_not_finite(learner, state.leaves, window, inner, drawn_from)

    def _attempt(self, attempt: int) -> Stream:
        return self.stream if attempt == 1 else self.stream.fold("attempt").fold(attempt)

    def meta_gradient(self, state: DistillerState, window: Window, stream: Stream | None = None) -> MetaGradient:
        """The meta-gradient at a state through a window, on this outer step's real batch and a fresh network, drawn from the stream."""
        batch, stage = self.outer_batch(state), self.stages[state.stage]
        learner, drawn_from = self.piece_learner(self.piece(state)), self.sampling_groups(stage)
        inner, ends = (stream or self.stream).fold("inner").fold(state.step), self.outer.ends
        drawn = self.made_ahead.take(("inner", inner, state.stage, state.stage_step, state.leaves.images.dtype), lambda: None)
        return self.resolved_unroller.meta_gradient(learner, state.leaves, window, batch, inner, drawn_from, self.programs, ends, drawn)

    @cached_property
    def made_ahead(self) -> Ahead:
        """What was made for the next outer step."""
        return Ahead()

    def draw_ahead(self, state: DistillerState) -> None:
        """Draw what the outer step from a state will need, of which only the policy's last observation may be missing.

        So the window is a guess, and what another one needs beyond it is drawn when that is known.
        """
        self.made_ahead.forget()
        stage = self.stages[state.stage]
        if state.stage_step >= stage.steps:  # another block, or the end
            return
        size, policy = self.piece(state).batch_size(self.outer.batch_size), probing(stage.truncation)
        self.made_ahead.make(("rows", state.step, size), lambda: self._batch_rows(state.step, size))
        if policy is not None and policy.probe_steps(state.policy, state.step):
            return  # its window hangs on that
        try:
            window, _ = stage.truncation.plan(state.policy, state.step, self.stream.fold("window"))
        except Exception:  # a policy of a user's own may need to have seen this step; in its turn it tells what is wrong
            return
        learner, drawn_from = self.piece_learner(self.piece(state)), self.sampling_groups(stage)
        inner, unroller = self.stream.fold("inner").fold(state.step), self.resolved_unroller
        work = partial(unroller.drawn, learner, state.leaves, window.stop, inner, drawn_from)
        self.made_ahead.make(("inner", inner, state.stage, state.stage_step, state.leaves.images.dtype), work)

    def _batch_rows(self, step: int, size: int) -> Tensor:
        return self.outer.batch_rows(step, len(self.bundle.train), self.stream.fold("batch"), size)

    def outer_batch(self, state: DistillerState) -> RealBatch:
        """The real batch of the outer step from a state."""
        size = self.piece(state).batch_size(self.outer.batch_size)
        rows = self.made_ahead.take(("rows", state.step, size), lambda: self._batch_rows(state.step, size))
        return self.real_batch(rows, self.stream.fold("augment").fold(state.step))

    def real_batch(self, rows: Tensor, stream: Stream) -> RealBatch:
        """Real training images at these rows, int64 (B,), augmented with draws from the stream, and their labels."""
        train, rows = self.bundle.train, to_device(rows, self.torch_device)
        images, labels = train.images[rows], F.one_hot(train.labels[rows], self.bundle.num_classes).float()
        if self.outer.augment is not None:
            draw = self.outer.augment.sample(stream, tuple(images.shape))
            images = self.outer.augment.apply(images, to_device(draw, self.torch_device))
        return RealBatch(images, labels)

    def stage_learner(self, stage: Stage) -> Learner:
        """The bound learner, with a minibatch that the union of a stage can serve."""
        learner: Learner = with_batch_that_fits(self.bound, [stage.per_class]) if self.boost is not None else self.bound
        return learner

    def piece(self, state: DistillerState) -> Piece:
        """The piece of the run that the outer step from a state lies in."""
        return [one for one in self.pieces if one.stage.number == state.stage and one.first <= state.stage_step][-1]

    def piece_learner(self, piece: Piece) -> Learner:
        """The learner of a stage, with the network of a part of `growth`."""
        return piece.learner(self.stage_learner(piece.stage))

    def sampling_groups(self, stage: Stage) -> Tensor:
        """The class that each row of a stage's set is drawn as, int64 (N,); see `boosting.sampling_groups`."""
        return sampling_groups(stage, self.boost, self.bundle.num_classes)

    def cpu_threads(self, state: DistillerState) -> int:
        """CPU threads of `run`: what `threads` says, or what a forward pass on the set at a state is worth."""
        fresh = partial(self.bound.init, self.stream.fold("threads"), device=self.torch_device)
        images = state.leaves.images[: self.bound.micro_batch]
        return self.threads or process.threads_for(lambda: self.bound.logits(fresh().params, images))

    def execution(self, piece: Piece) -> Execution:
        """How the inner steps of a piece are run: what the unroller's "auto" stands for there."""
        return self._execution(self.resolved_unroller, piece)

    @cached_property
    def resolved_unroller(self) -> Unroller:
        """The unroller with `precision = "auto"` decided, for the whole run by its end: what a run computes in is part of its spec."""
        if self.unroller.precision != "auto":
            return self.unroller
        found = decided(self._execution(self.unroller, self.pieces[-1]), self.torch_device, self._meta_gradient_in)
        logger.info("precision: %s (%s)", found.precision, found.why)
        return fields.evolve(self.unroller, precision=found.precision)

    def _meta_gradient_in(self, name: str) -> Tensor:
        """That of the images in a precision, as the last piece begins: on real data, through the beginning of a window of its policy."""
        piece, stream = self.pieces[-1], self.stream.fold("precision")
        window, _ = piece.stage.truncation.plan(piece.stage.truncation.init(), 0, stream.fold("window"))
        batch = self.real_batch(self._batch_rows(0, piece.batch_size(self.outer.batch_size)), stream.fold("augment"))
        leaves, drawn_from = self.template(piece.stage.number).leaves, self.sampling_groups(piece.stage)
        return self.unroller.probed(name, self.piece_learner(piece), leaves, window, batch, stream.fold("inner"), drawn_from)

    @cached_property
    def programs(self) -> ProgramCache:
        """The programs that are built for this pipeline: for inner steps, and for networks that are judged on the way."""
        return ProgramCache()

    def _execution(self, unroller: Unroller, piece: Piece) -> Execution:
        learner = self.piece_learner(piece)
        shape = (learner.inner_batch_size(self.sampling_groups(piece.stage)), *self.bundle.image_shape)
        return unroller.execution(learner, shape, self.torch_device)

    def distilled(self, state: DistillerState) -> DistilledSet:
        """The distilled set at a state, on the CPU."""
        leaves, stage = OuterVariables(*(x.detach().cpu() for x in state.result)), self.stages[state.stage]
        started_from = {"started_from": self.images.stored} if self.images.stored else {}
        return DistilledSet(
            images=leaves.images,
            labels=leaves.labels,
            classes=stage.classes(self.bundle.num_classes),
            block=stage.block(self.bundle.num_classes),
            class_names=self.bundle.class_names,
            label_space="probability" if self.labels.learn or not is_one_hot(leaves.labels) else "one-hot",
            inner_lr=leaves.log_lr.exp().tolist() if self.learner.learn_lr else None,
            preprocessing=self.bundle.preprocessing,
            provenance={"title": self.title, "data": self.bundle.name, "seed": self.seed, "outer_step": state.step, **started_from},
        )

    def run(self, directory: str | Path, progress: Progress | None = None, **options: Any) -> xarray.DataTree:
        """Distil, evaluate and store; see `distilkit.run`, of which this is another name."""
        from distilkit.runs.run import run

        return run(self, directory, progress, **options)

    def _block(self, stage: Stage, log_lr: Tensor, *, stored: bool = False) -> OuterVariables:
        """The rows that a stage adds, as they start."""
        count, skip = stage.blocks[-1], stage.per_class - stage.blocks[-1]
        log_lr = log_lr.to(self.torch_device)
        if stored and self.images.stored is not None:
            about: Any = {"learn_lr": self.learner.learn_lr, "seed": self.seed, "boosted": self.boost is not None}
            return warm_start.first_block(self.images.stored, self.bundle, log_lr, count=count, **about)
        images, classes = self.images.init(self.bundle, self.stream.fold("images"), count, skip)
        return OuterVariables(*(x.to(self.torch_device) for x in (images, self.labels.init(classes, self.bundle.num_classes), log_lr)))

"""Training many fresh networks, and measuring them.

The networks of an evaluation differ only in their random streams. Small ones are trained side by side: their parameters are
stacked to (networks, P) and one `torch.func.vmap` of the loss serves all of them, because their time goes into starting
kernels. Large ones are trained one by one: their time goes into arithmetic, and stacked convolutions are slower than single
ones on a CPU. `side_by_side` is the rule; both ways give the same results to rounding.

A training step is the step of the inner problem (`distilkit.unroll.problem`), recorded and compiled as that is, where there are enough
steps to win back what building it takes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import attrs
import numpy as np
import torch
from torch import Tensor

from distilkit import process
from distilkit.data.bundle import Split
from distilkit.data.pixels import Pixels
from distilkit.errors import counted
from distilkit.functional.streams import Stream
from distilkit.learner import Draw, Learner, LearnerState
from distilkit.programs.programs import Programs
from distilkit.unroll.execution import Compile, Execution, Precision, ProgramCache, choose, require_values
from distilkit.unroll.inner import OuterVariables, step
from distilkit.unroll.problem import by_step, on_device, problem, start

logger = logging.getLogger("distilkit")

MEMORY = 2**28  # bytes of activations at one time on a CPU; on a GPU, a twelfth of what it has
DRAWN_AHEAD = 64  # training steps whose draws are made at one time, and go over to a GPU in one transfer
TEST_BATCH = 2048  # images that go through a network at one time when accuracy is measured, or fewer if they are large


@attrs.frozen(eq=False)
class TrainingSet:
    """Something that networks are trained on.

    Args:
        images: (N, ...), shared by all networks, or (networks, N, ...), a set for each; of real images in minibatches it may be `Pixels`.
        labels: (N, K) or (networks, N, K).
        classes: int64 (N,), the class of each row; the same for every network.
        batch_size: rows of a training step, drawn from all without replacement; None leaves it to the learner.
        log_lr: logarithm of the learned learning rate, (), or of those of the first steps, (steps,), if it is learned.
        label_space: what the labels are; see `DistilledSet`.
    """

    images: Tensor
    labels: Tensor
    classes: Tensor
    batch_size: int | None = None
    log_lr: Tensor | None = None
    label_space: str = "one-hot"

    @property
    def own(self) -> bool:
        """Whether each network has a set of its own."""
        return self.labels.ndim == 3

    @property
    def image_shape(self) -> tuple[int, ...]:
        """The shape of one image."""
        return tuple(self.images.shape[2 if self.own else 1 :])

    def part(self, networks: slice) -> TrainingSet:
        """What these of the networks are trained on."""
        return attrs.evolve(self, images=self.images[networks], labels=self.labels[networks]) if self.own else self

    def batch(self, learner: Learner, stream: Stream) -> Tensor:
        """The images of one training step of one network, before augmentation."""
        rows = draws(learner, self, [stream], [0])[0].rows
        images = self.images[0] if self.own else self.images
        return images if rows is None else images[rows.to(images.device)]


class Mode(NamedTuple):
    """How networks are run.

    precision: "float32", "tf32" or "bfloat16". compile: as in `Unroller`. programs: where what is built is kept; None builds anew.
    """

    precision: Precision = "float32"
    compile: Compile = "auto"
    programs: ProgramCache | None = None


PLAIN = Mode()


def train(
    learner: Learner,
    training: TrainingSet,
    streams: Sequence[Stream],
    lengths: Sequence[int],
    *,
    together: int | None = None,
    mode: Mode = PLAIN,
    networks: int | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """Train one fresh network for each stream, and stop to look after each of the lengths.

    Args:
        learner: bound to the images' shape.
        training: what to train on.
        streams: one for each network: its initial parameters and all of its draws. So a network's result does not depend on
            how many others there are.
        lengths: numbers of training steps, rising.
        together: how many networks to train side by side; None picks by `side_by_side`.
        mode: how to run them.
        networks: how many there will be in all, where these are some of them: building programs for few is not worth it.

    Yields:
        (length, parameters (networks, P)).
    """
    batch = training.batch(learner, streams[0])
    parts = groups(learner, training, streams, together)
    together = len(streams[parts[0]])
    require_values(learner)
    calls = max(lengths, default=0) * -(-(networks or len(streams)) // together)
    execution = _execution(learner, tuple(batch.shape), batch.device, together, mode, calls)
    programs = (mode.programs or ProgramCache()).of(execution, learner)
    started = [_Group.start(learner, training.part(part), streams[part], execution, programs) for part in parts]
    done = 0
    for length in lengths:
        with torch.no_grad(), process.keep_freed_memory(), process.products(mode.precision, batch.device):
            for group in started:
                for t in range(done, length, DRAWN_AHEAD):
                    group.advance(range(t, min(t + DRAWN_AHEAD, length)))
        done = length
        yield length, torch.cat([group.params for group in started])


def groups(learner: Learner, training: TrainingSet, streams: Sequence[Stream], together: int | None = None) -> list[slice]:
    """Which of the networks are trained side by side.

    Args:
        learner: bound.
        training: what to train on.
        streams: one for each network.
        together: how many; None picks by `side_by_side`.
    """
    if together is None:
        together = side_by_side(learner, training.batch(learner, streams[0]), len(streams))
    return [slice(i, min(i + together, len(streams))) for i in range(0, len(streams), together)]


def _execution(learner: Learner, shape: tuple[int, ...], device: torch.device, together: int, mode: Mode, calls: int) -> Execution:
    """How to run so many networks side by side on batches of a shape, for so many calls."""
    stacked = "on" if together > 1 else "off"
    return choose(learner, mode.compile, "auto", stacked, mode.precision, together, shape, device, calls)


def side_by_side(learner: Learner, batch: Tensor, networks: int) -> int:
    """How many networks to train at one time on batches like this one: 1 for large networks, more for small ones.

    Args:
        learner: bound.
        batch: (B, ...), the images of a training step.
        networks: how many there are.
    """
    if networks > 1 and learner.at_a_time(len(batch)) is not None:
        return 1
    kind, work = batch.device.type, cost(learner, batch[: learner.micro_batch])
    if networks == 1 or work.operations > process.SMALL_WORK.get(kind, 0):
        return 1
    fits = _memory(batch.device) // max(2 * work.bytes, 1)  # twice: what is kept, and its gradients
    return max(1, min(networks, fits, process.STACKED.get(kind, 2**62) // learner.layout.size))


class Cost(NamedTuple):
    """Of one forward pass. operations: of floating point. bytes: kept for the backward pass."""

    operations: float
    bytes: int


def cost(learner: Learner, images: Tensor) -> Cost:
    """Measure one forward pass of one network on these images, (B, ...)."""
    params = learner.init(Stream(0, ("cost",)), device=images.device, dtype=images.dtype).params.requires_grad_()
    kept: dict[int, int] = {}

    def keep(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x)
    with torch.enable_grad(), hooks:
        work, logits = process.count_operations(lambda: learner.logits(params, images))
    for x in (params, images):
        kept.pop(x.untyped_storage().data_ptr(), None)
    return Cost(work, sum(kept.values()) + logits.nbytes)


def accuracy(learner: Learner, params: Tensor, split: Split, mode: Mode = PLAIN, networks: int | None = None) -> Tensor:
    """Fraction of images whose largest logit is their class.

    Args:
        learner: bound.
        params: (networks, P).
        split: real images and their classes.
        mode: how to run the networks.
        networks: how many there will be in all, as for `train`.

    Returns:
        float64 (networks,), on the CPU; NaN for a network whose outputs are not all finite.
    """
    images, labels = split.images, split.labels
    batch, together = _test_batch(learner, len(params), split)
    least = -(-len(images) // batch)
    # Of equal size where that can be: a network with batch norm sees its batch, and every size has a program of its own.
    parts = next((n for n in range(least, 2 * least) if len(images) % n == 0), least)
    calls = parts * -(-(networks or len(params)) // together)
    shape = (-(-len(images) // parts), *images.shape[1:])
    execution = _execution(learner, shape, images.device, together, mode, calls)
    forward = _forward(learner, execution, (mode.programs or ProgramCache()).of(execution, learner))
    hits = torch.zeros(len(params), dtype=torch.int64, device=images.device)
    diverged = torch.zeros(len(params), dtype=torch.bool, device=images.device)
    with torch.no_grad(), process.keep_freed_memory(), process.products(mode.precision, images.device):
        for x, y in zip(images.tensor_split(parts), labels.tensor_split(parts), strict=True):
            for i in range(0, len(params), together):
                some = params[i : i + together]
                found = forward(some, x) if together > 1 else forward(some[0], x)[None]
                hits[i : i + together] += (found.argmax(-1) == y).sum(-1)
                diverged[i : i + together] |= ~found.isfinite().flatten(1).all(1)
    lost = int(diverged.sum())
    if lost:
        networks_words = counted(len(params), "network")
        logger.warning("%d of %s diverged: their outputs are not finite, and they have no accuracy", lost, networks_words)
    return (hits.double() / len(labels)).masked_fill(diverged, torch.nan).cpu()


def tested_together(learner: Learner, networks: int, split: Split) -> int:
    """How many of so many networks `accuracy` takes side by side."""
    return _test_batch(learner, networks, split)[1]


def _test_batch(learner: Learner, networks: int, split: Split) -> tuple[int, int]:
    """How many images go through how many networks at one time, at most."""
    images = split.images
    probe = images[:64]
    work, room = cost(learner, probe), _memory(images.device)
    batch = min(TEST_BATCH, max(1, room * len(probe) // work.bytes), len(images))
    small = work.operations * batch / len(probe) <= process.SMALL_WORK.get(images.device.type, 0)
    return batch, min(networks, max(1, room * len(probe) // (work.bytes * batch))) if small else 1


def mean_or_zero(accuracies: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Mean over the last dimension to choose by, in which a network that diverged counts as never right."""
    mean: np.ndarray[Any, Any] = np.nan_to_num(accuracies).mean(-1)
    return mean


def _forward(learner: Learner, execution: Execution, programs: Programs) -> Callable[[Tensor, Tensor], Tensor]:
    """Logits of one network, or (networks, N, K) of several side by side."""

    def logits(params: Tensor, images: Tensor) -> Tensor:
        return learner.logits(params, images, execution.numerics)

    def plain(params: Tensor, images: Tensor) -> Tensor:
        return learner.logits(params, images, execution.numerics._replace(channels_last=False))

    name = f"logits in {execution.precision}"
    if execution.side_by_side:
        return programs(f"{name}, side by side", torch.func.vmap(logits, in_dims=(0, None)))
    ways = (logits, plain) if execution.channels_last else (logits,)
    return programs(name, *ways)


def draws(learner: Learner, training: TrainingSet, streams: Sequence[Stream], steps: Sequence[int]) -> list[Draw]:
    """What is random in training steps of single networks, from the stream and with the number of each."""
    rows, size = None, len(training.classes)
    if training.batch_size is not None:
        rows = [one.fold("rows").first_of_permutation(size, training.batch_size) for one in streams]
    return learner.draws(streams, training.classes, training.image_shape, steps, rows)


@attrs.define
class _Group:
    """Networks that are trained side by side; or one."""

    learner: Learner
    training: TrainingSet
    streams: Sequence[Stream]
    leaves: OuterVariables
    state: LearnerState
    step: Callable[..., tuple[Tensor, Any]]
    stacked: bool

    @classmethod
    def start(cls, learner: Learner, training: TrainingSet, streams: Sequence[Stream], execution: Execution, programs: Programs) -> _Group:
        """Fresh networks, before their first step."""
        images, labels, stacked = training.images, training.labels, execution.side_by_side
        if training.own and not stacked:
            images, labels = images[0], labels[0]
        log_lr = torch.zeros((), device=images.device) if training.log_lr is None else training.log_lr
        own = training.own or isinstance(images, Pixels)
        one = problem(learner, execution.numerics.dtype, execution, own_sets=own and stacked)
        state = start(learner, streams, images, execution)
        return cls(learner, training, streams, OuterVariables(images, labels, log_lr), state, step(programs, one), stacked)

    @property
    def params(self) -> Tensor:
        """(networks, P)."""
        return self.state.params if self.stacked else self.state.params[None]

    def advance(self, steps: range) -> None:
        """These training steps of every network."""
        own = [stream.fold("draw") for stream in self.streams]
        made = draws(self.learner, self.training, [one.fold(t) for t in steps for one in own], [t for t in steps for _ in own])
        for one in on_device(by_step(made, len(own), stacked=self.stacked), self.leaves.images.device):
            self.state = LearnerState(*self.step(*self.state, *self._taken(one)))

    def _taken(self, one: Draw) -> tuple[OuterVariables, Draw]:
        """What a step learns from, and its draw: of images that are yet to be preprocessed, the minibatch."""
        images, labels, _ = self.leaves
        if not isinstance(images, Pixels) or one.rows is None:
            return self.leaves, one
        return self.leaves._replace(images=images[one.rows], labels=labels[one.rows]), one._replace(rows=None)


def _memory(device: torch.device) -> int:
    """What activations may take: on a machine the same in every process, since how images are parted moves the last bits of a result.

    But for a GPU that is nearly full.
    """
    if device.type != "cuda":
        return MEMORY
    usual, free = torch.cuda.get_device_properties(device).total_memory // 12, torch.cuda.mem_get_info(device)[0]
    if usual > free // 2:
        logger.info("judging takes images in smaller parts: of the GPU's memory, %.1f GiB are free", free / 2**30)
    return min(usual, free // 2)

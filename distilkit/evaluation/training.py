"""Training many fresh networks, and measuring them.

The networks of an evaluation differ only in their random streams. Small ones are trained side by side: their parameters are
stacked to (networks, P) and one `torch.func.vmap` of the loss serves all of them, because their time goes into starting
kernels. Large ones are trained one by one: their time goes into arithmetic, and stacked convolutions are slower than single
ones on a CPU. `side_by_side` is the rule; both ways give the same results to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import attrs
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from distilkit.data import Split
from distilkit.execution import SMALL_WORK, STACKED
from distilkit.functional import optimizers
from distilkit.functional.pytrees import stack
from distilkit.functional.streams import Stream
from distilkit.learner import Draw, Learner

MEMORY = 2**28  # bytes of activations at one time on a CPU; on a GPU, an eighth of what is free
TEST_BATCH = 2048  # images that go through a network at one time when accuracy is measured, or fewer if they are large


@attrs.frozen(eq=False)
class TrainingSet:
    """Something that networks are trained on.

    Args:
        images: (N, ...), shared by all networks, or (networks, N, ...), a set for each.
        labels: (N, K) or (networks, N, K).
        classes: int64 (N,), the class of each row; the same for every network.
        batch_size: rows of a training step, drawn from all without replacement; None leaves it to the learner.
        log_lr: logarithm of the learned learning rate, if there is one.
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
        rows = draw(learner, self, stream).rows
        images = self.images[0] if self.own else self.images
        return images if rows is None else images[rows.to(images.device)]


def train(
    learner: Learner, training: TrainingSet, streams: Sequence[Stream], lengths: Sequence[int], *, together: int | None = None
) -> Iterator[tuple[int, Tensor]]:
    """Train one fresh network for each stream, and stop to look after each of the lengths.

    Args:
        learner: bound to the images' shape.
        training: what to train on.
        streams: one for each network: its initial parameters and all of its draws. So a network's result does not depend on
            how many others there are.
        lengths: numbers of training steps, rising.
        together: how many networks to train side by side; None picks by `side_by_side`.

    Yields:
        (length, parameters (networks, P)).
    """
    if together is None:
        together = side_by_side(learner, training.batch(learner, streams[0]), len(streams))
    starts = range(0, len(streams), together)
    groups = [_Group.start(learner, training.part(slice(i, i + together)), streams[i : i + together]) for i in starts]
    done = 0
    for length in lengths:
        for group in groups:
            for step in range(done, length):
                group.advance(step)
        done = length
        yield length, torch.cat([group.params for group in groups])


def side_by_side(learner: Learner, batch: Tensor, networks: int) -> int:
    """How many networks to train at one time on batches like this one: 1 for large networks, more for small ones.

    Args:
        learner: bound.
        batch: (B, ...), the images of a training step.
        networks: how many there are.
    """
    kind, work = batch.device.type, cost(learner, batch)
    if networks == 1 or work.operations > SMALL_WORK.get(kind, 0):
        return 1
    fits = _memory(batch.device) // max(2 * work.bytes, 1)  # twice: what is kept, and its gradients
    return max(1, min(networks, fits, STACKED.get(kind, 2**62) // learner.layout.size))


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
    with FlopCounterMode(display=False) as counter, torch.enable_grad(), hooks:
        logits = learner.logits(params, images)
    for x in (params, images):
        kept.pop(x.untyped_storage().data_ptr(), None)
    return Cost(counter.get_total_flops(), sum(kept.values()) + logits.nbytes)


def accuracy(learner: Learner, params: Tensor, split: Split) -> Tensor:
    """Fraction of images whose largest logit is their class.

    Args:
        learner: bound.
        params: (networks, P).
        split: real images and their classes.

    Returns:
        float64 (networks,), on the CPU.
    """
    images, labels = split.images, split.labels
    probe = images[:64]
    work, room = cost(learner, probe), _memory(images.device)
    batch = min(TEST_BATCH, max(1, room * len(probe) // work.bytes), len(images))
    small = work.operations * batch / len(probe) <= SMALL_WORK.get(images.device.type, 0)
    together = min(len(params), max(1, room * len(probe) // (work.bytes * batch))) if small else 1
    parts = -(-len(images) // batch)  # of equal size, since a network with batch norm sees its batch
    logits = torch.func.vmap(learner.logits, in_dims=(0, None))
    hits = torch.zeros(len(params), dtype=torch.int64, device=images.device)
    with torch.no_grad():
        for i in range(0, len(params), together):
            some = params[i : i + together]
            for x, y in zip(images.tensor_split(parts), labels.tensor_split(parts), strict=True):
                found = logits(some, x) if len(some) > 1 else learner.logits(some[0], x)[None]
                hits[i : i + together] += (found.argmax(-1) == y).sum(-1)
    return hits.double().cpu() / len(labels)


def draw(learner: Learner, training: TrainingSet, stream: Stream) -> Draw:
    """What is random in one training step of one network."""
    if training.batch_size is None:
        return learner.draw(stream, training.classes, training.image_shape)
    rows = stream.fold("rows").permutation(len(training.classes))[: training.batch_size]
    shape = (len(rows), *training.image_shape)
    return Draw(rows, None if learner.augment is None else learner.augment.sample(stream.fold("augment"), shape))


@attrs.define
class _Group:
    """Networks that are trained side by side; or one."""

    learner: Learner
    training: TrainingSet
    streams: Sequence[Stream]
    params: Tensor
    state: Any
    lr: Tensor | None

    @classmethod
    def start(cls, learner: Learner, training: TrainingSet, streams: Sequence[Stream]) -> _Group:
        images = training.images
        fresh = [learner.init(s.fold("network"), device=images.device, dtype=images.dtype).params for s in streams]
        params = torch.stack(fresh)
        lr = training.log_lr.exp() if learner.learn_lr and training.log_lr is not None else None
        return cls(learner, training, streams, params, optimizers.init_many(learner.optimizer, params), lr)

    def advance(self, step: int) -> None:
        """One training step of every network."""
        draws = [draw(self.learner, self.training, s.fold("draw").fold(step)) for s in self.streams]
        # Each loss knows its own network only, so the gradient of their sum is the gradient of each, and one backward pass
        # over the stack is quicker than a vmap of gradients.
        params = self.params.detach().requires_grad_()
        with torch.enable_grad():
            losses = self._loss_alone(params, draws[0]) if len(draws) == 1 else self._losses_together(params, draws)
        (gradient,) = torch.autograd.grad(losses.sum(), params)
        with torch.no_grad():
            self.params, self.state = optimizers.update_many(self.learner.optimizer, gradient, self.state, self.params, self.lr)

    def _loss_alone(self, params: Tensor, made: Draw) -> Tensor:
        images, labels = self.training.images, self.training.labels
        if self.training.own:
            images, labels = images[0], labels[0]
        return self.learner.objective(params[0], images, labels, made.to(images.device))

    def _losses_together(self, params: Tensor, draws: Sequence[Draw]) -> Tensor:
        own = 0 if self.training.own else None
        made = stack(draws).to(self.training.images.device)
        losses = torch.func.vmap(self.learner.objective, in_dims=(0, own, own, made.stacked))
        values: Tensor = losses(params, self.training.images, self.training.labels, made)
        return values


def _memory(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0] // 8 if device.type == "cuda" else MEMORY

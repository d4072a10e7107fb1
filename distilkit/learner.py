"""The learner: how a network is trained on a distilled set, one inner step at a time.

`grad` and `update` are separate and pure, so that an adjoint can take each apart. All that is random in a step, the rows of
its minibatch and the augmentation, is a `Draw`, made before the step and replayed in the backward sweep.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from distilkit import fields
from distilkit.data.augmentation import Augmentation
from distilkit.data.augmentation.base import sample_each
from distilkit.errors import CombinationError
from distilkit.functional import optimizers
from distilkit.functional.losses import CrossEntropy, Loss
from distilkit.functional.optimizers import Optimizer
from distilkit.functional.parts import Part, micro_batches
from distilkit.functional.pytrees import Layout, to_device
from distilkit.functional.streams import Stream, Streams
from distilkit.networks.base import Network


class LearnerState(NamedTuple):
    """params: all parameters in one vector (P,). optimizer: the TorchOpt state, a tree of tensors."""

    params: Tensor
    optimizer: Any


class Draw(NamedTuple):
    """What is random in one inner step.

    rows: int64 (B,), the rows of the distilled set, or None for all of them. augment: the augmentation's draw, or None.
    rate: int64 (), which of several learned learning rates the step takes, or None where there is one at most. network: what is random in
    the network itself, such as masks of dropout, or None.
    """

    rows: Tensor | None = None
    augment: dict[str, Tensor] | None = None
    rate: Tensor | None = None
    network: dict[str, Tensor] | None = None

    def to(self, device: torch.device | str) -> Draw:
        """The same draw on a device."""
        moved: Draw = to_device(self, device)
        return moved

    def part(self, some: slice) -> Draw:
        """That of some of the images of the step, which are given by themselves. What an augmentation has drawn once holds for all."""

        def taken(drawn: dict[str, Tensor] | None) -> dict[str, Tensor] | None:
            return drawn and {name: x if len(x) == 1 else x[some] for name, x in drawn.items()}

        return Draw(None, taken(self.augment), self.rate, taken(self.network))

    @property
    def in_dims(self) -> Draw:
        """For `torch.func.vmap`, where these are the stacked draws of several networks: dimension 0 of each part that there is."""
        return Draw(*(None if part is None else 0 for part in self))  # type: ignore[arg-type]


class Numerics(NamedTuple):
    """How a network computes: in which dtype (None: that of its input), and with images as (N, H, W, C) in memory or not.

    `kernels` takes its `apply_by_kernels`, which networks that are stacks of convolutions have, in place of `apply`.
    """

    dtype: torch.dtype | None = None
    channels_last: bool = False
    kernels: bool = False


class TrainingData(Protocol):
    """What a learner learns from: `OuterVariables`, or a `DistilledSet`."""

    @property
    def images(self) -> Tensor:
        """(N, ...)."""
        ...

    @property
    def labels(self) -> Tensor:
        """(N, K)."""
        ...

    @property
    def log_lr(self) -> Tensor | None:
        """(), or (steps,) for a rate of each of the first steps; None where the learning rate is not learned."""
        ...


@fields.component
class Learner:
    """Network, optimiser, loss and augmentation of the inner problem.

    Args:
        network: such as `ConvNet()`; its image shape and class count are filled in from the data by `bind`.
        optimizer: such as `Adam(lr=1e-3)`.
        loss: of (logits, soft targets).
        augment: augmentation of the distilled images in every inner step, or None.
        batch_per_class: distilled images of each class in an inner step, drawn without replacement; None takes all.
        classes_per_step: classes in an inner step, drawn without replacement; None takes all.
        micro_batch: distilled images that go through the network at one time, at most. An inner step on more of them takes them in parts,
            one after the other: its loss is still the mean over all, and nothing is left out, so that the meta-gradient is the same to
            rounding, in the memory of a part. None takes them together.
        learn_lr: learn the inner learning rate too; it starts at `optimizer.lr`.
        lr_steps: with `learn_lr`, how many rates are learned, one for each of the first inner steps; later steps take the last. 1 learns
            one for all steps. A rate of a step that no window holds stays at `optimizer.lr`.

    >>> from distilkit.networks.mlp import MLP
    >>> learner = Learner(MLP(hidden=(8,)), optimizers.SGD(lr=0.1)).bind((1, 4, 4), 3)
    >>> learner.init(Stream(0)).params.shape  # 16*8 + 8 + 8*3 + 3
    torch.Size([163])
    """

    network: Network = fields.slot("network")
    optimizer: Optimizer = fields.slot("optimizer", default=optimizers.Adam())
    loss: Loss = fields.slot("loss", default=CrossEntropy())
    augment: Augmentation | None = fields.slot("augmentation", default=None, optional=True)
    batch_per_class: int | None = fields.integer(default=None, least=1, optional=True)
    classes_per_step: int | None = fields.integer(default=None, least=1, optional=True)
    micro_batch: int | None = fields.integer(default=None, least=1, optional=True)
    learn_lr: bool = fields.flag(default=False)
    lr_steps: int = fields.integer(default=1, least=1)

    def __attrs_post_init__(self) -> None:
        if self.lr_steps > 1 and not self.learn_lr:
            raise CombinationError(f"lr_steps = {self.lr_steps} learns no rate where learn_lr = false.", fix="learn_lr = true")
        if self.micro_batch is None:
            return
        if getattr(self.network, "norm", None) == "batch":
            raise _mixed(self, 'norm="instance"')
        if self.augment is not None and not getattr(self.augment, "by_image", False):
            raise CombinationError(
                f"micro_batch = {self.micro_batch} takes inner batches apart, and {type(self.augment).__name__} does not say that it "
                "changes each image by itself, with draws whose first dimension is that of the images.",
                fix="by_image = True  # in the class of the augmentation, if it does",
            )

    def bind(self, image_shape: tuple[int, ...], classes: int) -> Learner:
        """This learner with its network made for images of this shape and this many classes."""
        if self.classes_per_step is not None and self.classes_per_step > classes:
            raise CombinationError(
                f"classes_per_step = {self.classes_per_step}, and the data has {classes} classes.", fix=f"classes_per_step = {classes}"
            )
        bind = getattr(self.network, "bind", None)
        bound = fields.evolve(self, network=bind(image_shape, classes)) if bind else self
        if self.micro_batch is not None and _mixes_images(bound.network, image_shape):
            raise _mixed(self, "micro_batch=None")
        return bound

    def with_network(self, network: Network, image_shape: tuple[int, ...], classes: int) -> Learner:
        """This learner, bound, with another network; one that normalises over the batch takes the images of a step together."""
        plain = fields.evolve(self, network=network, micro_batch=None).bind(image_shape, classes)
        mixed = self.micro_batch is None or _mixes_images(plain.network, image_shape)
        return plain if mixed else fields.evolve(plain, micro_batch=self.micro_batch)

    @cached_property
    def layout(self) -> Layout:
        """Where each parameter lies in the vector."""
        return Layout.of(self.network.init(Stream(0, ("layout",))))

    def init(self, stream: Stream, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> LearnerState:
        """A fresh network and optimiser state, drawn from `stream`."""
        params: Tensor = to_device(self.layout.ravel(self.network.init(stream)).to(dtype), device)
        return LearnerState(params, optimizers.init(self.optimizer, params))

    def draw(self, stream: Stream, classes: Tensor, image_shape: tuple[int, ...], step: int = 0) -> Draw:
        """Draw what is random in one inner step.

        Args:
            stream: of this step.
            classes: int64 (N,), the class of each distilled image.
            image_shape: (C, H, W) of one image.
            step: its number, which is told where there are several learned rates.

        Returns:
            the draw, on the CPU.

        Raises:
            CombinationError: a class has fewer images than `batch_per_class`.
        """
        return self.draws([stream], classes, image_shape, [step])[0]

    def draws(
        self,
        streams: Sequence[Stream],
        classes: Tensor,
        image_shape: tuple[int, ...],
        steps: Sequence[int],
        rows: Sequence[Tensor] | None = None,
    ) -> list[Draw]:
        """The draws of several inner steps, each as `draw` gives it, to the bit: what can be made for all of them together takes less time.

        Args:
            streams: one for each step.
            classes: int64 (N,), the class of each distilled image.
            image_shape: (C, H, W) of one image.
            steps: their numbers.
            rows: of each step, int64 (B,), where something else has drawn them.
        """
        if not streams:
            return []
        if rows is None and (self.batch_per_class is not None or self.classes_per_step is not None):
            rows = rows_of_each([one.fold("rows") for one in streams], classes, self.batch_per_class, self.classes_per_step)
        own: Sequence[Tensor | None] = [None] * len(streams) if rows is None else rows
        counts = [len(classes) if each is None else len(each) for each in own]
        augments: Sequence[dict[str, Tensor] | None] = [None] * len(streams)
        if self.augment is not None:
            augments = sample_each(self.augment, [one.fold("augment") for one in streams], [(count, *image_shape) for count in counts])
        return [
            Draw(each, augment, self.which_rate(step), self.network_draw(stream, count))
            for each, augment, step, stream, count in zip(own, augments, steps, streams, counts, strict=True)
        ]

    def network_draw(self, stream: Stream, count: int) -> dict[str, Tensor] | None:
        """What is random in the network in a step on so many images, drawn from the stream of the step; None of most networks."""
        sample = getattr(self.network, "sample", None)
        return (sample(stream.fold("network"), count) or None) if sample else None

    def require_rates(self, log_lr: Tensor) -> None:
        """See that there are as many learned rates as the learner takes.

        Raises:
            CombinationError: there are others.
        """
        shape = (self.lr_steps,) if self.lr_steps > 1 else ()
        if self.learn_lr and log_lr.shape != shape:
            raise CombinationError(
                f"The learner takes learned rates of shape {shape} (lr_steps = {self.lr_steps}), and log_lr is {tuple(log_lr.shape)}.",
                fix=f"lr_steps = {log_lr.numel()}",
            )

    def which_rate(self, step: int) -> Tensor | None:
        """int64 (): which of several learned rates an inner step takes; None where there are not several."""
        return torch.tensor(min(step, self.lr_steps - 1)) if self.lr_steps > 1 else None

    def inner_batch_size(self, classes: Tensor) -> int:
        """Number of distilled images in an inner step, of images of these classes, int64 (N,)."""
        present, counts = classes.unique(return_counts=True)
        each = min(self.batch_per_class or int(counts.max()), int(counts.max()))
        if self.classes_per_step is None:
            return int(counts.clamp_max(each).sum())
        return each * min(self.classes_per_step, len(present))

    def at_a_time(self, count: int) -> int | None:
        """Images in the largest part of an inner batch of so many; None where they are taken together."""
        if self.micro_batch is None or count <= self.micro_batch:
            return None
        largest: int = micro_batches(count, self.micro_batch)[0].stop
        return largest

    def parts(self, images: Tensor, labels: Tensor, draw: Draw) -> Iterator[Part]:
        """The micro-batches of an inner step, each taken from the set, images (N, ...) and labels (N, K), when its turn comes."""
        count = len(images) if draw.rows is None else len(draw.rows)
        for some in micro_batches(count, self.micro_batch or count):
            rows = some if draw.rows is None else draw.rows[some]
            yield Part((some.stop - some.start) / count, rows, images[rows], labels[rows], draw.part(some))

    def logits(self, params: Tensor, images: Tensor, numerics: Numerics | None = None, drawn: dict[str, Tensor] | None = None) -> Tensor:
        """Network output: params (P,), images (N, ...) -> (N, K).

        `numerics` are those inside of the network; parameters and logits keep their own dtype. None leaves all as it is. `drawn` is what is
        random in the network (`Draw.network`), in training only.
        """
        dtype, channels_last, kernels = numerics or Numerics()
        if channels_last and images.ndim == 4:
            images = images.contiguous(memory_format=torch.channels_last)
        named = self.layout.unravel(params)
        apply = getattr(self.network, "apply_by_kernels") if kernels else self.network.apply  # noqa: B009  # few networks have it
        apply = apply if drawn is None else partial(_with_draw, self.network, drawn)
        if dtype is None:
            return apply(named, images)
        # Parameter by parameter: slices of a whole vector that is rounded first are views that torch 2.11 cannot compile.
        return apply({name: p.to(dtype) for name, p in named.items()}, images.to(dtype)).to(params.dtype)

    def objective(self, params: Tensor, images: Tensor, labels: Tensor, draw: Draw, numerics: Numerics | None = None) -> Tensor:
        """The inner loss at params: a number. `numerics` as in `logits`; the loss itself is taken in the dtype of the parameters."""
        if draw.rows is not None:
            images, labels = images[draw.rows], labels[draw.rows]
        if draw.augment is not None:
            assert self.augment is not None  # it made the draw
            images = self.augment.apply(images, draw.augment)
        value: Tensor = self.loss(self.logits(params, images, numerics, draw.network), labels)
        return value

    def grad(self, params: Tensor, distilled: TrainingData, draw: Draw) -> Tensor:
        """Gradient of the inner loss: (P,), the sum over micro-batches where there are several."""
        count = len(distilled.images) if draw.rows is None else len(draw.rows)
        gradient_of = torch.func.grad(self.objective)
        if self.at_a_time(count) is None:
            gradient: Tensor = gradient_of(params, distilled.images, distilled.labels, draw)
            return gradient
        parts = self.parts(distilled.images, distilled.labels, draw)
        return sum((part.share * gradient_of(params, part.images, part.labels, part.draw) for part in parts), torch.zeros_like(params))

    def update(self, state: LearnerState, grads: Tensor, log_lr: Tensor | None = None) -> LearnerState:
        """One optimiser step, out of place; `log_lr` () is the logarithm of the learning rate where that is learned."""
        if self.learn_lr and log_lr is None:
            raise CombinationError("The learner takes a learned learning rate (learn_lr = true), and none was given.", fix="log_lr=...")
        lr = log_lr.exp() if self.learn_lr and log_lr is not None else None
        return LearnerState(*optimizers.update(self.optimizer, grads, state.optimizer, state.params, lr))

    def step(self, state: LearnerState, distilled: TrainingData, draw: Draw) -> LearnerState:
        """Gradient and update: one inner step."""
        if distilled.log_lr is not None:
            self.require_rates(distilled.log_lr)
        log_lr = None if distilled.log_lr is None else rate_of(distilled.log_lr, draw)
        return self.update(state, self.grad(state.params, distilled, draw), log_lr)


def _mixes_images(network: Network, image_shape: tuple[int, ...]) -> bool:
    """Whether the logits of an image depend on the images beside it."""
    images = Stream(0, ("beside",)).normal(4, *image_shape)
    params = network.init(Stream(0, ("beside",)))
    with torch.no_grad():
        together, alone = network.apply(params, images)[:2], network.apply(params, images[:2])
    return not torch.allclose(together, alone, rtol=1e-3, atol=1e-3 * float(together.abs().max()))


def _mixed(learner: Learner, fix: str) -> CombinationError:
    return CombinationError(
        f"micro_batch = {learner.micro_batch} takes inner batches apart, and {type(learner.network).__name__} normalises over the batch: "
        "the parts would not add up to the whole.",
        fix=fix,
    )


def _with_draw(network: Any, drawn: dict[str, Tensor], params: dict[str, Tensor], images: Tensor) -> Tensor:
    logits: Tensor = network.apply(params, images, drawn)
    return logits


def rate_of(log_lr: Tensor, draw: Draw) -> Tensor:
    """The logarithm () of the learned learning rate that a step takes: of the one that there is, (), or of several, (steps,).

    Side by side, the draws of several networks in one step, `draw.rate` (networks,) holds one number.
    """
    return log_lr if draw.rate is None else log_lr.gather(0, draw.rate.reshape(-1)[:1]).squeeze(0)


def draw_rows(stream: Stream, classes: Tensor, batch_per_class: int | None, classes_per_step: int | None) -> Tensor:
    """Rows of a minibatch: `batch_per_class` of each class without replacement, from `classes_per_step` random classes.

    Args:
        stream: of this step.
        classes: int64 (N,), the class of each row.
        batch_per_class: rows of each class, or None for all.
        classes_per_step: classes, or None for all.

    Returns:
        int64 (B,), grouped by class.

    >>> draw_rows(Stream(0), torch.tensor([0, 1, 0, 1]), 1, None).shape
    torch.Size([2])
    """
    return rows_of_each([stream], classes, batch_per_class, classes_per_step)[0]


def rows_of_each(streams: Sequence[Stream], classes: Tensor, batch_per_class: int | None, classes_per_step: int | None) -> list[Tensor]:
    """Rows of a minibatch from each stream, as `draw_rows` gives them."""
    classes = classes.cpu()
    present, counts = classes.unique(return_counts=True)
    if batch_per_class is not None and int(counts.min()) < batch_per_class:
        worst = int(present[counts.argmin()])
        raise CombinationError(
            f"batch_per_class = {batch_per_class}, and class {worst} has {int(counts.min())} distilled images.",
            fix=f"batch_per_class = {int(counts.min())}",
        )
    shuffled = Streams(tuple(streams)).fold("order").permutation(len(classes))
    grouped = shuffled.gather(1, classes[shuffled].argsort(dim=1, stable=True))
    groups = [group[:, :batch_per_class] for group in grouped.split(counts.tolist(), 1)]  # of each class, (streams, rows)
    if classes_per_step is None:
        return [rows.clone() for rows in torch.cat(groups, 1)]
    picked = [sorted(one.fold("classes").permutation(len(present))[:classes_per_step].tolist()) for one in streams]
    return [torch.cat([groups[i][k] for i in some]) for k, some in enumerate(picked)]

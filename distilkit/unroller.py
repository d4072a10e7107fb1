"""The unroller: runs the inner problem and takes the meta-gradient through the window."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, NamedTuple

import attrs
import optree
import torch
from torch import Tensor

from distilkit import fields
from distilkit.errors import CombinationError
from distilkit.functional.adjoints import End, InnerProblem, Leaves, ReplayAdjoint, Step
from distilkit.functional.programs import Programs
from distilkit.functional.streams import Stream
from distilkit.learner import Draw, Learner, LearnerState
from distilkit.truncation import Window

logger = logging.getLogger("distilkit")


class RealBatch(NamedTuple):
    """Real data that the outer loss is taken on: images (B, ...), labels (B, K) as one-hot or soft targets."""

    images: Tensor
    labels: Tensor


class MetaGradient(NamedTuple):
    """The outer loss () and its gradient with respect to images (N, ...), labels (N, K) and log_lr ()."""

    loss: Tensor
    images: Tensor
    labels: Tensor
    log_lr: Tensor


@attrs.frozen
class Unroller:
    """Takes meta-gradients.

    Args:
        adjoint: how the gradient flows back through the window: `ReplayAdjoint()` or `AutogradAdjoint()`.
        precision: of the arithmetic inside of the network. "bfloat16" keeps parameters, optimiser state and adjoint sums in
            float32, and takes inner step 0 in float32: there Adam's update is g / (|g| + eps), whose derivative lives on the
            entries with |g| near eps, and eight bits of g lose it. "tf32" lets a GPU round the inputs of products to ten bits.
        compile: how the functions of a step are run, see `distilkit.functional.programs`. "off" runs them as they are; "trace"
            records them once as plain lists of operations; "inductor" has torch compile those lists, which takes seconds to a
            minute at the start; "cudagraph" captures them (CUDA only). "auto" takes "cudagraph" on a GPU, else "trace".
        micro_batches: parts that the real batch is taken in, one after the other, to save memory.
        networks_per_step: inner networks, each with its own draws, whose meta-gradients are averaged in one outer step.

    >>> from distilkit.networks import MLP
    >>> from distilkit.functional.optimizers import SGD
    >>> learner = Learner(MLP(hidden=(8,)), SGD(lr=0.1)).bind((4,), 2)
    >>> leaves = Leaves(torch.randn(2, 4), torch.eye(2), torch.tensor(0.1).log())
    >>> batch = RealBatch(torch.randn(16, 4), torch.eye(2)[torch.arange(16) % 2])
    >>> Unroller().meta_gradient(learner, leaves, Window(2, 5), batch, Stream(0)).images.shape
    torch.Size([2, 4])
    """

    adjoint: Any = fields.component("adjoint", ReplayAdjoint(), methods=("__call__",))
    precision: str = fields.choice("float32", ["float32", "tf32", "bfloat16"])
    compile: str = fields.choice("auto", ["auto", "off", "trace", "inductor", "cudagraph"])
    micro_batches: int = fields.integer(1, least=1)
    networks_per_step: int = fields.integer(1, least=1)

    def execution(self, device: torch.device) -> str:
        """How programs run on a device: what "auto" stands for there.

        Raises:
            CombinationError: "cudagraph" without a GPU.
        """
        if self.compile == "cudagraph" and device.type != "cuda":
            raise CombinationError(f'compile = "cudagraph" needs a GPU, and the work is on {device}.', fix='compile = "auto"')
        if self.compile == "auto":
            return "cudagraph" if device.type == "cuda" else "trace"
        return "eager" if self.compile == "off" else self.compile

    def meta_gradient(
        self,
        learner: Learner,
        distilled: Leaves,
        window: Window,
        real_batch: RealBatch,
        stream: Stream,
        classes: Tensor | None = None,
    ) -> MetaGradient:
        """Train a fresh network on the distilled set and differentiate its loss on real data.

        Args:
            learner: the inner problem, bound to the shape of the images.
            distilled: images, labels and log_lr; their device and dtype are those of the work.
            window: the inner run stops at `window.stop`; the gradient flows through the steps from `window.start` on.
            real_batch: what the outer loss is taken on.
            stream: the initial network and the draws of every inner step come from it.
            classes: int64 (N,), the class of each distilled image, for minibatches; by default the largest label.

        Returns:
            the outer loss and the meta-gradient, the means over `networks_per_step` networks.
        """
        if not 0 <= window.start < window.stop:
            raise CombinationError(f"Window({window.start}, {window.stop}) holds no step: start must be at least 0 and below stop.")
        if classes is None:
            classes = distilled.labels.argmax(1)
        # A constant is a constant: whatever graph the caller has is cut here, so the prefix cannot leak a gradient.
        leaves = Leaves(*(x.detach() for x in distilled))
        end = self._end(learner, real_batch)
        streams = [stream] if self.networks_per_step == 1 else [stream.fold("of many").fold(i) for i in range(self.networks_per_step)]
        with torch.no_grad(), _products(self.precision, leaves.images.device):
            results = [self._one(learner, leaves, window, end, own, classes.cpu()) for own in streams]
        return MetaGradient(*(torch.stack(parts).mean(0) if len(parts) > 1 else parts[0] for parts in zip(*results, strict=True)))

    def _one(self, learner: Learner, leaves: Leaves, window: Window, end: End, stream: Stream, classes: Tensor) -> MetaGradient:
        """The meta-gradient of one inner network."""
        images = leaves.images
        try:
            programs = _programs(self.execution(images.device), self, learner)
        except TypeError as error:
            raise CombinationError(
                f"The learner holds a part that is not a value ({error}): its network, optimizer, loss and augment must be hashable, and "
                "must not change once they are made.",
                fix="@attrs.frozen above the class",
            ) from error
        shape = tuple(images.shape[1:])
        draws = _on_device([learner.draw(stream.fold("draw").fold(t), classes, shape) for t in range(window.stop)], images.device)
        steps = [Step(self._problem(learner, t), draw) for t, draw in enumerate(draws)]
        theta, state = learner.init(stream.fold("network"), device=images.device, dtype=images.dtype)
        for problem, draw in steps[: window.start]:
            theta, state = programs(f"step {problem.name}", problem.step)(theta, state, leaves, draw)
        loss, gradient = self.adjoint(steps[window.start :], end, theta, state, leaves, programs)
        return MetaGradient(loss, gradient.images, gradient.labels, gradient.log_lr)

    def _problem(self, learner: Learner, t: int) -> InnerProblem:
        """The inner problem of step t: in bfloat16 from step 1 on, if that is the precision."""
        dtype = torch.bfloat16 if self.precision == "bfloat16" and t > 0 else None

        def loss(theta: Tensor, images: Tensor, labels: Tensor, draw: Draw) -> Tensor:
            return learner.objective(theta, images, labels, draw, dtype)

        def update(theta: Tensor, inner: Any, gradient: Tensor, log_lr: Tensor) -> tuple[Tensor, Any]:
            return learner.update(LearnerState(theta, inner), gradient, log_lr)

        def outer(theta: Tensor, images: Tensor, labels: Tensor) -> Tensor:
            value: Tensor = learner.loss(learner.logits(theta, images, dtype), labels)
            return value

        return InnerProblem(loss, update, outer, "in bfloat16" if dtype else "in full")

    def _end(self, learner: Learner, batch: RealBatch) -> End:
        size, parts = len(batch.images), self.micro_batches
        if size % parts:
            raise CombinationError(
                f"micro_batches = {parts} does not divide the {size} images of the real batch into equal parts.",
                fix=f"micro_batches = {next(p for p in range(parts, size + 1) if size % p == 0)}",
            )
        pieces = zip(batch.images.chunk(parts), batch.labels.chunk(parts), strict=True)
        return End(self._problem(learner, 1), list(pieces))


@lru_cache(maxsize=16)
def _programs(execution: str, unroller: Unroller, learner: Learner) -> Programs:
    """The programs of an unroller and a learner: built once, for all outer steps. Both are values, so equal ones share them."""
    return Programs(execution, logger.info)


def _on_device(draws: Sequence[Draw], device: torch.device) -> Sequence[Draw]:
    """All draws of an inner run on the device, in one transfer, so that no inner step waits for one."""
    if device.type == "cpu" or not optree.tree_leaves(draws[0]):  # type: ignore[arg-type]
        return draws
    stacked = optree.tree_map(lambda *parts: torch.stack(parts).pin_memory().to(device, non_blocking=True), *draws)  # type: ignore[arg-type]
    return [optree.tree_map(lambda x, t=t: x[t], stacked) for t in range(len(draws))]  # type: ignore[misc]


@contextmanager
def _products(precision: str, device: torch.device) -> Iterator[None]:
    """Float32 means float32 on a GPU too: torch lets convolutions round to TF32 unless told otherwise."""
    if device.type != "cuda":
        yield
        return
    allowed = precision == "tf32"
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before

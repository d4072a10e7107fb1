"""The unroller: runs the inner problem and takes the meta-gradient through the window."""

from __future__ import annotations

from typing import Any, NamedTuple

import attrs
import torch
from torch import Tensor

from distilkit import fields
from distilkit.errors import CombinationError
from distilkit.functional.adjoints import InnerProblem, Leaves, ReplayAdjoint
from distilkit.functional.streams import Stream
from distilkit.learner import Learner, LearnerState
from distilkit.truncation import Window


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

    >>> from distilkit.networks import MLP
    >>> from distilkit.functional.optimizers import SGD
    >>> learner = Learner(MLP(hidden=(8,)), SGD(lr=0.1)).bind((4,), 2)
    >>> leaves = Leaves(torch.randn(2, 4), torch.eye(2), torch.tensor(0.1).log())
    >>> batch = RealBatch(torch.randn(16, 4), torch.eye(2)[torch.arange(16) % 2])
    >>> Unroller().meta_gradient(learner, leaves, Window(2, 5), batch, Stream(0)).images.shape
    torch.Size([2, 4])
    """

    adjoint: Any = fields.component("adjoint", ReplayAdjoint(), methods=("__call__",))

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
            the outer loss and the meta-gradient.
        """
        if not 0 <= window.start < window.stop:
            raise CombinationError(f"Window({window.start}, {window.stop}) holds no step: start must be at least 0 and below stop.")
        if classes is None:
            classes = distilled.labels.argmax(1)
        classes = classes.cpu()
        images = distilled.images
        draws = [learner.draw(stream.fold("draw").fold(t), classes, tuple(images.shape[1:])).to(images.device) for t in range(window.stop)]
        # A constant is a constant: whatever graph the caller has is cut here, so the prefix cannot leak a gradient.
        leaves = Leaves(*(x.detach() for x in distilled))
        state = learner.init(stream.fold("network"), device=images.device, dtype=images.dtype)

        def update(theta: Tensor, inner: Any, gradient: Tensor, log_lr: Tensor) -> tuple[Tensor, Any]:
            return learner.update(LearnerState(theta, inner), gradient, log_lr)

        def outer(theta: Tensor) -> Tensor:
            value: Tensor = learner.loss(learner.logits(theta, real_batch.images), real_batch.labels)
            return value

        problem = InnerProblem(learner.objective, update, outer)
        with torch.no_grad():
            theta, inner = state
            for t in range(window.start):
                theta, inner, _ = problem.step(theta, inner, leaves, draws[t])
            loss, gradient = self.adjoint(problem, theta, inner, leaves, draws[window.start :])
        return MetaGradient(loss, gradient.images, gradient.labels, gradient.log_lr)

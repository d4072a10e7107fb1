"""Losses between logits and soft targets."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor
from torch.nn import functional as F

from distilkit import fields


class Loss(Protocol):
    """What a loss offers: a function whose value is the mean over the batch."""

    def __call__(self, logits: Tensor, targets: Tensor, /) -> Tensor:
        """logits (N, K), targets (N, K), which may be soft -> a number, twice differentiable."""
        ...


@fields.component
class CrossEntropy:
    """Cross-entropy with soft targets that are never normalised (Feng et al., 2024): mean over rows of -sum_k y_k log p_k.

    >>> import torch
    >>> round(CrossEntropy()(torch.zeros(3, 4), torch.eye(4)[:3]).item(), 4)  # log 4
    1.3863
    """

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """logits (N, K), targets (N, K) -> a number."""
        return -(targets * F.log_softmax(logits, dim=1)).sum(1).mean()


@fields.component
class MSE:
    """Squared error, summed over classes and averaged over rows: the loss of kernel methods, for centred labels.

    >>> import torch
    >>> MSE()(torch.zeros(3, 4), torch.eye(4)[:3]).item()
    1.0
    """

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """logits (N, K), targets (N, K) -> a number."""
        return ((logits - targets) ** 2).sum(1).mean()

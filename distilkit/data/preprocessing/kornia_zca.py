"""The ZCA of kornia as MTT, DATM and DD-Ranking use it, to load and evaluate their sets in their own space."""

from __future__ import annotations

import functools
from typing import Any

import attrs
import numpy as np
import torch

from distilkit import fields
from distilkit.data.preprocessing.base import Arrays, blocks, hash_arrays, hash_tensor, hash_words
from distilkit.data.preprocessing.cache import cached
from distilkit.data.preprocessing.linear import apply_rows, covariance, inverse, inverse_root
from distilkit.errors import CombinationError


@fields.component
class KorniaZCA:
    """What `kornia.enhance.ZCAWhitening(eps=0.1)` does to images in [0, 1].

    With mu the mean training image and C = U diag(lambda) U^T the covariance (divided by N - 1), the result is (x - mu) T,
    where T = U diag(1 / sqrt(lambda + eps)) U^T. There is no normalisation of single images, and none by channel before it:
    the code of MTT, DATM and DD-Ranking fits on images as they come from `ToTensor()`. They fit on all training images, so
    use `validation=0` to be in the space of their published sets.

    Args:
        eps: added to each eigenvalue; 0.1 in those papers (kornia's own default is 1e-6).

    >>> x = torch.rand(50, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    >>> zca = KorniaZCA().fit(x)
    >>> bool((zca.inverse(zca.forward(x)) - x).abs().max() < 1e-5)
    True
    """

    eps: float = fields.number(default=0.1, above=0)

    def fit(self, images: torch.Tensor) -> KorniaWhitened:
        """Fit on training images.

        Args:
            images: float (N, C, H, W) in [0, 1], or (N, D); at least two.

        Returns:
            The fitted value.

        Raises:
            CombinationError: for fewer than two images, whose covariance is not defined.
        """
        if len(images) < 2:
            raise CombinationError(f"KorniaZCA divides the covariance by N - 1, so it needs at least 2 training images, not {len(images)}.")
        on = hash_tensor(images)
        arrays = cached(hash_words({"kind": "KorniaZCA", "eps": self.eps, "on": on}), ("matrix", "mean"), lambda: self._fit(images))
        return KorniaWhitened(arrays["matrix"], arrays["mean"], tuple(images.shape[1:]), self.eps, fitted_on=on)

    def _fit(self, images: torch.Tensor) -> Arrays:
        mean = torch.stack([block.flatten(1).double().sum(0) for block in blocks(images)]).sum(0) / len(images)
        spread = covariance(images, lambda block: block - mean.to(block.device))
        spread /= len(images) - 1
        matrix = inverse_root(spread, lambda values: values + self.eps)
        return {"matrix": matrix.float().cpu().numpy(), "mean": mean.float().cpu().numpy()}


@attrs.frozen(eq=False, slots=False)  # no slots: the inverse is kept after its first use
class KorniaWhitened:
    """A fitted `KorniaZCA`.

    Args:
        matrix: float32 (D, D), T above; symmetric.
        mean: float32 (D,), the mean training image.
        shape: the shape of one image.
        eps: as declared.
        fitted_on: hash of the training images; None for a matrix from elsewhere.
    """

    matrix: np.ndarray[Any, Any] = attrs.field(repr=False)
    mean: np.ndarray[Any, Any] = attrs.field(repr=False)
    shape: tuple[int, ...]
    eps: float
    fitted_on: str | None = None

    def fit(self, images: torch.Tensor) -> KorniaWhitened:
        """Return self: what is fitted stays as it is."""
        return self

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Whiten images in [0, 1], (N, *shape); float32."""
        mean = torch.from_numpy(self.mean).to(images.device)
        return apply_rows(images.to(torch.float32).flatten(1) - mean, torch.from_numpy(self.matrix)).view(images.shape)

    def inverse(self, x: torch.Tensor) -> torch.Tensor:
        """Back to the [0, 1] scale, float32; exact to float32, because nothing is thrown away."""
        return (apply_rows(x.flatten(1), self._undo) + torch.from_numpy(self.mean).to(x.device)).view(x.shape)

    def to_arrays(self) -> tuple[dict[str, Any], Arrays]:
        """A JSON-able dict and the arrays `matrix` and `mean`."""
        meta = {"kind": "KorniaZCA", "shape": list(self.shape), "eps": self.eps, "fitted_on": self.fitted_on}
        return meta, {"matrix": self.matrix, "mean": self.mean}

    def fingerprint(self) -> str:
        """Named by the training images, so that it does not depend on a machine's eigensolver."""
        return hash_words({"kind": "KorniaZCA", "eps": self.eps, "on": self.fitted_on or hash_arrays(self.to_arrays()[1])})

    @functools.cached_property
    def _undo(self) -> torch.Tensor:
        return inverse(torch.from_numpy(self.matrix))

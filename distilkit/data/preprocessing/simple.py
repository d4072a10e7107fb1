"""Identity, and standardising by channel."""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np
import torch

from distilkit import fields
from distilkit.data.preprocessing.base import Arrays, blocks, hash_arrays, hash_tensor, hash_words


@fields.component
class Identity:
    """Leave images in [0, 1] as they are.

    >>> x = torch.rand(2, 1, 4, 4)
    >>> bool((Identity().fit(x).forward(x) == x).all())
    True
    """

    def fit(self, images: torch.Tensor) -> Identity:
        """Return self: there is nothing to fit."""
        return self

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the images as float32."""
        return images.to(torch.float32)

    def inverse(self, x: torch.Tensor) -> torch.Tensor:
        """Return the images as they are."""
        return x

    def to_arrays(self) -> tuple[dict[str, Any], Arrays]:
        """A JSON-able dict and no arrays."""
        return {"kind": "Identity"}, {}

    def fingerprint(self) -> str:
        """The same for every Identity."""
        return hash_words({"kind": "Identity"})


@fields.component
class Standardize:
    """Subtract the mean of each channel and divide by its standard deviation (population), both of the training images only.

    Feature vectors (N, D) are standardised by feature. A constant channel is only centred. Statistics are taken in float64.

    >>> x = torch.rand(100, 3, 4, 4)
    >>> y = Standardize().fit(x).forward(x)
    >>> bool(y.mean((0, 2, 3)).abs().max() < 1e-5), bool((y.std((0, 2, 3)) - 1).abs().max() < 1e-3)
    (True, True)
    """

    def fit(self, images: torch.Tensor) -> Standardized:
        """Take the statistics of training images.

        Args:
            images: float (N, C, H, W) in [0, 1], or (N, D).

        Returns:
            The fitted value.
        """
        over = tuple(d for d in range(images.ndim) if d != 1)
        count = images.numel() // images.shape[1]
        mean = torch.stack([b.double().sum(over) for b in blocks(images)]).sum(0) / count
        wide = mean.view(-1, *[1] * (images.ndim - 2))
        variance = torch.stack([(b.double() - wide).square().sum(over) for b in blocks(images)]).sum(0) / count
        std = torch.where(variance > 0, variance.sqrt(), torch.ones_like(variance))
        return Standardized(mean.cpu().numpy(), std.cpu().numpy(), fitted_on=hash_tensor(images))


@attrs.frozen(eq=False)
class Standardized:
    """A fitted `Standardize`.

    Args:
        mean: float64 (C,), in units of the [0, 1] scale.
        std: float64 (C,), in the same units.
        fitted_on: hash of the training images; None for statistics from elsewhere.
    """

    mean: np.ndarray[Any, Any]
    std: np.ndarray[Any, Any]
    fitted_on: str | None = None

    def fit(self, images: torch.Tensor) -> Standardized:
        """Return self: what is fitted stays as it is."""
        return self

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """From [0, 1] to zero mean and unit standard deviation by channel, float32."""
        mean, std = self._like(images.to(torch.float32))
        return (images.to(torch.float32) - mean) / std

    def inverse(self, x: torch.Tensor) -> torch.Tensor:
        """Back to the [0, 1] scale."""
        mean, std = self._like(x)
        return x * std + mean

    def to_arrays(self) -> tuple[dict[str, Any], Arrays]:
        """A JSON-able dict and the arrays `mean` and `std`."""
        return {"kind": "Standardize", "fitted_on": self.fitted_on}, {"mean": self.mean, "std": self.std}

    def fingerprint(self) -> str:
        """Named by the training images, so that it does not depend on the order of a machine's sums."""
        return hash_words({"kind": "Standardize", "on": self.fitted_on or hash_arrays(self.to_arrays()[1])})

    def _like(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        shape = (-1, *[1] * (x.ndim - 2))
        mean, std = (torch.from_numpy(a).to(device=x.device, dtype=x.dtype).view(shape) for a in (self.mean, self.std))
        return mean, std

"""The whitening of the RaT-BPTT paper: every image to zero mean and unit norm, then ZCA without a feature mean."""

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


@fields.component
class Whiten:
    """The paper's whitening.

    Each image x, as a vector, is first u = (x - mean(x)) / |x - mean(x)|: its own mean over pixels and channels, its own L2
    norm. With C = U diag(lambda) U^T the mean of u u^T over the training images (divided by N, no feature mean subtracted),
    the result is u W, where W = U diag(1 / sqrt(lambda + regularisation * mean(lambda))) U^T.

    The fit is exact in float64, takes the training images only, and is kept in a cache on disk by content. This is not the
    ZCA of kornia that MTT, DATM and DD-Ranking use: see `KorniaZCA`. Sets of the two kinds do not mix.

    Args:
        regularisation: share of the mean eigenvalue that is added to each eigenvalue.

    References:
        Feng, Vedantam, Kempe, "Embarrassingly Simple Dataset Distillation", ICLR 2024, arXiv 2311.07025, and its code.

    >>> x = torch.rand(50, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    >>> white = Whiten().fit(x)
    >>> y, mean, norm = white.forward_with_scale(x)
    >>> bool((white.inverse(y, mean, norm) - x).abs().max() < 1e-5)
    True
    """

    regularisation: float = fields.number(default=0.1, above=0)

    def fit(self, images: torch.Tensor) -> Whitened:
        """Fit on training images.

        Args:
            images: float (N, C, H, W) in [0, 1], or (N, D).

        Returns:
            The fitted value.
        """
        on = hash_tensor(images)
        arrays = cached(
            hash_words({"kind": "Whiten", "regularisation": self.regularisation, "on": on}), ("matrix", "scale"), lambda: self._fit(images)
        )
        return Whitened(arrays["matrix"], arrays["scale"], tuple(images.shape[1:]), self.regularisation, fitted_on=on)

    def _fit(self, images: torch.Tensor) -> Arrays:
        spread = covariance(images, lambda block: _normalise(block)[0])
        spread /= len(images)
        matrix = inverse_root(spread, lambda values: values + self.regularisation * values.mean())
        means, norms = (torch.cat(parts) for parts in zip(*(_normalise(block.flatten(1))[1:] for block in blocks(images)), strict=True))
        scale = torch.stack([means.double().mean(), norms.double().mean()])
        return {"matrix": matrix.float().cpu().numpy(), "scale": scale.cpu().numpy()}


@attrs.frozen(eq=False, slots=False)  # no slots: the inverse is kept after its first use
class Whitened:
    """A fitted `Whiten`.

    Args:
        matrix: float32 (D, D), W above; symmetric.
        scale: float64 (2,), the mean over the training images of their own mean and of their own norm.
        shape: the shape of one image.
        regularisation: as declared.
        fitted_on: hash of the training images; None for a matrix from elsewhere.
    """

    matrix: np.ndarray[Any, Any] = attrs.field(repr=False)
    scale: np.ndarray[Any, Any]
    shape: tuple[int, ...]
    regularisation: float
    fitted_on: str | None = None

    def fit(self, images: torch.Tensor) -> Whitened:
        """Return self: what is fitted stays as it is."""
        return self

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Whiten images in [0, 1], (N, *shape); float32."""
        return self.forward_with_scale(images)[0]

    def forward_with_scale(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Whiten, and keep what whitening throws away.

        Args:
            images: (N, *shape) in [0, 1].

        Returns:
            Whitened images float32 (N, *shape), the mean of each image (N,) and the norm of each image (N,); `inverse` takes
            the three.
        """
        unit, mean, norm = _normalise(images.to(torch.float32).flatten(1))
        white = apply_rows(unit, torch.from_numpy(self.matrix))
        return white.view(images.shape), mean, norm

    def inverse(self, x: torch.Tensor, mean: torch.Tensor | None = None, norm: torch.Tensor | None = None) -> torch.Tensor:
        """Back to the [0, 1] scale.

        Args:
            x: whitened images (N, *shape).
            mean: the mean of each image (N,), from `forward_with_scale`. The average over the training images when left out.
            norm: the norm of each image (N,). When left out, which is the case for distilled images, the image is first scaled
                to unit norm, as `forward` leaves it, and then to the average norm of the training images: so that it has the
                brightness and contrast of an average photograph, whatever its norm in whitened space.

        Returns:
            Images, float32 (N, *shape); exact to float32 when mean and norm are given.
        """
        unit = apply_rows(x.flatten(1), self._undo)
        if norm is None:
            unit = unit / _safe(unit.norm(dim=1))[:, None]
            norm = unit.new_full((len(x),), float(self.scale[1]))
        if mean is None:
            mean = unit.new_full((len(x),), float(self.scale[0]))
        return (unit * norm[:, None] + mean[:, None]).view(x.shape)

    def to_arrays(self) -> tuple[dict[str, Any], Arrays]:
        """A JSON-able dict and the arrays `matrix` and `scale`."""
        meta = {"kind": "Whiten", "shape": list(self.shape), "regularisation": self.regularisation, "fitted_on": self.fitted_on}
        return meta, {"matrix": self.matrix, "scale": self.scale}

    def fingerprint(self) -> str:
        """Named by the training images, so that it does not depend on a machine's eigensolver."""
        on = self.fitted_on or hash_arrays(self.to_arrays()[1])
        return hash_words({"kind": "Whiten", "regularisation": self.regularisation, "on": on})

    @functools.cached_property
    def _undo(self) -> torch.Tensor:
        return inverse(torch.from_numpy(self.matrix))


def _safe(norm: torch.Tensor) -> torch.Tensor:
    return torch.where(norm > 0, norm, torch.ones_like(norm))  # an image of one grey level stays zero


def _normalise(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows (N, D) with zero mean and unit norm; their means (N,) and norms (N,)."""
    mean = rows.mean(1)
    centred = rows - mean[:, None]
    norm = _safe(centred.norm(dim=1))
    return centred / norm[:, None], mean, norm

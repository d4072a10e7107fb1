"""Linear algebra that both whitenings share: covariance, inverse square root and products, by blocks."""

from __future__ import annotations

from collections.abc import Callable

import torch

from distilkit import process
from distilkit.data.preprocessing.base import BLOCK, blocks


def covariance(images: torch.Tensor, prepare: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Sum of outer products of prepared rows, not divided by anything.

    Args:
        images: (N, ...), flattened to rows (N, D).
        prepare: from float64 rows (n, D) to float64 rows (n, D).

    Returns:
        float64 (D, D), on the device that did the work.
    """
    device = process.place_of_large_products(images.device)
    width = images[0].numel()
    total = torch.zeros(width, width, dtype=torch.float64, device=device)
    for block in blocks(images):
        rows = prepare(block.flatten(1).to(device=device, dtype=torch.float64))
        total.addmm_(rows.T, rows)
    return total


def inverse_root(symmetric: torch.Tensor, regularise: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """U diag(1 / sqrt(regularise(lambda))) U^T of a symmetric float64 matrix, exactly symmetric.

    >>> root = inverse_root(torch.diag(torch.tensor([3.0, 8.0], dtype=torch.float64)), lambda values: values + 1)
    >>> [round(v, 4) for v in root.diagonal().tolist()]
    [0.5, 0.3333]
    """
    values, vectors = torch.linalg.eigh(symmetric)
    values = regularise(values.clamp(min=0))  # rounding makes tiny negative eigenvalues
    root: torch.Tensor = (vectors * values.rsqrt()) @ vectors.T
    return (root + root.T) / 2


def apply_rows(rows: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """Product of rows (N, D) and a float32 matrix (D, D), by blocks; float32 on the device of the rows.

    The product is taken in float64: float32 would be off by 1e-5, and by a thousand times that where a user has allowed TF32
    or bfloat16 products.
    """
    device = process.place_of_large_products(rows.device) if len(rows) > BLOCK else rows.device
    wide = matrix.to(device=device, dtype=torch.float64)
    out = torch.empty(rows.shape, dtype=torch.float32, device=rows.device)
    for here, block in zip(torch.split(out, BLOCK), torch.split(rows.detach(), BLOCK), strict=True):
        here.copy_(block.to(device=device, dtype=torch.float64) @ wide)
    return out


def inverse(matrix: torch.Tensor) -> torch.Tensor:
    """The inverse of a float32 matrix, in float64."""
    undo: torch.Tensor = torch.linalg.inv(matrix.double())
    return undo

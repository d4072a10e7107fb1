"""Affine maps of images that can be differentiated twice, in forward mode too, and vmapped.

`torch.nn.functional.grid_sample` has no forward-mode derivative and no second derivative everywhere. Bilinear sampling is
linear in the image, so it is written here as four gathers with weights that need no gradient.
"""

from __future__ import annotations

import math

import torch


def affine(images: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """Sample images bilinearly at affinely mapped places, with zeros outside.

    Args:
        images: (N, C, H, W).
        matrix: (N, 2, 3), or (1, 2, 3) for one map for all. In pixels from the centre of the image, x first: the output at
            (u, v) is the input at matrix @ (u, v, 1). So whole-pixel shifts and flips are exact.

    Returns:
        (N, C, H, W) in the dtype of the images; equal to `grid_sample` with align_corners=False and zero padding.

    >>> x = torch.arange(6.0).view(1, 1, 2, 3)
    >>> affine(x, torch.tensor([[[-1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]])).tolist()
    [[[[2.0, 1.0, 0.0], [5.0, 4.0, 3.0]]]]
    """
    n, channels, height, width = images.shape
    dtype = torch.float64 if images.dtype == torch.float64 else torch.float32  # places need more digits than bfloat16 has
    matrix = matrix.to(device=images.device, dtype=dtype)
    middle_x, middle_y = (width - 1) / 2, (height - 1) / 2
    u = torch.arange(width, device=images.device, dtype=dtype)[None, None, :] - middle_x
    v = torch.arange(height, device=images.device, dtype=dtype)[None, :, None] - middle_y
    a = matrix[:, :, :, None, None]
    x = a[:, 0, 0] * u + a[:, 0, 1] * v + a[:, 0, 2] + middle_x  # (N or 1, H, W)
    y = a[:, 1, 0] * u + a[:, 1, 1] * v + a[:, 1, 2] + middle_y
    left, top = x.floor(), y.floor()
    flat = images.reshape(n, channels, height * width)
    out = torch.zeros_like(flat)
    for dx in (0, 1):
        for dy in (0, 1):
            column, row = left + dx, top + dy
            weight = (1 - (x - column).abs()) * (1 - (y - row).abs())
            inside = (column >= 0) & (column <= width - 1) & (row >= 0) & (row <= height - 1)
            index = (row.clamp(0, height - 1) * width + column.clamp(0, width - 1)).long()
            weight = (weight * inside).to(images.dtype).reshape(-1, 1, height * width)
            index = index.reshape(-1, 1, height * width).expand(n, channels, -1)
            out = out + torch.gather(flat, 2, index) * weight
    return out.reshape(images.shape)


def in_pixels(theta: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Turn a map in the coordinates of `affine_grid` (-1 to 1 over the image, align_corners=False) into one in pixels.

    Args:
        theta: (N, 2, 3).
        height: of the image, in pixels.
        width: of the image, in pixels.

    Returns:
        (N, 2, 3) for `affine`.
    """
    scale = torch.tensor([[1.0, width / height, width / 2], [height / width, 1.0, height / 2]], dtype=theta.dtype)
    return theta * scale


def rotations(degrees: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Maps in pixels that rotate by (N,) degrees; on images that are not square they shear as `affine_grid` does."""
    angle = degrees * (math.pi / 180)
    zero = torch.zeros_like(angle)
    theta = torch.stack([torch.stack([angle.cos(), -angle.sin(), zero], -1), torch.stack([angle.sin(), angle.cos(), zero], -1)], -2)
    return in_pixels(theta, height, width)


def stretches(across: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    """Maps in pixels that sample `across` (N,) times as wide and `down` (N,) times as high; -1 across is a flip."""
    zero = torch.zeros_like(across)
    return torch.stack([torch.stack([across, zero, zero], -1), torch.stack([zero, down, zero], -1)], -2)


def shifts(across: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    """Maps in pixels that take the input `across` (N,) pixels to the right and `down` (N,) pixels below."""
    zero, one = torch.zeros_like(across), torch.ones_like(across)
    return torch.stack([torch.stack([one, zero, across], -1), torch.stack([zero, one, down], -1)], -2)

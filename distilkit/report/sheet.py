"""The distilled images on one sheet, by class, as pixels that a person can look at."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Literal

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from distilkit.errors import RunError
from distilkit.report.drawing import INK, MUTED, clean, new_figure, save
from distilkit.report.vectors import vectors_figure

MOST_CLASSES = 100
BAND = 20  # classes side by side before a new band begins below
GAP = 0.08  # between cells, as a part of an image's side
PAPER = 255
LETTER = 0.06  # inches that a letter of a class name takes


def sheet(
    tree: xr.DataTree,
    path: str | os.PathLike[str],
    *,
    which: Literal["auto", "best", "last"] = "auto",
    real: tuple[np.ndarray, np.ndarray] | None = None,
    rows: int | None = None,
) -> Path:
    """Save a PNG of the distilled images: a column for each class, a row for each sample of it; a heat map for feature vectors.

    Args:
        tree: the results of a run.
        path: where the PNG goes.
        which: the set to show, as in `distilkit.load`.
        real: images to show beside it, uint8 (M, C, H, W), and their classes, int (M,).
        rows: the most samples of a class to show; chosen by the number of classes when left out.

    Returns:
        The path of the PNG.

    Raises:
        RunError: the run holds no such set, or the real images are of another shape.
    """
    return save(sheet_figure(tree, which=which, real=real, rows=rows), path)


def sheet_figure(
    tree: xr.DataTree,
    *,
    which: Literal["auto", "best", "last"] = "auto",
    real: tuple[np.ndarray, np.ndarray] | None = None,
    rows: int | None = None,
) -> Figure:
    """The figure that `sheet` saves: a panel for each band of classes, and beside it one of real images if they are given.

    Feature vectors are drawn as a heat map that says that they are no images, without `real`.
    """
    group = "best" if which == "best" or (which == "auto" and "best" in tree.children) else "distilled"
    if group not in tree.children:
        raise RunError(f"The run has no group /{group}; it has {sorted(tree.children)}.")
    data = tree[group].to_dataset()
    title = clean(str(tree.attrs.get("title", "")) or "distilled set")
    if data["pixel"].ndim != 4:
        return vectors_figure(data, title)
    pixels, owner, names = data["pixel"].values, data["label_class"].values, [str(n) for n in data["class"].values]
    if real is not None and (real[0].ndim != 4 or real[0].shape[1:] != pixels.shape[1:] or len(real[0]) != len(real[1])):
        raise RunError(f"Real images of shape {real[0].shape} with {len(real[1])} classes do not go with images of {pixels.shape[1:]}.")

    present = [c for c in range(len(names)) if (owner == c).any()]
    shown = present[:MOST_CLASSES]
    across = min(BAND if real is None else BAND // 2, max(len(shown), 1))
    bands = [shown[i : i + across] for i in range(0, len(shown), across)] or [[]]
    deepest = max((int((owner == c).sum()) for c in shown), default=1)
    depth = min(deepest, rows or max(2, 20 // len(bands)))

    columns = 1 if real is None else 2
    cell = _cell(across)
    width, height = columns * (across * cell + 0.5), len(bands) * (depth * cell * pixels.shape[2] / pixels.shape[3] + 0.35) + 0.9
    figure = new_figure(max(width, 4.5), height, dpi=_sharp(cell, pixels.shape[3]))
    axes = figure.subplots(len(bands), columns, squeeze=False)
    for (left, *right), band in zip(axes, bands, strict=True):
        _panel(left, pixels, owner, band, names, depth, across, data["block"].values)
        if real is not None:
            _panel(right[0], real[0], np.asarray(real[1]), band, names, depth, across, None)
    if real is not None:
        axes[0][0].set_title("distilled", color=INK, fontsize=9, pad=18)
        axes[0][1].set_title("real", color=INK, fontsize=9, pad=18)
    limits = [
        f"{len(shown)} of {len(present)} classes" if len(shown) < len(present) else "",
        f"first {depth} of {deepest} images a class" if depth < deepest else "",
        {1: "", 3: "", 2: "first of 2 channels"}.get(pixels.shape[1], f"first 3 of {pixels.shape[1]} channels as red, green, blue"),
    ]
    subtitle = "   ".join([f"{len(pixels)} distilled images after {data.attrs.get('outer_step', '?')} outer steps", *filter(None, limits)])
    figure.suptitle(f"{title}\n{subtitle}", fontsize=9, color=INK, parse_math=False)
    return figure


def montage(images: np.ndarray, owner: np.ndarray, band: list[int], depth: int, across: int) -> np.ndarray:
    """The cells of a band as one picture.

    Args:
        images: uint8 (N, C, H, W).
        owner: int (N,), the class of each image.
        band: the classes to show, one a column.
        depth: rows.
        across: columns, empty ones on the right counted.

    Returns:
        uint8 (height, width, 3), paper-coloured where there is no image.

    >>> montage(np.zeros((2, 1, 8, 8), np.uint8), np.array([0, 1]), [0, 1], 1, 2).shape
    (8, 17, 3)
    """
    _, _, h, w = images.shape
    gap = _gap(w)
    canvas = np.full((depth * (h + gap) - gap, across * (w + gap) - gap, 3), PAPER, np.uint8)
    colour = images[:, :3] if images.shape[1] >= 3 else np.repeat(images[:, :1], 3, axis=1)
    for j, c in enumerate(band):
        for i, image in enumerate(colour[owner == c][:depth]):
            canvas[i * (h + gap) : i * (h + gap) + h, j * (w + gap) : j * (w + gap) + w] = image.transpose(1, 2, 0)
    return canvas


def _panel(
    axes: Axes, images: np.ndarray, owner: np.ndarray, band: list[int], names: list[str], depth: int, across: int, block: np.ndarray | None
) -> None:
    h, w = images.shape[2:]
    gap = _gap(w)
    axes.imshow(montage(images, owner, band, depth, across), interpolation="nearest", aspect="equal")
    words = [clean(names[c], 14) for c in band]
    slanted = max(map(len, words), default=0) > _cell(across) / LETTER
    centres = [j * (w + gap) + (w - 1) / 2 for j in range(len(band))]
    turn, side = (30, "left") if slanted else (0, "center")
    axes.set_xticks(centres, words, fontsize=6.5, color=INK, parse_math=False, rotation=turn, ha=side)
    axes.xaxis.tick_top()
    marks = _blocks(owner, band, block, depth)
    axes.set_yticks([i * (h + gap) + (h - 1) / 2 for i in range(len(marks))], marks, fontsize=6.5, color=MUTED)
    axes.tick_params(length=0, pad=2)
    axes.spines[:].set_visible(False)


def _blocks(owner: np.ndarray, band: list[int], block: np.ndarray | None, depth: int) -> list[str]:
    """Names of the boost blocks beside the rows, where there is more than one block and all classes agree on it."""
    if block is None or not band or not (block > 0).any():
        return []
    columns = {tuple(block[owner == c][:depth].tolist()) for c in band}
    return [f"block {b}" for b in next(iter(columns))] if len(columns) == 1 else []


def _cell(across: int) -> float:
    """Inches across a column."""
    return 0.55 if across > 10 else 0.75


def _gap(side: int) -> int:
    return max(1, math.ceil(side * GAP))


def _sharp(cell: float, side: int) -> int:
    """Dots an inch at which each pixel of an image has at least one dot."""
    return min(max(140, math.ceil(side / cell)), 300)

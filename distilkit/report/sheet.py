"""The distilled images on one sheet, by class, as pixels that a person can look at."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Literal

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from distilkit.errors import RunError
from distilkit.report.drawing import INK, MUTED, clean, new_figure, save
from distilkit.report.grid import LONGEST, Grid
from distilkit.report.vectors import vectors_figure

MOST_CLASSES = 100
MOST_IMAGES = 1000
MOST_LABELLED = 20  # images up to which each one's label is written below it
LETTER = 0.055  # inches that a small letter takes


def sheet(
    tree: xr.DataTree,
    path: str | os.PathLike[str],
    *,
    which: Literal["auto", "best", "last"] = "auto",
    real: tuple[np.ndarray, np.ndarray] | None = None,
    rows: int | None = None,
) -> Path:
    """Save a picture of the distilled images: a block for each class, with real ones beside them; a heat map for feature vectors.

    Args:
        tree: the results of a run.
        path: where the picture goes: .png, .pdf or .svg.
        which: the set to show, as in `distilkit.load`.
        real: images to show beside it, uint8 (M, C, H, W), and their classes, int (M,).
        rows: the most samples of a class to show; chosen by the number of classes when left out.

    Returns:
        The path of the picture.

    Raises:
        RunError: the run holds no such set, the real images are of another shape, or there is no such kind of picture.
    """
    return save(sheet_figure(tree, which=which, real=real, rows=rows), path)


def real_beside(per_class: int) -> int:
    """How many real images of a class go with so many distilled ones: three with one, and two in a line with more.

    >>> real_beside(1), real_beside(10), real_beside(50)
    (3, 2, 10)
    """
    return 3 if per_class == 1 else 2 * math.ceil(min(per_class, MOST_IMAGES // 10) / LONGEST)


def sheet_figure(
    tree: xr.DataTree,
    *,
    which: Literal["auto", "best", "last"] = "auto",
    real: tuple[np.ndarray, np.ndarray] | None = None,
    rows: int | None = None,
) -> Figure:
    """The figure that `sheet` saves.

    Labels that are not one-hot are written below the images where there are few: the largest of the numbers that they give to classes.
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
    most = rows or max(2, MOST_IMAGES // max(len(shown), 1))
    samples = [np.flatnonzero(owner == c) for c in shown]
    deepest = max(map(len, samples), default=1)
    depth = min(deepest, most)
    beside = [] if real is None else [np.flatnonzero(np.asarray(real[1]) == c) for c in shown]
    soft = _soft_labels(data["label"].values, owner) and len(pixels) <= MOST_LABELLED
    grid = Grid.of(len(shown), depth, max(map(len, beside), default=0), pixels.shape[2:], words=2 if soft else 0)

    canvas = grid.blank()
    for number, rows_of_class in enumerate(samples):
        grid.paint(canvas, pixels[rows_of_class[:depth]], grid.places(number))
        if real is not None:
            grid.paint(canvas, real[0][beside[number]], grid.places_beside(number))
    figure = new_figure(*grid.inches(margins=(0.2, 0.65)), dpi=grid.dots())
    axes = figure.subplots()
    axes.imshow(canvas, interpolation="nearest", aspect="equal")
    axes.set_axis_off()
    for number, c in enumerate(shown):
        place = grid.places(number)[0]
        name = clean(names[c], max(4, int(grid.block_inches / LETTER)))
        axes.text(place[1], place[0] - 0.04 * grid.per_inch, name, fontsize=7, color=INK, parse_math=False, va="bottom")
        if soft:
            words = _largest(data["label"].values[samples[number][0]], names, wide=grid.beside > 0)
            low = place[0] + grid.height + 0.03 * grid.per_inch
            axes.text(place[1], low, words, fontsize=5.5, color=MUTED, parse_math=False, va="top", linespacing=1.25)
    for left, words in _headings(grid, samples, data["block"].values):
        axes.text(left, 0.13 * grid.per_inch, words, fontsize=6.5, color=MUTED, va="bottom")

    stages = np.bincount(data["block"].values[samples[0]]) if samples else np.zeros(1, int)
    limits = [
        f"{len(shown)} of {len(present)} classes" if len(shown) < len(present) else "",
        f"first {depth} of {deepest} images a class" if depth < deepest else "",
        f"blocks of {', '.join(map(str, stages))} a class" if len(stages) > 1 else "",
        {1: "", 3: "", 2: "first of 2 channels"}.get(pixels.shape[1], f"first 3 of {pixels.shape[1]} channels as red, green, blue"),
    ]
    subtitle = "   ".join([f"{len(pixels)} distilled images after {data.attrs.get('outer_step', '?')} outer steps", *filter(None, limits)])
    figure.suptitle(f"{title}\n{subtitle}", fontsize=9, color=INK, parse_math=False)
    return figure


def _headings(grid: Grid, samples: list[np.ndarray], block: np.ndarray) -> list[tuple[float, str]]:
    """What stands above the columns, and how far from the left: the boost blocks where a line holds a class, and what is real."""
    found: list[tuple[float, str]] = []
    if grid.lines == 1 and samples and (block > 0).any():
        columns = {tuple(block[rows].tolist()) for rows in samples}
        blocks = next(iter(columns))[: grid.columns] if len(columns) == 1 else ()
        firsts = [i for i, b in enumerate(blocks) if i == 0 or b != blocks[i - 1]]
        found = [(grid.places(n)[i][1], f"block {blocks[i]}") for n in range(min(grid.across, len(samples))) for i in firsts]
    elif grid.beside and grid.cell * grid.columns > 7 * LETTER:  # there is room for the word
        found = [(grid.places(n)[0][1], "distilled") for n in range(min(grid.across, len(samples)))]
    if grid.beside:
        found += [(grid.places_beside(n)[0][1], "real") for n in range(min(grid.across, len(samples)))]
    return found


def _soft_labels(labels: np.ndarray, owner: np.ndarray) -> bool:
    """Whether labels say more than the class."""
    return not np.array_equal(labels, np.eye(labels.shape[1], dtype=labels.dtype)[owner])


def _largest(label: np.ndarray, names: list[str], *, wide: bool) -> str:
    r"""The largest entries of a label, by the names of their classes.

    >>> _largest(np.array([0.1, 0.7, 0.2]), ["cat", "dog", "frog"], wide=True)
    'dog 0.70   frog 0.20\ncat 0.10'
    """
    first = [f"{clean(names[c], 10)} {label[c]:.2f}" for c in np.argsort(-label, kind="stable")[: 4 if wide else 2]]
    return "\n".join("   ".join(first[i : i + 2]) for i in range(0, len(first), 2)) if wide else "\n".join(first)

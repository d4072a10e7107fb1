"""The distilled images on one sheet, by class, as pixels that a person can look at."""

from __future__ import annotations

import os
import textwrap
from pathlib import Path
from typing import Literal

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from distilkit.errors import RunError, counted
from distilkit.report.drawing import INK, MUTED, clean, new_figure, save
from distilkit.report.grid import Grid
from distilkit.report.vectors import vectors_figure
from distilkit.storage.layout import group_of_set

MOST_CLASSES = 100
MOST_IMAGES = 1000  # that are shown where nobody says how many
LARGEST = 20_000  # images on one sheet
MOST_LABELLED = 20  # images up to which each one's label is written below it
LETTER = 0.055  # inches that a small letter takes
Which = Literal["auto", "best", "last"]
Pictures = tuple[np.ndarray, np.ndarray]


def sheet(
    tree: xr.DataTree,
    path: str | os.PathLike[str],
    *,
    which: Which = "auto",
    real: Pictures | None = None,
    rows: int | None = None,
    before: np.ndarray | None = None,
    nearest: Pictures | None = None,
) -> Path:
    """Save a picture of the distilled images: a block for each class, with real ones beside them; a heat map for feature vectors.

    Args:
        tree: the results of a run.
        path: where the picture goes: .png, .pdf or .svg.
        which: the set to show, as in `distilkit.load`.
        real: images to show beside it, uint8 (M, C, H, W), and their classes, int (M,).
        rows: the most samples of a class to show; chosen by the number of classes when left out.
        before: what each sample started from, uint8 (N, C, H, W), to stand above it.
        nearest: the real image that is nearest to each sample, uint8 (N, C, H, W), to stand below it; and their classes, int (N,).

    Returns:
        The path of the picture.

    Raises:
        RunError: the run holds no such set, the real images are of another shape, there are too many images, or there is no such kind of
            picture.
    """
    return save(sheet_figure(tree, which=which, real=real, rows=rows, before=before, nearest=nearest), path)


def images_shown(tree: xr.DataTree, which: Which = "auto", rows: int | None = None) -> int:
    """How many samples of a class a sheet shows; 0 for feature vectors.

    Args:
        tree: the results of a run.
        which: the set.
        rows: the most samples of a class to show; chosen by the number of classes when left out.
    """
    data = tree[group_of_set(tree, which)].to_dataset()
    if data["pixel"].ndim != 4 or not data.sizes["sample"]:
        return 0
    counts = np.unique(data["label_class"].values, return_counts=True)[1]
    return min(int(counts.max()), rows or max(2, MOST_IMAGES // min(len(counts), MOST_CLASSES)))


def sheet_figure(
    tree: xr.DataTree,
    *,
    which: Which = "auto",
    real: Pictures | None = None,
    rows: int | None = None,
    before: np.ndarray | None = None,
    nearest: Pictures | None = None,
) -> Figure:
    """The figure that `sheet` saves.

    Labels that are not one-hot are written below the images where there are few, one of each class: the largest of the numbers that they
    give to classes. Feature vectors are drawn as a heat map that says that they are no images, without all that stands beside images.
    """
    data = tree[group_of_set(tree, which)].to_dataset()
    title = clean(str(tree.attrs.get("title", "")) or "distilled set")
    if data["pixel"].ndim != 4:
        return vectors_figure(data, title)
    pixels, owner, names = data["pixel"].values, data["label_class"].values, [str(n) for n in data["class"].values]
    if real is not None and (real[0].ndim != 4 or real[0].shape[1:] != pixels.shape[1:] or len(real[0]) != len(real[1])):
        raise RunError(f"Real images of shape {real[0].shape} with {len(real[1])} classes do not go with images of {pixels.shape[1:]}.")
    layers = _layers(pixels, before, None if nearest is None else nearest[0])

    shown = [c for c in range(len(names)) if (owner == c).any()][:MOST_CLASSES]
    samples = [np.flatnonzero(owner == c) for c in shown]
    beside = [] if real is None else [np.flatnonzero(np.asarray(real[1]) == c) for c in shown]
    depth, most = images_shown(tree, which, rows), max(map(len, beside), default=0)
    if len(shown) * (depth * len(layers) + most) > LARGEST:
        words = f"{depth} distilled and {most} real images of {len(shown)} classes do not go on one sheet, which has {LARGEST}."
        raise RunError(words, fix="rows=10")
    few = len(pixels) <= MOST_LABELLED and max(map(len, samples), default=0) == 1
    soft = few and not np.array_equal(data["label"].values, np.eye(len(names), dtype=data["label"].dtype)[owner])
    grid = Grid.of(len(shown), depth, most, pixels.shape[2:], words=2 if soft else 0, stack=len(layers))

    canvas = grid.blank()
    for number, own in enumerate(samples):
        for layer, images in enumerate(layers.values()):
            grid.paint(canvas, images[own[:depth]], grid.places(number, layer))
        if real is not None:
            grid.paint(canvas, real[0][beside[number]], grid.places_beside(number))
    width, height = grid.inches
    words = _subtitle(data, samples, depth, None if nearest is None else nearest[1])
    lines = textwrap.wrap(words, int((width - 0.2) / 0.075)) or [""]
    figure = new_figure(width, height + 0.25 + 0.16 * len(lines), dpi=grid.dots)
    axes = figure.subplots()
    axes.imshow(canvas, interpolation="nearest" if grid.per_inch <= grid.dots else "antialiased", aspect="equal")
    axes.set_axis_off()
    for number, c in enumerate(shown):
        label = _largest(data["label"].values[samples[number][0]], names, wide=grid.beside > 0) if soft else ""
        _write(axes, grid, number, names[c], label, list(layers))
    for left, heading in _headings(grid, samples, data["block"].values):
        axes.text(left - 0.5, 0.13 * grid.per_inch, heading, fontsize=6.5, color=MUTED, va="bottom")
    figure.suptitle("\n".join([title, *lines]), fontsize=9, color=INK, parse_math=False)
    return figure


def _layers(pixels: np.ndarray, before: np.ndarray | None, nearest: np.ndarray | None) -> dict[str, np.ndarray]:
    """What stands one below the other in each place, from the top."""
    found = {"start": before, "distilled": pixels, "nearest": nearest}
    for name, images in found.items():
        if images is not None and images.shape != pixels.shape:
            raise RunError(f"Images of shape {images.shape} for {name!r} do not go with a set of {pixels.shape}: one for each sample.")
    return {name: images for name, images in found.items() if images is not None}


def _write(axes: Axes, grid: Grid, number: int, name: str, label: str, layers: list[str]) -> None:
    """The name of a class above its block, what its lines are to the left, and the label of its image below."""
    top, left = (place - 0.5 for place in grid.places(number)[0])  # the edge of a pixel, not its middle
    name = clean(name, max(4, int(grid.block_inches / LETTER)))
    axes.text(left, top - 0.04 * grid.per_inch, name, fontsize=7, color=INK, parse_math=False, va="bottom")
    if len(layers) > 1 and number % grid.across == 0:
        for layer, word in enumerate(layers):
            y, x = grid.places(number, layer)[0]
            axes.text(x - 0.5 - 0.06 * grid.per_inch, y - 0.5 + grid.height / 2, word, fontsize=6.5, color=MUTED, va="center", ha="right")
    low = grid.places(number, len(layers) - 1)[0][0] - 0.5 + grid.height + 0.03 * grid.per_inch
    axes.text(left, low, label, fontsize=5.5, color=MUTED, parse_math=False, va="top", linespacing=1.25)


def _subtitle(data: xr.Dataset, samples: list[np.ndarray], depth: int, nearest: np.ndarray | None) -> str:
    """What the sheet shows, and what it leaves out."""
    present, deepest = len(np.unique(data["label_class"].values)), max(map(len, samples), default=0)
    channels = data["pixel"].shape[1]
    blocks = {tuple(np.bincount(data["block"].values[own]).tolist()) for own in samples}
    stages = next(iter(blocks)) if len(blocks) == 1 else ()
    limits = [
        f"{len(samples)} of {present} classes" if len(samples) < present else "",
        f"first {depth} of {deepest} images a class" if depth < deepest else "",
        f"blocks of {', '.join(map(str, stages))} a class" if len(stages) > 1 else "",
        "" if nearest is None else _of_its_class(nearest, data["label_class"].values, samples, depth),
        {1: "", 3: "", 2: "first of 2 channels"}.get(channels, f"first 3 of {channels} channels as red, green, blue"),
    ]
    made = f"{counted(data.sizes['sample'], 'distilled image')} after {counted(data.attrs.get('outer_step', '?'), 'outer step')}"
    return "   ".join([made, *filter(None, limits)])


def _of_its_class(nearest: np.ndarray, owner: np.ndarray, samples: list[np.ndarray], depth: int) -> str:
    """How often the nearest real image of those shown is one of the same class."""
    rows = np.concatenate([own[:depth] for own in samples])
    return f"nearest real image of the same class: {(nearest[rows] == owner[rows]).sum()} of {len(rows)}"


def _headings(grid: Grid, samples: list[np.ndarray], block: np.ndarray) -> list[tuple[float, str]]:
    """What stands above the columns, and how far from the left: the boost blocks where a line holds a class, and what is real."""
    found: list[tuple[float, str]] = []
    one = grid.width / grid.per_inch
    columns = {tuple(block[own].tolist()) for own in samples}
    blocks = next(iter(columns)) if grid.lines == 1 and len(columns) == 1 and (block > 0).any() else ()
    firsts = [i for i, b in enumerate(blocks[: grid.columns]) if i == 0 or b != blocks[i - 1]]
    for n in range(min(grid.across, len(samples))):
        places = grid.places(n)
        if firsts:
            room = one * min(np.diff([*firsts, len(blocks)])) > 7 * LETTER
            found += [(places[i][1], f"block {blocks[i]}" if room else str(blocks[i])) for i in firsts]
        elif grid.beside and grid.stack == 1 and one * grid.columns > 7 * LETTER:
            found.append((places[0][1], "distilled"))
        if grid.beside:
            found.append((grid.places_beside(n)[0][1], "real"))
    return found


def _largest(label: np.ndarray, names: list[str], *, wide: bool) -> str:
    r"""The largest entries of a label, by the names of their classes.

    >>> _largest(np.array([0.1, 0.7, 0.2]), ["cat", "dog", "frog"], wide=True)
    'dog 0.70   frog 0.20\ncat 0.10'
    """
    first = [f"{clean(names[c], 10)} {label[c]:.2f}" for c in np.argsort(-label, kind="stable")[: 4 if wide else 2]]
    return "\n".join("   ".join(first[i : i + 2]) for i in range(0, len(first), 2)) if wide else "\n".join(first)

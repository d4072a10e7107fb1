"""What the figures share: text that is safe to draw, and saving without pyplot's global state."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from distilkit.errors import Change, RunError
from distilkit.storage.remote import require_here

INK, MUTED = "#1f2328", "#6b7280"
KINDS = ("png", "pdf", "svg")
BLUE, ORANGE, GREEN, PURPLE = "#2563ab", "#c2560c", "#2f7d4f", "#7a4ba0"


def new_figure(width: float, height: float, dpi: int = 120) -> Figure:
    """A figure of the given size in inches that lays itself out."""
    figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def clean(text: str, longest: int = 60) -> str:
    r"""Text on one line, without what cannot be printed, cut to a length.

    >>> clean("a\n b", 10), clean("abcdefgh", 5)
    ('a b', 'abcd…')
    """
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= longest else line[: longest - 1] + "…"


def require_picture(path: str | os.PathLike[str]) -> str:
    """The kind of a picture, "png", "pdf" or "svg", by its name.

    Raises:
        RunError: it has another name, or is a URL.
    """
    require_here(path)
    kind = Path(path).suffix.lower().removeprefix(".")
    if kind not in KINDS:
        folder = Path(path).is_dir() or not Path(path).name
        better = Path(path) / "sheet.png" if folder else Path(path).with_suffix(".png")
        raise RunError(
            f"{os.fspath(path)!r} is no name of a picture: pictures are .{', .'.join(KINDS)}.", changes=[Change("out", str(better))]
        )
    return kind


def save(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Save a figure as its name says; the folder is made when it is not there.

    Raises:
        RunError: its name does not end as that of a picture does, or is a URL.
    """
    target, kind = Path(path), require_picture(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        # A class name in a script that the font lacks is drawn as boxes: no reason to lose the figure.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(target, format=kind)
    return target

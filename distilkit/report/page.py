"""A page about one or several runs and studies: one HTML file that needs nothing beside it, and asks no network for anything."""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import matplotlib as mpl
import numpy as np
import tomlkit
import xarray as xr
from matplotlib.figure import Figure
from PIL import Image

from distilkit.errors import Change, RunError
from distilkit.progress import duration
from distilkit.report.budgets import budget_figure
from distilkit.report.curves import curves_figure
from distilkit.report.drawing import clean
from distilkit.report.gradients import gradient_figure
from distilkit.report.influence import influence_figure
from distilkit.report.sheet import Pictures
from distilkit.report.vectors import vectors_figure
from distilkit.storage.layout import group_of_set, tested
from distilkit.storage.remote import require_here
from distilkit.storage.spread import plus_minus

NONE: Mapping[str, Any] = {}
MOST_IMAGES = 2000  # of a set that are shown
SIDE = 96  # pixels of the screen that an image takes at least


class Picture(NamedTuple):
    """An image as a data URI, and what it shows in words."""

    source: str
    words: str


class Block(NamedTuple):
    """The images of a class. label: that of its only image in words, where it is not one-hot. real: real images of it."""

    name: str
    images: list[Picture]
    label: str = ""
    real: Sequence[Picture] = ()


class Section(NamedTuple):
    """What is told of one run or study.

    facts: rows of (what, value). accuracies: rows of (trained on, images, accuracy, networks). references: to cite. why: there are no
    real images, in a sentence.
    """

    title: str
    place: str
    facts: list[tuple[str, str]]
    accuracies: list[tuple[str, str, str, str]]
    blocks: list[Block]
    left_out: int
    figures: list[tuple[str, Picture]]
    spec: str
    references: list[str]
    why: str

    @property
    def real(self) -> bool:
        """Whether real images stand beside."""
        return any(block.real for block in self.blocks)

    @property
    def nothing(self) -> list[tuple[str, str, str, str]]:
        """What stands in the place of accuracies: of a study, or a run that is under way."""
        return [("not judged yet" if self.blocks else "a study", "", "", "")]


def page(
    trees: Mapping[str, xr.DataTree],
    path: str | os.PathLike[str],
    *,
    reload: float | None = None,
    real: Mapping[str, Pictures | str] = NONE,
) -> Path:
    """Write a page about runs and studies, side by side where there are several; a run that is under way is told as far as it is stored.

    Args:
        trees: by the name of the folder, what `distilkit.open` gives.
        path: of the page, which ends in .html; its folder is made when it is not there.
        reload: seconds after which a browser loads the page anew; None never does.
        real: real images to show beside the distilled ones, by the name of the folder: uint8 (M, C, H, W), and their classes, int (M,); or
            a sentence that says why there are none.

    Raises:
        RunError: the name ends otherwise, or there is nothing to tell of.
    """
    require_here(path)
    target = Path(path)
    if target.suffix.lower() != ".html":
        raise RunError(f"{os.fspath(path)!r} is no name of a page.", changes=[Change("out", str(target.with_suffix(".html")))])
    if not trees:
        raise RunError("There is no run to report of.")
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")  # no browser loads half a page
    part.write_text(page_text(trees, reload=reload, real=real), encoding="utf-8")
    os.replace(part, target)
    return target


def page_text(trees: Mapping[str, xr.DataTree], *, reload: float | None = None, real: Mapping[str, Pictures | str] = NONE) -> str:
    """The text of the page that `page` writes; the same trees give the same text."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    sections = [_section(name, tree, real.get(name, "")) for name, tree in trees.items()]
    return environment.get_template("page.html").render(sections=sections, side=SIDE, version=version("distilkit"), reload=reload)


def _section(name: str, tree: xr.DataTree, real: Pictures | str) -> Section:
    blocks, left_out = _blocks(tree, real) if "distilled" in tree.children else ([], 0)
    spec = json.loads(tree.attrs.get("spec", "{}"))
    return Section(
        title=clean(str(tree.attrs.get("title", "")) or name),
        place=name,
        facts=_facts(tree, spec),
        accuracies=_accuracies(tree),
        blocks=blocks,
        left_out=left_out,
        figures=_figures(tree),
        spec=tomlkit.dumps(_without_none(spec)),
        references=[line for line in str(tree.attrs.get("references", "")).splitlines() if line],
        why=real if isinstance(real, str) and blocks else "",
    )


def _facts(tree: xr.DataTree, spec: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was distilled, how long it took, and on what."""
    found: list[tuple[str, Any]] = [("data", _kind(spec.get("data")))]
    found += [(words, _kind(spec.get("learner", {}).get(key))) for words, key in (("network", "network"), ("inner optimiser", "optimizer"))]
    found.append(("truncation", _kind(spec.get("truncation"))))
    if "history" in tree.children:
        history = tree["history"].to_dataset()
        seconds = float(history["seconds"].sum()) if "seconds" in history else np.nan
        found.append(("outer steps", f"{history.sizes['outer_step']:,}"))
        found += [("their time", duration(seconds))] if np.isfinite(seconds) else []
        found += [(word, history.attrs.get(word)) for word in ("precision", "execution")]
    found += [("finished", "no: it goes on, or was stopped and can go on")] if not tree.attrs.get("finished", True) else []
    found += [(words, tree.attrs.get(key)) for words, key in (("device", "device"), ("torch", "torch"), ("seed", "seed"))]
    found += [("made by", f"distilkit {tree.attrs['distilkit_version']}")] if "distilkit_version" in tree.attrs else []
    found.append(("stored", tree.attrs.get("created")))
    return [(words, str(value)) for words, value in found if value not in (None, "")]


def _kind(component: Any) -> str | None:
    """A component of a spec in a line: its kind and what it is given."""
    if not isinstance(component, dict):
        return None
    given = ", ".join(f"{key} = {value}" for key, value in component.items() if key != "kind" and isinstance(value, (int, float, str)))
    return clean(f"{component.get('kind', '')}({given})", 140)


def _accuracies(tree: xr.DataTree) -> list[tuple[str, str, str, str]]:
    """Test accuracy of the set, of its prefixes and of what was trained on beside it."""
    if "evaluation" not in tree.children or "accuracy" not in tree["evaluation"] or "distilled" not in tree.children:
        return []
    return [(name, count, *_mean(np.asarray(values.values, float))) for name, count, values in tested(tree)]


def _mean(accuracies: np.ndarray) -> tuple[str, str]:
    """Mean and deviation in percent, and of how many networks; NaN is one that diverged, or that there is not."""
    there = accuracies[np.isfinite(accuracies)]
    return (f"{plus_minus(100 * there, 1)} %" if len(there) else "-"), str(len(there))


def _blocks(tree: xr.DataTree, real: Pictures | str) -> tuple[list[Block], int]:
    """The images by class, real ones beside them, and how many are left out."""
    data = tree[group_of_set(tree, "auto")].to_dataset()
    if data["pixel"].ndim != 4:
        return [], 0
    names, labels = [clean(str(name), 40) for name in data["class"].values], data["label"].values
    owner, several = data["label_class"].values, len(np.unique(data["block"].values)) > 1
    shown = np.argsort(owner, kind="stable")
    if len(shown) > MOST_IMAGES:  # as many of each class as there can be
        place = np.concatenate([np.arange(n) for n in np.unique(owner, return_counts=True)[1]])
        shown = shown[place < max(1, MOST_IMAGES // len(names))]
    blocks = [Block(name, []) for name in names]
    for i in shown:
        where = f", block {int(data['block'].values[i]) + 1}" if several else ""
        words = f"{names[owner[i]]}{where}: label {_label(labels[i], names)}"
        blocks[owner[i]].images.append(Picture(_png(data["pixel"].values[i]), words))
    if not isinstance(real, str):
        if real[0].shape[1:] != data["pixel"].shape[1:]:
            raise RunError(f"Real images of shape {real[0].shape} do not go with distilled ones of {data['pixel'].shape[1:]}.")
        beside = [np.flatnonzero(np.asarray(real[1]) == c) for c in range(len(names))]
        made = [[Picture(_png(real[0][i]), f"{block.name}: a real image") for i in own] for block, own in zip(blocks, beside, strict=True)]
        blocks = [block._replace(real=pictures) for block, pictures in zip(blocks, made, strict=True)]
    told = [block for block in blocks if block.images]
    if all(len(block.images) == 1 for block in told) and not np.isin(labels, (0, 1)).all():
        told = [block._replace(label=_label(labels[i], names)) for block, i in zip(told, shown, strict=True)]
    return told, len(owner) - len(shown)


def _label(label: np.ndarray, names: Sequence[str]) -> str:
    """The largest of the numbers that a label gives to classes, in words."""
    top = [c for c in np.argsort(-label)[:3] if label[c] > 0.005]
    return ", ".join(f"{names[c]} {label[c]:.2f}" for c in top) or "none above 0.005"


def _png(pixels: np.ndarray) -> str:
    """One image, uint8 (C, H, W), as a data URI."""
    planes = np.moveaxis(pixels, 0, -1)
    colours = planes if planes.shape[-1] == 3 else planes.mean(-1).round().astype(np.uint8)
    made = io.BytesIO()
    Image.fromarray(colours).save(made, "PNG", optimize=True)
    return _uri("image/png", made.getvalue())


def _figures(tree: xr.DataTree) -> list[tuple[str, Picture]]:
    """What there is to draw of it, each with a heading."""
    found: list[tuple[str, str, Figure]] = []
    groups = {name: group.to_dataset() for name, group in tree.children.items()}
    if "distilled" in groups and groups["distilled"]["pixel"].ndim != 4:
        found.append(("Distilled vectors", "a heat map of the distilled feature vectors", vectors_figure(groups["distilled"], "")))
    if "history" in groups and groups["history"].sizes["outer_step"]:
        found.append(("How it went", "loss, norm of the meta-gradient and accuracy by outer step", curves_figure(tree)))
    if "prefixes" in groups:
        found.append(("Its prefixes", "test accuracy by images per class", budget_figure(groups["prefixes"])))
    if "sources" in groups:
        found.append(("Accuracy by budget", "test accuracy by images per class, a line for each source", budget_figure(groups["sources"])))
    if "influence" in groups:
        found.append(("How samples depend on each other", "influence of pairs of samples", influence_figure(groups["influence"])))
    own = tree.to_dataset()
    if "variance_clipped" in own:
        found.append(("Meta-gradients", "norm, variance and cosine of the meta-gradient by outer step", gradient_figure(own)))
    if {"budget", "draw"} <= set(own.get("accuracy", xr.DataArray()).dims):
        found.append(("Subsets", "test accuracy of subsets by images per class", budget_figure(own)))
    return [(heading, Picture(_svg(figure), words)) for heading, words, figure in found]


def _svg(figure: Figure) -> str:
    """A figure as a data URI: sharp at every size."""
    made = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "distilkit"}):  # the same figure gives the same bytes
        figure.savefig(made, format="svg", metadata={"Date": None})
    return _uri("image/svg+xml", made.getvalue())


def _uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _without_none(tree: Any) -> Any:
    """TOML has no word for None, which is what a key that is left out stands for."""
    if isinstance(tree, dict):
        return {key: _without_none(value) for key, value in tree.items() if value is not None}
    return [_without_none(value) for value in tree if value is not None] if isinstance(tree, list) else tree

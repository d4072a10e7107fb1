"""`distilkit new`: a spec with comments to begin with, which follows a recipe for data of its kind."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomlkit

from distilkit import recipes, spec
from distilkit.errors import CombinationError, DistilkitError, FieldError, MissingDataError, listing, nearest
from distilkit.storage.remote import require_here

SMALL = 16  # pixels of a side below which three poolings leave nothing: an MLP is better
# Kinds that are one dataset and need no path, and pixels of a side there.
SIDES = {"Digits": 8, "MNIST": 28, "FashionMNIST": 28, "CIFAR10": 32, "CIFAR100": 32, "SVHN": 32, "TinyImageNet": 64, "CUB200": 32}
BY_HAND = ("TinyImageNet", "CUB200")  # which are not downloaded
HELD_OUT: dict[str, Any] = {"validation": 0.1}  # a part of the training images on which numbers of steps and sets are chosen
HEAD = """# {data}, {per_class} distilled image{s} of each class, after the recipe {base}.
#   distilkit plan {path}      how much memory and time it takes
#   distilkit run {path} --set outer.steps=20 --out runs/look      a first look
#   distilkit run {path}       goes on where it was stopped
#
# distilkit validate {path} prints every value that can be set; the page Spec reference says what each is.

"""


def write_spec(path: Path, data: str, per_class: int, steps: int | None) -> str:
    """Write a spec for some data; the name of the recipe that it follows.

    Args:
        path: of the spec, which must not be there yet.
        data: a kind of data, or a file or folder of arrays or images.
        per_class: distilled images of each class.
        steps: outer steps, or None for those of the recipe.

    Raises:
        CombinationError: the file is there already.
        RunError: it is a URL.
        FieldError: the data is no kind.
        MissingDataError: it is a place where nothing is.
    """
    words = ["--data", data]
    words += [] if per_class == 1 else ["--per-class", str(per_class)]
    words += [] if steps is None else ["--steps", str(steps)]
    require_here(path, fix=shlex.join(["distilkit", "new", path.name, *words]))
    if path.exists():
        other = str(path.with_stem(f"{path.stem}-2"))
        raise CombinationError(f"{path} is there already, and is not written over.", fix=shlex.join(["distilkit", "new", other, *words]))
    source, side, count = _source(data)
    base = _recipe(side, per_class)
    document = tomlkit.parse(re.sub(r"\A(#.*\n|\s*\n)*", "", recipes.read(base)))  # without what the recipe says of itself
    _set(document, {"title": path.stem, "data": source, "images": {"per_class": per_class}})
    if count is not None and count < document["outer"]["batch_size"]:
        _set(document, {"outer": {"batch_size": count}})
    if steps is not None:
        _set(document, {"outer": {"steps": steps}})
    text = HEAD.format(data=data, per_class=per_class, s="" if per_class == 1 else "s", base=base, path=path) + tomlkit.dumps(document)
    spec.loads(text)  # one that does not load is a fault of ours
    path.write_text(text, encoding="utf-8")
    return base


def _recipe(side: int | None, per_class: int) -> str:
    """What to follow: for small images and feature vectors the demonstration, else what is known to work on photographs."""
    if side is not None and side < SMALL:
        return "digits"
    if side == SIDES["MNIST"] and per_class == 1:
        return "fast/fashion-mnist-ipc1"
    return "fast/cifar10-ipc1" if per_class == 1 else "fast/cifar10-ipc10"


def _source(data: str) -> tuple[dict[str, Any], int | None, int | None]:
    """The table of the data, pixels of a side, and the number of training images; None is not known."""
    if data in SIDES:
        place = {} if data == "Digits" else {"root": "data"} | HELD_OUT
        return {"kind": data} | place | ({} if data in ("Digits", *BY_HAND) else {"download": True}), SIDES[data], None
    path = Path(data)
    if not path.exists():
        if path.suffix or "/" in data:
            raise MissingDataError(f"{data} is not there.", fix="--data photos.npz  # a file or folder that is")
        near = nearest(data, list(SIDES))
        fix = f"--data {near}" if near else "--data photos.npz"
        raise FieldError("--data", data, f"{listing(list(SIDES))}, or a file or folder", fix=fix)
    from distilkit.data.sources.arrays import holds_arrays

    return _arrays(data) if holds_arrays(path) else ({"kind": "ImageFolder", "root": data} | HELD_OUT, None, None)


def _arrays(data: str) -> tuple[dict[str, Any], int, int]:
    """The same of arrays, which are read: images whose channels come last are seen to."""
    from distilkit.data.sources.arrays import Arrays
    from distilkit.functional.streams import Stream

    table: dict[str, Any] = {"kind": "Arrays", "path": data} | HELD_OUT
    try:
        found = Arrays(data, **HELD_OUT).load(Stream(0))
    except DistilkitError as error:
        if not error.fix or "NHWC" not in error.fix:
            raise
        table |= {"layout": "NHWC"}
        found = Arrays(data, layout="NHWC", **HELD_OUT).load(Stream(0))
    side = min(found.image_shape[-2:]) if len(found.image_shape) == 3 else 1
    return table, side, len(found.train)


def _set(table: Any, values: Mapping[str, Any]) -> None:
    """Set values in a document, whose other lines and comments stay; a table that names its kind replaces the values of another kind."""
    for key, value in values.items():
        if not isinstance(value, Mapping):
            table[key] = value
            continue
        if "kind" in value:
            for name in [name for name, held in table[key].items() if name not in value and not isinstance(held, Mapping)]:
                del table[key][name]
        _set(table[key], value)

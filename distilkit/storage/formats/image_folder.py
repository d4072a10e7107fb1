"""The format "image-folder": a PNG for each sample, and `labels.csv`. Lossy: pixels have 256 levels, and preprocessing is undone.

`labels.csv` has the columns file, class (a number), and maybe class_name, block and label_0, label_1, ... (soft labels). Beside it
`distilkit.json` (see `description`) may say class_names, label_space, inner_lr, provenance and preprocessing. A folder made by hand needs
only file and class. Images are read back as they look, in [0, 1]; with `preprocessing`, or with real data and one that the file says, they
are put through it: networks were trained in that space.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import attrs
import torch

from distilkit.data.distilled import DistilledSet
from distilkit.data.preprocessing import Identity
from distilkit.errors import CombinationError, DistilkitError
from distilkit.storage.formats import description
from distilkit.storage.formats.complete import labelled
from distilkit.storage.formats.pictures import can_be_drawn, read_png, write_png
from distilkit.storage.formats.raw import Options, Raw, write_folder
from distilkit.storage.formats.spaces import DECLARED, fit, known

TABLE = "labels.csv"


def matches(path: Path) -> bool:
    """Whether the path looks like this format."""
    return (path / TABLE).is_file()


def read(path: Path, options: Options) -> DistilledSet:
    """Read the folder."""
    table = path / TABLE
    try:
        with table.open(newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
        classes = torch.tensor([int(row["class"]) for row in rows], dtype=torch.int64)
        block = torch.tensor([int(row.get("block") or 0) for row in rows], dtype=torch.int64)
        columns = [name for name in (rows[0] if rows else ()) if name and name.startswith("label_")]
        soft = torch.tensor([[float(row[name]) for name in columns] for row in rows])
        files = [path / row["file"] for row in rows]
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise DistilkitError(
            f"{table} needs the columns file and class (a number), and what label_0, ... hold must be numbers: {error!r}"
        ) from error
    words = description.read(path) or {}
    if not rows:
        raise DistilkitError(f"{table} names no images.")
    for file in files:
        if path.resolve() not in file.resolve().parents:
            raise DistilkitError(f"{table} names {file}, which is outside of the folder; it is not read.")
    images = read_png(files)
    raw = Raw(images, soft if columns else classes, str(path), str(table), label_space=words.get("label_space"))
    said, came = words.get("class_names"), words.get("provenance")
    if said is not None and not (isinstance(said, list) and all(isinstance(name, str) for name in said)):
        raise DistilkitError(f"{path / description.FILE} should have a list of texts as class_names.")
    names = options.class_names or (tuple(said) if said else None) or (options.data.class_names if options.data is not None else None)
    space, (labels, _, _), names = labelled(raw, Options(label_space=options.label_space, class_names=names))
    stated = None if options.data is None else stated_preprocessing(path)
    preprocessing = fit(known(options.preprocessing or stated or Identity()), options.data, str(path))
    return DistilledSet(
        images=preprocessing.forward(images),
        labels=labels,
        classes=classes,
        class_names=names,
        label_space=space,
        block=block,
        inner_lr=words.get("inner_lr"),
        preprocessing=preprocessing,
        provenance={"imported_from": path.name, "format": "image-folder"} if came is None else came,
    )


def stated_preprocessing(path: Path) -> Any:
    """Which preprocessing a folder says that its images went through, before it is fitted; None where that is not known by a name."""
    words = (description.read(path) or {}).get("preprocessing") if matches(path) else None
    if not isinstance(words, dict) or words.get("kind") not in DECLARED:
        return None
    declared, said = DECLARED[words["kind"]], words.get("settings")
    settings = said if isinstance(said, dict) else {}
    try:
        return declared(**{field.name: settings[field.name] for field in attrs.fields(declared) if field.name in settings})
    except (TypeError, ValueError):  # somebody else wrote it
        return None


def write(distilled: DistilledSet, path: Path, plain: bool) -> None:
    """Write the folder."""
    if not can_be_drawn(distilled):
        raise CombinationError(
            f"PNG holds grey and colour images, and this set is of shape {tuple(distilled.images.shape)}.",
            fix='formats.write(distilled, "set.safetensors", "safetensors")',
        )
    distilled = distilled.to("cpu")
    labels = distilled.labels.detach().double().tolist()

    def fill(folder: Path) -> None:
        header = ["file", "class", "class_name", "block", *(f"label_{i}" for i in range(len(distilled.class_names)))]
        with (folder / TABLE).open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(header)
            for name, c, b, row in zip(
                write_png(distilled, folder), distilled.classes.tolist(), distilled.block.tolist(), labels, strict=True
            ):
                # For people only: a name that cannot be printed is written with escapes.
                word = distilled.class_names[c]
                table.writerow([name, c, word if word.isprintable() else word.encode("unicode_escape").decode(), b, *map(repr, row)])
        if not plain:
            words = description.describe(distilled, pictures=TABLE)
            words["preprocessing"]["arrays"] = {}  # no tensors lie beside it
            description.write(folder, words)

    write_folder(path, fill)

"""The formats "mtt" (MTT, TESLA, DATM) and "dd-ranking": a folder with a `.pt` file each for images, labels and learning rate.

MTT's code saves `images_best.pt`, `labels_best.pt` and `lr_best.pt` (and the same with a step number in place of "best"); what
DD-Ranking's evaluators are given is `images.pt`, `labels.pt` and `lr.pt`, where hard labels may be left out: they are the places of
the rows. Images are float (classes * n, C, H, W) in the order of the classes; labels int64 class numbers, or float (N, K), which
for DATM are logits. The learning rate is a Python number or a tensor.
"""

from __future__ import annotations

from pathlib import Path

import torch

from distilkit.data.distilled import DistilledSet
from distilkit.errors import CombinationError, DistilkitError
from distilkit.storage.formats import lossless, pickles
from distilkit.storage.formats.raw import BESIDE, Options, Raw, by_class, foreign_labels, number, tensor, write_folder


def matches(path: Path) -> bool:
    """Whether the path looks like MTT's folder, or like the file of images in it."""
    return (path / "images_best.pt").is_file() or (path.is_file() and path.suffix == ".pt" and path.name.startswith("images_"))


def read(path: Path, options: Options) -> Raw:
    """Read MTT's folder, or the files that belong to one file of images, such as `images_5000.pt`."""
    name = path.name if path.is_file() else "images_best.pt"
    folder = path.parent if path.is_file() else path
    if not name.startswith("images_"):
        raise DistilkitError(f"{path} is not a file of images of MTT, which is named images_best.pt or images_STEP.pt.")
    return _read(folder, name, needs_labels=True)


def write(distilled: DistilledSet, path: Path, plain: bool) -> None:
    """Write MTT's folder."""
    _write(distilled, path, "_best", plain)


def matches_dd_ranking(path: Path) -> bool:
    """Whether the path looks like DD-Ranking's folder, or like the file of images in it."""
    return (path / "images.pt").is_file() or (path.is_file() and path.name == "images.pt")


def read_dd_ranking(path: Path, options: Options) -> Raw:
    """Read DD-Ranking's folder."""
    return _read(path.parent if path.is_file() else path, "images.pt", needs_labels=False)


def write_dd_ranking(distilled: DistilledSet, path: Path, plain: bool) -> None:
    """Write DD-Ranking's folder."""
    _write(distilled, path, "", plain)


def _read(folder: Path, name: str, needs_labels: bool) -> Raw:
    images, labels, rate = (folder / name.replace("images", what, 1) for what in ("images", "labels", "lr"))
    return Raw(
        images=tensor(pickles.load(images), "images", images),
        labels=tensor(pickles.load(labels), "labels", labels) if needs_labels or labels.is_file() else None,
        inner_lr=number(pickles.load(rate), rate) if rate.is_file() else None,
        image_file=str(images),
        label_file=str(labels),
        lossless=lossless.beside(folder / BESIDE),
    )


def _write(distilled: DistilledSet, path: Path, ending: str, plain: bool) -> None:
    rows, rate = by_class(distilled), distilled.inner_lr
    if isinstance(rate, tuple):
        raise CombinationError(
            f"This format holds one learning rate, and the set has one for each of {len(rate)} steps.",
            fix='formats.write(distilled, "set.safetensors", "safetensors")',
        )

    def fill(folder: Path) -> None:
        torch.save(rows.images.detach().contiguous(), folder / f"images{ending}.pt")
        torch.save(foreign_labels(rows), folder / f"labels{ending}.pt")
        if rate is not None:
            torch.save(rate, folder / f"lr{ending}.pt")
        if not plain:
            (folder / BESIDE).write_bytes(lossless.dumps(distilled))

    write_folder(path, fill)

"""Datasets of image files: any folder of class folders, and the published layouts of Tiny-ImageNet and CUB-200-2011."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import attrs
import torch

from distilkit import fields
from distilkit.data.bundle import DataBundle
from distilkit.data.preprocessing import Preprocessing, Standardize
from distilkit.data.sources.assemble import Raw, Store, assemble, split_size, store_field
from distilkit.data.sources.missing import folder, missing
from distilkit.data.sources.pictures import pictures_below, read_pictures
from distilkit.errors import CombinationError, MissingDataError
from distilkit.functional.streams import Stream

Fit = Literal["crop", "stretch"]


@fields.component
class ImageFolder:
    """A folder of class folders of image files: `root/train/CLASS/...`, and `root/test/CLASS/...` where there is a test set.

    Without a `train` folder, `root` itself holds the class folders. Without a test folder, a part of the images is held out
    for the test by a fixed seed, the same for every run.

    Args:
        root: the folder; "~" and relative paths are fine.
        size: side of the images in pixels, after resizing.
        fit: "crop" keeps proportions and cuts the middle out; "stretch" does not keep them.
        channels: 3 for colour, 1 for grey.
        test_folder: name of the folder with the test images; some datasets call it "val".
        test: what to hold out when there is no such folder: a fraction below 1, or a count.
        validation: what to hold out of the training images: a fraction of them below 1, or a count.
        preprocessing: fitted on the training images only.
        store: "uint8" keeps images as they were read in memory, a quarter of float32, and preprocesses each batch; float32 when left out.
    """

    root: str = fields.text()
    size: int = fields.integer(default=32, least=1)
    fit: Fit = fields.choice(Fit, default="crop")
    channels: int = fields.integer(default=3, least=1, most=3)
    test_folder: str = fields.text(default="test")
    test: float = fields.number(default=0.2, above=0)
    validation: float = fields.number(default=0.1, least=0)
    preprocessing: Preprocessing = fields.slot("preprocessing", default=Standardize())
    store: Store | None = store_field()

    def __attrs_post_init__(self) -> None:
        split_size("validation", self.validation)
        split_size("test", self.test)
        if self.channels == 2:
            raise CombinationError("channels = 2 cannot be: image files have 3 (colour) or 1 (grey).", fix="channels=3")

    def load(self, stream: Stream) -> DataBundle:
        """Read all files; `stream` seeds the validation split only.

        Raises:
            MissingDataError: when there is no folder, or no image in it.
            CombinationError: when the test folder has classes that training has not.
        """
        root = folder(self.root)
        if not root.is_dir():
            raise MissingDataError(f"ImageFolder: {root} is {'not a folder' if root.exists() else 'not there'}.")
        train = root / "train" if (root / "train").is_dir() else root
        outer = {"train", self.test_folder} if train == root else set()
        names = tuple(sorted(p.name for p in train.iterdir() if p.is_dir() and p.name not in outer)) if train.is_dir() else ()
        if not names:
            raise missing("ImageFolder", root, ["train"], why="no class folders were found, which would be train/CLASS or CLASS")
        images, labels = self._read(train, names)
        raw = Raw(images, labels, names)
        place = root / self.test_folder
        if place.is_dir():
            unknown = sorted(p.name for p in place.iterdir() if p.is_dir() and p.name not in names)
            if unknown:
                raise CombinationError(f"{place} has classes that {train} has not: {', '.join(unknown[:5])}.")
            test_images, test_labels = self._read(place, names)
            raw = attrs.evolve(raw, test_images=test_images, test_labels=test_labels)
        return assemble(
            root.name, raw, preprocessing=self.preprocessing, validation=self.validation, stream=stream, test=self.test, store=self.store
        )

    def _read(self, place: Path, names: tuple[str, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        found = [(path, label) for label, name in enumerate(names) for path in pictures_below(place / name)]
        if not found:
            raise MissingDataError(f"There are class folders in {place}, but no image file in any of them.")
        images = read_pictures([path for path, _ in found], self.size, fit=self.fit, channels=self.channels)
        return images, torch.tensor([label for _, label in found])


@fields.component
class TinyImageNet:
    """Tiny-ImageNet: 100,000 training photographs in 200 classes, 3 x 64 x 64 (Stanford CS231n).

    The test split is the published validation folder, as in every paper on distillation: the published test images have no
    labels. Reading the files takes about a minute.

    Args:
        root: the folder `tiny-imagenet-200`, or the one that holds it; "~" and relative paths are fine.
        size: side of the images in pixels, after resizing.
        validation: what to hold out of the training images: a fraction of them below 1, or a count.
        preprocessing: fitted on the training images only; `Whiten()` for the paper's recipes.
        store: "uint8" keeps images as they were read in memory, a quarter of float32, and preprocesses each batch; float32 when left out.
    """

    root: str = fields.text(default="data")
    size: int = fields.integer(default=64, least=1)
    validation: float = fields.number(default=0.1, least=0)
    preprocessing: Preprocessing = fields.slot("preprocessing", default=Standardize())
    store: Store | None = store_field()

    def __attrs_post_init__(self) -> None:
        split_size("validation", self.validation)

    def load(self, stream: Stream) -> DataBundle:
        """Read all files; `stream` seeds the validation split only. Raises MissingDataError when they are not there."""
        place = _published("TinyImageNet", self.root, "tiny-imagenet-200", _TINY, "cs231n.stanford.edu/tiny-imagenet-200.zip")
        wnids = (place / "wnids.txt").read_text().split()
        words = dict(line.split("\t", 1) for line in (place / "words.txt").read_text().splitlines() if "\t" in line)
        number = {wnid: label for label, wnid in enumerate(wnids)}
        train = [(path, label) for wnid, label in number.items() for path in pictures_below(place / "train" / wnid / "images")]
        marks = [line.split("\t") for line in (place / "val" / "val_annotations.txt").read_text().splitlines() if line]
        test = [(place / "val" / "images" / mark[0], number[mark[1]]) for mark in marks]
        names = _distinct([words.get(wnid, wnid).split(",")[0].strip() for wnid in wnids], wnids)
        return _assemble("TinyImageNet", self, train, test, names, "crop", stream)


@fields.component
class CUB200:
    """CUB-200-2011: 5,994 + 5,794 photographs of 200 kinds of birds (Wah et al., Caltech), resized without cropping.

    Args:
        root: the folder `CUB_200_2011`, or the one that holds it; "~" and relative paths are fine.
        size: side of the images in pixels, after resizing; 32 in the papers on distillation.
        validation: what to hold out of the training images: a fraction of them below 1, or a count.
        preprocessing: fitted on the training images only; `Whiten()` for the paper's recipes.
        store: "uint8" keeps images as they were read in memory, a quarter of float32, and preprocesses each batch; float32 when left out.
    """

    root: str = fields.text(default="data")
    size: int = fields.integer(default=32, least=1)
    validation: float = fields.number(default=0.1, least=0)
    preprocessing: Preprocessing = fields.slot("preprocessing", default=Standardize())
    store: Store | None = store_field()

    def __attrs_post_init__(self) -> None:
        split_size("validation", self.validation)

    def load(self, stream: Stream) -> DataBundle:
        """Read all files; `stream` seeds the validation split only. Raises MissingDataError when they are not there."""
        place = _published("CUB200", self.root, "CUB_200_2011", _CUB, "www.vision.caltech.edu/datasets/cub_200_2011")
        paths, labels, marks, names = ({int(k): v for k, v in _pairs(place / f)} for f in _CUB[:4])
        parts: dict[str, list[tuple[Path, int]]] = {"1": [], "0": []}
        for image, name in paths.items():
            parts[marks[image]].append((place / "images" / name, int(labels[image]) - 1))
        words = [names[c].split(".", 1)[-1].replace("_", " ") for c in sorted(names)]
        return _assemble("CUB200", self, parts["1"], parts["0"], tuple(words), "stretch", stream)


_TINY = ("wnids.txt", "words.txt", "train", "val/images", "val/val_annotations.txt")
_CUB = ("images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt", "images")


def _published(name: str, root: str, inner: str, files: tuple[str, ...], site: str) -> Path:
    """The folder with the published layout: `root/inner`, or `root` itself."""
    places = [folder(root) / inner, folder(root)]
    for place in places:
        if all((place / f).exists() for f in files):
            return place
    place = places[0] if places[0].is_dir() or not (places[1] / files[0]).exists() else places[1]
    raise missing(name, place, files, site=site, fix=f'dk.{name}(root="the folder that holds {inner}")')


def _assemble(
    name: str, source: Any, train: list[tuple[Path, int]], test: list[tuple[Path, int]], names: tuple[str, ...], fit: str, stream: Stream
) -> DataBundle:
    parts = [
        (read_pictures([path for path, _ in part], source.size, fit=fit), torch.tensor([label for _, label in part], dtype=torch.int64))
        for part in (train, test)
    ]
    raw = Raw(*parts[0], names, *parts[1])
    return assemble(name, raw, preprocessing=source.preprocessing, validation=source.validation, stream=stream, store=source.store)


def _pairs(path: Path) -> list[tuple[str, str]]:
    """Lines "NUMBER VALUE" of a text file."""
    lines = (line.split(maxsplit=1) for line in path.read_text().splitlines() if line.strip())
    return [(line[0], line[1].strip()) for line in lines]


def _distinct(names: list[str], ids: list[str]) -> tuple[str, ...]:
    """Class names, with the id behind those that two classes share (Tiny-ImageNet has more than one)."""
    return tuple(name if names.count(name) == 1 else f"{name} ({ids[i]})" for i, name in enumerate(names))

"""Datasets from the Hugging Face hub, or saved on disk by its library."""

from __future__ import annotations

from typing import Any, Literal

import attrs
import numpy as np
import torch

from distilkit import fields
from distilkit.data.bundle import DataBundle
from distilkit.data.preprocessing import Preprocessing, Standardize
from distilkit.data.sources.assemble import Raw, Store, assemble, split_size, store_field
from distilkit.data.sources.missing import folder
from distilkit.data.sources.pictures import as_array
from distilkit.errors import CombinationError, MissingDataError
from distilkit.functional.streams import Stream

Fit = Literal["crop", "stretch"]


@fields.component
class HuggingFace:
    """An image classification dataset, through the optional library `datasets` (`pip install 'distilkit[hf]'`).

    Args:
        path: name on the hub, such as "mnist", or a folder written by `save_to_disk`.
        name: configuration, when the dataset has more than one.
        size: side of the images in pixels, after resizing.
        fit: "crop" keeps proportions and cuts the middle out; "stretch" does not keep them.
        channels: 3 for colour, 1 for grey.
        image_column: the column of images.
        label_column: the column of class numbers.
        train_split: the split to distil from.
        test_split: the split to test on; when it is not there, a part is held out by a fixed seed.
        test: what to hold out then: a fraction below 1, or a count.
        validation: what to hold out of the training images: a fraction of them below 1, or a count.
        preprocessing: fitted on the training images only.
        store: "uint8" keeps images as they were read in memory, a quarter of float32, and preprocesses each batch; float32 when left out.
    """

    path: str = fields.text()
    name: str | None = fields.text(default=None, optional=True)
    size: int = fields.integer(default=32, least=1)
    fit: Fit = fields.choice(Fit, default="crop")
    channels: int = fields.integer(default=3, least=1, most=3)
    image_column: str = fields.text(default="image")
    label_column: str = fields.text(default="label")
    train_split: str = fields.text(default="train")
    test_split: str = fields.text(default="test")
    test: float = fields.number(default=0.2, above=0)
    validation: float = fields.number(default=0.1, least=0)
    preprocessing: Preprocessing = fields.slot("preprocessing", default=Standardize())
    store: Store | None = store_field()

    def __attrs_post_init__(self) -> None:
        split_size("validation", self.validation)
        split_size("test", self.test)
        if self.channels == 2:
            raise CombinationError("channels = 2 cannot be: images have 3 (colour) or 1 (grey).", fix="channels=3")

    def load(self, stream: Stream) -> DataBundle:
        """Fetch or open the dataset; `stream` seeds the validation split only.

        Raises:
            MissingDataError: when the library or the dataset is not there.
            CombinationError: when a split or column is not there, naming those that are.
        """
        splits = self._open()
        if self.train_split not in splits:
            raise CombinationError(f"{self.path} has no split {self.train_split!r}; it has: {', '.join(splits)}.")
        raw = Raw(*self._read(splits[self.train_split]), self._names(splits[self.train_split]))
        if self.test_split in splits:
            test_images, test_labels = self._read(splits[self.test_split])
            raw = attrs.evolve(raw, test_images=test_images, test_labels=test_labels)
        return assemble(
            self.path, raw, preprocessing=self.preprocessing, validation=self.validation, stream=stream, test=self.test, store=self.store
        )

    def _open(self) -> Any:
        try:
            import datasets  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise MissingDataError(
                "HuggingFace needs the library `datasets`, which is not installed.", fix="pip install 'distilkit[hf]'"
            ) from error
        place = folder(self.path)
        try:
            opened = datasets.load_from_disk(str(place)) if place.is_dir() else datasets.load_dataset(self.path, self.name)
        except (OSError, ValueError, RuntimeError) as error:
            why = " ".join(str(error).split())
            raise MissingDataError(f"The dataset {self.path!r} is not a folder and cannot be fetched from huggingface.co: {why}") from error
        return opened if isinstance(opened, dict) else {self.train_split: opened}

    def _read(self, split: Any) -> tuple[torch.Tensor, torch.Tensor]:
        for column in (self.image_column, self.label_column):
            if column not in split.column_names:
                raise CombinationError(f"{self.path} has no column {column!r}; it has: {', '.join(split.column_names)}.")
        images = np.empty((len(split), self.size, self.size, self.channels), np.uint8)
        for i, picture in enumerate(split[self.image_column]):
            images[i] = as_array(picture, self.size, fit=self.fit, channels=self.channels)
        return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.tensor(list(split[self.label_column]))

    def _names(self, split: Any) -> tuple[str, ...]:
        named = getattr(split.features[self.label_column], "names", None)
        return tuple(named) if named else tuple(str(c) for c in range(max(split[self.label_column]) + 1))

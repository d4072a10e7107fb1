"""The data bundle: three splits that are already preprocessed, each one tensor, as every data source gives it."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import attrs
import torch

from distilkit.data.preprocessing import Fitted
from distilkit.data.preprocessing.base import hash_tensor
from distilkit.errors import CombinationError
from distilkit.functional.streams import Stream


@attrs.frozen(eq=False)
class Split:
    """One part of a dataset, whole and in memory; there is no loader.

    Args:
        images: float32 (N, C, H, W), or (N, D) for plain feature vectors, preprocessed. With `store = "uint8"` of a source it is a
            `Pixels`, which gives them by an index, `images[rows]`, and has the shape, device and length of such a tensor.
        labels: int64 (N,), the class of each image.

    >>> split = Split(torch.zeros(4, 1, 8, 8), torch.tensor([0, 1, 0, 1]))
    >>> len(split), split.image_shape
    (4, (1, 8, 8))
    """

    images: torch.Tensor
    labels: torch.Tensor

    def __attrs_post_init__(self) -> None:
        if self.labels.shape != self.images.shape[:1]:
            raise CombinationError(
                f"images of shape {tuple(self.images.shape)} and labels of shape {tuple(self.labels.shape)} do not go together: "
                "there must be one label an image."
            )
        if self.labels.dtype != torch.int64:
            raise CombinationError(f"labels have dtype {self.labels.dtype}, but a split holds class numbers as int64.", fix="labels.long()")

    def __len__(self) -> int:
        return int(self.labels.shape[0])

    @property
    def image_shape(self) -> tuple[int, ...]:
        """The shape of one image: (C, H, W), or (D,) for feature vectors."""
        return tuple(self.images.shape[1:])

    def to(self, device: torch.device | str) -> Split:
        """Return the split on another device."""
        return Split(self.images.to(device), self.labels.to(device))


@attrs.frozen(eq=False)
class DataBundle:
    """A dataset that is ready for work: its three splits, its class names and the preprocessing that they went through.

    Args:
        name: name of the dataset, for titles and provenance.
        train: what a set is distilled from.
        validation: held out of the training images; choices are made on it. It may be empty.
        test: touched once, at the end.
        class_names: one name a class.
        preprocessing: fitted on `train` only.

    >>> from distilkit.data.preprocessing import Identity
    >>> part = Split(torch.zeros(2, 1, 8, 8), torch.tensor([0, 1]))
    >>> bundle = DataBundle("tiny", part, part, part, ("cat", "dog"), Identity())
    >>> bundle.num_classes, bundle.image_shape
    (2, (1, 8, 8))
    """

    name: str
    train: Split
    validation: Split
    test: Split
    class_names: tuple[str, ...]
    preprocessing: Fitted

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """The shape of one image: (C, H, W), or (D,) for feature vectors."""
        return self.train.image_shape

    def identity(self, *, images: bool) -> dict[str, Any]:
        """JSON-able words that tell this data from others: a shape, the labels of all splits and, where asked for, images.

        Args:
            images: name some thousand images of each split too. Without them the words are the same on every processor, of which one may
                round the preprocessing of images otherwise than another.
        """
        splits = (self.train, self.validation, self.test)
        labels = hash_tensor(torch.cat([split.labels.cpu() for split in splits]))
        found: dict[str, Any] = {"shape": list(self.train.images.shape), "labels": labels}
        if images:
            found["images"] = [hash_tensor(split.images[:: max(1, len(split) // 1000)]) for split in splits]
        return found

    def to(self, device: torch.device | str) -> DataBundle:
        """Return the bundle with all three splits on another device."""
        return attrs.evolve(self, train=self.train.to(device), validation=self.validation.to(device), test=self.test.to(device))


class DataSource(Protocol):
    """What a source of real data offers."""

    def load(self, stream: Stream, /) -> DataBundle:
        """Load the data, on the CPU. `stream` seeds the validation split; the test split must not depend on it."""
        ...


class Loaded(NamedTuple):
    """A source whose data is loaded already."""

    bundle: DataBundle

    def load(self, stream: Stream, /) -> DataBundle:
        """What is there."""
        return self.bundle

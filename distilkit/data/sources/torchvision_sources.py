"""The small benchmark datasets, through torchvision's own readers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple
from urllib.error import URLError

import numpy as np
import torch

from distilkit import fields
from distilkit.data.bundle import DataBundle
from distilkit.data.preprocessing import Preprocessing, Standardize
from distilkit.data.sources.assemble import Raw, Store, assemble, split_size, store_field
from distilkit.data.sources.missing import folder, missing
from distilkit.functional.streams import Stream


class _Recipe(NamedTuple):
    folder: str  # where torchvision looks, below root
    files: tuple[str, ...]
    site: str
    images: Callable[[Any], torch.Tensor]
    labels: str = "targets"
    class_names: Callable[[Any], Sequence[str]] | None = None  # None: they are the digits
    parts: tuple[str, Any, Any] = ("train", True, False)  # the argument that tells the two parts apart, and what it is


def _intact(path: Path, name: str) -> bool:
    """Whether a packed file is there and whole, so that torchvision will unpack it without a download."""
    from torchvision import datasets
    from torchvision.datasets.utils import check_integrity

    sums = dict(getattr(getattr(datasets, name), "resources", ()))
    return path.name in sums and bool(check_integrity(str(path), sums[path.name]))


def _grey(dataset: Any) -> torch.Tensor:
    images: torch.Tensor = dataset.data.unsqueeze(1)
    return images


def _channels_last(dataset: Any) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(dataset.data.transpose(0, 3, 1, 2)))


_IDX = tuple(f"{part}-{what}-ubyte" for part in ("train", "t10k") for what in ("images-idx3", "labels-idx1"))
_BATCHES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta")
_KRIZHEVSKY = "www.cs.toronto.edu/~kriz/cifar.html"


def _tensor(dataset: Any) -> torch.Tensor:
    return torch.from_numpy(dataset.data)


def _named(dataset: Any) -> Sequence[str]:
    names: Sequence[str] = dataset.classes
    return names


@fields.component
class _Torchvision:
    """One of torchvision's datasets: a subclass says where its files lie and what they hold."""

    _recipe: ClassVar[_Recipe]

    root: str = fields.text(default="data")
    download: bool = fields.flag(default=False)
    validation: float = fields.number(default=0.1, least=0)
    preprocessing: Preprocessing = fields.slot("preprocessing", default=Standardize())
    store: Store | None = store_field()

    def __attrs_post_init__(self) -> None:
        split_size("validation", self.validation)

    def load(self, stream: Stream) -> DataBundle:
        """Load; `stream` seeds the validation split only. Raises MissingDataError when the files are not there."""
        name = type(self).__name__
        return assemble(
            name, self._read(name), preprocessing=self.preprocessing, validation=self.validation, stream=stream, store=self.store
        )

    def _read(self, name: str) -> Raw:
        from torchvision import datasets  # here: it takes a second to import

        recipe, root = self._recipe, folder(self.root)
        place = root / recipe.folder
        ready = all((place / f).is_file() for f in recipe.files)
        packed = not ready and all(_intact(place / f"{f}.gz", name) for f in recipe.files)
        if not (ready or packed or self.download):
            raise missing(name, place, recipe.files, site=recipe.site, fix=f'dk.{name}(root="{self.root}", download=True)')
        argument, *parts = recipe.parts
        try:  # with download on, torchvision unpacks files that are there already, and does not touch the network for them
            train, test = (getattr(datasets, name)(str(root), download=self.download or packed, **{argument: part}) for part in parts)
        except (RuntimeError, URLError, OSError) as error:
            raise missing(name, place, recipe.files, site=recipe.site, why=str(error)) from error
        names = tuple(recipe.class_names(train) if recipe.class_names else map(str, range(10)))
        labels = [torch.as_tensor(getattr(part, recipe.labels)) for part in (train, test)]
        return Raw(recipe.images(train), labels[0], names, recipe.images(test), labels[1])


@fields.component
class MNIST(_Torchvision):
    """MNIST: 60,000 + 10,000 handwritten digits, 1 x 28 x 28 (LeCun, Cortes and Burges).

    Args:
        root: folder that holds `MNIST/raw`, as torchvision has it; "~" and relative paths are fine.
        download: let torchvision fetch the files when they are missing.
        validation: what to hold out of the training images: a fraction of them below 1, or a count.
        preprocessing: fitted on the training images only.
        store: "uint8" keeps images as they were read in memory, a quarter of float32, and preprocesses each batch; float32 when left out.
    """

    _recipe = _Recipe("MNIST/raw", _IDX, "yann.lecun.com/exdb/mnist", _grey)


@fields.component
class FashionMNIST(_Torchvision):
    """Fashion-MNIST: 60,000 + 10,000 articles of clothing, 1 x 28 x 28 (Xiao, Rasul and Vollgraf, 2017).

    Args:
        root: folder that holds `FashionMNIST/raw`, as torchvision has it; "~" and relative paths are fine.
        download: let torchvision fetch the files when they are missing.
        validation: what to hold out of the training images: a fraction of them below 1, or a count.
        preprocessing: fitted on the training images only.
        store: "uint8" keeps images as they were read in memory, a quarter of float32, and preprocesses each batch; float32 when left out.
    """

    _recipe = _Recipe("FashionMNIST/raw", _IDX, "github.com/zalandoresearch/fashion-mnist", _grey, class_names=_named)


@fields.component
class CIFAR10(_Torchvision):
    """CIFAR-10: 50,000 + 10,000 photographs in 10 classes, 3 x 32 x 32 (Krizhevsky, 2009).

    Args:
        root: folder that holds `cifar-10-batches-py`, as torchvision has it; "~" and relative paths are fine.
        download: let torchvision fetch the files when they are missing.
        validation: what to hold out of the training images: a fraction of them below 1, or a count.
        preprocessing: fitted on the training images only; `Whiten()` for the paper's recipes.
        store: "uint8" keeps images as they were read in memory, a quarter of float32, and preprocesses each batch; float32 when left out.
    """

    _recipe = _Recipe("cifar-10-batches-py", _BATCHES, _KRIZHEVSKY, _channels_last, class_names=_named)


@fields.component
class CIFAR100(_Torchvision):
    """CIFAR-100: 50,000 + 10,000 photographs in 100 classes, 3 x 32 x 32 (Krizhevsky, 2009).

    Args:
        root: folder that holds `cifar-100-python`, as torchvision has it; "~" and relative paths are fine.
        download: let torchvision fetch the files when they are missing.
        validation: what to hold out of the training images: a fraction of them below 1, or a count.
        preprocessing: fitted on the training images only; `Whiten()` for the paper's recipes.
        store: "uint8" keeps images as they were read in memory, a quarter of float32, and preprocesses each batch; float32 when left out.
    """

    _recipe = _Recipe("cifar-100-python", ("train", "test", "meta"), _KRIZHEVSKY, _channels_last, class_names=_named)


@fields.component
class SVHN(_Torchvision):
    """Street View House Numbers, cropped digits: 73,257 + 26,032 in uneven classes, 3 x 32 x 32 (Netzer et al., 2011).

    Args:
        root: folder that holds `train_32x32.mat` and `test_32x32.mat`; "~" and relative paths are fine.
        download: let torchvision fetch the files when they are missing.
        validation: what to hold out of the training images: a fraction of them below 1, or a count.
        preprocessing: fitted on the training images only.
        store: "uint8" keeps images as they were read in memory, a quarter of float32, and preprocesses each batch; float32 when left out.
    """

    _recipe = _Recipe(
        "",
        ("train_32x32.mat", "test_32x32.mat"),
        "ufldl.stanford.edu/housenumbers",
        _tensor,
        labels="labels",
        parts=("split", "train", "test"),
    )

"""The small benchmark datasets, through torchvision's own readers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.error import URLError

import attrs
import numpy as np
import torch

from distilkit import fields
from distilkit.data.bundle import DataBundle
from distilkit.data.preprocessing import Standardize
from distilkit.data.sources.assemble import Raw, assemble, split_size
from distilkit.data.sources.missing import folder, missing
from distilkit.functional.streams import Stream


@attrs.frozen
class _Recipe:
    folder: str  # where torchvision looks, below root
    files: tuple[str, ...]
    site: str
    open: Callable[[str, bool, bool], Any]  # (root, train, download)
    images: Callable[[Any], torch.Tensor]
    labels: str = "targets"
    class_names: Callable[[Any], Sequence[str]] = lambda dataset: [str(d) for d in range(10)]


def _load(name: str, root: str, download: bool) -> Raw:
    recipe = _RECIPES[name]
    place = folder(root) / recipe.folder
    ready = all((place / f).is_file() for f in recipe.files)
    packed = not ready and all(_intact(place / f"{f}.gz", name) for f in recipe.files)
    if not (ready or packed or download):
        raise missing(name, place, recipe.files, site=recipe.site, fix=f'dk.{name}(root="{root}", download=True)')
    try:  # with download on, torchvision unpacks files that are there already, and does not touch the network for them
        train, test = (recipe.open(str(folder(root)), part, download or packed) for part in (True, False))
    except (RuntimeError, URLError, OSError) as error:
        raise missing(name, place, recipe.files, site=recipe.site, why=str(error)) from error
    names = tuple(recipe.class_names(train))
    labels = (torch.as_tensor(getattr(part, recipe.labels)) for part in (train, test))
    return Raw(recipe.images(train), next(labels), names, recipe.images(test), next(labels))


def _intact(path: Path, name: str) -> bool:
    """Whether a packed file is there and whole, so that torchvision will unpack it without a download."""
    from torchvision import datasets
    from torchvision.datasets.utils import check_integrity

    sums = dict(getattr(getattr(datasets, name), "resources", ()))
    return path.name in sums and bool(check_integrity(str(path), sums[path.name]))


def _opener(name: str) -> Callable[[str, bool, bool], Any]:
    def make(root: str, train: bool, download: bool) -> Any:
        from torchvision import datasets  # here: it takes a second to import

        which: dict[str, Any] = {"split": "train" if train else "test"} if name == "SVHN" else {"train": train}
        return getattr(datasets, name)(root, download=download, **which)

    return make


def _grey(dataset: Any) -> torch.Tensor:
    images: torch.Tensor = dataset.data.unsqueeze(1)
    return images


def _channels_last(dataset: Any) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(dataset.data.transpose(0, 3, 1, 2)))


_IDX = tuple(f"{part}-{what}-ubyte" for part in ("train", "t10k") for what in ("images-idx3", "labels-idx1"))
_BATCHES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta")

_RECIPES: dict[str, _Recipe] = {
    "MNIST": _Recipe("MNIST/raw", _IDX, "yann.lecun.com/exdb/mnist", _opener("MNIST"), _grey),
    "FashionMNIST": _Recipe(
        "FashionMNIST/raw",
        _IDX,
        "github.com/zalandoresearch/fashion-mnist",
        _opener("FashionMNIST"),
        _grey,
        class_names=lambda d: d.classes,
    ),
    "CIFAR10": _Recipe(
        "cifar-10-batches-py",
        _BATCHES,
        "www.cs.toronto.edu/~kriz/cifar.html",
        _opener("CIFAR10"),
        _channels_last,
        class_names=lambda d: d.classes,
    ),
    "CIFAR100": _Recipe(
        "cifar-100-python",
        ("train", "test", "meta"),
        "www.cs.toronto.edu/~kriz/cifar.html",
        _opener("CIFAR100"),
        _channels_last,
        class_names=lambda d: d.classes,
    ),
    "SVHN": _Recipe(
        "",
        ("train_32x32.mat", "test_32x32.mat"),
        "ufldl.stanford.edu/housenumbers",
        _opener("SVHN"),
        lambda d: torch.from_numpy(d.data),
        labels="labels",
    ),
}


@attrs.frozen
class MNIST:
    """MNIST: 60,000 + 10,000 handwritten digits, 1 x 28 x 28 (LeCun, Cortes and Burges).

    Args:
        root: folder that holds `MNIST/raw`, as torchvision has it; "~" and relative paths are fine.
        download: let torchvision fetch the files when they are missing.
        validation: what to hold out of the training images: a fraction of them below 1, or a count.
        preprocessing: fitted on the training images only.
    """

    root: str = fields.text("data")
    download: bool = fields.flag(False)
    validation: float = fields.number(0.1, least=0)
    preprocessing: Any = fields.component("preprocessing", Standardize(), methods=("fit",))

    def __attrs_post_init__(self) -> None:
        split_size("validation", self.validation)

    def load(self, stream: Stream) -> DataBundle:
        """Load; `stream` seeds the validation split only. Raises MissingDataError when the files are not there."""
        return _bundle("MNIST", self, stream)


@attrs.frozen
class FashionMNIST:
    """Fashion-MNIST: 60,000 + 10,000 articles of clothing, 1 x 28 x 28 (Xiao, Rasul and Vollgraf, 2017).

    Args:
        root: folder that holds `FashionMNIST/raw`, as torchvision has it; "~" and relative paths are fine.
        download: let torchvision fetch the files when they are missing.
        validation: what to hold out of the training images: a fraction of them below 1, or a count.
        preprocessing: fitted on the training images only.
    """

    root: str = fields.text("data")
    download: bool = fields.flag(False)
    validation: float = fields.number(0.1, least=0)
    preprocessing: Any = fields.component("preprocessing", Standardize(), methods=("fit",))

    def __attrs_post_init__(self) -> None:
        split_size("validation", self.validation)

    def load(self, stream: Stream) -> DataBundle:
        """Load; `stream` seeds the validation split only. Raises MissingDataError when the files are not there."""
        return _bundle("FashionMNIST", self, stream)


@attrs.frozen
class CIFAR10:
    """CIFAR-10: 50,000 + 10,000 photographs in 10 classes, 3 x 32 x 32 (Krizhevsky, 2009).

    Args:
        root: folder that holds `cifar-10-batches-py`, as torchvision has it; "~" and relative paths are fine.
        download: let torchvision fetch the files when they are missing.
        validation: what to hold out of the training images: a fraction of them below 1, or a count.
        preprocessing: fitted on the training images only; `Whiten()` for the paper's recipes.
    """

    root: str = fields.text("data")
    download: bool = fields.flag(False)
    validation: float = fields.number(0.1, least=0)
    preprocessing: Any = fields.component("preprocessing", Standardize(), methods=("fit",))

    def __attrs_post_init__(self) -> None:
        split_size("validation", self.validation)

    def load(self, stream: Stream) -> DataBundle:
        """Load; `stream` seeds the validation split only. Raises MissingDataError when the files are not there."""
        return _bundle("CIFAR10", self, stream)


@attrs.frozen
class CIFAR100:
    """CIFAR-100: 50,000 + 10,000 photographs in 100 classes, 3 x 32 x 32 (Krizhevsky, 2009).

    Args:
        root: folder that holds `cifar-100-python`, as torchvision has it; "~" and relative paths are fine.
        download: let torchvision fetch the files when they are missing.
        validation: what to hold out of the training images: a fraction of them below 1, or a count.
        preprocessing: fitted on the training images only; `Whiten()` for the paper's recipes.
    """

    root: str = fields.text("data")
    download: bool = fields.flag(False)
    validation: float = fields.number(0.1, least=0)
    preprocessing: Any = fields.component("preprocessing", Standardize(), methods=("fit",))

    def __attrs_post_init__(self) -> None:
        split_size("validation", self.validation)

    def load(self, stream: Stream) -> DataBundle:
        """Load; `stream` seeds the validation split only. Raises MissingDataError when the files are not there."""
        return _bundle("CIFAR100", self, stream)


@attrs.frozen
class SVHN:
    """Street View House Numbers, cropped digits: 73,257 + 26,032 in uneven classes, 3 x 32 x 32 (Netzer et al., 2011).

    Args:
        root: folder that holds `train_32x32.mat` and `test_32x32.mat`; "~" and relative paths are fine.
        download: let torchvision fetch the files when they are missing.
        validation: what to hold out of the training images: a fraction of them below 1, or a count.
        preprocessing: fitted on the training images only.
    """

    root: str = fields.text("data")
    download: bool = fields.flag(False)
    validation: float = fields.number(0.1, least=0)
    preprocessing: Any = fields.component("preprocessing", Standardize(), methods=("fit",))

    def __attrs_post_init__(self) -> None:
        split_size("validation", self.validation)

    def load(self, stream: Stream) -> DataBundle:
        """Load; `stream` seeds the validation split only. Raises MissingDataError when the files are not there."""
        return _bundle("SVHN", self, stream)


def _bundle(name: str, source: Any, stream: Stream) -> DataBundle:
    raw = _load(name, source.root, source.download)
    return assemble(name, raw, preprocessing=source.preprocessing, validation=source.validation, stream=stream)

"""Data: sources, preprocessing with an inverse, augmentation with a sample/apply split, and the distilled set itself."""

from distilkit.data.augmentation import DSA, Augmentation, FlipRotate
from distilkit.data.bundle import DataBundle, DataSource, Split
from distilkit.data.distilled import DistilledSet
from distilkit.data.preprocessing import Fitted, Identity, KorniaZCA, Preprocessing, Standardize, Whiten, from_arrays, require_same
from distilkit.data.sources import (
    CIFAR10,
    CIFAR100,
    CUB200,
    MNIST,
    SVHN,
    Arrays,
    Digits,
    FashionMNIST,
    HuggingFace,
    ImageFolder,
    TinyImageNet,
)

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "CUB200",
    "DSA",
    "MNIST",
    "SVHN",
    "Arrays",
    "Augmentation",
    "DataBundle",
    "DataSource",
    "Digits",
    "DistilledSet",
    "FashionMNIST",
    "Fitted",
    "FlipRotate",
    "HuggingFace",
    "Identity",
    "ImageFolder",
    "KorniaZCA",
    "Preprocessing",
    "Split",
    "Standardize",
    "TinyImageNet",
    "Whiten",
    "from_arrays",
    "require_same",
]

"""Data sources: frozen declarations whose `load(stream)` gives a `DataBundle`."""

from distilkit.data.sources.arrays import Arrays
from distilkit.data.sources.digits import Digits
from distilkit.data.sources.folders import CUB200, ImageFolder, TinyImageNet
from distilkit.data.sources.huggingface import HuggingFace
from distilkit.data.sources.torchvision_sources import CIFAR10, CIFAR100, MNIST, SVHN, FashionMNIST

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "CUB200",
    "MNIST",
    "SVHN",
    "Arrays",
    "Digits",
    "FashionMNIST",
    "HuggingFace",
    "ImageFolder",
    "TinyImageNet",
]

"""The table of kinds: which class a `kind` in a spec stands for, slot by slot.

The table is explicit, and a class is imported only when its kind is used: reading this module loads nothing, torch least of all. A
new component becomes usable from TOML by its name in `distilkit/__init__.pyi`, which says where it lives, and one new entry here.
"""

from __future__ import annotations

import importlib
from typing import Any

ROOT = "distilkit.distiller:Distiller"
"""The class of a whole spec."""

HOME = "distilkit"
"""Whose public names the kinds are; where each class lives stands in its `__init__.pyi`."""

KINDS: dict[str, tuple[str, ...]] = {
    "data": (
        "Digits",
        "MNIST",
        "FashionMNIST",
        "CIFAR10",
        "CIFAR100",
        "SVHN",
        "TinyImageNet",
        "CUB200",
        "ImageFolder",
        "Arrays",
        "HuggingFace",
    ),
    "preprocessing": ("Identity", "Standardize", "Whiten", "KorniaZCA"),
    "augmentation": ("FlipRotate", "DSA"),
    "network": ("ConvNet", "MLP", "ResNet", "VGG", "AlexNet"),
    "optimizer": ("SGD", "Adam", "AdamW", "RMSProp"),
    "loss": ("CrossEntropy", "MSE"),
    "adjoint": ("ReplayAdjoint", "AutogradAdjoint"),
    "truncation": ("FullUnroll", "TailTruncation", "RandomHorizon", "RandomTruncation", "FixedStart", "Growing", "AdaptiveTruncation"),
    "schedule": ("Constant", "Cosine"),
}

PYTHON_SLOTS = tuple(KINDS)
"""The slots that also take `kind = "python"` (`distilkit.spec.python`)."""


def import_name(target: str) -> Any:
    """Import what `"module:name"` stands for.

    >>> import_name("distilkit.errors:listing")(["a", "b"])
    'a or b'
    """
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


def resolve(slot: str, kind: str) -> type:
    """Return the class of a kind, importing its module now.

    Args:
        slot: a key of `KINDS`, such as "network".
        kind: one of `KINDS[slot]`, such as "ConvNet".
    """
    assert kind in KINDS[slot], (slot, kind)
    cls: type = import_name(f"{HOME}:{kind}")
    return cls


def kind_of(slot: str, value: object) -> str | None:
    """Return the kind whose class is exactly the class of `value`, or None when the slot has no such kind."""
    name = type(value).__name__
    return name if name in KINDS[slot] and resolve(slot, name) is type(value) else None

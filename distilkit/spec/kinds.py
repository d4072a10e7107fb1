"""The table of kinds: which class a `kind` in a spec stands for, slot by slot.

The table is explicit, and a class is imported only when its kind is used: reading this module loads nothing, torch
least of all. A new component becomes usable from TOML by one new entry here.
"""

from __future__ import annotations

import importlib
from typing import Any

ROOT = "distilkit.distiller:Distiller"
"""The class of a whole spec."""


def _in(module: str, *names: str) -> dict[str, str]:
    return {name: f"{module}:{name}" for name in names}


KINDS: dict[str, dict[str, str]] = {
    "data": _in(
        "distilkit.data.sources",
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
    "preprocessing": _in("distilkit.data.preprocessing", "Identity", "Standardize", "Whiten", "KorniaZCA"),
    "augmentation": _in("distilkit.data.augmentation", "FlipRotate", "DSA"),
    "network": _in("distilkit.networks", "ConvNet", "MLP", "ResNet", "VGG", "AlexNet"),
    "optimizer": _in("distilkit.functional.optimizers", "SGD", "Adam", "AdamW", "RMSProp"),
    "loss": _in("distilkit.functional.losses", "CrossEntropy", "MSE"),
    "adjoint": _in("distilkit.unroll.adjoints", "ReplayAdjoint", "AutogradAdjoint"),
    "truncation": _in("distilkit.truncation", "FullUnroll", "TailTruncation", "RandomHorizon", "RandomTruncation", "FixedStart"),
    "schedule": _in("distilkit.functional.schedules", "Constant", "Cosine"),
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
        kind: a key of `KINDS[slot]`, such as "ConvNet".
    """
    cls: type = import_name(KINDS[slot][kind])
    return cls


def kind_of(slot: str, value: object) -> str | None:
    """Return the kind whose class is exactly the class of `value`, or None when the slot has no such kind."""
    for kind, target in KINDS[slot].items():
        if target.partition(":")[2] == type(value).__name__ and resolve(slot, kind) is type(value):
            return kind
    return None

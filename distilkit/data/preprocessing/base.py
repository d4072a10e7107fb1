"""What every fitted preprocessing offers, and how its content is named by a hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import torch

Arrays = dict[str, np.ndarray[Any, Any]]


class Preprocessing(Protocol):
    """What a preprocessing offers: a declaration, or one that is fitted already."""

    def fit(self, images: torch.Tensor, /) -> Fitted:
        """Fit to training images in [0, 1], (N, C, H, W) or (N, D)."""
        ...


class Fitted(Protocol):
    """A preprocessing that has seen its training images.

    It is also a declaration whose `fit` gives itself back, so that real data can be loaded in the space of an existing
    distilled set: `CIFAR10(preprocessing=distilled.preprocessing)`.
    """

    def fit(self, images: torch.Tensor, /) -> Fitted:
        """Return self: what is fitted stays as it is. Only a `Refittable`, whose arrays are not at hand, is fitted here."""
        ...

    def forward(self, images: torch.Tensor, /) -> torch.Tensor:
        """From images in [0, 1], (N, C, H, W), to the space in which networks see them, float32."""
        ...

    def inverse(self, x: torch.Tensor, /) -> torch.Tensor:
        """Back to images on the scale [0, 1], as near as it can be; not clipped."""
        ...

    def to_arrays(self) -> tuple[dict[str, Any], Arrays]:
        """A JSON-able dict with "kind", and arrays by name: all that `from_arrays` needs."""
        ...

    def fingerprint(self) -> str:
        """A hash that is the same for the same preprocessing, on every machine."""
        ...


BLOCK = 4096  # images that are taken at one time: 100 MB in float64 for CIFAR


def blocks(images: torch.Tensor) -> Iterator[torch.Tensor]:
    """Images in parts; of `Pixels`, that stand for a tensor, each part is made when it is asked for."""
    return (images[i : i + BLOCK] for i in range(0, len(images), BLOCK))


def hash_tensor(images: torch.Tensor) -> str:
    """Name the content of a tensor, or of what stands for one: 32 hexadecimal digits from its bytes, dtype and shape.

    >>> hash_tensor(torch.zeros(2)) == hash_tensor(torch.zeros(2)), hash_tensor(torch.zeros(2)) == hash_tensor(torch.zeros(1, 2))
    (True, False)
    """
    name = "bfloat16" if images.dtype == torch.bfloat16 else torch.empty(0, dtype=images.dtype).numpy().dtype.str  # numpy has none
    digest = hashlib.blake2b(f"{name}{tuple(images.shape)}".encode(), digest_size=16)
    for part in blocks(images) if images.ndim else [images]:
        digest.update(part.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def hash_words(words: Mapping[str, Any]) -> str:
    """Name a JSON-able dict by 32 hexadecimal digits.

    >>> hash_words({"a": 1, "b": 2}) == hash_words({"b": 2, "a": 1})
    True
    """
    return hashlib.blake2b(json.dumps(words, sort_keys=True).encode(), digest_size=16).hexdigest()


def hash_arrays(arrays: Arrays) -> str:
    """Name arrays by 32 hexadecimal digits; for fitted values that come from elsewhere, without their training images."""
    return hash_words({name: hash_tensor(torch.from_numpy(np.ascontiguousarray(array))) for name, array in arrays.items()})

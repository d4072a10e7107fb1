"""Augmentation: `sample` draws small tensors from a stream, `apply` is a pure function that can be replayed.

`apply` is vectorised over the batch and differentiable in the images twice and in forward mode; it can be vmapped over
images and draws.
"""

from distilkit.data.augmentation.base import Augmentation
from distilkit.data.augmentation.dsa import DSA
from distilkit.data.augmentation.flip_rotate import FlipRotate

__all__ = ["DSA", "Augmentation", "FlipRotate"]

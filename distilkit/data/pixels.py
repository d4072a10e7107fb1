"""Real images that stay the bytes that they were read as, and go through their preprocessing when they are taken."""

from __future__ import annotations

from collections.abc import Iterator

import attrs
import torch
from torch import Tensor

from distilkit.data.preprocessing.base import Fitted


@attrs.frozen(eq=False)
class Pixels:
    """Stands for a tensor of preprocessed images: what an index takes of it is what it would take of the tensor.

    Args:
        stored: uint8 (N, C, H, W) or (N, D).
        preprocessing: fitted; it works on each image by itself.

    >>> from distilkit.data.preprocessing import Identity
    >>> images = Pixels(torch.tensor([[0, 51], [102, 255]], dtype=torch.uint8), Identity())
    >>> images[torch.tensor([1])], images.shape, images.nbytes
    (tensor([[0.4000, 1.0000]]), torch.Size([2, 2]), 4)
    """

    stored: Tensor
    preprocessing: Fitted

    def __len__(self) -> int:
        return len(self.stored)

    def __getitem__(self, rows: int | slice | Tensor) -> Tensor:
        """Preprocessed images, float32, of the shape that indexing a tensor gives."""
        taken = self.stored[rows]
        flat = taken.reshape(-1, *self.shape[1:]).to(torch.float32) / 255
        return self.preprocessing.forward(flat).reshape(taken.shape)

    @property
    def shape(self) -> torch.Size:
        """That of the tensor."""
        return self.stored.shape

    @property
    def ndim(self) -> int:
        """That of the tensor."""
        return self.stored.ndim

    @property
    def dtype(self) -> torch.dtype:
        """Of what is taken."""
        return torch.float32

    @property
    def device(self) -> torch.device:
        """Where the images lie, and are preprocessed."""
        return self.stored.device

    @property
    def nbytes(self) -> int:
        """Bytes that are held."""
        return self.stored.nbytes

    def numel(self) -> int:
        """How many numbers there are."""
        return self.stored.numel()

    def to(self, device: torch.device | str) -> Pixels:
        """The same on a device."""
        return attrs.evolve(self, stored=self.stored.to(device))

    def tensor_split(self, parts: int) -> Iterator[Tensor]:
        """Preprocessed images in so many parts, each made when it is asked for."""
        for part in self.stored.tensor_split(parts):
            yield attrs.evolve(self, stored=part)[:]

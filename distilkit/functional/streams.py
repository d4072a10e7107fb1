"""Named random streams: all randomness in distilkit comes from (seed, name, step), never from a global generator.

A stream is a value, like a key in JAX. Folding a name or a number into it gives another stream; asking the same stream
for numbers twice gives the same numbers. So a resumed run needs no generator state, evaluating more often cannot change
the distilled set, and the draw of an inner step can be made again in the backward sweep.
"""

from __future__ import annotations

import hashlib
import operator

import attrs
import torch


@attrs.frozen
class Stream:
    """A source of reproducible random numbers, named by a seed and a path.

    Args:
        seed: any whole number.
        path: the names and numbers folded in so far.

    Draws are made on the CPU, whatever the device of the work, so that every device sees the same numbers.

    >>> a = Stream(0).fold("augment").fold(3)
    >>> bool((a.normal(4) == Stream(0).fold("augment").fold(3).normal(4)).all())
    True
    """

    seed: int
    path: tuple[str | int, ...] = ()

    def fold(self, key: str | int) -> Stream:
        """Return the stream whose path has `key` appended. A name and a number never collide; 3 and np.int64(3) are one."""
        return Stream(self.seed, (*self.path, key if isinstance(key, str) else operator.index(key)))

    def integer_seed(self) -> int:
        """A 63-bit seed for this stream: blake2b of seed and path, so neighbours share nothing."""
        words = "\x1f".join(f"{type(k).__name__}:{k}" for k in (self.seed, *self.path))
        return int.from_bytes(hashlib.blake2b(words.encode(), digest_size=8).digest(), "little") >> 1

    def generator(self) -> torch.Generator:
        """A fresh CPU generator at the start of this stream."""
        return torch.Generator().manual_seed(self.integer_seed())

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Standard normal numbers of the given shape."""
        return torch.randn(shape, generator=self.generator(), dtype=dtype)

    def uniform(self, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Uniform numbers on [0, 1) of the given shape."""
        return torch.rand(shape, generator=self.generator(), dtype=dtype)

    def integers(self, high: int, *shape: int) -> torch.Tensor:
        """Uniform int64 numbers on 0..high-1 of the given shape."""
        return torch.randint(high, shape, generator=self.generator())

    def permutation(self, n: int) -> torch.Tensor:
        """A uniform random order of 0..n-1, int64 (n,)."""
        return torch.randperm(n, generator=self.generator())

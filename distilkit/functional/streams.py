"""Named random streams: all randomness in distilkit comes from (seed, name, step), never from a global generator.

A stream is a value, like a key in JAX. Folding a name or a number into it gives another stream; asking the same stream
for numbers twice gives the same numbers. So a resumed run needs no generator state, evaluating more often cannot change
the distilled set, and the draw of an inner step can be made again in the backward sweep.
"""

from __future__ import annotations

import hashlib
import operator
from functools import cache

import attrs
import torch

LARGEST = 2**32 // 20  # from so many numbers on torch shuffles in another way


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

    def first_of_permutation(self, n: int, count: int) -> torch.Tensor:
        """The first `count` of `permutation(n)`, int64 (count,): a draw without replacement, which does not shuffle the rest.

        >>> bool((Stream(3).first_of_permutation(45_000, 128) == Stream(3).permutation(45_000)[:128]).all())
        True
        """
        if n < 4 * count or n >= LARGEST or not _shuffles_as_known():
            return self.permutation(n)[:count].clone()  # a view would hold all of it
        return _first_swaps(self.generator(), n, count)


@attrs.frozen
class Streams:
    """Several streams that are asked together: what each of them gives, stacked, with one more dimension in front.

    What is then worked out of the numbers is worked out once for all, where it takes broadcasting.

    Args:
        each: the streams.

    >>> both = Streams((Stream(0), Stream(1))).fold("x").normal(3)
    >>> both.shape, bool((both[1] == Stream(1).fold("x").normal(3)).all())
    (torch.Size([2, 3]), True)
    """

    each: tuple[Stream, ...]

    def fold(self, key: str | int) -> Streams:
        """Each with `key` appended."""
        return Streams(tuple(one.fold(key) for one in self.each))

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """As of a `Stream`, (streams, ...)."""
        return torch.stack([one.normal(*shape, dtype=dtype) for one in self.each])

    def uniform(self, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """As of a `Stream`, (streams, ...)."""
        return torch.stack([one.uniform(*shape, dtype=dtype) for one in self.each])

    def integers(self, high: int, *shape: int) -> torch.Tensor:
        """As of a `Stream`, (streams, ...)."""
        return torch.stack([one.integers(high, *shape) for one in self.each])

    def permutation(self, n: int) -> torch.Tensor:
        """As of a `Stream`, (streams, n)."""
        return torch.stack([one.permutation(n) for one in self.each])


AnyStream = Stream | Streams


def _first_swaps(generator: torch.Generator, n: int, count: int) -> torch.Tensor:
    """The first of torch.randperm, which swaps place i = 0, 1, ... with one from i on, by one 32-bit word of the generator each.

    So the first places are done after as many swaps. A number of 64 bits is two such words, the high one first.
    """
    words = torch.empty(-(-count // 2), dtype=torch.int64).random_(-(2**63), None, generator=generator)
    halves = torch.stack([words >> 32, words], 1).flatten()[:count] & 0xFFFFFFFF
    moved: dict[int, int] = {}  # what lies where something else lay at first
    rows = []
    for i, word in enumerate(halves.tolist()):
        place = i + word % (n - i)
        rows.append(moved.get(place, place))
        moved[place] = moved.get(i, i)
    return torch.tensor(rows, dtype=torch.int64)


@cache
def _shuffles_as_known() -> bool:
    """Whether this torch shuffles as `_first_swaps` has it: seen on an example, since torch promises nothing of the kind."""
    whole, few = (torch.Generator().manual_seed(1) for _ in range(2))
    return torch.equal(torch.randperm(1000, generator=whole)[:100], _first_swaps(few, 1000, 100))

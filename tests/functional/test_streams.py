"""Streams: several that are asked together give what each gives, and a draw without replacement is the beginning of a permutation."""

import pytest
import torch

from distilkit.functional import streams
from distilkit.functional.streams import Stream, Streams

ASKED = {
    "normal": lambda stream: stream.normal(3, 2),
    "normal, of many": lambda stream: stream.normal(40, dtype=torch.float64),
    "uniform": lambda stream: stream.fold("x").uniform(5),
    "integers": lambda stream: stream.integers(7, 2, 2),
    "permutation": lambda stream: stream.fold(2).permutation(9),
}


@pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED)
def test_several_give_what_each_gives(asked):
    each = [Stream(3).fold(k) for k in range(4)]
    assert torch.equal(asked(Streams(tuple(each))), torch.stack([asked(one) for one in each]))


@pytest.mark.parametrize(("n", "count"), [(45_000, 128), (45_000, 127), (1000, 1), (400, 100), (399, 100), (10, 10), (5, 9), (1, 1)])
def test_the_first_rows_of_a_permutation(n, count):
    for k in range(5):
        assert torch.equal(Stream(k).first_of_permutation(n, count), Stream(k).permutation(n)[:count])


def test_a_torch_that_shuffles_otherwise_is_asked_for_all(monkeypatch):
    """And it is seen, where what we know of its shuffle does not hold."""
    first = streams._first_swaps
    monkeypatch.setattr(streams, "_first_swaps", lambda generator, n, count: first(generator, n, count).flip(0))
    streams._shuffles_as_known.cache_clear()
    assert torch.equal(Stream(0).first_of_permutation(45_000, 128), Stream(0).permutation(45_000)[:128])
    assert not streams._shuffles_as_known()
    streams._shuffles_as_known.cache_clear()
    monkeypatch.undo()
    assert streams._shuffles_as_known()

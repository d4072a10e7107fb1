"""A GPU's CUDA graphs on a CPU: what is captured is run again, in memory of its own that anything may overwrite between two replays.

A capture records every operation and the tensor that it gave. A replay first fills the memory of all graphs of the pool with NaN, as
another graph of the pool might have, then does the operations again on the same tensors. So a result that is kept without a copy turns to
NaN, a tensor that was made outside and is not an input keeps what it was, and what makes the host wait ends the capture as on a card.
"""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "randperm")


def storage(x: torch.Tensor) -> int:
    return x.untyped_storage().data_ptr()


class _Recorder(TorchDispatchMode):
    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = graph

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function._schema.name.rpartition("::")[2]
        if name in WAITS or (name in ("index", "index_put") and any(x is not None and x.dtype == torch.bool for x in args[1])):
            raise RuntimeError("operation not permitted when stream is capturing")
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        given = {storage(x) for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        made = [x for x in tree_leaves(result) if isinstance(x, torch.Tensor)]
        if all(storage(x) in given for x in made):  # a view, which stays one; or an operation in place
            if function._schema.is_mutable:
                self.graph.calls.append((function, args, kwargs, None))
            return result
        self.graph.calls.append((function, args, kwargs, made))
        self.graph.memory += made
        return result


class Graph:
    """A captured graph."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, Any, Any, list[torch.Tensor] | None]] = []
        self.memory: list[torch.Tensor] = []
        self.card: Card
        self.pool: Any = None

    def replay(self) -> None:
        self.card.replays += 1
        with torch.no_grad():
            for graph in self.card.pools[self.pool]:
                for x in graph.memory:
                    x.fill_(torch.nan if x.is_floating_point() else 1)
            for function, args, kwargs, made in self.calls:
                result = function(*args, **kwargs)
                if made is not None:
                    for place, value in zip(made, (x for x in tree_leaves(result) if isinstance(x, torch.Tensor)), strict=True):
                        place.copy_(value)


class Card:
    """What a capture asks of torch.cuda.

    captures, replays: how many. breaks: an error to end captures with, or None. pools: graphs by pool. streams: made so far.
    """

    def __init__(self) -> None:
        self.captures = self.replays = 0
        self.breaks: Exception | None = None
        self.pools: dict[Any, list[Graph]] = {}
        self.streams: list[Any] = []
        self.used: list[Any] = []  # the stream of each capture

    @contextmanager
    def graph(self, recorded: Graph, pool: Any = None, stream: Any = None) -> Any:
        self.captures += 1
        self.used.append(stream)
        recorded.card, recorded.pool = self, pool
        self.pools.setdefault(pool, []).append(recorded)
        with _Recorder(recorded):
            yield
        if self.breaks is not None:
            raise self.breaks

    def stream(self, device: Any) -> Any:
        self.streams.append(SimpleNamespace(wait_stream=lambda other: None))
        return self.streams[-1]

    def insert(self, monkeypatch: Any) -> Card:
        """Put it in the place of torch.cuda."""
        current = SimpleNamespace(wait_stream=lambda other: None)
        for name in ("device", "stream"):
            monkeypatch.setattr(torch.cuda, name, nullcontext)
        monkeypatch.setattr(torch.cuda, "Stream", self.stream)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current)
        monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
        monkeypatch.setattr(torch.cuda, "graph", self.graph)
        handles = iter(range(10**6))
        monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, next(handles)))
        return self

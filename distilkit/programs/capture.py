"""CUDA graphs of recorded programs: what one can hold, and how it is captured.

A capture that fails half-way leaves a process in which torch can do little more on that GPU: the capture's stream stays the current one,
and later captures die. So a list is looked through first, and falls back if it has something that a graph cannot hold. A capture that
fails all the same is an error.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from distilkit.errors import GradientError

# The host waits for what these give: a number, or how large the result is.
WAITS = {"_local_scalar_dense", "item", "equal", "is_nonzero", "nonzero", "masked_select", "_unique2", "unique_dim", "bincount", "randperm"}
INDEXES = {"index", "_unsafe_index", "index_put", "index_put_", "_index_put_impl_"}
COPIES = {"_to_copy", "copy", "copy_"}


class CaptureError(GradientError):
    """A capture has failed half-way, after which this process cannot use the GPU as before."""


def why_not(graph: fx.GraphModule) -> str | None:
    """What of a recorded list a CUDA graph cannot hold, in words; None if nothing of it is known to be so.

    Args:
        graph: from `record`, whose nodes say shapes, dtypes and devices.
    """
    home = None
    for node in graph.graph.nodes:
        if node.op == "placeholder":
            home = home or next((x.device for x in _tensors(graph, node)), None)
        if node.op != "call_function":
            continue
        name = getattr(getattr(node.target, "_schema", None), "name", str(node.target)).rpartition("::")[2]
        taken = [x for one in node.all_input_nodes for x in _tensors(graph, one)]
        if name in WAITS or (name in INDEXES and any(x.dtype in (torch.bool, torch.uint8) for x in taken[1:])):
            return f"{name} makes the host wait"
        # A single number on the CPU becomes part of the graph, as it is when that is captured; but copies of one wait.
        away = [x.device for x in [*taken, *_tensors(graph, node)] if x.device != home and (x.dim() or name in COPIES)]
        if away:
            return f"{name} meets a tensor on another device ({away[0]})"
    return None


class Buffers:
    """The inputs of a graph, which stay where they are.

    Filling them copies only what is another than before: all training images, say, are the same in every call.

    Args:
        flat: arguments, of the shapes that all calls will have; what is no tensor stays as it is.
    """

    def __init__(self, flat: Sequence[Any]) -> None:
        self.held = [x.clone() if isinstance(x, Tensor) else x for x in flat]
        self._sources: list[tuple[weakref.ref[Tensor], int] | None] = [None] * len(self.held)

    def fill(self, leaves: Sequence[Any]) -> int:
        """Copy in what has changed; gives how many tensors that were."""
        copied = 0
        for i, (buffer, leaf) in enumerate(zip(self.held, leaves, strict=True)):
            if not isinstance(buffer, Tensor):
                continue
            source, version = self._sources[i], leaf._version
            if source is None or source[1] != version or source[0]() is not leaf:
                buffer.copy_(leaf, non_blocking=True)
                self._sources[i] = (weakref.ref(leaf), version)
                copied += 1
        return copied


class Scratch:
    """Memory that graphs share, since they are replayed one after the other; torch lets those share that were captured on one stream."""

    def __init__(self) -> None:
        self.pool = torch.cuda.graph_pool_handle()
        self._streams: dict[torch.device, Any] = {}

    def stream(self, device: torch.device) -> Any:
        """The stream that graphs of a device are captured on."""
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)
        return self._streams[device]


def captured(program: Callable[..., Any], flat: Sequence[Any], scratch: Scratch, *, instead: str = "trace") -> Callable[..., list[Tensor]]:
    """Capture a program as a CUDA graph with static buffers; a call copies its arguments in and its results out.

    Args:
        program: takes the flat arguments and gives a list of tensors.
        flat: arguments, of the shapes that all calls will have.
        scratch: memory that it shares with other graphs.
        instead: what to run programs as where the capture fails, told in the error.

    Raises:
        CaptureError: the capture failed after it had begun. Errors of the calls before it, which warm up, are raised as they are.
    """
    device = next(x.device for x in flat if isinstance(x, Tensor))
    with torch.cuda.device(device):
        buffers = Buffers(flat)
        side = scratch.stream(device)
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):  # warm up outside of the capture, as torch.cuda.graph asks
            for _ in range(3):
                program(*buffers.held)
        torch.cuda.current_stream(device).wait_stream(side)
        recorded = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(recorded, pool=scratch.pool, stream=side):
                results = program(*buffers.held)
        except Exception as error:  # of torch, of CUDA or of a network: after it nothing on this GPU can be trusted
            raise CaptureError(
                f"A CUDA graph could not be captured ({type(error).__name__}: {error}), and this process cannot use the GPU any more. "
                "Start again without it.",
                fix=f'compile = "{instead}"  # in [unroller], or in [evaluation] for the networks that judge the set',
            ) from error

    def replay(*leaves: Any) -> list[Tensor]:
        with torch.cuda.device(device):
            buffers.fill(leaves)
            recorded.replay()
            return [result.clone() for result in results]

    return replay


def _tensors(graph: fx.GraphModule, node: fx.Node) -> list[Tensor]:
    """What a node gives, as far as the recorder knows it."""
    value = getattr(graph, str(node.target), None) if node.op == "get_attr" else node.meta.get("val")
    values = value if isinstance(value, (list, tuple)) else [value]
    return [x for x in values if isinstance(x, Tensor)]

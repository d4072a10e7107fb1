"""Offloading: where the trajectory of a window waits until the way back, on the device or on the host of a GPU."""

from __future__ import annotations

import logging
from functools import cache
from typing import Any

import torch
from torch import Tensor

from distilkit.functional.pytrees import tensor_map

logger = logging.getLogger("distilkit")


class Offload:
    """Where the trajectory waits: on the device, or on the host of a GPU."""

    def __init__(self, where: str, device: torch.device) -> None:
        self.side = _side(device) if where == "host" else None

    def put(self, tree: Any) -> Any:
        """Put a tree of tensors away."""
        return tree if self.side is None else tensor_map(self.side.away, tree)

    def prefetch(self, stored: Any) -> Any:
        """Start to bring it back; it must go through `get` before it is used."""
        return stored if self.side is None else tensor_map(self.side.back, stored)

    def get(self, prefetched: Any) -> Any:
        """The tree that `prefetch` began to bring, for whatever the device does from now on. What is fetched later does not hold it up."""
        if self.side is None:
            return prefetched
        self.side.wait()
        return tensor_map(self.side.arrived, prefetched)


class Side:
    """A stream of its own that copies out to pinned memory and in again while the device works."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)

    def away(self, x: Tensor) -> Tensor:
        """Start to copy a tensor to the host, once the device is through with making it."""
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            host = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
            host.copy_(x, non_blocking=True)
        x.record_stream(self.stream)  # or its memory could be given away before it is copied
        return host

    def back(self, host: Tensor) -> Tensor:
        """Start to copy it to the device again."""
        with torch.cuda.stream(self.stream):
            return host.to(self.device, non_blocking=True)

    def wait(self) -> None:
        """Let the device do nothing more before all that was started is through."""
        torch.cuda.current_stream(self.device).wait_stream(self.stream)

    def arrived(self, x: Tensor) -> Tensor:
        """A tensor that `back` began to bring, for the device to use."""
        x.record_stream(torch.cuda.current_stream(self.device))
        return x


def _side(device: torch.device) -> Side | None:
    if device.type == "cuda":
        return _gpu_side(device)
    _say_that_there_is_no_host()
    return None


@cache
def _gpu_side(device: torch.device) -> Side:
    """One for each device: torch's allocator keeps what was brought back for the stream that brought it."""
    return Side(device)


@cache
def _say_that_there_is_no_host() -> None:
    logger.warning('offload = "host" does nothing on a CPU: the trajectory is in the memory of the host as it is.')

"""Where the trajectory of a window waits until the way back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from distilkit.functional.pytrees import tensor_map


class Parking:
    """Where the trajectory waits. On the host, a stream of its own copies out and in while the device works."""

    def __init__(self, store: str, device: torch.device) -> None:
        self.device = device
        self.side = torch.cuda.Stream(device) if store == "host" and device.type == "cuda" else None

    def park(self, tree: Any) -> Any:
        """Put a tree of tensors away."""
        return tree if self.side is None else tensor_map(self._away, tree)

    def fetch(self, parked: Any) -> Any:
        """Start to bring it back; it must go through `take` before it is used."""
        if self.side is None:
            return parked
        with torch.cuda.stream(self.side):
            return tensor_map(lambda x: x.to(self.device, non_blocking=True), parked)

    def take(self, coming: Any) -> Any:
        """The tree that `fetch` began to bring, for whatever the device does from now on. What is fetched later does not hold it up."""
        if self.side is None:
            return coming
        here = torch.cuda.current_stream(self.device)
        here.wait_stream(self.side)
        return tensor_map(lambda x: _used_on(x, here), coming)

    def _away(self, x: Tensor) -> Tensor:
        assert self.side is not None
        self.side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.side):
            host = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
            host.copy_(x, non_blocking=True)
        return _used_on(x, self.side, host)


def _used_on(x: Tensor, stream: torch.cuda.Stream, result: Tensor | None = None) -> Tensor:
    """Tell the allocator that a stream uses a tensor, so that its memory is not given away before; return it, or `result`."""
    x.record_stream(stream)
    return x if result is None else result

"""Rates of this machine: how fast a convolution is in each precision, which "auto" goes by."""

from __future__ import annotations

import time
from functools import lru_cache

import torch

from distilkit import process

REPEATS, ENOUGH = 5, 0.5  # the least of these counts, or of what was done in so many seconds: some take a second for one
# About one layer of a ConvNet of width 128 on ten images: large enough to be arithmetic, small enough to take no time; on a GPU, which
# would only start operations in that, on a thousand.
IMAGES, CHANNELS, SIZE = {"cpu": 10, "cuda": 1000}, 128, 16


@lru_cache(maxsize=16)
def convolution_seconds(dtype: torch.dtype, channels_last: bool, device: torch.device, products: str = "float32") -> float:
    """Seconds of one convolution, forward and backward, the least of a few.

    Some builds of torch, and some processors, are many times slower in bfloat16 than in float32 (pytorch issue 183815), where others
    are three times faster; only a try tells.

    Args:
        dtype: of images and weight.
        channels_last: whether the images lie in memory as (N, H, W, C).
        device: where.
        products: what float32 stands for in products, "float32" or "tf32", which only a GPU knows.

    >>> 0 < convolution_seconds(torch.float32, False, torch.device("cpu")) < 60
    True
    """
    generator = torch.Generator().manual_seed(0)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    count = IMAGES.get(device.type, 10)
    images = torch.randn(count, CHANNELS, SIZE, SIZE, generator=generator).to(device, dtype, memory_format=layout)
    weight = torch.randn(CHANNELS, CHANNELS, 3, 3, generator=generator).to(device, dtype)

    def once() -> float:
        began = time.perf_counter()
        result = torch.ops.aten.convolution(images, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1)
        gradients = torch.ops.aten.convolution_backward(
            result, images, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [True, True, False]
        )
        gradients[1].flatten()[0].item()  # waits for a GPU
        return time.perf_counter() - began

    # On one CPU thread: two that wait for each other beside other work would measure the other work. On a GPU float32 is not TF32.
    with torch.no_grad(), process.thread_limit(1), process.products(products, device):
        once()  # loads libraries and picks routines
        spent: list[float] = []
        while len(spent) < REPEATS and sum(spent) < ENOUGH:
            spent.append(once())
        return min(spent)

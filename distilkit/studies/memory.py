"""How much memory a piece of work needs at its peak."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile


def peak_memory(work: Callable[[], object], device: torch.device) -> int:
    """Bytes of tensors at the peak of a piece of work, beyond what was there before.

    On a GPU the allocator says it. On a CPU it has no such count: the profiler reports every allocation and release, and the
    largest running sum is the peak. Either way it is tensors only, not the process.

    Args:
        work: is run once.
        device: where its tensors are.

    >>> peak_memory(lambda: torch.ones(1000) + torch.ones(1000), torch.device("cpu")) >= 8000
    True
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # read at its first use: else it writes its own affairs to stderr
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        work()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak

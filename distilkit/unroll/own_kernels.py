"""What `kernels = "auto"` stands for: whether our kernels for a GPU are right and faster there, by a try on maps of the network's size.

The try is one block's part of a step back: forward, backward and double backward, in the precision and by the kind of program that the run
has, so that ours stand beside what torch's compiler makes of the same. Right is what is as near to float64 as torch's own operations are.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor

from distilkit import process
from distilkit.errors import CombinationError, GradientError
from distilkit.learner import Learner
from distilkit.networks.layers import ACTIVATIONS, NORMS, POOLINGS, Pooling
from distilkit.networks.stack import KernelMaps
from distilkit.programs.agreement import distance
from distilkit.programs.programs import Programs

FASTER = 0.95  # of the time of torch's operations that ours may take, for "auto" to take them
RIGHT = 4.0  # times the error of torch's operations that ours may have
MOST_IMAGES = 256  # in a try
REPEATS, CALLS = 5, 20


class Tried(NamedTuple):
    """What a try has given: whether ours gave the right numbers, their part of torch's time, and both in words."""

    right: bool
    share: float
    words: str


def has_triton() -> bool:
    """Whether there is Triton, in which kernels for a GPU are written, ours and torch.compile's, and a C compiler for it."""
    return find_spec("triton") is not None and shutil.which(os.environ.get("CC", "gcc")) is not None  # which builds what starts them


def pick(learner: Learner, kernels: str, kind: str, precision: str, shape: tuple[int, ...], device: torch.device) -> tuple[bool, str]:
    """Whether to take our kernels, and why; no words where there was nothing to pick.

    Args:
        learner: bound.
        kernels: "auto", "torch" or "triton".
        kind: how steps are run, one of `distilkit.programs.programs.EXECUTIONS`.
        precision: "float32", "tf32" or "bfloat16".
        shape: of the images of an inner step, (B, ...).
        device: where the work is done.

    Raises:
        CombinationError: "triton" without a GPU, without Triton, or for a network that has no such blocks.
        GradientError: "triton" gives wrong numbers here.
    """
    if kernels == "torch" or (kernels == "auto" and device.type != "cuda"):
        return False, ""
    maps: KernelMaps | None = getattr(learner.network, "kernel_maps", lambda: None)()
    why_not = (
        f"the work is on {device}"
        if device.type != "cuda"
        else "there is no Triton here, or no C compiler for it"
        if not has_triton()
        else f"{type(learner.network).__name__} is not made of blocks of instance norm and ReLU on maps that are small enough"
        if maps is None
        else ""
    )
    if maps is None or why_not:
        if kernels == "triton":
            raise CombinationError(f'kernels = "triton" cannot be had: {why_not}.', fix='kernels = "auto"  # in [unroller]')
        return False, ""
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    found = tried(kind, dtype, (min(shape[0], MOST_IMAGES), *maps[:3]), maps.pooling, device)
    if kernels == "triton":
        if not found.right:
            raise GradientError(f'kernels = "triton" cannot be had: {found.words}.', fix='kernels = "torch"  # in [unroller]')
        return True, "kernels as asked for"
    return found.right and found.share <= FASTER, found.words


@lru_cache(maxsize=16)
def tried(kind: str, dtype: torch.dtype, shape: tuple[int, ...], pooling: Pooling, device: torch.device) -> Tried:
    """Try a block on maps (N, C, H, W): see the module."""
    numbers = _numbers(shape, dtype, device)
    torchs = step_back(torchs_block(pooling))
    try:
        with torch.no_grad():
            ours, theirs = (Programs(kind)(name, one) for name, one in (("ours", step_back(our_block(pooling))), ("torch's", torchs)))
            truth = torchs(*(x.double() for x in numbers))
            if not all(map(_is_right, truth, ours(*numbers), theirs(*numbers))):
                return Tried(False, 1.0, "our kernels for norms give wrong numbers here")
            share = seconds(ours, numbers, device) / seconds(theirs, numbers, device)
    except torch.AcceleratorError:
        raise  # a GPU that has met an error gives nothing but errors from then on
    except Exception as error:  # compilers raise many kinds; all mean that torch's operations are to be used
        kindly = (
            "memory ran out" if process.is_out_of_memory(error) else f"{type(error).__name__}: {(str(error) or 'no words').splitlines()[0]}"
        )
        return Tried(False, 1.0, f"our kernels for norms do not run here ({kindly})")
    return Tried(True, share, f"norms by our kernels take {share:.2f} of the time of torch's")


def our_block(pooling: Pooling) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Norm, ReLU and pooling of (x, weight, bias) by our kernels."""
    from distilkit.functional.blocks import norm_relu_pool  # for a GPU only

    return lambda x, weight, bias: norm_relu_pool(x, weight, bias, pooling)


def torchs_block(pooling: Pooling) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The same by torch's operations, as networks take it elsewhere."""
    norm, pool = NORMS["instance"], POOLINGS[pooling]
    assert norm is not None

    def block(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        active = ACTIVATIONS["relu"](norm(x, weight, bias))
        return active if pool is None else pool(active)

    return block


def step_back(block: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[..., list[Tensor]]:
    """A block's part of a step back: (x, weight, bias, and cotangents of their gradients) -> result, gradients and second derivatives."""

    def run(x: Tensor, weight: Tensor, bias: Tensor, *cotangents: Tensor) -> list[Tensor]:
        def loss(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
            made = block(x, weight, bias)
            return made.square().sum(), made

        def gradients(x: Tensor, weight: Tensor, bias: Tensor) -> Any:
            return torch.func.grad(loss, argnums=(0, 1, 2), has_aux=True)(x, weight, bias)

        first, pull, made = torch.func.vjp(gradients, x, weight, bias, has_aux=True)  # type: ignore[misc]
        return [made, *first, *pull(cotangents)]

    return run


def seconds(function: Callable[..., Any], arguments: list[Tensor], device: torch.device) -> float:
    """Seconds of one call, the least of a few means."""
    spent = []
    for _ in range(REPEATS):
        torch.cuda.synchronize(device)
        began = time.perf_counter()
        for _ in range(CALLS):
            function(*arguments)
        torch.cuda.synchronize(device)
        spent.append((time.perf_counter() - began) / CALLS)
    return min(spent)


def _numbers(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """Maps, a scale around 1, a shift, and cotangents of the three."""
    generator = torch.Generator().manual_seed(0)
    maps, channel = torch.randn(2, *shape, generator=generator), torch.randn(4, shape[1], generator=generator)
    made = [maps[0], 1 + 0.1 * channel[0], 0.1 * channel[1], maps[1], channel[2], channel[3]]
    return [x.to(device, dtype) for x in made]


def _is_right(truth: Tensor, ours: Tensor, theirs: Tensor) -> bool:
    """Whether ours are about as near to the truth as torch's own, or as roundings let them be."""
    rounding = 16 * torch.finfo(ours.dtype).eps * float(truth.norm())
    return distance(truth, ours) <= max(RIGHT * distance(truth, theirs), rounding)

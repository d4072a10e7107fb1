"""Instance norm, ReLU and 2x2 pooling as one operation of a GPU, by kernels of our own.

Torch makes the second derivative of a norm of some twenty operations, each of which reads and writes whole feature maps. `norm_relu_pool`
is one operation, its gradient is one more, and the gradient of that a third, each of which reads and writes each map once. They are
custom operators of torch, so that they are recorded, compiled, stacked (`torch.func.vmap`) and captured as torch's own are; there is no
forward derivative, and no third one. What they launch is written in Triton (`distilkit.functional.triton_kernels`), imported when it is
first needed.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor

from distilkit.errors import GradientError

LARGEST_MAP = 2**14  # numbers of a map that a program may hold in registers


def norm_relu_pool(x: Tensor, weight: Tensor, bias: Tensor, pooling: str, eps: float = 1e-5) -> Tensor:
    """Norm of each map of each image, scale and shift, ReLU and pooling.

    Args:
        x: (N, C, H, W), of at most `LARGEST_MAP` numbers a map; any float dtype, and any layout: that of its result is the same.
        weight: (C,), of the dtype of x.
        bias: (C,), as well.
        pooling: "avg" or "max" of 2x2 with stride 2, where an odd last row or column is dropped, or "none".
        eps: added to the variance.

    Returns:
        (N, C, H // 2, W // 2), or (N, C, H, W) without pooling.

    >>> from torch._subclasses.fake_tensor import FakeTensorMode
    >>> with FakeTensorMode():
    ...     norm_relu_pool(torch.zeros(2, 3, 9, 8), torch.ones(3), torch.zeros(3), "avg").shape
    torch.Size([2, 3, 4, 4])
    """
    result: Tensor = _Block.apply(x, weight, bias, pooling, eps)
    return result


@torch.library.custom_op("distilkit::norm_relu_pool", mutates_args=())
def _forward(x: Tensor, weight: Tensor, bias: Tensor, pooling: str, eps: float) -> Tensor:
    x, last = _laid_out(x)
    out = _pooled(x, pooling)
    _launch("forward", x, pooling, last, eps, x, weight, bias, out)
    return out


@torch.library.custom_op("distilkit::norm_relu_pool_backward", mutates_args=())
def _backward(g: Tensor, x: Tensor, weight: Tensor, bias: Tensor, pooling: str, eps: float) -> tuple[Tensor, Tensor]:
    """Cotangent of x, and of each map those of weight and bias, (2, N, C)."""
    x, last = _laid_out(x)
    dx, sums = torch.empty_like(x), _sums(x, 2)
    _launch("backward", x, pooling, last, eps, _like(g, last), x, weight, bias, dx, sums)
    return dx, sums


@torch.library.custom_op("distilkit::norm_relu_pool_double_backward", mutates_args=())
def _double_backward(
    u: Tensor, cotangents: Tensor, g: Tensor, x: Tensor, weight: Tensor, bias: Tensor, pooling: str, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Cotangents of g and of x, and of each map that of weight, (1, N, C)."""
    x, last = _laid_out(x)
    dg, dx, sums = _pooled(x, pooling), torch.empty_like(x), _sums(x, 1)
    _launch("double_backward", x, pooling, last, eps, _like(u, last), cotangents, _like(g, last), x, weight, bias, dg, dx, sums)
    return dg, dx, sums


@_forward.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, pooling: str, eps: float) -> Tensor:
    return _pooled(_laid_out(x)[0], pooling)


@_backward.register_fake
def _(g: Tensor, x: Tensor, weight: Tensor, bias: Tensor, pooling: str, eps: float) -> tuple[Tensor, Tensor]:
    return torch.empty_like(_laid_out(x)[0]), _sums(x, 2)


@_double_backward.register_fake
def _(
    u: Tensor, cotangents: Tensor, g: Tensor, x: Tensor, weight: Tensor, bias: Tensor, pooling: str, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    x = _laid_out(x)[0]
    return _pooled(x, pooling), torch.empty_like(x), _sums(x, 1)


class _Operation(torch.autograd.Function):
    """One that takes tensors, the pooling and eps, and keeps them for its gradient."""

    generate_vmap_rule = True

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        *tensors, ctx.pooling, ctx.eps = inputs
        ctx.save_for_backward(*tensors)


class _Block(_Operation):
    """The block and its gradient, for torch.func: what is registered with an operator alone is not seen there."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor, pooling: str, eps: float) -> Tensor:
        result: Tensor = _forward(x, weight, bias, pooling, eps)
        return result

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (g,) = grad_outputs
        x, weight, bias = ctx.saved_tensors
        dx, sums = _Backward.apply(g, x, weight, bias, ctx.pooling, ctx.eps)
        along, level = sums.sum(1).to(weight.dtype)
        return dx, along, level, None, None


class _Backward(_Operation):
    """The gradient of the block, and its own."""

    @staticmethod
    def forward(g: Tensor, x: Tensor, weight: Tensor, bias: Tensor, pooling: str, eps: float) -> tuple[Tensor, Tensor]:
        results: tuple[Tensor, Tensor] = _backward(g, x, weight, bias, pooling, eps)
        return results

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        u, cotangents = grad_outputs
        g, x, weight, bias = ctx.saved_tensors
        dg, dx, sums = _DoubleBackward.apply(u, cotangents, g, x, weight, bias, ctx.pooling, ctx.eps)
        return dg, dx, sums.sum((0, 1)).to(weight.dtype), None, None, None  # the shift moves no derivative, but where ReLU bends


class _DoubleBackward(_Operation):
    """The gradient of that, which has none: an error, where it would be asked for."""

    @staticmethod
    def forward(
        u: Tensor, cotangents: Tensor, g: Tensor, x: Tensor, weight: Tensor, bias: Tensor, pooling: str, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        results: tuple[Tensor, Tensor, Tensor] = _double_backward(u, cotangents, g, x, weight, bias, pooling, eps)
        return results

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """There is nothing to keep."""

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        raise GradientError("Our kernels for norms have no third derivative.", fix='kernels = "torch"  # in [unroller]')


def _stacked(operation: Any) -> Any:
    """The rule of `torch.func.vmap`: several networks are one whose channels lie beside each other, since each map is on its own."""

    def rule(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Any, Any]:
        *tensors, pooling, eps = arguments
        moved = []
        for x, dim in zip(tensors, in_dims, strict=False):
            channels = {1: 0, 3: 2, 4: 1}[x.dim() - (dim is not None)]  # of (C,), (2, N, C) and (N, C, H, W)
            x = (
                x.unsqueeze(channels).expand(*x.shape[:channels], info.batch_size, *x.shape[channels:])
                if dim is None
                else x.movedim(dim, channels)
            )
            moved.append(x.flatten(channels, channels + 1))
        results = operation(*moved, pooling, eps)
        several = isinstance(results, tuple)
        dims = [{3: 2, 4: 1}[x.dim()] for x in (results if several else [results])]
        apart = [x.unflatten(dim, (info.batch_size, -1)) for x, dim in zip(results if several else [results], dims, strict=True)]
        return (tuple(apart), tuple(dims)) if several else (apart[0], dims[0])

    return rule


for _operation in (_forward, _backward, _double_backward):
    _operation.register_vmap(_stacked(_operation))


def _laid_out(x: Tensor) -> tuple[Tensor, bool]:
    """Maps that lie in memory without gaps, and whether that is as (N, H, W, C)."""
    last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    return _like(x, last), last


def _like(x: Tensor, last: bool) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def _pooled(x: Tensor, pooling: str) -> Tensor:
    side = 1 if pooling == "none" else 2
    layout = torch.contiguous_format if x.is_contiguous() else torch.channels_last
    shape = (*x.shape[:2], x.shape[2] // side, x.shape[3] // side)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout)


def _sums(x: Tensor, count: int) -> Tensor:
    """Of each map `count` numbers, in the dtype in which sums are taken."""
    return x.new_empty((count, *x.shape[:2]), dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)


def _launch(name: str, x: Tensor, pooling: str, last: bool, eps: float, *tensors: Tensor) -> None:
    """Start a kernel, one program a map."""
    import triton
    import triton.language as tl

    from distilkit.functional import triton_kernels

    images, channels, height, width = x.shape
    side = 1 if pooling == "none" else 2
    cells = triton.next_power_of_2(prod(-(-each // side) for each in (height, width)))
    sizes = {"forward": (), "backward": (images * channels,), "double_backward": tensors[1].stride()}[name]
    numbers = cells * side * side
    if not images * channels:
        return
    getattr(triton_kernels, name)[(images * channels,)](
        *tensors, channels, *sizes, H=height, W=width, SIDE=side, LARGEST=pooling == "max", LAST=last, CELLS=cells, EPS=eps,
        WIDE=tl.float64 if x.dtype == torch.float64 else tl.float32, num_warps=min(32, max(1, numbers // 256)),
    )  # fmt: skip

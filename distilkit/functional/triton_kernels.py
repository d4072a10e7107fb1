"""Triton kernels of a block: instance norm, ReLU and 2x2 pooling in one pass over memory, and so its backward and double backward.

One program takes one feature map of one image: all its H * W numbers lie in registers, (CELLS, SIDE * SIDE), a row for each cell that is
pooled, whatever is left over at an odd edge included. Sums are taken in float32, or float64 where the maps are. Mean and variance are
computed again by each kernel, which costs no memory to read. Nothing is added by atomics, so that the bits are the same every time.

With z = weight * n + bias, n the normed map, on = (z > 0) and A the pooling, for a cotangent g of the result:

    backward          f = on * A'g;  d bias = sum f;  d weight = sum f * n;  d x = weight * rstd * (f - mean f - n * mean(f * n))
    double backward   the same, pulled back once more for cotangents (u, p, q) of d x, d weight and d bias; `on` is a constant

`distilkit.functional.blocks` launches them, and says what they are for.
"""

# mypy: ignore-errors
# A kernel is Python to look at only.
import triton
import triton.language as tl


@triton.jit
def _places(channels, H: tl.constexpr, W: tl.constexpr, SIDE: tl.constexpr, CELLS: tl.constexpr, LAST: tl.constexpr):
    """Offsets of this program's map, (CELLS, SIDE * SIDE), and of its pooled one, (CELLS,), and which of them there are."""
    program = tl.program_id(0)
    image, channel = (program // channels).to(tl.int64), program % channels
    across: tl.constexpr = (W + SIDE - 1) // SIDE
    cell, corner = tl.arange(0, CELLS), tl.arange(0, SIDE * SIDE)
    row = (cell // across * SIDE)[:, None] + (corner // SIDE)[None, :]
    column = (cell % across * SIDE)[:, None] + (corner % SIDE)[None, :]
    high: tl.constexpr = H // SIDE
    wide: tl.constexpr = W // SIDE
    pooled = cell // across * wide + cell % across
    whole = (cell // across < high) & (cell % across < wide)
    if LAST:  # (N, H, W, C) in memory
        place = image * (H * W) * channels + channel + (row * W + column) * channels
        pooled = image * (high * wide) * channels + channel + pooled * channels
    else:
        place = program.to(tl.int64) * (H * W) + row * W + column
        pooled = program.to(tl.int64) * (high * wide) + pooled
    return place, (row < H) & (column < W), pooled, whole, channel


@triton.jit
def _total(x):
    return tl.sum(tl.sum(x, axis=1), axis=0)


@triton.jit
def _normed(x, there, SIZE: tl.constexpr, EPS: tl.constexpr):
    """The map with mean 0 and variance 1, and one over its standard deviation."""
    apart = tl.where(there, x - _total(x) / SIZE, 0.0)
    rstd = 1.0 / tl.sqrt(_total(apart * apart) / SIZE + EPS)
    return apart * rstd, rstd


@triton.jit
def _activated(z, SIDE: tl.constexpr, LARGEST: tl.constexpr):
    """ReLU, which lets what is no number through as torch does; where it is on; and the part of each number in its pooled one."""
    off = z <= 0
    active = tl.where(off, 0.0, z)
    if LARGEST:  # the first of equal ones, as in torch
        first = tl.argmax(active, axis=1, tie_break_left=True)
        part = tl.where(tl.arange(0, SIDE * SIDE)[None, :] == first[:, None], 1.0, 0.0).to(z.dtype)
    else:
        part = tl.full(z.shape, 1.0 / (SIDE * SIDE), z.dtype)
    return active, part, tl.where(off, 0.0, part)


@triton.jit
def forward(
    x_in, weight_in, bias_in, out, channels,
    H: tl.constexpr, W: tl.constexpr, SIDE: tl.constexpr, LARGEST: tl.constexpr, LAST: tl.constexpr, CELLS: tl.constexpr,
    EPS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """x (N, C, H, W), weight (C,), bias (C,) -> out (N, C, H // SIDE, W // SIDE)."""
    place, there, pooled, whole, channel = _places(channels, H, W, SIDE, CELLS, LAST)
    x = tl.load(x_in + place, mask=there, other=0.0).to(WIDE)
    n, _ = _normed(x, there, H * W, EPS)
    z = tl.load(weight_in + channel).to(WIDE) * n + tl.load(bias_in + channel).to(WIDE)
    active, part, _ = _activated(z, SIDE, LARGEST)
    tl.store(out + pooled, tl.sum(active * part, axis=1).to(out.dtype.element_ty), mask=whole)


@triton.jit
def backward(
    g_in, x_in, weight_in, bias_in, dx_out, sums_out, channels, maps,
    H: tl.constexpr, W: tl.constexpr, SIDE: tl.constexpr, LARGEST: tl.constexpr, LAST: tl.constexpr, CELLS: tl.constexpr,
    EPS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """g like `out` -> d x like x, and of each map the sums of d weight and d bias, (2, N, C) in WIDE."""
    place, there, pooled, whole, channel = _places(channels, H, W, SIDE, CELLS, LAST)
    x = tl.load(x_in + place, mask=there, other=0.0).to(WIDE)
    n, rstd = _normed(x, there, H * W, EPS)
    weight = tl.load(weight_in + channel).to(WIDE)
    _, _, part = _activated(weight * n + tl.load(bias_in + channel).to(WIDE), SIDE, LARGEST)
    f = tl.load(g_in + pooled, mask=whole, other=0.0).to(WIDE)[:, None] * part
    along, level = _total(f * n), _total(f)
    dx = weight * rstd * (f - level / (H * W) - n * (along / (H * W)))
    tl.store(dx_out + place, dx.to(dx_out.dtype.element_ty), mask=there)
    tl.store(sums_out + tl.program_id(0), along)
    tl.store(sums_out + maps + tl.program_id(0), level)


@triton.jit
def double_backward(
    u_in, sums_in, g_in, x_in, weight_in, bias_in, dg_out, dx_out, sums_out, channels, by_kind, by_image, by_channel,
    H: tl.constexpr, W: tl.constexpr, SIDE: tl.constexpr, LARGEST: tl.constexpr, LAST: tl.constexpr, CELLS: tl.constexpr,
    EPS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Cotangents u like x and (2, N, C), by strides, of what `backward` gives -> those of g and x, and of each map that of weight."""
    place, there, pooled, whole, channel = _places(channels, H, W, SIDE, CELLS, LAST)
    x = tl.load(x_in + place, mask=there, other=0.0).to(WIDE)
    u = tl.load(u_in + place, mask=there, other=0.0).to(WIDE)
    n, rstd = _normed(x, there, H * W, EPS)
    weight = tl.load(weight_in + channel).to(WIDE)
    sums_in += tl.program_id(0) // channels * by_image + channel * by_channel
    p, q = tl.load(sums_in), tl.load(sums_in + by_kind)
    _, _, part = _activated(weight * n + tl.load(bias_in + channel).to(WIDE), SIDE, LARGEST)
    f = tl.load(g_in + pooled, mask=whole, other=0.0).to(WIDE)[:, None] * part
    mean_u, mean_un = _total(u) / (H * W), _total(u * n) / (H * W)
    mean_fn = _total(f * n) / (H * W)
    straight = rstd * (u - mean_u - n * mean_un)
    dg = tl.sum((weight * straight + p * n + q) * part, axis=1)
    tl.store(dg_out + pooled, dg.to(dg_out.dtype.element_ty), mask=whole)
    inner = _total(f * straight)
    tl.store(sums_out + tl.program_id(0), inner)
    # Of x: through n, whose cotangent is k, and through rstd.
    k = p * f - weight * rstd * (mean_un * f + mean_fn * u)
    dx = rstd * (k - _total(k) / (H * W) - n * (_total(k * n) / (H * W) + weight * inner / (H * W)))
    tl.store(dx_out + place, tl.where(there, dx, 0.0).to(dx_out.dtype.element_ty), mask=there)

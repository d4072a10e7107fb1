"""Our kernels for a GPU: in Triton's interpreter, through its compiler, and on a card where there is one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from distilkit.errors import GradientError
from distilkit.functional.blocks import LARGEST_MAP, norm_relu_pool
from distilkit.unroll.own_kernels import our_block, step_back, torchs_block, tried

SIZES = ("channels", "maps", "by_kind", "by_image", "by_channel")
ROOT = Path(__file__).resolve().parents[2]


def test_kernels_give_what_torch_gives():
    """In the interpreter: results, gradients and second derivatives, beside autograd in float64; and a meta-gradient."""
    pytest.importorskip("triton")
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, str(Path(__file__).with_name("in_the_interpreter.py"))]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": paths, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) == 13
    for name, (ours, torchs) in found.items():
        # The interpreter cuts bfloat16 off where a GPU rounds it: an error of up to two roundings in each of two places.
        rounding = 0.01 if "bfloat16" in name else 1e-6 if "float32" in name else 1e-13
        assert all(mine <= rounding + 2 * theirs for mine, theirs in zip(ours, torchs, strict=True)), (name, ours, torchs)


def test_kernels_compile_for_a_gpu():
    """To machine code of an H100, for which no GPU is needed; no program has more numbers than its registers hold."""
    triton = pytest.importorskip("triton")
    from triton import language as tl
    from triton.backends.compiler import GPUTarget

    from distilkit.functional import triton_kernels

    fixed = {"H": 32, "W": 32, "SIDE": 2, "LARGEST": False, "LAST": False, "CELLS": 256, "EPS": 1e-5, "WIDE": tl.float32}
    for kernel in (triton_kernels.forward, triton_kernels.backward, triton_kernels.double_backward):
        kinds = {name: "*fp32" if name.startswith("sums") else "*bf16" for name in kernel.arg_names}
        kinds |= dict.fromkeys(fixed, "constexpr") | {name: "i32" for name in kernel.arg_names if name in SIZES}
        source = triton.compiler.ASTSource(kernel, kinds, constexprs=fixed)
        made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4})
        assert len(made.asm["cubin"]) > 0
        assert ".local" not in made.asm["ptx"]


def test_shapes_are_known_without_a_kernel():
    """By the recorder, which has no numbers; in the layout of the images."""
    with torch._subclasses.fake_tensor.FakeTensorMode():
        x = torch.zeros(2, 3, 9, 8, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
        cotangents = [torch.zeros_like(x), torch.ones(3), torch.ones(3)]
        made = step_back(our_block("max"))(x, torch.ones(3, dtype=x.dtype), torch.ones(3, dtype=x.dtype), *cotangents)
    assert made[0].shape == (2, 3, 4, 4)
    assert made[0].is_contiguous(memory_format=torch.channels_last)
    assert [one.shape for one in made[1:]] == 2 * [x.shape, (3,), (3,)]
    assert {one.dtype for one in made} == {x.dtype}


def test_there_is_no_third_derivative():
    """An error, not a zero."""
    with torch._subclasses.fake_tensor.FakeTensorMode():
        x, one = torch.zeros(2, 3, 8, 8), torch.ones(3)

        def value(x):
            return norm_relu_pool(x, one, one, "avg").square().sum()

        slope = torch.func.grad(lambda x: torch.func.grad(value)(x).square().sum())
        assert slope(x).shape == x.shape
        with pytest.raises(GradientError, match="no third derivative"):
            torch.func.grad(lambda x: slope(x).square().sum())(x)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("pooling", ["avg", "max", "none"])
@pytest.mark.parametrize("shape", [(10, 128, 32, 32), (3, 5, 17, 15), (2, 3, 128, 128)])
@pytest.mark.parametrize("last", [False, True])
def test_kernels_give_what_torch_gives_on_a_gpu(dtype, pooling, shape, last):
    generator = torch.Generator().manual_seed(0)
    maps, channel = torch.randn(2, *shape, generator=generator), torch.randn(4, shape[1], generator=generator)
    given = [maps[0], 1 + 0.3 * channel[0], 0.3 * channel[1], maps[1], *channel[2:]]
    given = [x.to("cuda", dtype) for x in given]
    if last:
        given[0] = given[0].contiguous(memory_format=torch.channels_last)
    truth = step_back(torchs_block(pooling))(*(x.double() for x in given))
    ours, theirs = (step_back(block(pooling))(*given) for block in (our_block, torchs_block))
    again = step_back(our_block(pooling))(*given)
    assert shape[2] * shape[3] <= LARGEST_MAP
    for right, mine, other, same in zip(truth, ours, theirs, again, strict=True):
        error, allowed = (mine - right).norm(), 4 * (other - right).norm() + 16 * torch.finfo(dtype).eps * right.norm()
        assert error <= allowed
        assert torch.equal(mine, same)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["trace", "cudagraph"])
def test_a_try_on_a_gpu_finds_them_right(kind):
    found = tried(kind, torch.bfloat16, (20, 64, 32, 32), "avg", torch.device("cuda"))
    assert found.right, found.words

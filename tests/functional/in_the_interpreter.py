"""Our kernels in Triton's interpreter, beside torch's operations: a script, since TRITON_INTERPRET=1 counts when triton is first imported.

It prints a JSON object: for each case, the relative error of every result, of ours and of torch's own, in norm, to float64.
"""

import json
import sys

import torch

import distilkit as dk
from distilkit.functional.blocks import norm_relu_pool
from distilkit.unroll import own_kernels
from distilkit.unroll.execution import ProgramCache, choose
from distilkit.unroll.inner import OuterVariables
from distilkit.unroll.own_kernels import our_block, step_back, torchs_block
from distilkit.unroller import RealBatch
from tests.unroll.problems import relative

torch.set_num_threads(1)
F64, F32, BF16 = torch.float64, torch.float32, torch.bfloat16


def numbers(shape, dtype, last=False):
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(2, *shape, generator=generator, dtype=F64)
    channel = torch.randn(4, shape[1], generator=generator, dtype=F64)
    layout = torch.channels_last if last else torch.contiguous_format
    x, u = (one.to(dtype).contiguous(memory_format=layout) for one in maps)
    return [x, (1 + 0.3 * channel[0]).to(dtype), 0.3 * channel[1].to(dtype), u, *channel[2:].to(dtype)]


def compared(pooling, arguments):
    """Errors of ours and of torch's; and that the layout of the result is the same."""
    truth = step_back(torchs_block(pooling))(*(x.double() for x in arguments))
    ours, theirs = (step_back(block(pooling))(*arguments) for block in (our_block, torchs_block))
    assert ours[0].stride() == theirs[0].stride()
    assert [x.dtype for x in ours] == [x.dtype for x in theirs]
    return [[relative(a.double(), b) for a, b in zip(each, truth, strict=True)] for each in (ours, theirs)]


def edges(pooling):
    """Maps of few values, many of them equal, and at ReLU's edge: without a shift where the scale is 0, or all numbers of a map are one."""
    x, weight, bias, *cotangents = numbers((1, 3, 4, 6), F64)
    x = x.sign()
    x[0, 2] = 1.0
    weight[1] = 0.0
    return compared(pooling, [x, weight, torch.zeros_like(bias), *cotangents])


def side_by_side(_):
    """Networks stacked, and images that they share."""
    x, weight, bias, u, p, q = numbers((1, 2, 4, 4), F64)
    weights, biases = (torch.stack([one, 2 - one]) for one in (weight, bias))
    found = []
    for block in (our_block("avg"), torchs_block("avg")):

        def losses(x, weights, biases, block=block):
            return torch.func.vmap(lambda weight, bias: block(x, weight, bias).square().sum())(weights, biases).sum()

        gradients, pull = torch.func.vjp(torch.func.grad(losses, argnums=(0, 1, 2)), x, weights, biases)
        found.append([*gradients, *pull((u, torch.stack([p, q]), torch.stack([q, p])))])
    return [[relative(a, b) for a, b in zip(*found, strict=True)], [0.0] * len(found[0])]


def not_a_number(_):
    """It goes through, as through torch's, and no further than its own map."""
    x, weight, bias, *_ = numbers((1, 2, 4, 4), F64)
    x[0, 0, 1, 1] = torch.nan
    made = norm_relu_pool(x, weight, bias, "avg")
    assert made[0, 0].isnan().all()
    assert made[0, 1].isfinite().all()
    return [[0.0], [0.0]]


def meta_gradient(_):
    """Of an inner run: recorded, stepped through and gone back through, by what a step kept."""
    shape, classes = (1, 5, 4), torch.arange(2)
    inner = dk.Learner(dk.ConvNet(width=2, depth=1), dk.SGD(lr=0.1), learn_lr=True).bind(shape, 2)
    stream = dk.Stream(3)
    images, real = (stream.fold(name).normal(2, *shape, dtype=F64) for name in ("images", "real"))
    leaves = OuterVariables(images, torch.eye(2, dtype=F64), torch.tensor(0.1, dtype=F64).log())
    batch, found = RealBatch(real, torch.eye(2, dtype=F64)), []
    for ours in (True, False):
        own_kernels.pick = lambda *_, ours=ours: (ours, "planted")  # which asks for a GPU
        choose.cache_clear()
        unroller, cache = dk.Unroller(dk.ReplayAdjoint(keep_last=1), compile="trace" if ours else "eager"), ProgramCache()
        found.append(unroller.meta_gradient(inner, leaves, dk.Window(0, 1), batch, stream, classes, cache))
        execution = unroller.execution(inner, (2, *shape), torch.device("cpu"))
        assert execution.kernels == ours
        assert unroller.fallbacks(inner, execution, cache) == {}
    return [[relative(a, b) for a, b in zip(*found, strict=True)], [0.0] * 4]


CASES = {
    "avg": lambda: compared("avg", numbers((2, 2, 8, 8), F64)),
    "avg, odd, channels last": lambda: compared("avg", numbers((2, 3, 5, 7), F64, last=True)),
    "max, odd": lambda: compared("max", numbers((1, 2, 7, 5), F64)),
    "none, odd": lambda: compared("none", numbers((1, 2, 3, 5), F64)),
    "max, float32, channels last": lambda: compared("max", numbers((1, 2, 4, 6), F32, last=True)),
    "avg, float32": lambda: compared("avg", numbers((1, 2, 6, 6), F32)),
    "avg, bfloat16": lambda: compared("avg", numbers((1, 2, 6, 6), BF16)),
    "max, bfloat16": lambda: compared("max", numbers((1, 2, 5, 4), BF16)),
    "edges, avg": lambda: edges("avg"),
    "edges, max": lambda: edges("max"),
    "side by side": lambda: side_by_side(None),
    "not a number": lambda: not_a_number(None),
    "meta-gradient": lambda: meta_gradient(None),
}

if __name__ == "__main__":
    json.dump({name: case() for name, case in CASES.items()}, sys.stdout)

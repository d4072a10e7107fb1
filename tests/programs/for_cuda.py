"""Programs recorded for CUDA where there is no card: a script, which needs `fake_runtime.c` in LD_PRELOAD before torch is imported.

It prints a JSON object: what is in each list, by precision, kernels and program, and of a few more that hold what they should not.
"""

import json
import sys
from collections import Counter

import optree
import torch
from torch._subclasses import fake_tensor

import distilkit as dk
from distilkit.programs.capture import why_not
from distilkit.programs.programs import record
from distilkit.unroll.execution import Execution
from distilkit.unroll.inner import OuterVariables
from distilkit.unroll.problem import problem

WIDTH = SIZE = 16  # of the network, and of its images


def recorded(function, arguments, device, **options):
    """The list of a function on a device: of fake tensors, which have all but numbers."""

    def fake(x):
        return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=device) if isinstance(x, torch.Tensor) else x

    with fake_tensor.FakeTensorMode(allow_non_fake_inputs=True):
        return record(function, optree.tree_map(fake, arguments), **options)


def programs():
    """Step, step back and end of an inner problem, and what each takes: by precision, and whose kernels take the norms."""
    learner = dk.Learner(dk.ConvNet(width=WIDTH), dk.Adam(), augment=dk.FlipRotate()).bind((3, SIZE, SIZE), 2)
    leaves = OuterVariables(torch.zeros(4, 3, SIZE, SIZE), torch.eye(2).repeat(2, 1), torch.tensor(0.0))
    theta, state = learner.init(dk.Stream(0))
    draw = learner.draw(dk.Stream(1), leaves.labels.argmax(1), (3, SIZE, SIZE))
    sums = [x.clone() for x in optree.tree_leaves(state) if x.is_floating_point()]
    total = OuterVariables(*map(torch.zeros_like, leaves))
    made = {}
    for precision in ("float32", "bfloat16"):
        for kernels in ("torch", "triton"):
            execution = Execution("trace", False, False, precision, "", kernels=kernels == "triton")
            inner = problem(learner, execution.numerics.dtype, execution)
            made |= {
                f"{precision}, {kernels}, step": (inner.step, (theta, state, leaves, draw)),
                f"{precision}, {kernels}, back": (
                    dk.ReplayAdjoint().back(inner),
                    (theta, state, leaves, draw, theta.clone(), sums, total),
                ),
                f"{precision}, {kernels}, end": (inner.end, (theta, leaves.images, leaves.labels)),
            }
    return made


def tensors(graph):
    """Every tensor of a list: inputs, constants, and what its operations give."""
    for node in graph.graph.nodes:
        value = getattr(graph, node.target) if node.op == "get_attr" else node.meta.get("val")
        yield from (x for x in optree.tree_leaves(value) if isinstance(x, torch.Tensor))


def content(graph):
    """What the tests look at."""
    kernels = [node.args[1].meta["val"].shape[2:] for node in graph.graph.nodes if node.target is torch.ops.aten.convolution.default]
    return {
        "devices": sorted({str(x.device) for x in tensors(graph)}),
        "largest kernel": max((max(shape) for shape in kernels), default=0),
        "why not": why_not(graph),
        "operations": Counter(str(node.target) for node in graph.graph.nodes if node.op == "call_function"),
    }


def controls(back):
    """Lists that hold what those of programs must not, and one of a function with a constant, which is moved."""
    on_cpu, x = torch.arange(4.0), (torch.zeros(4),)
    yield "plain back", recorded(*back, "cuda", faster=False)
    yield "a constant made anew", recorded(lambda x: x * torch.arange(4.0).to(x.device), x, "cuda")
    yield "a constant", recorded(lambda x: x * on_cpu.to(x.device), x, "cuda")
    yield "a mask", recorded(lambda x: x.index_put([x > 0], x.sum()), x, "cuda")


def main():
    torch.set_num_threads(1)
    torch.autograd.set_multithreading_enabled(False)  # torch 2.11 ends in an abort where a thread waits for a card
    torch.cuda.is_available = lambda: False  # or torch would put a tensor there at the first fake one
    assert torch._C._cuda_getDeviceCount() == 1, "torch does not see fake_runtime.c"
    given = programs()
    back = given["float32, torch, back"]
    found = {name: content(recorded(*program, "cuda")) for name, program in given.items()}
    found["back on a CPU"] = content(recorded(*back, "cpu"))
    found |= {name: content(graph) for name, graph in controls(back)}
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()

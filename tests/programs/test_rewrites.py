"""What is rewritten in a recorded program gives the same numbers, by the operations that it should."""

import pytest
import torch
from torch.nn import functional as F

from distilkit.programs.partition import partition
from distilkit.programs.programs import record

aten = torch.ops.aten
CONVOLUTIONS = {
    "plain": {"padding": 1},
    "no padding": {},
    "stride": {"stride": 2, "padding": 1},
    "stride, a row left over": {"stride": 2},
    "dilation": {"dilation": 2, "padding": 2},
    "stride and dilation": {"stride": 2, "dilation": 2, "padding": 1},
    "groups": {"padding": 1, "groups": 2},
    "no square": {"stride": (1, 2), "padding": (0, 1)},
}


def second_derivative(options):
    """The pullback of the gradient of a loss of a convolution, towards images and weight."""

    def loss(weight, images):
        return F.conv2d(images, weight, **options).square().mul(0.5).sin().sum()

    def pullback(weight, images, v, u):
        _, pull = torch.func.vjp(torch.func.grad(loss, argnums=(0, 1)), weight, images)
        return pull((v, u))

    return pullback


@pytest.mark.parametrize("options", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_weight_gradients_are_taken_by_their_own_routine(options):
    """In float64, to a few roundings; and no convolution is left whose kernel is as large as the maps."""
    generator = torch.Generator().manual_seed(0)
    groups = options.get("groups", 1)
    weight, v = torch.randn(2, 4, 4 // groups, 3, 3, generator=generator, dtype=torch.float64)
    images, u = torch.randn(2, 5, 4, 11, 12, generator=generator, dtype=torch.float64)
    function = second_derivative(options)
    graph = record(function, (weight, images, v, u))
    for given, expected in zip(graph(weight, images, v, u), function(weight, images, v, u), strict=True):
        torch.testing.assert_close(given, expected, rtol=1e-12, atol=1e-12)
    kernels = [max(n.args[1].meta["val"].shape[2:]) for n in graph.graph.nodes if n.target is aten.convolution.default]
    if groups == 1:  # one of several groups is left as it was
        assert max(kernels) == 3


@pytest.mark.parametrize("copied", [torch.Tensor.contiguous, torch.clone])
def test_a_weight_gradient_is_seen_behind_a_copy(copied):
    """On CUDA torch makes the transposed gradient contiguous first, so that a clone stands before the convolution."""
    generator = torch.Generator().manual_seed(0)
    maps, upstream = torch.randn(2, 5, 4, 11, 11, generator=generator, dtype=torch.float64)

    def as_on_cuda(maps, upstream):
        return F.conv2d(maps.transpose(0, 1), copied(upstream.transpose(0, 1)), padding=1).transpose(0, 1)

    graph = record(as_on_cuda, (maps, upstream))
    assert not [node for node in graph.graph.nodes if node.target is aten.convolution.default]
    torch.testing.assert_close(graph(maps, upstream)[0], as_on_cuda(maps, upstream), rtol=1e-12, atol=1e-12)
    kernel = torch.randn(2, 5, 3, 3, generator=generator, dtype=torch.float64)
    other = record(lambda maps, kernel: F.conv2d(maps.transpose(0, 1), copied(kernel), padding=1).transpose(0, 1), (maps, kernel))
    assert [node for node in other.graph.nodes if node.target is aten.convolution.default]  # nothing was swapped there


def test_halves_give_what_the_whole_gives():
    def whole(x, y, late):
        shared = (x.sin() * y).relu()
        return shared.sum(), (shared * late + late * x.view(-1, 2).mean()).exp()

    x, y, late = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    graph = record(whole, (x, y, late))
    parts = partition(graph, early=2, results=1)
    total, *waiting = parts.forward(x, y)
    after = parts.backward(*waiting, *((x, y)[i] for i in parts.reused), late)
    for given, expected in zip([total, *after], whole(x, y, late), strict=True):
        torch.testing.assert_close(given, expected)
    assert parts.saved_bytes == sum(w.nbytes for w in waiting)
    heavy = [n.target for n in parts.backward.graph.nodes if n.op == "call_function"]
    assert aten.sin.default not in heavy


def test_an_early_result_that_needs_a_late_input_is_refused():
    graph = record(lambda x, late: (x + late, late), (torch.ones(2), torch.ones(2)))
    with pytest.raises(ValueError, match="late"):
        partition(graph, early=1, results=1)

"""Every network against torch.nn: one line in `CASES` and a network gets every test.

The references are written down here with torch.nn and torchvision alone. Sizes are tiny, and the activation is smooth where
second derivatives are compared.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torchvision
from scipy import stats
from torch import nn
from torch.func import grad, jvp, vmap

from distilkit.errors import CombinationError, FieldError
from distilkit.functional.streams import Stream
from distilkit.networks.alexnet import AlexNet
from distilkit.networks.convnet import ConvNet
from distilkit.networks.layers import ACTIVATIONS, NORMS, POOLINGS
from distilkit.networks.mlp import MLP
from distilkit.networks.module import Functional
from distilkit.networks.resnet import ResNet
from distilkit.networks.vgg import VGG

NORM_MODULES: dict[str, Callable[[int, int], nn.Module]] = {
    "instance": lambda c, s: nn.GroupNorm(c, c),
    "group": lambda c, s: nn.GroupNorm(4, c),
    "batch": lambda c, s: nn.BatchNorm2d(c),
    "layer": lambda c, s: nn.LayerNorm((c, s, s)),
}
ACTIVATION_MODULES: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "leaky_relu": nn.LeakyReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
    "elu": nn.ELU,
    "softplus": nn.Softplus,
}
POOLING_MODULES: dict[str, Callable[[], nn.Module]] = {"avg": lambda: nn.AvgPool2d(2), "max": lambda: nn.MaxPool2d(2)}


def sequential(plan: str, size: int, inputs: int = 3, act: str = "relu", norm: str = "none", pool: str = "max", head: str = "classifier"):
    """A stack as nn.Sequential: `plan` lists channels:kernel:padding of convolutions and M for pooling."""
    layers: list[nn.Module] = []
    for word in plan.split():
        if word == "M":
            if pool != "none":
                layers.append(POOLING_MODULES[pool]())
                size //= 2
            continue
        channels, kernel, padding = map(int, word.split(":"))
        layers.append(nn.Conv2d(inputs, channels, kernel, padding=padding))
        size += 2 * padding - kernel + 1
        if norm != "none":
            layers.append(NORM_MODULES[norm](channels, size))
        layers.append(ACTIVATION_MODULES[act]())
        inputs = channels
    return nn.Sequential(
        OrderedDict([("features", nn.Sequential(*layers)), ("flat", nn.Flatten()), (head, nn.Linear(inputs * size**2, 10))])
    )


def convnet(width: int, depth: int, size: int, inputs: int = 3, first_padding: int = 1, **kind: str) -> nn.Module:
    blocks = [f"{width}:3:{first_padding if i == 0 else 1} M" for i in range(depth)]
    return sequential(" ".join(blocks), size, inputs, **{"norm": "instance", "pool": "avg"} | kind)


def mlp(inputs: int, *widths: int, act: str = "relu") -> nn.Module:
    sizes, layers = (inputs, *widths, 10), OrderedDict[str, nn.Module](flat=nn.Flatten())
    for i in range(1, len(sizes)):
        layers[f"fc_{i}"] = nn.Linear(sizes[i - 1], sizes[i])
        layers[f"act_{i}"] = ACTIVATION_MODULES[act]()
    layers.popitem()
    return nn.Sequential(layers)


def vgg11(width: int, act: str = "relu", norm: str = "instance", size: int = 32) -> nn.Module:
    stages = " M ".join(" ".join(f"{scale * width}:3:1" for scale in stage) for stage in ([1], [2], [4, 4], [8, 8], [8, 8]))
    return sequential(f"{stages} M", size, act=act, norm=norm)


def alexnet(a: int, b: int, c: int, size: int = 32, inputs: int = 3, first: int = 2, act: str = "relu") -> nn.Module:
    return sequential(f"{a}:5:{first} M {b}:5:2 M {c}:3:1 {b}:3:1 {b}:3:1 M", size, inputs, act, head="fc")


def resnet(blocks: list[int], norm: Callable[..., nn.Module]) -> nn.Module:
    """Torchvision's ResNet with a 3x3 stem and without max-pooling; its default initialisation put back."""
    net = torchvision.models.resnet.ResNet(torchvision.models.resnet.BasicBlock, blocks, num_classes=10, norm_layer=norm)
    net.conv1, net.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d):
            layer.reset_parameters()
    return net


def torchvision_name(name: str) -> str:
    return name.replace("shortcut", "downsample").replace("classifier", "fc")


def same_name(name: str) -> str:
    return name


class Case(NamedTuple):
    net: Any
    image_shape: tuple[int, ...]
    reference: Callable[[], nn.Module] | None = None
    rename: Callable[[str], str] = same_name


# fmt: off
CASES = {
    "ConvNet": Case(ConvNet(4, 2, activation="gelu"), (3, 8, 8), lambda: convnet(4, 2, 8, act="gelu")),
    "ConvNet-group": Case(ConvNet(8, 2, "group", "silu"), (3, 8, 8), lambda: convnet(8, 2, 8, norm="group", act="silu")),
    "ConvNet-batch": Case(ConvNet(4, 2, "batch", "gelu"), (3, 8, 8), lambda: convnet(4, 2, 8, norm="batch", act="gelu")),
    "ConvNet-layer": Case(ConvNet(4, 2, "layer", "tanh"), (3, 8, 8), lambda: convnet(4, 2, 8, norm="layer", act="tanh")),
    "ConvNet-none": Case(ConvNet(4, 2, "none", "sigmoid"), (3, 8, 8), lambda: convnet(4, 2, 8, norm="none", act="sigmoid")),
    "ConvNet-max": Case(ConvNet(4, 2, activation="elu", pooling="max"), (3, 9, 9), lambda: convnet(4, 2, 9, act="elu", pool="max")),
    "ConvNet-keep": Case(
        ConvNet(4, 1, activation="softplus", pooling="none"), (3, 5, 5), lambda: convnet(4, 1, 5, act="softplus", pool="none")
    ),
    "ConvNet-gray": Case(ConvNet(4, 2, first_padding=3, activation="gelu"), (1, 6, 6), lambda: convnet(4, 2, 6, 1, 3, act="gelu")),
    "ConvNet-leaky": Case(ConvNet(4, 1, activation="leaky_relu"), (3, 8, 8), lambda: convnet(4, 1, 8, act="leaky_relu")),
    "MLP": Case(MLP((6, 5), "gelu"), (3, 4, 4), lambda: mlp(48, 6, 5, act="gelu")),
    "MLP-features": Case(MLP((6,)), (7,), lambda: mlp(7, 6)),
    "MLP-linear": Case(MLP(()), (7,), lambda: mlp(7)),
    "VGG": Case(VGG(width=2, activation="gelu"), (3, 32, 32), lambda: vgg11(2, "gelu")),
    "AlexNet": Case(AlexNet(width=4, activation="gelu"), (3, 8, 8), lambda: alexnet(4, 6, 8, 8, act="gelu")),
    "AlexNet-gray": Case(AlexNet(width=2, first_padding=4, activation="gelu"), (1, 8, 8), lambda: alexnet(2, 3, 4, 8, 1, 4, "gelu")),
    "ResNet": Case(ResNet(10, 2, activation="gelu"), (3, 9, 9)),
    "ResNet-batch": Case(ResNet(10, 2, "batch", "gelu"), (3, 8, 8)),
    "Functional": Case(Functional(lambda: convnet(4, 2, 8, act="gelu")), (3, 8, 8), lambda: convnet(4, 2, 8, act="gelu")),
    "Functional-instance": Case(Functional(convnet(4, 2, 8, act="gelu")), (3, 8, 8), lambda: convnet(4, 2, 8, act="gelu")),
}
# Parameter counts for 32x32 colour images and 10 classes. ResNet-18 and VGG-11: table 7 of NeuralFuse (arXiv 2306.16869), and
# summaries of kuangliu's CIFAR models, which have ResNet-34 too. ConvNet-3: the "320k" of the field, exact here. The others
# have no published count that we know.
FULL = {
    "ConvNet": (ConvNet(), lambda: convnet(128, 3, 32), 320_010, same_name),
    "ConvNet-4": (ConvNet(depth=4), lambda: convnet(128, 4, 32), None, same_name),
    "MLP": (MLP(), lambda: mlp(3072, 128, 128), None, same_name),
    "VGG": (VGG(), lambda: vgg11(64), 9_231_114, same_name),
    "VGG-batch": (VGG(norm="batch"), lambda: vgg11(64, norm="batch"), 9_231_114, same_name),
    "AlexNet": (AlexNet(), lambda: alexnet(128, 192, 256), None, same_name),
    "ResNet": (ResNet(), lambda: resnet([2, 2, 2, 2], lambda c: nn.GroupNorm(c, c)), 11_173_962, torchvision_name),
    "ResNet-batch": (ResNet(norm="batch"), lambda: resnet([2, 2, 2, 2], nn.BatchNorm2d), 11_173_962, torchvision_name),
    "ResNet-34": (ResNet(34), lambda: resnet([3, 4, 6, 3], nn.BatchNorm2d), 21_282_122, torchvision_name),
}
# fmt: on
CASES |= {
    "ResNet-wide": Case(ResNet(10), (3, 12, 12), lambda: resnet([1, 1, 1, 1], lambda c: nn.GroupNorm(c, c)), torchvision_name),
    "ResNet-wide-batch": Case(ResNet(10, norm="batch"), (3, 12, 12), lambda: resnet([1, 1, 1, 1], nn.BatchNorm2d), torchvision_name),
}
TINY = [name for name in CASES if "wide" not in name]
WITH_REFERENCE = [name for name, case in CASES.items() if case.reference]
STREAM = Stream(0).fold("test of networks")

# torch itself says this once, when the first jvp of a process loads its decompositions.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit")


def prepared(name: str, dtype: torch.dtype = torch.float64, n: int = 3):
    net = CASES[name].net.bind(CASES[name].image_shape, 10)
    params = {k: p.to(dtype) for k, p in net.init(STREAM).items()}
    return net, params, STREAM.fold("x").normal(n, *CASES[name].image_shape).to(dtype)


def loss_of(net):
    # The weights keep the sum of logits from being constant under a norm.
    return lambda params, x: (net.apply(params, x) * torch.linspace(-1, 1, 10, dtype=x.dtype)).square().sum()


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance * max(1.0, float(b.abs().max())))


@pytest.mark.parametrize("name", FULL)
def test_full_size_layout_is_that_of_torch(name):
    net, reference, published, rename = FULL[name]
    layout = net.bind((3, 32, 32), 10).layout()
    theirs = {k: tuple(p.shape) for k, p in reference().named_parameters()}
    assert {rename(k): i.shape for k, i in layout.items()} == theirs
    assert published in (None, sum(math.prod(i.shape) for i in layout.values()))


@pytest.mark.parametrize("name", CASES)
def test_logits_have_the_shape_and_dtype_of_the_batch(name):
    net, params, x = prepared(name, n=2)
    for dtype in (torch.float64, torch.float32):
        logits = net.apply({k: p.to(dtype) for k, p in params.items()}, x.to(dtype))
        assert logits.shape == (2, 10)
        assert logits.dtype == dtype
        assert torch.isfinite(logits).all()


@pytest.mark.parametrize("name", WITH_REFERENCE)
def test_logits_equal_those_of_the_module(name):
    net, params, x = prepared(name)
    reference = CASES[name].reference().double().train()
    generator = STREAM.fold("noise").generator()
    # Away from the initial values, so that scales and shifts of norms count.
    params = {k: p + 0.1 * torch.randn(p.shape, generator=generator, dtype=p.dtype) for k, p in params.items()}
    renamed = {CASES[name].rename(k): p for k, p in params.items()}
    assert set(renamed) == {k for k, _ in reference.named_parameters()}
    reference.load_state_dict(renamed, strict=False)
    close(net.apply(params, x), reference(x).detach(), 1e-12)


@pytest.mark.parametrize("name", WITH_REFERENCE)
def test_initial_distribution_is_that_of_torch(name):
    net = CASES[name].net.bind(CASES[name].image_shape, 10)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        reference = CASES[name].reference()
    ours = {CASES[name].rename(k): p for k, p in net.init(STREAM).items()}
    theirs = dict(reference.named_parameters())
    scaled: dict[str, list[torch.Tensor]] = {"ours": [], "theirs": []}
    for path, layer in reference.named_modules():
        for kind, p in layer.named_parameters(path, recurse=False):
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                fan_in = layer.weight[0].numel()
                scaled["ours"].append(ours[kind].flatten() * math.sqrt(fan_in))
                scaled["theirs"].append(theirs[kind].detach().flatten() * math.sqrt(fan_in))
            else:
                assert torch.equal(ours[kind], p.detach()), kind
    # The same test on torch's own draw shows that the distribution named here is the true one.
    for who, parts in scaled.items():
        values = torch.cat(parts)
        assert values.abs().max() <= 1 + 1e-6, who
        some = values[:: max(1, len(values) // 20_000)]
        assert stats.kstest(some.numpy(), "uniform", args=(-1, 2)).pvalue > 1e-3, who


@pytest.mark.parametrize("name", TINY)
def test_init_depends_on_the_stream_alone(name):
    net = CASES[name].net.bind(CASES[name].image_shape, 10)
    before = torch.random.get_rng_state()
    first = net.init(STREAM)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(7)
    again, other = net.init(STREAM), net.init(STREAM.fold(1))
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert all(p.dtype == torch.float32 and p.device.type == "cpu" and not p.requires_grad for p in first.values())
    random = [k for k in first if first[k].numel() > 1 and first[k].std() > 0]
    assert random
    assert not any(torch.equal(first[k], other[k]) for k in random)


@pytest.mark.parametrize("name", TINY)
def test_apply_is_pure(name):
    net, params, x = prepared(name)
    versions = {k: p._version for k, p in params.items()}, x._version
    keys = list(params)
    first = net.apply(params, x)
    assert torch.equal(first, net.apply(params, x))
    assert ({k: p._version for k, p in params.items()}, x._version) == versions
    assert list(params) == keys


@pytest.mark.parametrize("name", TINY)
def test_hessian_vector_products_agree(name):
    """Forward over reverse equals reverse over reverse, in the parameters and across to the images."""
    net, params, x = prepared(name)
    loss = loss_of(net)
    v = {k: STREAM.fold("v").fold(k).normal(*p.shape, dtype=p.dtype) for k, p in params.items()}
    forward = jvp(lambda p: grad(loss, argnums=(0, 1))(p, x), (params,), (v,))[1]

    def along_v(p, x):
        g = grad(loss)(p, x)
        return sum((g[k] * v[k]).sum() for k in v)

    reverse = grad(along_v, argnums=(0, 1))(params, x)
    assert any(h.abs().max() > 1e-6 for h in reverse[0].values())
    for k in params:
        close(forward[0][k], reverse[0][k], 1e-10)
    close(forward[1], reverse[1], 1e-10)


@pytest.mark.parametrize("shared", [True, False], ids=["shared-x", "batched-x"])
@pytest.mark.parametrize("name", TINY)
def test_vmap_equals_a_loop(name, shared):
    net, params, x = prepared(name)
    several = [params, {k: p * 1.1 for k, p in params.items()}]
    batched = {k: torch.stack([p[k] for p in several]) for k in params}
    xs = x if shared else torch.stack([x, x.flip(0) + 0.5])
    each = [x, x] if shared else list(xs)
    dims = (0, None if shared else 0)
    logits = vmap(net.apply, in_dims=dims)(batched, xs)
    gradients = vmap(grad(loss_of(net)), in_dims=dims)(batched, xs)
    for i, (p, one) in enumerate(zip(several, each, strict=True)):
        close(logits[i], net.apply(p, one), 1e-12)
        expected = grad(loss_of(net))(p, one)
        for k in params:
            close(gradients[k][i], expected[k], 1e-10)


@pytest.mark.parametrize("name", TINY)
def test_bfloat16_is_near_float64(name):
    net, params, x = prepared(name)
    rounded = {k: p.bfloat16() for k, p in params.items()}
    low = net.apply(rounded, x.bfloat16())
    assert low.dtype == torch.bfloat16
    # The same rounded numbers in float64: what is left is the rounding inside, a few of bfloat16's 2^-8 a layer.
    high = net.apply({k: p.double() for k, p in rounded.items()}, x.bfloat16().double())
    close(low.double(), high, 0.1)
    g = grad(loss_of(net))(rounded, x.bfloat16())
    assert all(p.dtype == torch.bfloat16 and torch.isfinite(p).all() for p in g.values())


@pytest.mark.parametrize("name", TINY)
def test_values_are_frozen_hashable_and_bound_once(name):
    net, shape = CASES[name].net, CASES[name].image_shape
    bound = net.bind(shape, 10)
    assert bound.bind(shape, 10) is bound
    assert isinstance(hash(bound), int)
    with pytest.raises(AttributeError):
        bound.classes = 3
    with pytest.raises(CombinationError, match="classes = 10"):
        bound.bind(shape, 11)
    with pytest.raises(CombinationError, match="image_shape"):
        bound.bind((*shape[:-1], shape[-1] + 1), 10)
    for call in (lambda: net.init(STREAM), lambda: net.apply({}, torch.zeros(1, *shape))):
        with pytest.raises(CombinationError, match=r"network\.bind"):
            call()
    with pytest.raises(CombinationError, match="given a batch of shape"):
        bound.apply(bound.init(STREAM), torch.zeros(1, *shape[:-1], shape[-1] + 1))


def test_every_choice_has_a_reference_here():
    assert set(NORMS) == {*NORM_MODULES, "none"}
    assert set(ACTIVATIONS) == set(ACTIVATION_MODULES)
    assert set(POOLINGS) == {*POOLING_MODULES, "none"}


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_activations_are_those_of_torch(act):
    x = torch.linspace(-4, 4, 41, dtype=torch.float64)
    assert torch.equal(ACTIVATIONS[act](x), ACTIVATION_MODULES[act]()(x))


@pytest.mark.parametrize("side", [1, 2, 5, 7, 8, 28, 32])
def test_the_largest_depth_that_convnet_names_fits_and_one_more_does_not(side):
    with pytest.raises(CombinationError, match=r"largest depth that fits is (\d+)") as error:
        ConvNet(depth=20).bind((3, side, side), 10)
    most = int(str(error.value).split("fits is ")[1].split(".")[0])
    if most:
        net = ConvNet(width=1, depth=most, norm="none").bind((3, side, side), 10)
        assert net.apply(net.init(STREAM), torch.zeros(1, 3, side, side)).shape == (1, 10)
    with pytest.raises(CombinationError):
        ConvNet(depth=most + 1).bind((3, side, side), 10)


@pytest.mark.parametrize(
    ("build", "error", "words"),
    [
        (lambda: VGG().bind((3, 16, 16), 10), CombinationError, "32x32 or more"),
        (lambda: AlexNet().bind((3, 7, 7), 10), CombinationError, "8x8 or more"),
        (lambda: ResNet().bind((3, 8, 8), 10), CombinationError, "would not depend on the image"),
        (lambda: ResNet(depth=50), FieldError, "10, 18 or 34"),
        (lambda: VGG(depth=12), FieldError, "11, 13, 16 or 19"),
        (lambda: AlexNet(width=3), FieldError, "even"),
        (lambda: ConvNet(width=6, norm="group").bind((3, 8, 8), 10), FieldError, "multiple of its 4 groups"),
        (lambda: ConvNet().bind((64,), 10), CombinationError, "MLP()"),
        (lambda: ConvNet(depth=1, pooling="none").bind((3, 1, 1), 10), CombinationError, "would not depend on the image"),
        (lambda: ConvNet(first_padding=0, pooling="none").bind((3, 2, 2), 10), CombinationError, "first_padding=1"),
        (lambda: ConvNet(norm="instancenorm"), FieldError, "instance"),
        (lambda: ConvNet(activation="swish"), FieldError, "silu"),
    ],
)
def test_refusals_name_the_way_out(build, error, words):
    with pytest.raises(error, match=words.replace("(", r"\(").replace(")", r"\)")):
        build()


def test_batch_norm_uses_the_batch_it_is_given():
    net, params, x = prepared("ConvNet-batch", n=4)
    together, apart = net.apply(params, x)[:2], net.apply(params, x[:2])
    assert (together - apart).abs().max() > 1e-3
    net, params, x = prepared("ConvNet", n=4)
    close(net.apply(params, x)[:2], net.apply(params, x[:2]), 1e-12)

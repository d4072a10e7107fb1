"""`Functional`: parity with the module it wraps, and the refusals with their ways out. The table of networks has it too."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import grad, vmap

from distilkit.errors import CombinationError, DistilkitError, FieldError
from distilkit.functional.streams import Stream
from distilkit.networks.module import Functional

STREAM = Stream(0).fold("test of Functional")
SHAPE = (3, 4, 4)


def flat(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 6), *layers, nn.Linear(6, 5))


class OwnInit(nn.Module):
    """Writes its own initialisation over its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(48, 5)
        nn.init.constant_(self.fc.bias, 3.0)
        nn.init.normal_(self.fc.weight)

    def forward(self, x):
        return self.fc(x.flatten(1))


class Bare(nn.Module):
    """Owns a parameter and cannot initialise it again."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(48))
        self.fc = nn.Linear(48, 5)

    def forward(self, x):
        return self.fc(x.flatten(1) * self.scale)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(48, 48), nn.Linear(48, 48), nn.Linear(48, 5)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.head(torch.tanh(self.second(torch.tanh(self.first(x.flatten(1))))))


class Buffered(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(48, 5)
        self.register_buffer("shift", torch.arange(48.0))
        self.register_buffer("order", torch.arange(48).flip(0), persistent=False)

    def forward(self, x):
        return self.fc((x.flatten(1) + self.shift)[:, self.order])


class Counting(nn.Module):
    """Changes a buffer when it is called, in place or by setting it anew."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.fc, self.in_place = nn.Linear(48, 5), in_place
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        if self.in_place:
            self.calls.add_(1)
        else:
            self.calls = self.calls + 1
        return self.fc(x.flatten(1))


class RandomForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(48, 5)

    def forward(self, x):
        return self.fc(nn.functional.dropout(x.flatten(1), 0.5))


def test_a_factory_keeps_its_own_initialisation_and_an_instance_that_of_its_layers():
    built = Functional(OwnInit).bind(SHAPE, 5).init(STREAM)
    assert torch.equal(built["fc.bias"], torch.full((5,), 3.0))
    assert built["fc.weight"].abs().max() > 1.5
    reset = Functional(OwnInit()).bind(SHAPE, 5).init(STREAM)
    assert reset["fc.weight"].abs().max() <= 48**-0.5


def test_a_factory_draws_what_torch_draws_under_that_seed():
    net = Functional(lambda: flat(nn.GELU())).bind(SHAPE, 5)
    ours = net.init(STREAM)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(STREAM.integer_seed())
        theirs = dict(flat(nn.GELU()).named_parameters())
    assert all(torch.equal(ours[k], theirs[k].detach()) for k in theirs)


def test_an_instance_is_copied_and_never_touched():
    module = flat(nn.Tanh())
    before = {k: p.clone() for k, p in module.state_dict().items()}
    net = Functional(module).bind(SHAPE, 5)
    params = net.init(STREAM)
    x = STREAM.normal(2, *SHAPE)
    logits = net.apply(params, x)
    assert all(torch.equal(before[k], p) for k, p in module.state_dict().items())
    with torch.no_grad():
        module[1].weight.zero_()
    assert torch.equal(logits, net.apply(params, x))


def test_tied_parameters_are_one_parameter():
    net = Functional(Tied).bind(SHAPE, 5)
    params = net.init(STREAM)
    assert "second.weight" not in params
    x = STREAM.normal(2, *SHAPE)
    module = Tied()
    module.load_state_dict({**params, "second.weight": params["first.weight"]})
    loss = module(x).square().sum()
    loss.backward()
    ours = grad(lambda p: net.apply(p, x).square().sum())(params)
    for k, p in module.named_parameters():
        torch.testing.assert_close(ours[k], p.grad)
    several = {k: torch.stack([p, 2 * p]) for k, p in params.items()}
    torch.testing.assert_close(vmap(net.apply, in_dims=(0, None))(several, x)[0], net.apply(params, x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_buffers_follow_the_batch(dtype):
    net = Functional(Buffered).bind(SHAPE, 5)
    params = {k: p.to(dtype) for k, p in net.init(STREAM).items()}
    x = STREAM.normal(2, *SHAPE).to(dtype)
    logits = net.apply(params, x)
    assert logits.dtype == dtype
    module = Buffered().to(dtype)
    module.load_state_dict(params, strict=False)
    torch.testing.assert_close(logits, module(x).detach())


def test_missing_parameters_are_no_silent_constants():
    net = Functional(OwnInit).bind(SHAPE, 5)
    with pytest.raises(CombinationError, match=r"fc\.bias"):
        net.apply({"fc.weight": torch.zeros(5, 48)}, torch.zeros(1, *SHAPE))


def test_evaluation_mode_and_p_zero_drop_nothing():
    for module in (flat(nn.Dropout(0.5)).eval(), flat(nn.Dropout(0.0))):
        net = Functional(module).bind(SHAPE, 5)
        assert net.init(STREAM)
        assert net.sample(STREAM, 4) == {}


@pytest.mark.parametrize("module", [flat(nn.BatchNorm1d(6)), flat(nn.BatchNorm1d(6)).eval(), lambda: flat(nn.BatchNorm1d(6))])
def test_the_line_to_paste_is_a_way_out_of_batch_norm(module):
    net = Functional(module, batch_norm="batch").bind(SHAPE, 5)
    params, x = net.init(STREAM), STREAM.normal(4, *SHAPE)
    reference = flat(nn.BatchNorm1d(6)).train()
    reference.load_state_dict(params, strict=False)
    torch.testing.assert_close(net.apply(params, x), reference(x).detach())


def shared() -> nn.Module:
    return SHARED


SHARED = flat()
FROZEN = flat()
FROZEN[1].weight.requires_grad_(False)


@pytest.mark.parametrize(
    ("module", "error", "words"),
    [
        (flat(nn.BatchNorm1d(6)), DistilkitError, r"BatchNorm1d \(2\).*[\s\S]*Functional\(module, batch_norm=\"batch\"\)"),
        (lambda: flat(nn.BatchNorm1d(6)), DistilkitError, "running statistics"),
        (lambda: flat(nn.AlphaDropout(0.1)), DistilkitError, r"AlphaDropout \(2\) with p = 0.1[\s\S]*module\.eval\(\)"),
        (lambda: flat().to("meta"), DistilkitError, "meta device"),
        (flat().to("meta"), DistilkitError, "meta device"),
        (lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(5)), DistilkitError, "lazy"),
        (Bare(), DistilkitError, "'scale' and has no reset_parameters[\\s\\S]*lambda"),
        (FROZEN, DistilkitError, "requires_grad = False"),
        (lambda: Counting(True), DistilkitError, "changes calls"),
        (lambda: Counting(False), DistilkitError, "changes calls"),
        (RandomForward, DistilkitError, "random numbers in its forward pass"),
        (lambda: nn.Sequential(nn.ReLU(inplace=True), flat()), DistilkitError, "changes its input in place"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(48, 4)), CombinationError, r"\(2, 4\) for 2 images"),
        (lambda: nn.Conv2d(3, 5, 1), CombinationError, r"\(2, 5, 4, 4\) for 2 images"),
        (lambda: nn.Linear(7, 5), CombinationError, r"does not take images of shape \(3, 4, 4\)"),
        (lambda: 3, FieldError, "it gave 3"),
        (nn.Linear, FieldError, "without arguments"),
        ("resnet18", FieldError, "a torch.nn.Module"),
    ],
)
def test_refusals_name_the_way_out(module, error, words):
    with pytest.raises(error, match=words):
        Functional(module).bind(SHAPE, 5)


def test_a_factory_that_gives_one_module_twice_is_refused():
    with pytest.raises(DistilkitError, match="same module twice"):
        Functional(shared).bind(SHAPE, 5).init(STREAM)


def test_identity_is_equality():
    net = Functional(OwnInit, SHAPE, 5)
    assert net == net
    assert net != Functional(OwnInit, SHAPE, 5)
    assert {net: 1}[net] == 1

"""Inner optimisers: equal to torch.optim, differentiable, and refused where they are not."""

import pytest
import torch
import torchopt

import distilkit as dk
from distilkit.errors import FieldError, GradientError
from distilkit.functional import optimizers
from distilkit.functional.optimizers import TorchOpt

# declaration, and the same in torch.optim
PAIRS = {
    "SGD": (dk.SGD(lr=0.1), lambda p: torch.optim.SGD(p, lr=0.1)),
    "momentum": (dk.SGD(lr=0.1, momentum=0.9), lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)),
    "Nesterov": (
        dk.SGD(lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    ),
    "Adam": (dk.Adam(lr=0.1), lambda p: torch.optim.Adam(p, lr=0.1)),
    "AdamW": (dk.AdamW(lr=0.1), lambda p: torch.optim.AdamW(p, lr=0.1)),
    "RMSProp": (dk.RMSProp(lr=0.1), lambda p: torch.optim.RMSprop(p, lr=0.1)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_same_path_as_torch_optim(name):
    """Ten steps on a quadratic. 1e-5: TorchOpt takes its bias correction in float32 even in double precision."""
    declared, make = PAIRS[name]
    target = dk.Stream(0).normal(6, dtype=torch.float64)
    ours, state = torch.zeros(6, dtype=torch.float64), None
    state = optimizers.init(declared, ours)
    theirs = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    optimizer = make([theirs])
    for _ in range(10):
        optimizer.zero_grad()
        ((theirs - target) ** 2).sum().backward()
        optimizer.step()
        ours, state = optimizers.update(declared, 2 * (ours - target), state, ours)
    assert torch.allclose(ours, theirs.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", PAIRS)
def test_declarations_are_differentiable(name):
    optimizers.check_differentiable(PAIRS[name][0].transformation(), name)


@pytest.mark.parametrize("name", PAIRS)
def test_update_leaves_its_arguments_alone(name):
    """TorchOpt works in place by default, which makes meta-gradients silently zero."""
    declared = PAIRS[name][0]
    params, grads = torch.ones(3), torch.ones(3)
    state = optimizers.init(declared, params)
    kept = [x.clone() for x in optimizers.split_floating(state)[0]]
    optimizers.update(declared, grads, state, params)
    assert params.eq(1).all()
    assert grads.eq(1).all()
    assert all(torch.equal(a, b) for a, b in zip(kept, optimizers.split_floating(state)[0], strict=True))


def test_momentum_goes_on_from_a_stored_state():
    """A transformation built anew must decay the trace that it is given: TorchOpt's own forgets to, on its first call."""
    optimizers._built.cache_clear()
    declared = dk.SGD(lr=1.0, momentum=0.5)
    state = optimizers.split_floating(optimizers.init(declared, torch.zeros(1)))[1]([torch.ones(1)])
    params, _ = optimizers.update(declared, torch.zeros(1), state, torch.zeros(1))
    assert params.item() == -0.5


REFUSED = {
    "no eps_root": lambda: torchopt.adam(1e-3),
    "accelerated": lambda: torchopt.adam(1e-3, use_accelerated_op=True),
    "adagrad from zero": lambda: torchopt.adagrad(1e-2),
    "norm clip that detaches": lambda: torchopt.chain(torchopt.clip.clip_grad_norm(1.0), torchopt.sgd(0.1)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_differentiated_is_refused(name):
    with pytest.raises(GradientError, match=r"derivative|differentiated"):
        TorchOpt(REFUSED[name])


def test_a_silently_zero_derivative_is_refused():
    def factory():
        good = torchopt.sgd(0.1)
        return torchopt.base.GradientTransformation(
            good.init, lambda u, s, *, params=None, inplace=True: good.update(u.detach(), s, params=params, inplace=inplace)
        )

    with pytest.raises(GradientError, match="finite differences"):
        TorchOpt(factory)


def test_any_other_transformation_is_taken():
    chosen = TorchOpt(lambda: torchopt.adamax(1e-2))
    params, _ = optimizers.update(chosen, torch.ones(2), optimizers.init(chosen, torch.zeros(2)), torch.zeros(2))
    assert torch.allclose(params, torch.full((2,), -1e-2))


@pytest.mark.parametrize(("field", "value"), [("eps_root", 0.0), ("lr", -1.0), ("lr", "0.1"), ("lr", True), ("betas", (0.9, 1.0))])
def test_bad_values_are_refused_with_their_field(field, value):
    with pytest.raises(FieldError, match=field):
        dk.Adam(**{field: value})


def test_stacked_networks_step_as_they_would_alone():
    """An optimiser that is not elementwise (it clips by a norm) must not mix the networks of a stack."""
    params, grads = torch.zeros(3, 4), dk.Stream(1).normal(3, 4) * torch.tensor([[1.0], [10.0], [100.0]])
    for chosen in [pair[0] for pair in PAIRS.values()] + [TorchOpt(lambda: torchopt.adamax(1e-2))]:
        together, _ = optimizers.update_many(chosen, grads, optimizers.init_many(chosen, params), params)
        alone = [optimizers.update(chosen, g, optimizers.init(chosen, p), p)[0] for g, p in zip(grads, params, strict=True)]
        assert torch.equal(together, torch.stack(alone))

"""Inner optimisers: equal to torch.optim, differentiable, and refused where they are not."""

import dataclasses

import attrs
import pytest
import torch
import torchopt

import distilkit as dk
from distilkit.errors import CombinationError, FieldError, GradientError
from distilkit.functional import optimizers
from distilkit.functional.optimizers import TorchOpt
from tests.unroll.problems import learner, problem, reference, relative

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
    # It takes no root before its sixth step, so that a single step cannot show it.
    "no root in the first steps": lambda: torchopt.radam(1e-3),
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


ADAMAX = TorchOpt(lambda: torchopt.adamax(lr=0.01))  # counts its steps in a Python int


@pytest.mark.parametrize("compile", ["eager", "trace"])
def test_a_state_with_python_numbers_gives_the_exact_meta_gradient(compile):
    """Against whole-window autograd in float64, to 1e-10, as the other optimisers in test_meta_gradient."""
    inner = learner(ADAMAX, batch_per_class=2)
    leaves, batch, classes = problem()
    window, stream = dk.Window(2, 6), dk.Stream(5)
    loss, truth = reference(inner, leaves, window, batch, stream, classes)
    meta = dk.Unroller(compile=compile).meta_gradient(inner, leaves, window, batch, stream, classes)
    assert relative(meta.loss, loss) < 1e-12
    assert truth.images.norm() > 1e-8
    assert relative(meta.images, truth.images) < 1e-10
    assert relative(meta.labels, truth.labels) < 1e-10


@pytest.mark.parametrize("compile", ["eager", "trace"])
def test_a_state_with_python_numbers_goes_through_the_distiller(compile):
    distiller = dk.Distiller(
        dk.Digits(),
        dk.Learner(dk.MLP(hidden=(8,)), ADAMAX),
        dk.FullUnroll(horizon=3),
        unroller=dk.Unroller(compile=compile),
        device="cpu",
    )
    before = distiller.init()
    after, info = distiller.step(before)
    assert 0 < info.meta_gradient_norm < float("inf")
    assert not torch.equal(distiller.distilled(after).images, distiller.distilled(before).images)


def test_steps_are_counted_in_tensors():
    """As TorchOpt itself goes on: to float32, in which a power of a tensor is taken."""
    params, grads = torch.zeros(3, dtype=torch.float64), dk.Stream(0).normal(5, 3, dtype=torch.float64)
    theirs = torchopt.adamax(lr=0.01)
    state, other = optimizers.init(ADAMAX, params), theirs.init(params)
    for g in grads:
        ours, state = optimizers.update(ADAMAX, g, state, params)
        expected, other = theirs.update(g, other, params=params, inplace=False)
        assert torch.allclose(ours, params + expected, rtol=1e-6, atol=0)
    assert state[0].t.equal(torch.tensor(6))


@attrs.frozen
class LrInside:
    """Forgets that distilkit applies the learning rate."""

    lr: float = 0.1

    def transformation(self):
        return torchopt.sgd(lr=self.lr)


@dataclasses.dataclass(frozen=True)
class LrInsideAdam:
    lr: float = 0.1

    def transformation(self):
        return torchopt.adam(lr=self.lr, eps_root=1e-16)


class LrInsidePlain:
    lr = 0.1

    def transformation(self):
        return torchopt.sgd(lr=self.lr, momentum=0.9)


@attrs.frozen
class NoRoot:
    lr: float = 0.1

    def transformation(self):
        return torchopt.adam(lr=1.0)


@attrs.frozen
class Good:
    lr: float = 0.1

    def transformation(self):
        return torchopt.adamax(lr=1.0)


@pytest.mark.parametrize("cls", [LrInside, LrInsideAdam, LrInsidePlain])
def test_a_learning_rate_that_would_be_applied_twice_is_refused(cls):
    with pytest.raises(CombinationError, match=rf"{cls.__name__}\.transformation\(\) has lr = 0\.1 .* twice") as error:
        dk.Learner(dk.MLP(hidden=(2,)), cls()).bind((1, 2, 2), 2).init(dk.Stream(0))
    assert "lr=1.0" in error.value.fix


def test_an_own_optimiser_without_a_root_is_refused():
    with pytest.raises(GradientError, match="NoRoot has no derivative where a weight's gradient is 0") as error:
        optimizers.init(NoRoot(), torch.zeros(2))
    assert "eps_root=1e-16" in error.value.fix


def test_the_root_of_a_built_in_must_be_one_in_float32():
    """1e-60 is above 0, and is 0 in the dtype that networks are trained in."""
    with pytest.raises(GradientError, match="Adam has no derivative"):
        optimizers.init(dk.Adam(eps_root=1e-60), torch.zeros(2))


@pytest.mark.parametrize("declared", [*(pair[0] for pair in PAIRS.values()), Good()], ids=[*PAIRS, "own"])
def test_each_optimiser_is_checked_once(declared, monkeypatch):
    checked, check = [], optimizers.check_differentiable
    monkeypatch.setattr(optimizers, "check_differentiable", lambda t, name: checked.append(name) or check(t, name))
    optimizers._built.cache_clear()
    for _ in range(3):
        optimizers.init(declared, torch.zeros(2))
    assert checked == [type(declared).__name__]

"""Optimisers: declarations that build TorchOpt transformations, safe to differentiate through.

Each declaration is a frozen value with a learning rate `lr` and a method `transformation()` that returns a TorchOpt
`GradientTransformation` of learning rate one. `update` multiplies its updates by the learning rate, which may be a tensor
that is learned; every optimiser here is linear in its learning rate, so this changes nothing else.

Every declaration, ours or a user's, is checked once, when its transformation is first built: it must be differentiable, also where
a weight has no gradient, and must leave the learning rate to `update`.

TorchOpt modifies its arguments in place unless told otherwise, which under `torch.func` makes a meta-gradient silently
zero: `update` is always out of place. TorchOpt's accelerated operators are never used.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from functools import lru_cache
from typing import Any, ClassVar, Protocol

import attrs
import optree
import torch
import torchopt
from torch import Tensor
from torchopt.base import GradientTransformation

from distilkit import fields
from distilkit.errors import CombinationError, GradientError
from distilkit.functional.pytrees import split_floating

_ROOT = "the square root has no derivative at 0, and one weight without gradient would make the meta-gradient NaN"
_ROOT_FIX = "torchopt.adam(lr=1.0, eps_root=1e-16)  # torchopt.rmsprop has initial_scale=, torchopt.adagrad initial_accumulator_value="


class Optimizer(Protocol):
    """What an optimiser declaration offers."""

    @property
    def lr(self) -> float:
        """Learning rate, per step."""
        ...

    def __hash__(self) -> int:
        """Declarations are values: equal ones share the transformation they build."""
        ...

    def transformation(self) -> GradientTransformation:
        """A TorchOpt transformation with learning rate one, whatever `lr` is."""
        ...


@fields.component
class SGD:
    """Stochastic gradient descent, with momentum if wanted (`torchopt.sgd`).

        m = momentum m + g;   theta = theta - lr m

    Args:
        lr: learning rate.
        momentum: decay of the trace m; 0 for none.
        nesterov: look ahead by one step; needs momentum.
        weight_decay: L2 penalty, added to the gradient.

    >>> SGD(lr=0.1, momentum=0.9).lr
    0.1
    """

    elementwise: ClassVar[bool] = True

    lr: float = fields.number(default=1e-2, above=0)
    momentum: float = fields.number(default=0.0, least=0, below=1)
    nesterov: bool = fields.flag(default=False)
    weight_decay: float = fields.number(default=0.0, least=0)

    def __attrs_post_init__(self) -> None:
        if self.nesterov and self.momentum == 0:
            raise CombinationError("nesterov = true needs a momentum, and momentum is 0.", fix="momentum = 0.9")

    def transformation(self) -> GradientTransformation:
        """`torchopt.sgd` with learning rate one."""
        return torchopt.sgd(lr=1.0, momentum=self.momentum, nesterov=self.nesterov, weight_decay=self.weight_decay)


@fields.component
class Adam:
    """Adam (Kingma and Ba, 2014; `torchopt.adam`).

        m = b1 m + (1 - b1) g;   v = b2 v + (1 - b2) g^2
        theta = theta - lr m_hat / (sqrt(v_hat + eps_root) + eps)

    Args:
        lr: learning rate.
        betas: (b1, b2), decays of the two moments.
        eps: added to the denominator outside of the root.
        eps_root: added inside of the root. Above zero, since the root has no derivative at 0 and one weight without gradient
            would make the meta-gradient NaN. The default, 1e-16, is the square of `eps`: too small to change training.
        weight_decay: L2 penalty, added to the gradient.
    """

    elementwise: ClassVar[bool] = True

    lr: float = fields.number(default=1e-3, above=0)
    betas: tuple[float, float] = fields.numbers(default=(0.9, 0.999), length=2, least=0, below=1)
    eps: float = fields.number(default=1e-8, above=0)
    eps_root: float = fields.number(default=1e-16, above=0, why=_ROOT)
    weight_decay: float = fields.number(default=0.0, least=0)

    def transformation(self) -> GradientTransformation:
        """`torchopt.adam` with learning rate one."""
        return torchopt.adam(lr=1.0, betas=self.betas, eps=self.eps, eps_root=self.eps_root, weight_decay=self.weight_decay)


@fields.component
class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019; `torchopt.adamw`). Arguments as in `Adam`."""

    elementwise: ClassVar[bool] = True

    lr: float = fields.number(default=1e-3, above=0)
    betas: tuple[float, float] = fields.numbers(default=(0.9, 0.999), length=2, least=0, below=1)
    eps: float = fields.number(default=1e-8, above=0)
    eps_root: float = fields.number(default=1e-16, above=0, why=_ROOT)
    weight_decay: float = fields.number(default=1e-2, least=0)

    def transformation(self) -> GradientTransformation:
        """`torchopt.adamw` with learning rate one."""
        return torchopt.adamw(lr=1.0, betas=self.betas, eps=self.eps, eps_root=self.eps_root, weight_decay=self.weight_decay)


@fields.component
class RMSProp:
    """RMSProp (Tieleman and Hinton, 2012; `torchopt.rmsprop`).

        v = alpha v + (1 - alpha) g^2;   theta = theta - lr g / (sqrt(v) + eps)

    Args:
        lr: learning rate.
        alpha: decay of v.
        eps: keeps the denominator away from zero.
        initial_scale: v before the first step. Above zero for the same reason as `Adam.eps_root`.
        momentum: decay of a trace of the updates; 0 for none.
    """

    elementwise: ClassVar[bool] = True

    lr: float = fields.number(default=1e-2, above=0)
    alpha: float = fields.number(default=0.99, least=0, below=1)
    eps: float = fields.number(default=1e-8, above=0)
    initial_scale: float = fields.number(default=1e-12, above=0, why=_ROOT)
    momentum: float = fields.number(default=0.0, least=0, below=1)

    def transformation(self) -> GradientTransformation:
        """`torchopt.rmsprop` with learning rate one."""
        return torchopt.rmsprop(lr=1.0, alpha=self.alpha, eps=self.eps, initial_scale=self.initial_scale, momentum=self.momentum)


@fields.component
class TorchOpt:
    """Any other TorchOpt transformation, from Python.

    The transformation is differentiated once on a small problem and compared with finite differences; one that cannot be
    differentiated, or whose derivative is wrong, is refused by name.

    Args:
        factory: a function without arguments that returns a TorchOpt transformation. It sees all parameters as one vector.
        lr: its updates are multiplied by this.

    Raises:
        GradientError: the transformation's derivative is zero, wrong or not finite.

    >>> TorchOpt(lambda: torchopt.adamax(lr=0.1)).lr
    1.0
    """

    factory: Callable[[], GradientTransformation] = attrs.field()
    lr: float = fields.number(default=1.0, above=0)

    def __attrs_post_init__(self) -> None:
        check_differentiable(self.factory(), name=getattr(self.factory, "__name__", "factory"))

    def transformation(self) -> GradientTransformation:
        """What the factory makes."""
        return self.factory()


def _declared(optimizer: Any) -> Any:
    """The declaration itself, where a component of kind python stands before what its factory built."""
    return optimizer.built if getattr(type(optimizer), "stands_for_built", False) else optimizer


@lru_cache(maxsize=64)
def _built(optimizer: Optimizer) -> GradientTransformation:
    transformation = optimizer.transformation()
    if not isinstance(optimizer, TorchOpt):  # that was checked when it was made
        name = type(_declared(optimizer)).__name__
        check_differentiable(transformation, name)
        _check_learning_rate(optimizer, name)
    return primed(with_tensors(transformation))


def primed(transformation: GradientTransformation) -> GradientTransformation:
    """Call the transformation once on a throwaway tensor.

    TorchOpt's momentum trace treats the first call of each object it builds in another way (it does not decay the trace),
    whatever state it is given. An optimiser that goes on from a stored state would take one wrong step without this.
    """
    x = torch.zeros(1)
    transformation.update(x, transformation.init(x), params=x, inplace=False)
    return transformation


def with_tensors(transformation: GradientTransformation) -> GradientTransformation:
    """The same transformation with tensors without dimensions in place of the Python numbers of its state.

    Some of TorchOpt's count their steps in an `int` (adamax does). An adjoint passes tensors on, and a recorded step would hold
    the count of the step in which it was recorded for ever.

    >>> with_tensors(torchopt.adamax(lr=1.0)).init(torch.zeros(2))[0].t
    tensor(1)
    """

    def tensors(state: Any, like: Tensor) -> Any:
        def one(leaf: Any) -> Any:
            if isinstance(leaf, (bool, int)):
                return torch.tensor(leaf, device=like.device)
            return torch.tensor(leaf, dtype=like.dtype, device=like.device) if isinstance(leaf, float) else leaf

        return optree.tree_map(one, state)

    def init(params: Any) -> Any:
        return tensors(transformation.init(params), params)

    def update(updates: Any, state: Any, *, params: Any = None, inplace: bool = True) -> tuple[Any, Any]:
        updates, state = transformation.update(updates, state, params=params, inplace=inplace)
        return updates, tensors(state, updates)

    return GradientTransformation(init, update)


def init(optimizer: Optimizer, params: Tensor) -> Any:
    """The optimiser's state before the first step, a tree of tensors."""
    return _built(optimizer).init(params)


def update(optimizer: Optimizer, grads: Tensor, state: Any, params: Tensor, lr: Tensor | float | None = None) -> tuple[Tensor, Any]:
    """One step, out of place.

    Args:
        optimizer: the declaration.
        grads: gradient, the shape of params.
        state: from `init` or the step before.
        params: parameters.
        lr: used in place of `optimizer.lr` when given; may be a tensor without dimensions that is differentiated.

    Returns:
        (new params, new state).
    """
    updates, state = _built(optimizer).update(grads, state, params=params, inplace=False)
    return params + updates * (optimizer.lr if lr is None else lr), state


def update_many(optimizer: Optimizer, grads: Tensor, states: Any, params: Tensor, lr: Tensor | float | None = None) -> tuple[Tensor, Any]:
    """One step of several networks whose parameters are stacked: grads and params are (networks, P).

    Every optimiser that works entry by entry takes the whole stack at once. Any other (a `TorchOpt` that clips by a global
    norm, say) would mix the networks, so it takes them one at a time. `states` comes from `init_many`.
    """
    if getattr(optimizer, "elementwise", False):
        return update(optimizer, grads, states, params, lr)
    pairs = [update(optimizer, g, s, p, lr) for g, s, p in zip(grads, states, params, strict=True)]
    return torch.stack([p for p, _ in pairs]), [s for _, s in pairs]


def init_many(optimizer: Optimizer, params: Tensor) -> Any:
    """States for stacked parameters (networks, P), for `update_many`."""
    return init(optimizer, params) if getattr(optimizer, "elementwise", False) else [init(optimizer, p) for p in params]


def check_differentiable(transformation: GradientTransformation, name: str) -> None:
    """Compare the derivative of a transformation with central differences in float64 (relative tolerance 1e-5).

    A meta-gradient is made of derivatives of updates, which are second derivatives of the inner loss.

    Raises:
        GradientError: by name, when the two differ, or when a weight whose gradient is zero gives NaN.
    """
    transformation = primed(with_tensors(transformation))
    generator = torch.Generator().manual_seed(0)
    params, grads, cotangent, *first = torch.randn(6, 5, generator=generator, dtype=torch.float64)
    state = transformation.init(params)
    for g in first:
        _, state = transformation.update(g, state, params=params, inplace=False)
    floats, rebuild = split_floating(state)

    def objective(g: Tensor, p: Tensor, *s: Tensor) -> Tensor:
        updates, new = transformation.update(g, rebuild(list(s)), params=p, inplace=False)
        total: Tensor = (updates * cotangent).sum()
        for leaf in split_floating(new)[0]:
            total = total + (leaf * cotangent).sum() if leaf.shape == cotangent.shape else total + leaf.sum()
        return total

    inputs = (grads, params, *floats)
    wanted = tuple(range(len(inputs)))
    try:
        exact = torch.func.grad(objective, argnums=wanted)(*inputs)
        at_zero = _derivative_at_zero(transformation)
    except RuntimeError as error:
        raise GradientError(
            f"{name} cannot be differentiated (TorchOpt's accelerated operators never can): {str(error).splitlines()[0]}"
        ) from error
    for i, (x, derivative) in enumerate(zip(inputs, exact, strict=True)):
        # Relative to the size of each entry, so that a sum of squares stays above zero.
        direction = x * torch.randn(x.shape, generator=generator, dtype=torch.float64)
        ends = [objective(*(y + sign * 1e-6 * direction if j == i else y for j, y in enumerate(inputs))) for sign in (1, -1)]
        measured, claimed = (ends[0] - ends[1]) / 2e-6, (derivative * direction).sum()
        if not torch.isclose(measured, claimed, rtol=1e-5, atol=1e-7):
            what = "the gradient" if i == 0 else "the parameters" if i == 1 else "the optimiser's state"
            raise GradientError(
                f"{name} cannot be used inside: its derivative with respect to {what} is {claimed.item():.6g}, and finite "
                f"differences say {measured.item():.6g}. The meta-gradient would be wrong."
            )
    if not at_zero.isfinite().all():
        raise GradientError(f"{name} has no derivative where a weight's gradient is 0: {_ROOT}.", fix=_ROOT_FIX)


def _derivative_at_zero(transformation: GradientTransformation) -> Tensor:
    """The derivative of some updates of weights that never had a gradient (RAdam takes no root before its sixth).

    In float32, which networks are trained in: what is added inside of a root may be nothing there.
    """
    params = torch.ones(1, dtype=torch.float32)
    state = transformation.init(params)
    derivatives = []
    for _ in range(8):

        def objective(g: Tensor, state: Any = state) -> tuple[Tensor, Any]:
            updates, new = transformation.update(g, state, params=params, inplace=False)
            total: Tensor = updates.sum()
            return sum((leaf.sum() for leaf in split_floating(new)[0]), total), new

        derivative, state = torch.func.grad(objective, has_aux=True)(torch.zeros_like(params))
        derivatives.append(derivative)
    return torch.cat(derivatives)


def _check_learning_rate(optimizer: Optimizer, name: str) -> None:
    """Refuse a declaration whose transformation has its learning rate in it: `update` would apply that a second time.

    Raises:
        CombinationError: with half the learning rate, `transformation()` gives other updates.
    """
    declared = _declared(optimizer)
    other = _with_lr(declared, declared.lr / 2)
    if other is None:
        return
    params, *grads = torch.randn(4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ours, theirs = (primed(one.transformation()) for one in (declared, other))
    states = [one.init(params) for one in (ours, theirs)]
    for g in grads:
        (a, states[0]), (b, states[1]) = (
            one.update(g, state, params=params, inplace=False) for one, state in zip((ours, theirs), states, strict=True)
        )
        if not torch.allclose(a, b, rtol=1e-6, atol=0):
            raise CombinationError(
                f"{name}.transformation() has lr = {declared.lr:g} in it, and distilkit multiplies its updates by lr too, so that the "
                "learning rate would be applied twice. It must have learning rate one.",
                fix=f"torchopt.sgd(lr=1.0)  # or what {name}.transformation() returns, with lr=1.0",
            )


def _with_lr(optimizer: Any, lr: float) -> Any:
    """The same declaration with another learning rate, or None where its class does not let it be set."""
    try:
        if attrs.has(type(optimizer)):
            return attrs.evolve(optimizer, lr=lr)
        if dataclasses.is_dataclass(optimizer) and not isinstance(optimizer, type):
            return dataclasses.replace(optimizer, lr=lr)
        other: Any = copy.copy(optimizer)
        other.lr = lr
    except (AttributeError, TypeError, ValueError):
        return None
    return other

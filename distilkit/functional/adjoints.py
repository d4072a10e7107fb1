"""The two adjoints: how the gradient of the outer loss flows back through the window.

Both take pure functions and tensors, and give the same gradient. `AutogradAdjoint` lets reverse mode run over the whole
window, whose graph is alive at once. `ReplayAdjoint` stores the trajectory (theta_t, s_t, g_t) only and takes one step at a
time, so that its memory is flat in the window but for that trajectory (docs/adjoint.md derives it).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import attrs
import torch
from torch import Tensor

from distilkit import fields
from distilkit.errors import GradientError
from distilkit.functional.pytrees import split_floating


class Leaves(NamedTuple):
    """What is distilled: the floating tensors that a meta-gradient is taken with respect to.

    images (N, ...) and labels (N, K) enter the inner loss; log_lr (), the logarithm of the inner learning rate, the update.
    """

    images: Tensor
    labels: Tensor
    log_lr: Tensor


class InnerProblem(NamedTuple):
    """The inner problem as pure functions.

    loss(theta, images, labels, draw) -> ();  update(theta, state, gradient, log_lr) -> (theta, state);  outer(theta) -> ().
    """

    loss: Callable[[Tensor, Tensor, Tensor, Any], Tensor]
    update: Callable[[Tensor, Any, Tensor, Tensor], tuple[Tensor, Any]]
    outer: Callable[[Tensor], Tensor]

    def step(self, theta: Tensor, state: Any, leaves: Leaves, draw: Any) -> tuple[Tensor, Any, Tensor]:
        """One inner step: the new (theta, state) and the gradient that made it."""
        gradient = torch.func.grad(self.loss)(theta, leaves.images, leaves.labels, draw)
        theta, state = self.update(theta, state, gradient, leaves.log_lr)
        return theta, state, gradient


@attrs.frozen
class AutogradAdjoint:
    """Reverse mode over the whole window. Exact; memory grows with every step of it. The reference to compare with."""

    def __call__(self, problem: InnerProblem, theta: Tensor, state: Any, leaves: Leaves, draws: Sequence[Any]) -> tuple[Tensor, Leaves]:
        """Return the outer loss at the end of the window and its gradient; see `ReplayAdjoint`."""

        def window(leaves: Leaves) -> Tensor:
            th, st = theta, state
            for draw in draws:
                th, st, _ = problem.step(th, st, leaves, draw)
            return problem.outer(th)

        gradient, loss = torch.func.grad_and_value(window)(leaves)
        return loss, gradient


@attrs.frozen
class ReplayAdjoint:
    """Store the trajectory and go back through it one step at a time: exact, with memory flat in the window.

    With cotangents (lam, sig) of (theta, s), one step back is (design of distilkit; cf. Deng and Russakovsky 2022, and
    MixFlow-MG, Kemaev et al. 2025)

        a, b, v    = pullback of update at (theta_t, s_t, g_t), applied to (lam, sig)
        h, dS     += d/d(theta, S) of < grad_theta loss(theta_t; S, draw_t), v >
        lam, sig   = a + h, b

    Args:
        product: how the product with the second derivatives is taken. "forward-over-reverse" is the forward derivative, along
            v, of the gradient with respect to (theta, S); "reverse-over-reverse" differentiates < grad, v > backwards, which
            needs no forward rule of any operation in the network, and costs about half as much again.

    >>> ReplayAdjoint().product
    'forward-over-reverse'
    """

    product: str = fields.choice("forward-over-reverse", ["forward-over-reverse", "reverse-over-reverse"])

    def __call__(self, problem: InnerProblem, theta: Tensor, state: Any, leaves: Leaves, draws: Sequence[Any]) -> tuple[Tensor, Leaves]:
        """Run the window forwards, then back.

        Args:
            problem: the inner problem.
            theta: parameters (P,) at the window's start, a constant.
            state: the optimiser's state there, a constant.
            leaves: what is differentiated.
            draws: one draw for each step of the window.

        Returns:
            (outer loss at the window's end, its gradient with respect to the leaves).
        """
        trajectory = []
        for draw in draws:
            after, state_after, gradient = problem.step(theta, state, leaves, draw)
            trajectory.append((theta, state, gradient, draw))
            theta, state = after, state_after
        lam, loss = torch.func.grad_and_value(problem.outer)(theta)
        sig = [torch.zeros_like(s) for s in split_floating(state)[0]]
        total = Leaves(*(torch.zeros_like(x) for x in leaves))
        while trajectory:
            theta, state, gradient, draw = trajectory.pop()
            pulled, sig, v, d_log_lr = pull_update(problem, theta, state, gradient, leaves.log_lr, lam, sig)
            h, d_images, d_labels = self._second(problem, theta, leaves, draw, v)
            lam = pulled + h
            total = Leaves(total.images + d_images, total.labels + d_labels, total.log_lr + d_log_lr)
        return loss, total

    def _second(self, problem: InnerProblem, theta: Tensor, leaves: Leaves, draw: Any, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """d/d(theta, images, labels) of < grad_theta loss, v >."""
        if self.product == "forward-over-reverse":
            _load_forward_rules()
            gradients = torch.func.grad(problem.loss, argnums=(0, 1, 2))
            try:
                product = torch.func.jvp(lambda th: gradients(th, leaves.images, leaves.labels, draw), (theta,), (v,))[1]
            except NotImplementedError as error:
                raise GradientError(
                    f"ReplayAdjoint takes forward derivatives, and an operation of the network has none: {str(error).splitlines()[0]}",
                    fix='dk.ReplayAdjoint(product="reverse-over-reverse")',
                ) from error
            return product  # type: ignore[no-any-return]

        def directional(th: Tensor, images: Tensor, labels: Tensor) -> Tensor:
            return torch.dot(torch.func.grad(problem.loss)(th, images, labels, draw), v)

        product = torch.func.grad(directional, argnums=(0, 1, 2))(theta, leaves.images, leaves.labels)
        return product  # type: ignore[no-any-return]


@cache
def _load_forward_rules() -> None:
    """The first forward derivative of a process makes torch load its rules, which warns about torch's own use of jit."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.script.* is deprecated", category=FutureWarning)
        warnings.filterwarnings("ignore", message=".*torch.jit.script.* is deprecated", category=DeprecationWarning)
        torch.func.jvp(torch.sin, (torch.zeros(1),), (torch.ones(1),))


def pull_update(
    problem: InnerProblem, theta: Tensor, state: Any, gradient: Tensor, log_lr: Tensor, lam: Tensor, sig: list[Tensor]
) -> tuple[Tensor, list[Tensor], Tensor, Tensor]:
    """Pull the cotangents (lam, sig) of an update's results back to its arguments.

    Returns:
        cotangents of (theta, floating leaves of the state, gradient, log_lr).
    """
    floats, rebuild = split_floating(state)

    def update(th: Tensor, st: list[Tensor], g: Tensor, lr: Tensor) -> tuple[Tensor, list[Tensor]]:
        th, new = problem.update(th, rebuild(st), g, lr)
        return th, split_floating(new)[0]

    pullback = torch.func.vjp(update, theta, floats, gradient, log_lr)[1]
    return pullback((lam, sig))  # type: ignore[no-any-return]

"""The inner problem as pure functions, and its step: on all images of it together, or in parts.

In parts, images go through the network a micro-batch at a time, and what comes of them is added up: the gradient of the inner loss on
the way forward, its products with the second derivatives on the way back. Each is a program that is called for one part after the other,
so that what is alive is that of one part, however many there are. The gradient is computed once more on the way back, since the update's
pullback needs all of it before the first product can be taken: fifteen forward passes a step, where it is twelve for a whole one.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from distilkit.errors import GradientError
from distilkit.functional.parts import Part
from distilkit.functional.pytrees import split_floating
from distilkit.programs.programs import Programs

HessianProduct = Literal["reverse-over-reverse", "forward-over-reverse"]


class OuterVariables(NamedTuple):
    """The outer variables: the floating tensors that a meta-gradient is taken with respect to.

    images (N, ...) and labels (N, K) enter the inner loss; log_lr (), the logarithm of the inner learning rate, or (steps,) where each of
    the first steps has one of its own, the update.
    """

    images: Tensor
    labels: Tensor
    log_lr: Tensor


class InnerProblem(NamedTuple):
    """The inner problem as pure functions.

    loss(theta, images, labels, draw) -> ();  update(theta, state, gradient, log_lr, draw) -> (theta, state);
    outer(theta, images, labels) -> ().  `name` tells problems apart that are one but for their precision. `plain` is the same problem in
    plain form, with images in the usual layout and torch's operations alone, to fall back to; None where this is that. `fused` says that
    a compiler will join operations: gradients that nobody differentiates are then made of many small ones all the same, and else of as
    few as torch has. `parts` takes a step's (leaves, draw) apart into micro-batches, whose losses, each times its share, add up to that of
    the step; None where all images go through the network together.
    """

    loss: Callable[[Tensor, Tensor, Tensor, Any], Tensor]
    update: Callable[[Tensor, Any, Tensor, Tensor, Any], tuple[Tensor, Any]]
    outer: Callable[[Tensor, Tensor, Tensor], Tensor]
    name: str = ""
    plain: InnerProblem | None = None
    fused: bool = False
    parts: Callable[[OuterVariables, Any], Iterable[Part]] | None = None

    @property
    def ways(self) -> tuple[InnerProblem, ...]:
        """This problem, and what to fall back to."""
        return (self,) if self.plain is None else (self, self.plain)

    def step(self, theta: Tensor, state: Any, leaves: OuterVariables, draw: Any) -> tuple[Tensor, Any]:
        """One inner step: the new (theta, state)."""
        gradient = self.gradient(theta, leaves.images, leaves.labels, draw)
        return self.update(theta, state, gradient, leaves.log_lr, draw)

    def measured_step(self, theta: Tensor, state: Any, leaves: OuterVariables, draw: Any) -> tuple[Tensor, Any, Tensor]:
        """One inner step, and the norm () of its gradient."""
        gradient = self.gradient(theta, leaves.images, leaves.labels, draw)
        return *self.update(theta, state, gradient, leaves.log_lr, draw), gradient.norm()

    def gradient(self, theta: Tensor, images: Tensor, labels: Tensor, draw: Any) -> Tensor:
        """The gradient of the inner loss with respect to theta, which nobody differentiates."""
        return self._gradient(self.loss, theta, images, labels, draw)[0]

    def end(self, theta: Tensor, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The outer loss, and its gradient with respect to theta."""
        gradient, loss = self._gradient(self.outer, theta, images, labels)
        return loss, gradient

    def _gradient(self, function: Callable[..., Tensor], theta: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        """The gradient with respect to theta, and the value.

        `torch.func.grad` makes a gradient that can be differentiated once more: of a norm, twenty operations. A pullback is that only where
        somebody records it, and else takes torch's single one.
        """
        if self.fused:
            return torch.func.grad_and_value(function)(theta, *rest)
        value, pull = torch.func.vjp(lambda th: function(th, *rest), theta)[:2]
        return pull(torch.ones_like(value))[0], value


def step(programs: Programs, problem: InnerProblem) -> Callable[..., tuple[Tensor, Any]]:
    """One inner step, made fast: (theta, state, leaves, draw) -> (theta, state)."""
    if problem.parts is None:
        return programs(f"step {problem.name}", *(way.step for way in problem.ways))
    measured = measured_step(programs, problem)
    return lambda *arguments: measured(*arguments)[:2]


def measured_step(programs: Programs, problem: InnerProblem) -> Callable[..., tuple[Tensor, Any, Tensor]]:
    """The same with the norm of its gradient, made fast: (theta, state, leaves, draw) -> (theta, state, norm)."""
    if problem.parts is None:
        return programs(f"measured step {problem.name}", *(way.measured_step for way in problem.ways))
    update = programs(*_update_program(problem))

    def in_parts(theta: Tensor, state: Any, leaves: OuterVariables, draw: Any) -> tuple[Tensor, Any, Tensor]:
        gradient = _whole_gradient(programs, problem, theta, leaves, draw)
        return *update(theta, state, gradient, leaves.log_lr, draw), gradient.norm()

    return in_parts


def back_in_parts(
    programs: Programs, problem: InnerProblem, method: HessianProduct
) -> Callable[..., tuple[Tensor, list[Tensor], OuterVariables]]:
    """One step back, in parts: from cotangents after the step, and the sums so far, which are written over, to those before it."""
    pull_update, products = programs(*_pull_program(problem)), programs(*_product_program(problem, method))

    def back(
        theta: Tensor, state: Any, leaves: OuterVariables, draw: Any, lam: Tensor, sig: list[Tensor], total: OuterVariables
    ) -> tuple[Tensor, list[Tensor], OuterVariables]:
        gradient = _whole_gradient(programs, problem, theta, leaves, draw)
        lam, sig, v, d_log_lr = pull_update(theta, state, gradient, leaves.log_lr, draw, lam, sig)
        for part in _parts(problem, leaves, draw):
            h, d_images, d_labels = products(theta, part.images, part.labels, part.draw, part.share * v)
            lam = lam + h
            total.images[part.rows] += d_images
            total.labels[part.rows] += d_labels
        return lam, sig, total._replace(log_lr=total.log_lr + d_log_lr)

    return back


def programs_in_parts(
    problem: InnerProblem, method: HessianProduct, theta: Tensor, state: Any, leaves: OuterVariables, draw: Any
) -> list[tuple[str, Callable[..., Any], tuple[Any, ...]]]:
    """The programs of a step in parts and of its way back: name and function of each, and arguments of the shapes of its calls."""
    part = next(iter(_parts(problem, leaves, draw)))
    first = (theta, part.images, part.labels, part.draw)
    update = (theta, state, theta, leaves.log_lr, draw)
    return [
        (*_gradient_program(problem)[:2], first),
        (*_update_program(problem)[:2], update),
        (*_pull_program(problem)[:2], (*update, theta, split_floating(state)[0])),
        (*_product_program(problem, method)[:2], (*first, theta)),
    ]


def _parts(problem: InnerProblem, leaves: OuterVariables, draw: Any) -> Iterable[Part]:
    assert problem.parts is not None
    return problem.parts(leaves, draw)


def _whole_gradient(programs: Programs, problem: InnerProblem, theta: Tensor, leaves: OuterVariables, draw: Any) -> Tensor:
    """The gradient of a step's loss, added up over its parts in their order."""
    gradient, total = programs(*_gradient_program(problem)), torch.zeros_like(theta)
    for part in _parts(problem, leaves, draw):
        total.add_(gradient(theta, part.images, part.labels, part.draw), alpha=part.share)
    return total


def _gradient_program(problem: InnerProblem) -> tuple[Any, ...]:
    return f"gradient {problem.name}", *(way.gradient for way in problem.ways)


def _update_program(problem: InnerProblem) -> tuple[Any, ...]:
    return f"update {problem.name}", problem.update


def _pull_program(problem: InnerProblem) -> tuple[Any, ...]:
    def pulled(theta: Tensor, state: Any, gradient: Tensor, log_lr: Tensor, draw: Any, lam: Tensor, sig: list[Tensor]) -> Any:
        return update_and_pullback(problem, theta, state, gradient, log_lr, draw)[1](lam, sig)

    return f"pull update {problem.name}", pulled


def _product_program(problem: InnerProblem, method: HessianProduct) -> tuple[Any, ...]:
    return f"product {problem.name}, {method}", *(product(way, method) for way in problem.ways)


def product(problem: InnerProblem, method: HessianProduct) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """The product with the second derivatives: of (theta, images, labels, draw, v), d/d(theta, images, labels) < grad_theta loss, v >."""

    def reverse(theta: Tensor, images: Tensor, labels: Tensor, draw: Any, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        def gradient_of(th: Tensor, images: Tensor, labels: Tensor) -> Tensor:
            gradient: Tensor = torch.func.grad(problem.loss)(th, images, labels, draw)
            return gradient

        pull = torch.func.vjp(gradient_of, theta, images, labels)[1]
        h, d_images, d_labels = pull(v)
        return h, d_images, d_labels

    def forward(theta: Tensor, images: Tensor, labels: Tensor, draw: Any, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        _load_forward_rules()
        gradients = torch.func.grad(problem.loss, argnums=(0, 1, 2))
        try:
            h, d_images, d_labels = torch.func.jvp(lambda th: gradients(th, images, labels, draw), (theta,), (v,))[1]
        except NotImplementedError as error:
            raise GradientError(
                f"An operation of the network has no forward derivative: {str(error).splitlines()[0]}",
                fix='dk.ReplayAdjoint(hessian_product="reverse-over-reverse")',
            ) from error
        return h, d_images, d_labels

    return forward if method == "forward-over-reverse" else reverse


def update_and_pullback(
    problem: InnerProblem, theta: Tensor, state: Any, gradient: Tensor, log_lr: Tensor, draw: Any
) -> tuple[tuple[Tensor, Any], Callable[[Tensor, list[Tensor]], tuple[Tensor, list[Tensor], Tensor, Tensor]]]:
    """An update, and its pullback.

    Returns:
        the new (theta, state), and a function from cotangents (lam, sig) of them to those of (theta, floating leaves of the state,
        gradient, log_lr).
    """
    floats, rebuild = split_floating(state)

    def update(th: Tensor, st: list[Tensor], g: Tensor, lr: Tensor) -> tuple[tuple[Tensor, list[Tensor]], Any]:
        th, new = problem.update(th, rebuild(st), g, lr, draw)
        return (th, split_floating(new)[0]), new

    (new_theta, new_floats), pullback, new = torch.func.vjp(update, theta, floats, gradient, log_lr, has_aux=True)  # type: ignore[misc]
    return (new_theta, split_floating(new)[1](new_floats)), lambda lam, sig: pullback((lam, sig))


def summed(total: OuterVariables, images: Tensor, labels: Tensor, log_lr: Tensor) -> OuterVariables:
    """Sums so far, and what comes on top of each."""
    return OuterVariables(total.images + images, total.labels + labels, total.log_lr + log_lr)


@cache
def _load_forward_rules() -> None:
    """The first forward derivative of a process makes torch load its rules, which warns about torch's own use of jit."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.script.* is deprecated", category=FutureWarning)
        warnings.filterwarnings("ignore", message=".*torch.jit.script.* is deprecated", category=DeprecationWarning)
        torch.func.jvp(torch.sin, (torch.zeros(1),), (torch.ones(1),))

"""The two adjoints: how the gradient of the outer loss flows back through the window.

Both take pure functions and tensors, and give the same gradient. `AutogradAdjoint` lets reverse mode run over the whole
window, whose graph is alive at once. `ReplayAdjoint` stores the trajectory (theta_t, s_t) only and takes one step at a time, so
that its memory is flat in the window but for that trajectory (docs/adjoint.md derives it).
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
from distilkit.functional.programs import Programs
from distilkit.functional.pytrees import split_floating, tensor_map


class Leaves(NamedTuple):
    """What is distilled: the floating tensors that a meta-gradient is taken with respect to.

    images (N, ...) and labels (N, K) enter the inner loss; log_lr (), the logarithm of the inner learning rate, the update.
    """

    images: Tensor
    labels: Tensor
    log_lr: Tensor


class InnerProblem(NamedTuple):
    """The inner problem as pure functions. `name` tells problems apart that are one but for their precision.

    loss(theta, images, labels, draw) -> ();  update(theta, state, gradient, log_lr) -> (theta, state);
    outer(theta, images, labels) -> ().
    """

    loss: Callable[[Tensor, Tensor, Tensor, Any], Tensor]
    update: Callable[[Tensor, Any, Tensor, Tensor], tuple[Tensor, Any]]
    outer: Callable[[Tensor, Tensor, Tensor], Tensor]
    name: str = ""

    def step(self, theta: Tensor, state: Any, leaves: Leaves, draw: Any) -> tuple[Tensor, Any]:
        """One inner step: the new (theta, state)."""
        gradient = torch.func.grad(self.loss)(theta, leaves.images, leaves.labels, draw)
        return self.update(theta, state, gradient, leaves.log_lr)

    def end(self, theta: Tensor, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The outer loss, and its gradient with respect to theta."""
        gradient, loss = torch.func.grad_and_value(self.outer)(theta, images, labels)
        return loss, gradient


class Step(NamedTuple):
    """One step of a window: the inner problem it belongs to (its precision may differ from the next one's) and its draw."""

    problem: InnerProblem
    draw: Any


class End(NamedTuple):
    """What closes a window: the problem, and real data in one or more micro-batches [(images, labels), ...] of equal size."""

    problem: InnerProblem
    batches: Sequence[tuple[Tensor, Tensor]]


@attrs.frozen
class AutogradAdjoint:
    """Reverse mode over the whole window. Exact; memory grows with every step of it. The reference to compare with."""

    def __call__(
        self, steps: Sequence[Step], end: End, theta: Tensor, state: Any, leaves: Leaves, programs: Programs
    ) -> tuple[Tensor, Leaves]:
        """Return the outer loss at the end of the window and its gradient; see `ReplayAdjoint`. Always eager."""

        def window(leaves: Leaves) -> Tensor:
            th, st = theta, state
            for problem, draw in steps:
                th, st = problem.step(th, st, leaves, draw)
            losses = [end.problem.outer(th, *batch) for batch in end.batches]
            return torch.stack(losses).mean()

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
        product: how the product with the second derivatives is taken. "reverse-over-reverse" pulls v back through the gradient,
            which is computed there anyway, and needs no forward rule of any operation in the network; "forward-over-reverse" is
            the forward derivative, along v, of the gradient with respect to (theta, S), which holds less at a time.
        every: store the state of every k-th step only, and run the steps between once more on the way back: k times less
            memory for the trajectory, three more forward passes a step.
        store: where the trajectory waits: "device", or "host" (pinned memory, copied while the device works).

    >>> ReplayAdjoint().product
    'reverse-over-reverse'
    """

    product: str = fields.choice("reverse-over-reverse", ["reverse-over-reverse", "forward-over-reverse"])
    every: int = fields.integer(1, least=1)
    store: str = fields.choice("device", ["device", "host"])

    def __call__(
        self, steps: Sequence[Step], end: End, theta: Tensor, state: Any, leaves: Leaves, programs: Programs
    ) -> tuple[Tensor, Leaves]:
        """Run the window forwards, then back.

        Args:
            steps: the steps of the window.
            end: the outer loss.
            theta: parameters (P,) at the window's start, a constant.
            state: the optimiser's state there, a constant.
            leaves: what is differentiated.
            programs: makes the functions of a step fast.

        Returns:
            (outer loss at the window's end, its gradient with respect to the leaves).
        """
        waiting: list[Any] = []  # (theta, state) at steps 0, every, 2 every, ...
        park, fetch = _parking(self.store, theta.device)
        for t, (problem, draw) in enumerate(steps):
            if t % self.every == 0:
                waiting.append(park((theta, state)))
            theta, state = programs(f"step {problem.name}", problem.step)(theta, state, leaves, draw)
        loss, lam = _outer(end, theta, programs)
        sig = [torch.zeros_like(s) for s in split_floating(state)[0]]
        total = Leaves(*(torch.zeros_like(x) for x in leaves))
        while waiting:
            first = (len(waiting) - 1) * self.every
            here = steps[first : first + self.every]
            segment = [fetch(waiting.pop())]
            for problem, draw in here[:-1]:  # the states between, once more
                segment.append(programs(f"step {problem.name}", problem.step)(*segment[-1], leaves, draw))
            for problem, draw in reversed(here):
                theta, state = segment.pop()
                back = programs(f"back {problem.name}", self.back(problem))
                lam, sig, total = back(theta, state, leaves, draw, lam, sig, total)
        return loss, total

    def back(self, problem: InnerProblem) -> Callable[..., tuple[Tensor, list[Tensor], Leaves]]:
        """The function of one step back: from cotangents after the step, and the sums so far, to those before it."""

        def reverse(
            theta: Tensor, state: Any, leaves: Leaves, draw: Any, lam: Tensor, sig: list[Tensor], total: Leaves
        ) -> tuple[Tensor, list[Tensor], Leaves]:
            def gradient_of(th: Tensor, images: Tensor, labels: Tensor) -> Tensor:
                gradient: Tensor = torch.func.grad(problem.loss)(th, images, labels, draw)
                return gradient

            gradient, pull = torch.func.vjp(gradient_of, theta, leaves.images, leaves.labels)[:2]
            pulled, sig, v, d_log_lr = pull_update(problem, theta, state, gradient, leaves.log_lr, lam, sig)
            h, d_images, d_labels = pull(v)
            return pulled + h, sig, _sum(total, d_images, d_labels, d_log_lr)

        def forward(
            theta: Tensor, state: Any, leaves: Leaves, draw: Any, lam: Tensor, sig: list[Tensor], total: Leaves
        ) -> tuple[Tensor, list[Tensor], Leaves]:
            _load_forward_rules()
            gradients = torch.func.grad(problem.loss, argnums=(0, 1, 2))
            gradient = torch.func.grad(problem.loss)(theta, leaves.images, leaves.labels, draw)
            pulled, sig, v, d_log_lr = pull_update(problem, theta, state, gradient, leaves.log_lr, lam, sig)
            try:
                product = torch.func.jvp(lambda th: gradients(th, leaves.images, leaves.labels, draw), (theta,), (v,))[1]
            except NotImplementedError as error:
                raise GradientError(
                    f"An operation of the network has no forward derivative: {str(error).splitlines()[0]}",
                    fix='dk.ReplayAdjoint(product="reverse-over-reverse")',
                ) from error
            h, d_images, d_labels = product
            return pulled + h, sig, _sum(total, d_images, d_labels, d_log_lr)

        return forward if self.product == "forward-over-reverse" else reverse


def _sum(total: Leaves, images: Tensor, labels: Tensor, log_lr: Tensor) -> Leaves:
    return Leaves(total.images + images, total.labels + labels, total.log_lr + log_lr)


def _outer(end: End, theta: Tensor, programs: Programs) -> tuple[Tensor, Tensor]:
    """The outer loss over all micro-batches and its gradient: both are means over equal micro-batches."""
    function = programs(f"end {end.problem.name}", end.problem.end)
    loss, lam = function(theta, *end.batches[0])
    for batch in end.batches[1:]:
        more_loss, more_lam = function(theta, *batch)
        loss, lam = loss + more_loss, lam + more_lam
    return loss / len(end.batches), lam / len(end.batches)


def _parking(store: str, device: torch.device) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """How a part of the trajectory is put away and taken back. On the host, a stream of its own copies while the device works."""
    if store == "device" or device.type != "cuda":
        return (lambda tree: tree), (lambda tree: tree)
    side = torch.cuda.Stream(device)

    def away(x: Tensor) -> Tensor:
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            host = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
            host.copy_(x, non_blocking=True)
            x.record_stream(side)
        return host

    def back(x: Tensor) -> Tensor:
        torch.cuda.current_stream(device).wait_stream(side)
        return x.to(device, non_blocking=True)

    return (lambda tree: tensor_map(away, tree)), (lambda tree: tensor_map(back, tree))


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

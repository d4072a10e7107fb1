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

    def step(self, theta: Tensor, state: Any, leaves: Leaves, draw: Any) -> tuple[Tensor, Any, Tensor]:
        """One inner step: the new (theta, state) and the gradient that made it."""
        gradient = torch.func.grad(self.loss)(theta, leaves.images, leaves.labels, draw)
        theta, state = self.update(theta, state, gradient, leaves.log_lr)
        return theta, state, gradient

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
                th, st, _ = problem.step(th, st, leaves, draw)
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
        product: how the product with the second derivatives is taken. "forward-over-reverse" is the forward derivative, along
            v, of the gradient with respect to (theta, S); "reverse-over-reverse" differentiates < grad, v > backwards, which
            needs no forward rule of any operation in the network.
        every: store the state of every k-th step only, and run the steps between once more on the way back: k times less
            memory for the trajectory, three more forward passes a step.
        store: where the trajectory waits: "device", or "host" (pinned memory, copied while the device works).

    >>> ReplayAdjoint().product
    'forward-over-reverse'
    """

    product: str = fields.choice("forward-over-reverse", ["forward-over-reverse", "reverse-over-reverse"])
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
        waiting: list[Any] = []  # the states at steps 0, every, 2 every, ...
        segment: list[tuple[Tensor, Any, Tensor]] = []  # (theta, state, gradient) of the steps since
        park, fetch = _parking(self.store, theta.device)
        for t, (problem, draw) in enumerate(steps):
            if t % self.every == 0:
                waiting.append(park((theta, state)) if self.every > 1 else None)
                segment = []
            after, state_after, gradient = programs(f"step {problem.name}", problem.step)(theta, state, leaves, draw)
            if self.every == 1:
                waiting[-1] = park((theta, state, gradient))
            theta, state = after, state_after
        loss, lam = _outer(end, theta, programs)
        sig = [torch.zeros_like(s) for s in split_floating(state)[0]]
        total = Leaves(*(torch.zeros_like(x) for x in leaves))
        while waiting:
            first = (len(waiting) - 1) * self.every
            here = steps[first : first + self.every]
            segment = [fetch(waiting.pop())] if self.every == 1 else _again(here, fetch(waiting.pop()), leaves, programs)
            for problem, draw in reversed(here):
                theta, state, gradient = segment.pop()
                back = programs(f"back {problem.name}", self._back(problem))
                lam, sig, total = back(theta, state, gradient, leaves, draw, lam, sig, total)
        return loss, total

    def _back(self, problem: InnerProblem) -> Callable[..., tuple[Tensor, list[Tensor], Leaves]]:
        """The function of one step back: cotangents after the step, and the sums so far, to those before it."""

        def back(
            theta: Tensor, state: Any, gradient: Tensor, leaves: Leaves, draw: Any, lam: Tensor, sig: list[Tensor], total: Leaves
        ) -> tuple[Tensor, list[Tensor], Leaves]:
            pulled, sig, v, d_log_lr = pull_update(problem, theta, state, gradient, leaves.log_lr, lam, sig)
            h, d_images, d_labels = self._second(problem, theta, leaves, draw, v)
            summed = Leaves(total.images + d_images, total.labels + d_labels, total.log_lr + d_log_lr)
            return pulled + h, sig, summed

        return back

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


def _again(steps: Sequence[Step], start: tuple[Tensor, Any], leaves: Leaves, programs: Programs) -> list[tuple[Tensor, Any, Tensor]]:
    """Run a segment once more and return (theta, state, gradient) of every step of it."""
    theta, state = start
    segment = []
    for problem, draw in steps:
        after, state_after, gradient = programs(f"step {problem.name}", problem.step)(theta, state, leaves, draw)
        segment.append((theta, state, gradient))
        theta, state = after, state_after
    return segment


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

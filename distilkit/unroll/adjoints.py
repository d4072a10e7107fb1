"""The two adjoints: how the gradient of the outer loss flows back through the window.

Both take pure functions and tensors, and give the same gradient. `AutogradAdjoint` lets reverse mode run over the whole
window, whose graph is alive at once. `ReplayAdjoint` stores the trajectory (theta_t, s_t) only and takes one step at a time, so
that its memory is flat in the window but for that trajectory (docs/adjoint.md derives it).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from distilkit import fields
from distilkit.errors import CombinationError, GradientError
from distilkit.functional.pytrees import split_floating, tensor_map
from distilkit.programs.programs import Programs
from distilkit.unroll.offload import Offload

HessianProduct = Literal["reverse-over-reverse", "forward-over-reverse"]

Place = Literal["device", "host"]


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
    few as torch has.
    """

    loss: Callable[[Tensor, Tensor, Tensor, Any], Tensor]
    update: Callable[[Tensor, Any, Tensor, Tensor, Any], tuple[Tensor, Any]]
    outer: Callable[[Tensor, Tensor, Tensor], Tensor]
    name: str = ""
    plain: InnerProblem | None = None
    fused: bool = False

    @property
    def ways(self) -> tuple[InnerProblem, ...]:
        """This problem, and what to fall back to."""
        return (self,) if self.plain is None else (self, self.plain)

    def step(self, theta: Tensor, state: Any, leaves: OuterVariables, draw: Any) -> tuple[Tensor, Any]:
        """One inner step: the new (theta, state)."""
        gradient = self._gradient(self.loss, theta, leaves.images, leaves.labels, draw)[0]
        return self.update(theta, state, gradient, leaves.log_lr, draw)

    def measured_step(self, theta: Tensor, state: Any, leaves: OuterVariables, draw: Any) -> tuple[Tensor, Any, Tensor]:
        """One inner step, and the norm () of its gradient."""
        gradient = self._gradient(self.loss, theta, leaves.images, leaves.labels, draw)[0]
        return *self.update(theta, state, gradient, leaves.log_lr, draw), gradient.norm()

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


class Step(NamedTuple):
    """One step of a window: the inner problem it belongs to (its precision may differ from the next one's) and its draw."""

    problem: InnerProblem
    draw: Any


class Shared(NamedTuple):
    """Who takes which micro-batches where several workers run the same window: every `members`-th from `member` on.

    `exchange` takes rows (K, P) of one and gives those of all, (members, K, P), to each of them.
    """

    member: int
    members: int
    exchange: Callable[[Tensor], Tensor]


class OuterLoss(NamedTuple):
    """The outer loss: the problem, and real data in one or more micro-batches [(images, labels), ...] of equal size.

    It is taken at the end of a window, and behind its first `also_after` steps too: the mean over all of these. `shared` says that others
    take some of the micro-batches; `ReplayAdjoint` heeds it.
    """

    problem: InnerProblem
    batches: Sequence[tuple[Tensor, Tensor]]
    also_after: Sequence[int] = ()
    shared: Shared | None = None


class Adjoint(Protocol):
    """What an adjoint offers: the meta-gradient through a window, see `ReplayAdjoint.__call__`."""

    def __call__(
        self, steps: Sequence[Step], end: OuterLoss, theta: Tensor, state: Any, leaves: OuterVariables, programs: Programs, /
    ) -> tuple[Tensor, OuterVariables]:
        """Return the outer loss at the end of the window, and its gradient with respect to the outer variables."""
        ...


@fields.component
class AutogradAdjoint:
    """Reverse mode over the whole window. Exact; memory grows with every step of it. The reference to compare with."""

    def __call__(
        self, steps: Sequence[Step], end: OuterLoss, theta: Tensor, state: Any, leaves: OuterVariables, programs: Programs
    ) -> tuple[Tensor, OuterVariables]:
        """Return the outer loss at the end of the window and its gradient; see `ReplayAdjoint`. Always eager."""

        def window(leaves: OuterVariables) -> Tensor:
            th, st, losses = theta, state, []
            for t, (problem, draw) in enumerate(steps):
                if t in end.also_after:
                    losses += [end.problem.outer(th, *batch) for batch in end.batches]
                th, st = problem.step(th, st, leaves, draw)
            losses += [end.problem.outer(th, *batch) for batch in end.batches]
            return torch.stack(losses).mean()

        gradient, loss = torch.func.grad_and_value(window)(leaves)
        return loss, gradient


@fields.component
class ReplayAdjoint:
    """Store the trajectory and go back through it one step at a time: exact, with memory flat in the window.

    With cotangents (lam, sig) of (theta, s), one step back is (design of distilkit; cf. Deng and Russakovsky 2022, and
    MixFlow-MG, Kemaev et al. 2025)

        a, b, v    = pullback of update at (theta_t, s_t, g_t), applied to (lam, sig)
        h, dS     += d/d(theta, S) of < grad_theta loss(theta_t; S, draw_t), v >
        lam, sig   = a + h, b

    Args:
        hessian_product: how the product with the second derivatives is taken. "reverse-over-reverse" pulls v back through the gradient,
            which is computed there anyway, and needs no forward rule of any operation in the network; "forward-over-reverse" is
            the forward derivative, along v, of the gradient with respect to (theta, S), which holds less at a time.
        checkpoint_every: store the state of every k-th step only, and run the steps between once more on the way back: k times less
            memory for the trajectory, three more forward passes a step.
        keep_last: the last `keep_last` steps of a window hold on to what their step computed, and do not compute it again on the way back:
            nine forward passes a step in place of twelve, for the memory of a step's feature maps each. Needs "reverse-over-reverse".
        offload: where the trajectory waits: "device", or "host" (pinned memory, copied while the device works).
        decay: go back no further than to where |lam| has fallen below this part of what it was at the end of the window, as if the window
            had begun there: adaptive truncation (Aicher, Foti and Fox 2019), with a bias that is small where lam goes on falling. 0 goes
            all the way. On a GPU each step back then waits for its norm.

    >>> ReplayAdjoint().hessian_product
    'reverse-over-reverse'
    """

    hessian_product: HessianProduct = fields.choice(HessianProduct, default="reverse-over-reverse")
    checkpoint_every: int = fields.integer(default=1, least=1)
    keep_last: int = fields.integer(default=0, least=0)
    offload: Place = fields.choice(Place, default="device")
    decay: float = fields.number(default=0.0, least=0, below=1)

    def __attrs_post_init__(self) -> None:
        if self.keep_last and self.hessian_product != "reverse-over-reverse":
            raise CombinationError(
                f"keep_last = {self.keep_last} holds on to the graph of a step's gradient, and {self.hessian_product} makes none.",
                fix='hessian_product = "reverse-over-reverse"',
            )

    def __call__(
        self, steps: Sequence[Step], end: OuterLoss, theta: Tensor, state: Any, leaves: OuterVariables, programs: Programs
    ) -> tuple[Tensor, OuterVariables]:
        """Run the window forwards, then back.

        Args:
            steps: the steps of the window.
            end: the outer loss.
            theta: parameters (P,) at the window's start, a constant.
            state: the optimiser's state there, a constant.
            leaves: what is differentiated.
            programs: makes the functions of a step fast.

        Returns:
            (outer loss, its gradient with respect to the leaves).
        """
        stored: list[Any] = []  # (theta, state) at steps 0, k, 2 k, ...
        offload = Offload(self.offload, theta.device)
        pullbacks: list[Callable[..., Any]] = []  # the ways back through the last steps
        replayed = max(0, len(steps) - self.keep_last)
        early: dict[int, tuple[Tensor, Tensor]] = {}  # outer losses on the way and their gradients, which enter the way back there
        for t, (problem, draw) in enumerate(steps):
            if t in end.also_after:
                early[t] = _outer(end, theta, programs)
            if t >= replayed:
                name, *ways = kept_program(problem)
                (theta, state), pullback = programs.split(name, cotangents_like, *ways)(theta, state, leaves, draw)
                pullbacks.append(pullback)
                continue
            if t % self.checkpoint_every == 0:
                stored.append(offload.put((theta, state)))
            theta, state = step(programs, problem)(theta, state, leaves, draw)
        loss, lam = _outer(end, theta, programs)
        sig = [torch.zeros_like(s) for s in split_floating(state)[0]]
        total = OuterVariables(*(torch.zeros_like(x) for x in leaves))
        loss = sum((one for one, _ in early.values()), loss) / (1 + len(early))
        least = self.decay * lam.norm()
        for t in reversed(range(replayed, len(steps))):
            lam, sig, total = pullbacks.pop()(lam, sig, total)
            lam = lam + early[t][1] if t in early else lam
            if self.decay and lam.norm() < least:
                return loss, total
        prefetched = offload.prefetch(stored.pop()) if stored else None
        for begin in reversed(range(0, replayed, self.checkpoint_every)):
            segment = [offload.get(prefetched)]
            prefetched = offload.prefetch(stored.pop()) if stored else None  # on its way while this segment is gone back through
            segment_steps = steps[begin : min(begin + self.checkpoint_every, replayed)]
            for problem, draw in segment_steps[:-1]:  # the states between, once more
                segment.append(step(programs, problem)(*segment[-1], leaves, draw))
            for t, (problem, draw) in reversed([*enumerate(segment_steps, begin)]):
                theta, state = segment.pop()
                back = programs(*self.back_program(problem))
                lam, sig, total = back(theta, state, leaves, draw, lam, sig, total)
                lam = lam + early[t][1] if t in early else lam
                if self.decay and lam.norm() < least:
                    return loss, total
        return loss, total

    def back_program(self, problem: InnerProblem) -> tuple[Any, ...]:
        """The name of the program of one step back, and its function in each way."""
        return f"back {problem.name}, {self.hessian_product}", *map(self.back, problem.ways)

    def back(self, problem: InnerProblem) -> Callable[..., tuple[Tensor, list[Tensor], OuterVariables]]:
        """The function of one step back: from cotangents after the step, and the sums so far, to those before it."""

        def reverse(
            theta: Tensor, state: Any, leaves: OuterVariables, draw: Any, lam: Tensor, sig: list[Tensor], total: OuterVariables
        ) -> tuple[Tensor, list[Tensor], OuterVariables]:
            back: tuple[Tensor, list[Tensor], OuterVariables] = step_vjp(problem)(theta, state, leaves, draw)[1](lam, sig, total)
            return back

        def forward(
            theta: Tensor, state: Any, leaves: OuterVariables, draw: Any, lam: Tensor, sig: list[Tensor], total: OuterVariables
        ) -> tuple[Tensor, list[Tensor], OuterVariables]:
            _load_forward_rules()
            gradients = torch.func.grad(problem.loss, argnums=(0, 1, 2))
            gradient = torch.func.grad(problem.loss)(theta, leaves.images, leaves.labels, draw)
            _, pull_update = update_and_pullback(problem, theta, state, gradient, leaves.log_lr, draw)
            pulled, sig, v, d_log_lr = pull_update(lam, sig)
            try:
                product = torch.func.jvp(lambda th: gradients(th, leaves.images, leaves.labels, draw), (theta,), (v,))[1]
            except NotImplementedError as error:
                raise GradientError(
                    f"An operation of the network has no forward derivative: {str(error).splitlines()[0]}",
                    fix='dk.ReplayAdjoint(hessian_product="reverse-over-reverse")',
                ) from error
            h, d_images, d_labels = product
            return pulled + h, sig, _sum(total, d_images, d_labels, d_log_lr)

        return forward if self.hessian_product == "forward-over-reverse" else reverse


def step(programs: Programs, problem: InnerProblem) -> Callable[..., tuple[Tensor, Any]]:
    """One inner step, made fast: (theta, state, leaves, draw) -> (theta, state)."""
    return programs(f"step {problem.name}", *(way.step for way in problem.ways))


def measured_step(programs: Programs, problem: InnerProblem) -> Callable[..., tuple[Tensor, Any, Tensor]]:
    """The same with the norm of its gradient, made fast: (theta, state, leaves, draw) -> (theta, state, norm)."""
    return programs(f"measured step {problem.name}", *(way.measured_step for way in problem.ways))


def step_vjp(problem: InnerProblem) -> Callable[..., tuple[tuple[Tensor, Any], Callable[..., Any]]]:
    """One step that can be gone back through.

    Returns:
        a function of (theta, state, leaves, draw) that gives the new (theta, state), and the function of one step back, from
        (lam, sig, total) after the step to those before it.
    """

    def forwards(theta: Tensor, state: Any, leaves: OuterVariables, draw: Any) -> tuple[tuple[Tensor, Any], Callable[..., Any]]:
        def gradient_of(th: Tensor, images: Tensor, labels: Tensor) -> Tensor:
            gradient: Tensor = torch.func.grad(problem.loss)(th, images, labels, draw)
            return gradient

        gradient, pull = torch.func.vjp(gradient_of, theta, leaves.images, leaves.labels)[:2]
        new, pull_update = update_and_pullback(problem, theta, state, gradient, leaves.log_lr, draw)

        def back(lam: Tensor, sig: list[Tensor], total: OuterVariables) -> tuple[Tensor, list[Tensor], OuterVariables]:
            pulled, before, v, d_log_lr = pull_update(lam, sig)
            h, d_images, d_labels = pull(v)
            return pulled + h, before, _sum(total, d_images, d_labels, d_log_lr)

        return new, back

    return forwards


def cotangents_like(theta: Tensor, state: Any, leaves: OuterVariables, _: Any) -> tuple[Tensor, list[Tensor], OuterVariables]:
    """Tensors that look like the cotangents and sums (lam, sig, total) after a step of these arguments; none is one of those."""
    return tensor_map(torch.clone, (theta, split_floating(state)[0], leaves))  # type: ignore[no-any-return]


def _sum(total: OuterVariables, images: Tensor, labels: Tensor, log_lr: Tensor) -> OuterVariables:
    return OuterVariables(total.images + images, total.labels + labels, total.log_lr + log_lr)


def _outer(end: OuterLoss, theta: Tensor, programs: Programs) -> tuple[Tensor, Tensor]:
    """The outer loss at one place, the mean over all micro-batches, and its part of the gradient of the whole outer loss."""
    function = programs(*end_program(end.problem))
    parts = iter(_shared(function, end, theta, end.shared) if end.shared else (function(theta, *batch) for batch in end.batches))
    loss, lam = next(parts)
    for more_loss, more_lam in parts:
        loss, lam = loss + more_loss, lam + more_lam
    return loss / len(end.batches), lam / (len(end.batches) * (1 + len(end.also_after)))


def _shared(function: Callable[..., Any], end: OuterLoss, theta: Tensor, shared: Shared) -> Iterator[tuple[Tensor, Tensor]]:
    """Loss and gradient of each micro-batch, in their order, of which this worker takes its own and gets the others'."""
    own = [function(theta, *batch) for batch in end.batches[shared.member :: shared.members]]
    rows = theta.new_zeros(-(-len(end.batches) // shared.members), 1 + theta.numel())  # some have one less
    for row, (loss, lam) in zip(rows, own, strict=False):
        row.copy_(torch.cat([loss.reshape(1), lam.reshape(-1)]))
    told = shared.exchange(rows)
    for j in range(len(end.batches)):
        row = told[j % shared.members, j // shared.members]
        yield row[0], row[1:].view(theta.shape)


def kept_program(problem: InnerProblem) -> tuple[Any, ...]:
    """The name of the program of a step that holds on to what it computed until it is gone back through, and its function in each way."""
    return f"step and back {problem.name}", *map(step_vjp, problem.ways)


def end_program(problem: InnerProblem) -> tuple[Any, ...]:
    """The name of the program of the outer loss and its gradient, and its function in each way."""
    return f"end {problem.name}", *(way.end for way in problem.ways)


@cache
def _load_forward_rules() -> None:
    """The first forward derivative of a process makes torch load its rules, which warns about torch's own use of jit."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.script.* is deprecated", category=FutureWarning)
        warnings.filterwarnings("ignore", message=".*torch.jit.script.* is deprecated", category=DeprecationWarning)
        torch.func.jvp(torch.sin, (torch.zeros(1),), (torch.ones(1),))


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

"""The two adjoints: how the gradient of the outer loss flows back through the window.

Both take pure functions and tensors, and give the same gradient. `AutogradAdjoint` lets reverse mode run over the whole
window, whose graph is alive at once. `ReplayAdjoint` stores the trajectory (theta_t, s_t) only and takes one step at a time, so
that its memory is flat in the window but for that trajectory (docs/adjoint.md derives it).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from distilkit import fields
from distilkit.errors import CombinationError
from distilkit.functional.pytrees import split_floating, tensor_map
from distilkit.programs.programs import Programs
from distilkit.unroll.inner import (
    HessianProduct,
    InnerProblem,
    OuterVariables,
    back_in_parts,
    product,
    step,
    summed,
    update_and_pullback,
)
from distilkit.unroll.offload import Offload

Place = Literal["device", "host"]


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

    An inner step whose images are taken in parts (`Learner.micro_batch`) is gone back through in the same parts.

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
                whole = problem.parts is None
                back = programs(*self.back_program(problem)) if whole else back_in_parts(programs, problem, self.hessian_product)
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
            gradient = torch.func.grad(problem.loss)(theta, leaves.images, leaves.labels, draw)
            _, pull_update = update_and_pullback(problem, theta, state, gradient, leaves.log_lr, draw)
            pulled, sig, v, d_log_lr = pull_update(lam, sig)
            h, d_images, d_labels = product(problem, self.hessian_product)(theta, leaves.images, leaves.labels, draw, v)
            return pulled + h, sig, summed(total, d_images, d_labels, d_log_lr)

        return forward if self.hessian_product == "forward-over-reverse" else reverse


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
            return pulled + h, before, summed(total, d_images, d_labels, d_log_lr)

        return new, back

    return forwards


def cotangents_like(theta: Tensor, state: Any, leaves: OuterVariables, _: Any) -> tuple[Tensor, list[Tensor], OuterVariables]:
    """Tensors that look like the cotangents and sums (lam, sig, total) after a step of these arguments; none is one of those."""
    return tensor_map(torch.clone, (theta, split_floating(state)[0], leaves))  # type: ignore[no-any-return]


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

"""The unroller: runs the inner problem and takes the meta-gradient through the window."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, partial, reduce
from operator import add
from typing import NamedTuple

import torch
from torch import Tensor

from distilkit import fields, process, ranks
from distilkit.errors import Change, CombinationError
from distilkit.functional.streams import Stream
from distilkit.learner import Learner
from distilkit.programs.programs import Programs
from distilkit.truncation import Probe, Window
from distilkit.unroll.adjoints import (
    Adjoint,
    AutogradAdjoint,
    OuterLoss,
    ReplayAdjoint,
    Shared,
    Step,
)
from distilkit.unroll.execution import AnyPrecision, Compile, Execution, Kernels, ProgramCache, Switch, choose, require_values
from distilkit.unroll.inner import InnerProblem, OuterVariables, measured_step, step
from distilkit.unroll.precision import PROBED
from distilkit.unroll.problem import Drawn, draws, problem, start


class RealBatch(NamedTuple):
    """Real data that the outer loss is taken on: images (B, ...), labels (B, K) as one-hot or soft targets."""

    images: Tensor
    labels: Tensor


class MetaGradient(NamedTuple):
    """The outer loss () and its gradient with respect to images (N, ...), labels (N, K) and log_lr, () or (steps,)."""

    loss: Tensor
    images: Tensor
    labels: Tensor
    log_lr: Tensor


@fields.component
class Unroller:
    """Takes meta-gradients.

    Args:
        adjoint: how the gradient flows back through the window: `ReplayAdjoint()` or `AutogradAdjoint()`.
        precision: of the arithmetic inside of the network. "bfloat16" keeps parameters, optimiser state and adjoint sums in
            float32, and takes inner step 0 in float32: there Adam's update is g / (|g| + eps), whose derivative lives on the
            entries with |g| near eps, and eight bits of g lose it. "tf32" lets a GPU round the inputs of products to ten bits. "auto"
            takes bfloat16 where steps are compiled and a convolution, tried at the start, is at least a quarter faster in it. On a GPU a
            run tries "tf32" too, and either has to give a meta-gradient of the run's own data whose cosine with that in float32 is at least
            0.98: bfloat16 first, then "tf32", and float32 if neither does.
        compile: how the functions of a step are run, see `distilkit.programs.programs`. "eager" runs them as they are; "trace"
            records them once as plain lists of operations; "inductor" has torch compile those lists, which takes seconds to a
            minute at the start; "cudagraph" captures them (CUDA only), and "inductor-cudagraph" what is compiled of them. From a
            GFLOP a forward pass on, "auto" compiles where there is a compiler (C++ for a CPU, Triton for a GPU); on a GPU it always
            captures. `execution` tells what it does.
        channels_last: whether images lie in memory as (N, H, W, C); "auto" does so where steps are compiled for a CPU.
        micro_batches: parts that the real batch is taken in, one after the other, to save memory. It changes nothing, unless the
            network normalises over the batch.
        networks_per_step: inner networks, each with its own draws, whose meta-gradients are averaged in one outer step.
        side_by_side: whether those are stacked and taken by the same operations, or one after the other; "auto" stacks small ones.
        kernels: what takes instance norm, ReLU and pooling on a GPU: "torch", or kernels of our own, "triton", for which the network must
            be a stack of such blocks (`ConvNet`, `VGG`, `AlexNet`). "auto" tries both at the start on maps of the network's size, and takes
            ours if they are right and faster; elsewhere, and where the same bits are asked of a GPU, it is "torch".

    >>> from distilkit.networks.mlp import MLP
    >>> from distilkit.functional.optimizers import SGD
    >>> learner = Learner(MLP(hidden=(8,)), SGD(lr=0.1)).bind((4,), 2)
    >>> leaves = OuterVariables(torch.randn(2, 4), torch.eye(2), torch.tensor(0.1).log())
    >>> batch = RealBatch(torch.randn(16, 4), torch.eye(2)[torch.arange(16) % 2])
    >>> Unroller().meta_gradient(learner, leaves, Window(2, 5), batch, Stream(0)).images.shape
    torch.Size([2, 4])
    """

    adjoint: Adjoint = fields.slot("adjoint", default=ReplayAdjoint())
    precision: AnyPrecision = fields.choice(AnyPrecision, default="float32")
    compile: Compile = fields.choice(Compile, default="auto")
    channels_last: Switch = fields.choice(Switch, default="auto")
    micro_batches: int = fields.integer(default=1, least=1)
    networks_per_step: int = fields.integer(default=1, least=1)
    side_by_side: Switch = fields.choice(Switch, default="auto")
    kernels: Kernels = fields.choice(Kernels, default="auto")

    @cached_property
    def cache(self) -> ProgramCache:
        """The programs that were built for this unroller, where its user has no other place for them. A `Distiller` has."""
        return ProgramCache()

    def execution(self, learner: Learner, shape: tuple[int, ...], device: torch.device) -> Execution:
        """How the functions of a step are run, for a bound learner and inner batches of a shape (B, ...): what "auto" stands for.

        Raises:
            CombinationError: CUDA graphs without a GPU; a learner that is not a value; an adjoint that cannot take images in parts; kernels
                of our own where there are none.
        """
        require_values(self, learner)
        if learner.at_a_time(shape[0]) is not None:
            self._require_parts(learner, shape[0])
        whole = isinstance(self.adjoint, AutogradAdjoint)  # whose window is always run as it is
        precision = "float32" if whole and self.precision == "auto" else self.precision
        together = (self.one_after_the_other() if ranks.current().joined else self).side_by_side
        kernels = self._kernels()
        found = choose(
            learner, self.compile, self.channels_last, together, precision, self.networks_per_step, shape, device, kernels=kernels
        )
        return found._replace(why=f"{found.why}; the window as it is, by AutogradAdjoint") if whole else found

    def _require_parts(self, learner: Learner, images: int) -> None:
        """Refuse an adjoint that would hold what the learner takes in parts all at once."""
        adjoint = self.adjoint
        if isinstance(adjoint, ReplayAdjoint) and not adjoint.keep_last:
            return
        name, change = type(adjoint).__name__, Change("unroller.adjoint", {"kind": "ReplayAdjoint"})
        if isinstance(adjoint, ReplayAdjoint):
            name, change = f"keep_last = {adjoint.keep_last}", Change("unroller.adjoint.keep_last", 0)
        raise CombinationError(
            f"learner.micro_batch = {learner.micro_batch} takes the {images} images of an inner step in parts, and {name} does not: it "
            "would hold on to what all of them compute.",
            changes=[change],
        )

    def _kernels(self) -> str:
        """What `kernels` leaves to find out: "auto" is "torch" where a try would be for nothing, or might turn out otherwise next time.

        Raises:
            CombinationError: our kernels are asked for a derivative that they do not have.
        """
        forward = isinstance(self.adjoint, ReplayAdjoint) and self.adjoint.hessian_product == "forward-over-reverse"
        if forward and self.kernels == "triton":
            raise CombinationError(
                'kernels = "triton" has no forward derivative, which hessian_product = "forward-over-reverse" takes.',
                fix='kernels = "torch"  # in [unroller]',
            )
        whole = isinstance(self.adjoint, AutogradAdjoint)
        settled = forward or whole or torch.are_deterministic_algorithms_enabled()
        return "torch" if self.kernels == "auto" and settled else self.kernels

    def one_after_the_other(self) -> Unroller:
        """With the networks of a step taken one after the other, as they are with any number of processes.

        Raises:
            CombinationError: they are to be stacked.
        """
        if self.networks_per_step == 1:
            return self
        if self.side_by_side == "on":
            raise CombinationError(
                'side_by_side = "on" stacks the networks that several processes share out.',
                changes=[Change("unroller.side_by_side", "off")],
            )
        return fields.evolve(self, side_by_side="off")

    def meta_gradient(
        self,
        learner: Learner,
        distilled: OuterVariables,
        window: Window,
        real_batch: RealBatch,
        stream: Stream,
        classes: Tensor | None = None,
        programs: ProgramCache | None = None,
        ends: int = 1,
        drawn: Sequence[Drawn] | None = None,
    ) -> MetaGradient:
        """Train a fresh network on the distilled set and differentiate its loss on real data.

        Args:
            learner: the inner problem, bound to the shape of the images.
            distilled: images, labels and log_lr; their device and dtype are those of the work.
            window: the inner run stops at `window.stop`; the gradient flows through the steps from `window.start` on.
            real_batch: what the outer loss is taken on.
            stream: the initial network and the draws of every inner step come from it.
            classes: int64 (N,), the class of each distilled image, for minibatches; by default the largest label.
            programs: where what is built is kept; by default in this unroller.
            ends: places where the outer loss is taken, evenly over the window up to its end; it is the mean over them.
            drawn: what `drawn` has made of the same arguments, for as many inner steps or others; made here if left out.

        Returns:
            the outer loss and the meta-gradient, the means over `networks_per_step` networks. In a run of several processes each takes some
            of the networks, or parts of the real batch of one, and all get the same sums, to the bit.
        """
        if not 0 <= window.start < window.stop:
            raise CombinationError(f"Window({window.start}, {window.stop}) holds no step: start must be at least 0 and below stop.")
        classes, leaves, execution = self._prepared(learner, distilled, classes)
        count, world = self.networks_per_step, ranks.current()
        shares, groups = self.shares(world), self._groups(stream, execution)
        places = {round(window.length * k / ends) for k in range(1, ends)} - {0, window.length}
        end = self._end(learner, real_batch, execution)._replace(also_after=tuple(sorted(places)))
        if shares.members > 1:
            end = end._replace(
                shared=Shared(world.rank % shares.members, shares.members, partial(world.exchange_in_team, members=shares.members))
            )
        given: Sequence[Drawn | None] = [None] * len(groups) if drawn is None else drawn
        with torch.no_grad(), process.keep_freed_memory(), process.products(execution.precision, leaves.images.device):
            results = [
                self._one(learner, leaves, window, end, group, classes, execution, programs or self.cache, there)
                for group, there in zip(groups, given, strict=True)
            ]
        if world.several:
            results = _of_all(results, shares, world, leaves)
        return MetaGradient(*(parts[0] if count == 1 else reduce(add, parts) / count for parts in zip(*results, strict=True)))

    def drawn(self, learner: Learner, distilled: OuterVariables, steps: int, stream: Stream, classes: Tensor | None = None) -> list[Drawn]:
        """What is random in the inner runs of a meta-gradient, for so many steps: it depends on the streams alone, and can be made before.

        The arguments are those of `meta_gradient`; of the distilled set only shapes, dtype and device matter.
        """
        classes, leaves, execution = self._prepared(learner, distilled, classes)
        return [
            Drawn(start(learner, group, leaves.images, execution), draws(learner, group, range(steps), classes, leaves.images, execution))
            for group in self._groups(stream, execution)
        ]

    def shares(self, world: ranks.Ranks) -> ranks.Shares:
        """Who takes what of an outer step, where several processes do.

        Raises:
            CombinationError: one would have nothing to do.
        """
        return world.shares(self.networks_per_step, self.micro_batches, shareable=isinstance(self.adjoint, ReplayAdjoint))

    def _prepared(self, learner: Learner, distilled: OuterVariables, classes: Tensor | None) -> tuple[Tensor, OuterVariables, Execution]:
        """The classes of the rows on the CPU, the outer variables as constants, and how inner steps are run."""
        classes = (distilled.labels.argmax(1) if classes is None else classes).cpu()
        # A constant is a constant: whatever graph the caller has is cut here, so the prefix cannot leak a gradient.
        leaves = OuterVariables(*(x.detach() for x in distilled))
        learner.require_rates(leaves.log_lr)
        shape = (learner.inner_batch_size(classes), *leaves.images.shape[1:])
        return classes, leaves, self.execution(learner, shape, leaves.images.device)

    def _streams(self, stream: Stream) -> list[Stream]:
        """One for each network of an outer step."""
        count = self.networks_per_step
        return [stream] if count == 1 else [stream.fold("of many").fold(i) for i in range(count)]

    def _groups(self, stream: Stream, execution: Execution) -> list[list[Stream]]:
        """The streams of the networks that this process takes: all side by side, or one by one."""
        streams, world = self._streams(stream), ranks.current()
        return [streams] if execution.side_by_side else [[streams[i]] for i in self.shares(world).networks(world.rank)]

    def programs(self, learner: Learner, execution: Execution, cache: ProgramCache | None = None) -> Programs:
        """The programs that steps of this learner are run by, of a cache or of this unroller's own."""
        return (cache or self.cache).of(execution, learner, self._own_adjoint)

    def fallbacks(self, learner: Learner, execution: Execution, cache: ProgramCache) -> dict[str, str]:
        """What has fallen back of the programs of a learner; see `Programs.fallbacks`."""
        return cache.fallbacks(execution, learner, self._own_adjoint)

    @property
    def _own_adjoint(self) -> Adjoint | None:
        """One whose programs have names that do not tell its parameters, as a user's own may."""
        return None if isinstance(self.adjoint, (ReplayAdjoint, AutogradAdjoint)) else self.adjoint

    def problem(self, learner: Learner, t: int, execution: Execution) -> InnerProblem:
        """The inner problem of step t: in bfloat16 from step 1 on, if that is the precision."""
        return problem(learner, execution.numerics.dtype if t > 0 else None, execution)

    def _one(
        self,
        learner: Learner,
        leaves: OuterVariables,
        window: Window,
        end: OuterLoss,
        streams: Sequence[Stream],
        classes: Tensor,
        execution: Execution,
        cache: ProgramCache,
        drawn: Drawn | None,
    ) -> MetaGradient:
        """The meta-gradient of one network, or the sum over networks side by side."""
        programs = self.programs(learner, execution, cache)
        cache.say(execution)
        (theta, state), made = drawn or Drawn(start(learner, streams, leaves.images, execution), [])
        more = draws(learner, streams, range(len(made), window.stop), classes, leaves.images, execution)
        steps = [Step(self.problem(learner, t, execution), draw) for t, draw in enumerate([*made[: window.stop], *more])]
        for one, draw in steps[: window.start]:
            theta, state = step(programs, one)(theta, state, leaves, draw)
        loss, gradient = self.adjoint(steps[window.start :], end, theta, state, leaves, programs)
        return MetaGradient(loss, gradient.images, gradient.labels, gradient.log_lr)

    def probe(
        self,
        learner: Learner,
        distilled: OuterVariables,
        steps: int,
        real_batch: RealBatch,
        stream: Stream,
        classes: Tensor | None = None,
        programs: ProgramCache | None = None,
    ) -> Probe:
        """Train a fresh network on the distilled set for so many steps; the other arguments are those of `meta_gradient`."""
        classes, leaves, execution = self._prepared(learner, distilled, classes)
        execution = execution._replace(side_by_side=False)
        made, norms, right = self.programs(learner, execution, programs), [], []
        with torch.no_grad(), process.keep_freed_memory(), process.products(execution.precision, leaves.images.device):
            theta, state = start(learner, [stream], leaves.images, execution)
            for t, draw in enumerate(draws(learner, [stream], range(steps), classes, leaves.images, execution)):
                theta, state, norm = measured_step(made, self.problem(learner, t, execution))(theta, state, leaves, draw)
                norms.append(norm)
            size = self.micro_batch(len(real_batch.images))
            for images, labels in zip(real_batch.images.split(size), real_batch.labels.split(size), strict=True):
                logits = learner.logits(theta, images, execution.numerics)
                right.append((logits.argmax(1) == labels.argmax(1)).float().mean())
        return Probe(torch.stack(norms).double().cpu(), float(torch.stack(right).mean()))

    def probed(
        self,
        precision: str,
        learner: Learner,
        distilled: OuterVariables,
        window: Window,
        real_batch: RealBatch,
        stream: Stream,
        classes: Tensor | None = None,
    ) -> Tensor:
        """The meta-gradient of the images in a precision, of one network, through the first `PROBED` steps of a window; nothing is built.

        The other arguments are those of `meta_gradient`. In a run of several processes each takes all of it.
        """
        one = fields.evolve(self, precision=precision, compile="eager", networks_per_step=1, kernels="torch")
        with ranks.alone():
            window = Window(window.start, min(window.stop, window.start + PROBED))
            return one.meta_gradient(learner, distilled, window, real_batch, stream, classes, ProgramCache()).images

    def where_not_finite(
        self, learner: Learner, distilled: OuterVariables, window: Window, stream: Stream, classes: Tensor | None = None
    ) -> str:
        """Where the inner run of a meta-gradient stops being finite, as a sentence; the arguments are those of `meta_gradient`."""
        classes, leaves, execution = self._prepared(learner, distilled, classes)
        execution = execution._replace(kind="eager", side_by_side=False)
        programs = self.programs(learner, execution, ProgramCache())
        for one in self._streams(stream):
            theta, state = start(learner, [one], leaves.images, execution)
            for t, draw in enumerate(draws(learner, [one], range(window.stop), classes, leaves.images, execution)):
                with torch.no_grad(), process.products(execution.precision, leaves.images.device):
                    theta, state = step(programs, self.problem(learner, t, execution))(theta, state, leaves, draw)
                wrong = [name for name, value in learner.layout.unravel(theta).items() if not value.isfinite().all()]
                if wrong:
                    named = f"{wrong[0]} and {len(wrong) - 1} more of the network's parameters" if len(wrong) > 1 else wrong[0]
                    return f"Inner step {t} is the first with numbers that are not finite, in {named}."
        return "All parameters of the inner run are finite: its loss or its derivative is not."

    def micro_batch(self, size: int) -> int:
        """Images of a micro-batch of a real batch of this size.

        Raises:
            CombinationError: the parts would not be equal.
        """
        parts = self.micro_batches
        if size % parts:
            raise CombinationError(
                f"micro_batches = {parts} does not divide the {size} images of the real batch into equal parts.",
                fix=f"micro_batches = {next((p for p in range(parts, size + 1) if size % p == 0), size)}",
            )
        return size // parts

    def _end(self, learner: Learner, batch: RealBatch, execution: Execution) -> OuterLoss:
        parts = len(batch.images) // self.micro_batch(len(batch.images))
        pieces = zip(batch.images.chunk(parts), batch.labels.chunk(parts), strict=True)
        return OuterLoss(self.problem(learner, 1, execution), list(pieces))


def _of_all(own: Sequence[MetaGradient], shares: ranks.Shares, world: ranks.Ranks, leaves: OuterVariables) -> list[MetaGradient]:
    """The meta-gradients of all networks, in their order, from those that this process has taken."""
    sizes = [1, *(x.numel() for x in leaves)]
    rows = leaves.images.new_zeros(-(-shares.total // shares.teams), sum(sizes))
    for row, one in zip(rows, own, strict=False):
        row.copy_(torch.cat([x.reshape(-1) for x in one]))
    shapes = [(), *(x.shape for x in leaves)]
    told = ranks.in_order(world.exchange_rows(rows, ranks.fingerprint(leaves)), shares)
    return [MetaGradient(*(part.reshape(shape).clone() for part, shape in zip(row.split(sizes), shapes, strict=True))) for row in told]

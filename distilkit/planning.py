"""What a run will take, before it starts: memory from the shapes of its operations and a short probe, time from the probe.

The shapes come from programs recorded without data, so the first part computes nothing and allocates nothing: it tells what
would never fit. The probe then runs windows of a few steps, as the run's first outer step would, and measures.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import attrs
import optree
import psutil
import torch
from torch import Tensor

from distilkit.evaluation import training_set
from distilkit.evaluation.protocol import selection_split, streams
from distilkit.evaluation.training import accuracy, train
from distilkit.execution import draws, start
from distilkit.functional import memory, threads
from distilkit.functional.adjoints import AutogradAdjoint, ReplayAdjoint, begin, late
from distilkit.functional.liveness import peak_bytes
from distilkit.functional.partition import halve
from distilkit.functional.programs import record
from distilkit.functional.pytrees import split_floating
from distilkit.truncation import Window

if TYPE_CHECKING:
    from distilkit.distiller import Distiller
    from distilkit.parts import DistillerState

WINDOWS = 200  # outer steps whose windows are drawn, to know how long they are
# The first call of a program is compared with the function that it was recorded from, which lets go of nothing before it is
# through. Measured on ConvNet-3 of width 128 and 100 images: 1.13 GiB, and 0.49 alive in the recorded list.
CHECK = 2.3
PROBING = 5.0  # seconds after which a time is not taken again


@attrs.frozen
class Plan:
    """An estimate of what a run takes; all sizes in bytes.

    Args:
        device: where the work is done.
        execution: how inner steps are run.
        held: held before the work: on a CPU by process, libraries and real data, on a GPU by the data.
        loading: the peak while the data was loaded, on a CPU.
        trajectory: what waits of the longest window until the way back.
        work: the peak of one step, or of the end of the window.
        evaluation: the peak of training and testing networks; 0 where it was not probed.
        total: what there is for all of this.
        longest: inner steps of the longest window.
        inner_steps: inner steps of an outer step, mean, and how many of them the gradient flows through.
        seconds: of an outer step, or None where it was not probed.
        first: of the first, which builds programs.
        outer_steps: how many there are.
        advice: what to change, as words and a line to type: because it will not fit, or because there is room to spare.
    """

    device: str
    execution: str
    held: int
    loading: int
    trajectory: int
    work: int
    evaluation: int
    total: int
    longest: int
    inner_steps: tuple[float, float]
    seconds: float | None
    first: float | None
    outer_steps: int
    advice: tuple[tuple[str, str], ...] = ()

    @property
    def peak(self) -> int:
        """The most that is held at one time: on a CPU by the whole process."""
        return max(self.loading, self.held + self.trajectory + self.work, self.held + self.evaluation)

    @property
    def fits(self) -> bool:
        """Whether there is room, with a tenth to spare."""
        return self.peak <= 0.9 * self.total


def plan(distiller: Distiller, *, probe: bool = True, notice: Callable[[str], None] = lambda _: None) -> Plan:
    """Estimate what a distiller's run takes. The data is loaded; nothing is written.

    Args:
        distiller: the pipeline.
        probe: run a few inner steps and measure; otherwise go by shapes alone, which knows memory to a factor of two, and no time.
        notice: told what is being done.

    Raises:
        DistilkitError: what would end the run at its start.
    """
    device = distiller.torch_device
    notice("loading data")
    with _peak(device) as loading:
        state = distiller.template(len(distiller.stages) - 1)
    drawn = _windows(distiller)
    count = distiller.threads or threads.suggest(lambda: _forward(distiller, state))
    with threads.use(count):
        notice("working out shapes")
        draft, spare = _shapes(distiller, state, drawn, loading[0] if loading else 0)
        if probe and draft.held + (draft.work / CHECK + draft.trajectory) < draft.total:
            notice("probing: windows of a few inner steps")
            draft = _probe(distiller, state, draft, drawn)
    return attrs.evolve(draft, advice=_advice(distiller, draft, spare))


def from_shapes(distiller: Distiller, state: DistillerState) -> Plan:
    """The part of `plan` that computes nothing."""
    draft, spare = _shapes(distiller, state, _windows(distiller), 0)
    return attrs.evolve(draft, advice=_advice(distiller, draft, spare))


def _shapes(distiller: Distiller, state: DistillerState, drawn: list[Window], loading: int) -> tuple[Plan, int]:
    """The estimate from shapes, and the bytes that one more kept step would take."""
    stage, device, unroller, adjoint = distiller.stages[-1], distiller.torch_device, distiller.unroller, distiller.unroller.adjoint
    learner, classes = distiller.stage_learner(stage), stage.classes(distiller.bundle.classes)
    execution = distiller.execution(stage)
    problem = unroller.problem(learner, 1, execution)
    own = [distiller.stream.fold("plan").fold(i) for i in range(unroller.networks_per_step if execution.side_by_side else 1)]
    fresh = start(learner, own, state.leaves.images, execution)
    one_step = (fresh.params, fresh.optimizer, state.leaves, draws(learner, own, 1, classes, state.leaves.images, execution)[0])
    size = min(distiller.outer.batch_size, len(distiller.bundle.train)) // unroller.micro_batches
    rows = torch.arange(size, device=device)
    real = distiller.real_batch(rows, distiller.stream.fold("plan"))
    end = peak_bytes(record(problem.end, (fresh.params, *real)))
    both = record(lambda early, coming: _both(problem, early, coming), (one_step, late(*one_step)))
    results = len(optree.tree_leaves((fresh.params, fresh.optimizer)))  # type: ignore[arg-type]
    spare = halve(both, len(optree.tree_leaves(one_step)), results).waiting  # type: ignore[arg-type]
    entry = _bytes([fresh.params, *split_floating(fresh.optimizer)[0]])
    longest = max(w.length for w in drawn)
    batch = _bytes(real) * unroller.micro_batches
    draft = Plan(
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        execution=str(execution),
        held=_held(device),
        loading=loading,
        trajectory=_trajectory(adjoint, longest, entry, spare, device),
        work=int(CHECK * max(end, peak_bytes(both))) + batch,
        evaluation=0,
        total=_total(device),
        longest=longest,
        inner_steps=(sum(w.stop for w in drawn) / len(drawn), sum(w.length for w in drawn) / len(drawn)),
        seconds=None,
        first=None,
        outer_steps=distiller.outer_steps,
    )
    return draft, spare if isinstance(adjoint, ReplayAdjoint) and adjoint.product == "reverse-over-reverse" else 0


def _both(problem: Any, early: Any, coming: Any) -> Any:
    result, back = begin(problem)(*early)
    return result, back(*coming)


def _trajectory(adjoint: Any, length: int, entry: int, kept: int, device: torch.device) -> int:
    """Bytes of what waits of a window: (theta, state) of some steps, the graphs of others."""
    if not isinstance(adjoint, ReplayAdjoint):
        return length * (entry + kept)
    replayed = max(0, length - adjoint.keep)
    stored = 0 if adjoint.store == "host" and device.type == "cuda" else -(-replayed // adjoint.every)
    return (stored + adjoint.every - 1) * entry + (length - replayed) * kept


def _probe(distiller: Distiller, state: DistillerState, draft: Plan, drawn: list[Window]) -> Plan:
    """Measure short windows at the run's own shapes, and draw the line from there to the longest window."""
    device, adjoint = distiller.torch_device, distiller.unroller.adjoint
    short = 2 + (adjoint.keep if isinstance(adjoint, ReplayAdjoint) and adjoint.keep < draft.longest else 0)
    short = min(short, draft.longest)

    def once(window: Window) -> float:
        began = time.perf_counter()
        distiller.meta_gradient(state, window).loss.item()
        return time.perf_counter() - began

    def best(window: Window) -> float:
        """The least of a few times: the first may find memory that nobody has touched."""
        times = [once(window)]
        while len(times) < 4 and sum(times) < PROBING:
            times.append(once(window))
        return min(times)

    with memory.kept():
        try:
            with _peak(device) as found:
                first = once(Window(0, short))
            held = [found[0] - draft.held]
            base = best(Window(0, short))
            more = max(2, min(20, int(2 / base * short))) if base > 0 else 20
            with _peak(device) as found:
                longer = best(Window(0, short + more))
            held.append(found[0] - draft.held)
            prefix = best(Window(more, more + short))
            with _peak(device) as found:
                _evaluate(distiller, state)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if "memory" not in str(error):
                raise
            return attrs.evolve(draft, work=max(draft.work, draft.total))  # it did not fit, and now that is known
    through, before = (longer - base) / more, (prefix - base) / more
    mean, length = draft.inner_steps
    seconds = base + (length - short) * through + (mean - length) * before
    if isinstance(adjoint, AutogradAdjoint):
        growth = max(0, held[1] - held[0]) / more
        work, trajectory = held[0], int((draft.longest - short) * growth)
    else:
        per_step = draft.trajectory / draft.longest
        work, trajectory = max(held[0], held[1] - int(more * per_step)), draft.trajectory - int(short * per_step)
    evaluation = found[0] - draft.held
    return attrs.evolve(
        draft,
        work=work,
        trajectory=trajectory,
        evaluation=evaluation,
        seconds=max(seconds, base * length / (2 * draft.longest)),
        first=first,
    )


def _evaluate(distiller: Distiller, state: DistillerState) -> None:
    """A training step of the networks that judge the set, and one look at some real images."""
    data, evaluation = distiller.bundle, distiller.evaluation
    learner, training = evaluation.trainer(distiller.bound, training_set(distiller.distilled(state), data))
    for _, params in train(learner, training, streams(evaluation, distiller.stream.fold("plan")), (2,)):
        split = selection_split(data)
        accuracy(learner, params, attrs.evolve(split, images=split.images[:512], labels=split.labels[:512]))


def _advice(distiller: Distiller, draft: Plan, kept: int) -> tuple[tuple[str, str], ...]:
    """What would make it fit; or faster, where there is room."""
    unroller, adjoint = distiller.unroller, distiller.unroller.adjoint
    room = 0.8 * draft.total - draft.peak
    if draft.fits:
        steps = min(draft.longest, int(room / kept)) if kept else 0
        if steps > max(2, draft.longest // 10) and not adjoint.keep and draft.seconds is not None and draft.seconds > 1:
            words = f"there is room to keep {steps} of the {draft.longest} steps of a window, a quarter less time for each"
            return ((words, f"--set 'unroller.adjoint={{kind = \"ReplayAdjoint\", keep = {steps}}}'"),)
        return ()
    lines = []
    if not isinstance(adjoint, ReplayAdjoint):
        lines.append(("the graph of the whole window is alive at once", "--set 'unroller.adjoint={kind = \"ReplayAdjoint\"}'"))
    elif draft.trajectory > draft.work:
        every = max(2, round(draft.longest**0.5))
        lines.append(("most of it is the trajectory", f"--set 'unroller.adjoint={{kind = \"ReplayAdjoint\", every = {every}}}'"))
    size = min(distiller.outer.batch_size, len(distiller.bundle.train))
    parts = next((p for p in range(2 * unroller.micro_batches, size + 1) if size % p == 0), size)
    lines.append(("take the real batch in smaller parts", f"--set unroller.micro_batches={parts}"))
    if unroller.precision == "float32":
        lines.append(("bfloat16 halves feature maps", "--set unroller.precision=bfloat16"))
    if distiller.learner.batch_per_class is None and distiller.per_class > 1:
        lines.append(("draw a minibatch in each inner step", "--set learner.batch_per_class=1"))
    return tuple(lines)


def _windows(distiller: Distiller) -> list[Window]:
    """Windows of the last stage, whose set is the largest."""
    stage = distiller.stages[-1]
    policy, made = stage.truncation.init(), []
    for k in range(min(WINDOWS, stage.steps)):
        window, policy = stage.truncation.plan(policy, k, distiller.stream.fold("window"))
        made.append(window)
    return made


def _forward(distiller: Distiller, state: DistillerState) -> Tensor:
    fresh = distiller.bound.init(distiller.stream.fold("threads"), device=distiller.torch_device)
    return distiller.bound.logits(fresh.params, state.leaves.images)


def _bytes(tree: Any) -> int:
    return sum(x.numel() * x.element_size() for x in optree.tree_leaves(tree) if isinstance(x, Tensor))


def _held(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else memory.resident()


def _total(device: torch.device) -> int:
    """Bytes that there are for this process: those it has, and those that are free."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    return int(psutil.virtual_memory().available) + memory.resident()


@contextmanager
def _peak(device: torch.device) -> Iterator[list[int]]:
    """Bytes held at most inside of the block; on a CPU by the whole process, or at its end, where the system does not tell more."""
    if device.type == "cuda":
        found: list[int] = []
        torch.cuda.reset_peak_memory_stats(device)
        yield found
        found.append(torch.cuda.max_memory_allocated(device))
        return
    with memory.peak() as found:
        yield found
    if not found:
        found.append(memory.resident())

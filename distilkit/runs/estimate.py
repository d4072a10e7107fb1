"""Estimates of what a run takes: memory from the shapes of its operations, and advice on what to change.

The shapes come from programs recorded without data, so no network is trained: it tells what would never fit.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import attrs
import optree
import psutil
import torch
from torch import Tensor

from distilkit import fields, process
from distilkit.distiller import Distiller
from distilkit.errors import Change, CombinationError
from distilkit.functional.pytrees import split_floating
from distilkit.growth import Piece
from distilkit.programs.liveness import peak_bytes
from distilkit.programs.partition import partition
from distilkit.programs.programs import CAPTURED
from distilkit.truncation import Window
from distilkit.unroll.adjoints import ReplayAdjoint, cotangents_like, end_program, kept_program
from distilkit.unroll.inner import programs_in_parts
from distilkit.unroll.problem import draws, start

WINDOWS = 200  # outer steps whose windows are drawn, to know how long they are
# The first call of a program is compared with the function that it was recorded from, which keeps every intermediate until it
# returns. Measured on ConvNet-3 of width 128 and 100 images: 1.13 GiB, and 0.49 alive in the recorded list.
CHECK = 2.3
LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))  # of a container, v2 and v1


@attrs.frozen
class Plan:
    """An estimate of what a run takes; all sizes in bytes.

    Args:
        device: where the work is done.
        execution: how inner steps are run.
        baseline_bytes: held before the work: on a CPU by process, libraries and real data, on a GPU by the data.
        loading_peak: the peak while the data was loaded; 0 where it was not measured.
        trajectory_bytes: what waits of the longest window until the way back.
        step_peak: the peak of one step, or of the end of the window.
        evaluation_peak: the peak of training and testing networks; 0 where it was not probed.
        available: what there is for all of this.
        longest_window: inner steps of the longest window.
        inner_steps: inner steps of an outer step, mean, and how many of them the gradient flows through.
        seconds: of an outer step, the mean over all, or None where it was not probed.
        build_seconds: of building programs.
        outer_steps: how many there are.
        processes: that take the run together; all of this is of one of them, but for the advice, which is for the spec.
        exchange_bytes: that each process gets in an outer step, of its own and the others' meta-gradients.
        exchange_peak: the peak of that.
        bytes_per_step: of what is stored of a step, and of what a step that is kept holds.
        by_shapes: whether the shapes could be worked out; a network that cannot be recorded is known by the probe only.
        advice: reasons, and what to change: because it will not fit, or because there is room to spare.
    """

    device: str
    execution: str
    baseline_bytes: int
    loading_peak: int
    trajectory_bytes: int
    step_peak: int
    evaluation_peak: int
    available: int
    longest_window: int
    inner_steps: tuple[float, float]
    seconds: float | None
    build_seconds: float | None
    outer_steps: int
    processes: int = 1
    exchange_bytes: int = 0
    exchange_peak: int = 0
    bytes_per_step: tuple[int, int] = (0, 0)
    by_shapes: bool = True
    advice: tuple[tuple[str, Change], ...] = ()

    @property
    def peak(self) -> int:
        """The most that is held at one time: on a CPU by the whole process."""
        work = max(self.trajectory_bytes + self.step_peak, self.evaluation_peak, self.exchange_peak)
        return max(self.loading_peak, self.baseline_bytes + work)

    @property
    def fits(self) -> bool:
        """Whether there is room, with a tenth to spare."""
        return self.peak <= 0.9 * self.available


def from_shapes(distiller: Distiller) -> Plan:
    """The part of `plan` that trains nothing. The programs that it records are those that a run begins with, and are kept for that."""
    return combine_pieces(distiller, [piece_from_shapes(distiller, one, drawn_windows(distiller, one)) for one in distiller.pieces])


def combine_pieces(distiller: Distiller, drafts: list[Plan]) -> Plan:
    """One plan for all pieces of a run: memory is that of the worst, time the mean over all outer steps."""
    worst = max(drafts, key=lambda draft: draft.peak)
    steps = [piece.steps for piece in distiller.pieces]
    times = [draft.seconds for draft in drafts if draft.seconds is not None]
    seconds = sum(n * t for n, t in zip(steps, times, strict=True)) / sum(steps) if len(times) == len(drafts) else None
    firsts = [draft.build_seconds for draft in drafts if draft.build_seconds is not None]
    known = all(draft.by_shapes for draft in drafts)
    found = attrs.evolve(worst, by_shapes=known, seconds=seconds, build_seconds=sum(firsts) if len(firsts) == len(drafts) else None)
    return attrs.evolve(found, advice=advice_for(distiller, found))


def piece_from_shapes(distiller: Distiller, piece: Piece, drawn: list[Window], loading: int = 0, *, keeping: bool = False) -> Plan:
    """The estimate from shapes, for one piece; `keeping`: and of what a step would hold whose graph waits for the way back."""
    device, unroller, data = distiller.torch_device, distiller.resolved_unroller, distiller.bundle
    learner, classes = distiller.piece_learner(piece), distiller.sampling_groups(piece.stage)
    leaves = distiller.template(piece.stage.number).leaves
    execution = distiller.execution(piece)
    # In bfloat16, step 0 is in float32, and needs the more.
    problem = unroller.problem(learner, 0 if any(w.start == 0 for w in drawn) else 1, execution)
    own = [distiller.stream.fold("plan").fold(i) for i in range(unroller.networks_per_step if execution.side_by_side else 1)]
    fresh = start(learner, own, leaves.images, execution)
    one_step = (fresh.params, fresh.optimizer, leaves, draws(learner, own, range(1), classes, leaves.images, execution)[0])
    batch = min(piece.batch_size(distiller.outer.batch_size), len(data.train))
    real = distiller.real_batch(torch.arange(unroller.micro_batch(batch), device=device), distiller.stream.fold("plan"))
    try:
        programs = unroller.programs(learner, execution, distiller.programs)
        name, function, *_ = end_program(unroller.problem(learner, 1, execution))
        alive, kept = peak_bytes(programs.recording(name, function, (fresh.params, *real))), 0
        coming = cotangents_like(*one_step)
        replay = unroller.adjoint if isinstance(unroller.adjoint, ReplayAdjoint) else None
        if execution.micro_batch and replay:
            work = programs_in_parts(problem, replay.hessian_product, *one_step)
            alive = max(alive, *(peak_bytes(programs.recording(*one)) for one in work)) + _bytes(leaves)  # to which its gradient is added
        elif replay and not replay.keep_last and not keeping:
            name, function, *_ = replay.back_program(problem)
            alive = max(alive, peak_bytes(programs.recording(name, function, (*one_step, *coming))))
        else:
            name, function, *_ = kept_program(problem)
            both = programs.recording(name, function, (one_step, coming), split=True)
            results = len(optree.tree_leaves((fresh.params, fresh.optimizer)))  # type: ignore[arg-type]
            alive = max(alive, peak_bytes(both))
            kept = partition(both, len(optree.tree_leaves(one_step)), results).saved_bytes  # type: ignore[arg-type]
    except Exception as error:  # torch raises many kinds; the run will say so, and go on without
        if process.is_out_of_memory(error):
            raise
        alive = kept = 0
    entry = _bytes([fresh.params, *split_floating(fresh.optimizer)[0]])
    longest = max(w.length for w in drawn)
    return Plan(
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper(),
        execution=str(execution),
        baseline_bytes=_held(device),
        loading_peak=loading,
        trajectory_bytes=waiting_bytes(unroller.adjoint, longest, entry, kept, device),
        step_peak=int(CHECK * alive) + _bytes(real) * unroller.micro_batches,
        evaluation_peak=0,
        available=_total(device),
        longest_window=longest,
        inner_steps=(sum(w.stop for w in drawn) / len(drawn), sum(w.length for w in drawn) / len(drawn)),
        seconds=None,
        build_seconds=None,
        outer_steps=distiller.outer_steps,
        bytes_per_step=(entry, kept),
        by_shapes=alive > 0,
    )


def waiting_bytes(adjoint: Any, length: int, entry: int, kept: int, device: torch.device) -> int:
    """Bytes of what waits of a window: (theta, state) of some steps, the graphs of others."""
    if not isinstance(adjoint, ReplayAdjoint):
        return length * (entry + kept)
    replayed = max(0, length - adjoint.keep_last)
    stored = 0 if adjoint.offload == "host" and device.type == "cuda" else -(-replayed // adjoint.checkpoint_every)
    between = max(0, min(adjoint.checkpoint_every, replayed) - 1)
    return (stored + between) * entry + (length - replayed) * kept


def advice_for(distiller: Distiller, found: Plan) -> tuple[tuple[str, Change], ...]:
    """What would make it fit; or faster, where there is room."""
    unroller, adjoint = distiller.resolved_unroller, distiller.unroller.adjoint
    replay = adjoint if isinstance(adjoint, ReplayAdjoint) else None
    if found.fits:
        kept = found.bytes_per_step[1]
        slow = found.seconds is not None and found.seconds > 1
        # CUDA graphs copy out and in what waits, and nobody has measured what is left to gain.
        slow = slow and all(distiller.execution(piece).kind not in CAPTURED for piece in distiller.pieces)
        can = slow and replay is not None and replay.hessian_product == "reverse-over-reverse" and not replay.keep_last
        steps = min(found.longest_window, int((0.8 * found.available - found.peak) / kept)) if can and kept else 0
        if replay is None or steps <= max(2, found.longest_window // 10):
            return ()
        words = f"there is room to keep {steps} of the {found.longest_window} steps of a window, a quarter less time for each"
        return ((words, _adjoint(replay, keep_last=steps)),)
    if found.peak == found.baseline_bytes + found.evaluation_peak and distiller.evaluation.seeds > 1:
        return (("the most is held while networks are tested", Change("evaluation.seeds", 1)),)
    if found.peak in (found.loading_peak, found.baseline_bytes + found.exchange_peak):
        return ()  # the table says so, and nothing in the spec changes it but fewer networks or processes
    lines: list[tuple[str, Change]] = []
    if replay is None:
        lines.append(("the graph of the whole window is alive at once", _adjoint(ReplayAdjoint())))
    elif replay.keep_last:
        lines.append(("kept steps take the most", _adjoint(replay, keep_last=replay.keep_last // 2)))
    elif found.trajectory_bytes > found.step_peak:
        every = max(2 * replay.checkpoint_every, round(found.longest_window**0.5))
        lines.append(("most of it is the trajectory", _adjoint(replay, checkpoint_every=every)))
    size = math.gcd(*(min(one.batch_size(distiller.outer.batch_size), len(distiller.bundle.train)) for one in distiller.pieces))
    parts = next((p for p in range(2 * unroller.micro_batches, size + 1) if size % p == 0), size)
    if parts > unroller.micro_batches and getattr(distiller.learner.network, "norm", None) != "batch":
        lines.append(("take the real batch in smaller parts", Change("unroller.micro_batches", parts)))
    lines += _smaller_inner_batch(distiller, found, replay)
    if unroller.precision == "float32":
        lines.append(("bfloat16 halves feature maps, but for step 0", Change("unroller.precision", "bfloat16")))
    if distiller.learner.batch_per_class is None and distiller.per_class > 1:
        lines.append(("draw a minibatch in each inner step", Change("learner.batch_per_class", 1)))
    return tuple(lines)


def _smaller_inner_batch(distiller: Distiller, found: Plan, replay: ReplayAdjoint | None) -> list[tuple[str, Change]]:
    """To take the images of an inner step in parts, where that is what takes the memory, and can be."""
    learner, stage = distiller.learner, distiller.stages[-1]
    count = learner.inner_batch_size(distiller.sampling_groups(stage))
    now = learner.at_a_time(count) or count
    room = 0.8 * found.available - found.baseline_bytes - found.trajectory_bytes
    size = max(1, min(now // 2, int(now * room / max(1, found.step_peak))))
    if replay is None or replay.keep_last or now == 1:
        return []
    try:
        fields.evolve(learner, micro_batch=size).bind(distiller.bundle.image_shape, distiller.bundle.num_classes)
    except CombinationError:  # a norm over the batch, or an augmentation that does not take each image by itself
        return []
    return [(f"take the {count} images of an inner step in parts: exact, a quarter more time", Change("learner.micro_batch", size))]


def _adjoint(adjoint: ReplayAdjoint, **changes: int) -> Change:
    """To this adjoint with changes: all that is not as by default."""
    names = ("hessian_product", "checkpoint_every", "keep_last", "offload", "decay")
    changed, plain = fields.evolve(adjoint, **changes), ReplayAdjoint()
    options = {name: getattr(changed, name) for name in names if getattr(changed, name) != getattr(plain, name)}
    return Change("unroller.adjoint", {"kind": "ReplayAdjoint", **options})


def drawn_windows(distiller: Distiller, piece: Piece) -> list[Window]:
    """Windows of a piece, as they will be drawn, from its first outer step to its last: a policy may lengthen them."""
    stage = piece.stage
    policy, made = stage.truncation.init(), []
    before = piece.first + sum(other.steps for other in distiller.stages[: stage.number])
    count = min(WINDOWS, piece.steps)
    for k in (i * (piece.steps - 1) // max(1, count - 1) for i in range(count)):
        window, policy = stage.truncation.plan(policy, before + k, distiller.stream.fold("window"))
        made.append(window)
    return made


def _bytes(tree: Any) -> int:
    return sum(x.numel() * x.element_size() for x in optree.tree_leaves(tree) if isinstance(x, Tensor))


def _held(device: torch.device) -> int:
    return torch.cuda.memory_reserved(device) if device.type == "cuda" else process.resident_memory()


def _total(device: torch.device) -> int:
    """Bytes that there are for this process: those it has, and those that are free, here and within the limit of a container."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    limits = [_number(path) for path in LIMITS]
    return min(int(psutil.virtual_memory().available) + process.resident_memory(), *(limit for limit in limits if limit), 2**62)


def _number(path: Path) -> int | None:
    """A whole number in a file, if there is one."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # no such file, or "max"
        return None

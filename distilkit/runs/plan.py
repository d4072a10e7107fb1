"""The plan of a run: memory from shapes, and memory and time from a probe, before anything is written.

The shapes come from programs recorded without data (`distilkit.runs.estimate`). The probe then runs windows of a few steps, as the run's
first outer step would, and measures.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator
from contextlib import contextmanager

import attrs
import torch

from distilkit import fields, process
from distilkit.display import shown
from distilkit.distiller import Distiller, DistillerState
from distilkit.errors import FieldError
from distilkit.evaluation import selection_split, training_set
from distilkit.evaluation.measuring import streams, trained
from distilkit.evaluation.scoring import kept_bytes
from distilkit.evaluation.training import TEST_BATCH, groups
from distilkit.progress import Progress
from distilkit.runs.estimate import Plan, combine_pieces, drawn_windows, piece_from_shapes, waiting_bytes
from distilkit.runs.processes import ProcessShare, threads_of_one
from distilkit.truncation import Window
from distilkit.unroll.adjoints import AutogradAdjoint

PROBING = 5.0  # seconds after which a time is not taken again


def plan(distiller: Distiller, *, probe: bool = True, processes: int = 1, progress: Progress | None = None) -> Plan:
    """Estimate what a distiller's run takes. The data is loaded; nothing is written.

    Windows are drawn as the run will draw them; a policy that learns from how the run goes is taken as it starts.

    Args:
        distiller: the pipeline.
        probe: run a few inner steps and measure; otherwise go by shapes alone, which knows memory to a factor of two, and no time.
        processes: of torchrun that are to take the run together: the plan is that of each of them, on hardware like this one's. The
            time knows nothing of the others, which may share a machine's memory, nor of the way to them.
        progress: is told what is being done. None shows it on a terminal and in a notebook; `dk.Silent()` never.

    Raises:
        DistilkitError: what would end the run at its start.
    """
    with shown(progress) as progress, process.thread_limit(threads_of_one() if processes > 1 else None):
        return _planned(distiller, probe, processes, progress)


def _planned(distiller: Distiller, probe: bool, processes: int, progress: Progress) -> Plan:
    if processes < 1:
        raise FieldError("processes", processes, "a whole number, at least 1", fix="processes=4")
    share = ProcessShare(distiller, processes) if processes > 1 else None
    progress.phase("loading data")
    with _peak(distiller.torch_device) as loading:
        state = distiller.template(len(distiller.stages) - 1)
        if distiller.images.stored is not None:
            distiller.init()  # which says what is wrong with that set
    count = distiller.cpu_threads(state)
    drafts = []
    with process.thread_limit(count):
        own = distiller if share is None else share.pipeline()
        for number, (piece, whole) in enumerate(zip(own.pieces, distiller.pieces, strict=True), 1):
            drawn = drawn_windows(own, piece)
            progress.phase("working out shapes" + (f", {number} of {len(own.pieces)}" if len(own.pieces) > 1 else ""))
            draft = piece_from_shapes(own, piece, drawn, *loading, keeping=True)
            if probe and draft.baseline_bytes + draft.step_peak < draft.available:
                progress.phase("probing: windows of a few inner steps")
                state = own.template(piece.stage.number)
                draft = _probe(own, state._replace(stage_step=piece.first), draft, drawn, processes)
            drafts.append(draft if share is None else share.completed(draft, whole))
    return combine_pieces(distiller, drafts)


def _probe(distiller: Distiller, state: DistillerState, draft: Plan, drawn: list[Window], processes: int) -> Plan:
    """Measure short windows at the run's own shapes, and draw the line from there to the longest window."""
    device, adjoint = distiller.torch_device, distiller.unroller.adjoint
    short = min(draft.longest_window, 2 + getattr(adjoint, "keep_last", 0))

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

    with process.keep_freed_memory():
        try:
            with _peak(device) as built:
                first = once(Window(0, short))
            base = best(Window(0, short))
            ahead = max(2, min(20, int(2 * short / max(base, 1e-9))))
            before = max(0.0, best(Window(ahead, ahead + short)) - base) / ahead
            more = min(ahead, draft.longest_window - short)
            with _peak(device) as longer:
                through = (best(Window(0, short + more)) - base) / more if more else base / short
            with _peak(device) as evaluated:
                judging = _evaluate(distiller, state, processes)
        except (MemoryError, RuntimeError) as error:  # torch's own is a RuntimeError
            if not process.is_out_of_memory(error):
                raise
            return attrs.evolve(draft, step_peak=max(draft.step_peak, draft.available))  # it did not fit, and now that is known
    kept = kept_bytes(distiller.bound, distiller.evaluation, judging)
    mean, length = draft.inner_steps
    seconds = max(base + (length - short) * through + (mean - length) * before, base / 2)  # differences of short times may be off
    timed = attrs.evolve(draft, seconds=seconds, build_seconds=first)
    if not built:  # the system does not tell how much was held
        return timed

    def waiting(steps: int) -> int:
        return waiting_bytes(adjoint, steps, *draft.bytes_per_step, device)

    work, grown = built[0] - draft.baseline_bytes, longer[0] - draft.baseline_bytes
    if isinstance(adjoint, AutogradAdjoint):
        rest = int((draft.longest_window - short) * max(0, grown - work) / more) if more else 0
    else:
        work, rest = max(work, grown - waiting(short + more) + waiting(short)), waiting(draft.longest_window) - waiting(short)
    return attrs.evolve(timed, step_peak=work, trajectory_bytes=rest, evaluation_peak=evaluated[0] - draft.baseline_bytes + kept)


def _evaluate(distiller: Distiller, state: DistillerState, processes: int) -> int:
    """A few training steps of those networks that are trained together to judge the set, and one look at some real images.

    Returns:
        how many networks a process judges with, at most.
    """
    data, evaluation = distiller.bundle, distiller.evaluation
    learner = distiller.stage_learner(distiller.stages[state.stage])
    split, training = selection_split(data), training_set(distiller.distilled(state), data)
    few, networks = fields.evolve(evaluation, steps=(2,)), streams(evaluation, distiller.stream.fold("plan"))
    parts = groups(*evaluation.trainer(learner, training), networks)
    part = parts[0]
    for found in trained(learner, training.part(part), few, networks[part], distiller.programs, networks=len(networks)):
        found.accuracy(attrs.evolve(split, images=split.images[:TEST_BATCH], labels=split.labels[:TEST_BATCH]))
    return min(len(networks), len(networks[part]) * math.ceil(len(parts) / processes))


@contextmanager
def _peak(device: torch.device) -> Generator[list[int], None, None]:
    """Bytes held at most inside of the block, on a CPU by the whole process; nothing, where the system does not tell."""
    if device.type == "cuda":
        found: list[int] = []
        torch.cuda.reset_peak_memory_stats(device)
        yield found
        found.append(torch.cuda.max_memory_reserved(device))
        return
    with process.peak_resident() as found:
        yield found

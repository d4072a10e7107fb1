"""Networks that judge, shared out over workers: one at a time, or all those of one kind where they are trained side by side."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from distilkit import process
from distilkit.data.bundle import Split
from distilkit.evaluation.measuring import Table, measure, streams
from distilkit.evaluation.protocol import Evaluation
from distilkit.evaluation.training import TrainingSet, groups, tested_together
from distilkit.functional.streams import Stream
from distilkit.learner import Learner
from distilkit.progress import SILENT, Progress
from distilkit.storage.workers import Executor, share_out
from distilkit.unroll.execution import ProgramCache


@attrs.frozen(eq=False)
class Measurement:
    """Networks of one kind that are trained on one set and measured after each of the protocol's numbers of training steps.

    Args:
        words: what is done, for people.
        learner: bound to the data.
        training: what to train on.
        splits: what to measure on, by name.
        evaluation: the protocol.
        stream: network i takes `stream.fold(i)`.
        threads: of the CPU; None picks by the size of the work.
    """

    words: str
    learner: Learner
    training: TrainingSet
    splits: Mapping[str, Split]
    evaluation: Evaluation
    stream: Stream
    threads: int | None = None

    def tables(self, programs: ProgramCache, progress: Progress = SILENT, some: slice = slice(None)) -> dict[str, Table]:
        """Fractions (lengths, networks) by split, of some of the networks; on as many CPU threads as the work is worth.

        Args:
            programs: where what is built is kept.
            progress: is told the accuracies after each number of steps.
            some: which networks.
        """
        with process.thread_limit(self.cpu_threads()), process.keep_freed_memory():
            return measure(self.learner, self.training, self.splits, self.evaluation, self.stream, progress, programs, some)

    def cpu_threads(self) -> int:
        """CPU threads of a network."""
        batch = self.training.batch(self.learner, Stream(0))
        fresh = self.learner.init(Stream(0), device=batch.device).params
        return self.threads or process.threads_for(lambda: self.learner.logits(fresh, batch[: self.learner.micro_batch]))

    def units(self) -> list[slice]:
        """Which networks can be taken apart from each other to the same bits: each, unless they are trained or tested side by side."""
        own, whole = streams(self.evaluation, self.stream), [slice(0, self.evaluation.seeds)]
        learner, training = self.evaluation.trainer(self.learner, self.training)
        parts = groups(learner, training, own)
        alone = all(tested_together(learner, len(own), split) == 1 for split in self.splits.values())
        return parts if alone and len(parts) == len(own) else whole


def shared_out(
    measurements: Sequence[Measurement], workers: int | Executor, *, folder: Path | None = None, progress: Progress = SILENT
) -> list[dict[str, Table]]:
    """What `Measurement.tables` gives of each, found by workers.

    Args:
        measurements: of one evaluation; all are ready to be pickled, with their data.
        workers: an executor, or how many processes of this machine.
        folder: one that all workers reach, for their work; a temporary one of this machine when left out.
        progress: is told how many pieces of the work are done.

    Raises:
        FieldError: `workers` is neither a number nor an executor.
    """
    units = [(i, part) for i, one in enumerate(measurements) for part in one.units()]
    programs = ProgramCache()

    def work(number: int) -> dict[str, Table]:
        i, part = units[number]
        return measurements[i].tables(programs, some=part)

    def seen(done: int) -> None:
        progress.advance(done, len(units))

    threads: Any = measurements[0].threads
    with tempfile.TemporaryDirectory() if folder is None else nullcontext(folder) as place:
        found = share_out(work, range(len(units)), workers, folder=Path(place), threads=threads, seen=seen)
    for number in range(len(units)):
        if number not in found:  # lost with every worker that took it
            found[number] = work(number)
            seen(len(found))
    return [
        {name: np.concatenate([found[number][name] for number, (i, _) in enumerate(units) if i == wanted], axis=1) for name in one.splits}
        for wanted, one in enumerate(measurements)
    ]

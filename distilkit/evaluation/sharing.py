"""Networks that judge, shared out over workers or shards: one at a time, or all of one kind where they are trained side by side."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import xarray as xr

from distilkit import process
from distilkit.data.bundle import Split
from distilkit.evaluation.measuring import Table, measure, streams
from distilkit.evaluation.protocol import Evaluation
from distilkit.evaluation.training import TrainingSet, groups, tested_together
from distilkit.functional.streams import Stream
from distilkit.learner import Learner
from distilkit.progress import SILENT, Progress
from distilkit.storage.grid import Region, fill
from distilkit.storage.layout import variable
from distilkit.storage.workers import Workers
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
    measurements: Sequence[Measurement],
    *,
    identity: Mapping[str, Any],
    folder: Path | None = None,
    workers: Workers = None,
    shard: tuple[int, int] | None = None,
    progress: Progress = SILENT,
) -> list[dict[str, Table]]:
    """What `Measurement.tables` gives of each, found piece by piece in a grid, see `distilkit.storage.grid`.

    Args:
        measurements: of one evaluation, with the same steps, seeds and splits; for workers all are ready to be pickled, with their data.
        identity: JSON-able words on what is measured.
        folder: of the grid, where an evaluation that was stopped goes on; a temporary one of this machine when left out.
        workers: who trains and tests, as for `fill`.
        shard: as there.
        progress: is told how many pieces of the work are done.

    Returns:
        as `Measurement.tables`; of a shard, what is not there yet is NaN.

    Raises:
        FieldError: `workers` is neither a number nor an executor; there is no such shard.
        RunError: the folder holds something else.
    """
    pieces = [(i, part) for i, one in enumerate(measurements) for part in one.units()]
    programs, told = ProgramCache(), progress if workers is None else SILENT  # which a worker does not reach
    protocol, dims = measurements[0].evaluation, ("piece", "training_steps", "seed")
    shape = (len(pieces), len(protocol.steps), protocol.seeds)
    empty = {name: variable(dims, np.full(shape, np.nan), f"{name} accuracy") for name in measurements[0].splits}

    def compute(region: Region) -> dict[str, np.ndarray]:
        i, part = pieces[region["piece"].start]
        if part.start == 0:
            told.phase(measurements[i].words)
        found = {name: np.full((1, *shape[1:]), np.nan) for name in empty}
        for name, table in measurements[i].tables(programs, told, part).items():
            found[name][0, :, part] = table
        return found

    words = dict(identity) | {"parts": [[i, part.start, part.stop] for i, part in pieces]}
    how: dict[str, Any] = {"workers": workers, "shard": shard, "threads": measurements[0].threads, "progress": progress}
    with tempfile.TemporaryDirectory() if folder is None else nullcontext(folder) as place:
        grid = fill(xr.Dataset(empty), {"piece": 1}, compute, identity=words, folder=Path(place), **how)
    return [
        {
            name: np.concatenate([grid[name].values[n][:, part] for n, (i, part) in enumerate(pieces) if i == wanted], axis=1)
            for name in one.splits
        }
        for wanted, one in enumerate(measurements)
    ]

"""The run of a distiller into a folder: the outer loop, validation on the way, and the test at the end.

    DIRECTORY/spec.toml       the resolved spec: running it again gives the same run
    DIRECTORY/results.zarr    open it with xarray.open_datatree
    DIRECTORY/distilled.png   the distilled images
    DIRECTORY/history.png     loss, meta-gradient norm and validation accuracy
    DIRECTORY/prefixes.png    accuracy by images per class, of a boosted set

The store is written whole every half minute and at the end, whatever ends the run; what was computed is never lost.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

import xarray as xr

from distilkit import process
from distilkit.data.preprocessing import to_words
from distilkit.distiller import Distiller
from distilkit.evaluation import baseline_scores, require_usable, score, training_set
from distilkit.evaluation.training import mean_or_zero
from distilkit.progress import SILENT, Progress
from distilkit.runs.claim import claimed
from distilkit.runs.estimate import from_shapes
from distilkit.runs.record import Record, save_figures, write_results, write_spec

SECONDS_BETWEEN_WRITES = 30.0

logger = logging.getLogger("distilkit")


def run(distiller: Distiller, directory: str | Path, progress: Progress = SILENT) -> xr.DataTree:
    """Distil, judge, and store everything in a folder.

    Args:
        distiller: the pipeline.
        directory: a folder that holds no run and no spec.toml yet; it is made. It is locked as long as this takes.
        progress: is told how the run goes on.

    Returns:
        the stored results.

    Raises:
        RunError: the folder holds a run or a spec.toml already, another process writes into it, or it cannot be made.
        CombinationError: the data has too few images for the baselines; its preprocessing could not be read back.
        GradientError: the meta-gradient was not finite; what was computed until then is stored.
    """
    directory = Path(directory)
    with claimed(directory):
        return _run(distiller, directory, progress)


def _run(distiller: Distiller, directory: Path, progress: Progress) -> xr.DataTree:
    progress.phase("loading data")
    state = distiller.init()
    require_usable(distiller.evaluation, distiller.bound, distiller.bundle, distiller.per_class)
    to_words(distiller.bundle.preprocessing)  # what could not be read back is refused now, not at the end
    spec = write_spec(distiller, directory)
    record = Record(state)
    count = distiller.cpu_threads(state)
    _notice_memory(distiller)
    with process.thread_limit(count), process.keep_freed_memory():
        try:
            _distil(distiller, record, progress, lambda: write_results(distiller, record, spec, directory))
            _test(distiller, record, progress)
        finally:
            tree = write_results(distiller, record, spec, directory)
            save_figures(distiller, tree, directory)
    return tree


def _notice_memory(distiller: Distiller) -> None:
    """Say what the run will take, by shapes alone, and what to change if it will not fit."""
    draft = from_shapes(distiller)
    what = f"memory: about {draft.peak / 2**30:.1f} GiB at the peak, of {draft.available / 2**30:.1f} GiB"
    if not draft.by_shapes:
        logger.info("memory: not known, since the network cannot be recorded; distilkit plan measures it")
    elif draft.fits:
        logger.info(what)
    else:
        logger.warning("%s: it may not fit; a plan (`distilkit plan`, `dk.plan`) measures it and says what to change", what)


def _distil(distiller: Distiller, record: Record, progress: Progress, write: Callable[[], object]) -> None:
    """The outer loop."""
    steps, every = distiller.outer_steps, distiller.evaluation.every
    progress.phase("distilling")
    written = time.monotonic()
    while record.state.step < steps:
        record.state, info = distiller.step(record.state)
        record.infos.append(info)
        done = record.state.step
        progress.value("loss", info.outer_loss)
        progress.value("|g|", info.meta_gradient_norm)
        progress.advance(done, steps)
        stage_over = distiller.boost is not None and record.state.stage_step == distiller.stages[record.state.stage].steps
        if (every and (done % every == 0 or done == steps)) or stage_over:
            _validate(distiller, record, progress)
        if done < steps and time.monotonic() - written > SECONDS_BETWEEN_WRITES:
            write()
            written = time.monotonic()


def _validate(distiller: Distiller, record: Record, progress: Progress) -> None:
    """Measure the validation accuracy, and keep the set if it is the best so far; of a boosted run, only once all blocks are there."""
    made, data, step = distiller.distilled(record.state), distiller.bundle, record.state.step
    stream = distiller.stream.fold("evaluation").fold("validation")
    stage = distiller.stages[record.state.stage]
    result = score(
        distiller.stage_learner(stage),
        training_set(made, data),
        data,
        distiller.evaluation,
        stream,
        test=False,
        programs=distiller.programs,
    )
    record.validation[step] = result.selected
    progress.value("validation accuracy", result.selected.tolist())
    mean = float(mean_or_zero(result.selected))
    if stage is distiller.stages[-1] and (record.best is None or mean > record.best[0]):
        record.best = (mean, made)


def _test(distiller: Distiller, record: Record, progress: Progress) -> None:
    """Test the selected set once, and the baselines beside it."""
    chosen = record.best[1] if record.best else distiller.distilled(record.state)
    data, evaluation, stream = distiller.bundle, distiller.evaluation, distiller.stream.fold("evaluation").fold("test")
    progress.phase("testing the distilled set")
    record.final = score(
        distiller.bound, training_set(chosen, data), data, evaluation, stream.fold("distilled"), test=True, programs=distiller.programs
    )
    for k, stage in enumerate(distiller.stages[:-1]):
        budget = stage.per_class
        progress.phase(f"testing the first {budget} images of each class")
        training, learner = training_set(chosen.subset(chosen.block <= k), data), distiller.stage_learner(stage)
        record.prefixes[budget] = score(
            learner, training, data, evaluation, stream.fold("distilled"), test=True, programs=distiller.programs
        )
    record.baselines = baseline_scores(distiller.bound, data, distiller.per_class, evaluation, stream, progress, distiller.programs)

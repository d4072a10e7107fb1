"""The run of a distiller into a folder: the outer loop, validation on the way, and the test at the end.

    DIRECTORY/spec.toml       the resolved spec: running it again gives the same run
    DIRECTORY/results.zarr    open it with xarray.open_datatree
    DIRECTORY/distilled.png   the distilled images
    DIRECTORY/history.png     loss, meta-gradient norm and validation accuracy
    DIRECTORY/prefixes.png    accuracy by images per class, of a boosted set
    DIRECTORY/checkpoints     what a run that was stopped goes on from

Checkpoint and store are written every half minute and at the end, whatever ends the run. The same call goes on from there, to the same
bits. Where torchrun has started several processes, each takes its share, and only the first writes.
"""

from __future__ import annotations

import logging
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

import torch
import xarray as xr

from distilkit import fields, process, ranks, storage
from distilkit.data.preprocessing import to_words
from distilkit.display import shown
from distilkit.distiller import Distiller, DistillerState
from distilkit.errors import Change, GradientError, ResourceError, RunError, counted
from distilkit.evaluation import PartialScore, Score, TrainingSet, baseline_set, require_feasible, score, training_set
from distilkit.evaluation.training import mean_or_zero
from distilkit.functional.streams import Stream
from distilkit.learner import Learner
from distilkit.progress import SILENT, Progress
from distilkit.runs import checkpoints
from distilkit.runs.checkpoints import Resume
from distilkit.runs.claim import claimed
from distilkit.runs.limits import out_of_memory, require_bounded, require_memory
from distilkit.runs.loggers import Logger, Loggers
from distilkit.runs.record import BASELINE, FINAL, PREFIX, VALIDATION, Record, results, save_figures, spec_of, write_spec
from distilkit.runs.stop import GivenUp, Stop
from distilkit.storage import checkpoint
from distilkit.storage.mirror import Mirror
from distilkit.truncation import StepInfo

FIRST_WRITE = 5.0  # seconds after the start
ATTEMPTS = 5  # windows that are drawn for an outer step whose numbers are not finite

logger = logging.getLogger("distilkit")


def run(
    distiller: Distiller,
    directory: str | Path,
    progress: Progress | None = None,
    *,
    resume: Resume = "auto",
    stop_after: float | None = None,
    checkpoint_every: float = 30.0,
    mirror: str | None = None,
    loggers: Sequence[Logger] = (),
) -> xr.DataTree:
    """Distil, judge, and store everything in a folder; go on, where the folder holds this run already.

    Args:
        distiller: the pipeline.
        directory: a folder of its own, which is made. It is locked as long as this takes.
        progress: is told how the run goes on. None shows it on a terminal and in a notebook; `dk.Silent()` never.
        resume: "auto" goes on with the run of the same spec that is there, or of one that differs by fewer `outer.steps`; what is finished
            is given back as it is. "never" refuses.
        stop_after: seconds after which to stop, though not before an outer step, or the networks that are trained together, are done.
            What is there is stored and given back; the same call goes on.
        checkpoint_every: seconds between two checkpoints, with each of which the results are written too.
        mirror: a URL for a copy of the folder, anything that fsspec reaches, such as s3://bucket/run. Checkpoints go there as they are
            written, results at the end; where the folder here holds nothing, or less, the run goes on from what is there.
        loggers: are told numbers and images of the run as well, such as `TensorBoard()` (`distilkit.runs.loggers`); of several processes
            those of the first are.

    Returns:
        the stored results; in a run of several processes every one gets them.

    Raises:
        RunError: folder or URL hold another run or a spec.toml of another pipeline, another process writes into it, or it cannot be made.
        CombinationError: the data has too few images for the baselines; its preprocessing could not be read back.
        ResourceError: the disk takes no more at the end; a write on the way that fails is tried again.
        GradientError: the meta-gradient was not finite, for several windows, or the outer loss has left its own history; what was computed
            until then is stored.
        KeyboardInterrupt: Ctrl-C, or a signal to end; what was computed until then is stored.
    """
    directory = Path(directory)
    if directory.suffix == ".zarr":
        raise RunError(f"{directory} is a store, and a run is a folder with a store in it.", changes=[Change("out", directory.parent)])
    # What is held is let go of outside of `stop`: a logger may take long to send all, and Ctrl-C must end that.
    with ranks.joined(distiller.torch_device) as world, ExitStack() as held, Stop(stop_after) as stop:
        world.asked, stop.patient = (lambda: stop.asked), world.several
        held.callback(setattr, world, "asked", bool)
        distiller.unroller.shares(world)  # what cannot be is said before anything is written

        told = Loggers(loggers if world.first else ())
        copy = None if mirror is None or not world.first else Mirror(mirror, directory)

        def begin() -> tuple[str, checkpoint.Checkpoint | None, xr.DataTree | None]:
            nonlocal distiller
            held.enter_context(claimed(directory))
            held.callback(told.finish)  # while nobody else writes here
            here = checkpoint.latest(directory / checkpoints.FOLDER)
            begun = checkpoints.begun(distiller, directory, here, resume)  # before what is at a URL could replace another run
            if copy is not None and copy.fetch(partial(checkpoints.accept, distiller, copy.url, resume)):
                begun = checkpoints.begun(distiller, directory, checkpoint.latest(directory / checkpoints.FOLDER), resume)
            distiller, found = begun
            stored = _finished(directory, distiller.outer_steps) if found is not None and found.meta["finished"] else None
            return distiller.unroller.precision, found, stored

        precision, found, stored = world.first_does(begin)
        if stored is not None:
            logger.info("%s is finished", directory)
            _send_all(copy)  # which may have failed at its end
            return stored
        if not world.first:
            distiller, progress = _with_precision(distiller, precision), SILENT
        with shown(progress) as progress:
            try:
                tree = _Run(distiller, directory, progress, stop, checkpoint_every, world, copy, told).run(found)
            except BaseException:
                with suppress(ResourceError):  # the first error is the one to tell
                    _send_all(copy)
                raise
            _send_all(copy)
            if world.several and not stop.lost:
                world.exchange(None)  # what the first has written is there for all
    if stop.asked and not stop.timed and not tree.attrs["finished"]:
        raise KeyboardInterrupt(stop.reason)
    return tree


def _finished(directory: Path, steps: int) -> xr.DataTree | None:
    """The results in a folder, if they are those of a finished run of so many steps: a kill may have come before they were written."""
    try:
        tree = storage.open(directory)
    except RunError:
        return None
    return tree if tree.attrs.get("finished") and tree["history"].sizes["outer_step"] == steps else None


def _with_precision(distiller: Distiller, precision: str) -> Distiller:
    """With this precision, which the first process has found, where the spec leaves it open."""
    if distiller.unroller.precision == precision:
        return distiller
    return fields.evolve(distiller, unroller=fields.evolve(distiller.unroller, precision=precision))


def _send_all(copy: Mirror | None) -> None:
    if copy is not None:
        copy.send(ended=True)


class _Stopped(Exception):
    """The run ends here, for now."""


class _Run:
    """A run while it goes on."""

    def __init__(
        self,
        distiller: Distiller,
        directory: Path,
        progress: Progress,
        stop: Stop,
        every: float,
        world: ranks.Ranks,
        copy: Mirror | None,
        told: Loggers,
    ) -> None:
        self.distiller, self.directory, self.progress, self.stop, self.every = distiller, directory, progress, stop, every
        self.world, self.copy, self.told = world, copy, told
        self.due = time.monotonic() + min(FIRST_WRITE, every)

    def run(self, found: checkpoint.Checkpoint | None) -> xr.DataTree:
        """From the start or from a checkpoint to the end, or to where it is stopped."""
        with process.same_bits(self.distiller.torch_device, self.distiller.deterministic):
            return self._run(found)

    def _run(self, found: checkpoint.Checkpoint | None) -> xr.DataTree:
        self.progress.phase("loading data")
        if self.world.several:
            precision = self.world.first_does(lambda: self.distiller.resolved_unroller.precision)
            self.distiller = self.distiller if self.world.first else _with_precision(self.distiller, precision)
            self.world.in_turn(lambda: self.distiller.bundle)
        distiller = self.distiller
        self.record = Record(distiller.init()) if found is None else checkpoints.load(distiller, found)
        require_feasible(distiller.evaluation, distiller.bound, distiller.bundle, distiller.per_class)
        to_words(distiller.bundle.preprocessing)  # what could not be read back is refused now, not at the end
        if found is not None:
            logger.info("going on after %d of %d outer steps", self.record.state.step, distiller.outer_steps)
        self.pipeline = checkpoints.identity(distiller)
        if self.record.state.step < distiller.outer_steps:
            require_memory(distiller)
        self.spec = spec_of(distiller)
        try:
            if self.world.first:
                write_spec(distiller, self.directory)
        except OSError as error:
            raise ResourceError(f"{self.directory} cannot be written: {error.strerror or error}.") from error
        self.told.start(self.directory, distiller.title, self.spec, self.record.state.step)
        count, lost = distiller.cpu_threads(distiller.template(len(distiller.stages) - 1)), False
        with process.thread_limit(count), process.keep_freed_memory():
            try:
                self._distil()
                self._test()
                self.record.finished = True
            except (_Stopped, GivenUp):
                pass
            except ranks.LostError:
                if self.stop.reason is None:
                    raise
                self.stop.lost = True  # asked to end as the others were, which were done a moment before
            except Exception as error:  # torch raises more kinds than one where memory runs out
                if isinstance(error, torch.AcceleratorError):
                    lost = True  # with all that lies on it
                    raise ResourceError(
                        f"The GPU has failed: {str(error).splitlines()[0]}. What was done until the last checkpoint is there.",
                        fix=f"distilkit resume {shlex.quote(str(self.directory))}",
                    ) from error
                if process.is_out_of_memory(error):
                    raise out_of_memory(distiller) from error
                raise
            finally:
                self.stop.ending()
                tree = xr.DataTree() if lost else self._write()
            try:
                if not self.world.first:
                    return tree
                save_figures(distiller, tree, self.directory)
            except Exception as error:  # a picture is no reason to end a run, whatever matplotlib meets
                logger.warning("the figures cannot be drawn: %s: %s", type(error).__name__, error)
        return tree

    def _distil(self) -> None:
        """The outer loop."""
        distiller, record = self.distiller, self.record
        steps = distiller.outer_steps
        self.progress.phase("distilling")
        while True:
            if self._is_to_be_validated():
                self._validate()
                self._write_if_due()
            require_bounded(record.infos, distiller)
            if record.state.step >= steps:
                return
            if self.world.stopping:
                raise _Stopped
            state, info = self._step()
            with self.stop.shielded():
                record.state = state
                record.infos.append(info)
            self.stop.progressed = True
            self.progress.value("loss", info.outer_loss)
            self.progress.value("|g|", info.meta_gradient_norm)
            self.progress.advance(state.step, steps)
            self.told.stepped(info, state.step)
            self._write_if_due()

    def _step(self) -> tuple[DistillerState, StepInfo]:
        """One outer step. Where its numbers are not finite it is dropped, and taken again through another window."""
        for attempt in range(1, ATTEMPTS):
            try:
                return self.distiller.step(self.record.state, attempt)
            except GradientError as error:
                if not error.can_pass:
                    raise
                logger.warning("%s It is dropped, and taken again with a fresh window and network.", error.message.split(". ")[0] + ".")
        try:
            return self.distiller.step(self.record.state, ATTEMPTS)
        except GradientError as error:
            if not error.can_pass:
                raise
            cause = self.distiller.where_not_finite(self.record.state, ATTEMPTS)
            raise GradientError(f"{error.message} {cause} {ATTEMPTS} windows were tried.", changes=error.changes) from error

    def _is_to_be_validated(self) -> bool:
        distiller, state = self.distiller, self.record.state
        every, done = distiller.evaluation.every, state.step
        if done in self.record.validation:
            return False
        if not done:  # a set that was there may be better than what becomes of it; a boosted run makes a larger one
            return bool(every) and distiller.images.stored is not None and distiller.boost is None
        stage_over = distiller.boost is not None and state.stage_step == distiller.stages[state.stage].steps
        return bool(every and (done % every == 0 or done == distiller.outer_steps)) or stage_over

    def _validate(self) -> None:
        """Measure the validation accuracy, and keep the set if it is the best so far; of a boosted run, only once all blocks are there."""
        distiller, record = self.distiller, self.record
        made, data = distiller.distilled(record.state), distiller.bundle
        stream = distiller.stream.fold("evaluation").fold("validation")
        stage = distiller.stages[record.state.stage]
        learner, name = distiller.stage_learner(stage), f"{VALIDATION}{record.state.step}"
        result = self._score(name, learner, training_set(made, data), stream, test=False)
        mean = float(mean_or_zero(result.selected))
        with self.stop.shielded():
            record.validation[record.state.step], record.partial = result.selected, None
            if stage is distiller.stages[-1] and (record.best is None or mean > record.best[0]):
                record.best = (mean, made)
        self.progress.value("validation accuracy", result.selected.tolist())
        self.told.looked(result.selected, made, record.state.step)

    def _test(self) -> None:
        """Test the selected set once, and the baselines beside it; what was tested before the run was stopped is not tested again."""
        record = self.record
        for name, words, learner, training, stream in self._tests():
            if name in record.scores:
                continue
            if self.world.stopping:
                raise _Stopped
            self.progress.phase(f"testing {words}")
            found = self._score(name, learner, training(), stream, test=True)
            with self.stop.shielded():
                record.scores[name], record.partial = found, None
            self.told.tested(name, found.test, record.state.step)
            self._write_if_due()

    def _score(self, name: str, learner: Learner, training: TrainingSet, stream: Stream, *, test: bool) -> Score:
        """The score of a set, from the network on before which the run was stopped."""
        distiller, record = self.distiller, self.record
        if record.partial is None or record.partial[0] != name:
            record.partial = (name, PartialScore())

        def between() -> None:
            self.stop.progressed = True
            self._write_if_due()
            if self.world.stopping:
                raise _Stopped

        return score(
            learner,
            training,
            distiller.bundle,
            distiller.evaluation,
            stream,
            test=test,
            programs=distiller.programs,
            partial=record.partial[1],
            between=between,
        )

    def _tests(self) -> Iterator[tuple[str, str, Learner, Callable[[], TrainingSet], Stream]]:
        """What is tested: name of the score, words for people, the learner, the training set when it is asked for, and the stream."""
        distiller, record, data = self.distiller, self.record, self.distiller.bundle
        evaluation, stream = distiller.evaluation, distiller.stream.fold("evaluation").fold("test")
        chosen = record.best[1] if record.best else distiller.distilled(record.state)
        own = stream.fold("distilled")
        yield FINAL, "the distilled set", distiller.bound, partial(training_set, chosen, data), own
        for k, stage in enumerate(distiller.stages[:-1]):
            prefix, words = chosen.subset(chosen.block <= k), f"the first {counted(stage.per_class, 'image')} of each class"
            yield f"{PREFIX}{stage.per_class}", words, distiller.stage_learner(stage), partial(training_set, prefix, data), own
        for name in evaluation.baselines:
            its = stream.fold(name)
            images = partial(baseline_set, name, data, distiller.per_class, evaluation, its.fold("images"))
            yield f"{BASELINE}{name}", name, distiller.bound, images, its.fold("networks")

    def _write(self) -> xr.DataTree:
        """Write checkpoint and results, if this process writes.

        Raises:
            ResourceError: the disk takes no more; the message says what is safe.
        """
        tree = results(self.distiller, self.record, self.spec)
        if not self.world.first:
            return tree
        try:
            checkpoints.save(self.record, self.pipeline, self.directory)
            storage.write(tree, self.directory)
        except OSError as error:
            raise ResourceError(
                f"{self.directory} cannot be written: {error.strerror or error}. What was written before is whole; the same call goes on "
                "from there, once there is room."
            ) from error
        return tree

    def _write_if_due(self) -> None:
        """Write, if the time has come. Where that fails the run goes on, and it is tried again."""
        if time.monotonic() < self.due or not self.world.first:
            return
        try:
            with self.stop.shielded():
                self._write()
                if self.copy is not None:
                    self.copy.send()
        except ResourceError as error:
            logger.warning("%s It is tried again in %.0f s.", error.message.split(". ")[0] + ".", self.every)
        self.due = time.monotonic() + self.every

"""Running a distiller into a folder: the loop, the looks at validation, the final test, and what is stored.

    DIRECTORY/spec.toml       the resolved spec: running it again gives the same run
    DIRECTORY/results.zarr    open it with xarray.open_datatree
    DIRECTORY/distilled.png   the distilled images
    DIRECTORY/history.png     loss, meta-gradient norm and validation accuracy
    DIRECTORY/prefixes.png    accuracy by images per class, of a boosted set

The store is written whole every half minute and at the end, whatever ends the run; what was computed is never lost.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import attrs
import numpy as np
import torch
import xarray as xr

from distilkit import process, report, storage
from distilkit.data import DistilledSet
from distilkit.errors import DistilkitError, RunError
from distilkit.evaluation import Score, baseline_scores, require_baselines, score, training_set
from distilkit.planning import from_shapes
from distilkit.spec import dumps, to_tree
from distilkit.storage import layout
from distilkit.storage.store import NAME
from distilkit.unroll.strategy import programs_of

if TYPE_CHECKING:
    from distilkit.distiller import Distiller, DistillerState, StepInfo

SECONDS_BETWEEN_WRITES = 30.0

logger = logging.getLogger("distilkit")


class Observer(Protocol):
    """Is told how a run goes on; the command line shows it. It cannot change the run."""

    def phase(self, words: str) -> None:
        """A new part of the work begins."""

    def stepped(self, info: StepInfo) -> None:
        """An outer step is done."""

    def validated(self, outer_step: int, accuracy: np.ndarray[Any, Any]) -> None:
        """The validation accuracy (seeds,) after so many outer steps."""


class Silent:
    """An observer that shows nothing."""

    def phase(self, words: str) -> None:
        """Nothing."""

    def stepped(self, info: StepInfo) -> None:
        """Nothing."""

    def validated(self, outer_step: int, accuracy: np.ndarray[Any, Any]) -> None:
        """Nothing."""


@attrs.define
class _Record:
    """What a run has gathered so far."""

    state: DistillerState
    infos: list[StepInfo] = attrs.Factory(list)
    validation: dict[int, np.ndarray[Any, Any]] = attrs.Factory(dict)
    best: tuple[float, DistilledSet] | None = None
    final: Score | None = None
    prefixes: dict[int, Score] = attrs.Factory(dict)
    baselines: Mapping[str, Score] = attrs.Factory(dict)


def run(distiller: Distiller, directory: Path, observer: Observer | None = None) -> xr.DataTree:
    """Distil, judge, and store everything in a folder.

    Args:
        distiller: the pipeline.
        directory: a folder that holds no run yet; it is made.
        observer: is told how the run goes on.

    Returns:
        the stored results.

    Raises:
        RunError: the folder holds a run already, or cannot be made.
        CombinationError: the data has too few images for the baselines.
        GradientError: the meta-gradient was not finite; what was computed until then is stored.
    """
    observer = observer or Silent()
    if (directory / NAME).exists():
        raise RunError(f"{directory} holds the results of another run.", fix=f"--out {directory}-2")
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"The folder {directory} cannot be made: {error.strerror}.", fix="--out runs/another") from error
    observer.phase("loading data")
    state = distiller.init()
    require_baselines(distiller.evaluation, distiller.bundle, distiller.per_class)
    spec = _write_spec(distiller, directory)
    record = _Record(state)
    count = distiller.cpu_threads(state)
    _notice_memory(distiller)
    with process.thread_limit(count), process.keep_freed_memory():
        try:
            _distil(distiller, record, observer, lambda: _write(distiller, record, spec, directory))
            _judge(distiller, record, observer)
        finally:
            tree = _write(distiller, record, spec, directory)
            _draw(distiller, tree, directory)
    return tree


def _notice_memory(distiller: Distiller) -> None:
    """Say what the run will take, by shapes alone, and what to change if it will not fit."""
    draft = from_shapes(distiller)
    what = f"memory: about {draft.peak / 2**30:.1f} GiB at the peak, of {draft.total / 2**30:.1f} GiB"
    if not draft.by_shapes:
        logger.info("memory: not known, since the network cannot be recorded; distilkit plan measures it")
    elif draft.fits:
        logger.info(what)
    else:
        logger.warning("%s: it may not fit. Try %s", what, " or ".join(line for _, line in draft.advice))


def _draw(distiller: Distiller, tree: xr.DataTree, directory: Path) -> None:
    """Draw what there is: a run that was stopped has no accuracies, and one stopped at once no history."""
    report.sheet(tree, directory / "distilled.png", real=_some_real(distiller))
    if tree["history"].sizes["outer_step"]:
        report.curves(tree, directory / "history.png")
    if "prefixes" in tree.children:
        prefixes = tree["prefixes"].to_dataset().assign_attrs(title=f"{distiller.title}: first images of each class")
        report.budget_curves(prefixes, directory / "prefixes.png")


def _distil(distiller: Distiller, record: _Record, observer: Observer, write: Callable[[], object]) -> None:
    """The outer loop."""
    steps, every = distiller.outer_steps, distiller.evaluation.every
    observer.phase("distilling")
    written = time.monotonic()
    while record.state.step < steps:
        record.state, info = distiller.step(record.state)
        record.infos.append(info)
        observer.stepped(info)
        done = record.state.step
        stage_over = distiller.boost is not None and record.state.stage_step == distiller.stages[record.state.stage].steps
        if (every and (done % every == 0 or done == steps)) or stage_over:
            _look(distiller, record, observer)
        if done < steps and time.monotonic() - written > SECONDS_BETWEEN_WRITES:
            write()
            written = time.monotonic()


def _look(distiller: Distiller, record: _Record, observer: Observer) -> None:
    """Measure the validation accuracy, and keep the set if it is the best so far; of a boosted run, only once all blocks are there."""
    made, data, step = distiller.distilled(record.state), distiller.bundle, record.state.step
    stream = distiller.stream.fold("evaluation").fold("validation")
    stage = distiller.stages[record.state.stage]
    result = score(distiller.stage_learner(stage), training_set(made, data), data, distiller.evaluation, stream, test=False)
    record.validation[step] = result.selected
    observer.validated(step, result.selected)
    mean = float(result.selected.mean())
    if stage is distiller.stages[-1] and (record.best is None or mean > record.best[0]):
        record.best = (mean, made)


def _judge(distiller: Distiller, record: _Record, observer: Observer) -> None:
    """Test the selected set once, and the baselines beside it."""
    chosen = record.best[1] if record.best else distiller.distilled(record.state)
    data, evaluation, stream = distiller.bundle, distiller.evaluation, distiller.stream.fold("evaluation").fold("test")
    observer.phase("testing the distilled set")
    record.final = score(distiller.bound, training_set(chosen, data), data, evaluation, stream.fold("distilled"), test=True)
    for k, stage in enumerate(distiller.stages[:-1]):
        budget = stage.per_class
        observer.phase(f"testing the first {budget} images of each class")
        training, learner = training_set(chosen.subset(chosen.block <= k), data), distiller.stage_learner(stage)
        record.prefixes[budget] = score(learner, training, data, evaluation, stream.fold("distilled"), test=True)
    record.baselines = baseline_scores(
        distiller.bound, data, distiller.per_class, evaluation, stream, lambda name: observer.phase(f"testing {name}")
    )


def _write(distiller: Distiller, record: _Record, spec: dict[str, Any], directory: Path) -> xr.DataTree:
    """Write all that is known by now."""
    last = distiller.distilled(record.state)
    groups = {
        "distilled": storage.distilled_group(storage.to_arrays(last), record.state.step),
        "history": layout.history_group(
            {
                "outer_step": [i.outer_step for i in record.infos],
                "outer_loss": [i.outer_loss for i in record.infos],
                "meta_gradient_norm": [i.meta_gradient_norm for i in record.infos],
                "clip_scale": [i.clip_scale for i in record.infos],
                "window_start": [i.window.start for i in record.infos],
                "window_stop": [i.window.stop for i in record.infos],
                "seconds": [i.seconds for i in record.infos],
            },
            {"stage": layout.variable("outer_step", np.array([i.stage for i in record.infos], np.int64), "stage of the boost schedule")},
        ).assign_attrs(_how(distiller, record.state.stage)),
    }
    if record.best:
        accuracy, best = record.best
        groups["best"] = storage.distilled_group(
            storage.to_arrays(best), best.provenance["outer_step"], validation_accuracy=accuracy, preprocessing_group="distilled"
        )
    if record.validation or record.final:
        protocol = distiller.evaluation.words(distiller.bundle) | ({"selected_training_steps": record.final.steps} if record.final else {})
        groups["evaluation"] = layout.evaluation_group(
            protocol=protocol,
            which=("best" if record.best else "last") if record.final else None,
            accuracy=_by_seed(record.final.test) if record.final else None,
            validation={step: _by_seed(row) for step, row in record.validation.items()} or None,
        )
    if record.final and distiller.boost:
        groups["prefixes"] = _prefixes(record.prefixes | {distiller.per_class: record.final}, distiller)
    if record.baselines:
        groups["baselines"] = layout.baselines_group(
            {name: _by_seed(s.test) for name, s in record.baselines.items()},
            protocol=distiller.evaluation.words(distiller.bundle)
            | {"selected_training_steps": {n: s.steps for n, s in record.baselines.items()}},
        )
    tree = layout.build(
        groups,
        title=distiller.title,
        spec=spec,
        seed=distiller.seed,
        device=_device_words(distiller.torch_device),
        torch_version=torch.__version__,
    )
    storage.write(tree, directory)
    return tree


def _how(distiller: Distiller, stage: int) -> dict[str, str]:
    """How inner steps were run: as planned in this stage, and in all stages so far, what fell back from that."""
    executions = [(distiller.execution(one), distiller.stage_learner(one)) for one in distiller.stages[: stage + 1]]
    fallbacks = {name: how for one in executions for name, how in programs_of(*one).fallbacks.items()}
    return {
        "precision": distiller.resolved_unroller.precision,
        "execution": str(executions[-1][0]),
        "execution_fallbacks": json.dumps(fallbacks),
    }


def _prefixes(scores: Mapping[int, Score], distiller: Distiller) -> xr.Dataset:
    """The group `/prefixes`: test accuracy of the first images of each class, by how many."""
    budgets = np.array(sorted(scores), np.int64)
    accuracy = np.stack([scores[int(b)].test for b in budgets])
    steps = np.array([scores[int(b)].steps for b in budgets], np.int64)
    return xr.Dataset(
        {
            "accuracy": layout.variable(("budget", "seed"), accuracy, "test accuracy of networks trained on the first blocks"),
            "training_steps": layout.variable("budget", steps, "training steps, selected on validation"),
        },
        {
            "budget": layout.coordinate("budget", budgets, "images of each class"),
            "seed": layout.coordinate("seed", np.arange(accuracy.shape[1])),
        },
        {"protocol": json.dumps(distiller.evaluation.words(distiller.bundle))},
    )


def _write_spec(distiller: Distiller, directory: Path) -> dict[str, Any]:
    """Write spec.toml, and return the spec as nested dicts; a pipeline with parts made in Python has no spec but words on why."""
    distiller = attrs.evolve(distiller, unroller=distiller.resolved_unroller)
    try:
        tree = to_tree(distiller)
    except DistilkitError as error:
        return {"unwritable": error.message, "pipeline": repr(distiller)}
    (directory / "spec.toml").write_text(dumps(distiller), encoding="utf-8")
    return tree


def _some_real(distiller: Distiller) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]] | None:
    """One real training image of each class, to look at beside the distilled ones."""
    train, data = distiller.bundle.train, distiller.bundle
    if len(data.image_shape) != 3:
        return None
    rows = torch.stack([(train.labels == c).nonzero()[0, 0] for c in range(data.classes)])
    pixels = data.preprocessing.inverse(train.images[rows].cpu()).clamp(0, 1)
    return (pixels * 255).round().to(torch.uint8).numpy(), np.arange(data.classes)


def _by_seed(values: np.ndarray[Any, Any]) -> dict[int, float]:
    return {i: float(v) for i, v in enumerate(values)}


def _device_words(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"

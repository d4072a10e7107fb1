"""The record of a run: what it has gathered so far, as groups of the store, as spec.toml, and as figures."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
import xarray as xr

from distilkit import fields, report, storage
from distilkit.data.distilled import DistilledSet
from distilkit.distiller import Distiller, DistillerState
from distilkit.errors import DistilkitError, counted
from distilkit.evaluation import PartialScore, Score, training_set
from distilkit.runs.sheets import draw_sheet
from distilkit.spec import dumps, to_tree
from distilkit.storage import layout
from distilkit.truncation import StepInfo

FINAL, PREFIX, BASELINE, VALIDATION = "final", "prefix:", "baseline:", "validation:"  # how the names of scores begin


@attrs.define
class Record:
    """What a run has gathered so far.

    Args:
        state: of the distiller.
        infos: of the outer steps done.
        validation: accuracy by seed, by the outer step.
        best: validation accuracy of the best set, and that set.
        finished: whether nothing is left to do.
        scores: tests: "final", "prefix:N" for the first N images of each class, "baseline:NAME".
        partial: the score that is being made, one of these or "validation:STEP", and what is there of it.
    """

    state: DistillerState
    infos: list[StepInfo] = attrs.Factory(list)
    validation: dict[int, np.ndarray[Any, Any]] = attrs.Factory(dict)
    best: tuple[float, DistilledSet] | None = None
    scores: dict[str, Score] = attrs.Factory(dict)
    partial: tuple[str, PartialScore] | None = None
    finished: bool = False

    @property
    def final(self) -> Score | None:
        """The test of the selected set."""
        return self.scores.get(FINAL)

    @property
    def prefixes(self) -> dict[int, Score]:
        """The tests of the first images of each class, by how many."""
        return {int(name.removeprefix(PREFIX)): score for name, score in self.scores.items() if name.startswith(PREFIX)}

    @property
    def baselines(self) -> dict[str, Score]:
        """The tests of the baselines, by name."""
        return {name.removeprefix(BASELINE): score for name, score in self.scores.items() if name.startswith(BASELINE)}


def results(distiller: Distiller, record: Record, spec: dict[str, Any]) -> xr.DataTree:
    """All that is known by now, as it is stored."""
    last = distiller.distilled(record.state)
    accuracy, judged = record.best or (None, last)
    judged = _with_training(judged, distiller, record.final)
    made = judged.provenance["outer_step"]
    groups = {
        "distilled": storage.distilled_group(storage.to_arrays(judged), made, validation_accuracy=accuracy),
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
            {
                "stage": layout.variable("outer_step", np.array([i.stage for i in record.infos], np.int64), "stage of the boost schedule"),
                "attempts": layout.variable(
                    "outer_step", np.array([i.attempts for i in record.infos], np.int64), "windows drawn until the numbers were finite"
                ),
            },
        ).assign_attrs(_how(distiller, record.state)),
    }
    if made != record.state.step:
        groups["last"] = storage.distilled_group(storage.to_arrays(last), record.state.step, preprocessing_group="distilled")
    if record.validation or record.final:
        protocol = distiller.evaluation.to_json(distiller.bundle) | (
            {"selected_training_steps": record.final.steps} if record.final else {}
        )
        groups["evaluation"] = layout.evaluation_group(
            protocol=protocol,
            which=("best" if record.best else "last") if record.final else None,
            accuracy=_by_seed(record.final.test) if record.final else None,
            validation={step: _by_seed(row) for step, row in record.validation.items()} or None,
        )
    if record.final and distiller.boost:
        groups["prefixes"] = _prefixes(record.prefixes | {distiller.per_class: record.final}, distiller)
    baselines = {name: record.baselines[name] for name in distiller.evaluation.baselines if name in record.baselines}
    if baselines:
        groups["baselines"] = layout.baselines_group(
            {name: _by_seed(s.test) for name, s in baselines.items()},
            protocol=distiller.evaluation.to_json(distiller.bundle)
            | {"selected_training_steps": {n: s.steps for n, s in baselines.items()}},
        )
    tree = layout.build(
        groups,
        title=distiller.title,
        spec=spec,
        seed=distiller.seed,
        device=_device_words(distiller.torch_device),
        torch_version=torch.__version__,
    )
    tree.attrs["finished"] = record.finished
    return tree


def _with_training(made: DistilledSet, distiller: Distiller, score: Score | None) -> DistilledSet:
    """The set that was tested, with what a person needs to train on it as the networks that tested it were, and what they reached."""
    if score is None:
        return made
    learner, _ = distiller.evaluation.trainer(distiller.bound, training_set(made, distiller.bundle))
    words = {
        **{name: _repr(getattr(learner, name)) for name in ("network", "optimizer", "loss", "augment")},
        "batch_per_class": learner.batch_per_class,
        "classes_per_step": learner.classes_per_step,
        "labels": distiller.evaluation.labels,
        "learned_rate": learner.learn_lr,
        "precision": distiller.evaluation.precision,
        "steps": score.steps,
        "test_accuracy": [None if np.isnan(value) else float(value) for value in score.test],
    }
    return attrs.evolve(made, provenance={**made.provenance, "training": words})


def _repr(part: Any) -> str | None:
    return None if part is None else fields.described(part)


def _how(distiller: Distiller, state: DistillerState) -> dict[str, str]:
    """How inner steps were run: as planned in this piece, and in all pieces so far, what fell back from that."""
    so_far = distiller.pieces[: distiller.pieces.index(distiller.piece(state)) + 1]
    executions = [(distiller.piece_learner(one), distiller.execution(one)) for one in so_far]
    unroller, cache = distiller.resolved_unroller, distiller.programs
    fallbacks = {name: how for one in executions for name, how in unroller.fallbacks(*one, cache).items()}
    return {
        "precision": distiller.resolved_unroller.precision,
        "execution": str(executions[-1][1]),
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
        {"protocol": json.dumps(distiller.evaluation.to_json(distiller.bundle))},
    )


def spec_of(distiller: Distiller) -> dict[str, Any]:
    """The spec as nested dicts; a pipeline with parts made in Python has no spec but words on why."""
    distiller = fields.evolve(distiller, unroller=distiller.resolved_unroller)
    try:
        return to_tree(distiller)
    except DistilkitError as error:
        return {"unwritable": error.message, "pipeline": fields.described(distiller)}


def write_spec(distiller: Distiller, directory: Path) -> None:
    """Write spec.toml, of a pipeline that has one."""
    distiller = fields.evolve(distiller, unroller=distiller.resolved_unroller)
    try:
        text = dumps(distiller)
    except DistilkitError:
        return
    path = directory / "spec.toml"
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        part = path.with_name("spec.toml.part")
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)


def _by_seed(values: np.ndarray[Any, Any]) -> dict[int, float]:
    return {i: float(v) for i, v in enumerate(values)}


def _device_words(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {counted(torch.get_num_threads(), 'thread')}"


def save_figures(distiller: Distiller, tree: xr.DataTree, directory: Path) -> None:
    """Draw what there is: a run that was stopped has no accuracies, and one stopped at once no history."""
    draw_sheet(tree, directory / "distilled.png", distiller.bundle)
    if tree["history"].sizes["outer_step"]:
        report.curves(tree, directory / "history.png")
    if "prefixes" in tree.children:
        prefixes = tree["prefixes"].to_dataset().assign_attrs(title=f"{distiller.title}: first images of each class")
        report.budget_curves(prefixes, directory / "prefixes.png")

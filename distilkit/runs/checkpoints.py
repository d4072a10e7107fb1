"""Going on: the checkpoints of a run, and whether what lies in a folder is the run that is asked for.

A checkpoint is one safetensors file, RUN/checkpoints/step-N.safetensors, with all that a run has gathered: the state of the distiller,
history, validation, the best set, the scores of what is tested already, and the accuracies so far of what is being tested. Random numbers
are drawn by name and step (`Stream`), so that there is no generator to save. The last two checkpoints are kept.
"""

from __future__ import annotations

import json
import logging
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import attrs
import torch
from torch import Tensor

from distilkit import fields
from distilkit.distiller import Distiller, DistillerState
from distilkit.errors import Change, DistilkitError, RunError, listing
from distilkit.evaluation import PartialScore, Score
from distilkit.runs.record import BASELINE, Record
from distilkit.spec import dumps, to_tree
from distilkit.storage import checkpoint, holds_results
from distilkit.truncation import StepInfo, Window

log = logging.getLogger("distilkit")

FOLDER = "checkpoints"
Resume = Literal["auto", "never"]
# What says how the work is done, and not what is done: a run may go on with another.
WAYS = (
    "device",
    "threads",
    "deterministic",
    "evaluation.compile",
    "learner.micro_batch",
    *(f"unroller.{name}" for name in ("adjoint", "channels_last", "compile", "kernels", "micro_batches", "side_by_side")),
)
COLUMNS = ("outer_step", "outer_loss", "meta_gradient_norm", "clip_scale", "seconds", "stage", "attempts")  # of a StepInfo
PARTS = ("validation", "test")  # of a PartialScore


def save(record: Record, pipeline: Mapping[str, Any], directory: Path) -> None:
    """Save all that a run has gathered, in one step, beside what its pipeline is (`identity`)."""
    tensors = {f"state{name}": tensor for name, tensor in checkpoint.flatten(record.state).items()}
    tensors |= {f"history.{name}": torch.tensor([getattr(info, name) for info in record.infos], dtype=torch.float64) for name in COLUMNS}
    tensors["history.window"] = torch.tensor([[*info.window] for info in record.infos], dtype=torch.int64).reshape(-1, 2)
    tensors |= {f"validation.{step}": torch.from_numpy(row) for step, row in record.validation.items()}
    meta: dict[str, Any] = {"pipeline": dict(pipeline), "stage": record.state.stage, "finished": record.finished, "scores": {}}
    if record.best:
        accuracy, best = record.best
        tensors |= {f"best.{name}": getattr(best, name) for name in ("images", "labels", "classes", "block")}
        meta["best"] = {"accuracy": accuracy, "inner_lr": best.inner_lr, "provenance": best.provenance}
    for name, score in record.scores.items():
        tensors |= {f"score.{name}.validation": torch.from_numpy(score.validation), f"score.{name}.test": torch.from_numpy(score.test)}
        meta["scores"][name] = score.steps
    if record.partial:
        name, partial = record.partial
        meta["partial"] = name
        tensors |= {f"partial.{kind}.{i}": torch.from_numpy(row) for kind in PARTS for i, row in enumerate(getattr(partial, kind))}
    checkpoint.save(directory / FOLDER, record.state.step + len(record.scores), tensors, meta)


def load(distiller: Distiller, found: checkpoint.Checkpoint) -> Record:
    """What a run had gathered when a checkpoint was saved.

    Raises:
        RunError: its tensors are of other shapes than those of this pipeline.
    """
    tensors, meta = found.tensors, found.meta
    state: DistillerState = checkpoint.unflatten(distiller.template(meta["stage"]), _below("state", tensors))
    columns = {name: tensors[f"history.{name}"].tolist() for name in COLUMNS}
    windows = [Window(*pair) for pair in tensors["history.window"].tolist()]
    infos = [_info(dict(zip(columns, row, strict=True)), window) for *row, window in zip(*columns.values(), windows, strict=True)]
    record = Record(state, infos, {int(step): row.numpy() for step, row in _below("validation.", tensors).items()})
    if "best" in meta:
        about: dict[str, Any] = {name: meta["best"][name] for name in ("inner_lr", "provenance")} | _below("best.", tensors)
        record.best = (meta["best"]["accuracy"], attrs.evolve(distiller.distilled(state), **about))
    for name, steps in meta["scores"].items():
        record.scores[name] = Score(tensors[f"score.{name}.validation"].numpy(), tensors[f"score.{name}.test"].numpy(), steps)
    if "partial" in meta:
        parts = {kind: _below(f"partial.{kind}.", tensors) for kind in PARTS}
        rows = {kind: [found[str(i)].numpy() for i in range(len(found))] for kind, found in parts.items()}
        record.partial = (meta["partial"], PartialScore(**rows))
    return record


def begun(
    distiller: Distiller, directory: Path, found: checkpoint.Checkpoint | None, resume: Resume
) -> tuple[Distiller, checkpoint.Checkpoint | None]:
    """Whether a run may begin in a folder, or go on there.

    Args:
        distiller: the pipeline that is asked for.
        directory: the folder of the run.
        found: the newest checkpoint there.
        resume: as for `distilkit.run`.

    Returns:
        the pipeline with the precision that the run began with, where its spec leaves that open; and the checkpoint from which it goes on,
        or None where it begins.

    Raises:
        RunError: the folder holds another run, or something that a run would write over.
    """
    beside = [Change("out", f"{directory}-2")]
    if found is None:
        if holds_results(directory):
            raise RunError(f"{directory} holds the results of another run.", changes=beside)
        if (directory / "spec.toml").exists() and not same_spec(distiller, directory / "spec.toml"):
            raise RunError(f"{directory} holds a spec.toml, which a run would write over.", changes=beside)
        return distiller, None
    if resume == "never":
        raise RunError(f"{directory} holds a run already, and is not to go on.", changes=beside)
    if "pipeline" not in found.meta:
        raise RunError(f"{directory / FOLDER} holds checkpoints of something else than a run.", changes=beside)
    there = _steps_apart(found.meta["pipeline"])
    precision = there.get("unroller", {}).get("precision")
    if distiller.unroller.precision == "auto" and precision is not None:
        distiller = fields.evolve(distiller, unroller=fields.evolve(distiller.unroller, precision=precision))
    here = _steps_apart(identity(distiller))
    older = {"deterministic": False, "unroller.kernels": "auto", "parameters": here.get("parameters")}  # what older runs do not say
    changed = {name: pair for name, pair in differences(there, here).items() if pair != (None, older.get(name))}
    ways = [name for name in changed if name.startswith(WAYS) and not name.endswith(".decay")]  # which truncates
    if ways:
        log.warning("going on with another %s: what is done is the same, and may be rounded otherwise", listing(ways, "and"))
    changed = {name: pair for name, pair in changed.items() if name not in ways}
    may_grow = distiller.boost is None and distiller.growth is None
    if set(changed) == {"outer.steps"} and may_grow and changed["outer.steps"][1] > changed["outer.steps"][0]:
        kept = {name: steps for name, steps in found.meta["scores"].items() if name.startswith(BASELINE)}
        meta = {name: value for name, value in found.meta.items() if name != "partial"}
        return distiller, attrs.evolve(found, meta=meta | {"scores": kept, "finished": False})
    if changed:
        pairs = [(name, *_cut(old, new)) for name, (old, new) in changed.items()]
        lines = [f"    {name}: {there} there, {here} here" for name, there, here in pairs]
        words = "\n".join(
            [f"{directory} holds a run of another spec:", *lines, "Only outer.steps may grow, of a run without [boost] and [growth]."]
        )
        raise RunError(words, changes=beside)
    return distiller, found


def accept(distiller: Distiller, url: str, resume: Resume, folder: Path) -> None:
    """Refuse a copy at a URL that is of another run.

    Args:
        distiller: the pipeline.
        url: of the copy.
        resume: as for `distilkit.run`.
        folder: with spec and checkpoints of that copy.

    Raises:
        RunError: it is of another run.
    """
    try:
        begun(distiller, folder, checkpoint.latest(folder / FOLDER), resume)
    except RunError as error:
        raise RunError(error.message.replace(str(folder), url), changes=[Change("mirror", f"{url.rstrip('/')}-2")]) from error


def same_spec(distiller: Distiller, path: Path) -> bool:
    """Whether a spec.toml is the one that a run of this pipeline has written. A person's own, with comments, is not, whatever it says."""
    try:
        text = path.read_text(encoding="utf-8")
        precision = tomllib.loads(text)["unroller"]["precision"]
        if distiller.unroller.precision == "auto":
            distiller = fields.evolve(distiller, unroller=fields.evolve(distiller.unroller, precision=precision))
        return text == dumps(distiller)
    except (DistilkitError, OSError, ValueError, KeyError, TypeError):
        return False


def identity(distiller: Distiller) -> dict[str, Any]:
    """What makes a run this one: its spec with the precision resolved, or, for parts made in Python, what they are called."""
    data = distiller.bundle  # of this very pipeline: a changed copy would read it again
    distiller = fields.evolve(distiller, unroller=distiller.resolved_unroller)
    try:
        # Not of the images: another processor may have rounded their preprocessing otherwise, and a run may go on there.
        return to_tree(distiller) | {"data_read": data.identity(images=False)}
    except DistilkitError:
        words = {"pipeline": fields.described(distiller), "parameters": distiller.bound.layout.size}
        return words | {"data_read": data.identity(images=True)}


def _steps_apart(found: Mapping[str, Any]) -> Mapping[str, Any]:
    """An identity that names its outer steps, which may grow, beside the words of a pipeline that was made in Python."""
    words = found.get("pipeline", "")
    steps = re.search(r"(?<=outer=Outer\(steps=)\d+", words)
    if steps is None:
        return found
    return {**found, "pipeline": words[: steps.start()] + words[steps.end() :], "outer": {"steps": int(steps[0])}}


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What two trees say of the same name, where they differ; None for nothing.

    >>> differences({"outer": {"steps": 2}, "seed": 0}, {"outer": {"steps": 3}, "seed": 0})
    {'outer.steps': (2, 3)}
    """
    old, new = dict(_flat(there)), dict(_flat(here))
    return {name: (old.get(name), new.get(name)) for name in {**old, **new} if old.get(name) != new.get(name)}


def _flat(tree: Mapping[str, Any], path: str = "") -> Any:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", list(value) if isinstance(value, tuple) else value


def _cut(old: Any, new: Any, longest: int = 200) -> tuple[str, str]:
    """Two values in words; of long ones, such as pipelines, what is around the first difference.

    >>> _cut("Adam(lr=0.1), seed=0, and more", "Adam(lr=0.1), seed=3, and more", 20)
    ('...seed=0, an...', '...seed=3, an...')
    """
    there, here = json.dumps(old), json.dumps(new)
    if max(len(there), len(here)) <= longest:
        return there, here
    first = next((at for at, (one, other) in enumerate(zip(there, here, strict=False)) if one != other), 0)
    begin = max(0, first - longest // 4)
    cut = [words[begin : begin + longest // 2] for words in (there, here)]
    return f"...{cut[0]}...", f"...{cut[1]}..."


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _info(row: dict[str, Any], window: Window) -> StepInfo:
    whole = {name: int(row[name]) for name in ("outer_step", "stage", "attempts")}
    return StepInfo(**row | whole, window=window)

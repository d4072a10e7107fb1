"""The evaluation of a distilled set or a run: fresh networks are trained on it, and tested on real images after each number of steps.

One of those numbers is selected on the validation split, if there is one. The maximum over them on the test images, which the
RaT-BPTT paper and others report, stands beside it under its own name.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
import xarray as xr

from distilkit import fields, process, storage
from distilkit.data.bundle import DataBundle
from distilkit.data.distilled import DistilledSet
from distilkit.data.preprocessing.base import hash_tensor, hash_words
from distilkit.display import shown
from distilkit.errors import Change, CombinationError, FieldError, RunError, counted
from distilkit.evaluation import Evaluation, TrainingSet, baseline_set, rank, training_set
from distilkit.evaluation.protocol import OPTIMISTIC
from distilkit.evaluation.sharing import Measurement, shared_out
from distilkit.evaluation.training import mean_or_zero
from distilkit.functional.streams import Stream
from distilkit.learner import Learner
from distilkit.progress import Progress
from distilkit.runs.open import pipeline_of
from distilkit.runs.sheets import tree_of
from distilkit.runs.stated import STANDS_IN, stated_pipeline, stated_provenance
from distilkit.storage import layout
from distilkit.storage.remote import brought, url_of
from distilkit.storage.store import holds_results, is_run, is_set, require_writable, says_all
from distilkit.storage.workers import Workers
from distilkit.unroll.execution import ProgramCache


@attrs.frozen(eq=False)
class EvaluationInput:
    """All that an evaluation needs.

    Args:
        distilled: the set.
        data: real data in the set's own space.
        learner: how networks are trained; bound or not.
        evaluation: the protocol.
        title: for people.
        threads: of the CPU; None picks by the size of the work.
        programs: where what is built is kept, for all networks and baselines.
    """

    distilled: DistilledSet
    data: DataBundle
    learner: Learner
    evaluation: Evaluation
    title: str = "distilled"
    threads: int | None = None
    programs: ProgramCache = attrs.field(factory=ProgramCache, repr=False)


def evaluate(
    distilled: DistilledSet | EvaluationInput | str | os.PathLike[str],
    data: Any = None,
    learner: Learner | None = None,
    evaluation: Evaluation | None = None,
    *,
    seed: int = 0,
    networks: Mapping[str, Any] | None = None,
    baselines: Sequence[str] = (),
    ranking: bool = False,
    device: str | torch.device | None = None,
    trust: bool = False,
    workers: Workers = None,
    shard: tuple[int, int] | None = None,
    folder: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> xr.Dataset:
    """Train fresh networks on a distilled set and test them on real images.

    Args:
        distilled: a set; the folder of a run, or the URL of its copy, whose selected set it is; the name of a set that comes with
            distilkit; or the path of an imported one, with `data`, and `learner` where it does not say it.
        data: a bundle, or a source such as `Arrays("cifar10.npz", preprocessing=distilled.preprocessing)`. A run's own when left out.
        learner: how networks are trained. A run's own when left out, or what an imported set says.
        evaluation: the protocol. The same when left out.

        seed: of the networks and all their draws.
        networks: for a cross-architecture table: by name, a network, or a pair of a network and its optimizer. The learner's
            network alone when left out.
        baselines: what is trained and tested in the same way beside it; names as in `Evaluation`.
        ranking: compute DD-Ranking's scores too, which trains on the full data.
        device: where to work; where a bundle lies, and else on a GPU where there is one, when left out.
        trust: allow the run's spec to name Python code.
        workers: who trains and tests the networks, those of `networks` and `baselines` too: how many processes of this machine, or an
            executor, as for `subset_grid`. What the ranking needs is trained here. None does all here.
        shard: (i, n) trains and tests the i-th of n parts of the networks and leaves the others, i from 1; without the ranking.
        folder: for the accuracies as they are found, one that all workers and shards reach. What was stopped goes on there. When left out,
            workers have a temporary one of this machine.
        progress: is told what is being done. None shows it on a terminal and in a notebook; `dk.Silent()` never.

    Returns:
        `accuracy` (training_steps, seed), a fraction of the test images, with `network` in front when `networks` are given;
        `validation_accuracy` the same where the data has a validation split that is selected on; `selected_steps`, and
        `paper_protocol`, the largest mean over the steps on the test images, which is optimistic; with baselines,
        `baseline_accuracy` (baseline, training_steps, seed); with ranking, one variable for each score. The attrs say protocol
        and preprocessing. Of a shard, accuracies that are not there yet are NaN, and what is selected is selected without them.

    Raises:
        CombinationError: the data is not in the set's own preprocessing, or something is missing.
        FieldError: a shard without a folder, or one that there is not.
        RunError: the folder holds another evaluation.

    >>> import distilkit as dk
    >>> bundle = dk.Digits().load(dk.Stream(0))
    >>> first = torch.tensor([int((bundle.train.labels == c).nonzero()[0]) for c in range(10)])
    >>> images, names, space = bundle.train.images[first], bundle.class_names, bundle.preprocessing
    >>> ten = DistilledSet(images, torch.eye(10), torch.arange(10), names, preprocessing=space)
    >>> result = evaluate(ten, bundle, dk.Learner(dk.MLP(hidden=(16,)), dk.SGD(lr=0.1)), dk.Evaluation(seeds=2, steps=(5, 10)))
    >>> result.accuracy.dims, result.accuracy.shape
    (('training_steps', 'seed'), (2, 2))
    """
    if shard is not None and folder is None:
        raise FieldError("folder", None, "a folder, where shards write", fix='folder="runs/judged"')
    with shown(progress) as progress:
        if not isinstance(distilled, EvaluationInput):  # whose data is there
            progress.phase("loading data")
        case = _case(distilled, data, learner, evaluation, seed, trust, device)
        if device is not None:
            case = attrs.evolve(case, data=case.data.to(device))
        how = {"workers": workers, "shard": shard, "folder": None if folder is None else Path(folder)}
        return _evaluated(case, seed, networks, baselines, ranking and shard is None, how, progress)


def _evaluated(
    case: EvaluationInput,
    seed: int,
    networks: Mapping[str, Any] | None,
    baselines: Sequence[str],
    ranking: bool,
    how: Mapping[str, Any],
    progress: Progress,
) -> xr.Dataset:
    training = training_set(case.distilled, case.data)
    stream = Stream(seed).fold("evaluate")
    jobs = []
    for name, one in _per_network(case, networks).items():
        words = f"training {counted(one.evaluation.seeds, 'network')}{f' ({name})' if networks else ''}"
        words += f" for {counted(one.evaluation.steps[-1], 'step')}"
        jobs.append(_measurement(one, words, training, stream.fold("networks")))
    count = len(jobs)
    jobs += _baselines(case, baselines, stream.fold("baselines")) if baselines else []
    tables = _measured(case, jobs, seed, how, progress)
    result = _dataset(case, tables[:count], list(networks) if networks else None, seed)
    if baselines:
        words = "test accuracy of networks trained on the baseline"
        values = np.stack([one["test"] for one in tables[count:]])
        result["baseline_accuracy"] = layout.variable(("baseline", "training_steps", "seed"), values, words)
        result = result.assign_coords(baseline=layout.coordinate("baseline", list(baselines)))
    return result.assign(_ranking(case, stream.fold("ranking"), progress)) if ranking else result


def save(result: xr.Dataset, case: EvaluationInput, directory: str | os.PathLike[str]) -> xr.DataTree:
    """Store what `evaluate` gave and the set that it judged, in the format of a run.

    Args:
        result: from `evaluate`.
        case: what was evaluated.
        directory: a folder that holds no results yet.

    Raises:
        RunError: the folder holds results already.
    """
    require_free(directory)
    words = {"learner": fields.described(case.learner), "evaluation": fields.described(case.evaluation)}
    names = {"title": case.title, "spec": words, "seed": result.attrs["seed"], "device": result.attrs["device"]}
    tree = tree_of(case.distilled, case.data, {"evaluation": result}, **names)
    storage.write(tree, directory)
    return tree


def require_free(directory: str | os.PathLike[str]) -> None:
    """Refuse a folder that holds results already, or that cannot be written."""
    if holds_results(directory):
        raise RunError(f"{directory} holds results already.", changes=[Change("out", f"{directory}-2")])
    require_writable(directory)


def _case(
    given: Any,
    data: Any,
    learner: Learner | None,
    evaluation: Evaluation | None,
    seed: int,
    trust: bool,
    device: str | torch.device | None = None,
) -> EvaluationInput:
    if isinstance(given, EvaluationInput):
        return given
    if url_of(given) is not None:
        with brought(given) as here:
            return _case(here, data, learner, evaluation, seed, trust, device)
    title, split, threads = "distilled", Stream(seed), None
    if not isinstance(given, DistilledSet):
        if not (says_all(given) or is_set(given)):
            raise RunError(
                f"There is no run at {os.fspath(given)!r}. A set in another format is read first, and evaluated with the data and learner "
                "that belong to it.",
                fix="dk.evaluate(distilkit.storage.formats.read(path, data=bundle), bundle, learner, evaluation)",
            )
        title, path = Path(given).stem, given
        given = storage.load(path)
        if says_all(path) and (not is_run(path) or data is None or learner is None or evaluation is None):
            pipeline = pipeline_of(path, trust=trust)
            if device is not None:
                pipeline = fields.evolve(pipeline, device=str(device))  # data does not go over another one
            # The data of a set that comes with distilkit has to be split as its recipe does it.
            split = split if is_run(path) else pipeline.stream
            data = pipeline.bundle if data is None else data
            learner, evaluation, threads = learner or pipeline.learner, evaluation or pipeline.evaluation, pipeline.threads
        elif learner is None and (stated := stated_provenance(path)) is not None:
            words = f"dk.evaluate({os.fspath(path)!r}, data, learner)"
            own = stated_pipeline(stated, data=STANDS_IN, of=os.fspath(path), instead=words)
            learner, evaluation = own.learner, evaluation or own.evaluation
    missing = [name for name, value in (("data", data), ("learner", learner)) if value is None]
    if missing or learner is None:
        raise CombinationError(f"A distilled set does not say its {' and '.join(missing)}.", fix="dk.evaluate(distilled, data, learner)")
    if not isinstance(data, DataBundle):
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        with process.large_products_on(place):
            data = data.load(split.fold("data")).to(place)
    return EvaluationInput(given, data, learner, evaluation or Evaluation(), title, threads)


def _per_network(case: EvaluationInput, networks: Mapping[str, Any] | None) -> dict[str, EvaluationInput]:
    """One case for each network of the table, its learner bound."""
    shape, classes = case.data.image_shape, case.data.num_classes
    if not networks:
        return {"": attrs.evolve(case, learner=case.learner.bind(shape, classes))}
    judges = {}
    for name, given in networks.items():
        network, optimizer = given if isinstance(given, tuple) else (given, None)
        evaluation = case.evaluation if optimizer is None else fields.evolve(case.evaluation, optimizer=optimizer)
        learner = case.learner.with_network(network, shape, classes)
        judges[name] = attrs.evolve(case, learner=learner, evaluation=evaluation)
    return judges


def _measurement(case: EvaluationInput, words: str, training: TrainingSet, stream: Stream) -> Measurement:
    splits = {"test": case.data.test}
    if case.evaluation.select == "validation" and len(case.data.validation):
        splits["validation"] = case.data.validation
    return Measurement(words, case.learner, training, splits, case.evaluation, stream, case.threads)


def _measured(
    case: EvaluationInput, jobs: Sequence[Measurement], seed: int, how: Mapping[str, Any], progress: Progress
) -> list[dict[str, Any]]:
    """Accuracy (training_steps, seed) by split, of each."""
    if how["workers"] is not None or how["folder"] is not None:
        progress.phase("training networks" if how["workers"] is None else "training networks on workers")
        return shared_out(jobs, identity=_identity(case, jobs, seed), progress=progress, **how)
    tables = []
    for one in jobs:
        progress.phase(one.words)
        tables.append(one.tables(case.programs, progress))
    return tables


def _identity(case: EvaluationInput, jobs: Sequence[Measurement], seed: int) -> dict[str, Any]:
    """Words on what is measured: a folder where something else was begun is refused."""
    made, data = case.distilled, case.data
    learners = {job.words: [fields.described(job.learner, job.learner.layout.size), job.evaluation.to_json()] for job in jobs}
    tensors = {name: hash_tensor(getattr(made, name)) for name in ("images", "labels", "classes")}
    return {
        "study": "evaluation",
        "set": hash_words(tensors | {"inner_lr": made.inner_lr, "label_space": made.label_space}),
        "data": {"name": data.name, "preprocessing": data.preprocessing.fingerprint()} | data.identity(images=True),
        "networks": list(learners),
        "recipe": hash_words(learners),
        "seed": seed,
    }


def _dataset(case: EvaluationInput, rows: Sequence[Mapping[str, Any]], networks: list[str] | None, seed: int) -> xr.Dataset:
    evaluation, steps = case.evaluation, np.asarray(case.evaluation.steps, np.int64)
    front = ("network",) if networks else ()
    dims = (*front, "training_steps", "seed")
    tables = {name: np.stack([row[name] for row in rows]) if networks else rows[0][name] for name in rows[0]}
    mean = mean_or_zero(tables["test"])
    variables = {
        "accuracy": layout.variable(dims, tables["test"], "test accuracy of networks trained on the distilled set"),
        "paper_protocol": layout.variable(front, mean.max(-1), "largest mean test accuracy over the training steps: optimistic"),
    }
    choosing = mean if evaluation.select == "paper" else None
    if "validation" in tables:
        choosing = mean_or_zero(tables["validation"])
        words = "validation accuracy of networks trained on the distilled set"
        variables["validation_accuracy"] = layout.variable(dims, tables["validation"], words)
    if choosing is not None:
        variables["selected_steps"] = layout.variable(front, steps[choosing.argmax(-1)], "number of training steps that was selected")
    coords = {
        "training_steps": layout.coordinate("training_steps", steps, "steps that the networks were trained for"),
        "seed": layout.coordinate("seed", np.arange(evaluation.seeds)),
    }
    if networks:
        coords["network"] = layout.coordinate("network", networks, "network that was trained")
    protocol = evaluation.to_json() | {"learner": fields.described(case.learner)}
    protocol["selected_on"] = None if choosing is None else OPTIMISTIC if evaluation.select == "paper" else "validation split"
    attributes = {
        "protocol": json.dumps(protocol),
        "preprocessing": json.dumps(case.distilled.preprocessing.to_arrays()[0]),
        "label_space": case.distilled.label_space,
        "data": case.data.name,
        "test_images": len(case.data.test),
        "provenance": json.dumps(case.distilled.provenance),
        "seed": seed,
        "device": str(case.data.test.images.device),
    }
    return xr.Dataset(variables, coords, attributes)


def _baselines(case: EvaluationInput, names: Sequence[str], stream: Stream) -> list[Measurement]:
    per_class = case.distilled.per_class
    evaluation = fields.evolve(case.evaluation, baselines=tuple(names))  # checks the names
    one = _per_network(attrs.evolve(case, evaluation=evaluation), None)[""]
    jobs = []
    for name in names:
        if per_class is None and name != "full data":
            raise CombinationError(f"The baseline {name!r} has as many images of each class, and the classes of the set differ in theirs.")
        own = stream.fold(name)
        training = baseline_set(name, case.data, per_class or 0, evaluation, own.fold("images"))
        jobs.append(_measurement(one, f"training on {name}", training, own.fold("networks")))
    return jobs


def _ranking(case: EvaluationInput, stream: Stream, progress: Progress) -> dict[str, xr.Variable]:
    one = _per_network(case, None)[""]
    count = _measurement(one, "DD-Ranking", training_set(one.distilled, one.data), stream).cpu_threads()
    with process.thread_limit(count), process.keep_freed_memory():
        found = rank(one.learner, one.distilled, one.data, one.evaluation, stream, progress=progress, programs=case.programs)
    scores = {
        "hard_label_recovery": "HLR of DD-Ranking, less is better",
        "improvement_over_random": "IOR of DD-Ranking",
        "label_robust_score": "LRS of DD-Ranking",
        "augmentation_robust_score": "ARS of DD-Ranking",
    }
    return {name: layout.variable("seed", getattr(found, name), words) for name, words in scores.items()}

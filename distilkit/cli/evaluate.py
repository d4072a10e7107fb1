"""The command `distilkit evaluate`: a run, or anyone's set with the recipe and the data that belong to it."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import attrs

from distilkit import fields, process, recipes, spec as specs, storage
from distilkit.cli.display import stoppable
from distilkit.cli.output import Output
from distilkit.cli.rows import evaluation_values
from distilkit.cli.studies import show_part
from distilkit.cli.tables import evaluation_table, evaluation_words
from distilkit.data.distilled import DistilledSet
from distilkit.data.preprocessing import Refittable
from distilkit.data.sources.arrays import Arrays, holds_arrays
from distilkit.data.sources.folders import ImageFolder
from distilkit.distiller import Distiller
from distilkit.errors import Change, CombinationError, DistilkitError, FieldError, listing, nearest
from distilkit.evaluation import Evaluation
from distilkit.learner import Learner
from distilkit.progress import SILENT, Progress
from distilkit.runs.claim import claimed
from distilkit.runs.evaluate import EvaluationInput, evaluate, require_free, save
from distilkit.runs.open import pipeline_of, refuse_to_be_told
from distilkit.runs.stated import STANDS_IN, stated_pipeline, stated_provenance
from distilkit.spec import kinds
from distilkit.spec.files import read_text
from distilkit.storage import formats, is_run, says_all
from distilkit.storage.formats.image_folder import stated_preprocessing
from distilkit.storage.remote import brought
from distilkit.storage.store import can_go_on, find


def show_evaluation(path: Path, case: dict[str, Any], options: dict[str, Any], out: Path | None, output: Output) -> None:
    """Evaluate a run or a set, show how it goes on, then its table; store it if a folder is given.

    Args:
        path: of the run or set.
        case: the options of `assemble`.
        options: the options of `distilkit.evaluate`; `networks` are names, and `rates` belong to them.
        out: a folder, or None.
        output: how to tell it.

    Raises:
        CombinationError: nothing of what it finds would be told or stored.
        StoppedError: by Ctrl-C, where a folder has what was done until then.
    """
    shard = options.get("shard")
    if shard and out is None:
        raise CombinationError(
            "--shard does a part of the work, and the parts meet in a folder.", changes=[Change("out", f"runs/{path.stem}-judged")]
        )
    if output.quiet and not output.as_json and out is None:
        raise CombinationError(
            "--quiet tells only where the results are stored, and without --out they are not.",
            changes=[Change("out", f"runs/{path.stem}-judged")],
        )
    if out is not None:
        require_free(out)
    with nullcontext() if out is None else stoppable(out), nullcontext() if out is None or shard else claimed(out):
        _show(path, case, options, out, output)


def _show(path: Path, case: dict[str, Any], options: dict[str, Any], out: Path | None, output: Output) -> None:
    with output.progress() as progress:
        with brought(path) as here:
            found = assemble(here, **case, progress=progress)
        names, rates = options.pop("networks"), options.pop("rates")
        networks = parse_networks(names, rates, found.learner, found.evaluation)
        result = evaluate(found, networks=networks, folder=out and out / "grid", progress=progress, **options)
    if out is not None and options["shard"]:
        return show_part(output, out, out / "grid")
    table = evaluation_table(result, f"{path.name}: accuracy on {result.attrs['test_images']} test images of {result.attrs['data']}")
    lines, stored = evaluation_words(result), None
    try:
        if out is not None:
            save(result, found, out)
            lines, stored = [*lines, f"Stored in {out}"], out
    finally:  # also where the disk takes no more
        output.answer(evaluation_values(result, path, stored), table, *lines, written=stored)


def assemble(
    path: str | os.PathLike[str],
    *,
    data: str | None = None,
    recipe: str | None = None,
    format: str | None = None,
    label_space: str | None = None,
    preprocessing: str | None = None,
    overrides: Iterable[str] = (),
    trust: bool = False,
    progress: Progress = SILENT,
) -> EvaluationInput:
    """Put together the evaluation of a run or of anyone's set, as `distilkit evaluate` says it.

    A set in a format of others comes from authors who used all training images, so none are held out: whitening is fitted on all.

    Args:
        path: the folder of a run, the name of a set that comes with distilkit, or a file or folder in one of the formats of
            `distilkit.storage.formats`.
        data: instead of the recipe's data: a kind such as "CIFAR10", or the path of arrays (see `Arrays`), either with the recipe's
            preprocessing.
        recipe: a spec's path, or the name of a recipe; what the set was made with, where it is no run and does not say it.
        format: of the set, where it cannot be told by its name.
        label_space: what its labels are, where the file does not say.
        preprocessing: what its images went through, where the file does not say.
        overrides: changes of the recipe, such as "evaluation.steps=[300,600]".
        trust: allow the spec to name Python code.
        progress: is told what is being done.

    Raises:
        DistilkitError: something is missing or does not fit.
    """
    whole = says_all(path)
    if not whole and (can_go_on(path) or not Path(path).exists()):
        find(path)  # tells what is not there, and how to go on
    if whole:
        refuse_to_be_told(path, format=format, label_space=label_space, preprocessing=preprocessing)
    pipeline: Distiller
    if recipe is not None:
        pipeline = specs.loads(_recipe_text(recipe), overrides, trust=trust, source=recipe)
    elif whole:
        instead = f"--recipe SPEC.toml {shlex.quote(os.fspath(path))}"
        there = f"dk.evaluate({os.fspath(path)!r}, data, learner, evaluation)  # in Python"
        pipeline = pipeline_of(path, overrides, trust=trust, instead=instead, in_python=there)
    elif (stated := stated_provenance(path)) is not None:
        known = data if data in kinds.KINDS["data"] else STANDS_IN if data is not None else None
        pipeline = stated_pipeline(stated, data=known, overrides=overrides, of=os.fspath(path), trust=trust)
    else:
        raise CombinationError(
            f"{os.fspath(path)} is not a run, so it does not say how networks are trained on it.",
            fix=f"--recipe SPEC.toml {os.fspath(path)}",
        )
    source = pipeline.data if data is None else source_of(data, pipeline.data)
    progress.phase("loading data")
    stream = pipeline.stream.fold("data")
    with process.large_products_on(pipeline.torch_device):
        if whole and not is_run(path):  # its whitening is fitted on the images that its own recipe does not hold out
            distilled, own = storage.load(path), pipeline_of(path)
            source, stream = evolved(source, validation=getattr(own.data, "validation", 0)), own.stream.fold("data")
            bundle = in_space(source, distilled, held_out=True).load(stream)
        elif whole:
            distilled = storage.load(path)
            if data is not None:
                source = in_space(source, distilled, held_out=False)
            elif recipe is not None:
                source = in_space(source, distilled, held_out=True)
            bundle = source.load(stream)
        else:
            everything = evolved(sized(source, storage.load(path)) if storage.is_set(path) else source, validation=0)
            if preprocessing is None and (space := stated_preprocessing(Path(path))) is not None:
                everything = evolved(everything, preprocessing=space)
            bundle = everything.load(stream)
            distilled = formats.read(path, format, data=bundle, label_space=label_space, preprocessing=preprocessing)
            if distilled.preprocessing.fingerprint() != bundle.preprocessing.fingerprint():
                # An exported set of distilkit's own names the images that its recipe does not hold out.
                held_out = getattr(pipeline.data, "validation", 0) if isinstance(distilled.preprocessing, Refittable) else 0
                bundle = in_space(evolved(source, validation=held_out), distilled, held_out=True).load(stream)
    return EvaluationInput(
        distilled, bundle.to(pipeline.torch_device), pipeline.learner, pipeline.evaluation, Path(path).stem, pipeline.threads
    )


def parse_networks(names: Sequence[str], rates: Sequence[str], learner: Learner, evaluation: Evaluation) -> dict[str, Any]:
    """The networks of a cross-architecture table from words.

    Args:
        names: kinds such as "ResNet". The learner's own network stands for its kind; others are made with their defaults.
        rates: such as "ResNet=0.01": the learning rate of that network.
        learner: the recipe's.
        evaluation: the protocol, whose optimizer is the one whose rate is changed, if it has one.

    Raises:
        FieldError: a name is not known, or a rate is no number.

    >>> import distilkit as dk
    >>> list(parse_networks(["MLP", "VGG"], ["VGG=0.1"], dk.Learner(dk.MLP()), dk.Evaluation()))
    ['MLP', 'VGG']
    """
    optimizer = evaluation.optimizer or learner.optimizer
    chosen: dict[str, Any] = {}
    if twice := [name for name in names if names.count(name) > 1]:
        raise FieldError("networks", ",".join(names), f"each network once, and {twice[0]} is there twice")
    for name in names:
        if name not in kinds.KINDS["network"]:
            near = nearest(name, kinds.KINDS["network"])
            raise FieldError("networks", name, listing(list(kinds.KINDS["network"])), fix=f"--networks {near}" if near else None)
        own = kinds.kind_of("network", learner.network) == name
        chosen[name] = learner.network if own else kinds.resolve("network", name)()
    for rate in rates:
        name, _, value = rate.partition("=")
        try:
            chosen[name] = (chosen[name], fields.evolve(optimizer, lr=float(value)))
        except (KeyError, ValueError) as error:
            raise FieldError("lr", rate, f"NAME=NUMBER, where NAME is one of the networks: {listing(names or ['none'])}") from error
    return chosen


def _recipe_text(recipe: str) -> str:
    if recipe.endswith(".toml") or Path(recipe).exists():
        return read_text(recipe)
    return recipes.read(recipe)


def source_of(words: str, like: Any = None) -> Any:
    """The data source that is meant by a kind or a path, preprocessed and kept in memory as another source is, if there is one."""
    given = {name: value for name in ("preprocessing", "store") if (value := getattr(like, name, None)) is not None}
    if words in kinds.KINDS["data"]:
        return like if kinds.kind_of("data", like) == words else evolved(kinds.resolve("data", words)(), **given)
    if not Path(words).expanduser().exists():
        near = nearest(words, kinds.KINDS["data"])
        raise DistilkitError(
            f"--data {words} is neither a file or folder nor a kind of data: {listing(list(kinds.KINDS['data']))}.",
            fix=f"--data {near}" if near else None,
        )
    if not holds_arrays(Path(words).expanduser()):
        return evolved(like, root=words) if isinstance(like, ImageFolder) else evolved(ImageFolder(words), **given)
    return evolved(Arrays(words), **given)


def in_space(source: Any, distilled: DistilledSet, *, held_out: bool) -> Any:
    """The source in the set's own space, and image files in its size; without a validation split, unless it is to be held out."""
    changed = evolved(sized(source, distilled), preprocessing=distilled.preprocessing)
    return changed if held_out else evolved(changed, validation=0)


def sized(source: Any, distilled: DistilledSet) -> Any:
    """A folder of images, read in the size and the colours of the set."""
    shape = distilled.images.shape[1:]
    return evolved(source, size=shape[-1], channels=shape[0]) if isinstance(source, ImageFolder) and len(shape) == 3 else source


def evolved(source: Any, **changes: Any) -> Any:
    """A source with other values of those fields that it has."""
    known = {field.name for field in attrs.fields(type(source))} if attrs.has(type(source)) else set()
    return attrs.evolve(source, **{name: value for name, value in changes.items() if name in known})

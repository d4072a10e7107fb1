"""Opening a run: its distilled set, and the pipeline that made it. A set in a format of others is read in the same way."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distilkit import spec as specs, storage
from distilkit.data.distilled import DistilledSet
from distilkit.distiller import Distiller
from distilkit.errors import CombinationError, RunError, listing
from distilkit.storage import formats, shipped
from distilkit.storage.remote import SPEC, brought, names_at, run_at

if TYPE_CHECKING:
    import xarray as xr


def refuse_to_be_told(path: Any, **options: str | None) -> None:
    """Refuse what a run says of itself: an option that does nothing would pass for one that did."""
    given = [name for name, value in options.items() if value is not None]
    if given:
        what = "a run" if storage.is_run(path) else "a set of distilkit's own"
        raise CombinationError(f"{path} is {what}, which says its {listing(given, 'and').replace('_', ' ')} itself: it cannot be given.")


def read_set(path: Any, *, format: str | None = None, label_space: str | None = None, preprocessing: str | None = None) -> DistilledSet:
    """The distilled set of a run, one that comes with distilkit, or of a file or folder in a format of `distilkit.storage.formats`.

    Args:
        path: of the run, file or folder; the URL of a run's copy; or the name of a set that comes with distilkit.
        format: of what is no run, where it cannot be told.
        label_space: what its labels are, where it does not say.
        preprocessing: what its images went through, where it does not say.

    Raises:
        DistilkitError: it cannot be read; the message asks for what is missing.
    """
    if run_at(path) is not None:
        with brought(path) as here:
            return read_set(here, format=format, label_space=label_space, preprocessing=preprocessing)
    if storage.says_all(path):
        refuse_to_be_told(path, format=format, label_space=label_space, preprocessing=preprocessing)
        return storage.load(path)
    return formats.read(path, format, label_space=label_space, preprocessing=preprocessing)


def with_pipeline(
    distilled: Any,
    pipeline: Distiller | None = None,
    *,
    overrides: Iterable[str] = (),
    trust: bool = False,
    instead: str = "pipeline=dk.Distiller(data, learner, ...)",
) -> tuple[DistilledSet, Distiller]:
    """A distilled set on the CPU and the pipeline that says how it is judged.

    Args:
        distilled: the set, the folder of its run or the URL of its copy, or the name of a set that comes with distilkit.
        pipeline: that of the run when left out.
        overrides: of the run's spec, as for `--set`.
        trust: allow the run's spec to name Python code.
        instead: what to type where there is none.

    Raises:
        CombinationError: a set was given without a pipeline.
        RunError: the run has no spec to take the pipeline from.
    """
    if not isinstance(distilled, DistilledSet):
        return storage.load(distilled), pipeline or pipeline_of(distilled, overrides, trust=trust, instead=instead)
    if pipeline is None:
        raise CombinationError("A DistilledSet does not know the data and the learner that it is judged with.", fix=instead)
    return distilled.to("cpu"), pipeline


def spec_file(path: Any) -> Path:
    """Where the spec of a run lies: runs with parts that no spec can write down, which were made in Python, have none there."""
    place = Path(path)
    return (place.parent if place.suffix == ".zarr" else place) / SPEC


def pipeline_of(
    path: Any,
    overrides: Iterable[str] = (),
    *,
    trust: bool = False,
    instead: str = "dk.evaluate(run, data, learner, evaluation)",
    in_python: str | None = None,
) -> Distiller:
    """The pipeline of a run, from its `spec.toml`, or of a set that comes with distilkit, from its recipe.

    Args:
        path: of the run, the URL of its copy, or that set's name.
        overrides: of its spec, as for `--set`.
        trust: allow the spec to name Python code.
        instead: what to type where there is no spec.
        in_python: what to type in Python, where there is none since parts of the pipeline were made there; `instead` when left out.

    Raises:
        RunError: it has none, or is not there.
    """
    if shipped.comes_with_distilkit(path):
        return specs.load(path, overrides, trust=trust)
    written: str | Path
    made_there = None
    if (url := run_at(path)) is not None:
        written, there = f"{url}/{SPEC}", SPEC in names_at(url)
        made_there = None if there else _made_in_python(url)
    else:
        written = spec_file(path)
        there = written.is_file()
        if not there:
            if not Path(path).exists():
                storage.open(path)  # tells what is not there
            made_there = _made_in_python(path)
    if not there:
        what, why = "set" if storage.is_set(path) else "run", f": {made_there} So" if made_there else ", so"
        raise RunError(
            f"The {what} {url or str(path)!r} has no spec.toml{why} its data, learner and protocol are not known here.",
            fix=in_python or instead if made_there else instead,
        )
    pipeline: Distiller = specs.load(written, overrides, trust=trust)
    return pipeline


def _made_in_python(path: Any) -> str | None:
    """Why a run has no spec, in a sentence; None where it does not say so."""
    try:
        return unwritable(storage.open(path))
    except RunError:
        return None


def unwritable(tree: xr.DataTree) -> str | None:
    """Why the run of these results has no spec, in a sentence: parts of it were made in Python. None where it does not say so."""
    try:
        spec = json.loads(tree.attrs["spec"])
    except (KeyError, ValueError):
        return None
    words = spec.get("unwritable") if isinstance(spec, dict) else None
    return words if isinstance(words, str) else None

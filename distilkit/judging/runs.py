"""What a run says of itself besides its results."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from distilkit import spec as specs
from distilkit.distiller import Distiller
from distilkit.errors import RunError
from distilkit.storage.store import NAME


def is_run(path: Any) -> bool:
    """Whether there are results of distilkit at a path."""
    place = Path(path)
    return place.suffix == ".zarr" or any((place / f"{NAME}{end}").is_dir() for end in ("", ".old"))


def pipeline_of(path: Any, overrides: Iterable[str] = (), *, trust: bool = False) -> Distiller:
    """The pipeline of a run, from its `spec.toml`.

    Raises:
        RunError: it has none, since parts of it were made in Python.
    """
    place = Path(path)
    written = (place.parent if place.suffix == ".zarr" else place) / "spec.toml"
    if not written.is_file():
        raise RunError(
            f"The run {str(path)!r} has no spec.toml, so its data, learner and protocol are not known.",
            fix="dk.evaluate(run, data, learner, evaluation)",
        )
    pipeline: Distiller = specs.load(written, overrides, trust=trust)
    return pipeline

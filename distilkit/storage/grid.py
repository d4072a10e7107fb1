"""Grids of results that are filled unit by unit, by one process or by several, and that go on after a kill.

A grid is a folder:

    FOLDER/results.zarr    an xarray dataset; what is not computed yet is NaN, or -1 where it is a whole number
    FOLDER/units/7.done    unit 7 is computed and stored
    FOLDER/units/7.lock    held, by the operating system, by the process that computes unit 7

A unit is what is computed at one time, such as all seeds of eight subsets of one size; it is one chunk of the store, so two
processes never write to the same file. A lock ends with its process: a unit that a kill interrupted is free again. So one process
fills a grid, or the same command in several, or shards of it, or the workers of an executor (`workers.py`), with the folder in common.
Chunks have checksums; a unit whose chunk is lost or damaged is computed again.
A unit's result must depend on nothing but which unit it is; then the grid is the same to the bit, whoever filled it.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from filelock import FileLock, Timeout

from distilkit import __version__, process
from distilkit.errors import Change, FieldError, RunError
from distilkit.progress import SILENT, Progress
from distilkit.storage.integrity import CHECKED, damage, write_sealed
from distilkit.storage.layout import FORMAT_VERSION, NAME
from distilkit.storage.store import require_writable
from distilkit.storage.workers import Workers, share_out

logger = logging.getLogger("distilkit")

Region = dict[str, slice]
Values = Mapping[str, np.ndarray]


def fill(
    template: xr.Dataset,
    units: Mapping[str, int],
    compute: Callable[[Region], Values],
    *,
    identity: Mapping[str, Any],
    folder: Path | None = None,
    progress: Progress = SILENT,
    workers: Workers = None,
    shard: tuple[int, int] | None = None,
    threads: int | None = None,
) -> xr.Dataset:
    """Compute all units of a grid that are not there yet.

    Args:
        template: the whole grid with its coordinates; variables that are computed hold NaN or -1.
        units: by dimension, how many entries a unit has; a unit has all entries of the other dimensions.
        compute: given a unit's region (a slice for each dimension in `units`), its values by variable.
        identity: JSON-able words on what is computed. A folder that holds a grid of another identity is refused.
        folder: where the grid lies; None keeps it in memory only.
        progress: is told how many units are done.
        workers: who computes: how many processes of this machine, or an executor whose workers reach the folder; None does it here.
        shard: (i, n) takes the i-th of n parts of the units only, i from 1.
        threads: CPU threads of a unit; by default as the process has it.

    Returns:
        The grid, complete: units that another process computes are waited for. Of a shard, what is there by then.

    Raises:
        RunError: the folder holds something else, is damaged where no unit can mend it, or cannot be written.
        FieldError: workers or a shard without a folder; a shard that there is not.

    >>> template = xr.Dataset({"square": ("x", np.full(3, np.nan))}, {"x": [1, 2, 3]})
    >>> grid = fill(template, {"x": 2}, lambda at: {"square": template.x.values[at["x"]] ** 2}, identity={})
    >>> grid["square"].values.tolist()
    [1.0, 4.0, 9.0]
    """
    regions = list(_regions(template, units))
    mine = part_of(len(regions), shard)
    if folder is None:
        if workers is not None or shard is not None:
            raise FieldError("out", None, "a folder, where workers or shards write", fix='out="runs/grid"')
        filled = template.copy(deep=True)
        for i, region in enumerate(regions):
            for name, values in compute(region).items():
                filled[name][{dim: at for dim, at in region.items() if dim in filled[name].dims}] = values
            progress.advance(i + 1, len(regions))
        return filled
    require_writable(folder)
    store, marks = _prepare(folder, template, units, identity)
    _forget_lost(store, marks, template, regions)
    constants = [str(name) for name, array in template.variables.items() if not _is_to_be_computed(array)]
    if broken := [name for name in constants if not _is_whole(store / name, template[name].dims, {})]:
        raise _damaged(folder, [f"{store / name} is lost or damaged." for name in broken])

    def take(number: int, timeout: float = 0) -> bool:
        """Compute a unit, unless it is done, or another process is at it; whether it is done now."""
        done = marks / f"{number}.done"
        try:
            with FileLock(marks / f"{number}.lock", timeout=timeout):
                if not done.exists():
                    _store(store, template, regions[number], compute(regions[number]))
                    done.touch()
        except Timeout:
            return False
        return True

    def seen(_: int = 0) -> None:  # others may be at it besides the workers
        progress.advance(done(folder), len(regions))

    waiting = [number for number in mine if not (marks / f"{number}.done").exists()]
    if workers is not None:
        share_out(take, waiting, workers, folder=marks, threads=threads, seen=seen)
    seen()
    for timeout in (0, -1):  # first what nobody has claimed, then wait for what others are at
        for number in list(waiting):
            with process.thread_limit(threads):
                if take(number, timeout):
                    waiting.remove(number)
                    seen()
    try:
        with xr.open_zarr(store) as lazy:
            grid: xr.Dataset = lazy.load()
    except Exception as error:  # zarr and its codecs raise many kinds; all mean the same here
        raise _damaged(folder, damage(store) or [f"{store} cannot be read: {error}"]) from error
    if wrong := damage(store):
        raise _damaged(folder, wrong)
    grid.attrs.pop("digest", None)
    return grid


def part_of(count: int, shard: tuple[int, int] | None) -> range:
    """The numbers of the units of a shard (i, n), i from 1; of all, if there is none.

    Raises:
        FieldError: there is no such shard.

    >>> list(part_of(5, (2, 2)))
    [1, 3]
    """
    place, parts = shard or (1, 1)
    if not 1 <= place <= parts:
        raise FieldError("shard", shard, "a part such as (2, 8), the second of eight", fix=f"shard=(1, {max(1, parts)})")
    return range(place - 1, count, parts)


def _damaged(folder: Path, wrong: Sequence[str]) -> RunError:
    return RunError(
        f"{' '.join(wrong[:3])} What is whole of it can be read with xarray; to fill it anew, move it away.",
        fix=f"mv {folder} {folder}.damaged",
    )


def _forget_lost(store: Path, marks: Path, template: xr.Dataset, regions: Sequence[Region]) -> None:
    """Take away the marks of units whose chunks are lost or damaged, so that they are computed again."""
    for number, region in enumerate(regions):
        mark = marks / f"{number}.done"
        computed = {str(name): array.dims for name, array in template.data_vars.items() if _is_to_be_computed(array)}
        if mark.exists() and not all(_is_whole(store / name, dims, region) for name, dims in computed.items()):
            logger.warning("unit %d of %s is lost or damaged, and is computed again", number, store)
            mark.unlink(missing_ok=True)


def _is_to_be_computed(array: xr.Variable | xr.DataArray) -> bool:
    """Whether a variable of the template holds nothing yet."""
    return (
        array.size > 0
        and array.dtype.kind in "fi"
        and bool((np.isnan(array.values) if array.dtype.kind == "f" else array.values == -1).all())
    )


def _is_whole(path: Path, dims: Sequence[Any], region: Region) -> bool:
    """Whether the chunk of a unit is there and can be read; without a region, all of an array."""
    try:
        array = zarr.open_array(path, mode="r")
        if region:
            place = tuple(region[dim].start // size if dim in region else 0 for dim, size in zip(dims, array.chunks, strict=True))
            if not (path / array.metadata.encode_chunk_key(place)).is_file():
                return False
        elif array.nchunks_initialized != array.nchunks:
            return False
        array[tuple(region.get(dim, slice(None)) for dim in dims)]
    except Exception:  # as above
        return False
    return True


def done(folder: Path) -> int:
    """How many units of a grid are done."""
    return sum(1 for _ in (folder / "units").glob("*.done"))


def units(folder: Path) -> int:
    """How many units a grid has, done or not."""
    with xr.open_zarr(folder / NAME) as grid:
        return math.prod(-(-grid.sizes[dim] // size) for dim, size in json.loads(grid.attrs["grid"])["units"].items())


def _regions(template: xr.Dataset, units: Mapping[str, int]) -> Iterator[Region]:
    """The region of each unit, the last dimension fastest."""
    spans = [[slice(i, min(i + size, template.sizes[dim])) for i in range(0, template.sizes[dim], size)] for dim, size in units.items()]
    for places in itertools.product(*spans):
        yield dict(zip(units, places, strict=True))


def _prepare(folder: Path, template: xr.Dataset, units: Mapping[str, int], identity: Mapping[str, Any]) -> tuple[Path, Path]:
    """Make the empty grid, or see that the one that is there is the same."""
    store, marks, new = folder / NAME, folder / "units", folder / f"{NAME}.new"
    words = json.dumps({"units": dict(units), **identity}, sort_keys=True)
    marks.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "units" / "create.lock"):
        made = marks / "created"
        if made.exists() and not store.exists():
            logger.warning("%s is gone, and is filled anew", store)
            for mark in [made, *marks.glob("*.done")]:
                mark.unlink()
        if not made.exists():
            if store.exists() and not (store / "zarr.json").is_file():
                raise RunError(f"{store} is there and is not a Zarr store, so it is not overwritten.")
            if store.exists() and _held(store) is None:
                raise RunError(f"{folder} holds the results of a run, not a grid.", changes=[Change("out", f"{folder}-grid")])
            attributes = {"grid": words, "format_version": FORMAT_VERSION, "distilkit_version": __version__}
            encoding: dict[str, dict[str, Any]] = {str(name): dict(CHECKED) for name in template.variables}
            for name, array in template.data_vars.items():
                if array.dtype.kind in "fiub" and array.ndim and array.size:
                    encoding[str(name)] |= {"chunks": tuple(units.get(str(d), array.sizes[d]) for d in array.dims), "_FillValue": None}
            if new.exists():
                shutil.rmtree(new)  # of a process that was killed
            write_sealed(template.assign_attrs(attributes), new, encoding)
            if store.exists():
                shutil.rmtree(store)  # a grid that was never begun
            new.rename(store)
            made.touch()
    held = _held(store)
    if held != words:
        if held is None:
            raise _damaged(folder, damage(store) or [f"{store} does not say which grid it is."])
        theirs, ours = json.loads(held), json.loads(words)
        keys = sorted(k for k in {*theirs, *ours} if theirs.get(k) != ours.get(k))
        raise RunError(
            f"{folder} holds another grid: it differs in {', '.join(keys)} ({theirs.get(keys[0])!r} there, {ours.get(keys[0])!r} here).",
            changes=[Change("out", f"{folder}-2")],
        )
    return store, marks


def _held(store: Path) -> str | None:
    """The words of the grid that a store is; None where it is none, or where that cannot be read."""
    try:
        found = json.loads((store / "zarr.json").read_text(encoding="utf-8"))["attributes"].get("grid")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return found if isinstance(found, str) else None


def _store(store: Path, template: xr.Dataset, region: Region, values: Values) -> None:
    """Write a unit's chunks."""
    for name, array in values.items():
        dims = template[name].dims
        whole = {str(d): region.get(str(d), slice(0, template.sizes[d])) for d in dims}
        xr.Dataset({name: (dims, np.asarray(array, template[name].dtype))}).to_zarr(store, region=whole, mode="r+", write_empty_chunks=True)

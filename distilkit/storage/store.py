"""Results on disk: written whole or not at all, opened with xarray.

A store is a folder, and no file system replaces a full folder in one step everywhere. So `write` makes the new store whole at
`results.zarr.new`, then

    1. results.zarr      -> results.zarr.old
    2. results.zarr.new  -> results.zarr
    3. delete results.zarr.old

A kill between 1 and 2 leaves no `results.zarr`, but two whole stores beside it. Reading then takes the new one, and the next write
finishes the move. `results.zarr.old` may be half deleted only while `results.zarr` is there, so it is read only when that is not.
Files and folders are synced before they are moved, so that this holds against a power cut too, as far as the disk tells the truth.
"""

from __future__ import annotations

import os
import shlex
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import xarray as xr

from distilkit.errors import Change, RunError, listing, nearest
from distilkit.storage import shipped
from distilkit.storage.checkpoint import sync_folder
from distilkit.storage.integrity import CHECKED, damage, write_sealed
from distilkit.storage.layout import FORMAT_VERSION, NAME, group_of_set, require_which
from distilkit.storage.remote import brought, require_here, url_of
from distilkit.storage.sets import from_group

if TYPE_CHECKING:
    from distilkit.data.distilled import DistilledSet

LARGEST_CHUNK = 64 * 2**20  # bytes; codecs refuse 2 GiB, and smaller chunks load in parallel


def write(tree: xr.DataTree, path: str | os.PathLike[str]) -> Path:
    """Write a run's tree; the store that was there stays until the new one is whole.

    Args:
        tree: made by `layout.build`.
        path: a folder of a run, or a path that ends in `.zarr`. One process may write to it at a time.

    Returns:
        The path of the store.

    Raises:
        RunError: something that is not a Zarr store is in the way.
    """
    store = _store(path)
    old, new = _beside(store)
    if store.exists() and not (store / "zarr.json").is_file():
        raise RunError(f"{store} is there and is not a Zarr store, so it is not overwritten.", fix=f"mv {store} {store}.mine")
    store.parent.mkdir(parents=True, exist_ok=True)
    _finish_move(store)
    for left in (old, new):
        _remove(left)
    _write_whole(tree, new)
    if store.exists():
        os.rename(store, old)
    os.rename(new, store)
    sync_folder(store.parent)
    _remove(old)
    return store


def open(run: str | os.PathLike[str]) -> xr.DataTree:
    """Open the results of a run, without loading torch.

    Args:
        run: the folder of a run, or its `results.zarr`; or the URL of its copy, such as s3://bucket/runs/mine, which is brought here first.

    Returns:
        The tree, loaded into memory, so that a run that goes on writing does not change it. For more than memory holds, use
        `xarray.open_datatree(path)` on the store itself.

    Raises:
        RunError: there is no store there, it is not one of ours, or a newer distilkit wrote it.
        ResourceError: a URL cannot be read.
    """
    if url_of(run) is not None:
        with brought(run) as here:
            return open(here)
    for _ in range(10):  # a run that writes at this very moment moves the store away under our hands: look again
        store = find(run)
        before = store.stat().st_ino
        try:
            with xr.open_datatree(store, engine="zarr") as lazy:
                tree = lazy.load()
        except Exception as error:  # zarr and its codecs raise many kinds; all mean the same here
            if not store.exists() or store.stat().st_ino != before:
                continue
            found = damage(store)
            raise RunError(f"{store} cannot be read as a Zarr store: {found[0] if found else error}") from error
        found = damage(store)
        if store.exists() and store.stat().st_ino == before:
            if found:
                raise RunError(" ".join(found[:3]))
            break
    else:
        raise RunError(f"{_store(run)} was being replaced each time it was looked at.")
    tree.attrs.pop("digest", None)  # of this store: another, to which the tree is written, has its own
    version = tree.attrs.get("format_version")
    if not isinstance(version, int):
        raise RunError(f"{store} is a Zarr store, but not one of distilkit: it has no attribute format_version.")
    if version < FORMAT_VERSION:
        folder = store.parent
        goes_on = can_go_on(folder)
        raise RunError(
            f"{store} has format version {version}, of an early distilkit ({tree.attrs.get('distilkit_version')}); this one reads "
            f"version {FORMAT_VERSION}. "
            + ("The run goes on from its checkpoints, and writes it anew." if goes_on else "It has to be made again."),
            fix=f"distilkit resume {shlex.quote(str(folder))}" if goes_on else None,
        )
    if version > FORMAT_VERSION:
        raise RunError(
            f"{store} has format version {version}, written by distilkit {tree.attrs.get('distilkit_version')}; "
            f"this distilkit reads version {FORMAT_VERSION}.",
            fix="pip install --upgrade distilkit",
        )
    return tree


def load(run: str | os.PathLike[str], which: Literal["auto", "best", "last"] = "auto") -> DistilledSet:
    """Load the distilled set of a run: the very tensors that were stored, and their preprocessing.

    Args:
        run: the folder of a run, or its `results.zarr`, or the URL of its copy; the name of a set that comes with distilkit, such as
            "fast/cifar10-ipc1", whose preprocessing is fitted when data is loaded in its space; or what `distilkit import` or
            `distilkit export` has written with a lossless copy: see `is_set`.
        which: "auto", the one that was judged: the best on validation, or the last where there was no validation; "best", the same, or
            an error where it was not selected; "last", the one after the last outer step.

    Raises:
        RunError: there is no such set in the run.
    """
    require_which(which)
    if url_of(run) is not None:
        with brought(run) as here:
            return load(here, which)
    if shipped.comes_with_distilkit(run) or is_set(run):
        if which != "auto":
            raise RunError(f"which = {which!r} cannot be for {os.fspath(run)!r}: it is one set.", changes=[Change("which", "auto")])
        if not is_set(run):
            return shipped.read(run)
        from distilkit.storage import formats  # loads torch

        return formats.read(run)
    if not is_run(run):
        _require_no_foreign(Path(run))
    tree = open(run)
    return from_group(tree, group_of_set(tree, which, f"The run {os.fspath(run)!r}"))


def holds_results(folder: str | os.PathLike[str]) -> bool:
    """Whether results are there, be it that a kill has left them between two moves; or something else has their name."""
    store = _store(folder)
    return os.path.lexists(store) or _beside(store)[0].is_dir()


def is_run(path: str | os.PathLike[str]) -> bool:
    """Whether there are results of distilkit at a path."""
    return Path(path).suffix == ".zarr" or holds_results(path)


def says_all(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a run, or the name of a set that comes with distilkit: both say how they were made, and load as they are."""
    return is_run(path) or shipped.comes_with_distilkit(path)


def is_set(path: str | os.PathLike[str]) -> bool:
    """Whether a set lies at a path as `load` takes it, by names alone: a file `*.safetensors`, or a folder with a lossless copy."""
    place = Path(path)
    return not is_run(path) and ((place.suffix == ".safetensors" and place.is_file()) or (place / "distilkit.safetensors").is_file())


def _require_no_foreign(path: Path) -> None:
    """Tell what a set in a format of others has to go through first."""
    from distilkit.storage import formats

    found = [name for name, format in formats.FORMATS.items() if format.matches(path)]
    if found:
        out = shlex.quote(str(path.with_suffix(".safetensors").name))
        raise RunError(
            f"{path} holds a set in the format {listing(found)}, which does not say all of itself.",
            fix=f"distilkit import {shlex.quote(str(path))} --out {out}",
        )


def require_writable(folder: str | os.PathLike[str]) -> None:
    """See that a folder can be made and written into, before hours of work; nothing is left of it.

    Raises:
        RunError: it cannot, or is a URL.
    """
    require_here(folder)
    folder = Path(os.path.abspath(folder))
    try:
        there = next(one for one in (folder, *folder.parents) if os.path.lexists(one))
        # In a folder of our own, so that nothing is taken away that another process has begun to use.
        with tempfile.TemporaryDirectory(prefix=".distilkit-", dir=there) as own:
            (Path(own) / folder.relative_to(there)).mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:  # the latter of a NUL in the name
        raise RunError(
            f"The folder {folder} cannot be written: {getattr(error, 'strerror', None) or error}.", changes=[Change("out", "runs/another")]
        ) from error


def _store(run: str | os.PathLike[str]) -> Path:
    """The path that the store has or would have."""
    path = Path(run)
    return path if path.suffix == ".zarr" else path / NAME


def _beside(store: Path) -> tuple[Path, Path]:
    return store.with_name(store.name + ".old"), store.with_name(store.name + ".new")


def find(run: str | os.PathLike[str]) -> Path:
    """The store of a run.

    Raises:
        RunError: there is none.
    """
    store = _store(run)
    old, new = _beside(store)
    for _ in range(2):  # twice: between the looks at two names a writer may move one to the other
        if store.is_dir():
            return store
        if old.is_dir():  # a kill between the two renames: `new` is whole, unless a person took it away
            return new if new.is_dir() else old
    if not Path(run).exists():
        near = nearest(os.fspath(run), shipped.names())
        mean = f" Did you mean {near}, which comes with distilkit?" if near else ""
        raise RunError(f"There is no run at {os.fspath(run)!r}: the path does not exist (looked for {store}).{mean}")
    raise RunError(
        f"There are no results at {os.fspath(run)!r}: looked for {store} and {old.name}, which an interrupted write leaves.",
        fix=f"distilkit resume {shlex.quote(os.fspath(run))}" if can_go_on(run) else None,
    )


def can_go_on(folder: str | os.PathLike[str]) -> bool:
    """Whether `distilkit resume` would find a spec and a checkpoint in a folder."""
    return (Path(folder) / "spec.toml").is_file() and any((Path(folder) / "checkpoints").glob("step-*.safetensors"))


def _finish_move(store: Path) -> None:
    """Do what a killed write had left to do."""
    old, new = _beside(store)
    if not store.exists() and old.exists():
        os.rename(new if new.exists() else old, store)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)


def _write_whole(tree: xr.DataTree, path: Path) -> None:
    encoding: dict[str, dict[str, dict[str, object]]] = {}
    for node in tree.subtree:
        for name, array in node.to_dataset(inherit=False).variables.items():
            settings: dict[str, object] = {**CHECKED, **({"_FillValue": None} if array.dtype.kind in "fiu" else {})}
            if array.nbytes > LARGEST_CHUNK and array.dtype.kind in "fiub":
                rows = max(1, array.shape[0] * LARGEST_CHUNK // array.nbytes)
                settings["chunks"] = (rows, *array.shape[1:])
            encoding.setdefault(node.path, {})[str(name)] = settings
    write_sealed(tree, path, encoding, write_inherited_coords=True)

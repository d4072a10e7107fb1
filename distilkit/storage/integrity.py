"""Integrity of a store: damage is an error and never a wrong number.

    chunks      each has a checksum (zstd's own), which any reader of Zarr checks; and each is written, so that a lost one is missed
    metadata    the root holds those of all nodes once more (consolidated), and a digest over all of that, as its attribute `digest`

xarray alone finds a damaged chunk. `verify`, and `distilkit.open`, find lost chunks and damaged metadata too.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xarray as xr
import zarr
from zarr.codecs import ZstdCodec
from zarr.core.buffer import Buffer
from zarr.storage import MemoryStore

from distilkit.errors import counted
from distilkit.storage import checkpoint
from distilkit.storage.checkpoint import sync_folder
from distilkit.storage.layout import NAME

ROOT = "zarr.json"
# The encoding of every array. Chunks lie beside its zarr.json, `c.0.0` and not `c/0/0`: on some disks most of the time of a small store
# goes into folders.
CHECKED: dict[str, Any] = {
    "compressors": (ZstdCodec(level=0, checksum=True),),
    "chunk_key_encoding": {"name": "default", "separator": "."},
}


def write_sealed(data: xr.DataTree | xr.Dataset, store: Path, encoding: Mapping[str, Any], **options: Any) -> None:
    """Write a store with the digest in its root, and have the disk hold all of it.

    By way of memory: on its way to a folder, zarr would write most of a hundred small files two or three times.

    Args:
        data: what to store.
        store: a folder that is not there.
        encoding: of the arrays, as for `to_zarr`; each with `CHECKED`.
        options: more of `to_zarr`.
    """
    held: dict[str, Buffer] = {}
    with warnings.catch_warnings():
        # Without consolidated metadata xarray warns whenever anybody opens the store; with it zarr warns once, here.
        warnings.filterwarnings("ignore", message="Consolidated metadata is currently not part")
        made: Any = MemoryStore(held)
        data.to_zarr(made, mode="w", encoding=encoding, zarr_format=3, consolidated=True, write_empty_chunks=True, **options)
    root = json.loads(held[ROOT].to_bytes())
    root["attributes"]["digest"] = _digest(root)
    for key, content in held.items():
        file = store / key
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(json.dumps(root, indent=1).encode() if key == ROOT else content.to_bytes())
    for file in store.rglob("*"):
        if file.is_dir():
            sync_folder(file)
        else:
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
    sync_folder(store)


def damage(store: Path) -> list[str]:
    """What is wrong with the metadata of a store, and which chunks are lost; a sentence for each. Nothing is decoded.

    A store without a digest, as other programs leave it, says nothing of what it has lost.
    """
    try:
        root = json.loads((store / ROOT).read_text(encoding="utf-8"))
        known = root["attributes"].get("digest")
        nodes: dict[str, Any] = root.get("consolidated_metadata", {}).get("metadata", {})
        if known is not None and known != _digest(root):
            return [f"{store / ROOT} is damaged: it does not match its digest."]
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        return [f"{store / ROOT} cannot be read: {type(error).__name__}: {error}"]
    wrong = []
    for name, node in nodes.items():
        path = store / name / ROOT
        try:
            same = json.loads(path.read_text(encoding="utf-8")) == {k: v for k, v in node.items() if k != "consolidated_metadata"}
        except (OSError, ValueError) as error:
            wrong.append(f"{path} cannot be read: {error}")
            continue
        if known is not None and not same:
            wrong.append(f"{path} is damaged: the root says something else.")
        elif known is not None and node.get("node_type") == "array":  # others may leave chunks out that hold nothing but zeros
            wrong += _lost(store / name)
    return wrong


def _lost(path: Path) -> list[str]:
    """A sentence, if chunks of an array are not there."""
    try:
        array = zarr.open_array(path, mode="r")
        there = array.nchunks_initialized
    except Exception as error:  # zarr raises many kinds; all mean the same here
        return [f"{path} cannot be read: {type(error).__name__}: {error}"]
    return [] if there == array.nchunks else [f"{path} has lost {array.nchunks - there} of its {counted(array.nchunks, 'chunk')}."]


def verify(run: str | os.PathLike[str]) -> tuple[list[str], list[str]]:
    """Check all that lies in the folder of a run: every chunk is decoded, every digest computed.

    Args:
        run: the folder, or its `results.zarr`; or the URL of its copy, which is brought here first.

    Returns:
        what was checked, and what is wrong, a sentence for each.

    Raises:
        RunError: there are no results there.
        ResourceError: a URL cannot be read.
    """
    from distilkit.storage.remote import as_it_lies, run_at
    from distilkit.storage.store import find

    checked: list[str] = []
    wrong: list[str] = []
    if (url := run_at(run)) is not None:
        with as_it_lies(url) as folder:
            checked, wrong = _verified(folder / NAME)
            if not (folder / NAME / ROOT).is_file():  # it is sent last
                wrong[0] = f"{url}/{NAME} is not whole: it is being sent, or its machine was lost before all was sent."
            checked, wrong = ([line.replace(str(folder), url) for line in lines] for lines in (checked, wrong))
        return checked, wrong
    for _ in range(10):  # a run that writes at this very moment takes the store away under our hands: look again
        store = find(run)
        before = store.stat().st_ino
        checked, wrong = _verified(store)
        if store.exists() and store.stat().st_ino == before:
            break
    return checked, wrong


def _verified(store: Path) -> tuple[list[str], list[str]]:
    checked: list[str] = []
    wrong: list[str] = []
    found = damage(store)
    wrong += found
    if not found:
        arrays = _arrays(zarr.open_group(store, mode="r"))
        for name, array in arrays:
            try:
                array[...]
            except Exception as error:  # codecs raise many kinds; all mean the same here
                wrong.append(f"{store / name} is damaged: {type(error).__name__}: {error}")
        checked += [f"{store}: {counted(len(arrays), 'array')}"] if not wrong else []
    folder = store.parent / "checkpoints"
    for step in checkpoint.steps(folder):
        try:
            checkpoint.load(folder, step)
            checked.append(str(checkpoint.path_of(folder, step)))
        except Exception as error:  # as above
            wrong.append(str(error))
    return checked, wrong


def _arrays(group: zarr.Group) -> list[tuple[str, zarr.Array[Any]]]:
    return [(name, node) for name, node in group.members(max_depth=None) if isinstance(node, zarr.Array)]


def _digest(root: dict[str, Any]) -> str:
    """Over all that the root says, but for the digest itself."""
    rest = root | {"attributes": {k: v for k, v in root["attributes"].items() if k != "digest"}}
    return hashlib.blake2b(json.dumps(rest, sort_keys=True).encode(), digest_size=16).hexdigest()

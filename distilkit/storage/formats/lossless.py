"""The format "safetensors": a whole distilled set in one file, bit for bit. Others' formats carry the same bytes beside them.

Tensors images, labels, classes, block and preprocessing_NAME; in the header the keys `format` ("distilkit set 2"), `set`, a JSON
object with class_names, label_space, inner_lr, preprocessing and provenance, and `digest`, of `set` and all tensors.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse, save as serialize

from distilkit.data.distilled import DistilledSet
from distilkit.data.preprocessing import from_arrays, to_words
from distilkit.data.preprocessing.base import hash_tensor
from distilkit.errors import DistilkitError
from distilkit.storage.formats.raw import Options, write_file

FORMAT = "distilkit set 2"
PREFIX = "preprocessing_"


def dumps(distilled: DistilledSet) -> bytes:
    """A distilled set as the bytes of a safetensors file.

    >>> made = DistilledSet(torch.zeros(2, 4), torch.eye(2), torch.arange(2), ("cat", "dog"))
    >>> loads(dumps(made), "memory").class_names
    ('cat', 'dog')
    """
    arrays = distilled.preprocessing.to_arrays()[1]
    tensors = {name: getattr(distilled, name) for name in ("images", "labels", "classes", "block")}
    tensors |= {PREFIX + name: torch.from_numpy(array) for name, array in arrays.items()}
    # A copy each: safetensors refuses tensors that share memory.
    plain = {name: t.detach().to("cpu", copy=True).clone(memory_format=torch.contiguous_format) for name, t in tensors.items()}
    words = {
        "class_names": list(distilled.class_names),
        "label_space": distilled.label_space,
        "inner_lr": distilled.inner_lr,
        "preprocessing": to_words(distilled.preprocessing),
        "provenance": distilled.provenance,
    }
    try:
        text = json.dumps(words)
    except TypeError as error:
        raise DistilkitError(f"The provenance of a distilled set must be plain JSON: {error}.") from error
    return serialize(plain, metadata={"format": FORMAT, "set": text, "digest": _digest(text, plain)})


def loads(content: bytes, name: Path | str) -> DistilledSet:
    """Read what `dumps` gave.

    Args:
        content: the bytes.
        name: where they come from, for errors.

    Raises:
        DistilkitError: they are damaged, or are another safetensors file.
    """
    try:
        tensors = parse(content)
        header = head(content).get("__metadata__", {})
    except (SafetensorError, ValueError) as error:
        raise DistilkitError(f"{name} cannot be read as safetensors: {error}") from error
    if header.get("format") != FORMAT:
        raise DistilkitError(
            f"{name} is a safetensors file, but not a distilled set of this distilkit: its header says {header.get('format')!r} "
            f"in place of {FORMAT!r}.",
            fix='formats.write(distilled, "set.safetensors", "safetensors")',
        )
    if header.get("digest") != _digest(header["set"], tensors):
        raise DistilkitError(f"{name} is damaged: its content does not match its digest.")
    words: dict[str, Any] = json.loads(header["set"])
    arrays = {key.removeprefix(PREFIX): value.numpy() for key, value in tensors.items() if key.startswith(PREFIX)}
    return DistilledSet(
        images=tensors["images"],
        labels=tensors["labels"],
        classes=tensors["classes"],
        class_names=tuple(words["class_names"]),
        label_space=words["label_space"],
        block=tensors["block"],
        inner_lr=words["inner_lr"],
        preprocessing=from_arrays(words["preprocessing"], arrays),
        provenance=words["provenance"],
    )


def head(content: bytes) -> dict[str, Any]:
    """The header of a safetensors file: dtype and shape of each tensor by its name, and under `__metadata__` the words that were given."""
    found: dict[str, Any] = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return found


def _digest(words: str, tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.blake2b(words.encode(), digest_size=16)
    for name in sorted(tensors):
        digest.update(f"{name} {hash_tensor(tensors[name])}".encode())
    return digest.hexdigest()


def beside(path: Path) -> DistilledSet | None:
    """The lossless copy that lies at `path`, or None when there is none."""
    return loads(path.read_bytes(), path) if path.is_file() else None


def matches(path: Path) -> bool:
    """Whether the path looks like this format."""
    return path.is_file() and path.suffix == ".safetensors"


def read(path: Path, options: Options) -> DistilledSet:
    """Read the file."""
    return loads(path.read_bytes(), path)


def write(distilled: DistilledSet, path: Path, plain: bool) -> None:
    """Write the file."""
    content = dumps(distilled)

    def fill(part: Path) -> None:
        part.write_bytes(content)

    write_file(path, fill)

"""`distilkit.json`: what a distilled set is and how it is used, in words that need no distilkit. It lies in the folders that are shared.

`set.schema.json` beside this module is its JSON Schema, of which the table in docs/sharing.md is made. The tensors are not in it: those of
the format "hugging-face" lie beside it, and the rows of "image-folder" are in its table.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from distilkit import __version__
from distilkit.data.distilled import DistilledSet
from distilkit.data.preprocessing import to_words
from distilkit.errors import CombinationError, DistilkitError
from distilkit.storage.formats.lossless import PREFIX
from distilkit.storage.formats.raw import BESIDE
from distilkit.storage.spread import spread

FILE, FORMAT, FORMAT_VERSION = "distilkit.json", "distilkit set", 1
STATED = ("class_names", "label_space", "inner_lr", "provenance")  # what the tensors' own file says too

# Statements of numpy, from `x`, images in [0, 1], to `y`, what a network sees, and back. The other names are arrays of the preprocessing.
_SIZES = "wide = (-1,) + (1,) * (x.ndim - 2)"
_UNIT = "rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)"
FORMULAS: Mapping[str, tuple[list[str], list[str]]] = {
    "Identity": (["y = x"], ["x = y"]),
    "Standardize": (
        [_SIZES, "y = (x - mean.reshape(wide)) / std.reshape(wide)"],
        [_SIZES.replace("x", "y"), "x = y * std.reshape(wide) + mean.reshape(wide)"],
    ),
    "Whiten": (
        ["rows = x.reshape(len(x), -1)", "rows = rows - rows.mean(1, keepdims=True)", _UNIT, "y = (rows @ matrix).reshape(x.shape)"],
        ["rows = y.reshape(len(y), -1) @ np.linalg.inv(matrix)", _UNIT, "x = (rows * scale[1] + scale[0]).reshape(y.shape)"],
    ),
    "KorniaZCA": (
        ["y = ((x.reshape(len(x), -1) - mean) @ matrix).reshape(x.shape)"],
        ["x = (y.reshape(len(y), -1) @ np.linalg.inv(matrix) + mean).reshape(y.shape)"],
    ),
}


def describe(distilled: DistilledSet, *, header: Mapping[str, Any] | None = None, pictures: str | None = None) -> dict[str, Any]:
    """The content of `distilkit.json`.

    Args:
        distilled: the set.
        header: of the safetensors file that lies beside it, from `lossless.head`; None where there is none.
        pictures: the table that names the pictures, from the folder; None where there are none.

    >>> import torch
    >>> describe(DistilledSet(torch.zeros(2, 4), torch.eye(2), torch.arange(2), ("cat", "dog")))["shape"]
    [4]
    """
    settings = to_words(distilled.preprocessing)
    kind, arrays = settings.pop("kind"), distilled.preprocessing.to_arrays()[1]
    settings.pop("fingerprint", None)  # of one that is not ours, or leaves its arrays out
    forward, inverse = FORMULAS.get(kind, (None, None))
    protocol, accuracy = _training(distilled)
    data = distilled.provenance.get("data")
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "written_by": f"distilkit {__version__}",
        "data": data if isinstance(data, str) else None,
        "samples": len(distilled),
        "shape": list(distilled.image_shape),
        "class_names": list(distilled.class_names),
        "label_space": distilled.label_space,
        "inner_lr": distilled.inner_lr,
        "pictures": pictures,
        "tensors": None if header is None else _tensors(header),
        "preprocessing": {
            "kind": kind,
            "forward": forward,
            "inverse": inverse,
            "arrays": {name: PREFIX + name for name in arrays},
            "settings": settings,
            "fingerprint": distilled.preprocessing.fingerprint(),
        },
        "protocol": protocol,
        "expected_accuracy": accuracy,
        "provenance": distilled.provenance,
    }


def _tensors(header: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: {"dtype": one["dtype"], "shape": one["shape"]} for name, one in sorted(header.items()) if name != "__metadata__"}
    return {"file": BESIDE, "digest": header["__metadata__"]["digest"], "arrays": kept}


def _training(distilled: DistilledSet) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """How networks were trained on the set, and what they reached on real test images, of a run that was tested."""
    training = distilled.provenance.get("training")
    if not isinstance(training, dict):
        return None, None
    reached = training.get("test_accuracy")
    reached = [one for one in reached if one is None or isinstance(one, int | float)] if isinstance(reached, list | tuple) else []
    there = [float(one) for one in reached if one is not None]
    accuracy = {
        "mean": float(np.mean(there)) if there else None,
        "std": float(spread(there)) if len(there) > 1 else None,
        "networks": len(there),
        "each": list(reached),
    }
    return {name: value for name, value in training.items() if name != "test_accuracy"}, accuracy


def write(folder: Path, words: Mapping[str, Any]) -> None:
    """Write the file into a folder."""
    (folder / FILE).write_text(json.dumps(words, indent=1) + "\n", encoding="utf-8")


def read(folder: Path) -> dict[str, Any] | None:
    """What the file in a folder says; None where there is none.

    Raises:
        DistilkitError: it cannot be read, or a newer distilkit wrote it.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        words = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DistilkitError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(words, dict):
        raise DistilkitError(f"{path} should hold a JSON object, but holds a {type(words).__name__}.")
    version = words.get("format_version", FORMAT_VERSION)
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise DistilkitError(
            f"{path} has format version {version!r}; this distilkit reads version {FORMAT_VERSION}.", fix="pip install --upgrade distilkit"
        )
    return words


def require_of(words: Mapping[str, Any], distilled: DistilledSet, header: Mapping[str, Any], path: Path) -> None:
    """See that the file tells of the set that lies beside it: somebody may have changed one of the two.

    Raises:
        CombinationError: it tells of another.
    """
    made = describe(distilled, header=header)
    pairs = [(name, words.get(name), made[name]) for name in STATED]
    tensors = words.get("tensors")
    pairs.append(("the digest of the tensors", (tensors if isinstance(tensors, dict) else {}).get("digest"), made["tensors"]["digest"]))
    for name, said, inside in pairs:
        if json.dumps(said, sort_keys=True) != json.dumps(inside, sort_keys=True):  # as text: a tuple is a list in it, and NaN itself
            raise CombinationError(
                f"{path / FILE} and {BESIDE} beside it are not of the same set: they differ in {name}. "
                f"Delete {FILE} to read the tensors alone, which hold all of it."
            )

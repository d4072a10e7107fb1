"""The format "dc" (DC, DSA, DM): one file `res_METHOD_DATASET_MODEL_Nipc.pt`, a dict.

`data` is a list with [images, labels] of each experiment: images float (N, C, H, W) in the order of the classes, labels int64 class
numbers. `accs_all_exps` is a dict of lists of accuracies, by network; it is not read. A set that distilkit writes has a third key,
`distilkit`, uint8: the bytes of the lossless copy.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from distilkit.data.distilled import DistilledSet
from distilkit.errors import DistilkitError
from distilkit.storage.formats import lossless, pickles
from distilkit.storage.formats.raw import Options, Raw, by_class, foreign_labels, tensor, write_file

KEY = "distilkit"


def matches(path: Path) -> bool:
    """Whether the path looks like this format."""
    return path.is_file() and path.suffix in (".pt", ".pth") and path.name.startswith("res")


def read(path: Path, options: Options) -> Raw:
    """Read one experiment of the file; `options.index` says which."""
    content = pickles.load(path)
    pairs = content.get("data") if isinstance(content, dict) else None
    if not isinstance(pairs, list) or not pairs or not all(isinstance(p, (list, tuple)) and len(p) == 2 for p in pairs):
        inside = f"a dict with {sorted(map(str, content))}" if isinstance(content, dict) else f"a {type(content).__name__}"
        raise DistilkitError(f"{path} holds {inside}; a file of DC holds a dict whose 'data' is a list of [images, labels].")
    if not -len(pairs) <= options.index < len(pairs):
        raise DistilkitError(f"{path} holds {len(pairs)} experiments, so there is no index {options.index}.", fix=f"index={len(pairs) - 1}")
    images, labels = pairs[options.index]
    whole = content.get(KEY)
    return Raw(
        images=tensor(images, "images", path),
        labels=tensor(labels, "labels", path),
        image_file=str(path),
        label_file=str(path),
        lossless=lossless.loads(tensor(whole, "bytes", path).numpy().tobytes(), path) if whole is not None else None,
    )


def write(distilled: DistilledSet, path: Path, plain: bool) -> None:
    """Write the file, with one experiment in it."""
    rows = by_class(distilled)
    content: dict[str, Any] = {"data": [[rows.images.detach().contiguous(), foreign_labels(rows)]], "accs_all_exps": {}}
    if not plain:
        content[KEY] = torch.from_numpy(np.frombuffer(lossless.dumps(distilled), np.uint8).copy())
    write_file(path, lambda part: torch.save(content, part))

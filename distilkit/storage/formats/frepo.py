"""The format "frepo": `stepNNNNNN.npz` as FRePo's code saves it with numpy.

`image` is float (N, H, W, C), channels last; `label` is float (N, K), centred: one-hot less 1/K at the start, then learned. FRePo
subtracts the mean of each channel and divides by its deviation for MNIST and Fashion-MNIST, and for the others whitens after that,
with a ZCA that is none of ours: give a fitted value of your own as `preprocessing` there.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distilkit.data.distilled import DistilledSet
from distilkit.errors import DistilkitError
from distilkit.storage.formats import lossless
from distilkit.storage.formats.raw import Options, Raw, by_class, write_file

KEY = "distilkit"


def matches(path: Path) -> bool:
    """Whether the path looks like this format."""
    return path.is_file() and path.suffix == ".npz"


def read(path: Path, options: Options) -> Raw:
    """Read the file; pickled objects in it are refused."""
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            found: dict[str, np.ndarray[Any, Any]] = {name: file[name] for name in ("image", "label", KEY) if name in file.files}
            names = sorted(file.files)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DistilkitError(f"{path} cannot be read as npz without running code from it: {error}") from error
    if not {"image", "label"} <= found.keys() or any(v.dtype.kind not in "fiu" for v in found.values()):
        raise DistilkitError(f"{path} holds {names}; a file of FRePo holds numbers as 'image' and 'label'.")
    images = torch.from_numpy(found["image"])
    return Raw(
        images=images.permute(0, 3, 1, 2).contiguous() if images.ndim == 4 else images,
        labels=torch.from_numpy(found["label"]),
        image_file=f"{path} (image)",
        label_file=f"{path} (label)",
        label_space="centred",
        lossless=lossless.loads(found[KEY].tobytes(), path) if KEY in found else None,
    )


def write(distilled: DistilledSet, path: Path, plain: bool) -> None:
    """Write the file."""
    rows = by_class(distilled)
    images, labels = (t.detach().float() if t.dtype == torch.bfloat16 else t.detach() for t in (rows.images, rows.labels))
    content = {"image": (images.permute(0, 2, 3, 1) if images.ndim == 4 else images).numpy(), "label": labels.numpy()}
    if not plain:
        content[KEY] = np.frombuffer(lossless.dumps(distilled), np.uint8)

    def fill(part: Path) -> None:
        with part.open("wb") as file:  # a file, because numpy would add .npz to a name
            np.savez(file, allow_pickle=False, **content)

    write_file(path, fill)

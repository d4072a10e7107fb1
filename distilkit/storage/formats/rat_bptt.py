"""The format "rat-bptt": HDF5 as the authors of RaT-BPTT save and load it.

`data` is float (N, C*H*W) in the order of the classes, each row an image in the order (C, H, W), in the paper's whitened space (see
`Whiten`). `label`, where labels were learned, is float (N, K): what cross-entropy takes as targets, never normalised. A set that
distilkit writes has a third dataset, `distilkit`, uint8: the bytes of the lossless copy. It needs h5py, an optional extra.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from distilkit.data.distilled import DistilledSet
from distilkit.errors import DistilkitError
from distilkit.storage.formats import lossless
from distilkit.storage.formats.raw import Options, Raw, by_class, foreign_labels, write_file

KEY = "distilkit"


def matches(path: Path) -> bool:
    """Whether the path looks like this format."""
    return path.is_file() and path.suffix in (".h5", ".hdf5")


def read(path: Path, options: Options) -> Raw:
    """Read the file."""
    h5py = _h5py()
    try:
        with h5py.File(path, "r") as file:
            found = {name: _array(file, name) for name in ("data", "label", KEY) if name in file}
            names = sorted(file)
    except (OSError, RuntimeError) as error:
        raise DistilkitError(f"{path} cannot be read as HDF5: {error}") from error
    if "data" not in found:
        raise DistilkitError(f"{path} holds {names}; a file of RaT-BPTT holds the images as 'data' and maybe 'label'.")
    if found["data"].dtype.kind not in "fiu" or any(v.dtype.kind not in "fiu" for v in found.values()):
        raise DistilkitError(f"{path} holds 'data' or 'label' that are not numbers.")
    return Raw(
        images=torch.from_numpy(found["data"]),
        labels=torch.from_numpy(found["label"]) if "label" in found else None,
        image_file=f"{path} (data)",
        label_file=f"{path} (label)",
        soft_space="probability",
        preprocessing="Whiten",
        lossless=lossless.loads(found[KEY].tobytes(), path) if KEY in found else None,
    )


def write(distilled: DistilledSet, path: Path, plain: bool) -> None:
    """Write the file; `label` only where the labels say more than the class."""
    h5py = _h5py()
    rows = by_class(distilled)
    labels = foreign_labels(rows)
    # Without labels, a reader takes the place of a row for its class: that holds only for as many images of each class.
    needed = labels.ndim == 2 or rows.per_class is None

    def fill(part: Path) -> None:
        with h5py.File(part, "w") as file:
            file["data"] = _numpy(rows.images.flatten(1))
            if needed:
                file["label"] = _numpy(rows.labels)
            if not plain:
                file[KEY] = np.frombuffer(lossless.dumps(distilled), np.uint8)

    write_file(path, fill)


def _array(file: Any, name: str) -> np.ndarray[Any, Any]:
    h5py = _h5py()
    if not isinstance(file.get(name, getlink=True), h5py.HardLink):
        raise DistilkitError(f"{file.filename} has a link named {name!r}, which may lead to any file; it is not followed.")
    value = file[name]
    if not isinstance(value, h5py.Dataset):
        raise DistilkitError(f"{file.filename} has a group named {name!r}; it takes a dataset.")
    if value.external or value.is_virtual:
        raise DistilkitError(f"{file.filename} keeps {name!r} in other files, which may be any; they are not read.")
    array: np.ndarray[Any, Any] = value[()]
    return np.asarray(array, dtype=array.dtype.newbyteorder("="))


def _numpy(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    tensor = tensor.detach()
    array: np.ndarray[Any, Any] = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()  # numpy has no bfloat16
    return array


def _h5py() -> Any:
    try:
        import h5py
    except ImportError as error:
        raise DistilkitError(
            'The format "rat-bptt" is HDF5, which is read and written by h5py; it is not installed.', fix="pip install 'distilkit[hdf5]'"
        ) from error
    return h5py

"""A distilled set on disk: the groups `/distilled` and `/last`, and back to torch tensors, bit for bit both ways."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import attrs
import numpy as np
import xarray as xr

from distilkit.errors import RunError
from distilkit.storage.layout import coordinate, variable

if TYPE_CHECKING:
    import torch

    from distilkit.data.distilled import DistilledSet

PREFIX = "preprocessing_"


@attrs.frozen(eq=False)
class SetArrays:
    """A distilled set as plain arrays.

    Args:
        image: (N, C, H, W), or (N, D) for feature vectors, in the preprocessed space.
        label: (N, K) target values, one column a class.
        label_class: (N,) the class each row stands for.
        class_names: K names.
        label_space: "one-hot", "probability", "logit" or "centred".
        pixel: uint8 of the same shape, the images for people.
        block: (N,) boost block of each row; zeros when left out.
        inner_lr: the learned inner learning rate, or those of the first steps, if there are any.
        preprocessing: JSON-able description of the fitted preprocessing.
        preprocessing_arrays: its arrays by name.
        provenance: JSON-able words on where the set came from.
        dtypes: torch dtypes of image and label, where numpy has no such type.
    """

    image: np.ndarray
    label: np.ndarray
    label_class: np.ndarray
    class_names: tuple[str, ...]
    label_space: str
    pixel: np.ndarray
    block: np.ndarray | None = None
    inner_lr: float | tuple[float, ...] | None = None
    preprocessing: Mapping[str, Any] = attrs.field(factory=dict)
    preprocessing_arrays: Mapping[str, np.ndarray] = attrs.field(factory=dict)
    provenance: Mapping[str, Any] = attrs.field(factory=dict)
    dtypes: Mapping[str, str] = attrs.field(factory=dict)


def distilled_group(
    arrays: SetArrays, outer_step: int, *, validation_accuracy: float | None = None, preprocessing_group: str | None = None
) -> xr.Dataset:
    """The group `/distilled` or `/last`.

    Args:
        arrays: the set.
        outer_step: number of outer steps that made it.
        validation_accuracy: mean accuracy on validation, a fraction, for the set that was selected by it.
        preprocessing_group: the name of another group that holds the same preprocessing arrays, so that a large whitening
            matrix lies in the store once; None writes them here.

    Raises:
        RunError: the shapes do not go together.
    """
    n, k = arrays.image.shape[0], len(arrays.class_names)
    space = ("sample", "feature") if arrays.image.ndim == 2 else ("sample", "channel", "y", "x")
    if arrays.image.ndim != len(space):
        raise RunError(f"Distilled images of shape {arrays.image.shape} cannot be stored; they are (N, C, H, W) or (N, D).")
    wanted = {"label": (n, k), "label_class": (n,), "pixel": arrays.image.shape}
    for name, shape in wanted.items():
        given = getattr(arrays, name).shape
        if given != shape:
            raise RunError(f"A distilled set of {n} samples and {k} classes cannot have {name} of shape {given}; it takes {shape}.")
    what, seen = (
        ("image", "distilled image for people") if len(space) == 4 else ("vector", "distilled vector, not an image, clipped to [0, 1]")
    )
    block = np.zeros(n, np.int64) if arrays.block is None else arrays.block
    data = {
        "image": variable(space, arrays.image, f"distilled {what} in the preprocessed space", **_dtype(arrays, "image")),
        "label": variable(("sample", "class"), arrays.label, f"label of the sample as {arrays.label_space}", **_dtype(arrays, "label")),
        "pixel": variable(space, arrays.pixel.astype(np.uint8), f"{seen}, from 0 (dark) to 255"),
    }
    coords = {dim: coordinate(dim, np.arange(size)) for dim, size in zip(space, arrays.image.shape, strict=True)}
    coords["class"] = coordinate("class", list(arrays.class_names))
    coords["class_name"] = variable("sample", np.array(arrays.class_names, object)[arrays.label_class], "class of the sample")
    coords["label_class"] = variable("sample", arrays.label_class, "index of the class that the sample stands for")
    coords["block"] = variable("sample", block, "boost block of the sample, from 0")
    if arrays.inner_lr is not None:
        dims = ["inner_step"] if np.ndim(arrays.inner_lr) else []
        data["inner_lr"] = variable(dims, np.asarray(arrays.inner_lr, np.float64), "learned learning rate of the inner optimiser")
        coords |= {
            dim: coordinate(dim, np.arange(np.size(arrays.inner_lr)), "training step; later ones take the last rate") for dim in dims
        }
    for name, array in {} if preprocessing_group else arrays.preprocessing_arrays.items():
        dims = [f"preprocessing_{name}_{axis}" for axis in range(np.ndim(array))]
        data[f"preprocessing_{name}"] = variable(dims, array, f"{name} of the preprocessing")
        coords |= {dim: coordinate(dim, np.arange(size), f"axis of {name}") for dim, size in zip(dims, array.shape, strict=True)}
    attributes: dict[str, Any] = {
        "label_space": arrays.label_space,
        "preprocessing": json.dumps(dict(arrays.preprocessing)),
        "provenance": json.dumps(dict(arrays.provenance)),
        "outer_step": int(outer_step),
    }
    if preprocessing_group:
        attributes["preprocessing_group"] = preprocessing_group
    if validation_accuracy is not None:
        attributes["validation_accuracy"] = float(validation_accuracy)
    return xr.Dataset(data, coords, attributes)


def to_arrays(distilled: DistilledSet) -> SetArrays:
    """The plain arrays of a distilled set, on the CPU."""
    from distilkit.data.preprocessing import to_words

    arrays = distilled.preprocessing.to_arrays()[1]
    dtypes = {name: str(t.dtype) for name, t in (("image", distilled.images), ("label", distilled.labels))}
    return SetArrays(
        image=_numpy(distilled.images),
        label=_numpy(distilled.labels),
        label_class=_numpy(distilled.classes),
        class_names=tuple(distilled.class_names),
        label_space=distilled.label_space,
        pixel=_numpy(distilled.pixels()),
        block=_numpy(distilled.block),
        inner_lr=distilled.inner_lr,
        preprocessing=to_words(distilled.preprocessing),
        preprocessing_arrays=arrays,
        provenance=distilled.provenance,
        dtypes=dtypes,
    )


def from_group(tree: xr.DataTree, group: str = "distilled") -> DistilledSet:
    """The distilled set of a group of a run's tree.

    Args:
        tree: what `distilkit.open` returned.
        group: "distilled" or "last".

    Returns:
        The set on the CPU: the very tensors that were stored, with the preprocessing they were made in.
    """
    from distilkit.data.distilled import DistilledSet
    from distilkit.data.preprocessing import from_arrays

    data = tree[group].to_dataset()
    holder = tree[str(data.attrs.get("preprocessing_group", group))].to_dataset()
    arrays = {str(v).removeprefix(PREFIX): np.array(holder[v]) for v in holder.data_vars if str(v).startswith(PREFIX)}
    names: Any = tuple(data["class"].values.tolist())
    return DistilledSet(
        images=_tensor(data["image"]),
        labels=_tensor(data["label"]),
        classes=_tensor(data["label_class"]),
        class_names=names,
        label_space=data.attrs["label_space"],
        block=_tensor(data["block"]),
        inner_lr=data["inner_lr"].values.tolist() if "inner_lr" in data else None,
        preprocessing=from_arrays(json.loads(data.attrs["preprocessing"]), arrays),
        provenance=json.loads(data.attrs["provenance"]),
    )


def _dtype(arrays: SetArrays, name: str) -> dict[str, str]:
    return {"torch_dtype": arrays.dtypes[name]} if name in arrays.dtypes else {}


def _numpy(tensor: torch.Tensor) -> np.ndarray:
    import torch

    tensor = tensor.detach().cpu()
    # numpy has no bfloat16; float32 holds each of its values, and the attr torch_dtype brings it back.
    return np.asarray(tensor.float() if tensor.dtype == torch.bfloat16 else tensor)


def _tensor(array: xr.DataArray) -> torch.Tensor:
    import torch

    tensor: Any = torch.from_numpy(np.array(array.values))
    name = str(array.attrs.get("torch_dtype", "")).removeprefix("torch.")
    return cast("torch.Tensor", tensor.to(getattr(torch, name)) if name else tensor)

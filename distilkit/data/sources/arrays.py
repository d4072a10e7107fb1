"""Your own arrays: npz, npy and Zarr files, or tensors from Python."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, cast

import attrs
import numpy as np
import torch

from distilkit import fields
from distilkit.data.bundle import DataBundle
from distilkit.data.preprocessing import Preprocessing, Standardize
from distilkit.data.sources.assemble import Raw, Store, assemble, split_size, store_field
from distilkit.data.sources.missing import folder, missing
from distilkit.errors import CombinationError, FieldError
from distilkit.functional.streams import Stream

ROLES: dict[str, tuple[str, ...]] = {  # what each array may be called; the first is the name we write
    "train_images": ("train_images", "images"),
    "train_labels": ("train_labels", "labels"),
    "test_images": ("test_images",),
    "test_labels": ("test_labels",),
    "class_names": ("class_names",),
}

MOST_CLASSES = 2**20
ZARR = ("zarr.json", ".zgroup")  # one of which a Zarr group holds

ArrayLayout = Literal["auto", "NCHW", "NHWC"]


def _array() -> Any:
    return attrs.field(default=None, eq=False, repr=False, kw_only=True, metadata={"allowed": "an array, from Python only", "python": True})


@fields.component
class Arrays:
    """Arrays of any number of channels, any size and uneven classes; feature vectors too.

    From a file or folder, or from Python by keyword: `Arrays(train_images=x, train_labels=y)`. Images are (N, C, H, W),
    (N, H, W) for one channel, (N, H, W, C) with `layout="NHWC"`, or feature vectors (N, D). uint8 is scaled by 1/255 and uint16
    by 1/65535; floats are kept as they are, but for images of whole numbers up to 255, which are refused. Labels are whole
    numbers from 0. Without test arrays, a part is held out for the test by a fixed seed, the same for every run.

    Args:
        path: a `.npz` file or a Zarr group with the arrays train_images, train_labels and, where there are any, test_images,
            test_labels, class_names; or a folder with those names as `.npy` files. `images` and `labels` are taken as well.
        name: for titles; the name of the file when left out.
        layout: "NCHW" or "NHWC"; "auto" takes NCHW, and refuses what looks like NHWC.
        test: what to hold out when there are no test arrays: a fraction below 1, or a count.
        validation: what to hold out of the training images: a fraction of them below 1, or a count.
        preprocessing: fitted on the training images only.
        store: "uint8" keeps images as they were read in memory, a quarter of float32, and preprocesses each batch; float32 when left out.
        train_images: an array or tensor, instead of `path`; so are the next four.
        train_labels: (N,) whole numbers.
        test_images: when there are any.
        test_labels: when there are any.
        class_names: a sequence of texts; the class numbers when left out.

    >>> x, y = torch.rand(40, 5, 6, 7), torch.arange(40) % 4
    >>> Arrays(train_images=x, train_labels=y).load(Stream(0)).image_shape
    (5, 6, 7)
    """

    path: str | None = fields.text(default=None, optional=True)
    name: str | None = fields.text(default=None, optional=True)
    layout: ArrayLayout = fields.choice(ArrayLayout, default="auto")
    test: float = fields.number(default=0.2, above=0)
    validation: float = fields.number(default=0.1, least=0)
    preprocessing: Preprocessing = fields.slot("preprocessing", default=Standardize())
    store: Store | None = store_field()
    train_images: Any = _array()
    train_labels: Any = _array()
    test_images: Any = _array()
    test_labels: Any = _array()
    class_names: Any = _array()

    def __attrs_post_init__(self) -> None:
        split_size("validation", self.validation)
        split_size("test", self.test)
        if (self.path is None) == (self.train_images is None):
            both = "both" if self.path is not None else "neither"
            raise CombinationError(f"Arrays takes either path or train_images; {both} was given.", fix='Arrays("my_data.npz")')

    def load(self, stream: Stream) -> DataBundle:
        """Read the arrays; `stream` seeds the validation split only.

        Raises:
            MissingDataError: when the path does not exist.
            CombinationError: when an array is missing, naming those that are there, or the arrays do not go together.
        """
        if self.path is None:
            where = "The arrays given"
            found = {role: getattr(self, role) for role in ROLES if getattr(self, role) is not None}
        else:
            place = folder(self.path)
            if not place.exists():
                raise missing("Arrays", place.parent, [place.name])
            where, found = str(place), _read(place)
        picked = {role: next((found[n] for n in names if n in found), None) for role, names in ROLES.items()}
        for role in ("train_images", "train_labels"):
            if picked[role] is None:
                raise CombinationError(
                    f"{where}: there is no {' or '.join(ROLES[role])}; found: {', '.join(sorted(found)) or 'nothing'}.",
                    fix='numpy.savez("my_data.npz", images=images, labels=labels)',
                )
        if (picked["test_images"] is None) != (picked["test_labels"] is None):
            raise CombinationError(f"{where}: test_images and test_labels come together; found: {', '.join(sorted(found))}.")
        labels = {part: _labels(where, part, picked[part]) for part in ("train_labels", "test_labels") if picked[part] is not None}
        images = {part: self._images(where, picked[part]) for part in ("train_images", "test_images") if picked[part] is not None}
        highest = max((int(v.max()) for v in labels.values() if v.numel()), default=0)
        names = picked["class_names"]
        raw = Raw(
            images["train_images"],
            labels["train_labels"],
            tuple(_word(n) for n in names) if names is not None else tuple(str(c) for c in range(highest + 1)),
            images.get("test_images"),
            labels.get("test_labels"),
        )
        name = self.name or (Path(self.path).stem if self.path else "Arrays")
        return assemble(
            name, raw, preprocessing=self.preprocessing, validation=self.validation, stream=stream, test=self.test, store=self.store
        )

    def _images(self, where: str, value: Any) -> torch.Tensor:
        images = _tensor(where, "images", value)
        if images.ndim == 3:
            return images.unsqueeze(1)
        if images.ndim == 4 and self.layout == "NHWC":
            return images.permute(0, 3, 1, 2).contiguous()
        if images.ndim == 4 and self.layout == "auto" and _channels_last(tuple(images.shape)):
            raise CombinationError(
                f"{where}: images of shape {tuple(images.shape)} look like (N, H, W, C).", fix='layout="NHWC"  # or layout="NCHW"'
            )
        return images


def holds_arrays(place: Path) -> bool:
    """Whether a file or folder is read as arrays, and not as a folder of images."""
    return not place.is_dir() or place.suffix == ".zarr" or any((place / f).exists() for f in ZARR) or any(place.glob("*.npy"))


def _read(place: Path) -> dict[str, Any]:
    readers: list[tuple[Callable[[Path], bool], Callable[[Path], Mapping[str, Any]]]] = [
        (lambda p: p.suffix == ".npz", _read_npz),
        (lambda p: p.is_dir() and any((p / f).exists() for f in ZARR), _read_zarr),
        (lambda p: p.is_dir(), lambda p: {f.stem: np.load(f, allow_pickle=False) for f in sorted(p.glob("*.npy"))}),
    ]
    for fits, read in readers:
        if fits(place):
            try:
                return dict(read(place))
            except CombinationError:
                raise
            except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
                raise CombinationError(f"{place} cannot be read: {error}. Arrays of Python objects (pickles) are refused.") from error
    raise FieldError("path", str(place), "a .npz file, a Zarr group, or a folder of .npy files")


def _read_npz(place: Path) -> dict[str, Any]:
    if not zipfile.is_zipfile(place):
        raise CombinationError(f"{place} is no npz file, or a part of one.", fix='numpy.savez("my_data.npz", images=images, labels=labels)')
    with place.open("rb") as opened, np.load(opened, allow_pickle=False) as kept:
        known = {name for names in ROLES.values() for name in names}
        return {name: kept[name] if name in known else None for name in kept.files}


def _read_zarr(place: Path) -> dict[str, Any]:
    import zarr

    group = zarr.open_group(str(place), mode="r")
    found: dict[str, Any] = {name: np.asarray(array[...]) for name, array in group.arrays()}
    if "class_names" in group.attrs:  # texts are at home in the attributes
        found["class_names"] = cast("list[str]", group.attrs["class_names"])
    return found


def _labels(where: str, role: str, value: Any) -> torch.Tensor:
    if not isinstance(value, torch.Tensor) and np.asarray(value).dtype.kind in "USO":
        raise CombinationError(f"{where}: {role} are text; class numbers are taken.", fix=f"numpy.unique({role}, return_inverse=True)[1]")
    labels = _tensor(where, role, value)
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise CombinationError(f"{where}: {role} are {labels.dtype}, but class numbers are whole.", fix=f"{role}.astype('int64')")
    if labels.numel() and int(labels.max()) > MOST_CLASSES:
        raise CombinationError(f"{where}: {role} go up to {int(labels.max())}; class numbers run from 0, up to {MOST_CLASSES}.")
    return labels.long()


def _tensor(where: str, role: str, value: Any) -> torch.Tensor:
    """An array of any kind as a tensor on the CPU."""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    array = np.asarray(value)
    try:
        return torch.as_tensor(array.astype(array.dtype.newbyteorder("=")))
    except TypeError as error:
        raise CombinationError(
            f"{where}: {role} are {array.dtype}, which torch has no numbers for.", fix=f"{role}.astype('float32')"
        ) from error


def _channels_last(shape: tuple[int, ...]) -> bool:
    """Whether images of a shape (N, ., ., .) have fewer channels in the end than any side in front."""
    return (shape[3] in (1, 3, 4) and shape[1] > 4) or shape[1] == shape[2] > 2 * shape[3]


def _word(name: Any) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)

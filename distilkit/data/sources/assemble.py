"""The one path from raw arrays to a `DataBundle`, which every source takes."""

from __future__ import annotations

from typing import Any, Literal

import attrs
import torch

from distilkit import fields
from distilkit.data.bundle import DataBundle, Split
from distilkit.data.pixels import Pixels
from distilkit.data.preprocessing import (
    Fitted,
    Identity,
    KorniaWhitened,
    KorniaZCA,
    Refittable,
    Standardize,
    Standardized,
    Whiten,
    Whitened,
)
from distilkit.data.preprocessing.base import blocks
from distilkit.errors import CombinationError, FieldError, listing
from distilkit.functional.pytrees import aligned
from distilkit.functional.streams import Stream

Store = Literal["float32", "uint8"]
# What is fitted by blocks of images, or is fitted already; somebody's own gets all of them as one tensor.
OURS = (Identity, Standardize, Standardized, Whiten, Whitened, KorniaZCA, KorniaWhitened, Refittable)
NUMBERED = "numpy.unique(labels, return_inverse=True)[1]"  # numbers from 0, whatever the labels are
TEST_STREAM = Stream(20231123).fold("test split")  # fixed: the test images must never depend on the seed of a run


@attrs.frozen(eq=False)
class Raw:
    """A dataset as it was read.

    Args:
        images: training images, (N, C, H, W) or (N, D); uint8, uint16 or float.
        labels: their class numbers, (N,).
        class_names: one name a class.
        test_images: test images, or None when the dataset comes without a test split.
        test_labels: their class numbers.
    """

    images: torch.Tensor
    labels: torch.Tensor
    class_names: tuple[str, ...]
    test_images: torch.Tensor | None = None
    test_labels: torch.Tensor | None = None


def store_field() -> Any:
    """The field `store` of a source."""
    return fields.choice(Store, default=None, optional=True)


def assemble(
    name: str,
    raw: Raw,
    *,
    preprocessing: Any,
    validation: float,
    stream: Stream,
    test: float | None = None,
    store: Store | None = None,
) -> DataBundle:
    """Split, scale to [0, 1], fit the preprocessing on what is left for training, and apply it to all three splits.

    Args:
        name: name of the dataset.
        raw: the arrays as read.
        preprocessing: a declaration or a fitted value.
        validation: what to hold out of training: a fraction below 1, or a count.
        stream: seeds the validation split only.
        test: what to hold out for the test by a fixed seed when `raw` has no test images.
        store: "uint8" keeps images as they were read, which have to be uint8; "float32" or None preprocesses them here.

    Returns:
        The bundle, on the CPU.

    Raises:
        CombinationError: for arrays that do not fit together, splits that leave nothing, or images that cannot be kept as uint8.
    """
    images, labels = raw.images, raw.labels.long()
    _check(name, images, labels, raw.class_names)
    _require_all_classes(name, labels, raw.class_names)
    if raw.test_images is not None and raw.test_labels is not None:
        test_images, test_labels = raw.test_images, raw.test_labels.long()
        _check(f"{name} (test)", test_images, test_labels, raw.class_names)
        if test_images.shape[1:] != images.shape[1:]:
            raise CombinationError(
                f"{name}: training images are {tuple(images.shape[1:])}, but test images {tuple(test_images.shape[1:])}."
            )
    else:
        rest, held = stratified(labels, 0.2 if test is None else test, TEST_STREAM)
        test_images, test_labels = images[held], labels[held]
        images, labels = images[rest], labels[rest]
    rest, held = stratified(labels, validation, stream.fold("validation split"))
    small = store == "uint8"
    if small:
        _require_bytes(name, images, test_images)

    def scaled(pixels: torch.Tensor) -> Any:
        return Pixels(pixels, Identity()) if small else unit_scale(pixels)

    train_images = scaled(images[rest])
    fitted: Fitted = preprocessing.fit(train_images if isinstance(preprocessing, OURS) else train_images[:])
    if small:
        _require_one_by_one(name, fitted, train_images[:8])

    def part(pixels: Any, numbers: torch.Tensor) -> Split:
        made: Any = Pixels(pixels.stored, fitted) if small else fitted.forward(pixels)
        if not all(bool(torch.isfinite(block).all()) for block in blocks(made)):
            raise CombinationError(
                f"{name}: {type(preprocessing).__name__} makes values of the images that are not finite, as it does of images that are one "
                "flat colour.",
                fix="preprocessing=dk.Identity()",
            )
        return Split(made if small else aligned(made), numbers)

    return DataBundle(
        name=name,
        train=part(train_images, labels[rest]),
        validation=part(scaled(images[held]), labels[held]),
        test=part(scaled(test_images), test_labels),
        class_names=raw.class_names,
        preprocessing=fitted,
    )


def stratified(labels: torch.Tensor, held: float, stream: Stream) -> tuple[torch.Tensor, torch.Tensor]:
    """Split indices so that both parts have the classes in the same proportion, as near as whole numbers allow.

    Args:
        labels: int64 (N,).
        held: a fraction below 1, or a count; every class keeps at least one sample in the first part.
        stream: the source of the draw.

    Returns:
        Two sorted int64 index tensors: the rest, and what is held out.

    >>> rest, held = stratified(torch.tensor([0] * 8 + [1] * 4), 0.25, Stream(0))
    >>> len(rest), len(held), int((held < 8).sum())
    (9, 3, 2)
    """
    total = round(held * len(labels)) if held < 1 else int(held)
    counts = torch.bincount(labels)
    room = (counts - 1).clamp(min=0)
    if total > int(room.sum()):
        raise CombinationError(
            f"{total} of {len(labels)} samples cannot be held out: every class must keep one, which leaves {int(room.sum())}.",
            fix="validation=0.1",
        )
    quota = counts.double() * total / max(len(labels), 1)
    take = torch.minimum(quota.floor().long(), room)
    while (missing := total - int(take.sum())) > 0:  # largest remainder first; full classes step back
        order = torch.where(take < room, quota - take, -torch.inf).sort(descending=True, stable=True).indices
        chosen = order[: min(missing, int((take < room).sum()))]
        take[chosen] += 1
    picked = [torch.nonzero(labels == c).flatten()[stream.fold(c).permutation(int(counts[c]))[: int(take[c])]] for c in range(len(counts))]
    out = torch.cat(picked).sort().values if picked else torch.empty(0, dtype=torch.int64)
    keep = torch.ones(len(labels), dtype=torch.bool)
    keep[out] = False
    return torch.nonzero(keep).flatten(), out


def unit_scale(images: torch.Tensor) -> torch.Tensor:
    """Scale whole numbers by their type's largest value (255 for uint8); floats are kept. Gives float32.

    >>> unit_scale(torch.tensor([0, 51, 255], dtype=torch.uint8)).tolist()
    [0.0, 0.20000000298023224, 1.0]
    """
    images = images.to(torch.float32) / _SCALES[images.dtype] if images.dtype in _SCALES else images.to(torch.float32)
    if not bool(torch.isfinite(images).all()):
        raise CombinationError("The images hold NaN or infinite values, which no network can train on.")
    return images


def split_size(field: str, value: float) -> None:
    """Check a field such as `validation`: a fraction below 1 or a whole count."""
    if value >= 1 and value != int(value):
        raise FieldError(field, value, "a fraction below 1, or a whole number of samples")


def _require_bytes(name: str, *parts: torch.Tensor) -> None:
    if other := [images.dtype for images in parts if images.dtype != torch.uint8]:
        raise CombinationError(
            f'{name}: store = "uint8" keeps images as the bytes that they were read as, and these are {other[0]}.', fix='store = "float32"'
        )


def _require_one_by_one(name: str, fitted: Fitted, some: torch.Tensor) -> None:
    """Refuse a preprocessing that makes another thing of an image where others are beside it."""
    together, apart = fitted.forward(some), torch.cat([fitted.forward(one) for one in some.split(1)])
    if together.shape != some.shape or not torch.allclose(together, apart, rtol=1e-3, atol=1e-3 * float(together.abs().max())):
        raise CombinationError(
            f'{name}: store = "uint8" takes images through {type(fitted).__name__} batch by batch, and what that makes of an image depends '
            "on those beside it, or has another shape.",
            fix='store = "float32"',
        )


_SCALES = {torch.uint8: 255.0, torch.uint16: 65535.0}


def _check(name: str, images: torch.Tensor, labels: torch.Tensor, class_names: tuple[str, ...]) -> None:
    if images.ndim not in (2, 4):
        raise CombinationError(f"{name}: images have shape {tuple(images.shape)}; taken are (N, C, H, W) and feature vectors (N, D).")
    if not images.is_floating_point() and images.dtype not in _SCALES:
        raise CombinationError(
            f"{name}: images are {images.dtype}; taken are uint8 and uint16, which are scaled to [0, 1], and floats, which are kept.",
            fix="images = images.astype('float32')",
        )
    if tuple(labels.shape) != (len(images),):
        raise CombinationError(f"{name}: {len(images)} images came with labels of shape {tuple(labels.shape)}; one number each is needed.")
    if len(labels) == 0 or not images[0].numel():
        raise CombinationError(f"{name}: there are no images.")
    if images.ndim == 4 and images.is_floating_point() and _looks_like_bytes(images):
        raise CombinationError(
            f"{name}: images are {images.dtype} and whole numbers up to {images.max():g}; floats are taken as they are, from 0 to 1.",
            fix="images.astype('uint8')  # or images / 255",
        )
    low, high, last = int(labels.min()), int(labels.max()), len(class_names) - 1
    if low < 0:
        raise CombinationError(f"{name}: labels run from {low} to {high}; class numbers begin at 0.", fix=NUMBERED)
    if high > last:
        raise CombinationError(f"{name}: labels run from {low} to {high}, but {last + 1} class names allow 0 to {last}.")


def _looks_like_bytes(images: torch.Tensor) -> bool:
    """Whether the first images hold whole numbers, some of them far above 1."""
    some = images[:100]
    return bool((some == some.round()).all()) and 16 < float(some.max()) <= 255 and float(some.min()) >= 0


def _require_all_classes(name: str, labels: torch.Tensor, class_names: tuple[str, ...]) -> None:
    """Refuse training images of which a class has none."""
    counts = torch.bincount(labels, minlength=len(class_names))
    if not bool((counts == 0).any()):
        return
    empty = [class_names[int(c)] for c in (counts == 0).nonzero()[:, 0]]
    if int(labels.min()) == 1 and len(empty) == 1:
        raise CombinationError(f"{name}: labels run from 1 to {int(labels.max())}; class numbers begin at 0.", fix="labels - 1")
    words = listing([*(repr(one) for one in empty[:5]), *(["others"] if len(empty) > 5 else [])], "and")
    unnamed = class_names == tuple(str(c) for c in range(len(class_names)))
    raise CombinationError(f"{name}: there is no training image of {words}; every class needs one.", fix=NUMBERED if unnamed else None)

"""From the content of a foreign file and what the user says of it to a distilled set, or to an error that asks for what is missing."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, cast

import torch

from distilkit.data.distilled import LABEL_SPACES, DistilledSet, LabelSpace
from distilkit.data.preprocessing import require_same
from distilkit.errors import OPTIONS, Change, CombinationError, DistilkitError, FieldError, counted, listing, nearest
from distilkit.storage.formats.raw import Options, Raw, by_class, is_one_hot
from distilkit.storage.formats.spaces import fitted, is_fitted, known


def complete(raw: Raw, options: Options, format: str, path: Path) -> DistilledSet:
    """Make a distilled set of a foreign file.

    Args:
        raw: what the reader found.
        options: what the user says.
        format: name of the format.
        path: what was read.

    Raises:
        DistilkitError: shapes do not fit, or something is not known; the error names the option to give.
    """
    if raw.lossless is not None:
        _require_unchanged(raw, raw.lossless, path)
        return agree(raw.lossless, options, path)
    space, (labels, classes, how), names = labelled(raw, options)
    preprocessing = fitted(raw, options, format)
    images = _shaped(raw, options, preprocessing)
    return DistilledSet(
        images=images,
        labels=labels,
        classes=classes,
        class_names=names,
        label_space=space,
        inner_lr=raw.inner_lr,
        preprocessing=preprocessing,
        provenance={"imported_from": path.name, "format": format, "classes_known": how},
    )


def agree(distilled: DistilledSet, options: Options, path: Path) -> DistilledSet:
    """Return a set that says everything itself, if what the user says is the same.

    Raises:
        CombinationError: the user says otherwise.
    """
    said = (
        ("label_space", options.label_space, distilled.label_space),
        ("class_names", options.class_names, distilled.class_names),
        ("image_shape", options.image_shape, distilled.image_shape),
    )
    for name, given, inside in said:
        if given is not None and given != inside:
            words = f"{path} says {name} = {inside!r} itself, and {name} = {given!r} was given."
            if name in OPTIONS:
                raise CombinationError(words, changes=[Change(name, None)])
            raise CombinationError(words, fix=f"{name}=None")
    if options.preprocessing is not None:
        given = known(options.preprocessing)
        kind = distilled.preprocessing.to_arrays()[0]["kind"]
        if is_fitted(given):
            require_same(distilled.preprocessing, given)
        elif type(given).__name__ != kind:
            raise CombinationError(
                f"{path} says itself that its images went through {kind}, and {given!r} was given.", changes=[Change("preprocessing", None)]
            )
    return distilled


def labelled(raw: Raw, options: Options) -> tuple[LabelSpace, tuple[torch.Tensor, torch.Tensor, str], tuple[str, ...]]:
    """The label space; labels (N, K), classes (N,) and in words how the classes are known; K class names."""
    if options.label_space is not None and options.label_space not in LABEL_SPACES:
        near = nearest(options.label_space, LABEL_SPACES)
        raise FieldError(
            "label_space",
            options.label_space,
            listing([f'"{s}"' for s in LABEL_SPACES]),
            changes=[Change("label_space", near)] if near else (),
        )
    n = len(raw.images)
    given = options.class_names or (options.data.class_names if options.data is not None else None)
    labels = _by_position(raw, n, given) if raw.labels is None else raw.labels
    if labels.shape[1:] == (1,) and not labels.is_floating_point():
        labels = labels[:, 0]
    whole = labels.ndim == 1 and not labels.is_floating_point() and not labels.is_complex()
    soft = labels.ndim == 2 and labels.is_floating_point()
    if not (whole or soft) or len(labels) != n:
        raise DistilkitError(
            f"{raw.label_file} holds labels {labels.dtype} {tuple(labels.shape)}, but {counted(n, 'image')} would have "
            f"class numbers int64 ({n},) or float targets ({n}, classes)."
        )
    k = len(given) if given else (int(labels.max()) + 1 if whole and n else labels.shape[-1])
    if n and (not 0 <= int(labels.min()) <= int(labels.max()) < k if whole else labels.shape[1] != k):
        found = f"class numbers from {int(labels.min())} to {int(labels.max())}" if whole else f"{labels.shape[1]} columns"
        raise DistilkitError(
            f"{raw.label_file} has {found}, but there are {k} class names.", fix="class_names=None" if options.class_names else None
        )
    names = given or tuple(str(i) for i in range(k))
    space = _space(raw, options, labels, whole)
    if whole:
        classes = labels.long()
        return space, (torch.nn.functional.one_hot(classes, k).float(), classes, "by position" if raw.labels is None else "by label"), names
    return space, (labels, *_classes(labels, k)), names


def _by_position(raw: Raw, n: int, names: tuple[str, ...] | None) -> torch.Tensor:
    """Class numbers of rows that lie in the order of the classes, as many of each."""
    if not names or n % len(names):
        why = f"{n} images are not as many of each of {len(names)} classes" if names else "it is not known how many classes there are"
        raise CombinationError(
            f"{raw.image_file} has no labels, so its images lie in the order of the classes; but {why}.",
            fix='class_names=("airplane", "automobile", ...)',
        )
    return torch.arange(len(names)).repeat_interleave(n // len(names))


def _space(raw: Raw, options: Options, labels: torch.Tensor, whole: bool) -> LabelSpace:
    hard = whole or (is_one_hot(labels) and raw.label_space is None)
    space = options.label_space or raw.label_space or ("one-hot" if hard else raw.soft_space)
    if space is None:
        raise CombinationError(
            f"{raw.label_file} holds soft labels {tuple(labels.shape)}, and does not say what their numbers are. DATM's are logits; "
            'labels that a softmax or cross-entropy took as they are, are "probability"; one-hot less 1/K is "centred".',
            changes=[Change("label_space", "logit")],
        )
    if whole and space != "one-hot":
        raise CombinationError(
            f'{raw.label_file} holds class numbers, which are "one-hot", not {space!r}.', changes=[Change("label_space", "one-hot")]
        )
    return cast(LabelSpace, space)


def _classes(labels: torch.Tensor, k: int) -> tuple[torch.Tensor, str]:
    """The class that each row of soft labels stands for, and in words how it is known."""
    largest, n = labels.argmax(1), len(labels)
    even = n % k == 0
    if not even or is_one_hot(labels) or bool((torch.bincount(largest, minlength=k) == n // k).all()):
        return largest, "by the largest label"
    # A learned label may have its largest value elsewhere; the row still stands for the class of its place.
    return torch.arange(k).repeat_interleave(n // k), "by position"


def _shaped(raw: Raw, options: Options, preprocessing: Any) -> torch.Tensor:
    """The images, floating, each in its shape."""
    images, file = raw.images, raw.image_file
    if not images.is_floating_point() or images.ndim not in (2, 4):
        raise DistilkitError(
            f"{file} holds images {images.dtype} {tuple(images.shape)}, but a distilled set is floating and of shape (N, C, H, W), or "
            "(N, D) for feature vectors."
        )
    shape = options.image_shape or (options.data.image_shape if options.data is not None else getattr(preprocessing, "shape", None))
    if shape is None:
        if images.ndim == 4:
            return images
        raise CombinationError(
            f"{file} holds rows of {images.shape[1]} numbers, and does not say the shape of an image.", fix="image_shape=(3, 32, 32)"
        )
    inside = tuple(images.shape[1:])
    if inside != tuple(shape) and not (images.ndim == 2 and inside[0] == math.prod(shape)):
        whose = "image_shape" if options.image_shape else "the data" if options.data is not None else "the preprocessing"
        raise CombinationError(f"{file} holds images of shape {inside}, but {whose} has {tuple(shape)}.")
    return images.reshape(-1, *shape)


def _require_unchanged(raw: Raw, whole: DistilledSet, path: Path) -> None:
    """The lossless copy must be of these very images and labels: somebody may have changed one of the two."""
    rows = by_class(whole)
    pairs = [(raw.images, rows.images)]
    if raw.labels is not None:
        pairs.append((raw.labels, rows.labels if raw.labels.ndim == 2 else rows.classes))
    if not all(_same(a, b) for a, b in pairs):
        raise CombinationError(
            f"{path} was changed after distilkit wrote it: its images or labels are not those of the lossless copy that lies with it. "
            "Delete the copy (distilkit.safetensors in the folder) to read the file alone, or export the set again."
        )


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.numel() != b.numel() or len(a) != len(b):
        return False
    return torch.allclose(a.double().flatten(), b.double().flatten(), rtol=0, atol=0, equal_nan=True)

"""What a reader of a foreign file hands over, what the user adds to it, and the rows as foreign code expects them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import torch

from distilkit.data.bundle import DataBundle
from distilkit.data.distilled import DistilledSet
from distilkit.errors import CombinationError, DistilkitError

BESIDE = "distilkit.safetensors"  # the file beside foreign files that holds what their format has no room for


@attrs.frozen(eq=False)
class Options:
    """What the user says of a file that does not say it itself.

    Args:
        data: real data, already loaded; it gives class names, the image shape and the images that preprocessing is fitted on.
        label_space: what the numbers in the labels are.
        preprocessing: a name, a declaration such as `Whiten()`, or a fitted value.
        class_names: K names.
        image_shape: (C, H, W), or (D,).
        index: which experiment of a file that holds several; -1 is the last.
    """

    data: DataBundle | None = None
    label_space: str | None = None
    preprocessing: Any = None
    class_names: tuple[str, ...] | None = None
    image_shape: tuple[int, ...] | None = None
    index: int = -1


@attrs.frozen(eq=False)
class Raw:
    """The content of a foreign file.

    Args:
        images: (N, C, H, W), (N, D), or flattened images.
        labels: int (N,) class numbers, float (N, K) targets, or None where the file has none.
        inner_lr: learned learning rate.
        image_file: name of the file that the images come from, for errors.
        label_file: the same for the labels.
        label_space: where the format itself says it.
        soft_space: where the format says it of soft labels only.
        preprocessing: where the format itself says it.
        lossless: the lossless copy, where distilkit wrote the file.
    """

    images: torch.Tensor
    labels: torch.Tensor | None
    image_file: str
    label_file: str
    inner_lr: float | None = None
    label_space: str | None = None
    soft_space: str | None = None
    preprocessing: str | None = None
    lossless: DistilledSet | None = None


def tensor(value: Any, what: str, file: Path | str) -> torch.Tensor:
    """Take a tensor, or say what is there instead."""
    if not isinstance(value, torch.Tensor):
        raise DistilkitError(f"{file} should hold a tensor of {what}, but holds a {type(value).__name__}.")
    if value.layout != torch.strided or value.is_quantized:
        raise DistilkitError(f"{file} holds {what} in a sparse or quantised tensor; it takes a plain one.", fix="images.to_dense()")
    return value.detach().contiguous()


def number(value: Any, file: Path | str) -> float:
    """Take a learning rate: a number, or a tensor of one element."""
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise DistilkitError(f"{file} should hold one learning rate, but holds a {type(value).__name__}.")
    return float(value)


def by_class(distilled: DistilledSet) -> DistilledSet:
    """The set on the CPU with its rows in the order of the classes, as all foreign formats have them."""
    distilled = distilled.to("cpu")
    return distilled.subset(torch.argsort(distilled.classes, stable=True))


def is_one_hot(labels: torch.Tensor) -> bool:
    """Whether each row of labels (N, K) has one 1 and else 0.

    >>> is_one_hot(torch.eye(3)), is_one_hot(torch.eye(3) / 2)
    (True, False)
    """
    return bool(((labels == 0) | (labels == 1)).all() and (labels.sum(1) == 1).all())


def foreign_labels(distilled: DistilledSet) -> torch.Tensor:
    """Class numbers int64 (N,) where the labels say no more than that, else the labels themselves, contiguous."""
    if (
        distilled.label_space == "one-hot"
        and is_one_hot(distilled.labels)
        and bool((distilled.labels.argmax(1) == distilled.classes).all())
    ):
        return distilled.classes.contiguous()
    return distilled.labels.detach().contiguous()


def write_folder(path: Path, fill: Callable[[Path], None]) -> None:
    """Write a new folder whole or not at all.

    Args:
        path: where it goes; an empty folder may be there.
        fill: writes the files into the folder that it is given.

    Raises:
        CombinationError: something is there already.
    """
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise CombinationError(f"{path} is there already and is not overwritten.", fix=f"mv {path} {path}.old")
    part = path.with_name(path.name + ".part")
    shutil.rmtree(part, ignore_errors=True)  # of a write that was killed
    part.mkdir(parents=True)
    try:
        fill(part)
        if path.is_dir():
            path.rmdir()
        os.replace(part, path)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def write_file(path: Path, fill: Callable[[Path], None]) -> None:
    """Write a new file whole or not at all; `fill` writes it at the path that it is given."""
    if path.exists():
        raise CombinationError(f"{path} is there already and is not overwritten.", fix=f"mv {path} {path}.old")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        fill(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)

"""Starting from a distilled set that is there already: the end of an earlier run, one that comes with distilkit, or an imported one."""

from __future__ import annotations

from typing import Any

import attrs
import torch
from torch import Tensor

from distilkit import storage
from distilkit.data.bundle import DataBundle
from distilkit.data.distilled import DistilledSet
from distilkit.data.preprocessing import REFITTABLE, Fitted, Identity, Refittable
from distilkit.errors import Change, CombinationError, counted, nearest
from distilkit.evaluation.measuring import training_set
from distilkit.storage import shipped
from distilkit.unroll.inner import OuterVariables


def read(path: str) -> DistilledSet:
    """The distilled set of `images.stored`.

    Raises:
        DistilkitError: there is none, or it is damaged, or not of distilkit.
    """
    if not (storage.says_all(path) or storage.is_set(path)):
        near = nearest(path, shipped.names())
        raise CombinationError(
            f"images.stored = {path!r} is neither the folder of a run, nor a set that comes with distilkit, nor what `distilkit import` or "
            "`distilkit export` wrote.",
            changes=[Change("images.stored", near)] if near else (),
        )
    return storage.load(path)


def first_block(
    path: str, data: DataBundle, log_lr: Tensor, *, count: int, learn_lr: bool, seed: int, boosted: bool = False
) -> OuterVariables:
    """A stored set as the first rows of a run, on the device of the data.

    Args:
        path: as `Images.stored`.
        data: the real data, whose classes, shape and preprocessing it has to have.
        log_lr: logarithm of the inner learning rate, () or (steps,), where the set has none that the run could go on to learn.
        count: images of each class that the run asks for.
        learn_lr: whether the run learns the rate; else it stays as it is.
        seed: of the run, for what is told.
        boosted: whether `count` is that of the first block.

    Raises:
        CombinationError: it does not fit the data or the run.
    """
    made, words = read(path), f"images.stored = {path!r}"
    if made.label_space not in ("one-hot", "probability"):
        raise CombinationError(f"{words} has labels that are {made.label_space}s, and distilled labels are targets of a cross-entropy.")
    numbers = tuple(map(str, range(data.num_classes)))  # of a file that knows no names
    if made.class_names != data.class_names and not (storage.is_set(path) and made.class_names == numbers):
        odd = next((pair for pair in zip(made.class_names, data.class_names, strict=False) if len(set(pair)) > 1), None)
        why = f"class {odd[0]!r} stands where the data {data.name!r} has {odd[1]!r}" if odd else "there are fewer or more classes"
        raise CombinationError(f"{words} has other classes than the data: {why}.")
    if (of_each := made.per_class) != count:
        many = counted(of_each, "image") if of_each is not None else "not the same number of images"
        changes = [] if boosted or of_each is None else [Change("images.per_class", of_each)]
        raise CombinationError(f"{words} has {many} in each class, and the run starts with {count}.", changes=changes)
    _require_space(made, data, words, seed)
    training = training_set(made, data)
    order = torch.argsort(made.classes, stable=True).to(training.images.device)  # a run's rows go class by class
    rates = log_lr if training.log_lr is None or not learn_lr else training.log_lr.to(log_lr)
    if rates.ndim and rates.shape != log_lr.shape:
        raise CombinationError(
            f"{words} has {counted(len(rates), 'learned rate')}, and learner.lr_steps = {log_lr.numel()}.",
            changes=[Change("learner.lr_steps", len(rates))],
        )
    return OuterVariables(training.images[order].float(), training.labels[order].float(), rates.expand_as(log_lr).clone())


def _require_space(made: DistilledSet, data: DataBundle, words: str, seed: int) -> None:
    """Refuse a set whose preprocessing is not that of the data, and say what would make it so."""
    if made.preprocessing.fingerprint() == data.preprocessing.fingerprint():
        return
    its, here = _declared(made.preprocessing), _declared(data.preprocessing)
    changes = []
    if its != here:
        why = f"and the data {data.name!r} is in that of {here}"
        if not isinstance(its, str):
            changes = [Change("data.preprocessing", {"kind": type(its).__name__, **attrs.asdict(its)})]
    else:
        why = f"which is fitted on training images: the seed and data.validation decide which, and those of {data.name!r} are others"
        of_its = made.provenance.get("seed")
        changes = [Change("seed", of_its)] if isinstance(of_its, int) and of_its != seed else []
    raise CombinationError(f"{words} was made in the space of {its}, {why}. Its images would be taken for something else.", changes=changes)


def _declared(preprocessing: Fitted) -> Any:
    """What a fitted preprocessing was declared as; the name of its kind, where only its owner knows."""
    meta = preprocessing.to_arrays()[0]
    if meta["kind"] == "Identity":
        return Identity()
    return Refittable(meta).declared if meta["kind"] in REFITTABLE else str(meta["kind"])

"""Starting from a distilled set that is there already: the end of an earlier run, one that comes with distilkit, or a file."""

from __future__ import annotations

from pathlib import Path

import attrs
import torch
from torch import Tensor

from distilkit import storage
from distilkit.data.bundle import DataBundle
from distilkit.data.distilled import DistilledSet
from distilkit.data.preprocessing import REFITTABLE, Fitted
from distilkit.errors import Change, CombinationError, nearest
from distilkit.evaluation.measuring import training_set
from distilkit.storage import formats, shipped
from distilkit.unroll.adjoints import OuterVariables


def read(path: str) -> DistilledSet:
    """The distilled set of `images.stored`.

    Raises:
        DistilkitError: there is none, or it is damaged.
    """
    if shipped.comes_with_distilkit(path) or path.endswith(".zarr") or storage.holds_results(path):
        return storage.load(path)
    if Path(path).is_file() and path.endswith(".safetensors"):
        return formats.read(path, "safetensors")
    near = nearest(path, shipped.names())
    raise CombinationError(
        f"images.stored = {path!r} is neither the folder of a run, nor a set that comes with distilkit, nor a file of "
        "`distilkit export --to safetensors`.",
        changes=[Change("images.stored", near)] if near else (),
    )


def first_block(path: str, data: DataBundle, count: int, log_lr: Tensor, *, learn_lr: bool, asked: str) -> OuterVariables:
    """A stored set as the first rows of a run, on the device of the data.

    Args:
        path: as `Images.stored`.
        data: the real data, whose classes, shape and preprocessing it has to have.
        count: images of each class that the run asks for.
        log_lr: logarithm of the inner learning rate, () or (steps,), where the set has none that the run could go on to learn.
        learn_lr: whether the run learns it; else it stays as it is.
        asked: the value of the spec that says `count`.

    Raises:
        CombinationError: it does not fit the data or the run.
    """
    made, words = read(path), f"images.stored = {path!r}"
    if made.label_space not in ("one-hot", "probability"):
        raise CombinationError(f"{words} has labels that are {made.label_space}s, and distilled labels are targets of a cross-entropy.")
    numbers = tuple(map(str, range(data.num_classes)))  # of a file that knows no names
    if made.class_names not in (data.class_names, numbers):
        odd = next((pair for pair in zip(made.class_names, data.class_names, strict=False) if len(set(pair)) > 1), None)
        why = f"class {odd[0]!r} stands where the data {data.name!r} has {odd[1]!r}" if odd else "there are fewer or more classes"
        raise CombinationError(f"{words} has other classes than the data: {why}.")
    if (of_each := made.per_class) != count:
        many = f"{of_each} images" if of_each is not None else "not the same number of images"
        fix = [] if of_each is None else [Change(asked, of_each if asked == "images.per_class" else [of_each])]
        raise CombinationError(f"{words} has {many} in each class, and the run starts with {count}.", changes=fix)
    _require_space(made, data, words)
    training = training_set(made, data)
    order = torch.argsort(made.classes, stable=True).to(training.images.device)  # a run's rows go class by class
    rates = log_lr if training.log_lr is None or not learn_lr else training.log_lr.to(log_lr)
    if rates.ndim and rates.shape != log_lr.shape:
        raise CombinationError(
            f"{words} has {len(rates)} learned rates, and learner.lr_steps = {log_lr.numel()}.",
            changes=[Change("learner.lr_steps", len(rates))],
        )
    return OuterVariables(training.images[order].float(), training.labels[order].float(), rates.expand_as(log_lr).clone())


def _require_space(made: DistilledSet, data: DataBundle, words: str) -> None:
    """Refuse a set whose preprocessing is not that of the data, and say what would make it so."""
    if made.preprocessing.fingerprint() == data.preprocessing.fingerprint():
        return
    its, here = _declared(made.preprocessing), _declared(data.preprocessing)
    if its != here:
        why, fix = f"and the data {data.name!r} is in that of {here}", [Change("data.preprocessing", its)]
    else:
        why = f"which is fitted on training images: the seed and data.validation decide which, and those of {data.name!r} are others"
        seed = made.provenance.get("seed")
        fix = [Change("seed", seed)] if isinstance(seed, int) else []
    raise CombinationError(f"{words} was made in the space of {its}, {why}. Its images would be taken for something else.", changes=fix)


def _declared(preprocessing: Fitted) -> dict[str, object]:
    """What a fitted preprocessing was declared as, as the spec has it."""
    meta = preprocessing.to_arrays()[0]
    names = [field.name for field in attrs.fields(REFITTABLE[meta["kind"]])] if meta["kind"] in REFITTABLE else []
    return {"kind": meta["kind"], **{name: meta[name] for name in names if name in meta}}

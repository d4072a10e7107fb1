"""Starting from a distilled set that is there already: the end of an earlier run, one that comes with distilkit, or anyone's."""

from __future__ import annotations

import torch
from torch import Tensor

from distilkit import storage
from distilkit.data.bundle import DataBundle
from distilkit.data.distilled import DistilledSet
from distilkit.errors import CombinationError
from distilkit.evaluation.measuring import training_set
from distilkit.storage import formats, shipped
from distilkit.unroll.adjoints import OuterVariables


def read(path: str) -> DistilledSet:
    """The distilled set of `images.stored`.

    Raises:
        DistilkitError: there is none, or it does not say all that has to be known of it.
    """
    known = shipped.comes_with_distilkit(path) or path.endswith(".zarr") or storage.holds_results(path)
    return storage.load(path) if known else formats.read(path)


def first_block(path: str, data: DataBundle, count: int, log_lr: Tensor, *, learn_lr: bool) -> OuterVariables:
    """A stored set as the first rows of a run, on the device of the data.

    Args:
        path: as `Images.stored`.
        data: the real data, whose classes, shape and preprocessing it has to have.
        count: images of each class that the run asks for.
        log_lr: logarithm of the inner learning rate, () or (steps,), where the set has none that the run could go on to learn.
        learn_lr: whether the run learns it; else it stays as it is.

    Raises:
        CombinationError: it does not fit the data or the run.
    """
    made = read(path)
    if made.label_space not in ("one-hot", "probability"):
        raise CombinationError(
            f"images.stored = {path!r} has labels that are {made.label_space}s, and distilled labels are targets of a cross-entropy.",
        )
    if made.class_names != data.class_names and sorted(made.class_names) == sorted(data.class_names):
        raise CombinationError(f"images.stored = {path!r} has its classes in another order than the data {data.name!r}.")
    if (of_each := made.per_class) != count:
        words = f"{of_each} images" if of_each is not None else "not the same number of images"
        raise CombinationError(
            f"images.stored = {path!r} has {words} in each class, and the run starts with {count}.",
            fix=None if of_each is None else f"per_class = {of_each}",
        )
    if made.preprocessing.fingerprint() != data.preprocessing.fingerprint():
        its, here = (one.to_arrays()[0]["kind"] for one in (made.preprocessing, data.preprocessing))
        why = f"the data {data.name!r} is in that of {here}" if its != here else f"on other images than those of {data.name!r}"
        raise CombinationError(
            f"images.stored = {path!r} was made in the space of {its}, {why}: its images would be taken for something else.",
            fix=f'data.preprocessing = {{kind = "{its}"}}' if its != here else None,
        )
    training = training_set(made, data)
    order = torch.argsort(made.classes, stable=True).to(training.images.device)  # a run's rows go class by class
    rates = log_lr if training.log_lr is None or not learn_lr else training.log_lr.to(log_lr)
    if rates.ndim and rates.shape != log_lr.shape:
        raise CombinationError(
            f"images.stored = {path!r} has {len(rates)} learned rates, and learner.lr_steps = {log_lr.numel()}.",
            fix=f"lr_steps = {len(rates)}",
        )
    return OuterVariables(training.images[order].float(), training.labels[order].float(), rates.expand_as(log_lr).clone())

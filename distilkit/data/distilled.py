"""The result of a distillation: a small set of images with soft labels that trains as it stands."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any, Literal, cast

import attrs
import numpy as np
import torch
from torch.utils.data import TensorDataset

from distilkit.data.preprocessing import Fitted, Identity
from distilkit.errors import CombinationError, DistilkitError, FieldError, counted, listing
from distilkit.functional.pytrees import aligned

LABEL_SPACES = ("one-hot", "probability", "logit", "centred")
SHOWN = 2_000_000  # pixels in a notebook
LabelSpace = Literal["one-hot", "probability", "logit", "centred"]


def _names(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(names)


def _rates(given: Any) -> float | tuple[float, ...] | None:
    """One learning rate, or several in a list, an array or a tensor."""
    if given is None:
        return None
    rates = [float(rate) for rate in np.ravel(given.tolist() if isinstance(given, torch.Tensor) else given)]
    return rates[0] if len(rates) == 1 else tuple(rates)


@attrs.frozen(eq=False, repr=False)
class DistilledSet:
    """Synthetic images and labels, with all that is needed to train on them and to look at them.

    Args:
        images: float (N, C, H, W) in preprocessed space, or (N, D).
        labels: float (N, K), the targets; K is the number of classes.
        classes: int64 (N,), the class that each row stands for.
        class_names: K names.
        label_space: what the numbers in `labels` are: "one-hot"; "probability", soft targets of a cross-entropy, which are not
            negative and need not add up to one (learned labels are such); "logit"; or "centred" (one-hot less 1/K).
        block: int64 (N,), the boost block of each row; zeros when left out.
        inner_lr: the learned inner learning rate, when there is one; or one for each of the first training steps, of which later steps
            take the last.
        preprocessing: fitted; its inverse makes the images visible.
        provenance: where the set came from; a JSON-able dict. That of a run that was tested says under "training" how networks were
            trained on it: the `repr` of network, optimizer (at `inner_lr` in place of its own rate, where "learned_rate" is true), loss
            and augmentation, the number of steps, the test accuracy of each network.

    >>> names = ("cat", "dog")
    >>> made = DistilledSet(torch.zeros(2, 1, 4, 4), torch.eye(2), torch.arange(2), names)
    >>> len(made), made.per_class, made.pixels().dtype
    (2, 1, torch.uint8)
    >>> made
    DistilledSet(2 images of 1x4x4, 2 classes, one-hot labels, Identity)
    """

    images: torch.Tensor = attrs.field(converter=aligned)
    labels: torch.Tensor = attrs.field(converter=aligned)
    classes: torch.Tensor
    class_names: tuple[str, ...] = attrs.field(converter=_names)
    label_space: LabelSpace = "one-hot"
    block: torch.Tensor = attrs.field(
        default=attrs.Factory(lambda self: torch.zeros_like(self.classes), takes_self=True),
    )
    inner_lr: float | tuple[float, ...] | None = attrs.field(default=None, converter=_rates)
    preprocessing: Fitted = attrs.Factory(Identity)
    provenance: dict[str, Any] = attrs.Factory(dict)

    def __attrs_post_init__(self) -> None:
        if self.label_space not in LABEL_SPACES:
            raise FieldError("label_space", self.label_space, listing([f'"{s}"' for s in LABEL_SPACES]))
        n, k = len(self.images), len(self.class_names)
        if tuple(self.labels.shape) != (n, k) or not self.labels.is_floating_point():
            raise CombinationError(
                f"{n} images of {k} classes need float labels of shape ({n}, {k}), but labels are {_words(self.labels)}.",
                fix="labels=torch.nn.functional.one_hot(classes, len(class_names)).float()",
            )
        for name, values in (("images", self.images), ("labels", self.labels)):
            if not bool(torch.isfinite(values).all()):
                raise CombinationError(f"The {name} of a distilled set must be finite; some are NaN or infinite.")
        if self.inner_lr is not None and not (np.size(self.inner_lr) and all(0 < rate < math.inf for rate in np.ravel(self.inner_lr))):
            raise FieldError("inner_lr", self.inner_lr, "a number above 0, or some of them")
        told: Any = self.provenance  # a file of somebody else's may say anything
        names: Any = self.class_names
        if not isinstance(told, dict):
            raise FieldError("provenance", told, "a dict")
        if not all(isinstance(name, str) for name in names):
            raise FieldError("class_names", names, "texts")
        if any("\0" in name for name in self.class_names):  # numpy's text, and so the store, loses it at the end of a name
            raise FieldError("class_names", self.class_names, "names without the character NUL")
        for name, value in (("classes", self.classes), ("block", self.block)):
            if tuple(value.shape) != (n,) or value.dtype != torch.int64:
                raise CombinationError(f"{n} images need {name} of shape ({n},) and dtype int64, but {name} is {_words(value)}.")
        if n and not 0 <= int(self.classes.min()) <= int(self.classes.max()) < k:
            low, high = int(self.classes.min()), int(self.classes.max())
            raise CombinationError(f"classes run from {low} to {high}, but there are {k} class names, so they must be 0 to {k - 1}.")

    def __len__(self) -> int:
        return int(self.images.shape[0])

    def __repr__(self) -> str:
        many = counted(len(self), "image" if len(self.image_shape) == 3 else "vector")
        size = "x".join(map(str, self.image_shape))
        rates = 0 if self.inner_lr is None else np.size(self.inner_lr)
        rate = ("", ", a learned rate")[rates] if rates < 2 else f", {rates} learned rates"
        space = self.preprocessing.to_arrays()[0].get("kind", type(self.preprocessing).__name__)
        classes = counted(len(self.class_names), "class", "classes")
        return f"DistilledSet({many} of {size}, {classes}, {self.label_space} labels{rate}, {space})"

    def _repr_png_(self) -> bytes | None:
        """The first images of each class in a notebook, of as many classes as a page holds; nothing where there are none to see."""
        if len(self.image_shape) != 3 or self.image_shape[0] not in (1, 3) or not len(self):
            return None
        from torchvision.transforms.functional import to_pil_image
        from torchvision.utils import make_grid

        channels, high, wide = self.image_shape
        side = max(1, 64 // wide)
        most = max(1, SHOWN // (high * wide * side**2))
        lines = [rows[:10] for k in range(len(self.class_names)) if len(rows := (self.classes == k).nonzero()[:, 0])]
        across = max(map(len, lines))
        if across == 1:
            lines, across = list(torch.cat(lines).split(10)), 10
        lines = lines[: max(1, most // across)]
        try:
            seen = self.subset(torch.cat(lines)).pixels().cpu()
        except DistilkitError:  # of a whitening that has not met its data yet, or somebody else's
            return None
        page = torch.full((len(lines), across, channels, high, wide), 255, dtype=torch.uint8)
        for line, images in zip(page, seen.split(list(map(len, lines))), strict=True):
            line[: len(images)] = images
        large = page.flatten(0, 1).repeat_interleave(side, 2).repeat_interleave(side, 3)
        file = io.BytesIO()
        to_pil_image(make_grid(large, nrow=across, pad_value=255)).save(file, "PNG")
        return file.getvalue()

    @property
    def image_shape(self) -> tuple[int, ...]:
        """The shape of one image: (C, H, W), or (D,) for feature vectors."""
        return tuple(self.images.shape[1:])

    @property
    def per_class(self) -> int | None:
        """Images per class, or None when the classes differ in it."""
        counts = torch.bincount(self.classes, minlength=len(self.class_names))
        return int(counts[0]) if len(counts) and bool((counts == counts[0]).all()) else None

    @property
    def log_lr(self) -> torch.Tensor | None:
        """Logarithm of the learned inner learning rate, (), or (steps,), as a `Learner` takes it; None when it was not learned."""
        return None if self.inner_lr is None else torch.tensor(self.inner_lr, device=self.images.device).log()

    def pixels(self) -> torch.Tensor:
        """The images for people: uint8 (N, C, H, W) on the device of the images, by the inverse of the preprocessing."""
        seen = self.preprocessing.inverse(self.images.detach().to(torch.float32))
        return (seen.clamp(0, 1) * 255).round().to(torch.uint8)

    def dataset(self) -> TensorDataset:
        """A torch Dataset of (image, target) pairs, in preprocessed space, that trains as it stands."""
        return TensorDataset(self.images, self.labels)

    def subset(self, index: torch.Tensor | Sequence[int] | slice) -> DistilledSet:
        """Return the rows at `index` (int64 or bool tensor, list or slice), in that order."""
        rows = torch.arange(len(self), device=self.classes.device)[cast(Any, index)]
        return attrs.evolve(self, images=self.images[rows], labels=self.labels[rows], classes=self.classes[rows], block=self.block[rows])

    def to(self, device: torch.device | str) -> DistilledSet:
        """Return the set on another device."""
        moved = {name: getattr(self, name).to(device) for name in ("images", "labels", "classes", "block")}
        return attrs.evolve(self, **moved)

    def class_counts(self) -> np.ndarray[Any, Any]:
        """How many rows stand for each class: int64 (K,)."""
        counts: np.ndarray[Any, Any] = torch.bincount(self.classes, minlength=len(self.class_names)).cpu().numpy()
        return counts


def _words(value: torch.Tensor) -> str:
    return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"

"""What a distiller is made of besides its five components: how the images and labels start, and the outer optimisation."""

from __future__ import annotations

from typing import Any, NamedTuple

import attrs
import torch
from torch import Tensor
from torch.nn import functional as F

from distilkit import fields
from distilkit.data import DataBundle, Split
from distilkit.errors import CombinationError
from distilkit.functional import optimizers
from distilkit.functional.clipping import EMAClip
from distilkit.functional.schedules import Constant
from distilkit.functional.streams import Stream


@attrs.frozen
class Images:
    """How many images are distilled, and what they start as.

    Args:
        per_class: images per class (IPC).
        start: "noise" is Gaussian, each image scaled to unit L2 norm, as in the paper's code; "real" takes random training
            images of the class.
    """

    per_class: int = fields.integer(1, least=1)
    start: str = fields.choice("noise", ["noise", "real"])

    def init(self, data: DataBundle, stream: Stream) -> tuple[Tensor, Tensor]:
        """Return images (N, ...) float32 and classes (N,) int64, class by class.

        Raises:
            CombinationError: a class has fewer training images than `per_class`, and the start is real.
        """
        classes = torch.arange(data.classes).repeat_interleave(self.per_class)
        if self.start == "real":
            return data.train.images[random_rows(data.train, data.class_names, self.per_class, stream)].clone(), classes
        noise = stream.normal(len(classes), *data.image_shape)
        norms = noise.flatten(1).norm(dim=1).view(-1, *[1] * len(data.image_shape))
        return noise / norms, classes


def random_rows(split: Split, class_names: tuple[str, ...], per_class: int, stream: Stream) -> Tensor:
    """Rows of random images of a split, the same number of each class, without replacement: int64 (classes * per_class,)."""
    labels = split.labels.cpu()
    picked = []
    for c, name in enumerate(class_names):
        rows = (labels == c).nonzero()[:, 0]
        if len(rows) < per_class:
            raise CombinationError(
                f"per_class = {per_class}, but class {name!r} has {len(rows)} training images to start from.",
                fix=f"per_class = {len(rows)}" if len(rows) else 'start = "noise"',
            )
        picked.append(rows[stream.fold(c).permutation(len(rows))[:per_class]])
    return torch.cat(picked)


@attrs.frozen
class Labels:
    """Labels of the distilled images.

    Args:
        learn: learn them as soft targets, starting at one-hot and kept at 0 or above (they are never normalised; paper's code).
        optimizer: for the labels; None takes the images' one.
        clip: clipping of the labels' meta-gradient, or None as in the paper's code. A spike that is clipped for the images
            only still throws the labels off.
    """

    learn: bool = fields.flag(False)
    clip: EMAClip | None = fields.part(EMAClip, EMAClip(), optional=True)
    optimizer: Any = fields.component("optimizer", None, methods=("transformation",), optional=True)

    def init(self, classes: Tensor, count: int) -> Tensor:
        """One-hot float32 (N, count)."""
        return F.one_hot(classes, count).float()


@attrs.frozen
class Outer:
    """The outer optimisation: what moves the distilled images.

    Args:
        steps: outer steps.
        batch_size: real images that the outer loss is taken on, drawn without replacement within an epoch.
        optimizer: of the images.
        lr_optimizer: of the logarithm of the inner learning rate, where the learner learns it; None takes `optimizer`.
        schedule: factor on all outer learning rates by step.
        clip: clipping of the images' meta-gradient (and, by its own average, of the learning rate's), or None.
        augment: augmentation of the real batch, or None.
    """

    steps: int = fields.integer(1000, least=1)
    batch_size: int = fields.integer(256, least=1)
    optimizer: Any = fields.component("optimizer", optimizers.Adam(lr=1e-3), methods=("transformation",))
    lr_optimizer: Any = fields.component("optimizer", None, methods=("transformation",), optional=True)
    schedule: Any = fields.component("schedule", Constant(), methods=("factor",))
    clip: EMAClip | None = fields.part(EMAClip, EMAClip(), optional=True)
    augment: Any = fields.component("augmentation", None, methods=("sample", "apply"), optional=True)

    def batch_rows(self, step: int, size: int, stream: Stream) -> Tensor:
        """Rows of the real batch of an outer step: int64 (batch,). Every epoch is a new order of all real images."""
        batch = min(self.batch_size, size)
        per_epoch = size // batch
        epoch, place = divmod(step, per_epoch)
        return stream.fold(epoch).permutation(size)[place * batch : (place + 1) * batch]


class MoverState(NamedTuple):
    """What a `Mover` keeps: the TorchOpt state, and the running average of its clip."""

    optimizer: Any
    average: Tensor


@attrs.frozen
class Mover:
    """How one leaf of the distilled set is moved: an outer optimiser and a clip, or not at all.

    Args:
        optimizer: the outer optimiser.
        clip: clipping of its meta-gradient, or None.
        learn: False leaves the leaf as it is.
    """

    optimizer: Any
    clip: EMAClip | None
    learn: bool = True

    def init(self, leaf: Tensor) -> MoverState:
        """The state before the first outer step."""
        return MoverState(optimizers.init(self.optimizer, leaf), EMAClip().init().to(leaf.device))

    def move(self, leaf: Tensor, gradient: Tensor, state: MoverState, factor: float) -> tuple[Tensor, MoverState, Tensor]:
        """Return the moved leaf, the new state, and what clipping multiplied the gradient by; `factor` is on the learning rate."""
        scale = torch.ones((), device=leaf.device)
        if not self.learn:
            return leaf, state, scale
        average = state.average
        if self.clip is not None:
            gradient, average, scale = self.clip.apply(gradient, average)
        leaf, inner = optimizers.update(self.optimizer, gradient, state.optimizer, leaf, self.optimizer.lr * factor)
        return leaf, MoverState(inner, average), scale

"""Seven components of one's own, in one file: own.toml beside it uses them. None has a base class, and nothing is registered."""

from __future__ import annotations

import hashlib

import attrs
import torch
import torchopt
from torch.nn import functional as F

import distilkit as dk


@attrs.frozen
class Curriculum:
    """A truncation policy: the window slides from the start of the inner run to its end over `outer_steps`."""

    horizon: int
    window: int
    outer_steps: int

    def init(self):
        return 0.0  # state: numbers and tensors

    def plan(self, state, outer_step, stream):
        start = round((self.horizon - self.window) * min(1.0, outer_step / self.outer_steps))
        return dk.Window(start, start + self.window), state

    def observe(self, state, info):
        return 0.9 * state + 0.1 * info.outer_loss


@attrs.frozen
class CosineNet:
    """A network: one hidden layer, and logits that are cosines."""

    width: int = 32
    image_shape: tuple[int, ...] | None = None
    classes: int | None = None

    def bind(self, image_shape, classes):
        return attrs.evolve(self, image_shape=tuple(image_shape), classes=classes)

    def init(self, stream):
        inputs = torch.Size(self.image_shape).numel()
        return {
            "hidden": stream.fold("hidden").normal(self.width, inputs) / inputs**0.5,
            "centres": stream.fold("centres").normal(self.classes, self.width),
        }

    def apply(self, params, x):
        features = F.silu(x.flatten(1) @ params["hidden"].T)
        return 10 * F.normalize(features, dim=1, eps=1e-6) @ F.normalize(params["centres"], dim=1).T


@attrs.frozen(eq=False)
class Centred:
    """A preprocessing, fitted and not: it subtracts the mean of the training images."""

    mean: torch.Tensor | None = None

    def fit(self, images):
        return Centred(images.mean(0)) if self.mean is None else self  # what is fitted stays as it is

    def forward(self, images):
        return images.float() - self.mean.to(images.device)

    def inverse(self, x):
        return x + self.mean.to(x.device)

    def to_arrays(self):  # what is stored with a set, and how it is told from others
        return {"kind": "Centred"}, {"mean": self.mean.numpy()}

    def fingerprint(self):
        return hashlib.blake2b(self.mean.numpy().tobytes(), digest_size=16).hexdigest()


def rings(count: int = 600):
    """A data source: circles of three sizes. `dk.Arrays` takes any arrays; a class with `load(stream)` would do too."""
    stream, labels = dk.Stream(0), torch.arange(count) % 3
    y, x = torch.meshgrid(torch.linspace(-1, 1, 12), torch.linspace(-1, 1, 12), indexing="ij")
    distance = (x**2 + y**2).sqrt() - (0.3 + 0.25 * labels.float())[:, None, None]
    images = (-40 * distance**2).exp()[:, None] + 0.8 * stream.fold("noise").normal(count, 1, 12, 12)
    return dk.Arrays(train_images=images, train_labels=labels, name="rings", preprocessing=Centred())


@attrs.frozen
class Brightness:
    """An augmentation: all that is random is drawn in `sample`, so that the backward sweep can replay it."""

    strength: float = 0.2

    def sample(self, stream, shape):
        return {"shift": self.strength * stream.normal(shape[0])}

    def apply(self, images, draw):
        return images + draw["shift"][:, None, None, None].to(images.dtype)


@attrs.frozen
class Adamax:
    """An optimiser: a TorchOpt transformation of learning rate one; `lr` is applied, and may be learned, by distilkit."""

    lr: float = 1e-3

    def transformation(self):
        return torchopt.adamax(lr=1.0, eps=1e-6)


@attrs.frozen
class Smoothed:
    """A loss: cross-entropy with a share of the targets spread over all classes."""

    share: float = 0.1

    def __call__(self, logits, targets):
        spread = targets.sum(1, keepdim=True) / targets.shape[1]
        return -(((1 - self.share) * targets + self.share * spread) * logits.log_softmax(1)).sum(1).mean()

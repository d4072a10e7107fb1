"""Components for the tests of the spec room: one of each sort of field that `distilkit.fields` makes."""

import attrs

from distilkit import fields
from distilkit.errors import CombinationError, FieldError


@attrs.frozen
class Digits:
    split: int = fields.integer(10, least=1)


@attrs.frozen
class ConvNet:
    width: int = fields.integer(128, least=1)
    depth: int = fields.integer(3, least=1, most=5)
    norm: str = fields.choice("instance", ["instance", "layer", "none"])
    image_shape: tuple[int, ...] | None = fields.integers(None, optional=True)

    def apply(self):
        return self.width


@attrs.frozen
class MLP:
    width: int = fields.integer(128, least=1)
    hidden: tuple[int, ...] = fields.integers((64, 64), empty=True)

    def apply(self):
        return self.width


@attrs.frozen
class SGD:
    lr: float = fields.number(above=0)
    momentum: float = fields.number(0.0, least=0, below=1)
    nesterov: bool = fields.flag(False)

    def __attrs_post_init__(self):
        if self.nesterov and self.momentum == 0:
            raise CombinationError("nesterov = true needs a momentum, but momentum is 0.", fix="momentum = 0.9")


@attrs.frozen
class Adam:
    lr: float = fields.number(0.001, above=0)
    betas: tuple[float, float] = fields.numbers((0.9, 0.999), length=2, least=0, below=1)
    decay: float | None = fields.number(None, above=0, optional=True)


@attrs.frozen
class Constant:
    pass


@attrs.frozen
class Learner:
    network: object = fields.component("network", methods=["apply"])
    optimizer: object = fields.component("optimizer", Adam())
    batch: int | None = fields.integer(None, least=1, optional=True)


@attrs.frozen
class Images:
    per_class: int = fields.integer(1, least=1)
    start: str = fields.choice("noise", ["noise", "real"])


@attrs.frozen
class Blocks:
    sizes: tuple[int, ...] = fields.integers(least=1)

    def __attrs_post_init__(self):
        if len(self.sizes) > 5:
            raise FieldError("sizes", list(self.sizes), "at most 5 blocks")


@attrs.frozen
class Pipeline:
    data: object = fields.component("data")
    learner: Learner = fields.part(Learner)
    images: Images = fields.part(Images, Images())
    boost: Blocks | None = fields.part(Blocks, None, optional=True)
    schedule: object = fields.component("schedule", Constant(), optional=True)
    warmup: object = fields.component("schedule", None, optional=True)
    title: str = fields.text("untitled")
    seed: int = fields.integer(0)

    def __attrs_post_init__(self):
        if self.images.start == "real" and self.seed < 0:
            raise CombinationError("Real images need a seed of at least 0.", fix="seed = 0")


GOOD = """
title = "digits"
seed = 3
[data]
kind = "Digits"
[learner]
batch = 10
[learner.network]
kind = "ConvNet"
width = 32
[learner.optimizer]
kind = "SGD"
lr = 0.1
[images]
start = "real"
"""


class UsersNetwork:
    def __init__(self, **arguments):
        self.arguments = arguments

    def apply(self):
        return self.arguments

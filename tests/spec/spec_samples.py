"""Components for the tests of the spec room: one of each sort of field that `distilkit.fields` makes."""

from typing import Literal

from distilkit import fields
from distilkit.errors import CombinationError, FieldError


@fields.component
class Digits:
    split: int = fields.integer(default=10, least=1)

    def load(self):
        return self.split


@fields.component
class ConvNet:
    width: int = fields.integer(default=128, least=1)
    depth: int = fields.integer(default=3, least=1, most=5)
    norm: str = fields.choice(Literal["instance", "layer", "none"], default="instance")
    image_shape: tuple[int, ...] | None = fields.integers(default=None, optional=True)

    def init(self):
        return self.width

    apply = init


@fields.component
class MLP:
    width: int = fields.integer(default=128, least=1)
    hidden: tuple[int, ...] = fields.integers(default=(64, 64), empty=True)

    def init(self):
        return self.width

    apply = init


@fields.component
class SGD:
    lr: float = fields.number(above=0)
    momentum: float = fields.number(default=0.0, least=0, below=1)
    nesterov: bool = fields.flag(default=False)

    def transformation(self):
        return self.lr

    def __attrs_post_init__(self):
        if self.nesterov and self.momentum == 0:
            raise CombinationError("nesterov = true needs a momentum, but momentum is 0.", fix="momentum = 0.9")


@fields.component
class Adam:
    lr: float = fields.number(default=0.001, above=0)
    betas: tuple[float, float] = fields.numbers(default=(0.9, 0.999), length=2, least=0, below=1)
    decay: float | None = fields.number(default=None, above=0, optional=True)

    def transformation(self):
        return self.lr


@fields.component
class Constant:
    def factor(self):
        return 1.0


@fields.component
class Learner:
    network: object = fields.slot("network")
    optimizer: object = fields.slot("optimizer", default=Adam())
    batch: int | None = fields.integer(default=None, least=1, optional=True)


@fields.component
class Images:
    per_class: int = fields.integer(default=1, least=1)
    start: str = fields.choice(Literal["noise", "real"], default="noise")


@fields.component
class Blocks:
    sizes: tuple[int, ...] = fields.integers(least=1)

    def __attrs_post_init__(self):
        if len(self.sizes) > 5:
            raise FieldError("sizes", list(self.sizes), "at most 5 blocks")


@fields.component
class Pipeline:
    data: object = fields.slot("data")
    learner: Learner = fields.part(Learner)
    images: Images = fields.part(Images, default=Images())
    boost: Blocks | None = fields.part(Blocks, default=None, optional=True)
    schedule: object = fields.slot("schedule", default=Constant(), optional=True)
    warmup: object = fields.slot("schedule", default=None, optional=True)
    title: str = fields.text(default="untitled")
    seed: int = fields.integer(default=0)

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

    def init(self):
        return self.arguments

    apply = init

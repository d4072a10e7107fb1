"""What a user writes: a line that ends in `# E` holds a mistake that type checkers must find, and no other line may trouble them.

`test_typing.py` runs mypy and pyright over this file. It is never run.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, assert_type

import attrs
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import distilkit as dk
from distilkit import fields, spec
from distilkit.data.bundle import DataBundle, Split
from distilkit.data.preprocessing import Fitted
from distilkit.truncation import StepInfo

# Components of the user's own: no base class, and none of ours is touched.


class Place(NamedTuple):
    """How far a curriculum has come."""

    horizon: int


@attrs.frozen
class Curriculum:
    """A policy with a state: the horizon grows while the loss falls."""

    longest: int = 40

    def init(self) -> Place:
        return Place(5)

    def plan(self, state: Place, outer_step: int, stream: dk.Stream) -> tuple[dk.Window, Place]:
        return dk.Window(0, state.horizon), state

    def observe(self, state: Place, info: StepInfo) -> Place:
        return Place(min(self.longest, state.horizon + (info.outer_loss < 1)))


@fields.component
class Cosine:
    """A component with checked fields."""

    width: int = fields.integer(default=64, least=1)
    scale: float = fields.number(default=10, above=0)

    def init(self, stream: dk.Stream) -> dict[str, Tensor]:
        return {"weight": stream.normal(self.width, 64)}

    def apply(self, params: dict[str, Tensor], x: Tensor) -> Tensor:
        return self.scale * F.normalize(x.flatten(1)) @ F.normalize(params["weight"]).T


class Rings:
    """A data source."""

    def load(self, stream: dk.Stream) -> DataBundle:
        part = Split(stream.uniform(8, 1, 8, 8), torch.arange(8) % 2)
        return DataBundle("rings", part, part, part, ("in", "out"), dk.Identity())


class Brightness:
    """An augmentation."""

    def sample(self, stream: dk.Stream, shape: tuple[int, ...]) -> dict[str, Tensor]:
        return {"by": stream.uniform(shape[0], 1, 1, 1)}

    def apply(self, images: Tensor, draw: dict[str, Tensor]) -> Tensor:
        return images + draw["by"]


def focal(logits: Tensor, targets: Tensor) -> Tensor:
    """A loss may be a function."""
    return -(targets * F.log_softmax(logits, 1)).sum(1).square().mean()


class Warmup:
    """A schedule."""

    def factor(self, step: int, steps: int) -> float:
        return min(1.0, step / 10)


class Parts(dk.Silent):
    """Progress that keeps the parts of a run."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def phase(self, words: str) -> None:
        self.seen.append(words)


# What is right.

own = dk.Distiller(
    Rings(),
    dk.Learner(Cosine(width=32), dk.SGD(lr=0.1), focal, Brightness(), batch_per_class=1),
    Curriculum(),
    dk.Unroller(dk.ReplayAdjoint(checkpoint_every=2), precision="bfloat16", compile="trace"),
    boost=dk.BoostSchedule(blocks=[1, 2]),
    outer=dk.Outer(steps=10, schedule=Warmup(), clip=None),
    evaluation=dk.Evaluation(steps=[10, 20], baselines=["random real"]),
)
usual = dk.Distiller(dk.Digits(), dk.Learner(dk.MLP(hidden=[128])), dk.RandomTruncation(40, window=20), seed=1)
module = dk.Learner(dk.Functional(lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10))), optimizer=dk.Adam(betas=(0.9, 0.99)))
changed = dk.evolve(usual, learner=module)
assert_type(changed, dk.Distiller)
assert_type(usual.learner.batch_per_class, int | None)
assert_type(spec.load("spec.toml"), dk.Distiller)
assert_type(spec.loads("per_class = 2", root=dk.Images), dk.Images)
tree = dk.run(usual, Path("runs/x"), progress=Parts())
whitened = dk.CIFAR10(root="data", validation=0, preprocessing=dk.Whiten())
fitted: Fitted = dk.Identity().fit(torch.zeros(1, 1, 8, 8))
again = dk.MNIST(preprocessing=fitted)


def step(distiller: dk.Distiller, settings: Mapping[str, Any]) -> float:
    """Settings that are not known before are no mistake."""
    state, info = dk.evolve(distiller, **settings).step(distiller.init())
    return info.outer_loss + state.step


# Mistakes.

dk.RandomTruncation()  # E: both numbers are missing
dk.RandomTruncation(40, windows=20)  # E: it is called window
dk.Learner(dk.SGD(lr=0.1))  # E: an optimiser is no network
dk.Learner(dk.MLP(), dk.MLP())  # E: a network is no optimiser
dk.Learner(dk.MLP(), augment=dk.Adam())  # E: an optimiser is no augmentation
dk.Learner(dk.MLP(), loss=dk.Cosine())  # E: a schedule is no loss
dk.Images(start="reel")  # E: noise or real
dk.ConvNet(norm="batchnorm")  # E: it is called batch
dk.ConvNet(width="128")  # E: a text is no number
dk.MLP(hidden=128)  # E: one number is no list
dk.Unroller(precision="bf16")  # E: it is called bfloat16
dk.Unroller(compile="fast")  # E: none of those
dk.Unroller(dk.FullUnroll(3))  # E: a policy is no adjoint
dk.ReplayAdjoint(checkpoint_evry=2)  # E: misspelled
dk.Digits(preprocessing=dk.SGD())  # E: an optimiser is no preprocessing
dk.Evaluation(baselines=["random"])  # E: it is called random real
dk.Evaluation(select="test")  # E: validation or paper
dk.BoostSchedule(minibatch="all")  # E: union or each block
dk.Outer(schedule=dk.Adam())  # E: an optimiser is no schedule
dk.Distiller(dk.MLP(), dk.Learner(dk.MLP()), dk.FullUnroll(3))  # E: a network is no data
dk.Distiller(dk.Digits(), dk.MLP(), dk.FullUnroll(3))  # E: a network is no learner
dk.Distiller(dk.Digits(), dk.Learner(dk.MLP()), dk.SGD())  # E: an optimiser is no policy
usual.seed = 2  # E: components do not change
usual.run("runs/x", print)  # E: a function is no progress
_ = spec.load("spec.toml", root=dk.Images).horizon  # E: images have none


@attrs.frozen
class Backwards:
    """A policy that returns its state in the wrong place."""

    def init(self) -> int:
        return 0

    def plan(self, state: int, outer_step: int, stream: dk.Stream) -> tuple[int, dk.Window]:
        return state, dk.Window(0, 3)

    def observe(self, state: int, info: StepInfo) -> int:
        return state


dk.Distiller(dk.Digits(), dk.Learner(dk.MLP()), Backwards())  # E: plan returns (window, state)

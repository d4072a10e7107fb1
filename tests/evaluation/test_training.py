"""Many networks at once are what they are alone, and what plain torch makes of the same start and draws."""

from __future__ import annotations

import time

import attrs
import pytest
import torch
from torch import nn

import distilkit as dk
from distilkit.data.bundle import DataBundle
from distilkit.data.distilled import DistilledSet
from distilkit.evaluation import TrainingSet, accuracy, train, training_set
from distilkit.evaluation.baselines import chosen_images, full_data
from distilkit.evaluation.training import Mode, cost, groups, side_by_side
from distilkit.unroll.execution import ProgramCache

MLP = dk.MLP(hidden=(32,))
CONVNET = dk.ConvNet(width=8, depth=2)
LEARNERS = {
    "MLP": dk.Learner(MLP, dk.Adam(lr=0.01)),
    "MLP, momentum": dk.Learner(MLP, dk.SGD(lr=0.05, momentum=0.9)),
    "ConvNet, flip_rotate": dk.Learner(CONVNET, dk.Adam(lr=0.001), augment=dk.FlipRotate()),
    "some classes a step": dk.Learner(MLP, dk.Adam(lr=0.01), classes_per_step=4),
    "squared error": dk.Learner(MLP, dk.SGD(lr=0.01), loss=dk.MSE()),
}
SETS = {
    "distilled": lambda ten, data: training_set(ten, data),
    "a set for each": lambda ten, data: chosen_images("random real", data, 2, 8, dk.Stream(5)),
    "full data": lambda ten, data: full_data(data, 32),
}


def streams(count: int) -> list[dk.Stream]:
    return [dk.Stream(1).fold("networks").fold(i) for i in range(count)]


def logits(learner: dk.Learner, params: torch.Tensor, data: DataBundle) -> torch.Tensor:
    """What networks say, and not their parameters: a bias before an instance norm has no gradient but rounding, which Adam blows up."""
    return torch.stack([learner.logits(p, data.test.images[:50]) for p in params])


@pytest.mark.parametrize("which", SETS)
@pytest.mark.parametrize("name", LEARNERS)
def test_eight_at_once_are_what_they_are_alone(name: str, which: str, ten: DistilledSet, digits: DataBundle) -> None:
    """Logits to 1e-4 in float32 after 20 steps; three at a time too, which leaves a group of two."""
    learner, training = LEARNERS[name].bind(digits.image_shape, 10), SETS[which](ten, digits)
    alone, eight, three = (dict(train(learner, training, streams(8), (5, 20), together=n)) for n in (1, 8, 3))
    for length in (5, 20):
        wanted = logits(learner, alone[length], digits)
        assert torch.allclose(wanted, logits(learner, eight[length], digits), rtol=0, atol=1e-4)
        assert torch.allclose(wanted, logits(learner, three[length], digits), rtol=0, atol=1e-4)
    assert (alone[20] - alone[5]).abs().max() > 1e-3
    assert len(alone[20].unique(dim=0)) == 8


@pytest.mark.parametrize("name", LEARNERS)
def test_a_network_does_not_depend_on_how_many_there_are(name: str, ten: DistilledSet, digits: DataBundle) -> None:
    learner, training = LEARNERS[name].bind(digits.image_shape, 10), training_set(ten, digits)
    two, five = (dict(train(learner, training, streams(n), (20,)))[20] for n in (2, 5))
    assert torch.allclose(logits(learner, two, digits), logits(learner, five[:2], digits), rtol=0, atol=1e-4)


class Plain(nn.Module):
    """ConvNet-2 written with torch's modules, in the order of our parameters."""

    def __init__(self) -> None:
        super().__init__()
        blocks = [[nn.Conv2d(c, 8, 3, padding=1), nn.GroupNorm(8, 8), nn.ReLU(), nn.AvgPool2d(2)] for c in (1, 8)]
        self.features = nn.Sequential(*[layer for block in blocks for layer in block])
        self.classifier = nn.Linear(8 * 2 * 2, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(x).flatten(1))


PLAIN = {
    "ConvNet, flip_rotate": (Plain, lambda p: torch.optim.Adam(p, lr=0.001)),
    "MLP": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)),
        lambda p: torch.optim.Adam(p, lr=0.01),
    ),
    "MLP, momentum": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)),
        lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    ),
}


@pytest.mark.parametrize("name", PLAIN)
def test_same_accuracy_as_a_plain_torch_loop(name: str, ten: DistilledSet, digits: DataBundle) -> None:
    """nn.Module and torch.optim from the same start with the same draws: accuracy to 1e-4, which here means each image."""
    learner, training = LEARNERS[name].bind(digits.image_shape, 10), training_set(ten, digits)
    found = {steps: accuracy(learner, params, digits.test) for steps, params in train(learner, training, streams(3), (20, 50))}
    make, optimise = PLAIN[name]
    for i, stream in enumerate(streams(3)):
        module = make()
        start = learner.network.init(stream.fold("network"))
        with torch.no_grad():
            for own, given in zip(module.parameters(), start.values(), strict=True):
                own.copy_(given)
        optimizer = optimise(module.parameters())
        for t in range(50):
            images = ten.images
            if learner.augment is not None:
                made = learner.augment.sample(stream.fold("draw").fold(t).fold("augment"), tuple(images.shape))
                images = learner.augment.apply(images, made)
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(images), torch.arange(10)).backward()
            optimizer.step()
            if t + 1 in found:
                with torch.no_grad():
                    right = (module(digits.test.images).argmax(1) == digits.test.labels).double().mean()
                assert abs(float(right - found[t + 1][i])) < 1e-4
    assert found[50].mean() > 0.3


def test_a_learned_learning_rate_is_used(ten: DistilledSet, digits: DataBundle) -> None:
    learner = dk.Learner(MLP, dk.SGD(lr=0.01), learn_lr=True).bind(digits.image_shape, 10)
    other = dk.Learner(MLP, dk.SGD(lr=0.2)).bind(digits.image_shape, 10)
    training = training_set(ten, digits)
    learned = TrainingSet(training.images, training.labels, training.classes, log_lr=torch.tensor(0.2).log())
    (_, given), (_, wanted) = next(train(learner, learned, streams(2), (5,))), next(train(other, training, streams(2), (5,)))
    assert torch.allclose(given, wanted, atol=1e-6)


def test_several_learned_rates_are_used_in_turn(ten: DistilledSet, digits: DataBundle) -> None:
    """Networks side by side and alone, against a loop by hand; steps behind the last rate take that one."""
    learner = dk.Learner(MLP, dk.SGD(lr=0.01), learn_lr=True, lr_steps=3).bind(digits.image_shape, 10)
    training, rates = training_set(ten, digits), torch.tensor([0.3, 0.1, 0.2])
    learned = TrainingSet(training.images, training.labels, training.classes, log_lr=rates.log())
    for together in (1, 2):
        _, found = next(train(learner, learned, streams(2), (5,), together=together))
        for params, stream in zip(found, streams(2), strict=True):
            theta = learner.init(stream.fold("network")).params.requires_grad_()
            for t in range(5):
                loss = nn.functional.cross_entropy(learner.logits(theta, training.images), training.labels)
                theta = (theta - rates[min(t, 2)] * torch.autograd.grad(loss, theta)[0]).detach().requires_grad_()
            assert torch.allclose(params, theta, atol=1e-6)


def test_parts_train_as_the_whole_does(ten: DistilledSet, digits: DataBundle) -> None:
    """Two parts of ten images, and four at a time of a minibatch of 32; never side by side."""
    for name, training, size in (("MLP", training_set(ten, digits), 5), ("ConvNet, flip_rotate", full_data(digits, 32), 4)):
        learner = LEARNERS[name].bind(digits.image_shape, 10)
        inner = attrs.evolve(learner, micro_batch=size)
        assert groups(inner, training, streams(2)) == [slice(0, 1), slice(1, 2)]
        (_, whole), (_, parts) = (next(train(one, training, streams(2), (5,))) for one in (learner, inner))
        assert torch.allclose(logits(learner, whole, digits), logits(learner, parts, digits), atol=1e-4)


def test_a_judge_that_normalises_over_the_batch_takes_it_whole() -> None:
    inner = dk.Learner(CONVNET, micro_batch=4)
    sizes = [inner.with_network(dk.ConvNet(width=8, depth=2, norm=norm), (1, 8, 8), 10).micro_batch for norm in ("batch", "instance")]
    assert sizes == [None, 4]


def test_accuracy_counts_every_image_once(digits: DataBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the batch and the number of networks at a time; a batch that does not divide the images too."""
    learner = LEARNERS["ConvNet, flip_rotate"].bind(digits.image_shape, 10)
    params = torch.stack([learner.init(s).params for s in streams(3)])
    wanted = [(learner.logits(p, digits.test.images).argmax(1) == digits.test.labels).double().mean() for p in params]
    for batch, memory in ((100, 1), (7, 2**30), (100, 2**20), (10_000, 2**30)):
        monkeypatch.setattr("distilkit.evaluation.training.TEST_BATCH", batch)
        monkeypatch.setattr("distilkit.evaluation.training.MEMORY", memory)
        assert torch.allclose(accuracy(learner, params, digits.test), torch.stack(wanted), atol=1e-12)


def test_small_networks_go_side_by_side_and_large_ones_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def picked(network: object, *shape: int, networks: int = 8) -> int:
        return side_by_side(dk.Learner(network).bind(shape, 10), torch.zeros(10, *shape), networks)

    assert picked(MLP, 1, 8, 8) == 8
    assert picked(MLP, 1, 8, 8, networks=1) == 1
    assert picked(dk.ConvNet(), 3, 32, 32) == 1
    monkeypatch.setattr("distilkit.evaluation.training.MEMORY", 0)
    assert picked(MLP, 1, 8, 8) == 1


def test_cost_of_a_linear_map() -> None:
    """A multiplication and an addition for each weight and image; kept is the hidden layer, 4 bytes a number, and no parameters."""
    learner = dk.Learner(MLP).bind((1, 8, 8), 10)
    work = cost(learner, torch.zeros(10, 1, 8, 8))
    assert work.operations == 2 * 10 * (64 * 32 + 32 * 10)
    assert 4 * 10 * (32 + 10) <= work.bytes <= 3 * 4 * 10 * (32 + 10)


@pytest.mark.alone
def test_side_by_side_is_twice_as_fast_on_digits(ten: DistilledSet, digits: DataBundle) -> None:
    """The best of each, since a busy machine can slow a run but not speed it up.

    examples/benchmarks/evaluation.py measures the ratio.
    """
    learner, training = dk.Learner(dk.MLP(hidden=(128,)), dk.Adam(lr=0.01)).bind(digits.image_shape, 10), training_set(ten, digits)
    mode = Mode(programs=ProgramCache())  # what is built is kept, as in a run

    def seconds(together: int) -> float:
        began = time.perf_counter()
        list(train(learner, training, streams(8), (100,), together=together, mode=mode))
        return time.perf_counter() - began

    pairs = [(seconds(1), seconds(8)) for _ in range(8)]
    assert min(a for a, _ in pairs) > 2 * min(b for _, b in pairs)

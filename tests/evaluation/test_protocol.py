"""What labels become, what choices are made on, and that the test split has no say in them."""

from __future__ import annotations

import attrs
import numpy as np
import pytest
import torch

import distilkit as dk
from distilkit import process
from distilkit.data.bundle import DataBundle, Split
from distilkit.data.distilled import DistilledSet
from distilkit.errors import CombinationError
from distilkit.evaluation import (
    Evaluation,
    PartialScore,
    baseline_set,
    measure,
    score,
    scoring,
    selection_split,
    train,
    training as module,
    training_set,
)
from distilkit.evaluation.protocol import OPTIMISTIC, targets

LEARNER = dk.Learner(dk.MLP(hidden=(32,)), dk.Adam(lr=0.01)).bind((1, 8, 8), 10)
PROTOCOL = Evaluation(seeds=3, steps=(1, 10, 30))
STREAM = dk.Stream(4)
LOGITS = 4 * torch.eye(10) + dk.Stream(8).normal(10, 10)


def poisoned(data: DataBundle) -> DataBundle:
    """The same data with wrong test labels: the next class for each image."""
    return attrs.evolve(data, test=Split(data.test.images, (data.test.labels + 1) % 10))


def test_test_labels_select_nothing(ten: DistilledSet, digits: DataBundle) -> None:
    good, bad = (score(LEARNER, training_set(ten, data), data, PROTOCOL, STREAM, test=True) for data in (digits, poisoned(digits)))
    assert good.steps == bad.steps
    assert np.array_equal(good.validation, bad.validation)
    assert good.test.mean() > 0.3 > bad.test.mean()


def test_test_split_is_not_touched_unless_asked(ten: DistilledSet, digits: DataBundle) -> None:
    without = attrs.evolve(digits, test=Split(torch.full_like(digits.test.images, torch.nan), digits.test.labels))
    assert score(LEARNER, training_set(ten, without), without, PROTOCOL, STREAM, test=False).test.size == 0


def test_paper_protocol_takes_the_maximum_on_the_test_split(ten: DistilledSet, digits: DataBundle) -> None:
    paper, training = attrs.evolve(PROTOCOL, select="paper"), training_set(ten, digits)
    every = measure(LEARNER, training, {"test": digits.test, "validation": digits.validation}, PROTOCOL, STREAM)
    optimistic, honest = (score(LEARNER, training, digits, p, STREAM, test=True) for p in (paper, PROTOCOL))
    assert np.array_equal(optimistic.test, every["test"][every["test"].mean(1).argmax()])
    assert np.array_equal(honest.test, every["test"][every["validation"].mean(1).argmax()])
    assert optimistic.test.mean() >= honest.test.mean()
    assert paper.to_json()["selected_on"] == OPTIMISTIC
    assert score(LEARNER, training, poisoned(digits), paper, STREAM, test=True).test.mean() < 0.3


def test_without_validation_split_training_images_select(digits: DataBundle) -> None:
    none = attrs.evolve(digits, validation=Split(digits.train.images[:0], digits.train.labels[:0]))
    assert len(selection_split(none)) == len(digits.train)
    assert selection_split(digits) is digits.validation


TARGETS = {
    "one-hot": (torch.eye(3), torch.eye(3)),
    "probability": (torch.tensor([[0.2, 0.5, 0.1]]), torch.tensor([[0.2, 0.5, 0.1]])),  # never normalised
    "logit": (torch.tensor([[0.0, 1.0, -1.0]]), torch.tensor([[1.0, np.e, 1 / np.e]]) / (1 + np.e + 1 / np.e)),
    "centred": (torch.eye(3) - 1 / 3, torch.eye(3) - 1 / 3),
}


@pytest.mark.parametrize("space", TARGETS)
def test_labels_become_targets(space: str) -> None:
    labels, wanted = TARGETS[space]
    assert torch.allclose(targets(labels, space, hard=False), wanted)
    assert torch.equal(targets(labels, space, hard=True).argmax(-1), labels.argmax(-1))
    assert (targets(labels, space, hard=True).sum(-1) == 1).all()


EQUAL = {  # a set in one label space, and the set and learner that are the same by definition
    "logits are softmaxed": (LOGITS, "logit", {}, LOGITS.softmax(1), LEARNER),
    "hard logits": (LOGITS, "logit", {"labels": "hard"}, torch.eye(10)[LOGITS.argmax(1)], LEARNER),
    "centred is fitted by squared error": (torch.eye(10) - 0.1, "centred", {}, torch.eye(10) - 0.1, attrs.evolve(LEARNER, loss=dk.MSE())),
    "hard centred": (torch.eye(10) - 0.1, "centred", {"labels": "hard"}, torch.eye(10), LEARNER),
    "soft is as it is": (0.7 * torch.eye(10), "probability", {}, 0.7 * torch.eye(10), LEARNER),
}


@pytest.mark.parametrize("name", EQUAL)
def test_label_spaces_train_as_they_say(name: str, ten: DistilledSet, digits: DataBundle) -> None:
    labels, space, options, plain, learner = EQUAL[name]
    protocol = attrs.evolve(PROTOCOL, **options)
    given = attrs.evolve(training_set(ten, digits), labels=labels, label_space=space)
    same = attrs.evolve(training_set(ten, digits), labels=plain)
    splits = {"test": digits.test}
    assert np.array_equal(
        measure(LEARNER, given, splits, protocol, STREAM)["test"], measure(learner, same, splits, PROTOCOL, STREAM)["test"]
    )


def test_protocol_replaces_optimizer_and_augmentation(ten: DistilledSet, digits: DataBundle) -> None:
    training = training_set(ten, digits)
    learner = attrs.evolve(LEARNER, augment=dk.FlipRotate())

    def trained(learner: dk.Learner, **options: object) -> torch.Tensor:
        (found,) = train(*attrs.evolve(PROTOCOL, **options).trainer(learner, training), [STREAM], [5])
        return found[1]

    assert torch.equal(trained(learner, augmented=False), trained(LEARNER))
    assert torch.equal(trained(LEARNER, augment=dk.FlipRotate()), trained(learner))
    assert not torch.allclose(trained(learner), trained(LEARNER))
    assert torch.equal(trained(LEARNER, optimizer=dk.SGD(lr=0.1)), trained(attrs.evolve(LEARNER, optimizer=dk.SGD(lr=0.1))))


def test_baselines_have_a_draw_for_each_network(digits: DataBundle) -> None:
    protocol = attrs.evolve(PROTOCOL, baselines=("random real", "k-means real", "full data"))
    found = {
        name: score(LEARNER, baseline_set(name, digits, 1, protocol, STREAM.fold(name)), digits, protocol, STREAM, test=True)
        for name in protocol.baselines
    }
    assert list(found) == list(protocol.baselines)
    assert found["full data"].test.mean() > found["random real"].test.mean() + 0.1
    assert all(s.test.shape == (3,) for s in found.values())


def test_combinations_that_make_no_sense_are_refused(ten: DistilledSet, digits: DataBundle) -> None:
    with pytest.raises(CombinationError, match="rise"):
        Evaluation(steps=(10, 5))
    with pytest.raises(CombinationError, match="augmented"):
        Evaluation(augment=dk.FlipRotate(), augmented=False)
    with pytest.raises(CombinationError, match="means nothing"):
        training_set(attrs.evolve(ten, preprocessing=dk.Identity()), digits)
    with pytest.raises(CombinationError, match=r"\(1, 4, 4\)"):
        training_set(attrs.evolve(ten, images=ten.images[..., :4, :4]), digits)


@pytest.mark.parametrize("lengths_that_fit", [0, 1, 2, 3, 6])
def test_what_is_not_kept_for_the_test_is_trained_again_to_the_same_bits(
    lengths_that_fit: int, digits: DataBundle, ten: DistilledSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three networks one by one, after two numbers of steps each: none, one or all of them wait for the test."""
    monkeypatch.setattr(process, "SMALL_WORK", {"cpu": 0})
    learner, training = LEARNER, training_set(ten, digits)
    protocol = attrs.evolve(PROTOCOL, seeds=3, steps=(5, 10))
    expected = score(learner, training, digits, protocol, STREAM, test=True)
    monkeypatch.setattr(scoring, "KEPT", lengths_that_fit * 4 * learner.layout.size)
    real, started = scoring.trained, []
    monkeypatch.setattr(scoring, "trained", lambda *given, **options: started.append(1) or real(*given, **options))
    found = score(learner, training, digits, protocol, STREAM, test=True)
    assert len(started) == 3 + 3 - lengths_that_fit // 2
    assert found == expected
    assert np.array_equal(found.test, expected.test)


def test_a_score_goes_on_from_groups_of_other_sizes(digits: DataBundle, ten: DistilledSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU whose memory somebody else took meanwhile: what is known stays, and the others go on as there is room."""
    learner, training = LEARNER, training_set(ten, digits)
    protocol = attrs.evolve(PROTOCOL, seeds=5)
    expected = score(learner, training, digits, protocol, STREAM, test=True)
    partial = PartialScore()

    def stop() -> None:
        raise KeyboardInterrupt

    for together in (2, 1, 3):
        monkeypatch.setattr(module, "side_by_side", lambda learner, batch, networks, most=together: min(networks, most))
        with pytest.raises(KeyboardInterrupt):
            score(learner, training, digits, protocol, STREAM, test=True, partial=partial, between=stop)
    assert [row.shape[1] for row in partial.validation] == [2, 1, 2]
    found = score(learner, training, digits, protocol, STREAM, test=True, partial=partial)
    assert [len(row) for row in partial.test] == [2, 1, 2]
    np.testing.assert_allclose(found.validation, expected.validation, atol=0.01)
    np.testing.assert_allclose(found.test, expected.test, atol=0.01)

"""Growth: each part of a run is what a pipeline with that network and that batch would do from there."""

import optree
import pytest
import torch
from torch import nn

import distilkit as dk
from distilkit.errors import CombinationError, RunError
from distilkit.evaluation.scoring import score


def pipeline(width=8, batch_size=20, **parts):
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(60, 1, 8, 8, generator=generator), torch.arange(60) % 3
    settings = {
        "data": dk.Arrays(train_images=images, train_labels=labels, test_images=images, test_labels=labels, preprocessing=dk.Identity()),
        "learner": dk.Learner(dk.ConvNet(width=width, depth=1)),
        "truncation": dk.RandomTruncation(horizon=4, window=2),
        "labels": dk.Labels(learn=True),
        "outer": dk.Outer(steps=6, batch_size=batch_size, schedule=dk.Cosine()),
        "evaluation": dk.Evaluation(seeds=1, steps=(2,), every=2, baselines=()),
        "device": "cpu",
    }
    return dk.Distiller(**(settings | parts))


GROWTH = dk.Growth(until=(0.3, 0.7), widths=(2, 4), batch_sizes=(5, 10))


def test_every_part_is_the_pipeline_of_that_network_and_batch():
    growing, parts = pipeline(growth=GROWTH), [pipeline(2, 5), pipeline(2, 5), pipeline(4, 10), pipeline(4, 10), pipeline(), pipeline()]
    state = growing.init()
    for k, part in enumerate(parts):
        before, (expected, told) = state, part.step(state)
        state, info = growing.step(state)
        assert all(map(torch.equal, optree.tree_leaves(state.leaves), optree.tree_leaves(expected.leaves)))
        assert (info.outer_loss, info.meta_gradient_norm) == (told.outer_loss, told.meta_gradient_norm)
        others = [one for one in parts if one.learner != part.learner]
        assert all(one.meta_gradient(before, info.window).loss.item() != info.outer_loss for one in others), k


def test_every_stage_of_a_boosted_run_has_the_parts():
    boosted = pipeline(growth=GROWTH, boost=dk.BoostSchedule(blocks=(1, 1), steps=(10, 4)))
    assert [(one.stage.number, *one[1:]) for one in boosted.pieces] == [
        (0, 0, 3, 2, 5),
        (0, 3, 4, 4, 10),
        (0, 7, 3, None, None),
        (1, 0, 1, 2, 5),
        (1, 1, 2, 4, 10),
        (1, 3, 1, None, None),
    ]


def test_parts_without_a_step_are_left_out():
    short = pipeline(growth=GROWTH, outer=dk.Outer(steps=1))
    assert [(one.steps, one.width) for one in short.pieces] == [(1, None)]
    late = pipeline(growth=dk.Growth(until=(0.9,), widths=(2,)), outer=dk.Outer(steps=4))
    assert [(one.steps, one.width) for one in late.pieces] == [(3, 2), (1, None)]
    assert [one.steps for one in pipeline().pieces] == [6]


def test_networks_that_judge_have_the_full_width(tmp_path, monkeypatch):
    judged = []

    def listening(learner, *arguments, **options):
        judged.append(learner.network.width)
        return score(learner, *arguments, **options)

    monkeypatch.setattr("distilkit.runs.run.score", listening)
    pipeline(growth=GROWTH).run(tmp_path / "run")
    assert judged == [8] * 4  # after 2, 4 and 6 outer steps, and at the end


def test_a_network_without_a_width_is_told():
    with pytest.raises(CombinationError, match="MLP has none"):
        pipeline(learner=dk.Learner(dk.MLP()), growth=GROWTH)
    with pytest.raises(CombinationError, match="Functional has none"):
        pipeline(learner=dk.Learner(dk.Functional(lambda: nn.Linear(2, 2))), growth=GROWTH)
    with pytest.raises(CombinationError, match="has 16, and the network has width 8"):
        pipeline(growth=dk.Growth(until=(0.2, 0.5), widths=(4, 16)))
    with pytest.raises(CombinationError, match="has 5, which this network cannot have"):
        pipeline(learner=dk.Learner(dk.AlexNet(width=8)), growth=dk.Growth(until=(0.2, 0.5), widths=(4, 5)))
    assert pipeline(learner=dk.Learner(dk.MLP()), growth=dk.Growth(until=(0.5,), batch_sizes=(5,))).pieces[0].steps == 3


def test_a_run_that_grew_is_not_made_longer(tmp_path):
    pipeline(growth=GROWTH).run(tmp_path / "run")
    with pytest.raises(RunError, match=r"without \[boost\] and \[growth\]"):
        pipeline(growth=GROWTH, outer=dk.Outer(steps=9, batch_size=20, schedule=dk.Cosine())).run(tmp_path / "run")

"""A network that diverged has no accuracy: it is NaN in every table, never chance level, and never what is chosen."""

import logging

import numpy as np
import torch

import distilkit as dk
from distilkit.evaluation import score
from distilkit.evaluation.training import TrainingSet, accuracy, mean_or_zero
from tests.commands import distilkit

WILD = dk.Evaluation(seeds=2, steps=(1, 20), optimizer=dk.SGD(lr=1e12), baselines=())


def problem():
    data = dk.Digits().load(dk.Stream(0))
    learner = dk.Learner(dk.MLP(hidden=(8,)), dk.SGD(lr=0.1)).bind(data.image_shape, data.num_classes)
    classes = torch.arange(10)
    rows = torch.stack([(data.train.labels == c).nonzero()[0, 0] for c in classes])
    return data, learner, TrainingSet(data.train.images[rows], torch.eye(10), classes)


def test_a_network_that_is_not_finite_has_no_accuracy(caplog):
    data, learner, _ = problem()
    params = torch.stack([learner.init(dk.Stream(k)).params for k in range(3)])
    params[1, 5] = torch.nan
    with caplog.at_level(logging.WARNING, logger="distilkit"):
        found = accuracy(learner, params, data.test)
    assert found.isnan().tolist() == [False, True, False]
    assert "1 of 3 networks diverged" in caplog.text
    expected = accuracy(learner, params[::2], data.test)
    assert torch.equal(found[::2], expected)


def test_what_diverged_is_not_chosen():
    assert mean_or_zero(np.array([[0.4, 0.5], [np.nan, 0.8]])).tolist() == [0.45, 0.4]
    data, learner, training = problem()
    found = score(learner, training, data, WILD, dk.Stream(1), test=True)
    assert np.isnan(found.validation[1]).all()
    assert found.steps == 1


def test_the_command_says_so(tmp_path):
    text = """
title = "wild"
[data]
kind = "Digits"
[learner.network]
kind = "MLP"
hidden = [8]
[truncation]
kind = "FullUnroll"
horizon = 2
[outer]
steps = 1
batch_size = 32
[evaluation]
seeds = 2
steps = [40]
every = 1
baselines = ["random real"]
[evaluation.optimizer]
kind = "SGD"
lr = 1e30
"""
    (tmp_path / "wild.toml").write_text(text)
    done = distilkit("run", "wild.toml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "2 of 2 networks diverged" in done.stdout
    assert done.stdout.count("2 (2 diverged)") == 2
    tree = dk.open(tmp_path / "runs" / "wild")
    assert tree["evaluation"]["accuracy"].isnull().all()
    assert tree["baselines"]["accuracy"].isnull().all()

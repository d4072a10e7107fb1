"""Adaptive truncation: the windows, lengths and stages that its description gives, and norms that are those of the inner gradient."""

import math
from collections import Counter

import pytest
import torch
from scipy.stats import chisquare

import distilkit as dk
from distilkit.adaptive import Probe
from distilkit.errors import CombinationError
from tests.unroll.problems import learner, problem

NORMS = torch.tensor([3.0, 2.5, 0.5, 0.4, 1.0, 2.0, 0.1, 0.0], dtype=torch.float64)


def state(stage, norms=NORMS):
    return {"stage": stage, "calm": 0, "accuracy": 0.5, "norms": norms}


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_places_have_their_probabilities(stage):
    """Windows of one step start where they are drawn: chi-square against a softmax by hand."""
    policy = dk.AdaptiveTruncation(8, 1, temperature=0.7)
    weights = [math.exp({0: 1, 1: 0, 2: -1}[stage] * n / 0.7) for n in NORMS.tolist()]
    starts = Counter(policy.plan(state(stage), k, dk.Stream(3))[0].start for k in range(4000))
    expected = [4000 * w / sum(weights) for w in weights]
    assert chisquare([starts[t] for t in range(8)], expected).pvalue > 1e-4
    if stage != 1:  # the control
        assert chisquare([starts[t] for t in range(8)]).pvalue < 1e-4


def test_lengths_follow_the_rank_of_the_change():
    policy = dk.AdaptiveTruncation(8, 4, spread=3)
    change = [0.5, 0.5, 2.0, 0.1, 0.6, 1.0, 1.9, 0.1]  # by hand; the first has none before it, and takes the second's
    ranks = sorted(range(8), key=lambda t: change[t])
    expected = [4 - 3 + round(6 * ranks.index(t) / 7) for t in range(8)]
    assert policy.lengths(state(0)) == expected
    assert (min(expected), max(expected)) == (1, 7)
    for k in range(200):
        window, _ = policy.plan(state(0), k, dk.Stream(0))
        assert 0 <= window.start < window.stop <= 8
        assert window.length in expected


def test_before_the_first_probe_all_is_even():
    policy = dk.AdaptiveTruncation(8, 4, spread=3)
    assert set(policy.lengths(policy.init())) == {4}
    assert policy.probabilities(policy.init()).tolist() == [0.125] * 8
    assert policy.probe_steps(policy.init(), 7) == 8
    assert [policy.probe_steps(state(0), k) for k in (0, 1, 9, 10)] == [8, 0, 0, 8]


def test_stages_end_when_accuracy_has_been_calm():
    """T = 20: three calm probes end the early stage (0.15 T), two and a half, so three, the middle one; a jump begins the count anew."""
    policy = dk.AdaptiveTruncation(20, 5)
    now, stages = policy.init(), []
    for accuracy in (0.1, 0.2, 0.21, 0.215, 0.4, 0.41, 0.42, 0.43, 0.435, 0.44, 0.6, 0.605, 0.61, 0.612, 0.9, 0.1):
        now = policy.observe_probe(now, Probe(torch.ones(20, dtype=torch.float64), accuracy))
        stages.append(now["stage"])
    #             .1 .2 c  c  j  c  c  c -> 1: c  c  j  c  c  c -> 2
    assert stages == [0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 2, 2, 2]


@pytest.mark.parametrize("compile", ["eager", "trace"])
def test_a_probe_measures_the_inner_gradient(compile):
    """Against torch.autograd, step by step, with draws; the accuracy is that of the network at the end."""
    inner = learner(dk.Adam(lr=0.05), batch_per_class=2)
    leaves, batch, classes = problem(lr=0.05)
    found = dk.Unroller(compile=compile).probe(inner, leaves, 5, batch, dk.Stream(5), classes)
    params, moments = inner.init(dk.Stream(5).fold("network"), dtype=leaves.images.dtype)
    for t in range(5):
        draw = inner.draw(dk.Stream(5).fold("draw").fold(t), classes, tuple(leaves.images.shape[1:]))
        params = params.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(inner.objective(params, leaves.images, leaves.labels, draw), params)
        assert abs(found.norms[t] / gradient.norm() - 1) < 1e-10
        with torch.no_grad():
            params, moments = inner.update(dk.learner.LearnerState(params, moments), gradient, leaves.log_lr)
    right = inner.logits(params, batch.images).argmax(1) == batch.labels.argmax(1)
    assert abs(found.accuracy - right.double().mean()) < 1e-6


def test_a_run_probes_and_its_windows_differ(tmp_path):
    policy = dk.AdaptiveTruncation(12, 4, spread=2, probe_every=2, calm_probes=(0.0, 0.0), calm_change=(1.0, 1.0))
    pipeline = dk.Distiller(
        dk.Digits(),
        dk.Learner(dk.MLP(hidden=(12,)), dk.Adam(lr=0.01)),
        policy,
        outer=dk.Outer(steps=8, batch_size=64),
        evaluation=dk.Evaluation(seeds=1, steps=(5,), every=0, baselines=()),
        device="cpu",
    )
    now, stages = pipeline.init(), []
    for _ in range(8):
        now, _info = pipeline.step(now)
        stages.append(now.policy["stage"])
    assert stages == [0, 0, 1, 1, 2, 2, 2, 2]
    assert now.policy["norms"].min() > 0
    assert 0 < now.policy["accuracy"] < 1
    tree = pipeline.run(tmp_path / "run")
    assert len({*zip(tree["history"]["window_start"].values, tree["history"]["window_stop"].values, strict=True)}) > 3


def test_what_cannot_be_is_refused():
    with pytest.raises(CombinationError, match="window = 9 is longer than horizon = 8"):
        dk.AdaptiveTruncation(8, 9)
    with pytest.raises(CombinationError, match="spread = 4 would leave windows of 0 steps"):
        dk.AdaptiveTruncation(8, 4, spread=4)

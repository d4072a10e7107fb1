"""Truncation policies: windows that fit, and are uniform where they are random."""

from collections import Counter

import pytest
from hypothesis import given, strategies as st
from scipy.stats import chisquare

import distilkit as dk
from distilkit.errors import CombinationError, FieldError

POLICIES = {
    "full": lambda t, m: dk.FullUnroll(t),
    "tail": dk.TailTruncation,
    "random horizon": dk.RandomHorizon,
    "random truncation": dk.RandomTruncation,
    "fixed start": lambda t, m: dk.FixedStart(t - m, m),
    "stratified": lambda t, m: dk.RandomTruncation(t, m, stratified=True),
    "growing": lambda t, m: dk.Growing(dk.RandomTruncation(t, m), first=0.3, steps=1000),
    "adaptive": lambda t, m: dk.AdaptiveTruncation(t, m, spread=m // 2),
}


@pytest.mark.parametrize("name", POLICIES)
@given(horizon=st.integers(1, 50), part=st.integers(0, 49), seed=st.integers(0, 2**40), step=st.integers(0, 10**6))
def test_windows_fit_and_repeat(name, horizon, part, seed, step):
    window = 1 + part % horizon
    policy = POLICIES[name](horizon, window)
    stream = dk.Stream(seed).fold("window")
    chosen, state = policy.plan(policy.init(), step, stream)
    assert 0 <= chosen.start < chosen.stop <= horizon
    again, _ = policy.plan(policy.init(), step, stream)
    assert again == chosen
    assert policy.observe(state, None) is state
    if name in ("tail", "random truncation", "stratified", "fixed start"):
        assert chosen.length == window


@pytest.mark.parametrize("seed", [0, 1])
def test_random_truncation_starts_are_uniform(seed):
    """Chi-square over the 21 places of a window of 20 in a horizon of 40; p below 1e-4 would be one failure in 10,000 seeds."""
    policy = dk.RandomTruncation(40, 20)
    starts = Counter(policy.plan((), k, dk.Stream(seed).fold("window"))[0].start for k in range(4200))
    assert set(starts) == set(range(21))
    assert chisquare(list(starts.values())).pvalue > 1e-4


def test_chi_square_sees_a_bias():
    """The control: a policy that never takes the last place fails the same test."""
    policy = dk.RandomTruncation(40, 20)
    starts = Counter(min(policy.plan((), k, dk.Stream(0).fold("window"))[0].start, 19) for k in range(4200))
    assert chisquare([starts[i] for i in range(21)]).pvalue < 1e-4


def test_random_horizon_is_uniform():
    policy = dk.RandomHorizon(40, 20)
    stops = Counter(policy.plan((), k, dk.Stream(2).fold("window"))[0].stop for k in range(4200))
    assert set(stops) == set(range(20, 41))
    assert chisquare(list(stops.values())).pvalue > 1e-4


def test_redraw_every_shares_a_window():
    policy = dk.RandomTruncation(1000, 10, redraw_every=10)
    windows = [policy.plan((), k, dk.Stream(0))[0] for k in range(100)]
    assert all(len(set(windows[i : i + 10])) == 1 for i in range(0, 100, 10))
    assert len(set(windows)) == 10


def test_window_above_horizon_is_refused():
    with pytest.raises(CombinationError, match=r"window = 50 .* horizon = 40"):
        dk.RandomTruncation(horizon=40, window=50)
    with pytest.raises(FieldError, match="horizon"):
        dk.FullUnroll(horizon=0)


def test_strata_leave_no_place_out():
    """21 windows in a row are at the 21 places, in another order each time; a control without strata repeats some."""
    for stratified in (True, False):
        policy = dk.RandomTruncation(40, 20, stratified=stratified)
        starts = [policy.plan((), k, dk.Stream(0))[0].start for k in range(63)]
        rows = [starts[i : i + 21] for i in (0, 21, 42)]
        assert all(sorted(row) == list(range(21)) for row in rows) == stratified
        assert rows[0] != rows[1]


def test_growing_scales_windows_and_keeps_step_0_out():
    policy = dk.Growing(dk.FixedStart(start=1, window=39), first=0.1, steps=10)
    windows = [policy.plan((), k, dk.Stream(0))[0] for k in range(12)]
    assert [window.start for window in windows] == [1] * 12
    assert [window.stop for window in windows] == [4, 8, 11, 15, 18, 22, 26, 29, 33, 36, 40, 40]
    full = dk.Growing(dk.RandomTruncation(40, 20), first=0.5, steps=10)
    for k in range(10, 30):
        assert full.plan((), k, dk.Stream(0)) == full.policy.plan((), k, dk.Stream(0))
    with pytest.raises(CombinationError, match="AdaptiveTruncation chooses by trial runs"):
        dk.Growing(dk.AdaptiveTruncation(4, 2))

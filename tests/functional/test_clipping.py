"""EMAClip: both rules against their formulas written out in plain numbers, and no way to stop learning for good."""

import pytest
import torch
from hypothesis import given, strategies as st

import distilkit as dk

NORMS = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=30)


def scales(clip, norms):
    ema, found = clip.init(), []
    for norm in norms:
        clipped, ema, scale = clip.apply(torch.tensor([0.6 * norm, 0.8 * norm], dtype=torch.float64), ema)
        assert clipped.norm().item() == pytest.approx(scale.item() * norm)
        found.append(scale.item())
    return found


@given(NORMS)
def test_the_papers_rule(norms):
    """ema = 0.9 ema + 0.1 |g|, then clip to 2 ema."""
    ema, wanted = norms[0], []
    for norm in norms:
        ema = 0.9 * ema + 0.1 * norm
        wanted.append(min(1.0, 2 * ema / norm))
    assert scales(dk.EMAClip(average="raw"), norms) == pytest.approx(wanted)


@given(NORMS)
def test_our_rule(norms):
    """Clip to 2 ema; then ema = 0.9 ema + 0.1 min(|g|, 10 ema)."""
    ema, wanted = norms[0], []
    for norm in norms:
        wanted.append(min(1.0, 2 * ema / norm))
        ema = 0.9 * ema + 0.1 * min(norm, 10 * ema)
    assert scales(dk.EMAClip(), norms) == pytest.approx(wanted)


@pytest.mark.parametrize("average", ["raw", "clipped"])
@pytest.mark.parametrize("first", [0.0, 1e-6])
def test_a_small_start_does_not_stop_learning(average, first):
    """Thirty steps at norm 1 after a first norm of nothing: the clip has let go."""
    assert scales(dk.EMAClip(average=average), [first] + [1.0] * 30)[-1] == 1.0


def test_one_spike_hardly_moves_our_average():
    """After a spike of 400 averages, the next usual norms pass as they are, and a second spike is held as the first was."""
    assert scales(dk.EMAClip(), [1.0] * 20 + [400.0, 1.0, 1.0])[-3:] == pytest.approx([2 / 400, 1.0, 1.0])
    paper = scales(dk.EMAClip(average="raw"), [1.0] * 20 + [400.0])[-1]
    assert 400 * paper > 80  # what the paper's rule lets through

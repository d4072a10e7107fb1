"""Meta-gradients through CUDA graphs on a fake card (tests/programs/fake_card.py): whole unrolls, against autograd over the window."""

import pytest
import torch

import distilkit as dk
from distilkit.programs import capture
from distilkit.programs.programs import Programs
from distilkit.unroll import execution
from tests.pipelines import BARE, tiny
from tests.programs.fake_card import Card
from tests.unroll.problems import learner, problem, relative

UNROLLERS = {
    "replay": dk.Unroller(),
    "forward over reverse": dk.Unroller(dk.ReplayAdjoint(hessian_product="forward-over-reverse")),
    "every second state": dk.Unroller(dk.ReplayAdjoint(checkpoint_every=2)),
    "keep": dk.Unroller(dk.ReplayAdjoint(keep_last=2)),
    "keep, every second state": dk.Unroller(dk.ReplayAdjoint(keep_last=2, checkpoint_every=2)),
    "micro-batches": dk.Unroller(micro_batches=4),
    "two networks": dk.Unroller(networks_per_step=2, side_by_side="off"),
    "two networks side by side": dk.Unroller(networks_per_step=2, side_by_side="on"),
}
OPTIMIZERS = {"momentum": dk.SGD(lr=0.05, momentum=0.9), "Adam": dk.Adam(lr=0.01)}
WINDOWS = (dk.Window(0, 4), dk.Window(2, 7), dk.Window(5, 8))


@pytest.fixture
def captured_as(monkeypatch):
    """A card; every unroll that is recorded is captured there, in one of two ways. A compiler changes nothing here."""

    def make(kind):
        monkeypatch.setattr(execution, "Programs", lambda asked, *said: Programs(kind if asked == "trace" else asked, *said))
        monkeypatch.setattr(torch, "compile", lambda graph, **_: lambda *flat: graph(*flat))
        return Card().insert(monkeypatch)

    return make


@pytest.fixture
def card(captured_as):
    return captured_as("cudagraph")


def meta_gradients(unroller, optimizer, ends=1, micro_batch=None):
    """Those of all windows, one after the other with the same graphs, each beside its truth."""
    inner = learner(optimizer, depth=2, batch_per_class=2, learn_lr=True, augment=dk.FlipRotate())
    leaves, batch, classes = problem(lr=optimizer.lr)
    unroller = dk.evolve(unroller, compile="trace")
    truth = dk.Unroller(dk.AutogradAdjoint(), compile="eager", networks_per_step=unroller.networks_per_step, side_by_side="off")
    for window in (*WINDOWS, WINDOWS[0]):
        arguments = (leaves, window, batch, dk.Stream(5), classes)
        in_parts = dk.evolve(inner, micro_batch=micro_batch)
        yield unroller.meta_gradient(in_parts, *arguments, ends=ends), truth.meta_gradient(inner, *arguments, ends=ends)


def agrees(found, truth, least=1e-12):
    return all(relative(a, b) < least for a, b in zip(found, truth, strict=True))


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("unroller", UNROLLERS.values(), ids=UNROLLERS)
def test_graphs_that_share_memory_give_the_meta_gradient(card, unroller, optimizer):
    for found, truth in meta_gradients(unroller, optimizer, ends=2):
        assert agrees(found, truth)
    assert card.captures >= 3  # a step, the end and the way back
    assert card.replays >= 50
    assert len({id(stream) for stream in card.used}) == 1  # torch shares memory among graphs of one stream
    assert len(card.pools) == 1


def test_parts_of_a_step_are_graphs_too(card):
    for found, truth in meta_gradients(UNROLLERS["replay"], OPTIMIZERS["Adam"], micro_batch=2):
        assert agrees(found, truth)
    assert card.captures == 5  # a gradient, an update, its pullback, a product, the end


def one_not_copied(monkeypatch):
    """An input that stays what it was when the graph was captured."""
    fill = capture.Buffers.fill
    monkeypatch.setattr(capture.Buffers, "fill", lambda self, leaves: fill(self, [*leaves[:-1], self.held[-1]]))


def test_what_is_compiled_and_captured_gives_it_too(captured_as):
    card = captured_as("inductor-cudagraph")
    for found, truth in meta_gradients(UNROLLERS["keep"], OPTIMIZERS["Adam"]):
        assert agrees(found, truth)
    assert card.replays >= 50


def stale(monkeypatch):
    """Inputs that are copied in once."""
    fill, seen = capture.Buffers.fill, set()

    def once(self, leaves):
        if id(self) not in seen:
            seen.add(id(self))
            fill(self, leaves)

    monkeypatch.setattr(capture.Buffers, "fill", once)


def not_cloned(monkeypatch):
    """Results that stay in the memory of the graph, which another replay writes over."""
    made = capture.captured

    def without_copies(*arguments, **options):
        replay = made(*arguments, **options)

        def run(*leaves):
            with monkeypatch.context() as patched:
                patched.setattr(torch.Tensor, "clone", lambda x, **_: x)
                return replay(*leaves)

        return run

    monkeypatch.setattr("distilkit.programs.programs.captured", without_copies)


def test_inputs_that_stay_are_caught_when_programs_are_checked(card, monkeypatch, caplog):
    """What a graph gives is compared with the list, with other values too: it falls back, and the gradient is right."""
    stale(monkeypatch)
    for found, truth in meta_gradients(UNROLLERS["replay"], OPTIMIZERS["Adam"]):
        assert agrees(found, truth)
    assert "differs by more than roundings can" in caplog.text


@pytest.mark.parametrize("fault", [not_cloned, one_not_copied])
def test_what_a_comparison_of_single_calls_does_not_see_is_seen_here(card, monkeypatch, fault):
    """The last input of a step is a whole number, of which there is no other value a rounding away."""
    fault(monkeypatch)
    assert not all(agrees(found, truth) for found, truth in meta_gradients(UNROLLERS["replay"], OPTIMIZERS["Adam"]))


def test_another_stage_has_graphs_and_memory_of_its_own(card):
    """Two stages of two outer steps: the graphs of the first are dropped with their pool, and the set is that of recorded steps."""
    boosted = tiny(
        learner=dk.Learner(dk.MLP(hidden=(4,)), dk.Adam(lr=0.01)),
        boost=dk.BoostSchedule(blocks=(1, 1), steps=(2, 2)),
        truncation=dk.FixedStart(1, 2),
        unroller=dk.Unroller(compile="trace"),
        evaluation=BARE,
        device="cpu",
    )
    found = []
    for pipeline in (boosted, dk.evolve(boosted, unroller=dk.Unroller(compile="eager"))):
        state = pipeline.init()
        for _ in range(4):
            state, _ = pipeline.step(state)
        found.append(state.leaves.images)
    assert relative(*found) < 1e-4
    assert len(card.pools) == 2
    assert [len(graphs) for graphs in card.pools.values()] == [3, 3]  # a step, the end and the way back
    assert len(boosted.programs._made) == 1

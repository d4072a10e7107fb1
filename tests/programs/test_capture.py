"""CUDA graphs without a card: what none can hold falls back before, a capture that fails half-way is an error, constants move once."""

import weakref

import pytest
import torch

import distilkit as dk
from distilkit.programs.agreement import elsewhere
from distilkit.programs.capture import Buffers, CaptureError, Scratch, captured, why_not
from distilkit.programs.programs import MOST_SHAPES, Programs, record
from distilkit.unroll.execution import MOST_CAPTURED, Execution, ProgramCache
from tests.programs.fake_card import Card

ROWS = torch.arange(6.0).reshape(2, 3)
HELD = {
    "arithmetic": (lambda x: x.sin() * 2 + x.sum(), (ROWS,)),
    "rows by number": (lambda x, i: x[i], (ROWS, torch.tensor([1, 0]))),
    "a number on the CPU": (lambda x: x * torch.tensor(2.0), (ROWS,)),
    "a convolution": (lambda x, w: torch.conv2d(x, w, padding=1), (torch.ones(2, 3, 4, 4), torch.ones(5, 3, 3, 3))),
}
WAITING = {
    "rows by truth": (lambda x: x[x[:, 0] > 1], (ROWS,), "index makes the host wait"),
    "places": (lambda x: x.nonzero(), (ROWS,), "nonzero makes the host wait"),
    "chosen entries": (lambda x: torch.masked_select(x, x > 1), (ROWS,), "masked_select makes the host wait"),
    "a permutation": (lambda x: x[torch.randperm(2)], (ROWS,), "randperm makes the host wait"),
}


@pytest.mark.parametrize("name", HELD)
def test_what_a_graph_holds(name):
    function, arguments = HELD[name]
    assert why_not(record(function, arguments)) is None


@pytest.mark.parametrize("name", WAITING)
def test_what_makes_the_host_wait(name):
    function, arguments, said = WAITING[name]
    assert why_not(record(function, arguments)) == said


def test_a_constant_moves_once():
    """The inputs are on another device than a buffer of the network: "meta" stands for a GPU."""
    buffer = torch.arange(3.0)

    def function(x):
        return x * buffer.to(x.device) + buffer.to(x.device, torch.float64).sum()

    graph = record(function, (ROWS.to("meta"),))
    constants = [getattr(graph, node.target) for node in graph.graph.nodes if node.op == "get_attr"]
    assert {x.device.type for x in constants} == {"meta"}
    assert why_not(graph) is None
    copies = [node for node in graph.graph.nodes if node.target is torch.ops.aten._to_copy.default]
    assert [node.kwargs["dtype"] for node in copies] == [torch.float64]  # a change of dtype stays
    here = record(function, (ROWS,))
    assert torch.equal(here(ROWS)[0], function(ROWS))


def test_a_tensor_that_stays_elsewhere_is_seen():
    graph = record(lambda x: x * 2, (ROWS,))
    product = next(node for node in graph.graph.nodes if node.op == "call_function")
    product.meta["val"] = torch.empty(2, 3, device="meta")
    assert why_not(graph) == "mul meets a tensor on another device (meta)"


@pytest.fixture
def card(monkeypatch):
    return Card().insert(monkeypatch)


@pytest.fixture
def said():
    return []


def test_what_cannot_be_captured_falls_back_before_it_is_tried(card, said):
    run = Programs("cudagraph", warn=said.append)("chosen", lambda x: torch.where(x > 1, x, 0)[x[:, 0] > -1])
    assert torch.equal(run(ROWS), torch.where(ROWS > 1, ROWS, 0))
    assert said == ["chosen runs as recorded: a CUDA graph cannot hold it: index makes the host wait"]
    assert card.captures == 0


def test_a_capture_that_fails_half_way_is_an_error(card, said):
    card.breaks = RuntimeError("operation not permitted when stream is capturing")
    with pytest.raises(CaptureError, match="not permitted when stream is capturing"):
        Programs("cudagraph", warn=said.append)("twice", lambda x: 2 * x)(ROWS)
    assert card.captures == 1
    assert said == []


def test_an_error_before_the_capture_falls_back(card, said, monkeypatch):
    def fails(device):
        raise RuntimeError("no stream")

    monkeypatch.setattr(torch.cuda, "Stream", fails)
    assert torch.equal(Programs("cudagraph", warn=said.append)("twice", lambda x: 2 * x)(ROWS), 2 * ROWS)
    assert said == ["twice runs as recorded: RuntimeError: no stream"]
    assert card.captures == 0


def test_results_are_copies(card):
    replay = captured(lambda x: [2 * x], [ROWS], Scratch())
    first = replay(ROWS)[0]
    first.zero_()
    assert torch.equal(replay(ROWS)[0], 2 * ROWS)


def test_what_has_not_changed_is_not_copied_again():
    """By the tensor and its version: the same tensor written in place, or another one, is another input."""
    steady, moving = torch.arange(3.0), torch.zeros(3)
    buffers = Buffers([steady, moving, 5])
    assert buffers.fill([steady, moving, 5]) == 2
    assert buffers.fill([steady, moving, 5]) == 0
    moving += 1
    assert buffers.fill([steady, moving, 5]) == 1
    assert torch.equal(buffers.held[1], torch.ones(3))
    assert buffers.fill([steady.clone(), moving, 5]) == 1
    steady[0] = 7  # of which the buffer has the clone from before
    assert buffers.fill([steady, moving, 5]) == 1
    assert torch.equal(buffers.held[0], torch.tensor([7.0, 1.0, 2.0]))
    assert buffers.held[0] is not steady


def test_a_tensor_that_is_gone_is_not_taken_for_a_new_one_in_its_place():
    buffers = Buffers([torch.zeros(2)])
    for value in range(20):  # CPython gives the address of the last one again
        buffers.fill([torch.full((2,), float(value))])
        assert buffers.held[0][0] == value


def test_what_is_compiled_is_captured(card, said, monkeypatch):
    """And where the compiler fails, or changes results, the recorded list is."""
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda graph, **_: compiled.append(graph) or (lambda *flat: graph(*flat)))
    run = Programs("inductor-cudagraph", warn=said.append)("twice", lambda x: 2 * x)
    assert [float(run(torch.tensor(x))) for x in (1.0, 3.0)] == [2.0, 6.0]
    assert (len(compiled), card.captures, said) == (1, 1, [])

    monkeypatch.setattr(torch, "compile", lambda graph, **_: lambda *flat: [1.5 * x for x in graph(*flat)])
    run = Programs("inductor-cudagraph", warn=said.append)("twice", lambda x: 2 * x)
    assert [float(run(torch.tensor(x))) for x in (1.0, 3.0)] == [2.0, 6.0]
    assert said == ["twice runs as recorded, captured: what was compiled of it differs by more than roundings can"]

    def fails(graph, **_):
        raise RuntimeError("no Triton")

    monkeypatch.setattr(torch, "compile", fails)
    programs = Programs("inductor-cudagraph", warn=said.append)
    run, before = programs("thrice", lambda x: 3 * x), card.replays
    assert [float(run(torch.tensor(x))) for x in (1.0, 3.0)] == [3.0, 9.0]
    assert programs.fallbacks == {"thrice": "as recorded, captured (RuntimeError: no Triton)"}
    assert card.replays == before + 4  # two to check it, two calls


def test_a_compiled_list_that_fails_half_way_says_what_to_do(card, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda graph, **_: lambda *flat: graph(*flat))
    card.breaks = RuntimeError("capturing")
    with pytest.raises(CaptureError, match="Start again without it") as told:
        Programs("inductor-cudagraph")("twice", lambda x: 2 * x)(ROWS)
    assert 'compile = "cudagraph"' in told.value.fix


def test_what_no_graph_can_hold_is_compiled_all_the_same(card, said, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda graph, **_: compiled.append(graph) or (lambda *flat: graph(*flat)))
    run = Programs("inductor-cudagraph", warn=said.append)("chosen", lambda x: torch.where(x > 1, x, 0)[x[:, 0] > -1])
    assert torch.equal(run(ROWS), torch.where(ROWS > 1, ROWS, 0))
    assert said == ["chosen runs compiled: a CUDA graph cannot hold it: index makes the host wait"]
    assert (len(compiled), card.captures) == (1, 0)


def test_graphs_of_few_shapes_are_kept(card):
    """Those that were called last; the others are gone, and captured anew where they are called again."""
    programs = Programs("cudagraph")
    run, gone = programs("twice", lambda x: 2 * x), []
    for n in range(2, 7):
        assert torch.equal(run(torch.ones(n)), torch.full((n,), 2.0))
        gone.append(weakref.ref([*programs.built.values()][-1]))
    assert [one() is None for one in gone] == [True, True, False, False, False]
    for n in (4, 5, 6, 5, 4):
        run(torch.ones(n))
    assert card.captures == 5
    run(torch.ones(2))  # in the place of that for six, which was not called for longest
    assert [len(programs.built), gone[4]() is None, card.captures] == [MOST_SHAPES, True, 6]
    recorded = Programs("trace")
    for n in range(2, 9):
        recorded("twice", lambda x: 2 * x)(torch.ones(n))
    assert len(recorded.built) == 7


def test_graphs_of_few_learners_are_kept(card):
    cache, learners = ProgramCache(), [dk.Learner(dk.MLP(hidden=(k,)), dk.SGD(lr=0.1)) for k in range(1, 8)]
    graphs, recorded = (Execution(kind, False, False, "float32", "") for kind in ("cudagraph", "trace"))
    first = weakref.ref(cache.of(graphs, learners[0]))
    kept = [cache.of(recorded, learner) for learner in learners]
    for learner in learners[: MOST_CAPTURED - 1]:
        cache.of(graphs, learner)
    assert cache.of(graphs, learners[0]) is first()  # called again, so that another one goes
    cache.of(graphs, learners[5])
    cache.of(graphs, learners[6])
    assert first() is not None
    for learner in learners[1:]:
        cache.of(graphs, learner)
    assert first() is None
    assert [cache.of(recorded, learner) for learner in learners] == kept
    cache.of(graphs, learners[6]).fallbacks["step"] = "as recorded (planted)"
    cache.drop_captured()
    assert cache.fallbacks(graphs, learners[6]) == cache.of(graphs, learners[6]).fallbacks == {"step": "as recorded (planted)"}
    cache.drop_captured()
    assert [one.execution for one in cache._made.values()] == ["trace"] * 7


def test_other_inputs_are_of_the_same_kind():
    given = [
        torch.rand(50),
        torch.arange(6).reshape(3, 2),
        torch.tensor([True, False]),
        torch.tensor(7),
        torch.tensor(2.0),
        5,
        torch.zeros(0),
    ]
    found = elsewhere(given)
    assert 0 <= found[0].min() < found[0].max() < 1
    assert 1e-3 < (found[0] - given[0]).norm() / given[0].norm() < 0.1
    assert found[1].tolist() == [[4, 5], [2, 3], [0, 1]]
    assert found[2].tolist() == [False, True]
    assert (int(found[3]), found[5], found[6].shape) == (7, 5, (0,))
    assert found[4] != given[4]

"""A program that cannot be recorded, compiled or run takes no run down: it falls back, says so once, and the run stores it."""

import json
import logging
import warnings

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import distilkit as dk
from distilkit.errors import GradientError
from distilkit.programs import programs as module, rewrites
from distilkit.programs.agreement import agree, distance, faithful, nudged
from distilkit.programs.programs import Programs, record
from distilkit.unroll.execution import choose
from distilkit.unroll.precision import say_if_slow
from distilkit.unroll.rates import convolution_seconds


@torch.library.custom_op("distilkit_tests::permuted", mutates_args=())
def permuted(x: torch.Tensor) -> torch.Tensor:
    """Images in channels last, where the fake kernel below promises contiguous ones: as torch's group norm did up to 2.14."""
    return x.clone(memory_format=torch.channels_last)


@permuted.register_fake
def _(x):
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def flattened(x):
    return permuted(x).view(len(x), -1).square()


IMAGES = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def raises(*_, **__):
    raise RuntimeError("planted")


@pytest.fixture
def heard():
    """What programs said, and a way to make them."""
    said = []

    def make(execution):
        return Programs(execution, warn=said.append)

    return said, make


def test_a_recorded_view_does_not_depend_on_promised_strides():
    graph = record(lambda x: permuted(x).flatten(1).square(), (IMAGES,))
    assert torch.equal(graph(IMAGES)[0], IMAGES.flatten(1).square())


def test_a_list_with_mutations_keeps_its_views():
    def function(x):
        y = x.clone()
        y.view(-1).add_(1)
        return y

    with torch.no_grad():
        graph = torch.fx.experimental.proxy_tensor.make_fx(function, tracing_mode="fake")(IMAGES)
    rewrites.any_strides(graph.graph)
    graph.recompile()
    assert torch.equal(graph(IMAGES), IMAGES + 1)
    assert any(node.target is torch.ops.aten.view.default for node in graph.graph.nodes)


def test_lying_strides_fall_back_to_plain_layout(heard, monkeypatch):
    """Without the rewriting of views, the recorded program fails; the way in plain layout is recorded in its place."""
    monkeypatch.setattr(rewrites, "any_strides", lambda _: None)
    said, make = heard
    programs = make("trace")
    run = programs("flat", lambda x: permuted(x).reshape(len(x), -1).square(), lambda x: x.flatten(1).square())
    for _ in range(2):
        assert torch.equal(run(IMAGES), IMAGES.flatten(1).square())
    run(IMAGES.repeat(2, 1, 1, 1))  # other shapes fall back in the same way, and nobody is told again
    assert len(said) == 1
    assert "flat runs recorded in plain form" in said[0]
    assert programs.fallbacks["flat"].startswith("recorded in plain form (RuntimeError")


def test_the_last_resort_is_the_function(heard, monkeypatch):
    monkeypatch.setattr(module, "record", raises)
    said, make = heard
    programs = make("trace")
    assert torch.equal(programs("twice", lambda x: 2 * x)(IMAGES), 2 * IMAGES)
    assert said == ["twice runs eagerly: RuntimeError: planted"]
    assert programs.fallbacks == {"twice": "eagerly (RuntimeError: planted)"}


def test_what_is_not_recorded_falls_back_too(heard):
    said, make = heard
    programs = make("eager")
    run = programs("twice", raises, lambda x: 2 * x)
    assert torch.equal(run(IMAGES), 2 * IMAGES)
    assert said == ["twice runs eagerly, in plain form: RuntimeError: planted"]


def test_a_compiler_that_raises_leaves_the_recorded_program(heard, monkeypatch):
    monkeypatch.setattr(torch, "compile", raises)
    said, make = heard
    programs = make("inductor")
    assert torch.equal(programs("twice", lambda x: 2 * x)(IMAGES), 2 * IMAGES)
    assert said == ["twice runs as recorded: RuntimeError: planted"]


def test_a_compiler_that_is_wrong_leaves_the_recorded_program(heard, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda graph, **_: lambda *flat: [1.1 * x for x in graph(*flat)])
    said, make = heard
    assert torch.equal(make("inductor")("twice", lambda x: 2 * x)(IMAGES), 2 * IMAGES)
    assert "differs by more than roundings can" in said[0]


def test_a_compiler_that_rounds_less_is_not_wrong(heard, monkeypatch):
    """It joins operations in bfloat16 and rounds once. A rounding of float32 moves this result by nothing at all."""

    def many(x, kind=torch.bfloat16):
        x = x.to(kind)
        for k in range(1, 6):
            x = x * (1 + 1 / k) + 0.25
        return x.float()

    said, make = heard
    monkeypatch.setattr(torch, "compile", lambda *_, **__: lambda x: [many(x, torch.float32).bfloat16().float()])
    make("inductor")("many", many)(IMAGES)
    assert said == []
    monkeypatch.setattr(torch, "compile", lambda *_, **__: lambda x: [1.1 * many(x)])
    make("inductor")("many", many)(IMAGES)
    assert "differs by more than roundings can" in said[0]


def test_halves_that_cannot_be_cut_fall_back(heard, monkeypatch):
    monkeypatch.setattr(module, "partition", raises)
    said, make = heard
    run = make("trace").split("step", lambda x: (x,), lambda x: (2 * x, lambda late: late * x))
    result, rest = run(IMAGES)
    assert torch.equal(result, 2 * IMAGES)
    assert torch.equal(rest(IMAGES), IMAGES * IMAGES)
    assert said == ["step runs eagerly: RuntimeError: planted"]


def test_a_wrong_recorded_program_is_an_error(heard, monkeypatch):
    def wrong(function, arguments, **_):
        return record(lambda x: 1.01 * function(x), arguments)

    monkeypatch.setattr(module, "record", wrong)
    with pytest.raises(GradientError, match="does not give what its function gives"):
        heard[1]("trace")("twice", lambda x: 2 * x, lambda x: x + x)(IMAGES)


def test_a_recorded_program_that_is_wrong_in_a_few_entries_is_an_error(heard, monkeypatch):
    """Though the function is so steep that roundings of its input show."""
    steep = torch.rand(1000, generator=torch.Generator().manual_seed(0)) + 1

    def wrong(function, arguments, **_):
        return record(lambda x: torch.where(torch.arange(1000) % 10 == 0, 0, function(x)), arguments)

    monkeypatch.setattr(module, "record", wrong)
    with pytest.raises(GradientError, match="does not give what its function gives"):
        heard[1]("trace")("steep", lambda x: (1e4 * x).sin())(steep)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16], ids=["any inputs", "inputs that are not rounded"])
def test_a_product_that_is_never_the_same_twice_is_not_impure(kind, heard):
    """A weight gradient in bfloat16 whose sums are taken in another order each time: some entries are off by a rounding."""
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(*shape, generator=generator).to(kind).float() for shape in ((200, 50), (50, 100)))
    off = [(1 + 2.0**-7 * (torch.rand(200, 100, generator=generator) < 0.03)).bfloat16() for _ in range(5)]
    calls = []

    def uneven(x, w):
        calls.append(1)
        return ((x.bfloat16() @ w.bfloat16()) * off[len(calls)]).float()

    run = heard[1]("trace")("uneven", uneven)
    assert torch.equal(run(x, w), run(x, w))
    calls.clear()
    uneven(x, w)
    recorded, truth = ((x.bfloat16() @ w.bfloat16()) * off[1]).float(), uneven(x, w)
    assert not agree([truth], [recorded], roundings=2000)
    as_in_float32 = faithful(lambda x, w: [((x.bfloat16() @ w.bfloat16()) * off[1]).float()], [x, w], [truth], lambda: [truth])
    assert not as_in_float32  # which was the yardstick


def test_a_function_that_is_not_pure_is_told_in_bfloat16_too(heard):
    calls = []

    def drifting(x):
        calls.append(1)
        return (x.bfloat16() * (1 + len(calls) / 50)).float()

    with pytest.raises(GradientError, match="does not give what its function gives"):
        heard[1]("trace")("drifting", drifting)(IMAGES)


def test_two_runs_of_the_function_are_the_last_yardstick():
    """Where they differ by what roundings can do, the list may differ by as much; one that is alone in differing is wrong."""
    x = torch.rand(1000, generator=torch.Generator().manual_seed(0)) + 1

    def steep(x):
        return [(1e3 * x).sin()]

    truth = [1.03 * steep(x)[0]]
    moved = distance(steep(x)[0], steep(nudged([x])[0])[0]) / float(steep(x)[0].norm())
    assert 0.001 < moved < 0.003  # ten times that is less than what is off
    assert faithful(steep, [x], truth, lambda: [1.02 * steep(x)[0]])
    assert not faithful(steep, [x], truth, lambda: truth)
    assert not faithful(steep, [x], truth, lambda: [2 * steep(x)[0]])  # it is not pure
    assert not faithful(steep, [x], [1.06 * steep(x)[0]], lambda: [1.05 * steep(x)[0]])


@pytest.mark.parametrize("where", ["record", "torch.compile"])
def test_a_gpu_that_has_failed_is_not_fallen_back_from(where, heard, monkeypatch):
    """Nothing that runs on it afterwards can be right, or can run at all."""

    def broken(*_, **__):
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(*((module, "record") if where == "record" else (torch, "compile")), broken)
    said, make = heard
    with pytest.raises(torch.AcceleratorError):
        make("inductor")("twice", lambda x: 2 * x)(IMAGES)
    assert said == []


def test_memory_that_runs_out_is_not_fallen_back_from(heard):
    def greedy(_):
        raise torch.OutOfMemoryError("planted")

    with pytest.raises(torch.OutOfMemoryError):
        heard[1]("trace")("greedy", greedy, lambda x: x)(IMAGES)


def group_norm_strides():
    """Those of a result of group norm in channels last."""
    x = torch.ones(4, 4, 8, 8).to(memory_format=torch.channels_last)
    return torch.nn.functional.group_norm(x, 4).stride()


def promised_strides():
    """What this torch's own account of group norm says they are."""
    with FakeTensorMode():
        return group_norm_strides()


@pytest.mark.parametrize(
    ("place", "compile", "expected"),
    [("distilkit.programs.rewrites.any_strides", "trace", None), ("torch.compile", "inductor", "as recorded (RuntimeError: planted)")],
)
def test_a_run_goes_on_and_stores_what_was_used(place, compile, expected, tmp_path, monkeypatch, caplog):
    """A ConvNet in channels last, through a run: with a compiler that raises, and with group norm's lie where torch still tells it."""
    monkeypatch.setattr(place, raises if compile == "inductor" else lambda _: None)
    stream = dk.Stream(0)
    data = dk.Arrays(
        train_images=stream.fold("train").normal(40, 3, 8, 8),
        train_labels=torch.arange(40) % 2,
        test_images=stream.fold("test").normal(10, 3, 8, 8),
        test_labels=torch.arange(10) % 2,
        preprocessing=dk.Identity(),
    )
    distiller = dk.Distiller(
        data,
        dk.Learner(dk.ConvNet(width=4, depth=2)),
        dk.RandomTruncation(horizon=3, window=2),
        dk.Unroller(compile=compile, channels_last="on"),
        outer=dk.Outer(steps=1, batch_size=8),
        evaluation=dk.Evaluation(seeds=1, steps=(2,), every=0, baselines=()),
        device="cpu",
    )
    with caplog.at_level(logging.WARNING, logger="distilkit"), warnings.catch_warnings():
        tree = distiller.run(tmp_path / "run")
    fallbacks = json.loads(tree["history"].attrs["execution_fallbacks"])
    said = [r.getMessage() for r in caplog.records]
    assert set(fallbacks) == {name for name in fallbacks if any(line.startswith(f"{name} runs") for line in said)}
    assert len(said) == len(set(said))
    if expected is not None:
        assert set(fallbacks.values()) == {expected}
        assert {"step in full", "end in full"} <= set(fallbacks)
    else:
        assert all(how.startswith("recorded in plain form") for how in fallbacks.values())
        assert bool(fallbacks) == (group_norm_strides() != promised_strides())


@pytest.mark.parametrize(("seconds", "expected"), [((1.0, 0.4), "bfloat16"), ((1.0, 0.9), "float32"), ((1.0, 8.0), "float32")])
def test_auto_precision_is_the_faster_one(seconds, expected, monkeypatch):
    monkeypatch.setattr("distilkit.unroll.precision.convolution_seconds", lambda dtype, *_: seconds[dtype is torch.bfloat16])
    choose.cache_clear()
    learner = dk.Learner(dk.ConvNet(width=8)).bind((3, 8, 8), 2)
    found = dk.Unroller(precision="auto", compile="inductor").execution(learner, (4, 3, 8, 8), torch.device("cpu"))
    recorded = dk.Unroller(precision="auto", compile="trace").execution(learner, (4, 3, 8, 8), torch.device("cpu"))
    choose.cache_clear()
    assert found.precision == expected
    assert f"{seconds[1]:.2f} times as long" in str(found)
    assert recorded.precision == "float32"


@pytest.mark.parametrize(("seconds", "said"), [((1.0, 0.4), False), ((1.0, 8.0), True)])
@pytest.mark.parametrize("kind", ["inductor", "trace", "eager"])
def test_slow_bfloat16_that_was_asked_for_is_told_once(seconds, said, kind, monkeypatch, caplog):
    monkeypatch.setattr("distilkit.unroll.precision.convolution_seconds", lambda dtype, *_: seconds[dtype is torch.bfloat16])
    learner, cpu = dk.Learner(dk.ConvNet(width=8)).bind((3, 8, 8), 2), torch.device("cpu")
    for cached in (choose, say_if_slow):
        cached.cache_clear()
    for images in (4, 6):
        found = dk.Unroller(precision="bfloat16", compile=kind).execution(learner, (images, 3, 8, 8), cpu)
        assert found.precision == "bfloat16"
    dk.Unroller(precision="bfloat16", compile=kind).execution(dk.Learner(dk.MLP()).bind((8,), 2), (4, 8), cpu)  # has no convolution
    for cached in (choose, say_if_slow):
        cached.cache_clear()
    told = [one.getMessage() for one in caplog.records if "slow on this processor" in one.getMessage()]
    assert len(told) == said
    assert all("8.00 times as long" in one for one in told)


def test_the_probe_measures_both_precisions():
    device = torch.device("cpu")
    assert all(0 < convolution_seconds(dtype, True, device) < 60 for dtype in (torch.float32, torch.bfloat16))

"""The precision that "auto" stands for: by a clock, and on a GPU by the cosine of the meta-gradient. No GPU: the clock is a stub."""

import logging
from contextlib import contextmanager

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

import distilkit as dk
from distilkit import process, ranks
from distilkit.unroll import precision
from distilkit.unroll.execution import choose
from distilkit.unroll.rates import convolution_seconds
from tests.pipelines import BARE

CUDA = torch.device("cuda")
PRODUCTS = ("aten::convolution", "aten::convolution_backward", "aten::mm", "aten::addmm", "aten::bmm")


def rounded(x):
    """A float32 tensor with ten bits behind the point, to the nearest, as TF32 takes the inputs of a product."""
    if not isinstance(x, torch.Tensor) or x.dtype != torch.float32:
        return x
    return ((x.contiguous().view(torch.int32) + 0x1000) & -0x2000).view(torch.float32)


class Tf32(TorchDispatchMode):
    """What TF32 does to products, on a CPU."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function._schema.name in PRODUCTS:
            args = tree_map(rounded, args)
        return function(*args, **kwargs or {})


@contextmanager
def products(name, device):
    if name != "tf32":
        yield
        return
    with Tf32():
        yield


def clock(monkeypatch, bfloat16, tf32):
    """A convolution takes a second in float32, and so many in the others."""
    times = {(torch.bfloat16, "float32"): bfloat16, (torch.float32, "tf32"): tf32, (torch.float32, "float32"): 1.0}
    monkeypatch.setattr(precision, "convolution_seconds", lambda dtype, last, device, products="float32": times[dtype, products])


def test_rounding_is_to_ten_bits():
    x = torch.tensor([1.0, 1 + 2.0**-10, 1 + 2.0**-11 + 2.0**-20, 1 + 2.0**-12, -3.0])
    assert rounded(x).tolist() == [1.0, 1 + 2.0**-10, 1 + 2.0**-10, 1.0, -3.0]


FASTER = {
    "both": (0.2, 0.5, ["bfloat16", "tf32"]),
    "TF32 alone": (1.3, 0.5, ["tf32"]),
    "bfloat16 alone": (0.3, 0.9, ["bfloat16"]),
    "none": (0.8, 0.9, []),
}


@pytest.mark.parametrize(("bfloat16", "tf32", "expected"), FASTER.values(), ids=FASTER)
def test_the_clock_of_a_gpu_tells_which_are_faster(bfloat16, tf32, expected, monkeypatch):
    clock(monkeypatch, bfloat16, tf32)
    found, said = precision.faster("inductor-cudagraph", False, CUDA)
    assert list(found) == expected
    assert f"in bfloat16 takes {bfloat16:.2f} times" in said
    assert f"in tf32 takes {tf32:.2f} times" in said
    assert precision.faster("eager", False, CUDA)[0] == {}
    assert "tf32" not in precision.faster("inductor", True, torch.device("cpu"))[1]


def at(degrees):
    angle = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([angle.cos(), angle.sin()])


def raises(error):
    def gradient():
        raise error

    return gradient


PICKED = {
    "the lowest": (lambda: at(5.0), lambda: at(0.0), "bfloat16"),
    "the next": (lambda: at(20.0), lambda: at(1.0), "tf32"),
    "none": (lambda: at(20.0), lambda: at(170.0), "float32"),
    "not finite": (lambda: at(0.0) * torch.nan, lambda: at(0.0), "tf32"),
    "zero": (lambda: 0 * at(0.0), lambda: at(0.0), "tf32"),
    "an operation that is not there": (raises(RuntimeError('"norm" not implemented for BFloat16')), lambda: at(0.0), "tf32"),
}


@pytest.mark.parametrize(("bfloat16", "tf32", "expected"), PICKED.values(), ids=PICKED)
def test_the_first_that_keeps_the_direction_is_picked(bfloat16, tf32, expected):
    gradients = {"float32": lambda: at(0.0), "bfloat16": bfloat16, "tf32": tf32}
    found, why = precision.pick({"bfloat16": "fast", "tf32": "fast too"}, lambda name: gradients[name]())
    assert found == expected
    assert why.count("cosine") == 1 + (expected != "bfloat16")


def test_memory_that_runs_out_is_not_taken_for_a_bad_precision():
    gradients = {"float32": lambda: at(0.0), "bfloat16": raises(torch.OutOfMemoryError("planted"))}
    with pytest.raises(torch.OutOfMemoryError):
        precision.pick({"bfloat16": "fast"}, lambda name: gradients[name]())


def test_nothing_is_computed_where_nothing_is_faster():
    assert precision.pick({}, raises(AssertionError))[0] == "float32"


def pipeline(**changes):
    """A ConvNet on images with structure, compiled as it says; nothing is compiled as long as no step is taken."""
    stream = dk.Stream(3)
    images = F.interpolate(stream.fold("images").normal(90, 1, 4, 4), size=8, mode="bilinear")
    labels = torch.arange(90) % 3
    data = dk.Arrays(
        train_images=images + F.interpolate(stream.fold("classes").normal(3, 1, 4, 4), size=8, mode="bilinear")[labels],
        train_labels=labels,
        test_images=images[:9],
        test_labels=labels[:9],
        preprocessing=dk.Identity(),
    )
    given = {"unroller": dk.Unroller(precision="auto", compile="inductor"), "images": dk.Images(start="real"), "device": "cpu"}
    return dk.Distiller(
        data,
        dk.Learner(dk.ConvNet(width=16, depth=1), dk.Adam(lr=1e-3)),
        dk.FixedStart(5, 20),
        outer=dk.Outer(steps=2, batch_size=30),
        evaluation=BARE,
        **(given | changes),
    )


@pytest.fixture
def compared(monkeypatch):
    """What is done on a GPU, on a CPU with products rounded as TF32 does; and all that is fast."""
    monkeypatch.setattr(precision, "COMPARED", ("cpu",))
    monkeypatch.setattr(precision, "LOWER", {"cpu": ("bfloat16", "tf32")})
    monkeypatch.setattr(process, "products", products)
    clock(monkeypatch, 0.2, 0.4)
    choose.cache_clear()
    yield
    choose.cache_clear()


def spoil(monkeypatch, *names):
    real = dk.Unroller.probed

    def probed(unroller, name, *given):
        found = real(unroller, name, *given)
        return found.flip(0) if name in names else found

    monkeypatch.setattr(dk.Unroller, "probed", probed)


@pytest.mark.parametrize(
    ("spoilt", "expected"), [((), "bfloat16"), (("bfloat16",), "tf32"), (("bfloat16", "tf32"), "float32")], ids=["none", "one", "both"]
)
def test_a_run_takes_the_lowest_that_keeps_its_meta_gradient(spoilt, expected, compared, monkeypatch, caplog):
    spoil(monkeypatch, *spoilt)
    with caplog.at_level(logging.INFO, logger="distilkit"):
        assert pipeline().resolved_unroller.precision == expected
    (said,) = [one.getMessage() for one in caplog.records if one.getMessage().startswith("precision")]
    assert said.startswith(f"precision: {expected} (")
    assert said.count("cosine") == 1 + len(spoilt) - (expected == "float32")


def test_what_is_asked_for_is_not_probed(compared, monkeypatch):
    monkeypatch.setattr(dk.Unroller, "probed", raises(AssertionError))
    assert pipeline(unroller=dk.Unroller(precision="tf32", compile="inductor")).resolved_unroller.precision == "tf32"
    assert pipeline(unroller=dk.Unroller(precision="auto", compile="trace")).resolved_unroller.precision == "float32"


def test_tf32_keeps_the_direction_and_is_not_float32(compared):
    """By products that are rounded as the hardware rounds them, which says nothing of its sums."""
    found = {name: pipeline()._meta_gradient_in(name).flatten() for name in ("float32", "tf32", "bfloat16")}
    cosine = {name: float(F.cosine_similarity(found["float32"], found[name], dim=0)) for name in ("tf32", "bfloat16")}
    assert 0.999 < cosine["tf32"] < 1
    assert cosine["bfloat16"] < cosine["tf32"]


def test_the_probe_is_of_one_process(monkeypatch):
    """In a run of several only the first one probes, and must not wait for the others."""
    monkeypatch.setattr(ranks, "_current", ranks.Ranks(0, 2))
    with ranks.alone():
        assert ranks.current().size == 1
    assert ranks.current().size == 2


@pytest.mark.gpu
def test_auto_on_a_gpu_takes_what_it_has_measured():
    assert all(0 < convolution_seconds(torch.float32, False, CUDA, name) < 60 for name in ("float32", "tf32"))
    found = pipeline(unroller=dk.Unroller(precision="auto", compile="cudagraph"), device="cuda")
    taken = found.resolved_unroller.precision
    truth, lower = (found._meta_gradient_in(name).flatten() for name in ("float32", taken))
    assert F.cosine_similarity(truth, lower, dim=0) >= precision.LEAST_COSINE
    state, _ = found.step(found.init())
    assert state.leaves.images.isfinite().all()

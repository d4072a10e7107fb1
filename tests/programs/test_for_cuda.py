"""Programs as they are recorded for CUDA, without a card: a stand-in for its runtime lets torch differentiate fake tensors."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
pytestmark = pytest.mark.slow
# Operations with torch 2.14.1. More are slower, and to be looked at. Torch 2.11 has 129 more in the second derivative of its norm.
MOST = {
    "float32, torch": {"step": 288, "back": 863, "end": 119},
    "float32, triton": {"step": 267, "back": 467, "end": 98},
    "bfloat16, torch": {"step": 319, "back": 925, "end": 150},
    "bfloat16, triton": {"step": 295, "back": 529, "end": 126},
}
PROGRAMS = [f"{how}, {name}" for how, programs in MOST.items() for name in programs]
VERSION = tuple(map(int, torch.__version__.split(".")[:2]))
OLD = 129 if VERSION < (2, 14) else 0
COPIES = {"aten.clone.default", "aten._to_copy.default"}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What is in each list."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if sys.platform != "linux" or torch.version.cuda is None:
        pytest.skip("needs a torch that is built for CUDA, on Linux")
    if compiler is None:
        pytest.skip("needs a C compiler")
    library = tmp_path_factory.mktemp("runtime") / "libcuda.so.1"
    flags = ["-shared", "-fPIC", f"-Wl,-soname,{library.name}"]
    subprocess.run([compiler, *flags, "-o", library, HERE / "fake_runtime.c"], check=True)
    first = ":".join(filter(None, [str(library), os.environ.get("LD_PRELOAD")]))
    paths = os.pathsep.join(filter(None, [str(HERE.parents[1]), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"LD_PRELOAD": first, "PYTHONPATH": paths}
    done = subprocess.run([sys.executable, HERE / "for_cuda.py"], env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_all_tensors_are_on_the_card(found):
    assert all(found[name]["devices"] == ["cuda:0"] for name in PROGRAMS)
    assert found["a constant"]["devices"] == ["cuda:0"]
    assert found["a constant"]["operations"] == {"aten.mul.Tensor": 1}  # and is not copied in each call
    assert "cpu" in found["a constant made anew"]["devices"]


def test_no_convolution_has_a_kernel_as_large_as_its_maps(found):
    assert [found[name]["largest kernel"] for name in PROGRAMS] == [3] * len(PROGRAMS)
    assert found["plain back"]["largest kernel"] == 8


def test_a_graph_can_hold_them(found):
    assert [found[name]["why not"] for name in PROGRAMS] == [None] * len(PROGRAMS)
    assert "another device" in found["a constant made anew"]["why not"]
    assert "makes the host wait" in found["a mask"]["why not"]


@pytest.mark.skipif(VERSION > (2, 14), reason="not counted with this torch yet")
def test_they_have_no_more_operations_than_they_had(found):
    for how, most in MOST.items():
        for name, count in most.items():
            allowed = count + OLD * (how.endswith("torch") and name == "back")
            assert sum(found[f"{how}, {name}"]["operations"].values()) <= allowed, (how, name)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_norm_is_one_operation_and_so_is_its_gradient(found, precision):
    """Of three blocks, where nothing joins operations: torch's own, or ours."""
    norm, ours = "aten.native_group_norm", "distilkit.norm_relu_pool"
    for name in ("step", "end"):
        for kernels, operation in (("torch", norm), ("triton", ours)):
            count = found[f"{precision}, {kernels}, {name}"]["operations"]
            assert [count.get(f"{operation}{part}.default") for part in ("", "_backward")] == [3, 3]
    back = found[f"{precision}, triton, back"]["operations"]
    assert not [operation for operation in back if operation.startswith(norm)]
    assert back[f"{ours}_double_backward.default"] == 3


def test_the_list_of_a_cpu_is_the_same_but_for_copies(found):
    on_cpu, on_card = found["back on a CPU"], found["float32, torch, back"]
    assert on_cpu["devices"] == ["cpu"]
    first, second = ({name: count for name, count in x["operations"].items() if name not in COPIES} for x in (on_cpu, on_card))
    assert first == second

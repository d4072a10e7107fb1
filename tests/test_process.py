"""Keeping freed memory, and measuring it."""

import os
import subprocess
import sys

import pytest
import torch

from distilkit import process

CHILD = """
import resource, sys
import torch
from distilkit import process

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(16 << 20)  # 64 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

with process.keep_freed_memory():
    with process.keep_freed_memory():
        faults()
    inside = faults()
    held = process.resident_memory()
outside = faults()
print(inside, outside, held - process.resident_memory())
"""


def in_a_process(**environment):
    """Without what an earlier test may have left in the environment, as Dask's cluster leaves a setting of malloc."""
    left = {name: value for name, value in os.environ.items() if name not in process._SETTINGS}
    done = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, check=True, env=left | environment)
    return [int(word) for word in done.stdout.split()]


@pytest.mark.skipif(process._glibc() is None, reason="the C library is not glibc, or malloc is set in the environment")
def test_freed_memory_is_kept_and_then_given_back():
    """Inside no page is fetched from the system again; outside each of the 20 blocks of 16,384 pages is; and the heap shrinks."""
    inside, outside, given_back = in_a_process()
    assert inside < 16384
    assert outside > 19 * 500  # huge pages count once for 512
    assert given_back > 60 << 20


@pytest.mark.skipif(process._glibc() is None, reason="the C library is not glibc, or malloc is set in the environment")
def test_settings_of_the_environment_stand():
    inside, outside, _ = in_a_process(MALLOC_MMAP_THRESHOLD_="65536")
    assert inside > 19 * 500
    assert outside > 19 * 500


def test_peak_is_what_was_held_at_one_time():
    with process.peak_resident() as found:
        torch.ones(32 << 20)  # 128 MiB
    if not found:
        pytest.skip("the system does not tell")
    assert found[0] - process.resident_memory() > 100 << 20


def test_peak_of_tensors_counts_what_is_alive_at_one_time():
    import torch

    def work():
        many = [torch.ones(1000) for _ in range(10)]
        del many[5:]
        torch.ones(3000)

    assert process.peak_of_tensors(work, torch.device("cpu")) == 40_000


def test_same_bits_on_a_gpu_are_asked_for_and_then_no_longer(monkeypatch):
    """The switches of torch are those of the process, a GPU or not."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")

    def switches():
        return torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.deterministic

    with process.same_bits(torch.device("cpu")):
        assert switches() == (False, False)
    with process.same_bits(torch.device("cuda"), wanted=False):
        assert switches() == (False, False)
    with process.same_bits(torch.device("cuda")):
        assert switches() == (True, True)
        assert torch.is_deterministic_algorithms_warn_only_enabled()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert switches() == (False, False)
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ


def test_large_products_are_taken_where_the_work_is(monkeypatch):
    cpu, other = torch.device("cpu"), torch.device("cuda:1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert process.place_of_large_products(cpu) == torch.device("cuda")  # nothing was said
    with process.large_products_on(cpu):
        assert process.place_of_large_products(cpu) == cpu
        with process.large_products_on(other):
            assert process.place_of_large_products(cpu) == other
    assert process.place_of_large_products(cpu) == torch.device("cuda")


def test_a_process_whose_precision_cannot_be_read_is_told():
    """In a process of its own: torch's switches cannot be mended once they contradict each other."""
    words = """
import torch
from distilkit import process
from distilkit.errors import CombinationError
torch.backends.cuda.matmul.fp32_precision = "tf32"
try:
    with process.products("float32", torch.device("cuda")):
        pass
except CombinationError as error:
    print(error)
    exec(error.fix)
with process.products("float32", torch.device("cuda")):
    print(torch.backends.cuda.matmul.allow_tf32)
"""
    said = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=True).stdout
    assert "has set torch's fp32_precision in a way that its allow_tf32 cannot say" in said
    assert said.splitlines()[-1] == "False"  # what it says to type helps

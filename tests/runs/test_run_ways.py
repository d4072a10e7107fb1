"""How a run does its work: what the process is told before the data is read."""

import torch

import distilkit as dk
from distilkit import process
from tests.pipelines import tiny


def test_a_deterministic_run_asks_for_it_before_anything_else(tmp_path, monkeypatch):
    """And the large products of preparing data are taken on the run's own device."""
    told = []
    same, place, load = process.same_bits, process.large_products_on, dk.Digits.load
    monkeypatch.setattr(
        process, "same_bits", lambda device, wanted=True: told.append(("same bits", device.type, wanted)) or same(device, wanted)
    )
    monkeypatch.setattr(process, "large_products_on", lambda device: told.append(("products", device.type)) or place(device))
    monkeypatch.setattr(dk.Digits, "load", lambda self, stream: told.append("data") or load(self, stream))
    pipeline = dk.evolve(tiny(), deterministic=True, device="cpu")
    dk.run(pipeline, tmp_path / "run")
    assert told[:3] == [("same bits", "cpu", True), ("products", "cpu"), "data"]
    assert torch.are_deterministic_algorithms_enabled() is False

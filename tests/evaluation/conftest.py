"""One bundle of digits for all tests here, and ten real images of it as a set."""

import pytest
import torch

import distilkit as dk
from distilkit.data import DataBundle, DistilledSet


@pytest.fixture(scope="session")
def digits() -> DataBundle:
    return dk.Digits().load(dk.Stream(0))


@pytest.fixture(scope="session")
def ten(digits: DataBundle) -> DistilledSet:
    first = torch.tensor([int((digits.train.labels == c).nonzero()[0]) for c in range(10)])
    return DistilledSet(digits.train.images[first], torch.eye(10), torch.arange(10), digits.class_names, preprocessing=digits.preprocessing)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTILKIT_CACHE", str(tmp_path_factory.getbasetemp() / "distilkit-cache"))

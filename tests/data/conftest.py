"""Fixtures for real data; every test that needs it skips where it is missing."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SHARED = Path(__file__).resolve().parents[3] / "shared"
PACKED = SHARED / "data" / "cifar10"
UNPACK = SHARED / "tools" / "unpack_cifar10.py"


@pytest.fixture(scope="session")
def cifar_test():
    """2,500 real CIFAR-10 images, uint8 (2500, 3, 32, 32), with their labels; from the packed test part only."""
    packed = PACKED / "test.cifxz"
    if not (packed.exists() and UNPACK.exists()):
        pytest.skip("no CIFAR-10 beside the checkout")
    spec = importlib.util.spec_from_file_location("unpack_cifar10", UNPACK)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    images, labels = module.decode(packed)
    return images[:2500], labels[:2500].astype(np.int64)


@pytest.fixture(scope="session")
def cifar_npz(tmp_path_factory, pytestconfig):
    """All of CIFAR-10 as one npz, unpacked once and kept in pytest's cache."""
    if not (PACKED.is_dir() and UNPACK.exists()):
        pytest.skip("no CIFAR-10 beside the checkout")
    kept = getattr(pytestconfig, "cache", None)
    place = Path(kept.mkdir("cifar10")) if kept else tmp_path_factory.mktemp("cifar10")
    if not (place / "cifar10.npz").exists():
        subprocess.run([sys.executable, str(UNPACK), str(place)], check=True, capture_output=True)
    return place / "cifar10.npz"


@pytest.fixture
def idx_root(tmp_path):
    """A function that lays out the real .gz files of MNIST or FashionMNIST as torchvision has them, and returns the root."""

    def make(name: str) -> Path:
        source = SHARED / "data" / {"MNIST": "mnist", "FashionMNIST": "fashion-mnist"}[name]
        if not source.is_dir():
            pytest.skip(f"no {name} beside the checkout")
        raw = tmp_path / name / "raw"
        raw.mkdir(parents=True)
        for file in source.glob("*.gz"):
            shutil.copy(file, raw / file.name)
        return tmp_path

    return make

"""What this machine has for a run: versions, processor, GPU, compiler, memory, disk, data."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import psutil
import torch

from distilkit import __version__
from distilkit.data.preprocessing.cache import cache_folder
from distilkit.unroll.execution import compiler_here
from distilkit.unroll.own_kernels import has_triton
from distilkit.unroll.rates import convolution_seconds

SCARCE = 4 * 2**30  # bytes: a ConvNet on CIFAR-10 takes about so much memory, and less disk
# Where torchvision puts data, in `data.root`.
DATASETS = {
    "MNIST": "MNIST",
    "FashionMNIST": "FashionMNIST",
    "CIFAR10": "cifar-10-batches-py",
    "CIFAR100": "cifar-100-python",
    "SVHN": "train_32x32.mat",
    "TinyImageNet": "tiny-imagenet-200",
    "CUB200": "CUB_200_2011",
}
EXTRAS = {"hf": ("datasets",), "hdf5": ("h5py",), "cluster": ("distributed", "submitit"), "s3": ("s3fs",), "tensorboard": ("tensorboardX",)}


class Finding(NamedTuple):
    """One thing that was looked at: what it is, what was found, what to do where that is a trouble, and the number in it, if any.

    The number is in bytes, of memory and disk; of bfloat16, how many times as long it takes; of threads, how many.
    """

    what: str
    found: str
    advice: str | None = None
    number: float | None = None


def examine(folder: str | Path = ".") -> list[Finding]:
    """Look at this machine, from a folder in which runs would be.

    >>> [one.what for one in examine()][:3]
    ['distilkit', 'libraries', 'processor']
    """
    share = _share(torch.device("cpu"))
    return [
        Finding("distilkit", f"{__version__}, on Python {platform.python_version()}, {platform.system()}"),
        Finding(
            "libraries", ", ".join([f"torch {torch.__version__}", *(f"{one} {version(one)}" for one in ("torchopt", "xarray", "zarr"))])
        ),
        Finding("processor", _processor()),
        _threads(),
        Finding("bfloat16", f"a convolution takes {share:.2f} times as long as in float32, on the processor", number=share),
        _compiler(),
        _gpu(),
        _space("memory", psutil.virtual_memory().available, "free", "close other programs; distilkit plan SPEC says what a run takes"),
        _space("disk", shutil.disk_usage(folder).free, f"free in {Path(folder).resolve()}", "--out on another disk"),
        _cache(),
        _data(Path(folder) / "data"),
        _extras(),
    ]


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {torch.backends.cpu.get_cpu_capability()}"


def _threads() -> Finding:
    cores, used = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, torch.get_num_threads()
    real = min(cores, psutil.cpu_count(logical=False) or cores)  # two threads of a core share its arithmetic
    words = f"{used}, of {cores} processors that this process may use"
    busy = psutil.getloadavg()[0]
    if busy > cores / 2:
        return Finding("threads", f"{words}; the machine is at work (load {busy:.1f})", "measure times when it is quiet", used)
    return Finding("threads", words, f"OMP_NUM_THREADS={real}, which is {used} now" if used < real else None, used)


def _share(device: torch.device) -> float:
    full, rounded = (convolution_seconds(dtype, True, device) for dtype in (torch.float32, torch.bfloat16))
    return rounded / full


def _compiler() -> Finding:
    found = compiler_here()
    return Finding("C++ compiler", found or "none", None if found else "install g++: with it, ConvNets run about twice as fast on a CPU")


def _gpu() -> Finding:
    if torch.cuda.is_available():
        one = torch.cuda.get_device_properties(0)
        words = f"{torch.cuda.device_count()} x {one.name}, {one.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"
        return Finding("GPU", words, None if has_triton() else "install triton and gcc: without them nothing is compiled there")
    if shutil.which("nvidia-smi"):
        wrong = (
            "torch was built without CUDA" if torch.version.cuda is None else f"torch cannot use it (built for CUDA {torch.version.cuda})"
        )
        return Finding(
            "GPU", f"the driver is there, and {wrong}", "https://pytorch.org/get-started/locally says which torch fits the driver"
        )
    return Finding("GPU", "none")


def _space(what: str, size: int, where: str, advice: str) -> Finding:
    return Finding(what, f"{size / 2**30:.1f} GiB {where}", advice if size < SCARCE else None, size)


def _cache() -> Finding:
    folder = cache_folder()
    place = next(parent for parent in (folder, *folder.parents) if parent.exists())
    good = os.access(place, os.W_OK)
    return Finding("cache", f"{folder}{'' if good else ', which cannot be written'}", None if good else "DISTILKIT_CACHE=/another/folder")


def _data(root: Path) -> Finding:
    there = [name for name, folder in DATASETS.items() if (root / folder).exists()]
    return Finding("data", f"{', '.join(there) or 'none'}, in {root}; with download = true, torchvision's are fetched when they are needed")


def _extras() -> Finding:
    has = {extra: all(importlib.util.find_spec(name) for name in names) for extra, names in EXTRAS.items()}
    missing = [extra for extra, there in has.items() if not there]
    words = ", ".join(extra for extra, there in has.items() if there) or "none"
    return Finding("extras", words + (f"; not installed: {', '.join(missing)}" if missing else ""))

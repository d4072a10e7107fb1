"""Reading `.pt` files of others without running what is in them.

`torch.load(weights_only=True)` builds tensors, numbers, text, lists and dicts, and refuses the rest. One thing more is let in,
because every genuine file of DC, DSA and DM has it: numpy numbers, in the list of accuracies. They are read by two
stand-ins here, which turn bytes into a Python number; nothing of numpy is called by the file.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distilkit.errors import DistilkitError

_NUMBERS = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1")


class _Kind:
    """Stands for numpy.dtype."""

    def __init__(self, name: Any, *_: Any) -> None:
        text = name.decode() if isinstance(name, bytes) else str(name)
        if text not in _NUMBERS:
            raise ValueError(f"a numpy dtype {text!r} is not a plain number")
        self.dtype = np.dtype(text)

    def __setstate__(self, state: Any) -> None:
        """The state of a plain number says nothing more."""


def _scalar(kind: Any, raw: Any) -> Any:
    """Stands for numpy's function that makes a number of a dtype from bytes."""
    if not isinstance(kind, _Kind) or not isinstance(raw, bytes):
        raise ValueError("a numpy number is not stored as bytes")
    return np.frombuffer(raw, kind.dtype, count=1)[0].item()


# numpy 1 and numpy 2 name the same things differently.
_STAND_INS: list[Any] = [
    *((_scalar, f"{core}.multiarray.scalar") for core in ("numpy.core", "numpy._core")),
    (_Kind, "numpy.dtype"),
]


def load(path: Path) -> Any:
    """Read a file of `torch.save`, without running code from it; tensors come to the CPU and need no gradient.

    Args:
        path: the file.

    Returns:
        What was saved: tensors, numbers, text, and lists and dicts of them.

    Raises:
        DistilkitError: the file holds anything else, or is no such file.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     torch.save({"lr": np.float64(0.5)}, Path(folder) / "lr.pt")
    ...     load(Path(folder) / "lr.pt")
    {'lr': 0.5}
    """
    try:
        with torch.serialization.safe_globals(_STAND_INS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old pickle protocols: they load, or they are refused below
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise DistilkitError(f"There is no file {path}.") from error
    except Exception as error:  # a broken or hostile file can fail anywhere in the reader
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        if refused:
            raise DistilkitError(
                f"{path} was not loaded: it asks for {refused[1]!r}, and a file that calls for more than tensors, numbers and "
                "text could run any code on this machine. Nothing of it was run. If you trust who made it, load it where "
                "nothing can be lost and save its tensors alone.",
                fix='torch.save({"data": [[images, labels]]}, "res_clean.pt")',
            ) from None
        words = str(error).strip().split("\n")[0]
        raise DistilkitError(f"{path} cannot be read as a file of torch.save: {type(error).__name__}: {words}") from error

"""The preprocessing of a stored set whose code is somebody's own: named and compared, but not run.

Reading a stored set never runs code that the set names. The pipeline that made it does, where it is trusted, so a run with a
preprocessing of one's own can be evaluated and studied through its spec; and the store holds the images as pixels besides.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NoReturn

import attrs
import numpy as np
import torch

from distilkit.data.preprocessing.base import Arrays, Fitted
from distilkit.errors import CombinationError


@attrs.frozen(eq=False)
class Foreign:
    """A fitted preprocessing that was stored and is not one of ours.

    Args:
        meta: what its `to_arrays` gave, and its fingerprint.
        arrays: its arrays by name.
    """

    meta: Mapping[str, Any]
    arrays: Arrays

    def fit(self, images: torch.Tensor) -> Foreign:
        """Return self: what is fitted stays as it is."""
        return self

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Refused."""
        self._refuse()

    def inverse(self, x: torch.Tensor) -> torch.Tensor:
        """Refused."""
        self._refuse()

    def to_arrays(self) -> tuple[dict[str, Any], Arrays]:
        """What it was read from."""
        return dict(self.meta), self.arrays

    def fingerprint(self) -> str:
        """The one that was stored."""
        return str(self.meta["fingerprint"])

    def _refuse(self) -> NoReturn:
        raise CombinationError(
            f"The set was made with the preprocessing {self.meta.get('kind')}, which is not distilkit's, and a stored set "
            "does not run code. Its own run's spec does, where it is trusted; and a run's store holds the images as pixels as well.",
            fix='dk.open(run)["distilled"]["pixel"]',
        )


def stored_words(fitted: Fitted, known: Mapping[str, Any]) -> dict[str, Any]:
    """The description of a fitted preprocessing as it is stored: with its fingerprint, where its class is not one of the `known` kinds.

    Raises:
        CombinationError: it could be stored, and never be read again.
    """
    name, ours = type(fitted).__name__, type(fitted).__module__.startswith("distilkit.")
    try:
        meta, arrays = fitted.to_arrays()
        given: dict[str, Any] = arrays  # by somebody else's code
        good = all(isinstance(array, np.ndarray) and array.dtype != object for array in given.values())
        words: dict[str, Any] = json.loads(json.dumps(meta | ({} if meta["kind"] in known else {"fingerprint": fitted.fingerprint()})))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CombinationError(_unreadable(name, str(error))) from error
    if not good or not isinstance(words.get("kind"), str) or not isinstance(words.get("fingerprint", ""), str):
        raise CombinationError(_unreadable(name, 'it takes a dict with "kind", numpy arrays by name, and a text as the fingerprint'))
    if not ours and words["kind"] in known:
        raise CombinationError(_unreadable(name, f"kind = {words['kind']!r} is one of distilkit's own"))
    return words


def _unreadable(name: str, why: str) -> str:
    return (
        f"A set made with the preprocessing {name} could be stored, and never be read again: what its to_arrays() and fingerprint() give "
        f"does not go into a file ({why})."
    )

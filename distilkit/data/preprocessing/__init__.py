"""Preprocessing: fitted on training images only, with an inverse, and a fingerprint that keeps spaces from being mixed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distilkit.data.preprocessing.base import Arrays, Fitted
from distilkit.data.preprocessing.kornia_zca import KorniaWhitened, KorniaZCA
from distilkit.data.preprocessing.simple import Identity, Standardize, Standardized
from distilkit.data.preprocessing.whitening import Whiten, Whitened
from distilkit.errors import CombinationError, FieldError, listing, nearest

_READERS: dict[str, Any] = {
    "Identity": lambda meta, arrays: Identity(),
    "Standardize": lambda meta, arrays: Standardized(arrays["mean"], arrays["std"], fitted_on=meta.get("fitted_on")),
    "Whiten": lambda meta, arrays: Whitened(
        arrays["matrix"], arrays["scale"], tuple(meta["shape"]), meta["regularisation"], fitted_on=meta.get("fitted_on")
    ),
    "KorniaZCA": lambda meta, arrays: KorniaWhitened(
        arrays["matrix"], arrays["mean"], tuple(meta["shape"]), meta["eps"], fitted_on=meta.get("fitted_on")
    ),
}


def from_arrays(meta: Mapping[str, Any], arrays: Arrays) -> Fitted:
    """Read a fitted preprocessing back from what its `to_arrays` gave.

    Args:
        meta: JSON-able dict with "kind".
        arrays: arrays by name.

    Returns:
        The fitted value, with the same fingerprint.

    Raises:
        FieldError: for a kind that this version does not know.

    >>> from_arrays(*Identity().to_arrays())
    Identity()
    """
    kind = meta.get("kind")
    if kind not in _READERS:
        near = nearest(str(kind), _READERS)
        raise FieldError("kind", kind, f"a preprocessing: {listing(sorted(_READERS))}", fix=f'kind = "{near}"' if near else None)
    fitted: Fitted = _READERS[kind](meta, arrays)
    return fitted


def require_readable(fitted: Fitted) -> None:
    """Refuse a preprocessing that a stored set could not be read back with.

    Raises:
        CombinationError: it is one of the user's own.
    """
    kind = fitted.to_arrays()[0].get("kind")
    if kind not in _READERS:
        raise CombinationError(
            f"A set made with the preprocessing {type(fitted).__name__} could be stored, and never be read again: its kind is {kind!r}, "
            f"and those that can be read are {listing(sorted(_READERS))}. Apply your own to the images before you give them to dk.Arrays.",
            fix="preprocessing=dk.Identity()",
        )


def require_same(expected: Fitted, given: Fitted) -> None:
    """Refuse to use images of one space with a set of another.

    Args:
        expected: the preprocessing of the distilled set.
        given: the preprocessing of the real data.

    Raises:
        CombinationError: when their fingerprints differ.
    """
    if expected.fingerprint() != given.fingerprint():
        kinds = (expected.to_arrays()[0]["kind"], given.to_arrays()[0]["kind"])
        why = "which are different spaces" if kinds[0] != kinds[1] else "but fitted on different training images"
        raise CombinationError(
            f"The distilled set was made with {kinds[0]} and the real data was loaded with {kinds[1]}, {why}; "
            "accuracy measured across them means nothing.",
            fix="attrs.evolve(data, preprocessing=distilled.preprocessing).load(stream)",
        )


__all__ = [
    "Fitted",
    "Identity",
    "KorniaWhitened",
    "KorniaZCA",
    "Standardize",
    "Standardized",
    "Whiten",
    "Whitened",
    "from_arrays",
    "require_readable",
    "require_same",
]

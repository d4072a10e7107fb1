"""Preprocessing: fitted on training images only, with an inverse, and a fingerprint that keeps spaces from being mixed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distilkit.data.preprocessing.base import Arrays, Fitted, Preprocessing
from distilkit.data.preprocessing.foreign import Foreign, stored_words
from distilkit.data.preprocessing.kornia_zca import KorniaWhitened, KorniaZCA
from distilkit.data.preprocessing.refittable import REFITTABLE, Refittable
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
        The fitted value, with the same fingerprint; a `Foreign` for a kind of somebody's own, a `Refittable`
        where the arrays were left out.

    Raises:
        FieldError: for a kind that this version does not know, and that was stored without its fingerprint.

    >>> from_arrays(*Identity().to_arrays())
    Identity()
    """
    kind = meta.get("kind")
    if kind in REFITTABLE and not arrays and "fingerprint" in meta:
        return Refittable(meta)
    if kind not in _READERS and "fingerprint" in meta:
        return Foreign(meta, arrays)
    if kind not in _READERS:
        near = nearest(str(kind), _READERS)
        raise FieldError("kind", kind, f"a preprocessing: {listing(sorted(_READERS))}", fix=f'kind = "{near}"' if near else None)
    fitted: Fitted = _READERS[kind](meta, arrays)
    return fitted


def to_words(fitted: Fitted) -> dict[str, Any]:
    """The description of a fitted preprocessing, JSON-able, from which and from whose arrays `from_arrays` reads it back.

    Raises:
        CombinationError: it is one of the user's own, and could be stored, but never be read again.
    """
    return stored_words(fitted, _READERS)


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
    "REFITTABLE",
    "Fitted",
    "Foreign",
    "Identity",
    "KorniaWhitened",
    "KorniaZCA",
    "Preprocessing",
    "Refittable",
    "Standardize",
    "Standardized",
    "Whiten",
    "Whitened",
    "from_arrays",
    "require_same",
    "to_words",
]

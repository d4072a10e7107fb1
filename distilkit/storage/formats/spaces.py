"""Which preprocessing the images of a file went through: named by the format or by the user, and fitted where it must be."""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np

from distilkit.data.bundle import DataBundle
from distilkit.data.preprocessing import REFITTABLE, Fitted, Identity, Standardized
from distilkit.errors import Change, CombinationError, FieldError, listing, nearest
from distilkit.storage.formats.raw import Options, Raw

DECLARED: dict[str, Any] = {"Identity": Identity, **REFITTABLE}

# Mean and deviation of each channel as constants in the public code of DC, DSA, DM and MTT. They are not what `Standardize` finds:
# the deviations for CIFAR-10 are means of the deviations of single images.
CONSTANTS: dict[str, tuple[list[float], list[float]]] = {
    "DC-MNIST": ([0.1307], [0.3081]),
    "DC-FashionMNIST": ([0.2861], [0.3530]),
    "DC-SVHN": ([0.4377, 0.4438, 0.4728], [0.1980, 0.2010, 0.1970]),
    "DC-CIFAR10": ([0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010]),
    "DC-CIFAR100": ([0.5071, 0.4866, 0.4409], [0.2673, 0.2564, 0.2762]),
    "DC-TinyImageNet": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    "MTT-CIFAR100": ([0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010]),
}


def known(preprocessing: Any) -> Any:
    """A name as what it names; a declaration or a fitted value as it is.

    Raises:
        FieldError: for anything else.

    >>> known("Whiten")
    Whiten(regularisation=0.1)
    """
    name = preprocessing if isinstance(preprocessing, str) else None
    if name in DECLARED:
        return DECLARED[name]()
    if name in CONSTANTS:
        mean, std = (np.array(values) for values in CONSTANTS[name])
        return Standardized(mean, std)
    if name is not None or isinstance(preprocessing, type) or not callable(getattr(preprocessing, "fit", None)):
        near = nearest(name or "", [*DECLARED, *CONSTANTS])
        allowed = listing([f'"{name}"' for name in [*DECLARED, *CONSTANTS]]) + ", or a preprocessing such as Whiten()"
        raise FieldError("preprocessing", preprocessing, allowed, changes=[Change("preprocessing", near)] if near else ())
    return preprocessing


def is_fitted(preprocessing: Any) -> bool:
    """Whether it has seen its training images; a declaration has not."""
    return callable(getattr(preprocessing, "to_arrays", None))


def fitted(raw: Raw, options: Options, format: str) -> Fitted:
    """The preprocessing of the images of a file.

    Raises:
        CombinationError: nobody has said which it is, or it must be fitted and there are no images to fit it on.
    """
    stated = options.preprocessing if options.preprocessing is not None else raw.preprocessing
    if stated is None:
        raise CombinationError(
            f"{raw.image_file} does not say which preprocessing its images went through, and accuracy measured in another space "
            f'means nothing. With {format}, ZCA of kornia is preprocessing="KorniaZCA"; the constants of the authors\' code are '
            f'{listing(list(CONSTANTS))}; images in [0, 1] are "Identity".',
            changes=[Change("preprocessing", "KorniaZCA")],
        )
    return fit(known(stated), options.data, raw.image_file)


def fit(declared: Any, data: DataBundle | None, file: str) -> Fitted:
    """Fit a declaration on the training images of the data; a fitted value stays as it is.

    Args:
        declared: what `known` gave.
        data: must be loaded with the same preprocessing, or with `Identity`, whose images are in [0, 1].
        file: for errors.
    """
    if is_fitted(declared):
        value: Fitted = declared
        return value
    kind = type(declared).__name__
    if data is None:
        raise CombinationError(
            f"{file} is in the space of {kind}, which is fitted on training images, so the real data is needed to know it.",
            fix=f"data=CIFAR10(preprocessing={declared!r}, validation=0).load(stream)",
        )
    meta = data.preprocessing.to_arrays()[0]
    if meta["kind"] == kind and all(meta.get(name) == value for name, value in attrs.asdict(declared).items()):
        return data.preprocessing
    if meta["kind"] == "Identity":
        made: Fitted = declared.fit(data.train.images)
        return made
    raise CombinationError(
        f"{file} is in the space of {declared!r}, but the data {data.name!r} was loaded with {meta['kind']}, "
        "from which it cannot be fitted.",
        fix=f"preprocessing={declared!r}",
    )

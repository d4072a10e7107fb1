"""The preprocessing of a set whose file leaves its arrays out: fitted again on the data at hand, and checked to be the same.

The whitening of CIFAR-10 is a matrix of 37 MB, and ten distilled images are 120 kB. So the sets that come with distilkit name their
preprocessing and the training images that it was fitted on, and whoever uses them has those images anyway.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

import attrs
import torch

from distilkit.data.preprocessing.base import Arrays, Fitted, Preprocessing, hash_tensor
from distilkit.data.preprocessing.kornia_zca import KorniaZCA
from distilkit.data.preprocessing.simple import Standardize
from distilkit.data.preprocessing.whitening import Whiten
from distilkit.errors import CombinationError

# What is fitted to training images, by kind.
REFITTABLE: dict[str, Any] = {"Standardize": Standardize, "Whiten": Whiten, "KorniaZCA": KorniaZCA}


@attrs.frozen(eq=False)
class Refittable:
    """A fitted preprocessing without its arrays.

    `fit` on the same training images gives the fitted one, so data is loaded in the space of such a set like in that of any other:
    `CIFAR10(preprocessing=distilled.preprocessing, validation=0.1)`. Without data nothing can be computed.

    Args:
        meta: what the `to_arrays` of the fitted one gave, and its fingerprint.

    >>> images = torch.rand(20, 1, 4, 4)
    >>> named = Refittable.of(Whiten().fit(images))
    >>> named.fit(images).forward(images).shape
    torch.Size([20, 1, 4, 4])
    """

    meta: Mapping[str, Any]

    @classmethod
    def of(cls, fitted: Fitted) -> Fitted:
        """What is left of a fitted preprocessing without its arrays; as it is, where it could not be fitted again to be the same."""
        meta = fitted.to_arrays()[0]
        again = meta.get("kind") in REFITTABLE and meta.get("fitted_on") is not None
        return cls({**meta, "fingerprint": fitted.fingerprint()}) if again else fitted

    def fit(self, images: torch.Tensor) -> Fitted:
        """Fit again.

        Args:
            images: the training images in [0, 1] that it was fitted on.

        Raises:
            CombinationError: they are others.
        """
        if self.meta["fitted_on"] != hash_tensor(images):
            raise CombinationError(
                f"The distilled set was made in the space of {self.declared!r}, fitted on other training images than the {len(images)} "
                "that are given. The data has to be the set's own, in its usual order, with the same images held out: by the fraction and "
                "the seed of the recipe.",
                fix='data.load(dk.Stream(0).fold("data"))  # with the recipe\'s validation=',
            )
        fitted: Fitted = self.declared.fit(images)
        return fitted

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Refused."""
        self._refuse()

    def inverse(self, x: torch.Tensor) -> torch.Tensor:
        """Refused."""
        self._refuse()

    def to_arrays(self) -> tuple[dict[str, Any], Arrays]:
        """What it was made from, and no arrays."""
        return dict(self.meta), {}

    def fingerprint(self) -> str:
        """That of the fitted one."""
        return str(self.meta["fingerprint"])

    @property
    def declared(self) -> Preprocessing:
        """The declaration that is fitted."""
        kind = REFITTABLE[self.meta["kind"]]
        declared: Preprocessing = kind(**{one.name: self.meta[one.name] for one in attrs.fields(kind) if one.name in self.meta})
        return declared

    def _refuse(self) -> NoReturn:
        raise CombinationError(
            f"The file of the set names its preprocessing, {self.declared!r}, and leaves out its arrays; they are fitted on real data. "
            "`distilkit export SET OUT --data DATA` writes the set with them.",
            fix="attrs.evolve(distilled, preprocessing=bundle.preprocessing)",
        )

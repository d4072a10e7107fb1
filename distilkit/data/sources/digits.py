"""The real handwritten digits inside scikit-learn: nothing to download, and small enough for a first look."""

from __future__ import annotations

import numpy as np
import torch

from distilkit import fields
from distilkit.data.bundle import DataBundle
from distilkit.data.preprocessing import Preprocessing, Standardize
from distilkit.data.sources.assemble import Raw, assemble, split_size
from distilkit.functional.streams import Stream


@fields.component
class Digits:
    """1,797 real handwritten digits of 8 x 8 pixels in 16 grey levels (UCI, Alpaydin and Kaynak), shipped with scikit-learn.

    Args:
        validation: what to hold out of the training images: a fraction of them below 1, or a count.
        test: what to hold out for the test, of all images; by a fixed seed, the same for every run.
        preprocessing: fitted on the training images only.

    >>> bundle = Digits().load(Stream(0))
    >>> bundle.image_shape, bundle.num_classes, len(bundle.train) + len(bundle.validation) + len(bundle.test)
    ((1, 8, 8), 10, 1797)
    """

    validation: float = fields.number(default=0.15, least=0)
    test: float = fields.number(default=0.2, above=0)
    preprocessing: Preprocessing = fields.slot("preprocessing", default=Standardize())

    def __attrs_post_init__(self) -> None:
        split_size("validation", self.validation)
        split_size("test", self.test)

    def load(self, stream: Stream) -> DataBundle:
        """Load the digits.

        Args:
            stream: seeds the validation split only.

        Returns:
            The bundle; images float32 (N, 1, 8, 8).
        """
        from sklearn.datasets import load_digits  # here: it takes a second to import

        pixels, labels = load_digits(return_X_y=True)
        images = torch.from_numpy((pixels / 16.0).astype(np.float32)).reshape(-1, 1, 8, 8)
        raw = Raw(images, torch.from_numpy(labels), tuple(str(d) for d in range(10)))
        return assemble("Digits", raw, preprocessing=self.preprocessing, validation=self.validation, stream=stream, test=self.test)

"""Split, DataBundle and DistilledSet: what they refuse, and what they give."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from distilkit.data.bundle import Split
from distilkit.data.distilled import DistilledSet
from distilkit.data.preprocessing import Standardize, Whiten
from distilkit.data.sources.arrays import Arrays
from distilkit.data.sources.digits import Digits
from distilkit.errors import CombinationError, FieldError
from distilkit.functional.streams import Stream


def made(**changes):
    x = torch.rand(60, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    fitted = Standardize().fit(x)
    given = {
        "images": fitted.forward(x[:6]),
        "labels": torch.eye(3).repeat(2, 1),
        "classes": torch.arange(3).repeat(2),
        "class_names": ["a", "b", "c"],
        "preprocessing": fitted,
    }
    return DistilledSet(**(given | changes)), x[:6]


def test_pixels_are_the_inverse_for_people():
    distilled, x = made()
    assert distilled.pixels().dtype == torch.uint8
    assert (distilled.pixels().float() - x * 255).abs().max() <= 0.5 + 1e-3
    loud, _ = made(images=1e6 * torch.ones(6, 3, 4, 4))
    assert bool((loud.pixels() == 255).all())


def test_subset_keeps_rows_together():
    distilled, _ = made(block=torch.arange(6))
    for index in (torch.tensor([4, 0]), [4, 0]):
        part = distilled.subset(index)
        assert part.block.tolist() == [4, 0]
        assert part.classes.tolist() == [1, 0]
        assert torch.equal(part.images, distilled.images[[4, 0]])
        assert torch.equal(part.labels, distilled.labels[[4, 0]])
        assert part.preprocessing is distilled.preprocessing
    assert distilled.subset(distilled.block < 2).block.tolist() == [0, 1]
    assert distilled.subset(slice(1, 3)).block.tolist() == [1, 2]


def test_per_class_counts_and_shape():
    distilled, _ = made()
    assert (len(distilled), distilled.per_class, distilled.image_shape) == (6, 2, (3, 4, 4))
    assert distilled.subset([0, 1]).per_class is None
    np.testing.assert_array_equal(distilled.subset([0, 1]).class_counts(), [1, 1, 0])


def test_the_dataset_trains_as_it_stands():
    distilled, _ = made()
    x, y = next(iter(DataLoader(distilled.dataset(), batch_size=6)))
    assert torch.equal(x, distilled.images)
    loss = torch.nn.functional.cross_entropy(x.flatten(1)[:, :3], y)
    assert torch.isfinite(loss)


# One line a mistake: what is given, and a word of the message.
MISTAKES = {
    "labels": ({"labels": torch.eye(3)}, r"\(6, 3\)"),
    "hard labels": ({"labels": torch.arange(3).repeat(2)}, "one_hot"),
    "classes": ({"classes": torch.arange(6)}, "0 to 2"),
    "class dtype": ({"classes": torch.arange(3.0).repeat(2)}, "int64"),
    "block": ({"block": torch.zeros(5, dtype=torch.int64)}, "block"),
    "space": ({"label_space": "soft"}, "one-hot"),
}


@pytest.mark.parametrize(("given", "word"), MISTAKES.values(), ids=MISTAKES.keys())
def test_refusals(given, word):
    with pytest.raises((CombinationError, FieldError), match=word):
        made(**given)


def test_split_refuses_what_does_not_fit():
    with pytest.raises(CombinationError, match="one label an image"):
        Split(torch.zeros(3, 1, 2, 2), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(CombinationError, match="int64"):
        Split(torch.zeros(3, 1, 2, 2), torch.zeros(3))


def test_real_data_can_be_loaded_in_the_space_of_a_distilled_set():
    fitted = Digits(preprocessing=Whiten()).load(Stream(3)).preprocessing
    bundle = Digits(preprocessing=fitted).load(Stream(0))
    assert bundle.preprocessing.fingerprint() == fitted.fingerprint()
    plain = Digits().load(Stream(0))
    raw = plain.preprocessing.inverse(plain.test.images)
    torch.testing.assert_close(bundle.test.images, fitted.forward(raw), rtol=0, atol=1e-4)


def test_a_bundle_moves_as_a_whole():
    bundle = Arrays(train_images=torch.rand(20, 1, 2, 2), train_labels=torch.arange(20) % 2).load(Stream(0)).to("meta")
    assert {s.images.device.type for s in (bundle.train, bundle.validation, bundle.test)} == {"meta"}


def test_a_class_name_that_the_store_would_lose_is_refused():
    with pytest.raises(FieldError, match="NUL"):
        DistilledSet(torch.zeros(1, 2), torch.eye(1), torch.zeros(1, dtype=torch.int64), ("a\0",))


def test_a_notebook_shows_the_images_class_by_class():
    distilled, x = made()
    seen = torch.from_numpy(np.array(Image.open(io.BytesIO(distilled._repr_png_())))).permute(2, 0, 1)
    assert seen.shape == (3, 3 * 66 + 2, 2 * 66 + 2)  # a line of two images for each of three classes, 4 pixels at 16 times, frames of 2
    first = seen[:, 2 : 2 + 64 : 16, 2 : 2 + 64 : 16]
    assert (first.float() / 255 - x[0]).abs().max() < 0.01
    second = seen[:, 2 : 2 + 64 : 16, 68 : 68 + 64 : 16]  # beside it stands the other image of that class, which is the fourth row
    assert (second.float() / 255 - x[3]).abs().max() < 0.01


def test_a_notebook_shows_nothing_where_there_is_nothing_to_see():
    vectors = DistilledSet(torch.zeros(2, 5), torch.eye(2), torch.arange(2), ("a", "b"))
    assert vectors._repr_png_() is None
    from distilkit.storage import shipped

    assert shipped.read("fast/cifar10-ipc1")._repr_png_() is None  # until its whitening has met the data

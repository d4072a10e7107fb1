"""Images that stay uint8 until they are taken: the numbers of those that are preprocessed beforehand."""

import json
import sys

import attrs
import numpy as np
import pytest
import torch

import distilkit as dk
from distilkit.data.pixels import Pixels
from distilkit.data.preprocessing import require_same
from distilkit.errors import CombinationError
from distilkit.evaluation.baselines import CORESETS, coreset, full_data
from distilkit.evaluation.measuring import streams, trained
from distilkit.storage.formats.spaces import fit
from distilkit.unroll.execution import ProgramCache
from tests.commands import Forked

RNG = np.random.default_rng(0)
LABELS = np.arange(120) % 3
IMAGES = np.clip(RNG.normal(90 + 40 * LABELS[:, None, None, None], 40, (120, 3, 6, 6)), 0, 255).astype(np.uint8)
KINDS = {"Identity": dk.Identity(), "Standardize": dk.Standardize(), "Whiten": dk.Whiten(), "KorniaZCA": dk.KorniaZCA()}
ELEMENTWISE = ("Identity", "Standardize")


def source(preprocessing, store):
    return dk.Arrays(train_images=IMAGES, train_labels=LABELS, preprocessing=preprocessing, store=store)


def pipeline(kind, store, **changes):
    settings = {
        "data": source(KINDS[kind], store),
        "learner": dk.Learner(dk.MLP(hidden=(8,)), dk.Adam(lr=0.01)),
        "truncation": dk.FullUnroll(3),
        "images": dk.Images(start="real"),
        "outer": dk.Outer(steps=2, batch_size=16, augment=dk.FlipRotate()),
        "evaluation": dk.Evaluation(seeds=3, steps=(4, 8), every=2, batch_size=16, baselines=("random real", "k-means real", "full data")),
        "threads": 1,
    }
    return dk.Distiller(**(settings | changes))


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def test_the_space_and_the_images_are_the_same(kind):
    plain, small = (source(KINDS[kind], store).load(dk.Stream(0)) for store in (None, "uint8"))
    require_same(plain.preprocessing, small.preprocessing)
    assert plain.preprocessing.fingerprint() == small.preprocessing.fingerprint()
    for name, array in plain.preprocessing.to_arrays()[1].items():
        np.testing.assert_array_equal(array, small.preprocessing.to_arrays()[1][name])
    close = {"rtol": 0, "atol": 0} if kind in ELEMENTWISE else {"rtol": 1e-5, "atol": 1e-6}
    for part in ("train", "validation", "test"):
        one, other = getattr(plain, part), getattr(small, part)
        images = other.images
        assert isinstance(images, Pixels)
        assert (images.shape, images.dtype, images.device) == (one.images.shape, one.images.dtype, one.images.device)
        assert images.nbytes * 4 == one.images.nbytes
        assert torch.equal(one.labels, other.labels)
        assert other.image_shape == one.image_shape
        for rows in (slice(None), slice(2, None, 3), 1, torch.tensor([[3, 0], [1, 3]]), other.labels == 1):
            torch.testing.assert_close(images[rows], one.images[rows], **close)
        for mine, theirs in zip(images.tensor_split(3), one.images.tensor_split(3), strict=True):
            torch.testing.assert_close(mine, theirs, **close)


def test_a_run_and_its_baselines_are_the_same(kind, tmp_path):
    """Outer batches, real starts, validation, the test and all baselines: every place where real images are taken."""
    plain, small = (pipeline(kind, store).run(tmp_path / str(store)) for store in (None, "uint8"))
    assert plain.groups == small.groups
    close = {"rtol": 0} if kind in ELEMENTWISE else {"rtol": 1e-3, "atol": 1e-4}
    for group in ("history", "evaluation", "distilled"):
        for name, values in plain[group].data_vars.items():
            if name != "seconds" and values.dtype.kind == "f":
                np.testing.assert_allclose(values.values, small[group][name].values, err_msg=f"{group}/{name}", **close)


@pytest.mark.parametrize("hidden", [(8,), (2000,)], ids=["side by side", "one by one"])
def test_minibatches_of_the_full_data_are_the_same(hidden):
    """The training set that no process could hold preprocessed: each step preprocesses what it takes."""
    learner = dk.Learner(dk.MLP(hidden=hidden), dk.SGD(lr=0.1), augment=dk.FlipRotate())
    evaluation = dk.Evaluation(seeds=3, steps=(5,), batch_size=16, labels="hard")
    found = []
    for store in (None, "uint8"):
        data = source(dk.Standardize(), store).load(dk.Stream(0))
        (networks,) = trained(
            learner.bind(data.image_shape, 3), full_data(data, 16), evaluation, streams(evaluation, dk.Stream(1)), ProgramCache()
        )
        found.append(networks.params)
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", CORESETS)
def test_coresets_are_the_same(name):
    plain, small = (coreset(name, source(dk.Standardize(), store).load(dk.Stream(0)), 2, 2, dk.Stream(3)) for store in (None, "uint8"))
    assert torch.equal(plain.images, small.images)
    assert torch.equal(plain.labels, small.labels)


def test_a_set_is_judged_on_either(tmp_path):
    made = pipeline("Standardize", None)
    data = [source(dk.Standardize(), store).load(made.stream.fold("data")) for store in (None, "uint8")]
    distilled = made.distilled(made.init())
    plain, small = (dk.evaluate(distilled, one, made.learner, made.evaluation, baselines=["full data"]) for one in data)
    assert plain.drop_attrs().identical(small.drop_attrs())


def test_a_space_of_others_is_fitted_on_pixels():
    plain, small = (source(dk.Identity(), store).load(dk.Stream(0)) for store in (None, "uint8"))
    assert fit(dk.Whiten(), plain, "a file").fingerprint() == fit(dk.Whiten(), small, "a file").fingerprint()


@attrs.frozen(eq=False)
class Own:
    """Somebody's own preprocessing, whose fit takes a tensor."""

    of: object = None

    def fit(self, images):
        assert isinstance(images, torch.Tensor)
        return Own(images.mean())

    def forward(self, images):
        return images - self.of


class OfTheBatch(Own):
    """One that looks at the whole batch."""

    def fit(self, images):
        return self

    def forward(self, images):
        return images - images.mean(0)


def test_a_preprocessing_of_ones_own(tmp_path):
    plain, small = (source(Own(), store).load(dk.Stream(0)) for store in (None, "uint8"))
    assert torch.equal(plain.train.images, small.train.images[:])
    with pytest.raises(CombinationError, match="through OfTheBatch batch by batch, and what that makes of an image depends"):
        source(OfTheBatch(), "uint8").load(dk.Stream(0))
    source(OfTheBatch(), None).load(dk.Stream(0))


def test_what_is_not_uint8_is_refused():
    floats = dk.Arrays(train_images=IMAGES / 255, train_labels=LABELS, store="uint8")
    with pytest.raises(CombinationError, match=r"and these are torch\.float64"):
        floats.load(dk.Stream(0))


def held(store):
    """In a process of its own."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (30_000, 3, 32, 32), np.uint8), np.arange(30_000) % 10
    data = dk.Arrays(train_images=images, train_labels=labels, store=store)
    found = dk.plan(dk.Distiller(data, dk.Learner(dk.MLP(hidden=(8,))), dk.FullUnroll(2), device="cpu"), probe=False)
    sys.stdout.write(json.dumps([found.baseline_bytes, found.loading_peak]))


@pytest.mark.slow
def test_a_plan_knows_that_less_is_held(tmp_path):
    runs = [Forked(held, store, folder=tmp_path / store).done() for store in ("float32", "uint8")]
    (plain, at_most), (small, less) = (json.loads(run.stdout) for run in runs)
    saved = 30_000 * 3 * 32 * 32 * 3  # three bytes of four
    assert saved / 2 < plain - small < 1.2 * saved  # the allocator keeps some blocks of the loading, a hundred MB whatever the data
    assert less < at_most - saved / 2

"""Starting from a distilled set that is there already."""

import attrs
import pytest
import torch

import distilkit as dk
from distilkit import storage
from distilkit.errors import CombinationError, DistilkitError
from tests.pipelines import tiny


def begun_with(path, **changes):
    return attrs.evolve(tiny(), images=dk.Images(per_class=1, stored=str(path)), labels=dk.Labels(learn=True), **changes)


@pytest.fixture
def earlier(tmp_path):
    """The folder of a run with learned labels and a learned rate."""
    learner = attrs.evolve(tiny().learner, learn_lr=True)
    tiny(labels=dk.Labels(learn=True), learner=learner, outer=dk.Outer(steps=3, batch_size=64)).run(tmp_path / "earlier")
    return tmp_path / "earlier"


def test_a_run_starts_from_the_images_labels_and_rate_of_another(earlier):
    made = dk.load(earlier)
    distiller = begun_with(earlier, learner=attrs.evolve(tiny().learner, learn_lr=True))
    leaves = distiller.init().leaves
    assert torch.equal(leaves.images, made.images)
    assert torch.equal(leaves.labels, made.labels)
    assert leaves.log_lr.exp().item() == pytest.approx(made.inner_lr)
    after, _ = distiller.step(distiller.init())
    assert distiller.distilled(after).provenance["started_from"] == str(earlier)


def test_a_rate_that_is_not_learned_stays_that_of_the_optimiser(earlier):
    distiller = begun_with(earlier)
    assert distiller.init().leaves.log_lr.exp().item() == pytest.approx(distiller.learner.optimizer.lr)


def test_soft_labels_stay_where_none_are_learned(earlier):
    distiller = attrs.evolve(begun_with(earlier), labels=dk.Labels(learn=False))
    state, _ = distiller.step(distiller.init())
    assert torch.equal(state.leaves.labels, dk.load(earlier).labels)
    assert distiller.distilled(state).label_space == "probability"


def test_rows_go_class_by_class_whatever_their_order_in_a_file(earlier, tmp_path):
    made = dk.load(earlier)
    order = torch.arange(len(made)).flip(0)
    storage.formats.write(made.subset(order), tmp_path / "turned.safetensors")
    assert torch.equal(begun_with(tmp_path / "turned.safetensors").init().leaves.images, made.images)


def test_a_boosted_run_has_it_as_its_first_block(earlier):
    boost = dk.BoostSchedule(blocks=(1, 2), steps=1)
    distiller = attrs.evolve(begun_with(earlier), images=dk.Images(stored=str(earlier), start="real"), boost=boost)
    state = distiller.init()
    assert torch.equal(state.leaves.images, dk.load(earlier).images)
    state, _ = distiller.step(state)
    first = state.leaves.images
    grown = distiller.enter_stage(state)
    assert len(grown.leaves.images) == 30
    assert torch.equal(grown.leaves.images[distiller.stages[1].block(10) == 0], first)


@pytest.mark.parametrize("case", ["count", "shape", "space", "rates", "preprocessing", "none"])
def test_a_set_that_does_not_fit_is_refused(earlier, tmp_path, case):
    made, distiller = dk.load(earlier), begun_with(earlier)
    error: type[Exception] = CombinationError
    if case == "count":
        distiller, words = attrs.evolve(distiller, images=dk.Images(per_class=2, stored=str(earlier))), "starts with 2"
    elif case == "rates":
        learner = attrs.evolve(distiller.learner, learn_lr=True, lr_steps=3)
        made, words = attrs.evolve(made, inner_lr=(0.1, 0.2)), "2 learned rates"
    elif case == "preprocessing":
        distiller, words = attrs.evolve(distiller, data=dk.Digits(preprocessing=dk.Whiten())), "in the space of"
    elif case == "shape":
        made, words = attrs.evolve(made, images=made.images[:, :, :4]), "of shape"
    elif case == "space":
        made, words = attrs.evolve(made, label_space="logit"), "are logits"
    else:
        distiller, words, error = begun_with(tmp_path / "nothing"), "nothing", DistilkitError
    if case in ("rates", "shape", "space"):
        storage.formats.write(made, tmp_path / "other.safetensors")
        distiller = begun_with(tmp_path / "other.safetensors")
    if case == "rates":
        distiller = attrs.evolve(distiller, learner=learner)
    with pytest.raises(error, match=words):
        distiller.init()

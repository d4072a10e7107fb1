"""Starting from a distilled set that is there already."""

import attrs
import pytest
import torch
from safetensors.torch import save_file

import distilkit as dk
from distilkit import storage
from distilkit.cli.display import option
from distilkit.errors import CombinationError, DistilkitError
from distilkit.warm_start import first_block
from tests.commands import distilkit
from tests.pipelines import BARE, ruin, tiny


def begun_with(path, **changes):
    return attrs.evolve(tiny(), images=dk.Images(per_class=1, stored=str(path)), labels=dk.Labels(learn=True), **changes)


@pytest.fixture
def earlier(tmp_path):
    """The folder of a run with learned labels and a learned rate."""
    learner = attrs.evolve(tiny().learner, learn_lr=True)
    tiny(images=dk.Images(start="real"), learner=learner, outer=dk.Outer(steps=3, batch_size=64)).run(tmp_path / "earlier")
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


def as_file(made, tmp_path):
    return storage.formats.write(made, tmp_path / "other.safetensors")


STANDARDIZED = "--set 'data.preprocessing={kind = \"Standardize\"}'"
# How the set or the run is changed, what is said, and what to type instead.
MISTAKES = {
    "number of images": (None, {"images": 2}, "has 1 image in each class, and the run starts with 2", "--set images.per_class=1"),
    "shape": (lambda made: {"images": made.images[:, :, :4]}, {}, "of shape", None),
    "labels": (lambda made: {"label_space": "logit"}, {}, "are logits", None),
    "rates": (lambda made: {"inner_lr": (0.1, 0.2)}, {"lr_steps": 3}, "2 learned rates", "--set learner.lr_steps=2"),
    "classes": (lambda made: {"class_names": ("a", *made.class_names[1:])}, {}, "class 'a' stands where the data", None),
    "space": (None, {"data": dk.Digits(preprocessing=dk.Whiten())}, "made in the space of", STANDARDIZED),
    "other images": (None, {"seed": 5}, "the seed and data.validation decide which", "--set seed=0"),
    "another share": (None, {"data": dk.Digits(validation=0.3)}, "the seed and data.validation decide which", None),
}


@pytest.mark.parametrize(("of_set", "of_run", "words", "instead"), MISTAKES.values(), ids=MISTAKES)
def test_a_set_that_does_not_fit_is_refused(earlier, tmp_path, of_set, of_run, words, instead):
    made = dk.load(earlier)
    path = earlier if of_set is None else as_file(attrs.evolve(made, **of_set(made)), tmp_path)
    distiller = begun_with(path)
    changes = {"images": dk.Images(per_class=of_run["images"], stored=str(path))} if "images" in of_run else {}
    if "lr_steps" in of_run:
        changes["learner"] = attrs.evolve(distiller.learner, learn_lr=True, lr_steps=of_run["lr_steps"])
    changes |= {name: of_run[name] for name in ("data", "seed") if name in of_run}
    distiller = attrs.evolve(distiller, **changes)
    with pytest.raises(CombinationError, match=words) as caught:
        distiller.init()
    assert [option(change) for change in caught.value.changes] == ([] if instead is None else [instead])
    with pytest.raises(CombinationError, match=words):
        dk.plan(distiller, probe=False)


def test_a_run_starts_from_what_was_imported(earlier, tmp_path):
    made = dk.load(earlier)
    for format, name in (("safetensors", "set.safetensors"), ("hugging-face", "hub")):
        path = storage.formats.write(made, tmp_path / name, format)
        assert torch.equal(begun_with(path).init().leaves.images, made.images)
    with pytest.raises(DistilkitError, match="neither the folder of a run"):
        begun_with(storage.formats.write(made, tmp_path / "pictures", "image-folder")).init()


def test_numbers_in_a_file_say_nothing_of_classes(earlier, tmp_path):
    """A file of others knows no names; a run does."""
    data = attrs.evolve(tiny().bundle, class_names=tuple("abcdefghij"))
    ask = {"count": 1, "learn_lr": False, "seed": 0}
    leaves = first_block(str(as_file(dk.load(earlier), tmp_path)), data, torch.tensor(0.0), **ask)
    assert torch.equal(leaves.images, dk.load(earlier).images)
    with pytest.raises(CombinationError, match="class '0' stands where the data"):
        first_block(str(earlier), data, torch.tensor(0.0), **ask)


def test_a_file_of_others_is_refused(tmp_path):
    save_file({"images": torch.zeros(10, 1, 8, 8), "labels": torch.full((10, 10), 0.1)}, tmp_path / "theirs.safetensors")
    with pytest.raises(DistilkitError, match="not a distilled set of this distilkit"):
        begun_with(tmp_path / "theirs.safetensors").init()


def test_of_a_boosted_run_nothing_is_to_be_given_up(earlier):
    """Its blocks stay as they are: no number of images is suggested."""
    distiller = attrs.evolve(begun_with(earlier), images=dk.Images(stored=str(earlier)), boost=dk.BoostSchedule(blocks=(2, 3), steps=1))
    with pytest.raises(CombinationError, match="the run starts with 2") as caught:
        distiller.init()
    assert caught.value.fix is None


def test_what_is_not_there_is_told_with_the_nearest_name():
    with pytest.raises(CombinationError, match="neither the folder of a run") as caught:
        begun_with("fast/cifar-ipc1").init()
    assert [option(change) for change in caught.value.changes] == ["--set images.stored=fast/cifar10-ipc1"]


def test_a_run_goes_on_when_what_it_started_from_is_gone(earlier, tmp_path):
    """It is read once; whole and in pieces come to the same bits."""
    distiller = begun_with(earlier, evaluation=BARE)
    whole = distiller.run(tmp_path / "whole")
    distiller.run(tmp_path / "pieces", stop_after=0)
    assert not dk.open(tmp_path / "pieces").attrs["finished"]
    earlier.rename(tmp_path / "elsewhere")
    for _ in range(20):
        found = distiller.run(tmp_path / "pieces", stop_after=0)
        if found.attrs["finished"]:
            break
    assert found.attrs["finished"]
    assert (found["distilled"]["image"] == whole["distilled"]["image"]).all()
    assert (found["evaluation"]["accuracy"] == whole["evaluation"]["accuracy"]).all()


def test_what_was_there_is_kept_where_the_run_makes_it_worse(earlier, tmp_path, monkeypatch):
    ruin(monkeypatch)
    tree = begun_with(earlier, outer=dk.Outer(steps=2, batch_size=64)).run(tmp_path / "worse")
    assert tree["evaluation"]["validation_accuracy"]["outer_step"].values.tolist() == [0, 2]
    assert tree["distilled"].attrs["outer_step"] == 0
    assert torch.equal(dk.load(tmp_path / "worse").images, dk.load(earlier).images)


def test_the_study_starts_its_boosted_run_alone_from_a_set(earlier, tmp_path):
    boost = dk.BoostSchedule(blocks=(1, 1), steps=1)
    pipeline = attrs.evolve(begun_with(earlier), images=dk.Images(stored=str(earlier), start="real"), boost=boost, evaluation=BARE)
    tree = dk.intercorrelation_study(pipeline, tmp_path / "study", draws=2)
    assert tree["sources"].sizes["budget"] == 2


def test_the_command_starts_from_a_run(earlier, tmp_path):
    few = ["outer.steps=1", "evaluation.seeds=1", "evaluation.steps=[1]", "evaluation.baselines=[]", "learner.network.hidden=[12]"]
    changes = [f"--set={one}" for one in [*few, f"images.stored={earlier}"]]
    done = distilkit("run", "digits", *changes, "--out", tmp_path / "on", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert dk.load(tmp_path / "on").provenance["started_from"] == str(earlier)
    done = distilkit("run", "digits", *changes, "--set", "images.per_class=2", "--out", tmp_path / "two", cwd=tmp_path)
    assert done.returncode == 2
    assert "Try: --set images.per_class=1" in done.stderr

"""The folder for the Hub: the libraries of Hugging Face open it, `distilkit.json` says what is in it, and it comes back to the bit."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import hypothesis
import jsonschema
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

import distilkit as dk
from distilkit.data.distilled import DistilledSet
from distilkit.data.preprocessing import Foreign, Identity, KorniaZCA, Refittable, Standardize, Whiten
from distilkit.errors import CombinationError, DistilkitError, RunError
from distilkit.functional.streams import Stream
from distilkit.storage.formats import description, hugging_face, read, write
from tests.scripts import script
from tests.storage.test_formats import TEXT, same

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((ROOT / "distilkit/storage/formats/set.schema.json").read_text("utf-8"))
NAMES = ("cat", 'a: "b" 🐈', "# - c\n---\x01'{")
CLASSES = torch.tensor([2, 0, 1, 1])
TRAINING = {"network": "MLP(hidden=(8,))", "optimizer": "Adam(lr=0.1)", "augment": None, "steps": 30, "test_accuracy": [0.5, 0.7, None]}


def made(*shape: int, preprocessing: Any = None, **changes: Any) -> DistilledSet:
    shape = shape or (3, 4, 4)
    fitted = (preprocessing or Whiten()).fit(Stream(0).uniform(40, *shape))
    settings = {
        "images": Stream(1).normal(4, *shape),
        "labels": Stream(2).uniform(4, 3),
        "classes": CLASSES,
        "class_names": NAMES,
        "label_space": "probability",
        "block": torch.tensor([0, 0, 0, 1]),
        "inner_lr": 0.05,
        "preprocessing": fitted,
        "provenance": {"data": "noise", "seed": 3, "training": TRAINING},
    }
    return DistilledSet(**(settings | changes))


SETS: dict[str, Callable[[], DistilledSet]] = {
    "pictures": lambda: made(),
    "grey": lambda: made(1, 4, 4, preprocessing=Standardize()),
    "vectors": lambda: made(5, preprocessing=Standardize()),
    "two channels": lambda: made(2, 4, 3, preprocessing=KorniaZCA(), images=Stream(1).normal(4, 2, 4, 3).bfloat16()),
    "of no run": lambda: made(preprocessing=Identity(), provenance={}, inner_lr=None),
    "several rates": lambda: made(inner_lr=(0.1, 0.2), provenance={"imported_from": "res.pt", "data": 3, "training": "x"}),
    "names twice": lambda: made(class_names=("a", "a", "b")),
}


@pytest.fixture(params=SETS.values(), ids=SETS)
def given(request: pytest.FixtureRequest) -> DistilledSet:
    found: DistilledSet = request.param()
    return found


def as_before(back: DistilledSet, given: DistilledSet) -> None:
    for name in ("images", "labels", "classes", "block"):
        assert same(getattr(back, name), getattr(given, name)), name
    for name in ("class_names", "label_space", "inner_lr", "provenance"):
        assert getattr(back, name) == getattr(given, name), name
    assert back.preprocessing.fingerprint() == given.preprocessing.fingerprint()


def test_the_folder_is_loaded_by_its_path(given: DistilledSet, tmp_path: Path) -> None:
    path = write(given, tmp_path / "set", "hugging-face")
    as_before(dk.load(path), given)
    as_before(read(path), given)
    (path / description.FILE).unlink()  # as those before it had it
    as_before(dk.load(path), given)


def test_a_copy_of_the_hub_is_links_into_a_cache(tmp_path: Path) -> None:
    path = write(made(), tmp_path / "set", "hugging-face")
    for file in [file for file in path.rglob("*") if file.is_file()]:
        place = tmp_path / "snapshot" / file.relative_to(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(file, tmp_path / file.name)
        place.symlink_to(tmp_path / file.name)
    as_before(dk.load(tmp_path / "snapshot"), made())


@pytest.mark.parametrize("format", ["hugging-face", "image-folder"])
def test_what_is_said_of_it_fits_the_schema(given: DistilledSet, format: str, tmp_path: Path) -> None:
    if format == "image-folder" and given.image_shape[0] not in (1, 3):
        with pytest.raises(CombinationError):  # there is no picture of it
            write(given, tmp_path / "set", format)
        return
    path = write(given, tmp_path / "set", format)
    words = json.loads((path / description.FILE).read_text("utf-8"))
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(words, SCHEMA)
    assert set(words) == set(SCHEMA["properties"]) == set(SCHEMA["required"])
    assert words["pictures"] is None or (path / words["pictures"]).is_file()
    assert format == "hugging-face" or words["preprocessing"]["arrays"] == {}
    if format == "hugging-face":
        tensors = load_file(path / words["tensors"]["file"]) if given.images.dtype != torch.bfloat16 else {}  # numpy has no such type
        assert all(list(tensors[name].shape) == one["shape"] for name, one in words["tensors"]["arrays"].items() if tensors)
        assert set(words["preprocessing"]["arrays"].values()) < set(words["tensors"]["arrays"])


def test_it_says_how_networks_were_trained_and_what_they_reached() -> None:
    words = description.describe(made())
    assert words["protocol"] == {name: value for name, value in TRAINING.items() if name != "test_accuracy"}
    reached = words["expected_accuracy"]
    assert (reached["networks"], reached["each"]) == (2, [0.5, 0.7, None])
    assert (reached["mean"], reached["std"]) == (pytest.approx(0.6), pytest.approx(0.02**0.5))
    assert description.describe(SETS["of no run"]())["expected_accuracy"] is None


@pytest.mark.parametrize("shape", [(3, 4, 4), (5,)], ids=str)
@pytest.mark.parametrize("declared", [Identity(), Standardize(), Whiten(), KorniaZCA()])
def test_the_statements_are_what_the_preprocessing_does(declared: Any, shape: tuple[int, ...]) -> None:
    images = Stream(0).uniform(60, *shape)
    given = made(*shape, preprocessing=declared.fit(images))
    words = description.describe(given)["preprocessing"]
    arrays = {name: given.preprocessing.to_arrays()[1][name] for name in words["arrays"]}
    names: dict[str, Any] = {"np": np, "x": images.numpy(), **arrays}
    exec("\n".join(words["forward"]), names)
    np.testing.assert_allclose(names["y"], given.preprocessing.forward(images), rtol=0, atol=1e-4)
    names["y"] = given.images.numpy()
    exec("\n".join(words["inverse"]), names)
    np.testing.assert_allclose(names["x"], given.preprocessing.inverse(given.images), rtol=0, atol=1e-4)


def test_every_preprocessing_of_ours_has_its_statements() -> None:
    from distilkit.data.preprocessing import _READERS

    assert set(description.FORMULAS) == set(_READERS)
    theirs = Foreign({"kind": "Centred", "of": 1, "fingerprint": "abc"}, {"mean": np.zeros(3)})
    words = description.describe(made(preprocessing=Identity(), images=made().images))["preprocessing"]
    assert words["settings"] == {}
    words = description.describe(attrs.evolve(made(), preprocessing=theirs))["preprocessing"]
    assert (words["kind"], words["forward"], words["inverse"], words["settings"]) == ("Centred", None, None, {"of": 1})
    assert words["arrays"] == {"mean": "preprocessing_mean"}
    named = description.describe(attrs.evolve(made(), preprocessing=Refittable.of(made().preprocessing)))["preprocessing"]
    assert (named["arrays"], named["fingerprint"]) == ({}, made().preprocessing.fingerprint())


def changed(**changes: Any) -> Any:
    def change(path: Path) -> None:
        words = json.loads((path / description.FILE).read_text("utf-8"))
        (path / description.FILE).write_text(json.dumps(words | changes))

    return change


def other_tensors(path: Path) -> None:
    other = write(attrs.evolve(made(), images=made().images + 1), path.parent / "other", "hugging-face")
    shutil.copy(other / "distilkit.safetensors", path)


# What was done to the folder, and what is said of it.
SPOILT = {
    "other names": (changed(class_names=["a", "b", "c"]), "differ in class_names"),
    "other labels": (changed(label_space="logit"), "differ in label_space"),
    "another rate": (changed(inner_lr=0.2), "differ in inner_lr"),
    "another history": (changed(provenance={}), "differ in provenance"),
    "other tensors": (other_tensors, "differ in the digest"),
    "no tensors": (changed(tensors=None), "differ in the digest"),
    "a later version": (changed(format_version=2), "format version 2"),
    "a version that is none": (changed(format_version="1"), "format version '1'"),
    "no JSON": (lambda path: (path / description.FILE).write_text("{"), "cannot be read as JSON"),
    "a list": (lambda path: (path / description.FILE).write_text("[]"), "holds a list"),
    "too deep": (lambda path: (path / description.FILE).write_text("[" * 100_000), "cannot be read as JSON"),
    "no set": (lambda path: (path / "distilkit.safetensors").unlink(), "only pictures are there"),
}


@pytest.mark.parametrize(("spoil", "words"), SPOILT.values(), ids=SPOILT)
def test_parts_of_different_sets_are_not_read(spoil: Any, words: str, tmp_path: Path) -> None:
    path = write(made(), tmp_path / "set", "hugging-face")
    spoil(path)
    with pytest.raises(DistilkitError, match=words):
        read(path, "hugging-face")


def test_what_does_not_say_all_of_itself_is_imported_first(tmp_path: Path) -> None:
    path = write(made(), tmp_path / "two words", "image-folder")
    with pytest.raises(RunError, match="image-folder, which does not say all of itself") as caught:
        dk.load(path)
    assert caught.value.fix == f"distilkit import '{path}' --out 'two words.safetensors'"
    path = write(made(), tmp_path / "theirs", "mtt")
    assert torch.equal(dk.load(path).images, made().images)  # with its lossless copy
    path = write(made(), tmp_path / "one.safetensors")
    with pytest.raises(RunError, match="it is one set"):
        dk.load(path, "best")
    with pytest.raises(RunError, match=r"The set .* has no spec.toml"):
        dk.subset_grid(path, [1])
    with pytest.raises(CombinationError, match="does not say its data"):
        dk.evaluate(path)


def test_an_imported_set_is_judged_with_data_and_learner(digits: Any, tmp_path: Path) -> None:
    rows = torch.tensor([int((digits.train.labels == c).nonzero()[0]) for c in range(10)])
    ten = DistilledSet(digits.train.images[rows], torch.eye(10), torch.arange(10), digits.class_names, preprocessing=digits.preprocessing)
    learner, protocol = dk.Learner(dk.MLP(hidden=(8,)), dk.SGD(lr=0.1)), dk.Evaluation(seeds=1, steps=(2,))
    wanted = dk.evaluate(ten, digits, learner, protocol)
    path = write(ten, tmp_path / "set", "hugging-face")
    assert np.array_equal(dk.evaluate(path, digits, learner, protocol).accuracy, wanted.accuracy)


# --- the card ---------------------------------------------------------------------------------------------------------------


def front_of(path: Path) -> dict[str, Any]:
    text = (path / "README.md").read_text("utf-8")
    found: dict[str, Any] = pytest.importorskip("yaml").safe_load(text.split("\n---\n")[0].removeprefix("---\n"))
    return found


def test_a_card_is_yaml_whatever_the_names_are(tmp_path: Path) -> None:
    path = write(made(), tmp_path / "set", "hugging-face")
    head = front_of(path)
    assert head["license"] == "unknown"
    assert head["size_categories"] == ["n<1K"]
    assert "dataset-distillation" in head["tags"]
    assert tuple(head["configs"][0]["features"][1]["dtype"]["class_label"]["names"].values()) == NAMES
    rows = [json.loads(line) for line in (path / "train" / "metadata.jsonl").read_text().splitlines()]
    shown = np.stack([np.asarray(Image.open(path / "train" / row["file_name"])).transpose(2, 0, 1) for row in rows])
    np.testing.assert_array_equal(shown, made().pixels().numpy())
    assert [row["label"] for row in rows] == CLASSES.tolist()


@hypothesis.given(text=TEXT)
def test_any_text_is_yaml(text: str) -> None:
    assert pytest.importorskip("yaml").safe_load(hugging_face._quoted(text)) == text


def test_the_card_tells_people_how_to_use_it(given: DistilledSet, tmp_path: Path) -> None:
    text = (write(given, tmp_path / "set", "hugging-face") / "README.md").read_text("utf-8")
    for words in ("## To look at", "## To train on", "## Source", "## To cite", f"**{given.label_space}**", "fill it in above"):
        assert words in text
    assert ("60.0 ± 14.1 %** on real test images, the mean and standard deviation of 2 networks" in text) == ("noise" in text)
    assert ("It came from `res.pt`" in text) == ("imported_from" in given.provenance) == ("Feng, Yunzhen" not in text)


def test_text_from_elsewhere_is_no_markdown() -> None:
    words = made(provenance={"data": "a\n# b `c`", "training": {"network": "x\n\n# y", "test_accuracy": []}})
    text = hugging_face.card(words, description.describe(words))
    assert [line for line in text.splitlines() if re.match(r"# [by]", line)] == []
    assert "They reached" not in text


def test_the_table_of_the_page_has_every_field() -> None:
    tables = script(ROOT / "docs/tools/tables.py", "tables")
    page = tables.on_page_markdown((ROOT / "docs/sharing.md").read_text("utf-8"))
    told = re.findall(r"^\| `([\w.]+)` \| (.+?) \| .", page, re.MULTILINE)
    assert {name for name, _ in told} >= {*SCHEMA["properties"], "tensors.digest", "preprocessing.inverse", "expected_accuracy.each"}
    assert dict(told)["inner_lr"] == "number, array, null"
    assert dict(told)["format"] == '`"distilkit set"`'


# --- the libraries of Hugging Face ------------------------------------------------------------------------------------------


@pytest.fixture
def datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return pytest.importorskip("datasets")


def loaded(datasets: Any, path: Path, folder: Path) -> Any:
    return datasets.load_dataset(str(path), split="train", cache_dir=str(folder / "cache"))


@pytest.mark.slow
def test_datasets_opens_the_folder(given: DistilledSet, datasets: Any, tmp_path: Path) -> None:
    path = write(given, tmp_path / "set", "hugging-face")
    rows = loaded(datasets, path, tmp_path)
    assert rows["label"][:] == given.classes.tolist()
    assert rows["block"][:] == given.block.tolist()
    np.testing.assert_array_equal(np.array(rows["target"][:], np.float32), given.labels.numpy())
    if len(set(given.class_names)) == len(given.class_names):
        assert rows.features["label"].names == list(given.class_names)
    if given.image_shape[0] in (1, 3):
        seen = np.stack([np.atleast_3d(np.asarray(row["image"])).transpose(2, 0, 1) for row in rows])
        np.testing.assert_array_equal(seen, given.pixels().numpy())
    else:
        np.testing.assert_array_equal(np.array(rows["values"][:], np.float32), given.images.float().numpy())
    as_before(dk.load(path), given)


@pytest.mark.slow
def test_the_library_of_the_hub_reads_the_card(given: DistilledSet, datasets: Any, tmp_path: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")
    card = hub.DatasetCard.load(write(given, tmp_path / "set", "hugging-face") / "README.md")
    assert (card.data.license, card.data.tags) == ("unknown", ["dataset-distillation", "distilkit"])
    assert card.data.pretty_name.startswith("Distilled set of 3 classes")
    assert card.text.lstrip().startswith("# Distilled set of 3 classes")

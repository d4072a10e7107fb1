"""Formats of others: what we write comes back, what the authors' code writes is read right, and no file runs code."""

from __future__ import annotations

import csv
import json
import pickle
import re
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image

from distilkit.data.bundle import DataBundle, Split
from distilkit.data.distilled import DistilledSet
from distilkit.data.preprocessing import Identity, KorniaZCA, Standardize, Whiten
from distilkit.errors import DistilkitError
from distilkit.functional.streams import Stream
from distilkit.storage.formats import FORMATS, read, write

K, N, SHAPE = 3, 6, (3, 4, 4)
NAMES = ("cat", "dog", "owl")
RATE = st.floats(1e-6, 10)
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
QUICK = settings(max_examples=8, suppress_health_check=[HealthCheck.too_slow])


def noise(*shape: int, name: str = "images") -> torch.Tensor:
    return Stream(0).fold(name).normal(*shape)


def real(preprocessing: Any) -> DataBundle:
    """A dataset in [0, 1], as a source would hand it over in the space of a preprocessing."""
    images = Stream(1).uniform(40, *SHAPE)
    fitted = preprocessing.fit(images)
    split = Split(fitted.forward(images), torch.arange(40) % K)
    return DataBundle("noise", split, split, split, NAMES, fitted)


def place(folder: Path | str, format: str) -> Path:
    return Path(folder) / ("set" + (FORMATS[format].suffixes or ("",))[0])


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


@st.composite
def sets(
    draw: st.DrawFn, spaces: tuple[str, ...], drawable: bool, dtypes: tuple[torch.dtype, ...] = (), rates: bool = True
) -> DistilledSet:
    n, k = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    vectors = not drawable and draw(st.booleans())
    channels = draw(st.sampled_from([1, 3])) if drawable else draw(st.integers(1, 5))
    shape = (draw(st.integers(1, 6)),) if vectors else (channels, draw(st.integers(1, 5)), draw(st.integers(1, 5)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    classes = torch.randint(k, (n,), generator=generator)
    space = draw(st.sampled_from(spaces))
    hard = space == "one-hot" and draw(st.booleans())
    labels = torch.nn.functional.one_hot(classes, k).float() if hard else torch.randn(n, k, generator=generator)
    dtype = draw(st.sampled_from(dtypes or (torch.float32, torch.float64, torch.bfloat16)))
    images = torch.randn(n, *shape, generator=generator).to(dtype)
    images.view(-1)[0] = draw(st.sampled_from([0.0, -0.0, 1e-40, 0.25])) if not drawable else 0.25
    some = torch.rand(8, *shape, generator=generator)
    return DistilledSet(
        images=images,
        labels=labels,
        classes=classes,
        class_names=tuple(draw(st.lists(TEXT, min_size=k, max_size=k))),
        label_space=space,
        block=torch.randint(3, (n,), generator=generator),
        inner_lr=draw(st.none() | RATE | st.lists(RATE, min_size=2, max_size=4) if rates else st.none() | RATE),
        preprocessing=draw(st.sampled_from([Identity(), Standardize(), Whiten(), KorniaZCA()])).fit(some),
        provenance=draw(st.dictionaries(TEXT, st.integers() | TEXT, max_size=2)),
    )


@pytest.mark.parametrize("format", [name for name in FORMATS if FORMATS[name].lossless])
@QUICK
@given(chance=st.data())
def test_what_is_written_comes_back_to_the_bit(format: str, chance: st.DataObject) -> None:
    made = chance.draw(sets(FORMATS[format].spaces, drawable=False, rates=format not in ("mtt", "dd-ranking")))
    with tempfile.TemporaryDirectory() as folder:
        path = write(made, place(folder, format), format)
        back = read(path, format)
    for name in ("images", "labels", "classes", "block"):
        assert same(getattr(made, name), getattr(back, name)), name
    for name in ("class_names", "label_space", "inner_lr", "provenance"):
        assert getattr(made, name) == getattr(back, name), name
    assert made.preprocessing.fingerprint() == back.preprocessing.fingerprint()


@QUICK
@given(made=sets(("one-hot", "probability", "logit", "centred"), drawable=True, dtypes=(torch.float32,)))
def test_pictures_come_back_as_they_look(made: DistilledSet) -> None:
    with tempfile.TemporaryDirectory() as folder:
        back = read(write(made, folder + "/set", "image-folder"))
    assert torch.equal(back.pixels(), made.pixels())
    for name in ("labels", "classes", "block"):
        assert same(getattr(made, name), getattr(back, name)), name
    for name in ("class_names", "label_space", "inner_lr", "provenance"):
        assert getattr(made, name) == getattr(back, name), name
    assert isinstance(back.preprocessing, Identity)


def test_pictures_go_back_to_the_space_that_networks_were_trained_in(digits: DataBundle) -> None:
    """Where there is real data to fit it on; a name that only others know leaves them as they look."""
    made = DistilledSet(digits.train.images[:10], torch.eye(10), torch.arange(10), digits.class_names, preprocessing=digits.preprocessing)
    with tempfile.TemporaryDirectory() as folder:
        path = write(made, folder + "/set", "image-folder")
        back = read(path, data=digits)
        words = json.loads((path / "distilkit.json").read_text("utf-8"))
        words["preprocessing"] |= {"kind": "Theirs"}
        (path / "distilkit.json").write_text(json.dumps(words), "utf-8")
        assert isinstance(read(path, data=digits).preprocessing, Identity)
    assert back.preprocessing.fingerprint() == made.preprocessing.fingerprint()
    assert float((back.images - made.images).abs().max()) < 0.02  # half of a 255th of the largest deviation


def soft(space: str) -> DistilledSet:
    labels = torch.eye(K).repeat_interleave(2, 0) - (1 / K if space == "centred" else 0) + 0.1 * noise(N, K, name="labels")
    return DistilledSet(noise(N, *SHAPE), labels, torch.arange(K).repeat_interleave(2), NAMES, label_space=space)  # type: ignore[arg-type]


@pytest.mark.parametrize("format", [name for name in FORMATS if name not in ("safetensors", "hugging-face")])
@pytest.mark.parametrize("hard", [True, False])
def test_a_plain_file_is_read_as_what_the_user_says(tmp_path: Path, format: str, hard: bool) -> None:
    """Without the lossless copy, as others' readers see it: every option must be taken from the user, and is."""
    space = FORMATS[format].spaces[0 if hard else -1]
    made = soft(space)
    if space == "one-hot":
        made = attrs.evolve(made, labels=torch.eye(K)[made.classes])
    if format == "image-folder":
        made = attrs.evolve(made, images=(made.images.clamp(0, 1) * 255).round() / 255)
    path = write(made, place(tmp_path, format), format, plain=True)
    said = {"label_space": space, "preprocessing": "Identity", "class_names": NAMES}
    back = read(path, format, **said, image_shape=None if format == "image-folder" else SHAPE)
    for name in ("images", "labels", "classes"):
        assert torch.equal(getattr(made, name), getattr(back, name)), name
    assert back.label_space == space
    assert back.class_names == NAMES


# Files as the authors' own code lays them out.
IMAGES = noise(N, *SHAPE)
HARD = torch.arange(K).repeat_interleave(2)
SOFT = torch.softmax(4 * torch.eye(K)[HARD] + noise(N, K, name="labels"), 1)


def mtt_file(folder: Path, labels: torch.Tensor = HARD, lr: Any = 0.02) -> Path:
    torch.save(IMAGES, folder / "images_best.pt")
    torch.save(labels, folder / "labels_best.pt")
    torch.save(lr, folder / "lr_best.pt")
    return folder


def datm_file(folder: Path) -> Path:
    logits = torch.nn.Parameter(SOFT.log())  # DATM saves a tensor that still needs its gradient
    return mtt_file(folder, logits.cpu() * 1, torch.tensor(0.02))


def dc_file(folder: Path) -> Path:
    data = [[noise(N, *SHAPE, name="first"), HARD], [IMAGES, HARD]]
    # Their accuracies are numpy numbers, which torch refuses to read with weights_only=True.
    torch.save({"data": data, "accs_all_exps": {"ConvNet": [np.float64(0.5), np.float32(0.4)]}}, folder / "res_DC_CIFAR10_ConvNet_2ipc.pt")
    return folder / "res_DC_CIFAR10_ConvNet_2ipc.pt"


def rat_bptt_file(folder: Path, label: torch.Tensor | None = None) -> Path:
    h5py = pytest.importorskip("h5py")
    with h5py.File(folder / "IPC_2.h5", "w") as file:
        file.create_dataset("data", data=IMAGES.view(N, -1).numpy())
        if label is not None:
            file.create_dataset("label", data=label.numpy())
    return folder / "IPC_2.h5"


def frepo_file(folder: Path) -> Path:
    np.savez(folder / "step000100.npz", image=IMAGES.permute(0, 2, 3, 1).numpy(), label=(SOFT - 1 / K).numpy())
    return folder / "step000100.npz"


def dd_ranking_file(folder: Path) -> Path:
    torch.save(IMAGES, folder / "images.pt")
    return folder


def hand_made(folder: Path) -> Path:
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["file", "class"], ["a.png", 2], ["b.png", 0]])
    for name, grey in (("a.png", 255), ("b.png", 51)):
        Image.new("RGB", SHAPE[:0:-1], (grey, 0, 0)).save(folder / name)
    return folder


@attrs.frozen
class Foreign:
    make: Callable[[Path], Path]
    options: dict[str, Any]
    labels: torch.Tensor
    space: str
    preprocessing: Any
    lr: float | None = None
    images: torch.Tensor = IMAGES


ONE_HOT = torch.eye(K)[HARD]
PAINTED = torch.zeros(2, *SHAPE)
PAINTED[:, 0] = torch.tensor([1.0, 0.2])[:, None, None]
FOREIGN = {
    "MTT": Foreign(mtt_file, {"preprocessing": "KorniaZCA", "data": KorniaZCA()}, ONE_HOT, "one-hot", KorniaZCA(), 0.02),
    "MTT, one file": Foreign(
        lambda p: mtt_file(p) / "images_best.pt",
        {"preprocessing": "Standardize", "data": Standardize()},
        ONE_HOT,
        "one-hot",
        Standardize(),
        0.02,
    ),
    "DATM": Foreign(
        datm_file,
        {"preprocessing": KorniaZCA(), "label_space": "logit", "data": Identity()},
        SOFT.log(),
        "logit",
        KorniaZCA(),
        pytest.approx(0.02),
    ),
    "DC": Foreign(dc_file, {"preprocessing": "DC-CIFAR10"}, ONE_HOT, "one-hot", None),
    "DC, the first": Foreign(
        dc_file, {"preprocessing": "Identity", "index": 0}, ONE_HOT, "one-hot", Identity(), images=noise(N, *SHAPE, name="first")
    ),
    "RaT-BPTT": Foreign(rat_bptt_file, {"data": Whiten()}, ONE_HOT, "one-hot", Whiten()),
    "RaT-BPTT, learned labels": Foreign(lambda p: rat_bptt_file(p, SOFT), {"data": Identity()}, SOFT, "probability", Whiten()),
    "RaT-BPTT, class numbers": Foreign(lambda p: rat_bptt_file(p, HARD), {"data": Whiten()}, ONE_HOT, "one-hot", Whiten()),
    "FRePo": Foreign(frepo_file, {"preprocessing": "Identity"}, SOFT - 1 / K, "centred", Identity()),
    "DD-Ranking": Foreign(dd_ranking_file, {"preprocessing": "KorniaZCA", "data": KorniaZCA()}, ONE_HOT, "one-hot", KorniaZCA()),
    "pictures": Foreign(hand_made, {}, torch.eye(K)[[2, 0]], "one-hot", Identity(), images=PAINTED),
    "pictures, standardised": Foreign(
        hand_made,
        {"preprocessing": "Standardize", "data": Identity()},
        torch.eye(K)[[2, 0]],
        "one-hot",
        Standardize(),
        images=real(Standardize()).preprocessing.forward(PAINTED),
    ),
}


@pytest.mark.parametrize("case", FOREIGN.values(), ids=FOREIGN)
def test_a_file_of_the_authors_is_read_right(tmp_path: Path, case: Foreign) -> None:
    options = {k: real(v) if k == "data" else v for k, v in case.options.items()}
    found = read(case.make(tmp_path), **options)  # the format is found by what lies there
    torch.testing.assert_close(found.images, case.images, rtol=0, atol=0)
    torch.testing.assert_close(found.labels, case.labels, rtol=0, atol=0)
    assert torch.equal(found.classes, case.labels.argmax(1))
    assert (found.label_space, found.inner_lr) == (case.space, case.lr)
    assert not found.images.requires_grad
    assert not found.labels.requires_grad
    assert found.class_names == (NAMES if "data" in options else ("0", "1", "2"))
    if case.preprocessing is not None:
        assert found.preprocessing.fingerprint() == real(case.preprocessing).preprocessing.fingerprint()


def test_constants_of_the_authors_are_what_their_transform_does(tmp_path: Path) -> None:
    from torchvision.transforms.functional import normalize

    fitted = read(dc_file(tmp_path), preprocessing="DC-CIFAR10").preprocessing
    pixels = Stream(2).uniform(2, *SHAPE)
    theirs = normalize(pixels, [0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010])
    torch.testing.assert_close(fitted.forward(pixels), theirs)


def test_learned_labels_whose_largest_is_elsewhere_stay_with_their_class(tmp_path: Path) -> None:
    labels = SOFT.clone()
    labels[0] = torch.tensor([0.1, 0.8, 0.1])
    found = read(mtt_file(tmp_path, labels), preprocessing="Identity", label_space="probability")
    assert torch.equal(found.classes, HARD)
    assert found.provenance["classes_known"] == "by position"


class Evil:
    """Runs code when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def evil_dict(path: Path) -> Any:
    return {"data": [[IMAGES, HARD]], "accs_all_exps": Evil(path)}


def unpickle(path: Path) -> None:
    """What a careless reader does with the file."""
    torch.load(path, weights_only=False)


OLD = {"_use_new_zipfile_serialization": False}
# How the file is made, and how a careless reader opens it.
MALICIOUS: dict[str, tuple[Callable[[Path, Path], Path], Callable[[Path], Any]]] = {
    "dc": (lambda p, mark: _saved(torch.save, evil_dict(mark), p / "res_x.pt"), unpickle),
    "dc, an old file": (lambda p, mark: _saved(partial(torch.save, **OLD), evil_dict(mark), p / "res_x.pt"), unpickle),
    "dc, bare pickle": (
        lambda p, mark: _saved(lambda value, path: path.write_bytes(pickle.dumps(value, 2)), evil_dict(mark), p / "res_x.pt"),
        lambda path: pickle.loads(path.read_bytes()),
    ),
    "mtt, the rate": (lambda p, mark: mtt_file(p, lr=Evil(mark)), lambda path: unpickle(path / "lr_best.pt")),
    "frepo": (
        lambda p, mark: _saved(lambda value, path: np.savez(path, image=np.array([value], object), label=[0]), Evil(mark), p / "s.npz"),
        lambda path: np.load(path, allow_pickle=True)["image"],
    ),
}


def _saved(save: Callable[[Any, Path], Any], value: Any, path: Path) -> Path:
    save(value, path)
    return path


@pytest.mark.parametrize(("make", "careless"), MALICIOUS.values(), ids=MALICIOUS)
def test_a_malicious_file_is_refused_and_runs_nothing(tmp_path: Path, make: Any, careless: Any) -> None:
    mark = tmp_path / "it ran"
    path = make(tmp_path, mark)
    with pytest.raises(DistilkitError, match=r"could run any code|without running code"):
        read(path, preprocessing="Identity")
    assert not mark.exists()
    careless(path)
    assert mark.exists()  # so the file was truly malicious


SCALAR = np.float64(1).__reduce__()[0]


class Reduced:
    """Pickles as a call."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("dtype", ["O", "V8", "M8", "S4", "no such"])
def test_a_forged_numpy_number_is_refused(tmp_path: Path, dtype: str) -> None:
    """The numpy numbers that are let in are plain ones: a forged dtype could make numpy take bytes for addresses."""

    forged = Reduced(SCALAR, (Reduced(np.dtype, (dtype, False, True)), b"12345678"))
    torch.save({"data": [[IMAGES, HARD]], "accs": forged}, tmp_path / "res_x.pt")
    with pytest.raises(DistilkitError, match="cannot be read"):
        read(tmp_path / "res_x.pt", preprocessing="Identity")


def changed(folder: Path) -> Path:
    path = write(soft("logit"), folder / "set", "mtt")
    torch.save(IMAGES + 1, path / "images_best.pt")
    return path


def both(folder: Path) -> Path:
    mtt_file(folder)
    return dd_ranking_file(folder)


def broken(folder: Path, name: str, content: bytes = b"nothing of the kind") -> Path:
    (folder / name).write_bytes(content)
    return folder / name


def described(folder: Path, **words: Any) -> Path:
    """Pictures with a distilkit.json that says such things."""
    path = write(soft("one-hot"), folder / "set", "image-folder")
    said = json.loads((path / "distilkit.json").read_text("utf-8"))
    (path / "distilkit.json").write_text(json.dumps(said | words), "utf-8")
    return path


def outside(folder: Path) -> Path:
    Image.new("L", (2, 2)).save(folder / "secret.png")
    (folder / "set").mkdir()
    (folder / "set" / "labels.csv").write_text("file,class\n../secret.png,0\n")
    return folder / "set"


def truncated(folder: Path) -> Path:
    path = dc_file(folder)
    return broken(folder, path.name, path.read_bytes()[:-50])


def saved(value: Any) -> Callable[[Path], Path]:
    return lambda folder: _saved(torch.save, value, folder / "res_x.pt")


# What is read, with which options; a piece of the complaint; and the line to type.
MISTAKES: dict[str, tuple[Callable[[Path], Path], dict[str, Any], str, str]] = {
    "nothing there": (lambda p: p / "no", {}, "nothing at", ""),
    "unknown format": (mtt_file, {"format": "mmt"}, "format = 'mmt'", 'format="mtt"'),
    "looks like none": (lambda p: p, {}, "none of the formats.*DATM.*res_", "format="),
    "looks like two": (both, {}, "looks like mtt or dd-ranking", "format="),
    "no preprocessing": (mtt_file, {}, "images_best.pt does not say which preprocessing", 'preprocessing="KorniaZCA"'),
    "preprocessing, misspelt": (mtt_file, {"preprocessing": "Korniazca"}, "it takes .*DC-CIFAR10", 'preprocessing="KorniaZCA"'),
    "preprocessing, a class": (mtt_file, {"preprocessing": Whiten}, "it takes", ""),
    "no data to fit on": (rat_bptt_file, {"class_names": NAMES}, "space of Whiten.*real data", "data="),
    "data in another space": (rat_bptt_file, {"data": KorniaZCA()}, "loaded with KorniaZCA", "preprocessing=Whiten("),
    "data, whitened otherwise": (rat_bptt_file, {"data": Whiten(0.2)}, "cannot be fitted", "Whiten(regularisation=0.1)"),
    "soft labels of no space": (datm_file, {"preprocessing": "Identity"}, "labels_best.pt holds soft labels", 'label_space="logit"'),
    "no such space": (datm_file, {"preprocessing": "Identity", "label_space": "logits"}, "logits", 'label_space="logit"'),
    "class numbers are no logits": (mtt_file, {"preprocessing": "Identity", "label_space": "logit"}, "class numbers", '"one-hot"'),
    "classes not known": (rat_bptt_file, {"preprocessing": "Identity"}, "how many classes", "class_names="),
    "not as many of each": (rat_bptt_file, {"preprocessing": "Identity", "class_names": ["a"] * 4}, "as many of each of 4", "class_names="),
    "too few names": (mtt_file, {"preprocessing": "Identity", "class_names": ["a", "b"]}, "from 0 to 2", ""),
    "flat images": (lambda p: rat_bptt_file(p, HARD), {"preprocessing": "Identity"}, r"IPC_2.h5 \(data\).*48 numbers", "image_shape="),
    "another shape": (mtt_file, {"preprocessing": "Identity", "image_shape": (3, 8, 8)}, r"shape \(3, 4, 4\), but image_shape has", ""),
    "images of whole numbers": (saved({"data": [[HARD, HARD]]}), {"preprocessing": "Identity"}, "res_x.pt.*int64", ""),
    "labels of another length": (saved({"data": [[IMAGES, HARD[1:]]]}), {"preprocessing": "Identity"}, r"int64 \(5,\), but 6 images", ""),
    "no tensor": (saved({"data": [["a", HARD]]}), {}, "tensor of images.*str", ""),
    "another dict": (saved({"net": IMAGES}), {}, r"a dict with \['net'\]", ""),
    "no dict": (saved([1]), {}, "holds a list", ""),
    "no such experiment": (dc_file, {"index": 2}, "2 experiments", "index=1"),
    "no labels": (lambda p: (mtt_file(p) / "labels_best.pt").unlink() or p, {}, "no file .*labels_best.pt", ""),
    "rate is no number": (lambda p: mtt_file(p, lr="fast"), {}, "lr_best.pt should hold one learning rate", ""),
    "damaged pt": (truncated, {}, "cannot be read as a file of torch.save", ""),
    "not pt": (lambda p: broken(p, "res_x.pt"), {}, "cannot be read", ""),
    "not hdf5": (lambda p: broken(p, "x.h5"), {}, "cannot be read as HDF5", ""),
    "not npz": (lambda p: broken(p, "x.npz"), {}, "cannot be read as npz", ""),
    "not safetensors": (lambda p: broken(p, "x.safetensors"), {}, "cannot be read as safetensors", ""),
    "not a table": (lambda p: broken(p, "labels.csv", b"a,b\n1,2\n").parent, {}, "needs the columns file and class", ""),
    "pictures outside": (outside, {}, "outside of the folder", ""),
    "changed since": (changed, {}, "was changed after", ""),
    "names that are a text": (lambda p: described(p, class_names="ab"), {}, "a list of texts as class_names", ""),
    "names that are numbers": (lambda p: described(p, class_names=[1, 2]), {}, "a list of texts as class_names", ""),
    "where it comes from as a list": (lambda p: described(p, provenance=[1]), {}, "provenance = .* it takes a dict", ""),
    "says otherwise": (lambda p: write(soft("logit"), p / "s", "mtt"), {"label_space": "centred"}, "says label_space = 'logit' itself", ""),
    "whitened otherwise": (lambda p: write(soft("logit"), p / "s", "mtt"), {"preprocessing": "Whiten"}, "went through Identity", ""),
    "a run": (lambda p: (p / "results.zarr").mkdir() or p, {}, "is a run", "distilkit.load"),
}


@pytest.mark.parametrize(("make", "options", "words", "fix"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_told_with_the_line_to_type(tmp_path: Path, make: Any, options: dict[str, Any], words: str, fix: str) -> None:
    path = make(tmp_path)
    options = {k: real(v) if k == "data" else v for k, v in options.items()}
    with pytest.raises(DistilkitError) as caught:
        read(path, **options)
    assert re.search(words, caught.value.message, re.DOTALL), caught.value.message
    assert fix in (caught.value.fix or "")


VECTORS = DistilledSet(noise(2, 5), torch.eye(2), torch.arange(2), ("a", "b"))
REFUSED: dict[str, tuple[DistilledSet, str, str, str]] = {
    "labels of another meaning": (soft("logit"), "set.h5", "rat-bptt", "one-hot or probability"),
    "no PNG of vectors": (VECTORS, "set", "image-folder", "grey and colour"),
    "another ending": (soft("logit"), "set.zip", "dc", r"\.pt or \.pth"),
    "no format": (soft("logit"), "set", None, "format = None"),  # type: ignore[dict-item]
    "empty": (soft("logit").subset([]), "set", "mtt", "without samples"),
    "in the way": (soft("logit"), "full", "mtt", "not overwritten"),
    "in the way, a file": (soft("logit"), "full/mine.pt", "dc", "not overwritten"),
}


@pytest.mark.parametrize(("made", "name", "format", "words"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_written_is_refused_and_leaves_nothing(
    tmp_path: Path, made: DistilledSet, name: str, format: str, words: str
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.pt").write_text("mine")
    with pytest.raises(DistilkitError, match=words):
        write(made, tmp_path / name, format)
    assert [p.name for p in tmp_path.rglob("*")] == ["full", "mine.pt"]
    assert (tmp_path / "full" / "mine.pt").read_text() == "mine"


def test_without_h5py_the_error_names_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = rat_bptt_file(tmp_path)
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(DistilkitError, match=re.escape("pip install 'distilkit[hdf5]'")):
        read(path)


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(torch, "save", full)
    for format in ("mtt", "dc"):
        with pytest.raises(OSError, match="no space"):
            write(soft("logit"), place(tmp_path, format), format)
    assert list(tmp_path.iterdir()) == []

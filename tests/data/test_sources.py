"""Sources: real files where they are at hand, published layouts made small, and what is said when something is missing."""

import sys
from pathlib import Path

import attrs
import numpy as np
import pytest
import torch
from PIL import Image

from distilkit.data.preprocessing import Identity, Standardize, Whiten
from distilkit.data.sources.arrays import Arrays
from distilkit.data.sources.assemble import stratified
from distilkit.data.sources.digits import Digits
from distilkit.data.sources.folders import CUB200, ImageFolder, TinyImageNet
from distilkit.data.sources.huggingface import HuggingFace
from distilkit.data.sources.torchvision_sources import CIFAR10, CIFAR100, MNIST, SVHN, FashionMNIST
from distilkit.errors import CombinationError, DistilkitError, FieldError, MissingDataError
from distilkit.functional.streams import Stream

STREAM = Stream(0).fold("data")


def color(label, spot=0):
    """A picture colour that says which class it is of."""
    return (10 + 40 * label, 200 - 40 * label, 5 + spot)


def picture(path: Path, label: int, size=(9, 6), spot=0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color(label, spot)).save(path)  # .JPEG is lossy, but one colour survives to within 3


def make_digits(root):
    return Digits(preprocessing=Identity())


def make_folder(root):
    for label, name in enumerate(("ant", "bee", "cat")):
        for i in range(4 + label):
            picture(root / "train" / name / f"{i}.png", label, spot=i)
        picture(root / "test" / name / "deeper" / "x.PNG", label)
    return ImageFolder(str(root), size=4, preprocessing=Identity())


def make_tiny(root):
    place = root / "tiny-imagenet-200"
    wnids = ["n03", "n01", "n02"]  # the order of wnids.txt, not of the alphabet, numbers the classes
    for label, wnid in enumerate(wnids):
        for i in range(4):
            picture(place / "train" / wnid / "images" / f"{wnid}_{i}.JPEG", label, (64, 64))
        picture(place / "val" / "images" / f"val_{label}.JPEG", label, (64, 64))
    (place / "wnids.txt").write_text("\n".join(wnids) + "\n")
    (place / "words.txt").write_text("n01\tcrane, a bird\nn02\tcrane\nn03\tegg\nn99\tunused\n")
    (place / "val" / "val_annotations.txt").write_text("".join(f"val_{i}.JPEG\t{w}\t0\t0\t62\t62\n" for i, w in enumerate(wnids)))
    return TinyImageNet(str(root), preprocessing=Identity())


def make_cub(root):
    place = root / "CUB_200_2011"
    lines, labels, marks = [], [], []
    for label, name in enumerate(("001.Black_footed_Albatross", "002.Laysan_Albatross")):
        for i in range(5):
            number = len(lines) + 1
            picture(place / "images" / name / f"{i}.jpg", label, (50, 37))
            lines.append(f"{number} {name}/{i}.jpg")
            labels.append(f"{number} {label + 1}")
            marks.append(f"{number} {int(i < 3)}")
    for file, content in (("images.txt", lines), ("image_class_labels.txt", labels), ("train_test_split.txt", marks)):
        (place / file).write_text("\n".join(content) + "\n")
    (place / "classes.txt").write_text("1 001.Black_footed_Albatross\n2 002.Laysan_Albatross\n")
    return CUB200(str(root), preprocessing=Identity(), validation=0)


def make_uneven_npz(root):
    """Five channels, 17 uneven classes, images that are not square."""
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(17), np.arange(1, 18))
    generator.shuffle(labels)
    images = generator.integers(0, 256, (len(labels), 5, 7, 11), dtype=np.uint8)
    images[:, 0, 0, 0] = labels  # each image carries its label, so that a mix-up shows
    np.savez(root / "uneven.npz", train_images=images, train_labels=labels, class_names=[f"c{i}" for i in range(17)])
    return Arrays(str(root / "uneven.npz"), preprocessing=Identity())


def make_npy(root):
    np.save(root / "images.npy", np.random.default_rng(0).random((30, 6, 5)))  # (N, H, W), float64
    np.save(root / "labels.npy", np.arange(30, dtype=np.uint8) % 3)
    return Arrays(str(root), preprocessing=Identity())


def make_zarr(root):
    import zarr

    group = zarr.create_group(str(root / "store.zarr"))
    labels = np.arange(40) % 4
    group.create_array("train_images", data=np.repeat(labels, 3 * 4).reshape(40, 3, 2, 2).astype("uint8"))
    group.create_array("train_labels", data=labels)
    group.create_array("test_images", data=np.zeros((4, 3, 2, 2), "uint8"))
    group.create_array("test_labels", data=np.arange(4))
    group.attrs["class_names"] = ["a", "b", "c", "d"]
    return Arrays(str(root / "store.zarr"), preprocessing=Identity())


def make_tensors(root):
    labels = torch.arange(50) % 5
    return Arrays(train_images=torch.rand(50, 2, 3, 3), train_labels=labels, preprocessing=Identity())


def make_features(root):
    return Arrays(train_images=np.random.default_rng(0).normal(size=(60, 9)), train_labels=np.arange(60) % 2, preprocessing=Standardize())


def make_hub(root):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["no", "yes"])})
    parts = {}
    for part, count in (("train", 12), ("test", 4)):
        rows = [{"image": Image.new("RGB", (8, 6), color(i % 2)), "label": i % 2} for i in range(count)]
        parts[part] = datasets.Dataset.from_list(rows, features=features)
    datasets.DatasetDict(parts).save_to_disk(str(root / "saved"))
    return HuggingFace(str(root / "saved"), size=5, preprocessing=Identity())


# One line a source: what its bundle must be. (maker, classes, image shape, test images)
SOURCES = {
    "Digits": (make_digits, 10, (1, 8, 8), 359),
    "ImageFolder": (make_folder, 3, (3, 4, 4), 3),
    "TinyImageNet": (make_tiny, 3, (3, 64, 64), 3),
    "CUB200": (make_cub, 2, (3, 32, 32), 4),
    "npz, uneven": (make_uneven_npz, 17, (5, 7, 11), None),
    "npy": (make_npy, 3, (1, 6, 5), None),
    "zarr": (make_zarr, 4, (3, 2, 2), 4),
    "tensors": (make_tensors, 5, (2, 3, 3), None),
    "features": (make_features, 2, (9,), None),
    "HuggingFace": (make_hub, 2, (3, 5, 5), 4),
}


@pytest.fixture(params=SOURCES.values(), ids=SOURCES.keys())
def made(request, tmp_path):
    maker, *expected = request.param
    return maker(tmp_path), expected


@pytest.mark.filterwarnings("ignore::DeprecationWarning:(datasets|multiprocess|dill|huggingface_hub).*")
def test_a_bundle_is_whole(made):
    source, (classes, shape, tests) = made
    bundle = source.load(STREAM)
    assert (bundle.num_classes, bundle.image_shape) == (classes, shape)
    assert tests is None or len(bundle.test) == tests
    for split in (bundle.train, bundle.validation, bundle.test):
        assert split.images.dtype == torch.float32
        assert split.images.shape == (len(split), *shape)
        assert split.labels.dtype == torch.int64
    assert set(bundle.train.labels.tolist()) == set(range(classes))  # every class is there to be distilled
    assert len(bundle.test) > 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning:(datasets|multiprocess|dill|huggingface_hub).*")
def test_the_stream_moves_validation_and_never_the_test(made):
    source, _ = made
    first, again, other = source.load(STREAM), source.load(STREAM), source.load(Stream(1))
    raw = [b.preprocessing.inverse(b.test.images) for b in (first, other)]
    torch.testing.assert_close(raw[0], raw[1], rtol=0, atol=1e-5)  # Standardize is fitted on other training images
    assert torch.equal(first.test.labels, other.test.labels)
    for part in ("train", "validation", "test"):
        assert torch.equal(getattr(first, part).images, getattr(again, part).images)
        assert torch.equal(getattr(first, part).labels, getattr(again, part).labels)
    if len(first.validation) > 10:
        assert not torch.equal(first.validation.images, other.validation.images)


def test_uneven_classes_keep_images_with_their_labels(tmp_path):
    bundle = make_uneven_npz(tmp_path).load(STREAM)
    assert bundle.class_names[3] == "c3"
    total = 0
    for split in (bundle.train, bundle.validation, bundle.test):
        torch.testing.assert_close(split.images[:, 0, 0, 0] * 255, split.labels.float(), rtol=0, atol=1e-3)
        assert 0 <= split.images.min() <= split.images.max() <= 1
        total += len(split)
    assert total == 17 * 18 // 2


@pytest.mark.parametrize("maker", [make_folder, make_tiny, make_cub], ids=["ImageFolder", "TinyImageNet", "CUB200"])
def test_pictures_have_the_colour_of_their_class(maker, tmp_path):
    bundle = maker(tmp_path).load(STREAM)
    for split in (bundle.train, bundle.validation, bundle.test):
        for image, label in zip(split.images, split.labels.tolist(), strict=True):
            expected = torch.tensor(color(label)[:2]).view(2, 1, 1) / 255
            torch.testing.assert_close(image[:2], expected.expand(2, *image.shape[1:]), rtol=0, atol=4 / 255)


def test_class_names_of_published_layouts(tmp_path):
    assert make_tiny(tmp_path).load(STREAM).class_names == ("egg", "crane (n01)", "crane (n02)")
    assert make_cub(tmp_path).load(STREAM).class_names == ("Black footed Albatross", "Laysan Albatross")
    assert make_folder(tmp_path / "own").load(STREAM).class_names == ("ant", "bee", "cat")
    inside = TinyImageNet(str(tmp_path / "tiny-imagenet-200"), preprocessing=Identity())  # the folder itself will do too
    assert inside.load(STREAM).num_classes == 3


def test_image_folder_without_train_or_test_folder(tmp_path):
    for label, name in enumerate(("ant", "bee")):
        for i in range(10):
            picture(tmp_path / name / f"{i}.png", label, spot=i)
    bundle = ImageFolder(str(tmp_path), size=4, channels=1).load(STREAM)
    assert (len(bundle.test), bundle.image_shape) == (4, (1, 4, 4))


def test_crop_keeps_proportions_and_stretch_does_not(tmp_path):
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 255  # the middle third is white
    for name in ("a", "b"):
        for i in range(3):
            (tmp_path / name).mkdir(exist_ok=True)
            Image.fromarray(wide).save(tmp_path / name / f"{i}.png")
    crop, stretch = (
        ImageFolder(str(tmp_path), size=10, fit=fit, validation=0, preprocessing=Identity()).load(STREAM).train.images
        for fit in ("crop", "stretch")
    )
    assert crop.min() == 1.0
    assert stretch[..., 0].max() == 0.0
    assert 0.2 < stretch.mean() < 0.45


@pytest.mark.parametrize(("count", "held"), [(1000, 0.1), (1000, 123), (17, 5), (1000, 0)])
def test_stratified_is_proportional_and_complete(count, held):
    labels = torch.randint(7, (count,), generator=torch.Generator().manual_seed(0)) ** 2 % 7
    rest, out = stratified(labels, held, STREAM)
    assert torch.equal(torch.cat([rest, out]).sort().values, torch.arange(count))
    assert len(out) == (round(held * count) if held < 1 else held)
    counts, taken = torch.bincount(labels, minlength=7), torch.bincount(labels[out], minlength=7)
    assert bool((taken - counts * (len(out) / count)).abs().max() < 1)  # the largest remainder method
    assert bool(((counts - taken) > 0)[counts > 0].all())


def test_validation_of_nothing_is_empty_and_of_everything_is_refused():
    data = {"train_images": torch.rand(20, 1, 2, 2), "train_labels": torch.arange(20) % 2}
    bundle = Arrays(**data, validation=0).load(STREAM)
    assert len(bundle.validation) == 0
    assert bundle.validation.images.shape == (0, 1, 2, 2)
    with pytest.raises(CombinationError, match="every class must keep one"):
        Arrays(**data, validation=19).load(STREAM)


@pytest.mark.parametrize("source", [MNIST, FashionMNIST])
@pytest.mark.slow
def test_real_idx_files_through_torchvision(source, idx_root):
    from torchvision import datasets

    root = idx_root(source.__name__)
    bundle = source(str(root), preprocessing=Identity(), validation=5000).load(STREAM)
    assert [len(s) for s in (bundle.train, bundle.validation, bundle.test)] == [55000, 5000, 10000]
    truth = getattr(datasets, source.__name__)(str(root), train=False)
    assert torch.equal((bundle.test.images[:, 0] * 255).round().to(torch.uint8), truth.data)
    assert torch.equal(bundle.test.labels, truth.targets)
    assert torch.bincount(bundle.validation.labels).float().std() < 60  # proportional to the classes of the training set
    assert len(bundle.class_names) == 10


@pytest.mark.slow
def test_real_cifar10_from_npz(cifar_npz):
    bundle = Arrays(str(cifar_npz)).load(STREAM)
    assert [len(s) for s in (bundle.train, bundle.validation, bundle.test)] == [45000, 5000, 10000]
    assert bundle.class_names[:2] == ("airplane", "automobile")
    assert torch.bincount(bundle.validation.labels).tolist() == [500] * 10
    # the published statistics of all 50,000 training images; 45,000 of them are within 0.001
    np.testing.assert_allclose(bundle.preprocessing.mean, [0.4914, 0.4822, 0.4465], atol=1e-3)
    np.testing.assert_allclose(bundle.preprocessing.std, [0.2470, 0.2435, 0.2616], atol=1e-3)


# One line a source: what its message must name when nothing is there.
MISSING = {
    "MNIST": (lambda root: MNIST(root), ["MNIST/raw", "train-images-idx3-ubyte", "yann.lecun.com", "download=True"]),
    "FashionMNIST": (lambda root: FashionMNIST(root), ["FashionMNIST/raw", "t10k-labels-idx1-ubyte", "zalandoresearch", "download=True"]),
    "CIFAR10": (lambda root: CIFAR10(root), ["cifar-10-batches-py", "data_batch_3", "cs.toronto.edu", "download=True"]),
    "CIFAR100": (lambda root: CIFAR100(root), ["cifar-100-python", "meta", "cs.toronto.edu", "download=True"]),
    "SVHN": (lambda root: SVHN(root), ["train_32x32.mat", "ufldl.stanford.edu", "download=True"]),
    "TinyImageNet": (lambda root: TinyImageNet(root), ["tiny-imagenet-200", "wnids.txt", "cs231n.stanford.edu"]),
    "CUB200": (lambda root: CUB200(root), ["CUB_200_2011", "images.txt", "vision.caltech.edu"]),
    "ImageFolder": (lambda root: ImageFolder(root), ["train", "CLASS"]),
    "ImageFolder that is not there": (lambda root: ImageFolder(root + "/fotos"), ["fotos is not there"]),
    "Arrays": (lambda root: Arrays(root + "/x.npz"), ["x.npz"]),
}


@pytest.mark.parametrize(("make", "words"), MISSING.values(), ids=MISSING.keys())
def test_missing_data_says_what_where_and_how(make, words, tmp_path):
    with pytest.raises(MissingDataError) as caught:
        make(str(tmp_path)).load(STREAM)
    for word in (str(tmp_path), *words):
        assert word in str(caught.value)


def test_damaged_files_are_not_called_missing(tmp_path):
    place = tmp_path / "cifar-100-python"
    place.mkdir()
    for file in ("train", "test", "meta"):
        (place / file).write_bytes(b"no pickle")
    with pytest.raises(MissingDataError, match="cannot be read"):
        CIFAR100(str(tmp_path)).load(STREAM)


def test_relative_and_home_paths(tmp_path, monkeypatch):
    make_npy(tmp_path)
    monkeypatch.chdir(tmp_path.parent)
    assert Arrays(tmp_path.name).load(STREAM).num_classes == 3
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    assert Arrays(f"~/{tmp_path.name}").load(STREAM).num_classes == 3
    with pytest.raises(MissingDataError) as caught:
        MNIST("nowhere").load(STREAM)
    assert str(tmp_path.parent / "nowhere") in str(caught.value)


# One line a mistake in arrays: (arrays, fields, words of the message)
X, Y = np.zeros((8, 3, 4, 4), np.float32), np.arange(8) % 2
MISTAKES = {
    "no labels": ({"train_images": X, "extra": Y}, {}, ["train_labels", "found: extra, train_images", "numpy.savez"]),
    "half a test": ({"images": X, "labels": Y, "test_images": X}, {}, ["test_labels", "come together"]),
    "lengths": ({"images": X, "labels": Y[:5]}, {}, ["8 images", "(5,)"]),
    "float labels": ({"images": X, "labels": Y + 0.5}, {}, ["float64", "whole"]),
    "one-hot labels": ({"images": X, "labels": np.eye(2, dtype=int)[Y]}, {}, ["(8, 2)"]),
    "negative label": ({"images": X, "labels": Y - 1}, {}, ["from -1", "begin at 0", "return_inverse=True"]),
    "too few names": ({"images": X, "labels": Y, "class_names": np.array(["a"])}, {}, ["1 class names"]),
    "channels last": ({"images": np.zeros((8, 16, 16, 3)), "labels": Y}, {}, ["(N, H, W, C)", 'layout="NHWC"']),
    "signed pixels": ({"images": X.astype(np.int64), "labels": Y}, {}, ["int64", "uint8"]),
    "five axes": ({"images": X[..., None], "labels": Y}, {}, ["(N, C, H, W)"]),
    "nan": ({"images": X * np.nan, "labels": Y}, {}, ["NaN"]),
    "test of another size": ({"images": X, "labels": Y, "test_images": X[:, :, :2], "test_labels": Y}, {}, ["(3, 2, 4)"]),
    "pickle": ({"images": X, "labels": Y.astype(object)}, {}, ["cannot be read", "pickles"]),
    "five channels last": ({"images": np.zeros((8, 16, 16, 5)), "labels": Y}, {}, ["(N, H, W, C)", 'layout="NHWC"']),
    "bytes as floats": ({"images": X + 200, "labels": Y}, {}, ["up to 200", "from 0 to 1", "astype('uint8')"]),
    "text labels": ({"images": X, "labels": np.array(["a", "b"])[Y]}, {}, ["text", "return_inverse=True"]),
    "labels from 1": ({"images": X, "labels": Y + 1}, {}, ["from 1 to 2", "labels - 1"]),
    "a class without images": ({"images": X, "labels": Y, "class_names": np.array(["a", "b", "c"])}, {}, ["no training image of 'c'"]),
    "a huge label": ({"images": X, "labels": np.where(Y, 10**9, 0)}, {}, ["1000000000"]),
    "long doubles": ({"images": X.astype(np.longdouble), "labels": Y}, {}, ["float128", "astype('float32')"]),
    "structured": ({"images": np.zeros(8, [("a", "f4")]), "labels": Y}, {}, ["[('a', '<f4')]"]),
    "flat colours": ({"images": X + 0.5, "labels": Y}, {"preprocessing": Whiten()}, ["Whiten", "one flat colour"]),
    "nothing": ({"images": X[:0], "labels": Y[:0]}, {}, ["no images"]),
}


@pytest.mark.parametrize(("arrays", "given", "words"), MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes_in_arrays(arrays, given, words, tmp_path):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(DistilkitError) as caught:
        Arrays(str(tmp_path / "x.npz"), **given).load(STREAM)
    for word in words:
        assert word in str(caught.value)


def test_numbers_in_another_byte_order_are_numbers():
    x = np.random.default_rng(0).random((20, 3, 4, 4))
    here, there = (
        Arrays(train_images=a, train_labels=b, preprocessing=Identity()).load(STREAM).train
        for a, b in ((x, np.arange(20) % 2), (x.astype(">f8"), (np.arange(20) % 2).astype(">i4")))
    )
    assert torch.equal(here.images, there.images)
    assert torch.equal(here.labels, there.labels)


def test_channels_last_arrays_when_said():
    x = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), dtype=np.uint8)
    bundle = Arrays(train_images=x, train_labels=np.arange(20) % 2, layout="NHWC", validation=0, test=2, preprocessing=Identity()).load(
        STREAM
    )
    assert bundle.image_shape == (3, 16, 16)
    pool = {im.tobytes() for im in x.transpose(0, 3, 1, 2)}
    assert all((im * 255).round().to(torch.uint8).numpy().tobytes() in pool for im in bundle.train.images)


def test_other_refusals(tmp_path):
    with pytest.raises(CombinationError, match="neither"):
        Arrays()
    with pytest.raises(CombinationError, match="both"):
        Arrays("x.npz", train_images=X)
    (tmp_path / "x.csv").write_text("1,2")
    with pytest.raises(FieldError, match=r"\.npz"):
        Arrays(str(tmp_path / "x.csv")).load(STREAM)
    with pytest.raises(FieldError, match="validation"):
        MNIST(validation=1.5)
    with pytest.raises(FieldError, match="preprocessing"):
        MNIST(preprocessing=Standardize)
    source = make_folder(tmp_path / "f")
    picture(tmp_path / "f" / "test" / "dog" / "0.png", 0)
    with pytest.raises(CombinationError, match="dog"):
        source.load(STREAM)
    (tmp_path / "g" / "a").mkdir(parents=True)
    (tmp_path / "g" / "a" / "0.png").write_text("not a picture")
    with pytest.raises(DistilkitError, match=r"0\.png cannot be read"):
        ImageFolder(str(tmp_path / "g")).load(STREAM)


def test_hugging_face_without_its_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingDataError, match=r"distilkit\[hf\]"):
        HuggingFace("mnist").load(STREAM)


def test_sources_are_values():
    for source in (Digits(), MNIST(), ImageFolder("x"), Arrays("x.npz"), HuggingFace("x")):
        assert source == attrs.evolve(source)
        assert hash(source) == hash(attrs.evolve(source))


def test_a_path_is_taken_as_its_text(tmp_path):
    assert Arrays(tmp_path / "own.npz") == Arrays(str(tmp_path / "own.npz"))
    assert CIFAR10(root=tmp_path) == CIFAR10(root=str(tmp_path))
    with pytest.raises(FieldError, match="takes a text"):
        Arrays(3)

"""`distilkit export` and `import`: a run's set in another format, anyone's as ours, and what is done with its path."""

import matplotlib.image
import numpy as np
import pytest
import torch

import distilkit as dk
from distilkit.data.preprocessing import Refittable
from distilkit.storage import formats
from distilkit.storage.formats import description, lossless
from tests.commands import distilkit


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "run"
    distiller = dk.Distiller(
        dk.Digits(),
        dk.Learner(dk.MLP(hidden=(8,)), dk.SGD(lr=0.1)),
        dk.FullUnroll(3),
        outer=dk.Outer(steps=2, batch_size=32),
        evaluation=dk.Evaluation(seeds=1, steps=(2,), baselines=()),
    )
    distiller.run(folder)
    return folder


@pytest.mark.parametrize("format", ["mtt", "safetensors", "image-folder", "hugging-face"])
def test_export_of_a_run_reads_back(run, tmp_path, format):
    out = tmp_path / ("set.safetensors" if format == "safetensors" else "set")
    done = distilkit("export", run, out, "--to", format)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{out}: 10 images, labels as one-hot\n"
    back, made = formats.read(out, format), dk.load(run)
    assert torch.equal(back.classes, made.classes)
    if format != "image-folder":
        assert torch.equal(back.images, made.images)
        assert back.preprocessing.fingerprint() == made.preprocessing.fingerprint()


@pytest.fixture
def theirs(tmp_path):
    """A folder as MTT's code writes it, of digits whitened by kornia, all training images taken; and the data."""
    data = dk.Digits(preprocessing=dk.KorniaZCA(), validation=0).load(dk.Stream(0))
    rows = torch.cat([(data.train.labels == c).nonzero()[:1, 0] for c in range(10)])
    made = dk.DistilledSet(data.train.images[rows], torch.eye(10), torch.arange(10), data.class_names, preprocessing=data.preprocessing)
    return formats.write(made, tmp_path / "theirs", "mtt", plain=True), data


def test_anyones_set_is_imported_and_needs_to_be_told_nothing_again(theirs, tmp_path):
    path, data = theirs
    done = distilkit("import", path, "--out", "mtt.safetensors", "--preprocessing", "KorniaZCA", "--data", "Digits", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "mtt.safetensors: 10 images, labels as one-hot\n"
    back = dk.load(tmp_path / "mtt.safetensors")
    assert torch.equal(back.images, torch.load(path / "images_best.pt", weights_only=True))
    assert back.preprocessing.fingerprint() == data.preprocessing.fingerprint()
    assert torch.equal(back.preprocessing.inverse(back.images), data.preprocessing.inverse(back.images))
    assert back.provenance == {"imported_from": "theirs", "format": "mtt", "classes_known": "by label"}
    few = ["--steps", "2", "--seeds", "1", "--out", "judged"]
    done = distilkit("evaluate", "mtt.safetensors", "--recipe", "digits", *few, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert torch.equal(dk.load(tmp_path / "judged").images, back.images)


def test_import_is_an_export_to_safetensors(run, tmp_path):
    for number, words in enumerate((["import", run, "--out"], ["export", run, "--to", "safetensors"])):
        done = distilkit(*words, f"{number}.safetensors", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    first, second = (lossless.head((tmp_path / f"{number}.safetensors").read_bytes()) for number in range(2))
    assert first == second  # with the digest of all tensors and words in it


def test_a_folder_of_the_hub_is_imported_to_the_bit(run, tmp_path):
    assert distilkit("export", run, tmp_path / "hub", "--to", "hugging-face").returncode == 0
    done = distilkit("import", tmp_path / "hub", "--out", tmp_path / "back.safetensors")
    assert done.returncode == 0, done.stderr
    made, back = dk.load(run), dk.load(tmp_path / "back.safetensors")
    for name in ("images", "labels", "classes", "block"):
        assert torch.equal(getattr(made, name), getattr(back, name)), name
    assert back.provenance == made.provenance
    assert made.provenance["training"]["steps"] == 2
    words = description.read(tmp_path / "hub")
    assert words["protocol"]["steps"] == 2
    assert words["expected_accuracy"]["each"] == made.provenance["training"]["test_accuracy"]


@pytest.mark.parametrize("format", ["safetensors", "hugging-face"])
def test_an_imported_set_is_drawn(run, tmp_path, format):
    name = "set.safetensors" if format == "safetensors" else "set"
    formats.write(dk.load(run), tmp_path / name, format)
    done = distilkit("sheet", name, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    alone = tmp_path / ("set-sheet.png" if format == "safetensors" else "set/sheet.png")
    assert done.stdout.endswith(f"Look at   {alone.relative_to(tmp_path)}\n")
    done = distilkit("sheet", name, "--data", "Digits", "--nearest", "--real", "1", "--out", "beside.png", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    shapes = [matplotlib.image.imread(path).shape for path in (alone, tmp_path / "beside.png")]
    assert shapes[1] > shapes[0]  # real images are beside them


@pytest.mark.parametrize("format", ["safetensors", "hugging-face"])
def test_an_exported_set_is_judged_as_its_file_says(run, tmp_path, monkeypatch, format):
    """By the network and protocol of its run, whose accuracy it reaches to the bit."""
    monkeypatch.chdir(tmp_path)
    name = "set.safetensors" if format == "safetensors" else "set"
    formats.write(dk.load(run), name, format)
    wanted = dk.evaluate(run, evaluation=dk.Evaluation(seeds=2, steps=(2,))).accuracy.values
    done = distilkit("evaluate", name, "--seeds", "2", "--out", "judged")
    assert done.returncode == 0, done.stderr
    judged = dk.open("judged")["evaluation"].to_dataset()
    assert judged.training_steps.values.tolist() == [2]
    assert np.array_equal(judged.accuracy.values, wanted)
    again = dk.evaluate(name, dk.Digits(preprocessing=dk.load(name).preprocessing, validation=0))
    assert np.array_equal(again.accuracy.values[:, :2], wanted)
    done = distilkit("evaluate", name, "--seeds", "1", "--data", "Digits", "--steps", "1,3", "--json")
    assert done.returncode == 0, done.stderr


def test_a_set_without_its_whitening_gets_it_from_data(run, tmp_path, monkeypatch):
    """As those that come with distilkit."""
    made = dk.load(run)
    assert made.preprocessing.to_arrays()[1]
    everything = dk.Digits(validation=0).load(dk.Stream(0))
    light = Refittable.of(everything.preprocessing)
    rows = torch.cat([(everything.train.labels == c).nonzero()[:1, 0] for c in range(10)])
    images, names = everything.train.images[rows], everything.class_names
    formats.write(dk.DistilledSet(images, torch.eye(10), torch.arange(10), names, preprocessing=light), tmp_path / "light.safetensors")
    monkeypatch.chdir(tmp_path)
    done = distilkit("export", "light.safetensors", "hub", "--to", "hugging-face")
    assert done.returncode == 2
    assert "distilkit export SET OUT --data DATA" in " ".join(done.stderr.split())
    done = distilkit("export", "light.safetensors", "hub", "--to", "hugging-face", "--data", "Digits")
    assert done.returncode == 0, done.stderr
    assert np.array_equal(dk.load("hub").preprocessing.mean, everything.preprocessing.mean)


# A command, and what it says.
MISTAKES = {
    "a whitening without data": (["import", "THEIRS", "--out", "a.safetensors", "--preprocessing", "Whiten"], "Try: --data CIFAR10.npz"),
    "another ending": (["import", "RUN", "--out", "a.npz"], "a file that ends in .safetensors"),
    "data that a run knows": (["import", "RUN", "--out", "a.safetensors", "--data", "Digits"], "says its data itself"),
    "data that a set does not need": (["export", "OURS", "a", "--to", "mtt", "--data", "Digits"], "leave out --data"),
    "no such data": (["import", "THEIRS", "--out", "a.safetensors", "--data", "Digitz"], "Try: --data Digits"),
    "a set that is not there": (["evaluate", "nothing.pt"], "the path does not exist"),
    "a recipe's name with a slip": (["sheet", "fast/cifar10-ipc2"], "Did you mean fast/cifar10-ipc1"),
    "a larger part than there is": (["subsets", "RUN", "--budgets", "9"], "Try: --budgets 1"),
    "a set without its recipe": (["evaluate", "THEIRS"], "Try: --recipe"),
    "real images of nowhere": (["sheet", "OURS", "--real", "2"], "Try: --data CIFAR10.npz"),
    "what a set started from": (["sheet", "OURS", "--before"], "Try: distilkit sheet RUN --before"),
    "what a run started from, by other data": (["sheet", "RUN", "--before", "--data", "Digits"], "--data gives others"),
    "nearest of nowhere": (["sheet", "OURS", "--nearest"], "Try: --data CIFAR10.npz"),
    "a value of no spec": (["sheet", "OURS", "--set", "seed=1"], "has no spec"),
    "one of several sets": (["sheet", "OURS", "--which", "last"], "it is one set"),
}


@pytest.mark.parametrize(("words", "said"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_told(words, said, run, theirs, tmp_path):
    ours = formats.write(dk.load(run), tmp_path / "ours.safetensors")
    before = {path.name for path in tmp_path.iterdir()}
    places = {"RUN": run, "THEIRS": theirs[0], "OURS": ours}
    done = distilkit(*(places.get(word, word) for word in words), cwd=tmp_path)
    assert done.returncode == 2, done
    assert said in " ".join(done.stderr.split())
    assert {path.name for path in tmp_path.iterdir()} == before

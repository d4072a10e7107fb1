"""`evaluate` on sets and runs, and `distilkit evaluate` on files of others."""

from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import attrs
import numpy as np
import pytest
import torch
import xarray as xr
from PIL import Image
from typer.testing import CliRunner

import distilkit as dk
from distilkit import process
from distilkit.cli.app import app
from distilkit.cli.evaluate import assemble, parse_networks, source_of
from distilkit.data.bundle import DataBundle, Split
from distilkit.data.distilled import DistilledSet
from distilkit.data.pixels import Pixels
from distilkit.errors import CombinationError, DistilkitError, FieldError, RunError
from distilkit.evaluation import measure, training_set
from distilkit.storage import formats
from tests.commands import FORKS

LEARNER = dk.Learner(dk.MLP(hidden=(16,)), dk.Adam(lr=0.02))
PROTOCOL = dk.Evaluation(seeds=2, steps=(5, 20))
RECIPE = """
title = "small"
[data]
kind = "CIFAR10"
[data.preprocessing]
kind = "Whiten"
[learner.network]
kind = "ConvNet"
width = 4
depth = 1
[learner.augment]
kind = "FlipRotate"
[truncation]
kind = "RandomTruncation"
horizon = 4
window = 2
[evaluation]
seeds = 2
steps = [3, 6]
"""


def cli(*words: object) -> str:
    done = CliRunner().invoke(app, ["evaluate", *map(str, words)], catch_exceptions=True)
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


def test_evaluate_a_set(ten: DistilledSet, digits: DataBundle) -> None:
    result = dk.evaluate(ten, digits, LEARNER, PROTOCOL, seed=3)
    assert result.accuracy.dims == ("training_steps", "seed")
    learner = LEARNER.bind(digits.image_shape, 10)
    stream = dk.Stream(3).fold("evaluate").fold("networks")
    wanted = measure(learner, training_set(ten, digits), {"test": digits.test, "validation": digits.validation}, PROTOCOL, stream)
    assert np.array_equal(result.accuracy, wanted["test"])
    assert np.array_equal(result.validation_accuracy, wanted["validation"])
    assert int(result.selected_steps) == (5, 20)[int(wanted["validation"].mean(1).argmax())]
    assert float(result.paper_protocol) == wanted["test"].mean(1).max()
    assert json.loads(result.attrs["protocol"])["selected_on"] == "validation split"
    assert json.loads(result.attrs["preprocessing"])["kind"] == "Standardize"
    assert dk.evaluate(ten, digits, LEARNER, PROTOCOL, seed=3).identical(result)
    assert not np.array_equal(dk.evaluate(ten, digits, LEARNER, PROTOCOL, seed=4).accuracy, result.accuracy)


def test_paper_protocol_is_named_as_optimistic(ten: DistilledSet, digits: DataBundle) -> None:
    result = dk.evaluate(ten, digits, LEARNER, attrs.evolve(PROTOCOL, select="paper"))
    assert "optimistic" in json.loads(result.attrs["protocol"])["selected_on"]
    assert "optimistic" in result.paper_protocol.attrs["long_name"]
    assert float(result.accuracy.sel(training_steps=result.selected_steps).mean()) == float(result.paper_protocol)
    assert "validation_accuracy" not in result


def test_poisoned_test_labels_select_nothing(ten: DistilledSet, digits: DataBundle) -> None:
    poisoned = attrs.evolve(digits, test=Split(digits.test.images, (digits.test.labels + 1) % 10))
    good, bad = (dk.evaluate(ten, data, LEARNER, PROTOCOL) for data in (digits, poisoned))
    assert good.selected_steps.equals(bad.selected_steps)
    assert good.validation_accuracy.equals(bad.validation_accuracy)
    assert not good.accuracy.equals(bad.accuracy)


def test_without_validation_split_nothing_is_selected(ten: DistilledSet) -> None:
    source = dk.Digits(validation=0, preprocessing=ten.preprocessing)
    result = dk.evaluate(ten, source, LEARNER, PROTOCOL)
    assert "selected_steps" not in result
    assert json.loads(result.attrs["protocol"])["selected_on"] is None


def test_other_preprocessing_is_refused(ten: DistilledSet, digits: DataBundle) -> None:
    with pytest.raises(CombinationError, match="means nothing"):
        dk.evaluate(ten, dk.Digits(preprocessing=dk.Whiten()), LEARNER, PROTOCOL)
    with pytest.raises(CombinationError, match="data and learner"):
        dk.evaluate(ten)
    with pytest.raises(RunError, match="no run"):
        dk.evaluate("nowhere", digits, LEARNER)


def test_cross_architecture_table(ten: DistilledSet, digits: DataBundle) -> None:
    """Each network with its own learning rate; the row of a network is what it is alone."""
    networks = parse_networks(["MLP", "ConvNet"], ["ConvNet=0.005"], LEARNER, PROTOCOL)
    assert networks["MLP"] is LEARNER.network
    assert networks["ConvNet"][1] == dk.Adam(lr=0.005)
    networks["ConvNet"] = (dk.ConvNet(width=4, depth=1), networks["ConvNet"][1])
    table = dk.evaluate(ten, digits, LEARNER, PROTOCOL, networks=networks)
    assert table.accuracy.dims == ("network", "training_steps", "seed")
    alone = dk.evaluate(ten, digits, dk.Learner(dk.ConvNet(width=4, depth=1), dk.Adam(lr=0.005)), PROTOCOL)
    assert np.array_equal(table.accuracy.sel(network="ConvNet"), alone.accuracy)
    assert np.array_equal(table.accuracy.sel(network="MLP"), dk.evaluate(ten, digits, LEARNER, PROTOCOL).accuracy)
    for names, rates in ((["convnet"], []), (["MLP"], ["VGG=0.1"]), (["MLP"], ["MLP=fast"])):
        with pytest.raises(FieldError):
            parse_networks(names, rates, LEARNER, PROTOCOL)


def test_baselines_and_ranking_beside_it(ten: DistilledSet, digits: DataBundle) -> None:
    result = dk.evaluate(ten, digits, LEARNER, PROTOCOL, baselines=["random real", "full data"], ranking=True)
    assert result.baseline_accuracy.dims == ("baseline", "training_steps", "seed")
    assert result.label_robust_score.dims == ("seed",)
    assert ((result.augmentation_robust_score > 0) & (result.augmentation_robust_score < 1)).all()
    with pytest.raises(FieldError):
        dk.evaluate(ten, digits, LEARNER, PROTOCOL, baselines=["random"])


class Lost:
    """An executor whose workers are gone."""

    def submit(self, fn: object, /, *args: object) -> object:
        raise OSError("the machine is gone")


JUDGES = {"small": dk.MLP(hidden=(16,)), "large": (dk.MLP(hidden=(2000,)), dk.SGD(lr=0.1))}


def shared(ten: DistilledSet, digits: DataBundle, **how: object) -> xr.Dataset:
    protocol = attrs.evolve(PROTOCOL, seeds=3, batch_size=64)
    baselines = ["random real", "full data"]
    with process.thread_limit(1):
        return dk.evaluate(ten, digits, LEARNER, protocol, networks=JUDGES, baselines=baselines, **how)


@pytest.fixture(scope="module")
def alone(ten: DistilledSet, digits: DataBundle) -> xr.Dataset:
    """What one process gives."""
    return shared(ten, digits)


class Steps(dk.Silent):
    """How many pieces are done of how many; stops where it is told to."""

    def __init__(self, last: int | None = None) -> None:
        self.said: list[tuple[int, int]] = []
        self.last = last

    def advance(self, done: int, total: int, /) -> None:
        self.said.append((done, total))
        if done == self.last:
            raise KeyboardInterrupt


@pytest.mark.parametrize("name", ["threads", "lost", pytest.param("processes", marks=pytest.mark.slow)])
def test_workers_find_the_same(name: str, alone: xr.Dataset, ten: DistilledSet, digits: DataBundle, tmp_path: Path) -> None:
    makers = {"threads": lambda: ThreadPoolExecutor(2), "lost": Lost, "processes": lambda: ProcessPoolExecutor(2, mp_context=FORKS)}
    executor, steps = makers[name](), Steps()
    found = shared(ten, digits, workers=executor, folder=tmp_path / "work" if name == "lost" else None, progress=steps)
    if not isinstance(executor, Lost):
        executor.shutdown()
    assert found.identical(alone)
    assert steps.said[-1] == (1 + 3 + 1 + 1, 6)  # small networks and those of the baselines together, large ones each
    assert not [*tmp_path.rglob("*.work")]


def test_shards_and_what_was_stopped_are_the_whole(alone: xr.Dataset, ten: DistilledSet, digits: DataBundle, tmp_path: Path) -> None:
    part = shared(ten, digits, folder=tmp_path, shard=(2, 2))
    assert [int(one.isnull().any("training_steps").sum()) for one in part.accuracy] == [3, 1]  # every second of the six pieces
    assert part.accuracy.sel(network="large", seed=[0, 2]).equals(alone.accuracy.sel(network="large", seed=[0, 2]))
    with pytest.raises(KeyboardInterrupt):
        shared(ten, digits, folder=tmp_path, progress=Steps(4))
    last = Steps()
    assert shared(ten, digits, folder=tmp_path, progress=last).identical(alone)
    assert last.said == [(4, 6), (5, 6), (6, 6)]
    with pytest.raises(RunError, match="it differs in seed"):
        shared(ten, digits, folder=tmp_path, seed=1)
    noisy = attrs.evolve(digits, test=attrs.evolve(digits.test, images=digits.test.images + 0.1))  # of the same labels
    held_out = attrs.evolve(digits, train=digits.validation, validation=digits.train)
    for other in (noisy, held_out):
        with pytest.raises(RunError, match="it differs in data"):
            shared(ten, other, folder=tmp_path)


def test_shards_of_the_command(run: Path, tmp_path: Path) -> None:
    words, out = (run, "--baselines", "random real", "--out", tmp_path / "judged"), tmp_path / "judged"
    assert "50% is there" in cli(*words, "--shard", "1/2")
    assert not (out / "results.zarr").exists()
    said = cli(*words)
    assert "training on random real" in said
    assert "training 2 networks" not in said  # which the shard has done
    found = dk.evaluate(run, baselines=["random real"])
    assert f"{float(found.accuracy.sel(training_steps=20).mean()):.4f}" in said
    stored = dk.open(out)["evaluation"]
    for name in ("accuracy", "baseline_accuracy", "selected_steps"):
        assert np.array_equal(stored[name], found[name]), name


@pytest.mark.slow
@pytest.mark.usefixtures("forked_workers")
def test_workers_of_the_command(run: Path) -> None:
    words = (run, "--networks", "MLP,ConvNet")
    _, shared, table = cli(*words, "--workers", "2").partition(f"{run.name}: accuracy on")
    assert shared
    assert table == cli(*words).partition(shared)[2]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("runs") / "digits"
    outer = dk.Outer(steps=2, batch_size=16)
    protocol = dk.Evaluation(seeds=2, steps=(5, 20), every=1, baselines=())
    dk.Distiller(dk.Digits(), LEARNER, dk.RandomTruncation(4, 2), outer=outer, evaluation=protocol, title="digits").run(place)
    return place


def test_evaluate_a_run(run: Path, tmp_path: Path, digits: DataBundle) -> None:
    """Data, learner and protocol are those of its spec, and the command says the same as Python."""
    result = dk.evaluate(run)
    assert result.sizes["training_steps"] == 2
    assert result.equals(dk.evaluate(dk.load(run), dk.Digits().load(dk.Stream(0).fold("data")), LEARNER, PROTOCOL))
    said = cli(run, "--out", tmp_path / "out")
    assert f"{float(result.accuracy.sel(training_steps=20).mean()):.4f}" in said
    assert "Selected on the validation split" in said
    stored = xr.open_datatree(tmp_path / "out" / "results.zarr", engine="zarr")
    assert np.array_equal(stored["evaluation"].accuracy, result.accuracy)
    assert torch.equal(dk.load(tmp_path / "out").images, dk.load(run).images)
    with pytest.raises(RunError, match="holds results"):
        cli(run, "--out", tmp_path / "out")
    few = cli(run, "--steps", "3,4", "--seeds", "1", "--select", "paper", "--networks", "MLP", "--lr", "MLP=0.1")
    assert "optimistic" in few
    assert "validation" not in few


def written(tmp_path: Path, per_class: int = 1, labels: np.ndarray | None = None) -> tuple[Path, Path, Path]:
    """A set of whitened real images as the authors' code writes it (whitened here by numpy), its data, and a recipe."""
    h5py = pytest.importorskip("h5py")
    images = (dk.Stream(9).uniform(120, 3, 8, 8) * 255).byte().numpy()
    classes = np.arange(120) % 4
    np.savez(tmp_path / "real.npz", train_images=images[:80], train_labels=classes[:80], test_images=images[80:], test_labels=classes[80:])
    # Their order of the pixels is (y, x, channel) while they whiten, and (channel, y, x) in the file.
    flat = images[:80].transpose(0, 2, 3, 1).reshape(80, -1).astype(np.float64)
    unit = flat - flat.mean(1, keepdims=True)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    values, vectors = np.linalg.eigh(unit.T @ unit / 80)
    white = unit @ (vectors / np.sqrt(values + 0.1 * values.mean())) @ vectors.T
    white = white.reshape(80, 8, 8, 3).transpose(0, 3, 1, 2)
    rows = [i for c in range(4) for i in np.flatnonzero(classes[:80] == c)[:per_class]]
    with h5py.File(tmp_path / "set.h5", "w") as file:
        file["data"] = white[rows].reshape(len(rows), -1).astype(np.float32)
        file["epoch"] = 7
        if labels is not None:
            file["label"] = labels
    (tmp_path / "recipe.toml").write_text(RECIPE)
    return tmp_path / "set.h5", tmp_path / "real.npz", tmp_path / "recipe.toml"


def test_a_set_of_the_authors_from_the_command_line(tmp_path: Path) -> None:
    file, data, recipe = written(tmp_path)
    said = cli(file, "--format", "rat-bptt", "--data", data, "--recipe", recipe)
    case = assemble(file, data=str(data), recipe=str(recipe), format="rat-bptt")
    # All training images are there, as they were for the authors, and our whitening is theirs.
    assert (len(case.data.train), len(case.data.validation), len(case.data.test)) == (80, 0, 40)
    mine = torch.cat([(case.data.train.labels == c).nonzero()[0] for c in range(4)])
    assert torch.allclose(case.distilled.images, case.data.train.images[mine], atol=1e-4)
    assert torch.equal(case.distilled.labels, torch.eye(4))
    result = dk.evaluate(case)
    for steps in (3, 6):
        one = result.accuracy.sel(training_steps=steps)
        assert f"{float(one.mean()):.4f}" in said
        assert f"{float(one.std(ddof=1)):.4f}" in said
    assert "no number of steps was selected" in said
    assert f"{float(result.paper_protocol):.4f}" in said
    assert "FlipRotate" in json.loads(result.attrs["protocol"])["learner"]


def test_other_data_is_kept_as_the_recipe_says(tmp_path: Path) -> None:
    """Images of a file stay bytes where those of the recipe do, and so do those of another kind that can."""
    file, data, recipe = written(tmp_path)
    case = assemble(file, data=str(data), recipe=str(recipe), overrides=["data.store=uint8"])
    assert isinstance(case.data.train.images, Pixels)
    assert (case.data.train.images.preprocessing, len(case.data.train)) == (case.data.preprocessing, 80)
    bytes_ = dk.CIFAR10(store="uint8", preprocessing=dk.Whiten())
    assert source_of("CIFAR100", bytes_) == dk.CIFAR100(store="uint8", preprocessing=dk.Whiten())
    assert source_of("Digits", bytes_) == dk.Digits(preprocessing=dk.Whiten())


def test_a_folder_of_images_is_data_too(tmp_path: Path) -> None:
    """Read in the size and the colours of the set."""
    for number, name in enumerate(["cat", "dog"] * 6):
        (tmp_path / "photos" / name).mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (9, 9), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{number}.png")
    bundle = dk.ImageFolder(str(tmp_path / "photos"), size=6, channels=1, validation=0).load(dk.Stream(0))
    made = DistilledSet(bundle.train.images[:2], torch.eye(2), torch.arange(2), ("cat", "dog"), preprocessing=bundle.preprocessing)
    file, recipe = formats.write(made, tmp_path / "set.safetensors"), written(tmp_path)[2]
    case = assemble(file, data=str(tmp_path / "photos"), recipe=str(recipe))
    assert case.data.image_shape == (1, 6, 6)
    assert torch.equal(case.data.test.images, bundle.test.images)


def test_soft_labels_of_the_authors(tmp_path: Path) -> None:
    soft = (torch.eye(4).repeat_interleave(2, 0) * 0.8).numpy()
    file, data, recipe = written(tmp_path, per_class=2, labels=soft)
    case = assemble(file, data=str(data), recipe=str(recipe), overrides=["evaluation.seeds=1"])
    assert case.distilled.label_space == "probability"
    assert np.allclose(case.distilled.labels, soft)
    assert dk.evaluate(case).sizes["seed"] == 1


def test_our_own_file_brings_its_own_space(tmp_path: Path, ten: DistilledSet, run: Path) -> None:
    """A set of ours says its preprocessing: the data comes in that, whatever the recipe says, with no images held out."""
    file = formats.write(ten, tmp_path / "set.safetensors")
    case = assemble(file, data="Digits", recipe=str(run / "spec.toml"))
    assert case.data.preprocessing.fingerprint() == ten.preprocessing.fingerprint()
    assert len(case.data.validation) == 0
    assert dk.evaluate(case).accuracy.mean() > 0.1


WRONG = {
    "no recipe": ([], "--recipe"),
    "no such recipe": (["--recipe", "paper/cifar10-ipc0"], "no recipe"),
    "no such data": (["--recipe", "RECIPE", "--data", "CIFAR1O"], "neither a file"),
    "no such format": (["--recipe", "RECIPE", "--data", "DATA", "--format", "rat"], "rat-bptt"),
    "no such protocol": (["--recipe", "RECIPE", "--data", "DATA", "--select", "test"], "evaluation.select"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_missing_is_said(name: str, tmp_path: Path) -> None:
    words, complaint = WRONG[name]
    file, data, recipe = written(tmp_path)
    known = {"RECIPE": recipe, "DATA": data}
    with pytest.raises(DistilkitError, match=complaint):
        cli(file, *(known.get(word, word) for word in words))

"""The commands that write specs and look at what is there: `new`, `schema`, `show`, `doctor`."""

import json
import shutil

import numpy as np
import pytest
import torch

from distilkit import spec
from distilkit.runs import doctor
from tests.commands import distilkit


@pytest.fixture
def place(tmp_path):
    draw = np.random.default_rng(0)
    np.savez(tmp_path / "photos.npz", images=draw.integers(0, 256, (300, 24, 24, 3), dtype=np.uint8), labels=np.arange(300) % 5)
    np.savez(tmp_path / "vectors.npz", images=draw.normal(size=(90, 12)).astype("f4"), labels=np.arange(90) % 3)
    folder = tmp_path / "arrays"
    folder.mkdir()
    np.save(folder / "images.npy", draw.random((80, 1, 28, 28), dtype=np.float32))
    np.save(folder / "labels.npy", np.arange(80) % 4)
    return tmp_path


NEW = {
    "photos, channels last": (["--data", "photos.npz"], "fast/cifar10-ipc1", {"images": {"per_class": 1}}),
    "feature vectors": (["--data", "vectors.npz", "--steps", "3"], "digits", {"outer": {"steps": 3}}),
    "a folder of arrays": (["--data", "arrays", "--per-class", "2"], "fast/cifar10-ipc10", {"images": {"per_class": 2}}),
    "a folder of images": (["--data", "pictures"], "fast/cifar10-ipc1", {"data": {"kind": "ImageFolder"}}),
    "a dataset": (["--data", "CIFAR100", "--per-class", "10"], "fast/cifar10-ipc10", {"data": {"kind": "CIFAR100"}}),
    "grey ones": (["--data", "MNIST"], "fast/fashion-mnist-ipc1", {"data": {"kind": "MNIST"}}),
    "one that is put there by hand": (["--data", "TinyImageNet"], "fast/cifar10-ipc1", {"data": {"kind": "TinyImageNet"}}),
    "what there is": ([], "digits", {"data": {"kind": "Digits"}}),
}


@pytest.mark.parametrize("name", NEW)
def test_new_writes_a_spec_that_is_one(name, place, monkeypatch):
    monkeypatch.chdir(place)
    (place / "pictures").mkdir()
    words, base, expected = NEW[name]
    done = distilkit("new", "mine.toml", *words)
    assert done.returncode == 0, done.stderr
    assert f"after the recipe {base}" in done.stdout
    text = (place / "mine.toml").read_text()
    assert text.startswith("# ")
    assert "published:" not in text
    tree = spec.to_tree(spec.load("mine.toml"))
    assert tree["title"] == "mine"
    for table, values in expected.items():
        assert tree[table] | values == tree[table]


@pytest.mark.figures
@pytest.mark.slow
@pytest.mark.parametrize("data", ["photos.npz", "vectors.npz", "arrays"])
def test_what_new_writes_can_be_run(data, place):
    assert distilkit("new", "mine.toml", "--data", data, "--steps", "2", cwd=place).returncode == 0
    few = ["evaluation.seeds=1", "evaluation.steps=[2]", "evaluation.every=1", "truncation.window=2", 'unroller.compile="eager"']
    small = {"photos.npz": ["learner.network.width=4"], "arrays": ["learner.network.width=4", "growth.widths=[2]"]}.get(data, [])
    done = distilkit("run", "mine.toml", *(word for change in [*few, *small] for word in ("--set", change)), cwd=place)
    assert done.returncode == 0, done.stderr
    assert (place / "runs" / "mine" / "distilled.png").exists()


def test_new_refuses_what_cannot_be(place):
    (place / "mine.toml").write_text("mine")
    for words, said in [
        (["mine.toml", "--data", "photos.npz"], "Try: distilkit new mine-2.toml --data photos.npz"),
        (["other.toml", "--data", "CIFAR1O"], "--data CIFAR10"),
        (["other.toml", "--data", "nowhere.npz"], "nowhere.npz is not there"),
        (["other.toml", "--data", "mine.toml"], "mine.toml"),
    ]:
        done = distilkit("new", *words, cwd=place)
        assert done.returncode == 2
        assert said in done.stderr
    assert (place / "mine.toml").read_text() == "mine"
    assert not (place / "other.toml").exists()


def test_schema_is_written_where_it_is_asked_for(tmp_path):
    done = distilkit("schema", "--out", tmp_path / "spec.json")
    assert "#:schema" in done.stdout
    written = json.loads((tmp_path / "spec.json").read_text())
    assert written == json.loads(distilkit("schema").stdout)
    assert "ConvNet" in written["$defs"]


def test_show_tells_what_there_is(digits_run, tmp_path):
    shutil.copytree(digits_run, tmp_path / "run")
    said = distilkit("show", "run", cwd=tmp_path).stdout
    assert "outer steps, finished" in said
    assert "random real" in said
    for name in ("run/spec.toml", "run/results.zarr", "run/distilled.png", "run/history.png"):
        assert name in said
    assert "report.html" not in said
    nothing = distilkit("show", "nowhere", cwd=tmp_path)
    assert nothing.returncode == 2
    assert "nowhere" in nothing.stderr


def test_show_of_a_stopped_run_says_how_to_go_on(tmp_path):
    distilkit("run", "digits", "--out", "run", "--stop-after", "0.001", "--set", "evaluation.every=0", cwd=tmp_path)
    assert "stopped; distilkit resume run goes on" in distilkit("show", "run", cwd=tmp_path).stdout


def test_doctor_tells_what_this_machine_has(tmp_path):
    done = distilkit("doctor", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for words in ("distilkit", f"torch {torch.__version__}", "processor", "bfloat16", "C++ compiler", "GPU", "GiB", "extras"):
        assert words in " ".join(done.stdout.split()), words


TROUBLE = {
    "no compiler": ("compiler_here", lambda: None, "C++ compiler", "install g++"),
    "no room": ("SCARCE", 2**60, "disk", "--out on another disk"),
    "a card that is not used": (
        "shutil",
        type("Found", (), {"which": staticmethod(lambda _: "/x"), "disk_usage": shutil.disk_usage}),
        "GPU",
        "pytorch.org",
    ),
}


@pytest.mark.parametrize("name", TROUBLE)
def test_doctor_says_what_to_do(name, monkeypatch, tmp_path):
    attribute, value, what, advice = TROUBLE[name]
    monkeypatch.setattr(doctor, attribute, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = {one.what: one for one in doctor.examine(tmp_path)}
    assert advice in found[what].advice


def test_doctor_finds_data(tmp_path):
    (tmp_path / "data" / "cifar-10-batches-py").mkdir(parents=True)
    found = {one.what: one for one in doctor.examine(tmp_path)}
    assert found["data"].found.startswith("CIFAR10, in ")

"""Seven components of a user's own in one spec, from the files that docs/extending.md shows: every command takes them."""

import shutil
import sys
from pathlib import Path

import attrs
import pytest
import torch
import xarray as xr

import distilkit as dk
from distilkit import spec
from distilkit.errors import CombinationError, FieldError
from distilkit.storage import formats
from tests.commands import distilkit

FILES = Path(__file__).parents[1] / "examples" / "extending"
SHORT = ["outer.steps=4", "evaluation.every=2", "evaluation.steps=[2,4]", "evaluation.seeds=2", 'evaluation.baselines=["random real"]']


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The user's folder, with a run in it."""
    place = tmp_path_factory.mktemp("own")
    for name in ("my_parts.py", "own.toml"):
        shutil.copy(FILES / name, place)
    done = distilkit("run", "own.toml", "--trust", *(f"--set={change}" for change in SHORT), cwd=place)
    assert done.returncode == 0, done.stderr
    yield place
    sys.modules.pop("my_parts", None)


def test_nothing_of_it_runs_without_trust(folder):
    for command in (["run", "own.toml"], ["validate", "own.toml"], ["evaluate", "runs/own"], ["subsets", "runs/own"]):
        done = distilkit(*command, cwd=folder)
        assert done.returncode == 2
        assert "--trust" in done.stderr


def test_the_run_is_the_users(folder):
    with xr.open_datatree(folder / "runs" / "own" / "results.zarr") as tree:
        assert tree["distilled"]["image"].shape == (3, 1, 12, 12)
        assert tree["history"]["window_start"].values.tolist() == [0, 0, 0, 1]  # Curriculum
        assert (tree["history"]["meta_gradient_norm"] > 0).all()


@pytest.mark.parametrize(
    "command",
    [
        ("validate", "own.toml"),
        ("plan", "own.toml"),
        ("run", "runs/own/spec.toml", "--out", "again"),
        ("evaluate", "runs/own", "--seeds", "2", "--steps", "2,4"),
        ("subsets", "runs/own", "--budgets", "1", "--draws", "1", "--seeds", "1"),
        ("study", "gradients", "own.toml", "--at", "0", "--replicates", "3", "--out", "study"),
    ],
    ids=lambda command: command[0] + (" again" if "--out" in command and command[0] == "run" else ""),
)
def test_every_command_takes_them(folder, command):
    done = distilkit(*command, "--trust", cwd=folder)
    assert done.returncode == 0, done.stderr


def test_the_same_spec_gives_the_same_set(folder, monkeypatch):
    monkeypatch.chdir(folder)
    first, second = (spec.load("runs/own/spec.toml", trust=True).run(name) for name in ("one", "two"))
    assert (first["distilled"]["image"] == second["distilled"]["image"]).all()


def test_an_object_without_the_methods_is_refused(folder, monkeypatch):
    """Through a factory of kind python too, whatever it built."""
    monkeypatch.chdir(folder)
    for slot, target in (("learner.loss", "my_parts:CosineNet"), ("truncation", "my_parts:Smoothed")):
        text = (folder / "own.toml").read_text()
        start = text.index(f"[{slot}]")
        rest = text[start:].partition("\n[")[2]
        changed = f'{text[:start]}[{slot}]\nkind = "python"\ntarget = "{target}"\n\n[{rest}'
        with pytest.raises(spec.SpecError, match=slot):
            spec.loads(changed, trust=True)
    with pytest.raises(FieldError, match="loss"):
        dk.Learner(dk.MLP(), loss=dk.Window(0, 1))


def test_a_set_with_a_preprocessing_of_ones_own_can_be_read_without_the_code(folder, tmp_path):
    made = dk.load(folder / "runs" / "own")
    stored = dk.open(folder / "runs" / "own")["distilled"]
    assert made.preprocessing.to_arrays()[0]["kind"] == "Centred"
    mean = made.preprocessing.to_arrays()[1]["mean"]
    expected = (made.images + torch.from_numpy(mean)).clamp(0, 1) * 255
    assert (torch.from_numpy(stored["pixel"].values) - expected).abs().max() <= 0.51
    with pytest.raises(CombinationError, match="does not run code"):
        made.pixels()
    formats.write(made, tmp_path / "set.safetensors", "safetensors")
    again = formats.read(tmp_path / "set.safetensors")
    assert again.preprocessing.fingerprint() == made.preprocessing.fingerprint()


def test_its_evaluation_can_be_stored(folder):
    done = distilkit("evaluate", "runs/own", "--trust", "--seeds", "1", "--steps", "2", "--out", "judged", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert dk.load(folder / "judged").preprocessing.fingerprint() == dk.load(folder / "runs" / "own").preprocessing.fingerprint()


def test_a_preprocessing_named_in_a_spec(folder, monkeypatch, tmp_path):
    monkeypatch.chdir(folder)
    text = (Path(__file__).parents[1] / "examples" / "digits.toml").read_text()
    assert "[data.preprocessing]" not in text
    own = text.replace('kind = "Digits"', 'kind = "Digits"\npreprocessing = { kind = "python", target = "my_parts:Centred" }')
    pipeline = spec.loads(own, [*SHORT, "outer.steps=2"], trust=True)
    assert pipeline.bundle.train.images.mean(0).abs().max() < 1e-5
    pipeline.run(tmp_path / "run")
    assert 'target = "my_parts:Centred"' in (tmp_path / "run" / "spec.toml").read_text()
    result = dk.evaluate(tmp_path / "run", trust=True)
    assert result.accuracy.notnull().all()


@attrs.frozen
class Shifted:
    """A preprocessing that does not go into a file."""

    words: object

    def fit(self, images):
        return self

    def forward(self, images):
        return images + 1

    def inverse(self, images):
        return images - 1

    def fingerprint(self):
        return "shifted"

    def to_arrays(self):
        return self.words, {}


@pytest.mark.parametrize("words", [{"kind": object()}, {}, None, {"kind": 3}, {"kind": "Whiten"}])
def test_what_could_not_be_read_back_is_refused_at_the_start(tmp_path, words):
    data = dk.Arrays(train_images=torch.rand(40, 1, 8, 8), train_labels=torch.arange(40) % 2, preprocessing=Shifted(words))
    distiller = dk.Distiller(data, dk.Learner(dk.MLP(hidden=(4,))), dk.FullUnroll(2))
    with pytest.raises(CombinationError, match="never be read again"):
        distiller.run(tmp_path / "run")
    assert not (tmp_path / "run" / "results.zarr").exists()

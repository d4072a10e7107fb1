"""Loggers of a run: what they are told is what is stored, also when the run was stopped, and one that fails costs nothing."""

import io
import signal
import struct
import sys
import tomllib
from types import ModuleType

import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event, SessionLog

import distilkit as dk
from distilkit.evaluation.training import mean_or_zero
from distilkit.runs.loggers import picture
from tests.cli.test_cli import GOOD
from tests.commands import distilkit
from tests.pipelines import tiny


def events(folder):
    """The events of the files in a folder, in their order: records of a length, its checksum, data, and its checksum."""
    for file in sorted((folder / "tensorboard").glob("events.out.tfevents.*")):
        data = io.BytesIO(file.read_bytes())
        while head := data.read(12):
            (length,) = struct.unpack("<Q", head[:8])
            yield Event.FromString(data.read(length))
            data.read(4)


def shown(folder):
    """What TensorBoard shows: {tag: [(step, value), ...]}. A session drops what earlier ones have written of its own steps."""
    found = {}
    for event in events(folder):
        if event.session_log.status == SessionLog.START:
            found = {tag: [row for row in rows if row[0] < event.step] for tag, rows in found.items()}
        for value in event.summary.value:
            found.setdefault(value.tag, []).append((event.step, value))
    return found


def scalars(folder, tag):
    return [(step, value.simple_value) for step, value in shown(folder)[tag]]


def is_what_is_stored(folder, tree):
    """All numbers, each once, by the number of outer steps done."""
    history = tree["history"].to_dataset()
    for name in ("outer_loss", "meta_gradient_norm", "seconds"):
        expected = list(zip((history["outer_step"].values + 1).tolist(), history[name].values.astype("f4").tolist(), strict=True))
        assert scalars(folder, name) == expected
    looks = tree["evaluation"]["validation_accuracy"]
    means = [(int(step), float(np.float32(mean_or_zero(looks.sel(outer_step=step).values)))) for step in looks["outer_step"].values]
    assert scalars(folder, "validation_accuracy") == means
    assert [step for step, _ in shown(folder)["images"]] == [step for step, _ in means]
    tests = {"distilled": tree["evaluation"]["accuracy"]}
    tests |= {
        str(name).replace(" ", "_"): tree["baselines"]["accuracy"].sel(baseline=name) for name in tree["baselines"]["baseline"].values
    }
    for name, values in tests.items():
        assert scalars(folder, f"test_accuracy/{name}") == [(6, float(np.float32(values.mean())))]


def test_tensorboard_shows_what_is_stored(tmp_path):
    tree = dk.run(tiny(), tmp_path / "run", loggers=[dk.TensorBoard()])
    is_what_is_stored(tmp_path / "run", tree)
    ((step, spec),) = shown(tmp_path / "run")["spec/text_summary"]
    assert step == 0
    assert tomllib.loads(spec.tensor.string_val[0].decode()) == tomllib.loads((tmp_path / "run" / "spec.toml").read_text())
    drawn = np.asarray(Image.open(io.BytesIO(shown(tmp_path / "run")["images"][-1][1].image.encoded_image_string)))
    assert drawn.shape == (8 + 2, 10 * 9 + 1, 3)  # ten images of 8x8 with a line between them
    made = dk.load(tmp_path / "run", "last").pixels().numpy()
    for i in range(10):
        assert (drawn[1:9, 1 + 9 * i : 9 + 9 * i] == made[i, 0, :, :, None]).all()


def test_a_run_in_pieces_is_logged_as_one_that_is_not(tmp_path):
    tree = None
    for _ in range(40):
        tree = dk.run(tiny(), tmp_path / "run", dk.Silent(), stop_after=0, loggers=[dk.TensorBoard()])
        if tree.attrs["finished"]:
            break
    assert tree.attrs["finished"]
    is_what_is_stored(tmp_path / "run", tree)
    assert len(list((tmp_path / "run" / "tensorboard").iterdir())) > 6


def test_what_was_logged_after_the_last_checkpoint_is_dropped(tmp_path):
    """As after a kill: two steps more were logged than the run goes on from."""
    dk.run(tiny(), tmp_path / "run", stop_after=0, loggers=[dk.TensorBoard()])
    killed = dk.TensorBoard()
    killed.start(tmp_path / "run", "digits", {}, 1)
    for step in (2, 3):
        killed.log(step, {"outer_loss": 99.0, "validation_accuracy": 0.99})
    killed.finish()
    tree = dk.run(tiny(), tmp_path / "run", loggers=[dk.TensorBoard()])
    is_what_is_stored(tmp_path / "run", tree)


class Told:
    """Keeps what it is told; fails when it is told so."""

    def __init__(self, fails=None):
        self.fails, self.calls = fails, []

    def _told(self, *call):
        self.calls.append(call)
        if call[0] == self.fails:
            raise OSError("no route to host")

    def start(self, folder, title, spec, step):
        self._told("start", folder, title, spec, step)

    def log(self, step, values):
        self._told("log", step, values)

    def finish(self):
        self._told("finish")


@pytest.mark.parametrize("fails", ["start", "log", "finish"])
def test_a_logger_that_fails_is_told_of_once_and_the_run_goes_on(fails, tmp_path, caplog):
    broken, whole = Told(fails), Told()
    tree = dk.run(tiny(), tmp_path / "run", loggers=[broken, whole])
    assert tree.attrs["finished"]
    assert [record.message for record in caplog.records if "no route" in record.message] == [
        "Told has failed, and logs no more of this run: OSError: no route to host"
    ]
    assert [call[0] for call in broken.calls].count(fails) == (2 if fails == "finish" else 1)
    assert broken.calls[-1] == ("finish",)
    assert whole.calls[0][1:3] == (tmp_path / "run", tree.attrs["title"])
    assert [call[1] for call in whole.calls if call[0] == "log" and "outer_loss" in call[2]] == [1, 2, 3, 4, 5, 6]
    assert whole.calls[-1] == ("finish",)


def test_a_run_that_is_done_is_not_logged_again(tmp_path):
    dk.run(tiny(), tmp_path / "run")
    told = Told()
    dk.run(tiny(), tmp_path / "run", loggers=[told])
    assert told.calls == []


@pytest.fixture
def interruptible():
    """As in a terminal: what was started in the background ignores Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_sending_all_is_ended_by_ctrl_c_and_nobody_else_writes_meanwhile(tmp_path):
    class Slow(Told):
        def finish(self):
            with pytest.raises(dk.RunError, match="Another process writes"):
                dk.run(tiny(seed=1), tmp_path / "run")
            signal.raise_signal(signal.SIGINT)
            self._told("not reached")

    slow = Slow()
    with pytest.raises(KeyboardInterrupt):
        dk.run(tiny(), tmp_path / "run", loggers=[slow])
    assert slow.calls[-1][0] == "log"
    assert dk.run(tiny(), tmp_path / "run").attrs["finished"]


def fake(name, monkeypatch, init):
    """A module with the calls of Weights & Biases, which keeps them."""
    module, calls = ModuleType(name), []
    module.init = init(calls)
    module.log = lambda values, step=None: calls.append(("log", values, step))
    module.finish = lambda: calls.append(("finish",))
    module.Image = lambda pixels: ("image", pixels.shape, pixels.dtype)
    monkeypatch.setitem(sys.modules, name, module)
    return calls


def with_id(calls):
    def init(project=None, name=None, id=None, config=None, resume=None, entity=None):
        calls.append(("init", {"project": project, "name": name, "id": id, "config": config, "resume": resume, "entity": entity}))
        sys.stdout.write("initialised\n")  # as trackio does

    return init


def without_id(calls):
    def init(project, name=None, config=None, resume="never", entity=None):
        calls.append(("init", {"project": project, "name": name, "config": config, "resume": resume, "entity": entity}))

    return init


@pytest.mark.parametrize(("name", "init"), [("wandb", with_id), ("trackio", without_id)])
def test_a_tracker_goes_on_with_its_run(name, init, tmp_path, monkeypatch, capsys):
    calls = fake(name, monkeypatch, init)
    dk.run(tiny(), tmp_path / "my run", stop_after=0, loggers=[dk.Tracker(name, entity="us")])
    assert calls[-1] == ("finish",)
    tree = dk.run(tiny(), tmp_path / "my run", loggers=[dk.Tracker(name, project="other")])
    first, second = (call[1] for call in calls if call[0] == "init")
    assert (first["project"], first["entity"], first["resume"]) == ("distilkit", "us", "allow")
    assert (second["project"], second["entity"]) == ("other", None)
    assert first["config"]["outer"]["steps"] == 6
    assert first["name"].startswith("my-run-")
    assert second["name"] == first["name"]
    assert second.get("id") == (first["name"] if init is with_id else None)
    logged = [call for call in calls if call[0] == "log"]
    losses = [(step, values["outer_loss"]) for _, values, step in logged if "outer_loss" in values]
    assert losses == list(enumerate(tree["history"]["outer_loss"].values.tolist(), 1))
    pictures = [(step, values["images"]) for _, values, step in logged if "images" in values]
    assert pictures == [(step, ("image", (10, 91, 3), np.dtype("uint8"))) for step in (3, 6)]
    assert "test_accuracy/full_data" in logged[-1][1]
    assert capsys.readouterr().out == ""


def test_by_the_command(tmp_path, monkeypatch):
    (tmp_path / "tiny.toml").write_text(GOOD)
    calls = fake("wandb", monkeypatch, with_id)
    done = distilkit("run", "tiny.toml", "--out", "run", "--log", "tensorboard", "--log", "wandb", "--stop-after", "0s", cwd=tmp_path)
    assert done.returncode == 130
    done = distilkit("resume", "run", "--log", "tensorboard", "--log", "wandb", "--json", "--quiet", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("{")
    assert [step for step, _ in scalars(tmp_path / "run", "outer_loss")] == [1, 2, 3, 4]
    assert [call[2] for call in calls if call[0] == "log" and "outer_loss" in call[1]] == [1, 2, 3, 4]


def test_what_is_not_there_is_told_before_the_work(tmp_path, monkeypatch):
    (tmp_path / "tiny.toml").write_text(GOOD)
    wrong = distilkit("run", "tiny.toml", "--out", "run", "--log", "tensorbord", cwd=tmp_path)
    assert (wrong.returncode, "Try: --log tensorboard" in wrong.stderr) == (2, True)
    monkeypatch.setitem(sys.modules, "tensorboardX.summary", None)
    missing = distilkit("run", "tiny.toml", "--out", "run", "--log", "tensorboard", cwd=tmp_path)
    assert (missing.returncode, "Try: pip install 'distilkit[tensorboard]'" in missing.stderr) == (2, True)
    assert not (tmp_path / "run").exists()
    distilkit("run", "tiny.toml", "--log", "tensorboard", cwd=tmp_path)
    distilkit("run", "tiny.toml", "--mirror", "nosuch://x", cwd=tmp_path)
    assert [path.name for path in (tmp_path / "runs").iterdir()] == []


def test_pictures_of_all_kinds(ten):
    import attrs
    import torch

    assert picture(ten)["images"].shape == (10, 91, 3)
    plain = attrs.evolve(ten, preprocessing=dk.Identity())
    colours = attrs.evolve(plain, images=torch.rand(10, 2, 8, 8))
    grey = picture(colours)["images"]
    assert grey.shape == (10, 91, 3)
    assert (grey[1:9, 1:9, 0] == colours.pixels()[0].float().mean(0).round().numpy()).all()
    many = plain.subset(torch.arange(10).repeat(15))
    assert picture(many)["images"].shape == (91, 91, 3)
    assert picture(attrs.evolve(plain, images=torch.rand(10, 5))) == {}

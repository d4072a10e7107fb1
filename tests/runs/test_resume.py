"""A run that was stopped goes on to the same bits, however it was stopped; and what else lies in a folder is let alone."""

import errno
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import attrs
import numpy as np
import pytest
import torch

import distilkit as dk
from distilkit import process, spec, storage
from distilkit.errors import GradientError, ResourceError, RunError
from distilkit.runs import checkpoints, record, run, stop
from distilkit.storage import checkpoint
from tests import alike
from tests.commands import Forked, command, distilkit

DIGITS = Path(__file__).parents[2] / "examples" / "digits.toml"


class Losses:
    """A policy whose state depends on how the run went: the window starts later where the loss fell."""

    def init(self):
        return {"last": torch.tensor(10.0), "start": 0}

    def plan(self, state, outer_step, stream):
        return dk.Window(state["start"], state["start"] + 3), state

    def observe(self, state, info):
        fell = info.outer_loss < float(state["last"])
        return {"last": torch.tensor(info.outer_loss), "start": (state["start"] + fell) % 3}


@pytest.fixture(autouse=True)
def _signals_are_heard():
    """Whatever started the tests: behind nohup or in the background some are ignored, which a run leaves so."""
    before = {number: signal.getsignal(number) for number in stop.SIGNALS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def tiny(**parts):
    settings = {
        "data": dk.Digits(),
        "learner": dk.Learner(dk.MLP(hidden=(12,)), dk.Adam(lr=0.01)),
        "truncation": dk.RandomTruncation(horizon=6, window=3),
        "labels": dk.Labels(learn=True),
        "outer": dk.Outer(steps=6, batch_size=64, optimizer=dk.Adam(lr=0.05), schedule=dk.Cosine()),
        "evaluation": dk.Evaluation(seeds=2, steps=(5, 10), every=2, baselines=("random real", "full data")),
        "device": "cpu",
    }
    return dk.Distiller(**(settings | parts))


def images():
    stream = dk.Stream(0)
    labels = torch.arange(40) % 2
    split = {"train_images": stream.fold("train").normal(40, 3, 8, 8), "train_labels": labels}
    return dk.Arrays(**split, test_images=stream.fold("test").normal(10, 3, 8, 8), test_labels=labels[:10], preprocessing=dk.Standardize())


CONVNET = {"data": images(), "learner": dk.Learner(dk.ConvNet(width=4, depth=2), learn_lr=True)}
PIPELINES = {
    "plain": {},
    "adaptive policy": {"truncation": Losses()},
    "AdaptiveTruncation": {"truncation": dk.AdaptiveTruncation(6, 3, spread=1, probe_every=2)},
    "averaged, growing, several ends": {
        "outer": dk.Outer(steps=6, batch_size=64, average=0.9, ends=2),
        "truncation": dk.Growing(dk.RandomTruncation(6, 3, stratified=True), steps=4),
    },
    "boosted": {
        "boost": dk.BoostSchedule(blocks=(1, 2), steps=(3, 3)),
        "outer": dk.Outer(steps=6, batch_size=64, average=0.5),
        "learner": dk.Learner(dk.MLP(hidden=(12,)), dk.SGD(lr=0.1, momentum=0.9), batch_per_class=1),
    },
    "a learned rate of each step": {"learner": dk.Learner(dk.MLP(hidden=(12,)), dk.SGD(lr=0.1), learn_lr=True, lr_steps=4)},
    "networks and batches that grow": {
        "data": images(),
        "learner": dk.Learner(dk.ConvNet(width=8, depth=2)),
        "growth": dk.Growth(until=(0.4,), widths=(4,), batch_sizes=(8,)),
        "outer": dk.Outer(steps=6, batch_size=16),
    },
    "ConvNet, learned rate, bfloat16": CONVNET | {"unroller": dk.Unroller(compile="trace", precision="bfloat16", channels_last="on")},
    "networks side by side": {"unroller": dk.Unroller(networks_per_step=2, side_by_side="on")},
    "augmented, minibatches": {
        "data": images(),
        "learner": dk.Learner(dk.ConvNet(width=4, depth=2), augment=dk.DSA(), batch_per_class=1),
        "images": dk.Images(per_class=2, start="real"),
    },
    "auto precision": {"unroller": dk.Unroller(precision="auto")},
}


def same(a, b):
    """Fail where what lies in two folders differs in anything but seconds."""
    alike.same(dk.open(a), dk.open(b))


class StopAt(dk.Silent):
    """Interrupts, as a kill or Ctrl-C would, at the n-th thing that it is told."""

    def __init__(self, at):
        self.left = at

    def phase(self, words):
        self.told()

    def advance(self, done, total):
        self.told()

    def value(self, name, numbers):
        self.told()

    def told(self):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


QUICK = ("plain", "boosted", "ConvNet, learned rate, bfloat16")


@pytest.mark.parametrize("name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in PIPELINES])
def test_stopped_and_resumed_is_as_not_stopped(name, tmp_path):
    """Stopped again and again, after each few things that happen, in a new pipeline each time: the same bits in everything stored."""
    parts = PIPELINES[name]
    tiny(**parts).run(tmp_path / "whole")
    stops = 0
    for at in (4, 9, 16, 10**9):
        try:
            tiny(**parts).run(tmp_path / "parts", StopAt(at))
        except KeyboardInterrupt:
            stops += 1
        else:
            break
    assert stops >= 3
    same(tmp_path / "whole", tmp_path / "parts")


def test_what_is_finished_is_given_back(tmp_path):
    first = tiny().run(tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "results.zarr").rglob("*")}
    again = tiny().run(tmp_path / "run")
    assert np.array_equal(first["evaluation"]["accuracy"], again["evaluation"]["accuracy"])
    assert again.attrs["finished"]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "results.zarr").rglob("*")} == before


def test_more_steps_go_on(tmp_path):
    """With a learning rate that does not depend on how many steps there are, it is as if all had been asked for at once."""
    outer = dk.Outer(steps=6, batch_size=64)
    tiny(outer=attrs.evolve(outer, steps=4)).run(tmp_path / "run")
    tiny(outer=outer).run(tmp_path / "run")
    tiny(outer=outer).run(tmp_path / "whole")
    same(tmp_path / "whole", tmp_path / "run")
    assert "steps = 6" in (tmp_path / "run" / "spec.toml").read_text()
    with pytest.raises(RunError, match=r"outer\.steps: 6 there, 4 here"):
        tiny(outer=attrs.evolve(outer, steps=4)).run(tmp_path / "run")


@pytest.mark.parametrize("hidden", [8, 12])
def test_a_run_goes_on_to_the_same_bits_where_nothing_is_recorded(hidden, tmp_path):
    """What is read from a file may lie where sums are rounded in another way."""
    parts = {"learner": dk.Learner(dk.MLP(hidden=(hidden,)), dk.Adam(lr=0.01)), "unroller": dk.Unroller(compile="eager")}
    evaluation = dk.Evaluation(compile="eager", seeds=1, steps=(3,), every=1, baselines=())
    tiny(outer=dk.Outer(steps=4, batch_size=32), evaluation=evaluation, **parts).run(tmp_path / "whole")
    for steps in range(1, 5):
        tiny(outer=dk.Outer(steps=steps, batch_size=32), evaluation=evaluation, **parts).run(tmp_path / "run")
    same(tmp_path / "whole", tmp_path / "run")


def test_another_spec_is_refused_with_what_differs(tmp_path):
    tiny(outer=dk.Outer(steps=1)).run(tmp_path / "run")
    with pytest.raises(RunError, match=r"seed: 0 there, 1 here(.|\n)*run-2"):
        tiny(outer=dk.Outer(steps=1), seed=1).run(tmp_path / "run")
    inner = attrs.evolve(tiny().learner, micro_batch=4)
    again = tiny(outer=dk.Outer(steps=2), unroller=dk.Unroller(micro_batches=2, compile="trace"), learner=inner)
    assert dk.run(again, tmp_path / "run")["history"].sizes["outer_step"] == 2  # how it is done may change
    with pytest.raises(RunError, match="holds a run already"):
        dk.run(tiny(outer=dk.Outer(steps=1)), tmp_path / "run", resume="never")


def test_a_persons_own_spec_is_not_written_over_though_it_says_the_same(tmp_path):
    (tmp_path / "spec.toml").write_text("# mine\n" + spec.dumps(tiny()))
    with pytest.raises(RunError, match=r"holds a spec\.toml"):
        tiny().run(tmp_path)
    assert (tmp_path / "spec.toml").read_text().startswith("# mine")


def test_killed_before_its_first_checkpoint(tmp_path):
    """What lies there then is the spec.toml that the run itself has written."""
    for unroller in (dk.Unroller(), dk.Unroller(precision="auto")):
        folder = tmp_path / unroller.precision
        folder.mkdir()
        resolved = dk.evolve(unroller, precision="float32")
        (folder / "spec.toml").write_text(spec.dumps(tiny(unroller=resolved)))
        tiny(unroller=unroller).run(folder)


class Other(Losses):
    """The same by another name."""


def test_parts_made_in_python_are_known_again_in_another_process(tmp_path):
    """By what they are called: an object that says nothing of itself has an address in its name, another one in every process."""
    first, second = (tiny(truncation=Losses()) for _ in range(2))
    assert repr(first) != repr(second)
    assert checkpoints.identity(first) == checkpoints.identity(second)
    dk.run(first, tmp_path / "run", stop_after=0)
    assert dk.run(second, tmp_path / "run")["history"].sizes["outer_step"] == 6
    with pytest.raises(RunError, match="holds a run of another spec"):
        tiny(truncation=Other()).run(tmp_path / "run")
    with pytest.raises(RunError, match="data_read"):
        tiny(truncation=Losses(), data=images()).run(tmp_path / "run")


def test_the_data_are_read_once(tmp_path, monkeypatch):
    """Not once more for each look at whether this is the same run."""
    real, read = dk.Digits.load, []
    monkeypatch.setattr(dk.Digits, "load", lambda source, stream: read.append(1) or real(source, stream))
    dk.run(tiny(), tmp_path / "run", stop_after=0)
    assert len(read) == 1
    tiny(unroller=dk.Unroller(precision="auto")).run(tmp_path / "run")
    assert len(read) == 2


@pytest.mark.parametrize("together", [pytest.param(True, marks=pytest.mark.slow), False], ids=["networks side by side", "one by one"])
def test_pieces_of_no_time_come_to_the_end(together, tmp_path, monkeypatch):
    """Each does one thing: an outer step, or the training or the test of networks that are trained together."""
    if not together:
        monkeypatch.setattr(process, "SMALL_WORK", {"cpu": 0})
    short = {
        "outer": dk.Outer(steps=2, batch_size=64),
        "evaluation": dk.Evaluation(seeds=2, steps=(5, 10), every=2, baselines=["random real"]),
    }
    tiny(**short).run(tmp_path / "whole")
    pieces = 1
    while not dk.run(tiny(**short), tmp_path / "parts", stop_after=0).attrs["finished"]:
        pieces += 1
    # One look at validation; then the set and the baseline are each trained on and tested on.
    networks = (1 + 2 * 2) * (1 if together else 2)
    assert 2 + networks - 1 <= pieces <= 2 + networks + 1
    same(tmp_path / "whole", tmp_path / "parts")


def test_time_that_is_over_waits_for_the_first_step(tmp_path, monkeypatch):
    """It takes longer than the time and the grace together; no other one is begun."""
    real = dk.Distiller.step
    monkeypatch.setattr(stop, "GRACE", 0.1)

    def slow(distiller, state, attempt=1):
        time.sleep(0.5 if state.step == 0 else 60)
        return real(distiller, state, attempt)

    monkeypatch.setattr(dk.Distiller, "step", slow)
    began = time.monotonic()
    assert dk.run(tiny(), tmp_path / "run", stop_after=0)["history"].sizes["outer_step"] == 1
    assert time.monotonic() - began < 30


def test_a_longer_run_does_not_go_on_with_the_test_of_another_set(tmp_path, monkeypatch):
    """It was stopped between two networks of its final test; then more outer steps are asked for."""
    monkeypatch.setattr(process, "SMALL_WORK", {"cpu": 0})
    evaluation = dk.Evaluation(seeds=2, steps=(5, 10), every=0, baselines=())  # a look at validation would come between

    def pipeline(steps):
        return tiny(outer=dk.Outer(steps=steps, batch_size=64), evaluation=evaluation)

    while (found := checkpoint.latest(tmp_path / "run" / checkpoints.FOLDER)) is None or "partial.test.0" not in found.tensors:
        dk.run(pipeline(2), tmp_path / "run", stop_after=0)
    pipeline(4).run(tmp_path / "run")
    pipeline(4).run(tmp_path / "whole")
    same(tmp_path / "whole", tmp_path / "run")


class Sends(dk.Silent):
    """Sends signals to this process after the second outer step."""

    def __init__(self, *numbers):
        self.numbers = numbers

    def advance(self, done, total):
        if done == 2:
            for number in self.numbers:
                os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_ends_a_run_after_its_step(number, tmp_path):
    with pytest.raises(KeyboardInterrupt, match=number):
        tiny().run(tmp_path / "run", Sends(getattr(signal, number)))
    assert dk.open(tmp_path / "run")["history"].sizes["outer_step"] == 2
    tiny().run(tmp_path / "run")
    tiny().run(tmp_path / "whole")
    same(tmp_path / "whole", tmp_path / "run")


def test_what_takes_long_is_given_up(tmp_path, monkeypatch):
    """A step that does not end in time is dropped, and so it is by a second Ctrl-C; the state before it is kept."""
    real = dk.Distiller.step
    monkeypatch.setattr(stop, "GRACE", 0.1)

    def slow(distiller, state, attempt=1):
        if state.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(30)
        return real(distiller, state, attempt)

    monkeypatch.setattr(dk.Distiller, "step", slow)
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        tiny().run(tmp_path / "run")
    assert time.monotonic() - began < 25
    assert dk.open(tmp_path / "run")["history"].sizes["outer_step"] == 2


def test_nothing_interrupts_a_write():
    written = []

    def write(watch):
        with watch.shielded():
            for _ in range(3):
                os.kill(os.getpid(), signal.SIGINT)
            written.append("all")

    with stop.Stop() as watch, pytest.raises(stop.GivenUp):
        write(watch)
    assert written


def test_a_disk_that_fails_for_a_moment_does_not_end_a_run(tmp_path, monkeypatch, caplog):
    real, failures = storage.write, iter([OSError(errno.ENOSPC, "No space left on device")] * 2)

    def write(tree, path):
        for error in failures:
            raise error
        return real(tree, path)

    monkeypatch.setattr(record.storage, "write", write)
    tree = dk.run(tiny(), tmp_path / "run", checkpoint_every=0.0)
    assert tree.attrs["finished"]
    assert sum("No space left on device" in r.getMessage() for r in caplog.records) == 2


def test_a_disk_that_stays_full_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    """Words and exit code 4; what was saved before is whole, and the run goes on once there is room."""
    with monkeypatch.context() as patch:
        real = checkpoint.save

        def save(folder, step, tensors, meta):
            if step > 3:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(folder, step, tensors, meta)

        patch.setattr(checkpoints.checkpoint, "save", save)
        with pytest.raises(ResourceError, match="No space left on device") as caught:
            dk.run(tiny(), tmp_path / "run", checkpoint_every=0.0)
        assert caught.value.exit_code == 4
    assert checkpoint.latest(tmp_path / "run" / "checkpoints").meta["stage"] == 0
    tiny().run(tmp_path / "run")
    tiny().run(tmp_path / "whole")
    same(tmp_path / "whole", tmp_path / "run")


def test_memory_that_runs_out_ends_with_what_needs_less(tmp_path, monkeypatch):
    def step(distiller, state, attempt=1):
        raise torch.OutOfMemoryError("CUDA out of memory") if state.step else MemoryError

    monkeypatch.setattr(dk.Distiller, "step", step)
    with pytest.raises(ResourceError, match="not enough memory") as caught:
        tiny().run(tmp_path / "run")
    assert "unroller.micro_batches" in {change.name for change in caught.value.changes}
    assert not dk.open(tmp_path / "run").attrs["finished"]


def test_a_damaged_checkpoint_is_passed_over(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        dk.run(tiny(), tmp_path / "run", StopAt(16), checkpoint_every=0.0)
    *_, before, last = sorted((tmp_path / "run" / "checkpoints").iterdir())
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1
    last.write_bytes(content)
    assert before.exists()
    tiny().run(tmp_path / "run")
    tiny().run(tmp_path / "whole")
    same(tmp_path / "whole", tmp_path / "run")


def test_numbers_that_are_not_finite_are_dropped_and_taken_again(tmp_path, monkeypatch, caplog):
    real = dk.Distiller.meta_gradient

    def meta_gradient(distiller, state, window, stream=None):
        found = real(distiller, state, window, stream)
        first = stream is None or stream == distiller.stream
        return found._replace(loss=found.loss * float("nan")) if state.step == 2 and first else found

    monkeypatch.setattr(dk.Distiller, "meta_gradient", meta_gradient)
    tree = tiny().run(tmp_path / "run")
    assert tree["history"]["attempts"].values.tolist() == [1, 1, 2, 1, 1, 1]
    assert np.isfinite(tree["history"]["outer_loss"]).all()
    assert any("taken again" in r.getMessage() for r in caplog.records)
    with pytest.raises(GradientError, match=r"Inner step \d is the first with numbers that are not finite, in .*weight") as caught:
        tiny(learner=dk.Learner(dk.MLP(hidden=(12,)), dk.SGD(lr=1e30))).run(tmp_path / "wild")
    assert caught.value.exit_code == 3
    assert [change.name for change in caught.value.changes] == ["learner.optimizer.lr"]


def test_a_run_that_leaves_its_own_history_is_ended(tmp_path, monkeypatch):
    """A loss that stays far above what it was, though finite; one spike is none, and the best set is there."""
    real = dk.Distiller.meta_gradient

    def meta_gradient(distiller, state, window, stream=None):
        found = real(distiller, state, window, stream)
        return found._replace(loss=found.loss * (1e3 if state.step == 20 or state.step >= 110 else 1))

    monkeypatch.setattr(dk.Distiller, "meta_gradient", meta_gradient)
    with pytest.raises(GradientError, match="has diverged") as caught:
        tiny(outer=dk.Outer(steps=400, batch_size=64), evaluation=dk.Evaluation(seeds=1, steps=(5,), every=50)).run(tmp_path / "run")
    assert caught.value.exit_code == 3
    tree = dk.open(tmp_path / "run")
    assert tree["history"].sizes["outer_step"] == 150
    assert "validation_accuracy" in tree["distilled"].attrs  # a set was selected before it
    with pytest.raises(GradientError, match="has diverged"):  # not forgotten by the next call
        tiny(outer=dk.Outer(steps=400, batch_size=64), evaluation=dk.Evaluation(seeds=1, steps=(5,), every=50)).run(tmp_path / "run")
    assert dk.open(tmp_path / "run")["history"].sizes["outer_step"] == 150


@pytest.mark.parametrize("several", [1, 2])
def test_where_an_inner_run_stops_being_finite(several):
    """Against gradient descent by hand; a run that stays finite is told as that."""
    unroller, truncation = dk.Unroller(networks_per_step=several, compile="eager"), dk.FullUnroll(horizon=6)
    wild = tiny(learner=dk.Learner(dk.MLP(hidden=(12,)), dk.SGD(lr=1e12)), truncation=truncation, unroller=unroller)
    state, stream = wild.init(), wild.stream.fold("inner").fold(0)
    stream = stream if several == 1 else stream.fold("of many").fold(0)
    params, _ = wild.bound.init(stream.fold("network"))
    images, labels, _ = state.leaves
    for t in range(6):
        draw = wild.bound.draw(stream.fold("draw").fold(t), torch.arange(10), tuple(images.shape[1:]))
        params = params.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(wild.bound.objective(params, images, labels, draw), params)
        params = params - 1e12 * gradient
        if not params.isfinite().all():
            break
    assert f"Inner step {t} is the first" in wild.where_not_finite(state)
    calm = tiny(truncation=truncation, unroller=unroller)
    assert "All parameters of the inner run are finite" in calm.where_not_finite(calm.init())


SHORT = "--set outer.steps=4 --set evaluation.seeds=1 --set evaluation.steps=[2] --set evaluation.every=0 --set evaluation.baselines=[]"


def words(out):
    settings = ["outer.steps=30", "evaluation.seeds=1", "evaluation.steps=[20]", "evaluation.every=10", "device=cpu", "threads=1"]
    return ["run", DIGITS, "--out", out, *(f"--set={one}" for one in settings)]


def soon_written(*arguments):
    """The command, which writes after its first step and not after some seconds."""
    run.FIRST_WRITE = 0.0
    command(*arguments)


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path):
    """kill -9: the store opens after every one, and the last run is as one that nobody killed. examples/reliability.py kills more often."""
    assert distilkit(*words(tmp_path / "whole")).returncode == 0
    chance, out = random.Random(0), tmp_path / "run"
    for number, moment in enumerate(("loading data", "distilling, 20 of 30", "testing the distilled set")):
        one = Forked(soon_written, *words(out), folder=tmp_path / f"said {number}")
        one.has_said(moment)
        time.sleep(chance.uniform(0, 0.1))
        one.job.kill()
        assert one.done().returncode == -signal.SIGKILL
        if number:
            dk.open(out)
    done = distilkit(*words(out))
    assert done.returncode == 0, done.stderr
    same(tmp_path / "whole", out)


@pytest.mark.slow
def test_terminated_and_resumed_by_the_command(tmp_path):
    """As a scheduler does it: SIGTERM, exit code 130 with what to type, which then ends with 0."""
    one = Forked(command, *words(tmp_path / "run"), folder=tmp_path / "said")
    one.has_said("distilling, ")
    one.job.terminate()
    code, _, said = one.done(10)
    assert code == 130
    assert f"distilkit resume {tmp_path / 'run'}" in said
    done = distilkit("resume", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert distilkit(*words(tmp_path / "whole")).returncode == 0
    same(tmp_path / "whole", tmp_path / "run")


def test_a_closed_pipe_does_not_end_a_run(tmp_path):
    done = subprocess.run(f"{sys.executable} -m distilkit run {DIGITS} --out {tmp_path / 'run'} {SHORT} | head -1", shell=True, check=False)
    assert done.returncode == 0
    assert dk.open(tmp_path / "run").attrs["finished"]

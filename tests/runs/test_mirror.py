"""A copy of a run at a URL: whole after failures, fetched where there is nothing, and opened from there."""

import itertools
import json
import random
import re
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
import xarray as xr

import distilkit as dk
from distilkit import spec, storage
from distilkit.cli.display import option
from distilkit.errors import Change, ResourceError, RunError
from distilkit.runs.claim import claimed
from distilkit.runs.open import pipeline_of
from distilkit.storage import checkpoint, remote
from distilkit.storage.mirror import Mirror
from tests.commands import distilkit
from tests.runs.test_made_in_python import pipeline as made_in_python
from tests.studies.test_studies import tiny


def files_at(url):
    there, root = fsspec.core.url_to_fs(url)
    there.invalidate_cache()
    return {path.removeprefix(root).lstrip("/"): there.cat_file(path) for path in there.find(root)}


def files_in(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def url(tmp_path):
    yield f"memory://{tmp_path.name}"
    fsspec.filesystem("memory").store.clear()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(remote, "PAUSES", (0.0,) * 5)


def test_a_run_is_there_as_it_is_here(tmp_path, url):
    tiny().run(tmp_path / "run", mirror=url)
    assert files_at(url) == files_in(tmp_path / "run")
    tree = xr.open_datatree(f"{url}/results.zarr", engine="zarr")
    assert tree.attrs["finished"]
    np.testing.assert_array_equal(tree["evaluation"]["accuracy"], dk.open(tmp_path / "run")["evaluation"]["accuracy"])


def test_another_machine_goes_on_from_there(tmp_path, url):
    whole = tiny().run(tmp_path / "whole")
    for piece in range(3):
        tiny().run(tmp_path / f"machine-{piece}", mirror=url, stop_after=0.001)
        if piece == 0:
            (tmp_path / "machine-0" / "wandb.name").write_text("run-1\n")
            tiny().run(tmp_path / "machine-0", mirror=url, stop_after=0.001)
        assert (tmp_path / f"machine-{piece}" / "wandb.name").read_text() == "run-1\n"  # so that it is the same run to a tracker
        shutil.rmtree(tmp_path / f"machine-{piece}")
    assert "results.zarr/zarr.json" in files_at(url)
    found = tiny().run(tmp_path / "last", mirror=url)
    for group in whole.groups:
        for name in set(whole[group].dataset.variables) - {"seconds"}:
            np.testing.assert_array_equal(whole[group][name], found[group][name])
    assert files_at(url) == files_in(tmp_path / "last")
    # What is finished is fetched, and given back as it is.
    tiny().run(tmp_path / "reader", mirror=url)
    assert files_in(tmp_path / "reader").keys() == files_at(url).keys()


def test_where_it_is_further_there_it_goes_on_from_there(tmp_path, url):
    whole = tiny().run(tmp_path / "whole")
    tiny().run(tmp_path / "old", mirror=url, stop_after=0.001)
    shutil.copytree(tmp_path / "old", tmp_path / "new")
    tiny().run(tmp_path / "new", mirror=url, stop_after=0.001)
    found = tiny().run(tmp_path / "old", mirror=url)
    np.testing.assert_array_equal(whole["distilled"]["image"], found["distilled"]["image"])
    assert files_at(url) == files_in(tmp_path / "old")


def test_another_run_is_not_written_over(tmp_path, url):
    tiny().run(tmp_path / "one", mirror=url)
    kept = files_at(url)
    tiny(seed=1).run(tmp_path / "two", stop_after=0.001)
    own = files_in(tmp_path / "two")
    for name in ("two", "three"):
        with pytest.raises(RunError, match=f"{url} holds a run of another spec") as raised:
            tiny(seed=1).run(tmp_path / name, mirror=url)
        assert option(raised.value.changes[0]) == f"--mirror {url}-2"
    assert files_at(url) == kept
    assert files_in(tmp_path / "two") == own
    assert not (tmp_path / "three").exists()
    # Parts made in Python have no spec: then the checkpoints tell, whichever of both has none.
    fsspec.filesystem("memory").rm_file(f"{url}/spec.toml")
    with pytest.raises(RunError, match=f"{url} holds a run of another spec"):
        tiny(seed=1).run(tmp_path / "two", mirror=url)
    assert files_in(tmp_path / "two") == own
    (tmp_path / "two" / "spec.toml").unlink()
    with pytest.raises(RunError, match="two holds a run of another spec"):
        tiny().run(tmp_path / "two", mirror=url)
    assert files_in(tmp_path / "two").keys() == own.keys() - {"spec.toml"}
    # Results alone are no run that could go on, whatever is there.
    shutil.rmtree(tmp_path / "two" / "checkpoints")
    left = files_in(tmp_path / "two")
    with pytest.raises(RunError, match="two holds the results of another run"):
        tiny().run(tmp_path / "two", mirror=url)
    assert files_in(tmp_path / "two") == left
    assert files_at(url).keys() == kept.keys() - {"spec.toml"}


def test_one_of_other_data_is_another_run_and_one_of_another_device_is_not(tmp_path, url):
    """A spec tells neither: two files of data may lie at one path, and a run may go on with other threads."""
    tiny().run(tmp_path / "here", stop_after=0.001)
    own = files_in(tmp_path / "here")
    found = checkpoint.latest(tmp_path / "here" / "checkpoints")
    other = found.meta["pipeline"] | {"data_read": {"shape": [1], "labels": "of others"}}
    shutil.copytree(tmp_path / "here", tmp_path / "other")
    checkpoint.save(tmp_path / "other" / "checkpoints", found.step + 1, found.tensors, found.meta | {"pipeline": other}, keep=1)
    Mirror(url, tmp_path / "other").send(ended=True)
    kept = files_at(url)
    with pytest.raises(RunError, match="data_read"):
        tiny().run(tmp_path / "here", mirror=url)
    assert (files_in(tmp_path / "here"), files_at(url)) == (own, kept)
    tiny(threads=1).run(tmp_path / "here", mirror=f"{url}-2", stop_after=0.001)
    assert tiny(threads=2).run(tmp_path / "here", mirror=f"{url}-2").attrs["finished"]


def test_a_fetch_that_was_cut_off_is_done_again(tmp_path, url):
    tiny().run(tmp_path / "run", stop_after=0.001)
    (tmp_path / "run" / "wandb.name").write_text("run-1\n")
    Mirror(url, tmp_path / "run").send(ended=True)
    kept = files_at(url)
    folder = tmp_path / "other"
    folder.mkdir()
    (folder / "spec.toml").write_text(f"# mine\n{kept['spec.toml'].decode()}")
    for count in (1, 3, 20):
        copy = Mirror(url, folder)
        copy._there = Until(copy._there, count)
        with pytest.raises(KeyboardInterrupt):
            copy.fetch(bool)
        assert files_in(folder).keys() == {"spec.toml"}
    (folder / ".fetched-killed").mkdir()
    copy = Mirror(url, folder)
    assert copy.fetch(bool)
    assert files_in(folder) == kept | {"spec.toml": (folder / "spec.toml").read_bytes()}
    assert (folder / "spec.toml").read_text().startswith("# mine")  # which says the same
    assert not (folder / ".fetched-killed").exists()


class Until:
    """A file system on which one is stopped after so many files."""

    def __init__(self, there, count):
        self._there, self._count = there, count

    def __getattr__(self, name):
        return getattr(self._there, name)

    def get_file(self, *arguments):
        self._count -= 1
        if self._count < 0:
            raise KeyboardInterrupt
        self._there.get_file(*arguments)


def test_what_says_which_run_it_is_goes_first(tmp_path, url):
    tiny().run(tmp_path / "run", stop_after=0.001)
    copy, sent = Mirror(url, tmp_path / "run"), []
    copy._put = lambda path, name: sent.append(name)
    copy.send()
    assert sent[0] == "spec.toml"
    assert sent[1].startswith("checkpoints/")
    assert sent[-1] == "results.zarr/zarr.json"


def test_pictures_of_others_are_left_alone(tmp_path, url):
    """A URL that holds no run, but all that one has."""
    for name in ("cat.png", "below/cat.png"):
        fsspec.filesystem("memory").pipe_file(f"{url}/{name}", b"")
    tiny().run(tmp_path / "run", mirror=url)
    assert files_at(url).keys() == files_in(tmp_path / "run").keys() | {"cat.png", "below/cat.png"}


def test_a_listing_that_fails_is_not_an_empty_one(tmp_path, url, monkeypatch):
    tiny().run(tmp_path / "run", stop_after=0.001)
    Mirror(url, tmp_path / "run").send(ended=True)
    monkeypatch.setattr(fsspec.filesystem("memory"), "ls", partial(raising, OSError("the network is down")))
    with pytest.raises(ResourceError, match="the network is down"):
        Mirror(url, tmp_path / "run").fetch(bool)
    with pytest.raises(ResourceError, match="the network is down"):
        remote.names_at(url)


class Failing:
    """A file system that fails now and then, before or after it has done what it was asked."""

    def __init__(self, there, every):
        self._there, self._draw, self._every, self.failed = there, random.Random(0), every, 0

    def __getattr__(self, name):
        work = getattr(self._there, name)
        if not callable(work) or name == "invalidate_cache":
            return work

        def perhaps(*arguments, **options):
            fails = self._draw.random() < 1 / self._every
            if fails and self._draw.random() < 0.5:
                self.failed += 1
                raise OSError("the network is down")
            found = work(*arguments, **options)
            if fails:
                self.failed += 1
                raise OSError("the answer was lost")
            return found

        return perhaps


def test_a_server_that_fails_one_request_in_ten_loses_nothing(tmp_path, url):
    tiny().run(tmp_path / "run")
    copy = Mirror(url, tmp_path / "run")
    copy._there = Failing(copy._there, 10)
    copy.send(ended=True)
    assert copy._there.failed > 3
    assert files_at(url) == files_in(tmp_path / "run")
    (tmp_path / "other").mkdir()
    other = Mirror(url, tmp_path / "other")
    other._there = Failing(other._there, 10)
    assert other.fetch(bool)
    assert files_in(tmp_path / "other") == files_in(tmp_path / "run")


def test_what_is_gone_here_goes_there_and_what_is_the_same_stays(tmp_path, url):
    tiny().run(tmp_path / "run", mirror=url)
    copy = Mirror(url, tmp_path / "run")
    assert not copy.fetch(bool)  # there is something here
    copy.send(ended=True)
    oldest = next((tmp_path / "run" / "checkpoints").glob("*.safetensors"))
    oldest.unlink()
    sent = []
    copy._put = lambda path, name: sent.append(name)
    copy.send(ended=True)
    assert sent == []
    assert f"checkpoints/{oldest.name}" not in files_at(url)


def test_one_that_is_always_down_is_told_and_the_run_is_whole(tmp_path, url, monkeypatch):
    def down(*_, **__):
        raise OSError("no route to host")

    with monkeypatch.context() as patch:
        patch.setattr(Mirror, "_put", down)
        with pytest.raises(ResourceError, match=r"after 6 tries: no route to host\. What is in .* is whole"):
            tiny().run(tmp_path / "run", mirror=url)
    assert dk.open(tmp_path / "run").attrs["finished"]
    tiny().run(tmp_path / "run", mirror=url)  # finished, but for its copy
    assert files_at(url) == files_in(tmp_path / "run")


def test_a_url_of_no_kind_is_told(tmp_path):
    with pytest.raises(RunError, match="nothing://there cannot be reached"):
        tiny().run(tmp_path / "run", mirror="nothing://there")


def readable(url, folder, cwd):
    """What is read from a URL is what lies in the folder that it is a copy of."""
    xr.testing.assert_identical(dk.open(url), dk.open(folder))
    checked, wrong = storage.verify(url)
    assert not wrong
    assert [line.replace(str(folder), url) for line in storage.verify(folder)[0]] == checked
    assert torch.equal(dk.load(f"{url}/results.zarr").images, dk.load(folder).images)
    assert dk.evaluate(url, evaluation=dk.Evaluation(seeds=1, steps=(2,))).accuracy.shape == (1, 1)
    shown = distilkit("show", url, "--json", cwd=cwd)
    assert json.loads(shown.stdout)["folder"] == url, shown.stderr


def test_it_is_read_from_there(tmp_path, url):
    """Finished, and as it goes on: results are sent with the first checkpoint, and later when they have become cheap beside the run."""
    tiny().run(tmp_path / "run", mirror=f"{url}/run")
    readable(f"{url}/run", tmp_path / "run", tmp_path)
    assert dk.subset_grid(f"{url}/run", [1], seeds=1).equals(dk.subset_grid(tmp_path / "run", [1], seeds=1))
    judged = distilkit("evaluate", f"{url}/run", "--steps", "2", "--seeds", "1", cwd=tmp_path)
    assert judged.returncode == 0, judged.stderr
    assert distilkit("report", f"{url}/run", cwd=tmp_path).returncode == 0
    assert f"{url}/run" in (tmp_path / "runs/run/report.html").read_text()
    again = Mirror(f"{url}/again", tmp_path / "run")
    again.send()
    assert files_at(f"{url}/again") == files_in(tmp_path / "run")
    (tmp_path / "run/results.zarr/zarr.json").touch()
    sent = []
    again._put = lambda path, name: sent.append(name)
    again.send()
    assert not sent


def test_what_cannot_be_read_is_told(tmp_path, url, monkeypatch):
    monkeypatch.setattr(remote, "PAUSES", (0.0,))
    with pytest.raises(RunError, match=f"There is no run at {url}"):
        dk.load(url)
    fsspec.filesystem("memory").pipe_file(f"{url}/checkpoints/step-000000001.safetensors", b"")
    with pytest.raises(RunError, match=r"no results at .* but checkpoints"):
        dk.open(url)
    assert storage.verify(url)[1][0].startswith(f"{url}/results.zarr is not whole")
    fsspec.filesystem("memory").rm_file(f"{url}/checkpoints/step-000000001.safetensors")
    checkpoint.save(tmp_path, 1, {}, {})
    fsspec.filesystem("memory").put_file(str(tmp_path / "step-000000001.safetensors"), f"{url}/checkpoints/step-000000001.safetensors")
    told = distilkit("verify", url, cwd=tmp_path)
    assert f"{url} is not whole:\n" in told.stderr
    assert "damaged" not in told.stderr
    fsspec.filesystem("memory").pipe_file(f"{url}/checkpoints/step-000000001.safetensors", b"")
    fsspec.filesystem("memory").pipe_file(f"{url}/results.zarr/zarr.json", b"{}")
    with pytest.raises(RunError, match="damaged, or was being sent"):
        dk.open(url)
    with pytest.raises(RunError, match="nothing://there cannot be reached"):
        dk.load("nothing://there")
    _, wrong = storage.verify(url)
    assert [line.partition(" ")[0] for line in wrong[:1]] == [f"{url}/results.zarr/zarr.json"]
    assert f"The checkpoint {url}/checkpoints/step-000000001.safetensors cannot be read" in wrong[-1]
    with pytest.raises(RunError, match=f"The run '{url}' has no spec.toml"):
        pipeline_of(url)
    with pytest.raises(spec.SpecError, match=f"There is no file {url}/spec.toml"):
        spec.load(f"{url}/spec.toml")
    fsspec.filesystem("memory").pipe_file(f"{url}/latin.toml", "title = 'é'".encode("latin-1"))
    with pytest.raises(spec.SpecError, match=f"{url}/latin.toml is not text in UTF-8"):
        spec.load(f"{url}/latin.toml")
    for error, words in ((FileNotFoundError("The specified bucket does not exist"), "bucket"), (PermissionError("Access Denied"), "AWS_")):
        monkeypatch.setattr(fsspec.filesystem("memory"), "find", partial(raising, error))
        told = distilkit("show", url, cwd=tmp_path)
        assert words in told.stderr
        assert "Traceback" not in told.stderr


def test_what_is_wrong_with_a_copy_names_its_url(tmp_path, url):
    """Not the folder that it was brought to."""
    made_in_python().run(tmp_path / "run", mirror=url, stop_after=0.001)
    place = f"runs/{url.rpartition('/')[2]}"
    in_python = f"dk.run(distiller, {place!r}, mirror={url!r})"
    for words, told in {
        f"evaluate {url}": f"dk.evaluate('{url}', data, learner, evaluation)",
        f"sheet {url} --before": f"What the images of {url} started from",
        f"resume {url}": in_python,
        f"show {url}": f"{in_python} goes on, in Python",
    }.items():
        done = distilkit(*words.split(), cwd=tmp_path)
        assert told in done.stderr + done.stdout, words
        assert "distilkit-" not in done.stderr.replace(url, "")
    with pytest.raises(RunError, match=f"^The run '{url}' has no group"), remote.brought(url) as here:
        raise RunError(f"The run '{here}' has no group", changes=[Change("out", here)])


def test_a_copy_that_is_only_read_is_not_being_written(tmp_path, url, monkeypatch):
    tiny().run(tmp_path / "run", mirror=url, stop_after=0.001)
    memory, count = fsspec.filesystem("memory"), itertools.count()
    find = memory.find

    def read(*arguments, **options):
        return {path: told | {"atime": next(count)} for path, told in find(*arguments, **options).items()}

    monkeypatch.setattr(memory, "find", read)
    assert not storage.verify(url)[1]
    dk.open(url)

    def sent(*arguments, **options):
        memory.pipe_file(f"{url}/results.zarr/zarr.json", memory.cat_file(f"{url}/results.zarr/zarr.json"))
        return find(*arguments, **options)

    monkeypatch.setattr(memory, "find", sent)
    with pytest.raises(RunError, match=r"was being sent each time it was looked at\.$"):
        dk.open(url)


def test_a_file_of_two_slashes_is_refused(tmp_path):
    for call in (lambda: dk.load("file://copy"), lambda: tiny().run(tmp_path / "run", mirror="file://copy")):
        with pytest.raises(RunError, match=r"file://copy cannot be.* is file:///"):
            call()


def raising(error, *_, **__):
    raise error


def test_half_a_store_is_not_fetched(tmp_path, url):
    """A machine was lost while it sent results: what goes on elsewhere writes them anew."""
    tiny().run(tmp_path / "one", mirror=url, stop_after=0.001)
    there, root = fsspec.core.url_to_fs(url)
    there.rm_file(f"{root}/results.zarr/zarr.json")
    tree = tiny().run(tmp_path / "two", mirror=url)
    assert tree.attrs["finished"]
    assert files_at(url) == files_in(tmp_path / "two")


def test_the_command_has_it(tmp_path, url):
    words = ["digits", "--set", "outer.steps=2", "--set", "evaluation.seeds=1", "--set", "evaluation.baselines=[]", "--mirror", url]
    begun = distilkit("run", *words, "--out", "one", "--stop-after", "0.001", cwd=tmp_path)
    assert f"distilkit resume one --mirror {url}" in begun.stderr
    assert f"distilkit resume {url} goes on" in distilkit("show", url, cwd=tmp_path).stdout
    resumed = distilkit("resume", url, cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert f"fetched {len(files_in(tmp_path / 'one'))} files" in resumed.stdout
    folder = tmp_path / "runs" / url.rpartition("/")[2]
    assert dk.open(folder).attrs["finished"]
    assert files_at(url) == files_in(folder)
    again = distilkit("run", *words, "--out", "two", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "two is finished" in again.stdout
    assert f"{folder.relative_to(tmp_path)} is finished" in distilkit("resume", f"{url}/results.zarr", cwd=tmp_path).stdout
    few = distilkit("subsets", url, "--budgets", "1", "--draws", "1", cwd=tmp_path)
    assert few.returncode == 0, few.stderr
    assert (folder / "subsets-random" / "budgets.png").exists()
    fsspec.filesystem("memory").put(str(folder / "subsets-random"), f"{url}-grid", recursive=True)
    assert dk.open(f"{url}-grid").equals(dk.open(folder / "subsets-random"))
    damaged = next(name for name in files_at(url) if name.startswith("results.zarr/distilled/image/c"))
    there = fsspec.filesystem("memory")
    there.pipe_file(f"{url}/{damaged}", b"no")
    told = distilkit("verify", url, cwd=tmp_path)
    assert told.returncode == 2
    assert re.search(rf"{url} is damaged:\n *{url}/results.zarr/distilled/image is damaged", told.stderr)


def test_what_cannot_be_resumed_is_told(tmp_path, url):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "spec.toml").write_text("seed = 1")
    assert f"There is no run at {url}" in distilkit("resume", url, cwd=tmp_path).stderr
    fsspec.filesystem("memory").pipe_file(f"{url}/spec.toml", spec.dumps(tiny()).encode())
    for words, told in {
        f"resume {url} --out mine": "mine holds a spec.toml, which a run would write over.\n  Try: --out mine-2",
        f"resume {url} --mirror {url}-2": "the same without --mirror",
        "resume mine --out other": "the same without --out",
        f"run digits --out {url}": f"{url} is a URL, and this is written to a folder of this machine.",
        f"run digits --fresh --out {url}": "--out runs/test",
        f"sheet digits --out {url}.png": "--out runs/test",
        f"subsets {url} --out {url}/grid": "Try: --out runs/grid",
        f"study gradients digits --out {url}/study": "Try: --out runs/study",
        f"new {url}/mine.toml": "Try: distilkit new mine.toml --data Digits",
        f"schema --out {url}/spec.json": "Try: --out spec.json",
        f"export fast/cifar10-ipc1 {url}/set.safetensors": "Try: set.safetensors",
    }.items():
        done = distilkit(*words.split(), cwd=tmp_path)
        assert told in done.stderr, words
        assert done.returncode == 2
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_one_that_goes_on_here_is_not_begun_beside(tmp_path, url):
    usual = tmp_path / "runs" / url.rpartition("/")[2]
    tiny().run(usual, mirror=url, stop_after=0.001)
    with claimed(usual):
        for more in ([], ["--set", "threads=1"]):  # another way of the same run
            told = distilkit("resume", url, *more, cwd=tmp_path)
            assert f"The run of {url} goes on in runs/{usual.name} now" in told.stderr
            assert told.returncode == 2
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [usual.name]


@pytest.fixture
def server(monkeypatch, tmp_path):
    """An S3 server of moto's, in a process of its own, that fails one request in ten, and a botocore that does not try again by itself."""
    pytest.importorskip("s3fs")
    pytest.importorskip("moto")
    said, until, found = tmp_path / "server", time.monotonic() + 60, None
    words = [sys.executable, Path(__file__).with_name("failing_s3.py")]
    with open(said, "w") as log, subprocess.Popen(words, stdout=log, stderr=subprocess.DEVNULL) as job:
        while found is None:
            assert time.monotonic() < until, said.read_text()
            time.sleep(0.05)
            found = re.search(r"http://127\.0\.0\.1:\d+", said.read_text())
        own = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_ENDPOINT_URL": found[0], "AWS_MAX_ATTEMPTS": "1"}
        for name, value in own.items():
            monkeypatch.setenv(name, value)
        yield said
        job.kill()


@pytest.mark.slow
def test_a_bucket_whose_server_fails_one_request_in_ten(tmp_path, server, monkeypatch):
    s3 = fsspec.filesystem("s3")
    remote.tried(lambda: s3.mkdir("bucket"))
    url = "s3://bucket/runs/tiny"
    tiny().run(tmp_path / "one", mirror=url, stop_after=0.001)
    tree = tiny().run(tmp_path / "two", mirror=url)
    xr.testing.assert_identical(dk.open(url), tree)
    checked, wrong = storage.verify(url)
    assert len(checked) > 1
    assert not wrong
    (tmp_path / "three").mkdir()
    assert Mirror(url, tmp_path / "three").fetch(bool)
    assert files_in(tmp_path / "three") == files_in(tmp_path / "two")
    with pytest.raises(RunError, match="There is no run at s3://nobucket/run"):
        dk.load("s3://nobucket/run")
    # What others read with tries again by itself.
    monkeypatch.delenv("AWS_MAX_ATTEMPTS")
    s3.clear_instance_cache()
    there = xr.open_datatree(f"{url}/results.zarr", engine="zarr")
    np.testing.assert_array_equal(there["history"]["outer_loss"], tree["history"]["outer_loss"])
    assert server.read_text().count("failed") > 20
    assert "failed, behind PUT" in server.read_text()

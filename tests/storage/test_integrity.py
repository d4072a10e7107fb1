"""What is damaged is told, or it is harmless: a byte flipped in each file of a run in turn, and each file lost in turn."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import distilkit as dk
from distilkit.errors import RunError
from distilkit.storage import verify
from distilkit.storage.integrity import _digest
from tests.commands import distilkit


@pytest.fixture(scope="module")
def run(digits_run, tmp_path_factory):
    """A copy of the run that has all that a run can have."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    shutil.copytree(digits_run, folder)
    assert (folder / "checkpoints").is_dir()
    return folder


def stored(run):
    return sorted(path for part in ("results.zarr", "checkpoints") for path in (run / part).rglob("*") if path.is_file())


def same(left, right):
    assert left.attrs == right.attrs
    for group in left.children:
        assert left[group].attrs == right[group].attrs
        for name, array in left[group].to_dataset().variables.items():
            other = right[group].to_dataset().variables[name]
            assert array.dtype == other.dtype
            assert np.array_equal(array.values, other.values, equal_nan=array.dtype.kind == "f")


def told(run):
    """What distilkit.open and verify say of a run, "" for nothing."""
    said = " ".join(verify(run)[1])
    try:
        dk.open(run)
    except RunError as error:
        said += str(error)
    return said


def test_a_whole_run_is_whole(run):
    checked, wrong = verify(run)
    assert not wrong
    assert any("checkpoint" in line for line in checked)
    done = distilkit("verify", run)
    assert done.returncode == 0
    assert "whole: " in done.stdout


@pytest.mark.parametrize("half", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_flipped_byte_is_told_or_harmless(run, half):
    """In each file in turn."""
    chance, whole, harmless = random.Random(half), dk.open(run), []
    for path in stored(run)[half::2]:
        content = path.read_bytes()
        place = chance.randrange(len(content))
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << chance.randrange(8)]) + content[place + 1 :])
        if not told(run):
            same(dk.open(run), whole)
            harmless.append(path)
        path.write_bytes(content)
    assert len(harmless) <= 2, harmless  # white space of the JSON


def test_xarray_alone_sees_a_damaged_chunk(run):
    chunks = [path for path in stored(run) if path.suffix not in (".json", ".safetensors")]
    assert {path.name for path in chunks} == {"c.0", "c.0.0", "c.0.0.0.0"}
    for path in chunks:
        content = path.read_bytes()
        path.write_bytes(content[:-5] + bytes([content[-5] ^ 1]) + content[-4:])
        with pytest.raises(Exception), xr.open_datatree(run / "results.zarr", engine="zarr") as tree:  # noqa: B017, PT011
            tree.load()
        path.write_bytes(content)


def test_a_store_with_its_chunks_in_folders_is_read(run, tmp_path):
    """As they were stored at first, and as other programs do it."""
    older = tmp_path / "older"
    shutil.copytree(run, older)
    for array in (path.parent for path in (older / "results.zarr").rglob("zarr.json") if list(path.parent.glob("c.*"))):
        for chunk in array.glob("c.*"):
            place = array / chunk.name.replace(".", "/")
            place.parent.mkdir(parents=True, exist_ok=True)
            chunk.rename(place)
    for path in (older / "results.zarr").rglob("zarr.json"):
        path.write_text(path.read_text().replace('"separator": "."', '"separator": "/"'))
    root = older / "results.zarr" / "zarr.json"
    words = json.loads(root.read_text())
    words["attributes"]["digest"] = _digest(words)
    root.write_text(json.dumps(words))
    same(dk.open(older), dk.open(run))
    assert not verify(older)[1]


@pytest.mark.parametrize("lost", ["results.zarr/distilled/label_class/c.0", "results.zarr/evaluation/accuracy/zarr.json"])
def test_a_lost_file_is_told(run, lost):
    content = (run / lost).read_bytes()
    (run / lost).unlink()
    with pytest.raises(RunError, match=r"label_class has lost 1 of its 1 chunk\.|accuracy"):
        dk.open(run)
    done = distilkit("verify", run)
    assert done.returncode == 2
    assert "is damaged" in done.stderr
    assert "Traceback" not in done.stderr
    (run / lost).write_bytes(content)


def test_a_truncated_chunk_is_no_traceback(run):
    path = next(path for path in Path(run).glob("results.zarr/distilled/image/c.*"))
    content = path.read_bytes()
    path.write_bytes(b"")
    with pytest.raises(RunError, match="cannot be read"):
        dk.open(run)
    path.write_bytes(content)

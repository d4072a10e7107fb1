"""Files that are damaged or meant to do harm: words in every case, no traceback, nothing that hangs, and no other file is read."""

import os
import pickle
import random
import shutil

import attrs
import numpy as np
import pytest
import torch

import distilkit as dk
from distilkit.errors import DistilkitError
from distilkit.storage import formats
from distilkit.storage.formats.table import FORMATS

h5py = pytest.importorskip("h5py")
SECRET = b"a secret of 64 bytes, which no file of images may ever give away"


def made():
    images = dk.Stream(0).normal(4, 3, 4, 4).sigmoid()
    return dk.DistilledSet(images, torch.eye(2)[torch.arange(4) % 2], torch.arange(4) % 2, ("cat", "dog"))


def read(path, name=None):
    return formats.read(path, name, preprocessing="Identity", image_shape=(1, 4, 4), label_space="probability")


def external(file, secret):
    file.create_dataset("data", (1, 16), "f4", external=[(str(secret), 0, 64)])


def soft(file, secret):
    file["other"] = np.zeros((1, 16), "f4")
    file["data"] = h5py.SoftLink("/other")


def linked(file, secret):
    with h5py.File(secret.with_suffix(".h5"), "w") as other:
        other["data"] = np.frombuffer(SECRET, "f4").reshape(1, 16)
    file["data"] = h5py.ExternalLink(str(secret.with_suffix(".h5")), "/data")


def virtual(file, secret):
    layout = h5py.VirtualLayout((1, 16), "f4")
    layout[...] = h5py.VirtualSource(str(secret), "data", (1, 16))
    file.create_virtual_dataset("data", layout)


@pytest.mark.parametrize("hide", [external, soft, linked, virtual])
def test_hdf5_gives_no_other_file_away(hide, tmp_path):
    (tmp_path / "secret").write_bytes(SECRET)
    with h5py.File(tmp_path / "set.h5", "w") as file:
        hide(file, tmp_path / "secret")
    with pytest.raises(DistilkitError, match=r"not followed|not read"):
        read(tmp_path / "set.h5")


@pytest.mark.parametrize("name", ["set.safetensors", "set.h5", "set.npz", "res_1.pt"])
def test_a_fifo_is_not_waited_for(name, tmp_path):
    os.mkfifo(tmp_path / name)
    with pytest.raises(DistilkitError, match="neither a file nor a folder"):
        read(tmp_path / name, {"set.safetensors": "safetensors", "set.h5": "rat-bptt", "set.npz": "frepo", "res_1.pt": "dc"}[name])


def test_a_link_in_a_circle_is_told(tmp_path):
    folder = formats.write(made(), tmp_path / "set", "image-folder")
    (folder / "circle.png").symlink_to(folder / "circle.png")
    with pytest.raises(DistilkitError, match="neither a file nor a folder"):
        read(folder)


def test_postscript_by_the_name_of_a_picture_is_not_run(tmp_path):
    folder = formats.write(made(), tmp_path / "set", "image-folder")
    picture = next(folder.rglob("*.png"))
    picture.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\n(x) run\n%%EOF\n")
    with pytest.raises(DistilkitError, match="cannot be read as an image"):
        read(folder)


SUFFIX = {"safetensors": ".safetensors", "dc": ".pt", "rat-bptt": ".h5", "frepo": ".npz"}


@pytest.mark.parametrize("name", FORMATS)
def test_damaged_files_end_in_words(name, tmp_path):
    """Bytes flipped, cut off, doubled or swapped, in every file of every format: a set, or an error that distilkit raises on purpose."""
    given = made() if name != "frepo" else attrs.evolve(made(), labels=made().labels - 0.5, label_space="centred")
    whole = formats.write(given, tmp_path / f"whole{SUFFIX.get(name, '')}", name)
    chance, told = random.Random(name), 0
    for trial in range(40):
        path = tmp_path / f"{trial}{SUFFIX.get(name, '')}"
        shutil.copytree(whole, path) if whole.is_dir() else shutil.copy(whole, path)
        file = chance.choice(sorted(p for p in path.rglob("*") if p.is_file())) if path.is_dir() else path
        file.write_bytes(damaged(file.read_bytes(), chance))
        try:
            formats.read(path, name, preprocessing="Identity", image_shape=(3, 4, 4), label_space=FORMATS[name].spaces[0])
        except DistilkitError:
            told += 1
    assert told >= 3


def damaged(content, chance):
    place, how = chance.randrange(len(content)), chance.randrange(4)
    if how == 0:
        return content[:place] + bytes([content[place] ^ 1 << chance.randrange(8)]) + content[place + 1 :]
    if how == 1:
        return content[:place]
    if how == 2:
        return content[:place] + content[place // 2 :]
    return content[place:] + content[:place]


def test_a_byte_flipped_in_an_export_is_told(tmp_path):
    """Each byte of the numbers and of the header in turn: an error, or the very set (white space of the header)."""
    given = made()
    content = formats.write(given, tmp_path / "set.safetensors").read_bytes()
    told = 0
    for place in range(0, len(content), 7):
        path = tmp_path / "flipped.safetensors"
        path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        try:
            found = formats.read(path)
        except DistilkitError:
            told += 1
        else:
            assert torch.equal(found.images, given.images)
            assert torch.equal(found.labels, given.labels)
            assert (found.class_names, found.provenance) == (given.class_names, given.provenance)
    assert told > 0.9 * len(content) / 7


class Payload:
    """Makes a file where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("source", [dk.CIFAR10, dk.CIFAR100])
def test_batches_of_another_content_are_not_unpickled(source, tmp_path):
    """They are the one pickle that is read at all, by torchvision, and only with the MD5 that was published."""
    for folder, names in (
        ("cifar-10-batches-py", [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"]),
        ("cifar-100-python", ["train", "test", "meta"]),
    ):
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / name).write_bytes(pickle.dumps({"data": Payload(tmp_path / "owned")}))
    with pytest.raises(DistilkitError, match="corrupted"):
        source(root=str(tmp_path), download=False).load(dk.Stream(0))
    assert not (tmp_path / "owned").exists()

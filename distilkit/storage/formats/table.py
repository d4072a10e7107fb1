"""The table of formats, and reading and writing by it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from distilkit.data.bundle import DataBundle
from distilkit.data.distilled import LABEL_SPACES, DistilledSet
from distilkit.errors import Change, CombinationError, DistilkitError, FieldError, listing, nearest
from distilkit.storage.formats import dc, frepo, hugging_face, image_folder, lossless, mtt, rat_bptt
from distilkit.storage.formats.complete import agree, complete
from distilkit.storage.formats.raw import Options, Raw
from distilkit.storage.remote import require_here


@attrs.frozen
class Format:
    """One format.

    Args:
        summary: what lies on disk, in words.
        matches: whether a path looks like it, by names alone.
        read: gives the content, or a whole distilled set.
        write: writes a set to a path where nothing is; the last argument asks for no more than the authors' own code writes.
        suffixes: endings of the file that is written; empty for a folder.
        spaces: label spaces that the format can mean.
        lossless: what is written comes back to the bit.
    """

    summary: str
    matches: Callable[[Path], bool]
    read: Callable[[Path, Options], Raw | DistilledSet]
    write: Callable[[DistilledSet, Path, bool], None]
    suffixes: tuple[str, ...] = ()
    spaces: tuple[str, ...] = LABEL_SPACES
    lossless: bool = True


FORMATS: Mapping[str, Format] = {
    "mtt": Format("MTT, TESLA, DATM: a folder with images_best.pt and labels_best.pt", mtt.matches, mtt.read, mtt.write),
    "dc": Format("DC, DSA, DM: a file res_*.pt", dc.matches, dc.read, dc.write, (".pt", ".pth")),
    "rat-bptt": Format(
        "RaT-BPTT: a file *.h5 with 'data'", rat_bptt.matches, rat_bptt.read, rat_bptt.write, (".h5", ".hdf5"), ("one-hot", "probability")
    ),
    "frepo": Format("FRePo: a file *.npz with 'image' and 'label'", frepo.matches, frepo.read, frepo.write, (".npz",), ("centred",)),
    "dd-ranking": Format("DD-Ranking: a folder with images.pt", mtt.matches_dd_ranking, mtt.read_dd_ranking, mtt.write_dd_ranking),
    "safetensors": Format("distilkit: a file *.safetensors", lossless.matches, lossless.read, lossless.write, (".safetensors",)),
    "image-folder": Format(
        "pictures: a folder with labels.csv", image_folder.matches, image_folder.read, image_folder.write, lossless=False
    ),
    "hugging-face": Format(
        "Hugging Face: a folder with README.md and distilkit.safetensors", hugging_face.matches, hugging_face.read, hugging_face.write
    ),
}


def read(
    path: str | os.PathLike[str],
    format: str | None = None,
    *,
    data: DataBundle | None = None,
    label_space: str | None = None,
    preprocessing: Any = None,
    class_names: Sequence[str] | None = None,
    image_shape: Sequence[int] | None = None,
    index: int = -1,
) -> DistilledSet:
    """Read a distilled set in any format of the table, without running code from it.

    Args:
        path: a file or a folder.
        format: a name in `FORMATS`; found out from what lies there when left out.

        data: the real data, loaded with the preprocessing of the file or with `Identity`. It gives class names and image shape,
            and the images that preprocessing is fitted on. Authors fit on all training images, so load it with `validation=0`.
        label_space: "one-hot", "probability", "logit" or "centred", where the file has soft labels and does not say.
        preprocessing: a name ("Whiten", "KorniaZCA", "Standardize", "Identity", or constants of the authors' code such as
            "DC-CIFAR10"), a declaration such as `Whiten()`, or a fitted value, where neither file nor format says it.

        class_names: K names; those of the data, or "0", "1", ... when left out.
        image_shape: (C, H, W), where the file has flattened images; that of the data when left out.
        index: which experiment of a file of DC; -1 is the last.

    Returns:
        The set, on the CPU. A set that distilkit wrote says everything itself and comes back as it was.

    Raises:
        DistilkitError: the file is missing, damaged or not safe, or something is not known; the error names the option to give.

    >>> import tempfile, torch
    >>> made = DistilledSet(torch.zeros(2, 1, 4, 4), torch.eye(2), torch.arange(2), ("cat", "dog"))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     read(write(made, folder + "/set.safetensors")).class_names
    ('cat', 'dog')
    """
    place = Path(path)
    if not place.exists():
        raise DistilkitError(f"There is nothing at {os.fspath(path)!r}.")
    name = _detect(place) if format is None else _known(format)
    names = tuple(class_names) if class_names is not None else None
    shape = tuple(image_shape) if image_shape is not None else None
    options = Options(data, label_space, preprocessing, names, shape, index)
    _require_regular(place)
    try:
        found = FORMATS[name].read(place, options)
        if isinstance(found, Raw):
            return complete(found, options, name, place)
        # What is read from pictures has taken the options already.
        return agree(found, options, place) if FORMATS[name].lossless else found
    except DistilkitError:
        raise
    except Exception as error:  # whatever a damaged or hostile file makes its reader raise
        why = (str(error).strip() or "no words").splitlines()[0][:200]
        raise DistilkitError(f"{place} cannot be read as {name!r}: {type(error).__name__}: {why}") from error


def _require_regular(place: Path) -> None:
    """Refuse what would be waited for, or is no file: a FIFO, a device, a socket, a link that leads nowhere or in a circle."""
    for path in (place, *(place.rglob("*") if place.is_dir() else ())):
        if not path.is_file() and not path.is_dir():
            raise DistilkitError(f"{path} is neither a file nor a folder, and is not opened.")


def write(distilled: DistilledSet, path: str | os.PathLike[str], format: str | None = None, *, plain: bool = False) -> Path:
    """Write a distilled set in a format of the table, whole or not at all.

    Args:
        distilled: the set.
        path: a file or a folder that is not there yet.
        format: a name in `FORMATS`; "safetensors" when it is left out and the path ends so.
        plain: write no more than the authors' own code does. Otherwise a lossless copy lies with it, where that code does not look:
            with it, block, class names, preprocessing and the order of the rows come back too.

    Returns:
        The path.

    Raises:
        DistilkitError: something is there already, or the format cannot hold the set.
    """
    place = Path(path)
    require_here(path, fix=place.name)
    if not place.name:
        raise CombinationError(f"{os.fspath(path)!r} is no name for a file or folder to write.")
    name = "safetensors" if format is None and place.suffix == ".safetensors" else _known(format, option="to")
    chosen = FORMATS[name]
    if chosen.suffixes and place.suffix not in chosen.suffixes:
        raise CombinationError(
            f'The format "{name}" is a file that ends in {listing(chosen.suffixes)}, and {place.name!r} does not.',
            fix=str(place.with_name(place.name + chosen.suffixes[0])),
        )
    if distilled.label_space not in chosen.spaces:
        raise CombinationError(
            f'Labels in the format "{name}" are {listing(chosen.spaces)}, and those of this set are {distilled.label_space}: '
            "whoever read it would take them for something else.",
            fix='formats.write(distilled, "set.safetensors", "safetensors")',
        )
    if not len(distilled):
        raise CombinationError(f"A distilled set without samples is not written as {name!r}.")
    chosen.write(distilled, Path(os.path.abspath(place)), plain)
    return place


def _detect(path: Path) -> str:
    if (path / "results.zarr").is_dir() or path.suffix == ".zarr":
        raise DistilkitError(f"{path} is a run, not a file to import.", fix=f'distilkit.load("{path}")')
    found = [name for name, format in FORMATS.items() if format.matches(path)]
    if len(found) == 1:
        return found[0]
    why = f"looks like {listing(found)}" if found else "looks like none of the formats"
    known = "; ".join(f'"{name}": {format.summary}' for name, format in FORMATS.items())
    changes = [Change("format", found[0] if found else "mtt")]
    raise DistilkitError(f"{path} {why}, so its format must be given. {known}.", changes=changes)


def _known(format: str | None, *, option: str | None = None) -> str:
    if format in FORMATS:
        return str(format)
    near = nearest(str(format), FORMATS)
    raise FieldError(
        "format", format, listing([f'"{name}"' for name in FORMATS]), changes=[Change("format", near or "safetensors", option)]
    )

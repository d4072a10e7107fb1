"""The format "hugging-face": a folder that can be pushed to the Hub as it stands.

    README.md                the dataset card, from `card.md`; its YAML tells the Hub and `datasets` where the images are
    train/000000.png ...     what a person sees, with train/metadata.jsonl (file_name, label, block, target): the "imagefolder" convention
    distilkit.safetensors    the set itself, bit for bit: this is what is read back, and what one trains on
    distilkit.json           what it is, in words: see `description`

A set that PNG cannot hold (feature vectors, or neither 1 nor 3 channels) has train/samples.jsonl in their place, with values for
file_name. (JSON, since `datasets` reads CSV by way of pandas, and older ones do not know the text of pandas 3.)
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jinja2
import torch

from distilkit.data.distilled import DistilledSet
from distilkit.errors import DistilkitError
from distilkit.storage.formats import description, lossless
from distilkit.storage.formats.pictures import can_be_drawn, write_png
from distilkit.storage.formats.raw import BESIDE, Options, write_folder
from distilkit.storage.spread import plus_minus

CARD, TEMPLATE, TABLE, ROWS = "README.md", "card.md", "train/metadata.jsonl", "train/samples.jsonl"
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def matches(path: Path) -> bool:
    """Whether the path looks like this format."""
    return (path / CARD).is_file() and (path / BESIDE).is_file()


def read(path: Path, options: Options) -> DistilledSet:
    """Read the exact set of the folder, and see that what lies beside it tells of the same."""
    place = path / BESIDE
    if not place.is_file():
        raise DistilkitError(f"{path} has no {BESIDE}; without it only pictures are there, which are no distilled set.")
    content = place.read_bytes()
    found, words = lossless.loads(content, place), description.read(path)
    if words is not None:
        description.require_of(words, found, lossless.head(content), path)
    return found


def write(distilled: DistilledSet, path: Path, plain: bool) -> None:
    """Write the folder."""
    drawn, content = can_be_drawn(distilled), lossless.dumps(distilled)
    words = description.describe(distilled, header=lossless.head(content), pictures=TABLE if drawn else None)

    def fill(folder: Path) -> None:
        (folder / BESIDE).write_bytes(content)
        description.write(folder, words)
        (folder / CARD).write_text(card(distilled, words), encoding="utf-8", errors="replace")
        (folder / "train").mkdir()
        columns = {
            "file_name" if drawn else "values": write_png(distilled, folder / "train") if drawn else _numbers(distilled.images),
            "label": distilled.classes.tolist(),
            "block": distilled.block.tolist(),
            "target": _numbers(distilled.labels),
        }
        with (folder / (TABLE if drawn else ROWS)).open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(dict(zip(columns, row, strict=True))) + "\n" for row in zip(*columns.values(), strict=True))

    write_folder(path, fill)


def card(distilled: DistilledSet, words: dict[str, Any]) -> str:
    """The dataset card: YAML front matter and text.

    Args:
        distilled: the set.
        words: what `description.describe` says of it.

    >>> import torch
    >>> made = DistilledSet(torch.zeros(2, 4), torch.eye(2), torch.arange(2), ("cat", "dog"))
    >>> card(made, description.describe(made)).splitlines()[:2]
    ['---', 'pretty_name: "Distilled set of 2 classes"']
    """
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(  # Markdown, not HTML
        loader=loader, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"quoted": _quoted, "code": _code}
    names, reached = distilled.class_names, [one for one in (words["expected_accuracy"] or {}).get("each", []) if one is not None]
    return environment.get_template(TEMPLATE).render(
        words=words,
        title=" ".join(f"Distilled set of {len(names)} classes {'of ' + words['data'] if words['data'] else ''}".split()),
        size=next((word for most, word in SIZES if len(distilled) < most), "n>1M"),
        drawn=can_be_drawn(distilled),
        unique=len(set(names)) == len(names),  # `datasets` takes class names only where no two are the same
        rate=None if distilled.inner_lr is None else _rate(distilled.inner_lr),
        accuracy=f"{plus_minus([100 * one for one in reached], 1)} %" if reached else None,
        networks=len(reached),
        imported=distilled.provenance.get("imported_from"),
    )


def _numbers(tensor: torch.Tensor) -> list[Any]:
    return tensor.detach().cpu().float().tolist()


def _quoted(text: str) -> str:
    r"""Text in quotes of YAML, whatever is in it: JSON's, but for what it writes as two halves.

    >>> print(_quoted('a "🐈"'))
    "a \"\U0001f408\""
    """
    return '"' + "".join(json.dumps(letter)[1:-1] if ord(letter) < 0x10000 else f"\\U{ord(letter):08x}" for letter in text) + '"'


def _code(value: Any) -> str:
    """A value on a line of Markdown, which is not to read it."""
    return "`" + " ".join(str(value).replace("`", "'").split()) + "`"


def _rate(rate: float | tuple[float, ...]) -> str:
    if isinstance(rate, tuple):
        return f"its own for each of {len(rate)} steps, the first {rate[0]:g} and the last {rate[-1]:g}"
    return f"{rate:g}"

"""Specs that come with the package, by name: `paper/cifar10-ipc1` is `paper/cifar10-ipc1.toml` in this folder.

They are files of the package, so that an installed distilkit has them too; `examples/` in a checkout has links to them.
A recipe begins with a header of comments, whose lines `key: value` `describe` reads. Nothing here loads torch.
"""

from __future__ import annotations

import re
from pathlib import Path

import attrs
import tomlkit

from distilkit.errors import DistilkitError, nearest

FOLDER = Path(__file__).parent
_LINE = re.compile(r"#\s+(data|published|memory|cost|source):\s*(.+)")


@attrs.frozen
class Recipe:
    """What a recipe says of itself.

    Args:
        name: such as `paper/cifar10-ipc1`.
        data: the dataset, in words.
        per_class: distilled images per class.
        published: test accuracy of the method in percent, as published, and that of its best rival.
        memory: estimated memory of the device.
        cost: time that it takes, measured or estimated.
        source: where the settings come from.
    """

    name: str
    data: str
    per_class: int
    published: str
    memory: str
    cost: str
    source: str


def names() -> list[str]:
    """The names of all recipes.

    >>> "paper/cifar10-ipc10" in names()
    True
    """
    return sorted((p.relative_to(FOLDER).with_suffix("").as_posix() for p in FOLDER.rglob("*.toml")), key=_by_number)


def read(name: str) -> str:
    """The TOML text of a recipe.

    Raises:
        DistilkitError: there is none of that name; the nearest is named.
    """
    if name not in names():
        near = nearest(name, names())
        raise DistilkitError(f"There is no recipe {name!r}. `distilkit recipes` lists them.", fix=near)
    return (FOLDER / f"{name}.toml").read_text(encoding="utf-8")


def describe(name: str) -> Recipe:
    """What the header of a recipe says.

    Raises:
        DistilkitError: there is none of that name.

    >>> describe("paper/cifar10-ipc10").published
    '69.4 ± 0.4 (best rival: Inf-Match, 72.5)'
    """
    text = read(name)
    said = {match[1]: match[2] for line in text.splitlines() if (match := _LINE.match(line))}
    return Recipe(name, per_class=tomlkit.parse(text).unwrap()["images"]["per_class"], **said)


def _by_number(name: str) -> list[str | int]:
    """Sorts ipc10 after ipc1 and before ipc50, and cifar100 after cifar10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]

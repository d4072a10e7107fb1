"""What several commands take: their options, what is typed behind them, and how they say a line."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from distilkit.errors import FieldError, visible


def say(words: str, *, err: bool = False) -> None:
    """Print a line, in which nothing that came from a file moves the cursor."""
    typer.echo(visible(words), err=err)


def names_like(beginning: str) -> list[str]:
    """Recipes that a shell completes; where there is none, it completes files."""
    from distilkit import recipes

    return [name for name in recipes.names() if name.startswith(beginning)]


def one_of(*words: str) -> Callable[[str], list[str]]:
    """What a shell completes to one of these words."""

    def begun(beginning: str) -> list[str]:  # typer knows the argument by its type
        return [word for word in words if word.startswith(beginning)]

    return begun


SpecPath = Annotated[
    Path,
    typer.Argument(
        metavar="SPEC",
        help="A TOML spec, such as mine.toml, or a recipe, such as digits or paper/cifar10-ipc10.",
        autocompletion=names_like,
    ),
]
Overrides = Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE", help="Change a value of the spec, such as outer.steps=100.")]
Trust = Annotated[bool, typer.Option("--trust", help="Allow components of kind python, which execute code that the spec names.")]

Seed = Annotated[int | None, typer.Option("--seed", metavar="N", help="Seed of everything; as --set seed=N.", min=0)]
Device = Annotated[
    str | None,
    typer.Option("--device", metavar="NAME", help="cpu, cuda or cuda:1; as --set device=NAME.", autocompletion=one_of("cpu", "cuda")),
]
StopAfter = Annotated[
    str | None, typer.Option("--stop-after", metavar="TIME", help="Stop after so long, such as 9m or 3.5h; the same command goes on.")
]

Quiet = Annotated[bool, typer.Option("--quiet", help="Show no progress and no table; print where the result is, in one line.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON document; progress goes to the errors.")]

Log = Annotated[
    list[str],
    typer.Option(
        "--log",
        metavar="NAME",
        help="Log the run to tensorboard, wandb or trackio too; repeatable.",
        autocompletion=one_of("tensorboard", "wandb", "trackio"),
    ),
]

Mirror = Annotated[
    str | None,
    typer.Option("--mirror", metavar="URL", help="Copy the run there as it goes on, such as s3://bucket/run, and go on from it."),
]
WorkersHere = Annotated[int | None, typer.Option("--workers", metavar="N", help="Processes of this machine that share the work.", min=1)]
Shard = Annotated[
    str | None, typer.Option("--shard", metavar="I/N", help="Do the I-th of N parts only, such as 2/8, where machines share the folder.")
]


def seconds_of(words: str | None) -> float | None:
    """Of "90", "90s", "9m", "3.5h" or "1d"."""
    if words is None:
        return None
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smhd]?)\s*", words)
    if not found:
        raise FieldError("--stop-after", words, "a time such as 90s, 9m or 3.5h", fix="--stop-after 9m")
    return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[found[2]]


def shard_of(words: str | None) -> tuple[int, int] | None:
    """Of "2/8", the second of eight parts."""
    if words is None:
        return None
    found = re.fullmatch(r"\s*(\d{1,9})\s*/\s*(\d{1,9})\s*", words, re.ASCII)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise FieldError("--shard", words, "a part such as 2/8, the second of eight", fix="--shard 1/8")
    return int(found[1]), int(found[2])


def overrides(set_: list[str], seed: int | None, device: str | None) -> list[str]:
    """Changes of a spec, of which those with a name of their own come last."""
    named = {"seed": seed, "device": device}
    return [*set_, *(f"{name}={value}" for name, value in named.items() if value is not None)]


def words_of(words: str | None) -> list[str]:
    """Of "ConvNet, VGG"."""
    return [word.strip() for word in words.split(",")] if words else []


def numbers_of(option: str, words: str | None, least: int) -> list[int]:
    """Whole numbers, of "1,2,5"; each once."""
    found = [int(word) if re.fullmatch(r"\d{1,9}", word, re.ASCII) else -1 for word in words_of(words)]
    if any(number < least for number in found) or len(set(found)) != len(found):
        raise FieldError(option, words, f"whole numbers, each at least {least} and none twice", fix=f"{option} 1,2,5")
    return found


def folder_of(run: Path) -> Path:
    """The folder for what is made of a run."""
    from distilkit.storage.remote import url_of
    from distilkit.storage.shipped import comes_with_distilkit

    if comes_with_distilkit(run) or url_of(run):
        return Path("runs") / (run.parent if run.suffix == ".zarr" else run).name  # a folder of its own name would hide the set
    return run.parent if run.suffix == ".zarr" else run


def runs_folder(title: str) -> Path:
    """runs/TITLE."""
    return Path("runs") / ("".join(c if c.isalnum() or c in "-_." else "-" for c in title).strip("-.") or "run")

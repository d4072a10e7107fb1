"""The command line: a few lines over the library for every command.

Torch is imported by the commands that need it, so that `--help` answers at once. A `DistilkitError` is printed without a
traceback and ends with exit code 2.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from distilkit.errors import DistilkitError

app = typer.Typer(
    name="distilkit",
    help="Dataset distillation with exact meta-gradients: make a tiny synthetic training set out of a large real one.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

SpecPath = Annotated[Path, typer.Argument(metavar="SPEC", help="A TOML spec, such as examples/digits.toml.")]
Overrides = Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE", help="Change a value of the spec, such as outer.steps=100.")]
Trust = Annotated[bool, typer.Option("--trust", help="Allow components of kind python, which execute code that the spec names.")]


@app.callback(invoke_without_command=True)
def _main(version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False) -> None:
    if version:
        from distilkit import __version__

        typer.echo(f"distilkit {__version__}")
        raise typer.Exit


@app.command()
def run(
    spec: SpecPath,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Folder of the run; by default runs/TITLE.")] = None,
    set_: Overrides = [],  # noqa: B006  (typer reads the default)
    trust: Trust = False,
) -> None:
    """Run a spec: distil, judge on real test images, and store everything in a folder."""
    from distilkit import spec as specs
    from distilkit.display import show_run

    distiller = specs.load(spec, set_, trust=trust)
    show_run(distiller, out or _free_folder(distiller.title))


@app.command()
def validate(spec: SpecPath, set_: Overrides = [], trust: Trust = False) -> None:  # noqa: B006
    """Check a spec without running it, and print it with every default filled in."""
    from distilkit import spec as specs

    distiller = specs.load(spec, set_, trust=trust)
    typer.echo(specs.dumps(distiller))
    typer.echo(f"# {spec} is a valid spec.")


def _free_folder(title: str) -> Path:
    """runs/TITLE, or runs/TITLE-2 and so on where that is taken."""
    name = "".join(c if c.isalnum() or c in "-_." else "-" for c in title).strip("-.") or "run"
    folder, number = Path("runs") / name, 2
    while folder.exists():
        folder, number = Path("runs") / f"{name}-{number}", number + 1
    return folder


def main() -> None:
    """Entry point of the `distilkit` command."""
    try:
        app()
    except DistilkitError as error:
        typer.echo(f"distilkit: {error}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()

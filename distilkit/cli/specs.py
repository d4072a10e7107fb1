"""The commands about specs: `validate`, `new`, `schema`, `recipes`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from distilkit.cli.guesses import Recipes
from distilkit.cli.options import Device, Json, Overrides, Quiet, Seed, SpecPath, Trust, names_like, overrides, say
from distilkit.cli.output import Output

commands = typer.Typer()


@commands.command(epilog="Example: distilkit validate digits --set outer.steps=100")
def validate(
    spec: SpecPath,
    set_: Overrides = [],  # noqa: B006
    seed: Seed = None,
    device: Device = None,
    trust: Trust = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Check a spec without running it, and print it with every default filled in."""
    from distilkit import spec as specs

    distiller = specs.load(spec, overrides(set_, seed, device), trust=trust)
    Output(quiet, as_json).answer(specs.to_tree(distiller), specs.dumps(distiller), f"# {spec} is a valid spec.")


@commands.command(epilog="Example: distilkit new mine.toml --data Digits --per-class 2")
def new(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="The spec to write, such as mine.toml.")],
    data: Annotated[
        str, typer.Option(metavar="DATA", help="Arrays such as photos.npz, a folder of images, or a kind such as CIFAR10.")
    ] = "Digits",
    per_class: Annotated[int, typer.Option(help="Distilled images of each class.", min=1)] = 1,
    steps: Annotated[int | None, typer.Option(help="Outer steps; by default those of the recipe that it follows.", min=1)] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Write a spec with comments to begin with, for data of your own or a dataset that distilkit knows."""
    from distilkit.cli.new import write_spec

    base = write_spec(path, data, per_class, steps)
    lines = (f"Wrote     {path}, after the recipe {base}", f"Look      distilkit plan {path}", f"Run it    distilkit run {path}")
    Output(quiet, as_json).answer({"file": path, "recipe": base}, *lines, written=path)


@commands.command(epilog="Example: distilkit schema --out spec.json")
def schema(
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write it there; by default it is printed.")] = None,
) -> None:
    """Print the JSON schema of specs, with which editors complete and check TOML."""
    from distilkit.errors import Change
    from distilkit.spec.schema import json_schema
    from distilkit.storage.remote import require_here

    require_here(out, changes=[Change("out", out.name)] if out else ())
    text = json.dumps(json_schema(), indent=1)
    if out is None:
        typer.echo(text)
        return
    out.write_text(text + "\n", encoding="utf-8")
    say(f"Wrote     {out}")
    say(f"Use it    #:schema {out}    as the first line of a spec, in editors with Taplo (Even Better TOML)")


recipe_commands = typer.Typer(cls=Recipes, help="List the recipes that come with distilkit, or show one.")
commands.add_typer(recipe_commands, name="recipes")


@recipe_commands.callback(invoke_without_command=True)
def _recipes(context: typer.Context, as_json: Json = False) -> None:
    if context.invoked_subcommand is None:
        from distilkit.cli.run import show_recipes

        show_recipes(Output(as_json=as_json))


@recipe_commands.command(epilog="Example: distilkit recipes show digits")
def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Such as paper/cifar10-ipc10.", autocompletion=names_like)],
) -> None:
    """Print a recipe as TOML, as `distilkit recipes NAME` does."""
    from distilkit import recipes

    typer.echo(recipes.read(name), nl=False)

"""The commands that take many evaluations or gradients: `subsets`, `study`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from distilkit.cli.guesses import guessing
from distilkit.cli.options import (
    Device,
    Json,
    Overrides,
    Quiet,
    Seed,
    Shard,
    SpecPath,
    Trust,
    WorkersHere,
    folder_of,
    numbers_of,
    one_of,
    overrides,
    runs_folder,
    shard_of,
    words_of,
)
from distilkit.cli.output import Output

commands = typer.Typer()


@commands.command(epilog="Example: distilkit subsets runs/digits --draws 2 --seeds 2")
def subsets(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run or the URL of its copy, or a set that comes with distilkit.")],
    budgets: Annotated[str | None, typer.Option(metavar="1,2,5", help="Images of each class; by default doubling up to all.")] = None,
    draws: Annotated[int, typer.Option(help="Random subsets of each size.", min=1)] = 10,
    strategy: Annotated[
        str,
        typer.Option(
            help="random, prefix, easiest or hardest; the last three have one draw.",
            autocompletion=one_of("random", "prefix", "easiest", "hardest"),
        ),
    ] = "random",
    networks: Annotated[str | None, typer.Option(metavar="MLP,ConvNet", help="Train these networks in place of the run's.")] = None,
    seeds: Annotated[int | None, typer.Option(help="Networks trained on each subset; by default the run's.", min=1)] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="DIR", help="Folder of the grid; by default RUN/subsets-STRATEGY, in runs/ for a URL and a set of distilkit's."
        ),
    ] = None,
    workers: WorkersHere = None,
    shard: Shard = None,
    set_: Overrides = [],  # noqa: B006
    seed: Seed = None,
    device: Device = None,
    trust: Trust = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Test random, first, easiest or hardest parts of a run's distilled set. Stopped, it goes on; several processes may share it."""
    from distilkit.cli.studies import show_subsets

    numbers, draws = numbers_of("--budgets", budgets, least=1), draws if strategy == "random" else 1
    folder, how = out or folder_of(run) / f"subsets-{strategy}", {"workers": workers, "shard": shard_of(shard)}
    case = {"overrides": overrides(set_, seed, device), "trust": trust}
    show_subsets(run, numbers, draws, strategy, words_of(networks), seeds, folder, case, how, Output(quiet, as_json))


study_commands = typer.Typer(
    cls=guessing("study gradients", {}), help="Study meta-gradients, or how distilled samples depend on each other.", no_args_is_help=True
)
commands.add_typer(study_commands, name="study")


@study_commands.command(epilog="Example: distilkit study gradients digits --at 0,5 --replicates 3")
def gradients(
    spec: SpecPath,
    at: Annotated[
        str | None,
        typer.Option(
            metavar="0,50,200", help="Outer steps after which to study; in a shorter run, by default, its start, a quarter and its end."
        ),
    ] = None,
    replicates: Annotated[int, typer.Option(help="Independent meta-gradients a policy and point.", min=3)] = 16,
    policy: Annotated[
        list[str], typer.Option(metavar="TABLE", help="Such as '{kind = \"TailTruncation\", horizon = 40, window = 10}'.")
    ] = [],  # noqa: B006
    optimizer: Annotated[list[str], typer.Option(metavar="TABLE", help="Inner optimiser, such as '{kind = \"SGD\", lr = 0.1}'.")] = [],  # noqa: B006
    with_: Annotated[
        list[str], typer.Option("--with", metavar="KEY=VALUE", help="Beside the policies, the spec with this change, such as outer.ends=3.")
    ] = [],  # noqa: B006
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Folder of the study; by default runs/TITLE-gradients.")] = None,
    workers: WorkersHere = None,
    shard: Shard = None,
    set_: Overrides = [],  # noqa: B006
    seed: Seed = None,
    device: Device = None,
    trust: Trust = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Measure norm, variance, bias and cost of the meta-gradient by truncation policy. Stopped, it goes on."""
    from distilkit import spec as specs
    from distilkit.cli.studies import show_gradients

    changes = overrides(set_, seed, device)
    pipeline = specs.load(spec, changes, trust=trust)
    points = numbers_of("--at", at, least=0) if at is not None else None
    changed = {one: specs.load(spec, [*changes, one], trust=trust) for one in with_}
    folder, how = out or runs_folder(f"{pipeline.title}-gradients"), {"workers": workers, "shard": shard_of(shard)}
    show_gradients(pipeline, points, replicates, policy, optimizer, changed, folder, how, Output(quiet, as_json))


@study_commands.command(epilog="Example: distilkit study intercorrelation boosted.toml --draws 3")
def intercorrelation(
    spec: SpecPath,
    draws: Annotated[int, typer.Option(help="Random subsets, and draws of real images, of each size.", min=1)] = 10,
    influence: Annotated[int | None, typer.Option(metavar="2", help="Images per class of the set whose samples are removed.")] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Folder of the study; by default runs/TITLE-study.")] = None,
    workers: WorkersHere = None,
    shard: Shard = None,
    set_: Overrides = [],  # noqa: B006
    seed: Seed = None,
    device: Device = None,
    trust: Trust = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Compare boosted prefixes with subsets, with sets distilled directly and with real images. Stopped, it goes on."""
    from distilkit import spec as specs
    from distilkit.cli.studies import show_intercorrelation

    pipeline = specs.load(spec, overrides(set_, seed, device), trust=trust)
    folder, how = out or runs_folder(f"{pipeline.title}-study"), {"workers": workers, "shard": shard_of(shard)}
    show_intercorrelation(pipeline, draws, influence, folder, how, Output(quiet, as_json))

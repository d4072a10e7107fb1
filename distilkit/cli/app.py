"""The commands and their options: a few lines over the library each.

Torch is imported by the commands that need it, so that `--help` answers at once. A `DistilkitError` is printed without a
traceback, and ends with its exit code: 2 for bad input, 3 for numbers that are not finite, 4 where disk or memory is short, 130 for what
was stopped before its end; 1 is a fault of ours, or of a component that a spec names. `--debug` shows the traceback of any of them.
"""

from __future__ import annotations

import errno
import io
import os
import sys
import traceback
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from distilkit.cli import looking, specs
from distilkit.cli.options import (
    Device,
    Mirror,
    Overrides,
    Seed,
    Shard,
    SpecPath,
    StopAfter,
    Trust,
    WorkersHere,
    folder_of,
    numbers_of,
    overrides,
    runs_folder,
    say,
    seconds_of,
    shard_of,
    words_of,
)
from distilkit.errors import CombinationError, DistilkitError, ResourceError
from distilkit.progress import speaks

app = typer.Typer(
    name="distilkit",
    help="Dataset distillation with exact meta-gradients: make a tiny synthetic training set out of a large real one.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def _main(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error comes from, with any command.")] = False,
) -> None:
    if version:
        from distilkit import __version__

        typer.echo(f"distilkit {__version__}")
        raise typer.Exit


@app.command()
def run(
    spec: SpecPath,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Folder of the run; by default runs/TITLE.")] = None,
    set_: Overrides = [],  # noqa: B006  (typer reads the default)
    seed: Seed = None,
    device: Device = None,
    trust: Trust = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start anew, in a folder beside the run of this spec that is there.")] = False,
    stop_after: StopAfter = None,
    mirror: Mirror = None,
) -> None:
    """Run a spec: distil, judge on real test images, and store everything in a folder. A run that was stopped goes on."""
    from distilkit import ranks, spec as specs
    from distilkit.cli.run import show_run
    from distilkit.runs.claim import folder_for, free_folder

    distiller, seconds = specs.load(spec, overrides(set_, seed, device), trust=trust), seconds_of(stop_after)
    folder = out or runs_folder(distiller.title)
    with ranks.joined(distiller.torch_device) as world:
        if fresh and world.joined:
            raise CombinationError("--fresh would begin anew at every restart of torchrun.", fix=f"--out {folder}-2")
        if fresh:
            folder = world.first_does(partial(free_folder, folder))
        elif out is None:
            folder = world.first_does(partial(folder_for, distiller, folder))
        show_run(distiller, folder, seconds, mirror)


@app.command()
def resume(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run that was stopped.")],
    set_: Overrides = [],  # noqa: B006
    device: Device = None,
    trust: Trust = False,
    stop_after: StopAfter = None,
    mirror: Mirror = None,
) -> None:
    """Go on with a run. With --set outer.steps=N it goes further than was planned."""
    from distilkit.cli.run import show_run
    from distilkit.errors import RunError
    from distilkit.runs.open import pipeline_of
    from distilkit.storage.shipped import comes_with_distilkit

    folder = run.parent if run.suffix == ".zarr" else run
    if comes_with_distilkit(folder):
        raise RunError(f"{folder} names a set that comes with distilkit, not a run that was stopped.", fix=f"distilkit run {folder}")
    pipeline = pipeline_of(folder, overrides(set_, None, device), trust=trust, instead="distilkit run SPEC")
    show_run(pipeline, folder, seconds_of(stop_after), mirror)


@app.command()
def plan(
    spec: SpecPath,
    set_: Overrides = [],  # noqa: B006
    seed: Seed = None,
    device: Device = None,
    trust: Trust = False,
    probe: Annotated[bool, typer.Option(help="Run a few inner steps to measure; without, memory is known to a factor of two.")] = True,
    processes: Annotated[int, typer.Option(metavar="N", help="What each of N processes of torchrun would take.", min=1)] = 1,
) -> None:
    """Tell how much memory and time a spec will take, and what to change if it does not fit; nothing is written."""
    from distilkit import spec as specs
    from distilkit.cli.run import show_plan

    show_plan(specs.load(spec, overrides(set_, seed, device), trust=trust), probe, processes)


app.add_typer(specs.commands)
app.add_typer(looking.commands)


@app.command()
def evaluate(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A run, a set that comes with distilkit, or one in a format of others.")],
    data: Annotated[
        str | None, typer.Option(metavar="FILE", help="Real data: arrays such as CIFAR10.npz, or a kind such as CIFAR10.")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(metavar="RECIPE", help="How to train: a spec, or a name such as paper/cifar10-ipc1.")
    ] = None,
    format_: Annotated[str | None, typer.Option("--format", help="Format of the set, such as rat-bptt.")] = None,
    label_space: Annotated[
        str | None, typer.Option(help="What the labels are, if the file does not say: probability, logit or centred.")
    ] = None,
    preprocessing: Annotated[str | None, typer.Option(help="What the images went through, if the file does not say.")] = None,
    steps: Annotated[str | None, typer.Option(metavar="300,600", help="Numbers of training steps to test after.")] = None,
    seeds: Annotated[int | None, typer.Option(metavar="8", help="How many networks.")] = None,
    select: Annotated[str | None, typer.Option(help="Select the steps on: validation, or paper for the test images.")] = None,
    networks: Annotated[str | None, typer.Option(metavar="ConvNet,VGG", help="Train these networks in place of the recipe's.")] = None,
    lr: Annotated[list[str], typer.Option(metavar="VGG=0.01", help="Learning rate of one of the networks.")] = [],  # noqa: B006
    baselines: Annotated[str | None, typer.Option(metavar="NAMES", help='What to compare with, such as "random real".')] = None,
    ranking: Annotated[bool, typer.Option("--ranking", help="Compute DD-Ranking's scores; trains on all real images too.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of the networks.")] = 0,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Store the results in this folder.")] = None,
    workers: WorkersHere = None,
    set_: Overrides = [],  # noqa: B006
    trust: Trust = False,
) -> None:
    """Train fresh networks on a distilled set, a run's or anyone's, and test them on real images."""
    from distilkit.cli.evaluate import show_evaluation

    protocol = {"evaluation.steps": steps and f"[{steps}]", "evaluation.seeds": seeds, "evaluation.select": select}
    changes = [*set_, *(f"{key}={value}" for key, value in protocol.items() if value is not None)]
    case = {"data": data, "recipe": recipe, "format": format_, "label_space": label_space, "preprocessing": preprocessing}
    options = {"networks": words_of(networks), "rates": lr, "baselines": words_of(baselines), "ranking": ranking, "seed": seed}
    show_evaluation(path, case | {"overrides": changes, "trust": trust}, options | {"workers": workers}, out)


@app.command()
def export(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A run, a set that comes with distilkit, or one in a format of others.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The file or folder to write; it must not be there yet.")],
    to: Annotated[str | None, typer.Option(metavar="FORMAT", help="Format to write, such as mtt, safetensors or image-folder.")] = None,
    format: Annotated[str | None, typer.Option(metavar="FORMAT", help="Format of PATH, if it is no run and cannot be told.")] = None,
    label_space: Annotated[str | None, typer.Option(help="What the labels of PATH are, if it does not say.")] = None,
    preprocessing: Annotated[str | None, typer.Option(help="What the images of PATH went through, if it does not say.")] = None,
    plain: Annotated[bool, typer.Option("--plain", help="Write no more than the authors' own code does, without a lossless copy.")] = False,
) -> None:
    """Write a distilled set, a run's or anyone's, in a format of others."""
    from distilkit.runs.open import read_set
    from distilkit.storage import formats

    made = read_set(path, format=format, label_space=label_space, preprocessing=preprocessing)
    say(f"{formats.write(made, out, to, plain=plain)}: {len(made)} images, labels as {made.label_space}")


@app.command()
def sheet(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run, or a set that comes with distilkit.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="The picture: .png, .pdf or .svg; by default RUN/sheet.png, in runs/ for such a set."),
    ] = None,
    data: Annotated[
        str | None, typer.Option(metavar="FILE", help="Real data: arrays such as CIFAR10.npz, or a kind such as CIFAR10.")
    ] = None,
    rows: Annotated[int | None, typer.Option(metavar="10", help="The most images of a class to show.", min=1)] = None,
    real: Annotated[
        int | None, typer.Option(metavar="3", help="Real images of each class beside them; with 0 a run needs no data.", min=0)
    ] = None,
    which: Annotated[str, typer.Option(help="best, last, or auto: the best where there is one.")] = "auto",
    set_: Overrides = [],  # noqa: B006
    trust: Trust = False,
) -> None:
    """Draw the images of a distilled set by class, beside real ones."""
    from distilkit.cli.sheet import show_sheet

    case = {"data": data, "overrides": set_, "trust": trust}
    show_sheet(run, out or folder_of(run) / "sheet.png", case, which=which, rows=rows, real=real)


@app.command()
def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Folders of runs and studies, side by side where there are several.")
    ],
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="The page; by default report.html in the first folder.")] = None,
) -> None:
    """Tell all that is stored of runs and studies on one page: an HTML file that needs nothing beside it."""
    from distilkit import storage
    from distilkit.report import page

    target = page({path.as_posix(): storage.open(path) for path in runs}, out or folder_of(runs[0]) / "report.html")
    say(f"Look at   {target}")


@app.command()
def subsets(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run, or a set that comes with distilkit.")],
    budgets: Annotated[str | None, typer.Option(metavar="1,2,5", help="Images of each class; by default doubling up to all.")] = None,
    draws: Annotated[int, typer.Option(help="Random subsets of each size.", min=1)] = 10,
    strategy: Annotated[str, typer.Option(help="random, prefix, easiest or hardest; the last three have one draw.")] = "random",
    networks: Annotated[str | None, typer.Option(metavar="MLP,ConvNet", help="Train these networks in place of the run's.")] = None,
    seeds: Annotated[int | None, typer.Option(help="Networks trained on each subset; by default the run's.", min=1)] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="DIR", help="Folder of the grid; by default RUN/subsets-STRATEGY, in runs/ for a set of distilkit's own."
        ),
    ] = None,
    workers: WorkersHere = None,
    shard: Shard = None,
    trust: Trust = False,
) -> None:
    """Test random, first, easiest or hardest parts of a run's distilled set. Stopped, it goes on; several processes may share it."""
    from distilkit.cli.studies import show_subsets

    numbers, draws = numbers_of("--budgets", budgets, least=1), draws if strategy == "random" else 1
    folder, how = out or folder_of(run) / f"subsets-{strategy}", {"workers": workers, "shard": shard_of(shard)}
    show_subsets(run, numbers, draws, strategy, words_of(networks), seeds, folder, trust, how)


study_commands = typer.Typer(help="Study meta-gradients, or how distilled samples depend on each other.", no_args_is_help=True)
app.add_typer(study_commands, name="study")


@study_commands.command()
def gradients(
    spec: SpecPath,
    at: Annotated[str, typer.Option(metavar="0,50,200", help="Outer steps at which meta-gradients are studied.")] = "0,50,200",
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
) -> None:
    """Measure norm, variance, bias and cost of the meta-gradient by truncation policy. Stopped, it goes on."""
    from distilkit import spec as specs
    from distilkit.cli.studies import show_gradients

    changes = overrides(set_, seed, device)
    pipeline = specs.load(spec, changes, trust=trust)
    points = numbers_of("--at", at, least=0)
    changed = {one: specs.load(spec, [*changes, one], trust=trust) for one in with_}
    folder, how = out or runs_folder(f"{pipeline.title}-gradients"), {"workers": workers, "shard": shard_of(shard)}
    show_gradients(pipeline, points, replicates, policy, optimizer, changed, folder, how)


@study_commands.command()
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
) -> None:
    """Compare boosted prefixes with subsets, with sets distilled directly and with real images. Stopped, it goes on."""
    from distilkit import spec as specs
    from distilkit.cli.studies import show_intercorrelation

    pipeline = specs.load(spec, overrides(set_, seed, device), trust=trust)
    folder, how = out or runs_folder(f"{pipeline.title}-study"), {"workers": workers, "shard": shard_of(shard)}
    show_intercorrelation(pipeline, draws, influence, folder, how)


def in_words(error: DistilkitError) -> str:
    """An error, and the options of the command that would help."""
    if not error.changes:
        return str(error)
    from distilkit.cli.display import option

    return f"{error.message}\n  Try: " + "\n  Or:  ".join(map(option, error.changes))


def main() -> None:
    """Entry point of the `distilkit` command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that its encoding has no word for is no reason to fail
            stream.reconfigure(errors="backslashreplace")
    debug = "--debug" in sys.argv[1:]
    try:
        app([word for word in sys.argv[1:] if word != "--debug"])
    except Exception as error:
        if debug:
            traceback.print_exception(error)
        code, words = _told(error)
        if speaks():
            say(f"distilkit: {words}", err=True)
        elif code in (1, ResourceError.exit_code) and type(error).__name__ != "LostError":  # which only this process may have met
            say(f"distilkit, process {os.environ['RANK']}: {words}", err=True)
        sys.exit(code)


def _told(error: Exception) -> tuple[int, str]:
    """The exit code and the words for what went wrong."""
    if isinstance(error, DistilkitError):
        return error.exit_code, in_words(error)
    if isinstance(error, OSError) and error.strerror:
        place = f"{str(error.filename)[:200]}: " if error.filename else ""
        short = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ENOMEM)
        return ResourceError.exit_code if short else DistilkitError.exit_code, f"{place}{error.strerror}."
    from distilkit.process import is_out_of_memory

    return (ResourceError.exit_code, "There was not enough memory.") if is_out_of_memory(error) else unexpected(error)


def unexpected(error: Exception) -> tuple[int, str]:
    """What to say of a fault of ours, or of a component that the spec names."""
    return 1, (
        f"Something that distilkit did not expect: {type(error).__name__}: {error}\n"
        "This is a fault of distilkit, or of a component of your own. The same command with --debug shows where."
    )


if __name__ == "__main__":
    main()

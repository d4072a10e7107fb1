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
from pathlib import Path
from typing import Annotated

import typer

from distilkit.cli import looking, sharing, specs, studying
from distilkit.cli.guesses import MEANT, guessing
from distilkit.cli.options import (
    Device,
    Json,
    Log,
    Mirror,
    Overrides,
    Quiet,
    Seed,
    Shard,
    SpecPath,
    StopAfter,
    Trust,
    WorkersHere,
    folder_of,
    one_of,
    overrides,
    runs_folder,
    say,
    seconds_of,
    shard_of,
    words_of,
)
from distilkit.cli.output import Output
from distilkit.errors import CombinationError, DistilkitError, ResourceError
from distilkit.progress import speaks

app = typer.Typer(
    name="distilkit",
    cls=guessing("run", MEANT),
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


@app.command(epilog="Example: distilkit run digits --set images.per_class=3 --out runs/three")
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
    log: Log = [],  # noqa: B006
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Run a spec: distil, judge on real test images, and store everything in a folder. A run that was stopped goes on."""
    from distilkit import spec as specs
    from distilkit.cli.run import placed, show_run

    distiller, seconds = specs.load(spec, overrides(set_, seed, device), trust=trust), seconds_of(stop_after)
    with placed(distiller, out, runs_folder(distiller.title), fresh=fresh) as folder:
        show_run(distiller, folder, Output(quiet, as_json), log, stop_after=seconds, mirror=mirror)


@app.command(epilog="Example: distilkit resume runs/digits --stop-after 9m")
def resume(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run that was stopped, or the URL of its copy.")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Where a copy at a URL is brought to, and goes on; by default runs/NAME.")
    ] = None,
    set_: Overrides = [],  # noqa: B006
    device: Device = None,
    trust: Trust = False,
    stop_after: StopAfter = None,
    mirror: Mirror = None,
    log: Log = [],  # noqa: B006
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Go on with a run, from its folder or from the copy that --mirror has made. With --set outer.steps=N it goes further than planned."""
    from distilkit.cli.run import show_copy, show_run
    from distilkit.errors import Change, RunError
    from distilkit.runs.open import pipeline_of
    from distilkit.storage.remote import run_at
    from distilkit.storage.shipped import comes_with_distilkit

    folder = run.parent if run.suffix == ".zarr" else run
    if comes_with_distilkit(folder):
        raise RunError(f"{folder} names a set that comes with distilkit, not a run that was stopped.", fix=f"distilkit run {folder}")
    url, seconds, output = run_at(run), seconds_of(stop_after), Output(quiet, as_json)
    if url is None and out is not None:
        raise CombinationError(f"{folder} goes on where it is.", changes=[Change("out", None)])
    place = repr(str(folder)) if url is None else f"{str(folder_of(run))!r}, mirror={url!r}"
    there = f"dk.run(distiller, {place})  # in Python, with the pipeline that was run"
    changes, whence = overrides(set_, None, device), folder if url is None else url
    pipeline = pipeline_of(whence, changes, trust=trust, instead="distilkit run SPEC", in_python=there)
    if url is None:
        show_run(pipeline, folder, output, log, stop_after=seconds, mirror=mirror)
    else:
        show_copy(url, pipeline, out, output, log=log, stop_after=seconds, mirror=mirror)


@app.command(epilog="Example: distilkit plan digits --set images.per_class=10")
def plan(
    spec: SpecPath,
    set_: Overrides = [],  # noqa: B006
    seed: Seed = None,
    device: Device = None,
    trust: Trust = False,
    probe: Annotated[bool, typer.Option(help="Run a few inner steps to measure; without, memory is known to a factor of two.")] = True,
    processes: Annotated[int, typer.Option(metavar="N", help="What each of N processes of torchrun would take.", min=1)] = 1,
    as_json: Json = False,
) -> None:
    """Tell how much memory and time a spec will take, and what to change if it does not fit; nothing is written."""
    from distilkit import spec as specs
    from distilkit.cli.run import show_plan

    show_plan(specs.load(spec, overrides(set_, seed, device), trust=trust), probe, processes, Output(as_json=as_json))


app.add_typer(specs.commands)
app.add_typer(looking.commands)


@app.command(epilog="Example: distilkit evaluate runs/digits --steps 40,80 --seeds 3")
def evaluate(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A run or its URL, a set that comes with distilkit, or one of others.")],
    data: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Real data: arrays such as CIFAR10.npz, a folder of images, or a kind: CIFAR10."),
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
    select: Annotated[
        str | None,
        typer.Option(help="Select the steps on: validation, or paper for the test images.", autocompletion=one_of("validation", "paper")),
    ] = None,
    networks: Annotated[str | None, typer.Option(metavar="ConvNet,VGG", help="Train these networks in place of the recipe's.")] = None,
    lr: Annotated[list[str], typer.Option(metavar="VGG=0.01", help="Learning rate of one of the networks.")] = [],  # noqa: B006
    baselines: Annotated[str | None, typer.Option(metavar="NAMES", help='What to compare with, such as "random real".')] = None,
    ranking: Annotated[bool, typer.Option("--ranking", help="Compute DD-Ranking's scores; trains on all real images too.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of the networks.")] = 0,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Store the results in this folder, where shards meet.")] = None,
    workers: WorkersHere = None,
    shard: Shard = None,
    set_: Overrides = [],  # noqa: B006
    device: Device = None,
    trust: Trust = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Train fresh networks on a distilled set, a run's or anyone's, and test them on real images. With --out, what was stopped goes on."""
    from distilkit.cli.evaluate import show_evaluation

    protocol = {"evaluation.steps": steps and f"[{steps}]", "evaluation.seeds": seeds, "evaluation.select": select}
    changes = [*overrides(set_, None, device), *(f"{key}={value}" for key, value in protocol.items() if value is not None)]
    case = {"data": data, "recipe": recipe, "format": format_, "label_space": label_space, "preprocessing": preprocessing}
    options = {"networks": words_of(networks), "rates": lr, "baselines": words_of(baselines), "ranking": ranking, "seed": seed}
    how = {"workers": workers, "shard": shard_of(shard)}
    show_evaluation(path, case | {"overrides": changes, "trust": trust}, options | how, out, Output(quiet, as_json))


app.add_typer(sharing.commands)


@app.command(epilog="Example: distilkit sheet runs/digits --out digits.pdf")
def sheet(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run or its URL, a set that comes with distilkit, or an imported one.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FILE", help="The picture: .png, .pdf or .svg; by default RUN/sheet.png, or SET-sheet.png beside a file."
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Real data: arrays such as CIFAR10.npz, a folder of images, or a kind: CIFAR10."),
    ] = None,
    rows: Annotated[int | None, typer.Option(metavar="10", help="The most images of a class to show.", min=1)] = None,
    real: Annotated[
        int | None, typer.Option(metavar="3", help="Real images of each class beside them; with 0 a run needs no data.", min=0)
    ] = None,
    before: Annotated[
        bool, typer.Option("--before", help="Above each image what it started from, which the run's spec and data make again.")
    ] = False,
    nearest: Annotated[bool, typer.Option("--nearest", help="Below each image the real training image that is nearest to it.")] = False,
    which: Annotated[
        str, typer.Option(help="best, last, or auto: the best where there is one.", autocompletion=one_of("auto", "best", "last"))
    ] = "auto",
    set_: Overrides = [],  # noqa: B006
    trust: Trust = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Draw the images of a distilled set by class, beside real ones."""
    from distilkit.cli.sheet import show_sheet

    case = {"data": data, "overrides": set_, "trust": trust}
    beside = run.with_name(f"{run.stem}-sheet.png") if run.is_file() else folder_of(run) / "sheet.png"
    show_sheet(run, out or beside, case, Output(quiet, as_json), which=which, rows=rows, real=real, before=before, nearest=nearest)


@app.command(epilog="Example: distilkit report runs/digits --out digits.html")
def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Folders or URLs of runs and studies, side by side where there are several.")
    ],
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="The page; by default report.html in the first folder.")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Write it anew whenever a run has written, until the runs are finished.")] = False,
    real: Annotated[int, typer.Option(metavar="2", help="Real images of each class beside, where the run's data is here.", min=0)] = 2,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Tell all that is stored of runs and studies on one page: an HTML file that needs nothing beside it."""
    from distilkit.cli.report import show_report

    show_report(runs, out or folder_of(runs[0]) / "report.html", Output(quiet, as_json), watch=watch, real=real)


app.add_typer(studying.commands)


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

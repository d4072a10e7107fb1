"""The commands `distilkit export` and `distilkit import`: a set to the formats of others, and from them to distilkit's own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from distilkit.cli.options import Json, Quiet
from distilkit.cli.output import Output
from distilkit.errors import CombinationError, counted

if TYPE_CHECKING:
    from distilkit.data.distilled import DistilledSet

commands = typer.Typer()

AnySet = Annotated[Path, typer.Argument(metavar="PATH", help="A run or its URL, a set that comes with distilkit, or one of others.")]
FormatOf = Annotated[str | None, typer.Option("--format", metavar="FORMAT", help="Format of PATH, if it is no run and cannot be told.")]
LabelSpace = Annotated[str | None, typer.Option("--label-space", help="What the labels of PATH are, if it does not say.")]
Preprocessing = Annotated[str | None, typer.Option("--preprocessing", help="What the images of PATH went through, if it does not say.")]
RealData = Annotated[
    str | None, typer.Option("--data", metavar="FILE", help="Real data that its preprocessing is fitted on: CIFAR10.npz, or CIFAR10.")
]


@commands.command(epilog="Example: distilkit export runs/digits pictures --to image-folder")
def export(
    path: AnySet,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The file or folder to write; it must not be there yet.")],
    to: Annotated[str | None, typer.Option(metavar="FORMAT", help="Format to write, such as mtt, safetensors or hugging-face.")] = None,
    format: FormatOf = None,
    label_space: LabelSpace = None,
    preprocessing: Preprocessing = None,
    data: RealData = None,
    plain: Annotated[bool, typer.Option("--plain", help="Write no more than the authors' own code does, without a lossless copy.")] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Write a distilled set, a run's or anyone's, in a format of others."""
    from distilkit.storage import formats

    made = read(path, data, format=format, label_space=label_space, preprocessing=preprocessing)
    written, count, space = formats.write(made, out, to, plain=plain), len(made), made.label_space
    found = {"file": written, "images": count, "label_space": space}
    Output(quiet, as_json).answer(found, f"{written}: {counted(count, 'image')}, labels as {space}", written=written)


@commands.command("import", epilog="Example: distilkit import pictures --out mine.safetensors --data Digits")
def import_(
    path: AnySet,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The .safetensors file to write; it must not be there yet.")],
    format: FormatOf = None,
    label_space: LabelSpace = None,
    preprocessing: Preprocessing = None,
    data: RealData = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Check anyone's distilled set and write it as distilkit's own file, which says all of itself; as export --to safetensors."""
    export(path, out, "safetensors", format, label_space, preprocessing, data, quiet=quiet, as_json=as_json)


def read(path: Path, data: str | None, *, format: str | None, label_space: str | None, preprocessing: str | None) -> DistilledSet:
    """A set as the two commands take it, with its preprocessing fitted where there is data to fit it on.

    Args:
        path: as for `read_set`.
        data: of real images; all that train are fitted on, as the authors of other formats do it, or those that the recipe of a set that
            comes with distilkit does not hold out.
        format: as for `read_set`, as are the others.
        label_space: what its labels are.
        preprocessing: what its images went through.

    Raises:
        DistilkitError: it cannot be read, or something is not known, which the option that would say it is named for.
    """
    import attrs

    from distilkit.cli.evaluate import assemble, evolved, source_of
    from distilkit.data.preprocessing import Identity, Refittable
    from distilkit.functional.streams import Stream
    from distilkit.runs.open import read_set, refuse_to_be_told
    from distilkit.storage import formats, is_run, is_set, says_all
    from distilkit.storage.remote import brought, url_of

    if url_of(path) is not None:
        with brought(path) as here:
            return read(here, data, format=format, label_space=label_space, preprocessing=preprocessing)
    said: dict[str, Any] = {"format": format, "label_space": label_space, "preprocessing": preprocessing}
    if data is None:
        try:
            return read_set(path, **said)
        except CombinationError as error:
            if (error.fix or "").startswith(("data=", "class_names=", "image_shape=")):  # what the data says, and no option does
                raise CombinationError(error.message, fix="--data CIFAR10.npz") from error
            raise
    if says_all(path):
        refuse_to_be_told(path, **said, data=data if is_run(path) else None)
        case = assemble(path, data=data)
        return attrs.evolve(case.distilled, preprocessing=case.data.preprocessing)
    if is_set(path) and not isinstance(formats.read(path, **said).preprocessing, Refittable):
        raise CombinationError(f"{path} says all of itself, so that data would change nothing: leave out --data.")
    bundle = evolved(source_of(data), preprocessing=Identity(), validation=0).load(Stream(0).fold("data"))
    made = formats.read(path, data=bundle, **said)
    return attrs.evolve(made, preprocessing=made.preprocessing.fit(bundle.train.images))

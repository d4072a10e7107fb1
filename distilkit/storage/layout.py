"""The public format of `results.zarr`, built from plain numpy arrays as an `xarray.DataTree`.

    /             attrs: title, distilkit_version, format_version, torch, device, spec (JSON), seed, created, references
    /distilled    the set that was judged: image (sample, channel, y, x), label (sample, class), pixel (sample, channel, y, x); by sample,
                  class_name, label_class (its index) and block
                  preprocessing_NAME: arrays that undo and redo the preprocessing; inner_lr () or (inner_step) when it was learned
                  attrs: label_space, preprocessing (JSON), provenance (JSON), outer_step; validation_accuracy, where it was selected on
                  validation: without it, it is the last iterate
    /last         the same for the last iterate, where that is another; attr preprocessing_group names the group that holds its
                  preprocessing arrays
    /history      by outer_step: outer_loss, meta_gradient_norm, clip_scale, window_start, window_stop, seconds
                  attrs of a run: precision, execution (how inner steps were run)
    /evaluation   accuracy (seed), tested once; validation_accuracy (outer_step, seed)
                  attrs: set ("best" on validation, or the "last"), protocol (JSON)
    /baselines    accuracy (baseline, seed)

`outer_step` numbers the steps of /history from 0, so that the row of 0 is the first step. Everywhere else it is how many were done: a look
at validation at 50, and a set whose `outer_step` is 50, come after the row of 49.

Feature vectors have the dimensions (sample, feature) in place of (sample, channel, y, x). Every variable has `long_name` and
`units` ("1" where there is none), and every dimension has a coordinate. Where accuracies of unequal numbers of seeds stand side
by side, the missing ones are NaN. Other rooms add groups with `variable` and `build`.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from distilkit import __version__
from distilkit.errors import Change, RunError, listing, nearest

FORMAT_VERSION = 2
NAME = "results.zarr"  # of the store in the folder of a run
REFERENCES = "Feng, Vedantam, Kempe: Embarrassingly Simple Dataset Distillation. ICLR 2024. arXiv:2311.07025"

# name: (long_name, units, dtype)
HISTORY: dict[str, tuple[str, str, str]] = {
    "outer_loss": ("loss on the real batch at the end of the window", "1", "float64"),
    "meta_gradient_norm": ("norm of the meta-gradient before clipping", "1", "float64"),
    "clip_scale": ("factor by which clipping scaled the meta-gradient", "1", "float64"),
    "window_start": ("first inner step that the meta-gradient flows through", "1", "int64"),
    "window_stop": ("inner step after the last one that the meta-gradient flows through", "1", "int64"),
    "seconds": ("wall time of the outer step", "s", "float64"),
}
COORDINATES: dict[str, str] = {
    "sample": "distilled sample",
    "channel": "colour channel",
    "y": "row of the image",
    "x": "column of the image",
    "feature": "entry of the feature vector",
    "class": "name of the class",
    "outer_step": "outer step, counted from 0",
    "seed": "seed of the training that was evaluated",
    "baseline": "what was trained on instead of the distilled set",
}


def variable(dims: Sequence[str] | str, values: Any, long_name: str, units: str = "1", **attributes: Any) -> xr.Variable:
    """A variable with the two attributes that all of ours have. Strings become variable-length ones, which Zarr 3 specifies.

    >>> variable("seed", [0.5, 0.7], "test accuracy").attrs
    {'long_name': 'test accuracy', 'units': '1'}
    """
    array = np.asarray(values)
    if array.dtype.kind in "UO":
        array = np.array(array.tolist(), dtype=np.dtypes.StringDType())
    return xr.Variable(dims, array, {"long_name": long_name, "units": units, **attributes})


def coordinate(dim: str, values: Any, long_name: str | None = None) -> xr.Variable:
    """The coordinate variable of a dimension; the common dimensions have their long name in `COORDINATES`."""
    return variable(dim, values, long_name or COORDINATES[dim])


def history_group(columns: Mapping[str, ArrayLike], extra: Mapping[str, xr.Variable] | None = None) -> xr.Dataset:
    """The group `/history`.

    Args:
        columns: `outer_step` and any of the names in `HISTORY`, each with one value an outer step.
        extra: further variables over ("outer_step",), made with `variable`.

    Raises:
        RunError: a name is not known.

    >>> history_group({"outer_step": [0, 1], "outer_loss": [2.3, 2.1]}).outer_loss.attrs["units"]
    '1'
    """
    unknown = [name for name in columns if name not in HISTORY and name != "outer_step"]
    if unknown or "outer_step" not in columns:
        near = nearest(unknown[0], HISTORY) if unknown else None
        fix = f'layout.history_group({{"outer_step": steps, "{near}": values}})' if near else None
        given = f"has no column {unknown[0]!r}" if unknown else "needs the column 'outer_step'"
        raise RunError(f"The history {given}; it takes outer_step, {listing(list(HISTORY))}.", fix=fix)
    known = [name for name in HISTORY if name in columns]
    data = {name: variable("outer_step", np.asarray(columns[name], HISTORY[name][2]), *HISTORY[name][:2]) for name in known}
    return xr.Dataset(data | dict(extra or {}), {"outer_step": coordinate("outer_step", np.asarray(columns["outer_step"], np.int64))})


def evaluation_group(
    *,
    protocol: Mapping[str, Any],
    which: Literal["best", "last"] | None = None,
    accuracy: Mapping[int, float] | None = None,
    validation: Mapping[int, Mapping[int, float]] | None = None,
) -> xr.Dataset:
    """The group `/evaluation`.

    Args:
        protocol: JSON-able words on how the networks were trained and tested.
        which: the set whose test accuracy this is.
        accuracy: test accuracy (a fraction) by seed.
        validation: by outer steps done, the validation accuracy by seed.

    >>> group = evaluation_group(protocol={"steps": 300}, which="best", accuracy={0: 0.5, 1: 0.6}, validation={10: {0: 0.4}})
    >>> group.validation_accuracy.values
    array([[0.4, nan]])
    """
    everywhere: set[int] = {*(accuracy or {}), *(s for row in (validation or {}).values() for s in row)}
    seeds = sorted(everywhere)
    coords = {"seed": coordinate("seed", np.asarray(seeds, np.int64))}
    data = {}
    if accuracy is not None:
        data["accuracy"] = variable("seed", _by_seed(accuracy, seeds), "test accuracy of networks trained on the distilled set")
    if validation is not None:
        steps = sorted(validation)
        rows = np.array([_by_seed(validation[s], seeds) for s in steps], float).reshape(len(steps), len(seeds))
        coords["outer_step"] = coordinate("outer_step", np.asarray(steps, np.int64), "outer steps done")
        data["validation_accuracy"] = variable(("outer_step", "seed"), rows, "validation accuracy of networks trained on the distilled set")
    return xr.Dataset(data, coords, {"protocol": json.dumps(dict(protocol))} | ({"set": which} if which else {}))


def baselines_group(accuracy: Mapping[str, Mapping[int, float]], *, protocol: Mapping[str, Any] | None = None) -> xr.Dataset:
    """The group `/baselines`: by name of the baseline, the test accuracy (a fraction) by seed.

    >>> baselines_group({"random real": {0: 0.3, 1: 0.4}, "full data": {0: 0.9}}).accuracy.mean("seed").values
    array([0.35, 0.9 ])
    """
    seeds = sorted({s for row in accuracy.values() for s in row})
    rows = np.array([_by_seed(row, seeds) for row in accuracy.values()], float).reshape(len(accuracy), len(seeds))
    coords = {"baseline": coordinate("baseline", list(accuracy)), "seed": coordinate("seed", np.asarray(seeds, np.int64))}
    data = {"accuracy": variable(("baseline", "seed"), rows, "test accuracy of networks trained on the baseline")}
    return xr.Dataset(data, coords, {"protocol": json.dumps(dict(protocol))} if protocol is not None else {})


def build(
    groups: Mapping[str, xr.Dataset],
    *,
    title: str,
    spec: Mapping[str, Any],
    seed: int,
    device: str = "cpu",
    torch_version: str | None = None,
    created: str | None = None,
) -> xr.DataTree:
    """Put groups together as the tree of a run.

    Args:
        groups: datasets by name, such as "distilled" and "history".
        title: title of the run.
        spec: the resolved spec, JSON-able.
        seed: the seed of the run.
        device: where it ran, in words.
        torch_version: the version of torch; that of the installed package when left out.
        created: ISO 8601 time; now (UTC) when left out.

    Raises:
        RunError: a variable has no long name or no units, or a dimension has no coordinate.
    """
    attributes = {
        "title": title,
        "distilkit_version": __version__,
        "format_version": FORMAT_VERSION,
        "torch": torch_version or importlib.metadata.version("torch"),
        "device": device,
        "spec": json.dumps(dict(spec)),
        "seed": int(seed),
        "created": created or datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "references": REFERENCES,
    }
    for name, group in groups.items():
        bare = [str(v) for v in group.variables if not {"long_name", "units"} <= set(group[v].attrs)]
        bare += [str(dim) for dim in group.dims if dim not in group.coords]
        if bare:
            raise RunError(
                f"The group /{name} cannot be stored: {listing(bare)} lacks a long_name, units or coordinate.",
                fix=f'{name}.assign({bare[0]}=layout.variable(dims, values, "what it is", "1"))',
            )
    return xr.DataTree.from_dict({"/": xr.Dataset(attrs=attributes), **{f"/{name}": group for name, group in groups.items()}})


def _by_seed(row: Mapping[int, float], seeds: Sequence[int]) -> np.ndarray:
    return np.array([row.get(s, np.nan) for s in seeds], np.float64)


def require_which(which: str) -> None:
    """Refuse what names none of a run's sets.

    Raises:
        RunError: it is none of "auto", "best" and "last".
    """
    if which not in ("auto", "best", "last"):
        near = nearest(str(which), ("auto", "best", "last")) or "auto"
        raise RunError(f"which = {which!r} cannot be: it takes 'auto', 'best' or 'last'.", changes=[Change("which", near)])


def group_of_set(tree: xr.DataTree, which: str = "auto", of: str = "The run") -> str:
    """The name of the group that holds a distilled set: "distilled", the one that was judged, or "last".

    Args:
        tree: the results of a run.
        which: "auto", the one that was judged; "best", the same, which has to be selected on validation; "last", the last iterate.
        of: what they are, for the words of an error.

    Raises:
        RunError: there is no such set.
    """
    require_which(which)
    if "distilled" not in tree.children:
        raise RunError(f"{of} has no group /distilled; it has {listing(sorted(tree.children), 'and') if tree.children else 'none'}.")
    if which == "best" and "validation_accuracy" not in tree["distilled"].attrs:
        raise RunError(f"{of} has no set that was selected on validation.", changes=[Change("which", "last")])
    return "last" if which == "last" and "last" in tree.children else "distilled"


def tested(tree: xr.DataTree) -> list[tuple[str, str, xr.DataArray]]:
    """What the tested networks of a run were trained on: its name, how many images it has, and their accuracies.

    The first blocks of a boosted set come first, then the set itself, then what was trained on beside it.

    Args:
        tree: the results of a run, with /distilled and /evaluation.
    """
    images, classes = str(tree["distilled"].sizes["sample"]), tree["distilled"].sizes["class"]
    rows = [("distilled", images, tree["evaluation"].to_dataset()["accuracy"])]
    if "prefixes" in tree.children:
        prefixes = tree["prefixes"].to_dataset()["accuracy"]
        rows[:0] = [(f"its first {int(b)} of a class", str(int(b) * classes), prefixes.sel(budget=b)) for b in prefixes["budget"][:-1]]
    if "baselines" in tree.children:
        baselines = tree["baselines"].to_dataset()["accuracy"]
        names = [str(name) for name in baselines["baseline"].values]
        rows += [(name, "all" if name == "full data" else images, baselines.sel(baseline=name)) for name in names]
    return rows

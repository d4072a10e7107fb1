"""Figures of the studies: they show what the data says, whatever is missing in it."""

import numpy as np
import pytest
import xarray as xr

from distilkit import report
from distilkit.cli.tables import _cosine
from distilkit.errors import RunError


def sources():
    rng = np.random.default_rng(0)
    accuracy = rng.uniform(0.2, 0.9, (3, 4, 2, 5))
    accuracy[1, :, 1:] = np.nan  # a source with one draw
    accuracy[2, 0] = np.nan  # a source without the smallest budget
    coords = {"source": ["subset", "direct", "a $name_"], "budget": [1, 2, 5, 10], "draw": [0, 1], "seed": np.arange(5)}
    return xr.Dataset({"accuracy": (("source", "budget", "draw", "seed"), accuracy)}, coords, {"title": "digits"})


def influence():
    rng = np.random.default_rng(0)
    interaction = rng.normal(size=(6, 6, 3))
    interaction[0, 1] = np.nan
    classes = np.array([0, 1, 2, 0, 1, 2])
    data = {"interaction": (("sample", "other", "seed"), interaction), "drop": (("sample", "seed"), rng.normal(size=(6, 3)))}
    return xr.Dataset(data, {"label_class": ("sample", classes)})


def study():
    rng = np.random.default_rng(0)
    first, shape = ("policy", "optimizer", "outer_step"), (2, 1, 3)
    names = ("variance", "variance_error", "variance_clipped", "variance_clipped_error", "cosine", "cosine_error")
    data = {name: (first, rng.uniform(0.1, 1, shape)) for name in names}
    data["variance"][1][0, 0, 0] = np.inf
    data["cosine_error"][1][1, 0, 2] = np.nan
    data["norm"] = ((*first, "replicate"), rng.uniform(0.1, 1, (*shape, 4)))
    return xr.Dataset(data, {"policy": ["full", "tail"], "optimizer": ["Adam"], "outer_step": [0, 5, 20]}, {"title": "digits"})


FIGURES = {
    "budgets": (report.budget_curves, sources),
    "budgets of one set": (report.budget_curves, lambda: sources().isel(source=0, drop=True)),
    "subsets": (report.subset_map, sources),
    "influence": (report.influence_map, influence),
    "gradients": (report.gradient_curves, study),
}


@pytest.mark.parametrize(("draw", "make"), FIGURES.values(), ids=FIGURES)
def test_it_is_drawn_and_follows_the_data(draw, make, tmp_path):
    data = make()
    one = draw(data, tmp_path / "one.png").read_bytes()
    assert len(one) > 5000
    assert draw(data, tmp_path / "two.png").read_bytes() == one
    other = data.map(lambda v: v * 0.7 if v.dtype.kind == "f" else v, keep_attrs=True)
    assert draw(other, tmp_path / "three.png").read_bytes() != one


@pytest.mark.parametrize("draw", [report.budget_curves, report.subset_map, report.influence_map, report.gradient_curves])
def test_other_data_is_refused(draw, tmp_path):
    with pytest.raises(RunError):
        draw(xr.Dataset({"other": ("x", [1.0])}), tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_a_cosine_is_told_as_one_or_not_at_all():
    """An estimate of 1.29 is noise, and one of 1.01 is 1: in the figure and in the table of the command."""
    data = study()
    cosine, error = data["cosine"].values[:, 0], data["cosine_error"].values[:, 0]
    cosine[0], error[0] = [1.29, 1.01, 0.5], [0.6, 0.02, 0.1]
    axes = report.gradients.gradient_figure(data).axes[3]
    assert axes.lines[0].get_ydata().tolist() == [1.0, 0.5]
    told = [_cosine({"cosine": value, "cosine_error": off}, "cosine") for value, off in zip(cosine[0], error[0], strict=True)]
    assert told == ["not told", "1.00 ± 0.02", "0.50 ± 0.10"]


def test_bands_are_the_standard_deviation_and_means_are_drawn():
    figure = report.budget_figure(sources())
    (axes,) = figure.axes
    accuracy = sources()["accuracy"]
    for line, name in zip(axes.lines, accuracy["source"].values, strict=True):
        own = accuracy.sel(source=name)
        mean = own.mean(("draw", "seed")).dropna("budget")
        assert np.allclose(line.get_xdata(), mean["budget"])
        assert np.allclose(line.get_ydata(), mean)
    band = axes.collections[0].get_paths()[0].vertices[:, 1]
    first = accuracy.isel(source=0)
    assert band.max() == pytest.approx(float((first.mean(("draw", "seed")) + first.std(("draw", "seed"), ddof=1)).max()))

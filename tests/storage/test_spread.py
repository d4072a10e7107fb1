"""What a ± is: the same statistic wherever one is printed."""

import io
import math
import statistics

import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure
from rich.console import Console

from distilkit.cli import tables
from distilkit.display import Display
from distilkit.report.curves import _level
from distilkit.storage.spread import plus_minus, spread, standard_error

SEEDS = [0.41, 0.52, 0.47, 0.5, 0.44]
PRINTED = f"{statistics.mean(SEEDS):.3f} ± {statistics.stdev(SEEDS):.3f}"


def test_it_is_the_standard_deviation_of_a_sample():
    assert spread(SEEDS) == pytest.approx(statistics.stdev(SEEDS), rel=1e-12)
    assert standard_error(SEEDS) == pytest.approx(statistics.stdev(SEEDS) / math.sqrt(5), rel=1e-12)
    table = np.random.default_rng(0).normal(size=(3, 4, 5))
    np.testing.assert_allclose(spread(table, axis=(0, 2)), table.std((0, 2), ddof=1))
    np.testing.assert_allclose(standard_error(table, axis=1), table.std(1, ddof=1) / 2)


def test_what_was_not_measured_is_left_out():
    rows = np.array([[0.1, 0.3, np.nan], [0.2, np.nan, np.nan], [np.nan] * 3])
    found = spread(rows, axis=1)
    assert found[0] == pytest.approx(statistics.stdev([0.1, 0.3]))
    assert np.isnan(found[1:]).all()
    assert np.isnan(standard_error(rows, axis=1)[1:]).all()


def test_a_single_value_has_no_spread():
    assert math.isnan(spread([0.5]))
    assert math.isnan(spread([]))
    assert plus_minus([0.5], 3) == "0.500"
    assert plus_minus([], 3) == "nan"
    assert plus_minus(SEEDS, 3) == PRINTED


def printed(made):
    console = Console(width=200, file=io.StringIO())
    console.print(made)
    return console.file.getvalue()


def line_of_validation():
    console = Console(width=200, file=io.StringIO())
    Display(console).value("validation accuracy", SEEDS)
    return console.file.getvalue()


def table_of_sources():
    coords = {"source": ["ours"], "budget": [1]}
    return printed(tables.sources_table(xr.Dataset({"accuracy": (("source", "budget", "draw", "seed"), np.array([[[SEEDS]]]))}, coords)))


def table_of_evaluation():
    made = xr.Dataset({"accuracy": (("training_steps", "seed"), np.array([SEEDS]))}, {"training_steps": [3]})
    return printed(tables.evaluation_table(made, "t"))


def words_of_evaluation():
    attrs = {"protocol": '{"selected_on": "validation split"}'}
    data = {"accuracy": (("training_steps", "seed"), np.array([SEEDS])), "selected_steps": ((), 3), "paper_protocol": ((), 0.5)}
    return "\n".join(tables.evaluation_words(xr.Dataset(data, {"training_steps": [3]}, attrs)))


def table_of_run():
    groups = {
        "distilled": xr.Dataset({"image": (("sample", "class"), np.zeros((2, 2)))}),
        "evaluation": xr.Dataset({"accuracy": ("seed", SEEDS)}),
    }
    tree = xr.DataTree.from_dict(groups)
    tree.attrs["title"] = "t"
    return printed(tables.results_table(tree))


def legend_of_curves():
    axes = Figure().subplots()
    _level(axes, xr.DataArray(SEEDS, dims="seed"), "x", "black", "-")
    return axes.get_legend_handles_labels()[1][0]


PLACES = {
    "validation of a run": line_of_validation,
    "sources of a study": table_of_sources,
    "table of an evaluation": table_of_evaluation,
    "words of an evaluation": words_of_evaluation,
    "table of a run": table_of_run,
    "legend of the curves": legend_of_curves,
}


@pytest.mark.parametrize("place", PLACES)
def test_the_same_numbers_have_the_same_spread_everywhere(place):
    """Divided by n in place of n - 1, none of these would be printed."""
    deviation = statistics.stdev(SEEDS)
    wanted = {f"{deviation:.3f}", f"{deviation:.4f}", f"± {100 * deviation:.1f}%"}
    other = statistics.pstdev(SEEDS)
    assert not wanted & {f"{other:.3f}", f"{other:.4f}", f"± {100 * other:.1f}%"}
    said = PLACES[place]()
    assert [word for word in wanted if word in said], said

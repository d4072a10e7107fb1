"""Figures of a run or a study, made from its xarray tree alone; torch is never loaded here.

`sheet` draws the distilled images by class, `curves` the outer loss, the meta-gradient norm and the accuracy by outer step,
`budget_curves` accuracy by images per class, `subset_map` a subset grid, `influence_map` how samples stand in for each other, and
`gradient_curves` a gradient study. Each has a `_figure` form that gives the matplotlib figure instead of saving it. `page` tells all there
is of runs and studies in one HTML file.
"""

from distilkit.report.budgets import budget_curves, budget_figure, subset_map, subset_map_figure
from distilkit.report.curves import curves, curves_figure
from distilkit.report.drawing import require_picture
from distilkit.report.gradients import gradient_curves, gradient_figure
from distilkit.report.influence import influence_figure, influence_map
from distilkit.report.page import page, page_text
from distilkit.report.sheet import images_shown, sheet, sheet_figure

__all__ = [
    "budget_curves",
    "budget_figure",
    "curves",
    "curves_figure",
    "gradient_curves",
    "gradient_figure",
    "images_shown",
    "influence_figure",
    "influence_map",
    "page",
    "page_text",
    "require_picture",
    "sheet",
    "sheet_figure",
    "subset_map",
    "subset_map_figure",
]

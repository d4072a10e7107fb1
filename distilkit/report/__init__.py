"""Figures of a run, made from its xarray tree alone; torch is never loaded here.

`sheet` draws the distilled images by class, `curves` the outer loss, the meta-gradient norm and the accuracy by outer step. Each has
a `_figure` form that gives the matplotlib figure instead of saving it.
"""

from distilkit.report.curves import curves, curves_figure
from distilkit.report.sheet import sheet, sheet_figure

__all__ = ["curves", "curves_figure", "sheet", "sheet_figure"]

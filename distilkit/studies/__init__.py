"""Studies of distilled sets and of meta-gradients: what the paper argues with, as datasets that xarray opens."""

from distilkit.studies.gradients import gradient_study, usual_policies
from distilkit.studies.sources import intercorrelation, intercorrelation_study
from distilkit.studies.subsets import subset_grid, with_pipeline

__all__ = ["gradient_study", "intercorrelation", "intercorrelation_study", "subset_grid", "usual_policies", "with_pipeline"]

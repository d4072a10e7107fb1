"""What the gradient study stores: its variables and the empty dataset that is filled."""

from __future__ import annotations

import numpy as np
import xarray as xr

from distilkit.storage.layout import coordinate, variable

ESTIMATE = "estimated: noise may take it out of -1 to 1"

# name: (dims after (policy, optimizer, outer_step), long_name, units)
VARIABLES: dict[str, tuple[tuple[str, ...], str, str]] = {
    "norm": (("replicate",), "norm of the meta-gradient of the images", "1"),
    "outer_loss": (("replicate",), "loss on the real batch at the end of the window", "1"),
    "window_start": (("replicate",), "first inner step that the meta-gradient flows through", "1"),
    "window_stop": (("replicate",), "inner step after the last one that the meta-gradient flows through", "1"),
    "seconds": (("replicate",), "wall time of the meta-gradient", "s"),
    "same_end_cosine": (("replicate",), "cosine to the full unroll to the end of the same window, with the same draws", "1"),
    "inner_product": (("replicate", "other"), "inner product of two meta-gradients", "1"),
    "inner_product_full": (("replicate", "other"), "inner product with the full unroll over the longest horizon", "1"),
    "variance": ((), "trace of the covariance over the squared norm of the mean", "1"),
    "variance_error": ((), "standard error of the variance, by the jackknife", "1"),
    "variance_clipped": ((), "the same, each draw clipped to twice the median norm of its kind", "1"),
    "variance_clipped_error": ((), "standard error of the clipped variance, by the jackknife", "1"),
    "cosine": ((), f"cosine between the mean meta-gradient and that of the full unroll, {ESTIMATE}", "1"),
    "cosine_error": ((), "standard error of the cosine, by the jackknife", "1"),
    "alignment": ((), f"cosine between one meta-gradient and the mean of the full unroll's, {ESTIMATE}", "1"),
    "alignment_error": ((), "standard error of the alignment, by the jackknife", "1"),
    "mean_norm": ((), "norm of the mean meta-gradient", "1"),
    "peak_memory": ((), "peak of tensors in the longest window among the replicates", "B"),
}


def gradients_template(policies: list[str], optimizers: list[str], points: list[int], replicates: int) -> xr.Dataset:
    """The dataset of a study, all NaN."""
    sizes = {"policy": len(policies), "optimizer": len(optimizers), "outer_step": len(points), "replicate": replicates, "other": replicates}
    first = ("policy", "optimizer", "outer_step")
    return xr.Dataset(
        {
            name: variable((*first, *dims), np.full([sizes[d] for d in (*first, *dims)], np.nan), words, units)
            for name, (dims, words, units) in VARIABLES.items()
        },
        {
            "policy": coordinate("policy", policies, "truncation policy, or another way of taking the meta-gradient"),
            "optimizer": coordinate("optimizer", optimizers, "inner optimiser"),
            "outer_step": coordinate("outer_step", np.array(points, np.int64), "outer steps done"),
            "replicate": coordinate("replicate", np.arange(replicates), "independent meta-gradient"),
            "other": coordinate("other", np.arange(replicates), "independent meta-gradient of the pair"),
        },
    )

"""Studies of distilled sets and of meta-gradients: what the paper argues with, as datasets that xarray opens."""

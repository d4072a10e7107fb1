"""What README promises of its first run: accuracy, and its distance from random real images."""

import xarray as xr

tree = xr.open_datatree("runs/digits/results.zarr")
distilled = tree["evaluation"]["accuracy"]
random = tree["baselines"]["accuracy"].sel(baseline="random real")
assert distilled.sizes["seed"] >= 5
assert tree["distilled"].sizes["sample"] == 10
assert distilled.mean() >= 0.88, float(distilled.mean())
assert distilled.mean() - random.mean() >= 0.20, (float(distilled.mean()), float(random.mean()))
print(f"distilled {float(distilled.mean()):.3f}, random real {float(random.mean()):.3f}")

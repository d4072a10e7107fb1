"""What the studies stored, opened with xarray alone: tables and figures in plain calls, without distilkit or torch.

`distilkit study intercorrelation examples/boost_digits.toml --out runs/study` and
`distilkit study gradients examples/digits.toml --out runs/gradients` make what this reads:
`python examples/analysis.py runs/study runs/gradients`.
"""

import sys
from pathlib import Path

import xarray as xr
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def figure(width, height):
    """A figure without pyplot's global state."""
    made = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(made)
    return made


def sources(study: Path) -> None:
    """Accuracy against budget by source, and the interaction of samples."""
    tree = xr.open_datatree(study / "results.zarr")
    accuracy = tree["sources"]["accuracy"].load()
    mean, std = accuracy.mean(("draw", "seed")), accuracy.std(("draw", "seed"), ddof=1)
    print((100 * mean).round(1).to_pandas().to_string())
    print((100 * std).round(1).to_pandas().to_string())
    gain = mean.sel(source="boosted prefix") - mean.sel(source="subset of the large set")
    print("boosted prefix less random subset:", dict(zip(gain.budget.values.tolist(), gain.values.round(3).tolist(), strict=True)))

    made = figure(6, 4)
    axes = made.subplots()
    for name in accuracy.source.values:
        line = axes.errorbar(mean.budget, mean.sel(source=name), std.sel(source=name), marker="o", capsize=2, label=str(name))
        line[0].set_markersize(4)
    axes.set(xscale="log", xlabel="images per class", ylabel="test accuracy")
    axes.set_xticks(mean.budget.values, [str(b) for b in mean.budget.values])
    axes.legend(fontsize=8)
    made.savefig(study / "analysis-budgets.png", dpi=120)

    influence = tree["influence"].to_dataset()
    pairs = influence["interaction"].mean("seed").stack(pair=("sample", "other")).dropna("pair")
    print(f"interaction of {pairs.size // 2} pairs, points: mean {100 * float(pairs.mean()):.2f}, std {100 * float(pairs.std()):.2f}")
    own = influence.label_class.sel(sample=pairs.sample).values == influence.label_class.sel(sample=pairs.other).values
    if own.any() and not own.all():
        print(f"same class {100 * float(pairs[own].mean()):.2f}, other class {100 * float(pairs[~own].mean()):.2f}")


def gradients(study: Path) -> None:
    """Variance, bias and cost of the meta-gradient by policy."""
    data = xr.open_zarr(study / "results.zarr").load()
    for name in ("variance", "variance_clipped", "cosine"):
        print(name)
        print(data[name].mean("outer_step").to_pandas().round(3).to_string())
    print("seconds")
    print(data["seconds"].median(("outer_step", "replicate")).to_pandas().round(4).to_string())
    each = data[[name for name, array in data.items() if array.dims == ("policy", "optimizer", "outer_step")]]
    each["seconds_median"] = data["seconds"].median("replicate")
    order = ["optimizer", "outer_step", "policy"]
    each.to_dataframe(dim_order=order).to_csv(study / "analysis.csv", float_format="%.5g")
    made = figure(4 * data.sizes["optimizer"] + 1, 3.5)
    for axes, name in zip(made.subplots(1, data.sizes["optimizer"], squeeze=False, sharey=True)[0], data.optimizer.values, strict=True):
        data["variance"].sel(optimizer=name).plot.line(x="outer_step", hue="policy", yscale="log", marker="o", ax=axes)
    made.savefig(study / "analysis-variance.png", dpi=120)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    for folder in map(Path, sys.argv[1:]):
        with xr.open_datatree(folder / "results.zarr") as found:
            kind = sources if "sources" in found.children else gradients
        kind(folder)

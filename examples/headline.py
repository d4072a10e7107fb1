"""Put a finished run into the table of docs/numbers.md: judge its set once more, by the paper's protocol and beside coresets.

    distilkit run fast/cifar10-ipc1 --out runs/headline
    python examples/headline.py runs/headline --row "CIFAR-10, 1" --ship fast/cifar10-ipc1

It adds what it finds to docs/results/numbers.json, in the place of an earlier entry of that title and seed. Accuracy is that which
the run stored, of networks that it never saw, after the number of training steps that was selected on held-out images; "by the paper's
protocol" is the largest mean over 300, 600 and 1,000 steps on the test images, which is optimistic, and so are the real images beside it.
`--ship` puts the set beside the recipe of that name, where it comes with the package.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
from pathlib import Path

import numpy as np
import torch

import distilkit as dk
from distilkit import recipes
from distilkit.display import Console, Display
from distilkit.runs.open import pipeline_of
from distilkit.storage import shipped
from distilkit.storage.spread import spread

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results" / "numbers.json"
LENGTHS = (300, 600, 1000)
BASELINES = ("random real", "k-means real")


def main() -> None:
    """Judge, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--row", required=True, help="of the table, such as 'CIFAR-10, 1'")
    parser.add_argument("--networks", type=int, default=5)
    parser.add_argument("--set", dest="changes", action="append", default=[], metavar="KEY=VALUE", help="of the protocol")
    parser.add_argument("--ship", metavar="NAME", help="put the set beside the recipe of this name")
    parser.add_argument("--note", default="", help="what a reader should know of how it was made")
    given = parser.parse_args()
    tree = dk.open(given.run)
    if given.ship:
        recipes.read(given.ship)  # there is such a recipe
    pipeline = pipeline_of(given.run, [f"evaluation.seeds={given.networks}", f"evaluation.steps={list(LENGTHS)}", *given.changes])
    with Display(Console()) as display:
        judged = dk.evaluate(
            dk.load(given.run), pipeline.bundle, pipeline.learner, pipeline.evaluation, baselines=BASELINES, progress=display
        )
    accuracy, history = tree["evaluation"]["accuracy"].values, tree["history"]
    looks = tree["evaluation"].get("validation_accuracy")
    validation = (
        {} if looks is None else dict(zip(map(str, looks["outer_step"].values.tolist()), looks.mean("seed").values.tolist(), strict=True))
    )
    beside = judged.baseline_accuracy.mean("seed").max("training_steps")
    found = {
        "row": given.row,
        "title": given.ship or tree.attrs["title"],
        "seed": int(tree.attrs["seed"]),
        "by_validation": {"mean": float(np.mean(accuracy)), "std": float(spread(accuracy)), "n": len(accuracy)},
        "by_the_papers_protocol": float(judged.paper_protocol),
        "beside": {str(name): float(beside.sel(baseline=name)) for name in BASELINES},
        "validation": validation,
        "outer_steps": int(history.sizes["outer_step"]),
        "seconds": float(history["seconds"].sum()),
        "hardware": f"{processor()}, {tree.attrs['device']}",
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
        "note": given.note,
    }
    record = json.loads(RESULTS.read_text(encoding="utf-8"))
    kept = [one for one in record["ours"] if (one["title"], one["seed"]) != (found["title"], found["seed"])]
    record["ours"] = [*kept, found]
    RESULTS.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if given.ship:
        shipped.write(dk.load(given.run), given.ship)
    print(json.dumps(found, indent=1))


def processor() -> str:
    """Its name, family and model, where the system tells them: names of rented machines leave out which one it is."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")[0].splitlines()
        said = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
        return f"{said['model name']} (family {said['cpu family']}, model {said['model']})"
    except (OSError, KeyError):
        return platform.processor()


if __name__ == "__main__":
    main()

"""What does a distilled set lose as pictures? It is judged as it is, and with each thing that a folder of PNG files does to it.

    distilkit run digits --out runs/digits
    python examples/pictures_cost.py runs/digits --networks 10

Pixels are clipped to [0, 1] and take 256 levels; a reader may not know in which space networks were trained; and whoever takes the folder
for images of classes leaves the learned labels out. All is judged by the protocol of the run, and the number of training steps of each is
chosen on validation. What is found takes the place of an earlier entry of that run's title in docs/results/pictures.json.
"""

from __future__ import annotations

import argparse
import datetime
import json
import tempfile
from pathlib import Path
from typing import Any

import attrs
import torch
from headline import processor
from torch import Tensor

import distilkit as dk
from distilkit import spec
from distilkit.display import Console, Display
from distilkit.runs.open import pipeline_of
from distilkit.storage import formats

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results" / "pictures.json"


def ways(made: dk.DistilledSet, data: dk.DataBundle) -> dict[str, dk.DistilledSet]:
    """The set with one change each, by name."""
    space = made.preprocessing
    looks = space.inverse(made.images)

    def of(pictures: Tensor) -> dk.DistilledSet:
        return attrs.evolve(made, images=space.forward(pictures))

    def one_hot(one: dk.DistilledSet) -> dk.DistilledSet:
        classes = len(one.class_names)
        return attrs.evolve(one, labels=torch.nn.functional.one_hot(one.classes, classes).to(one.labels), label_space="one-hot")

    with tempfile.TemporaryDirectory() as place:
        formats.write(made, Path(place, "pictures"), "image-folder")
        folder, alone = formats.read(Path(place, "pictures"), data=data), formats.read(Path(place, "pictures"))
    return {
        "as it is": made,
        "pixels in steps of a 255th, not clipped": of((255 * looks).round() / 255),
        "pixels clipped to [0, 1]": of(looks.clamp(0, 1)),
        "both: the folder, read in the space of its preprocessing": folder,
        "the folder, read as images in [0, 1] without that preprocessing": alone,
        "as it is, with labels made one-hot": one_hot(made),
        "the folder in its space, with labels made one-hot": one_hot(folder),
    }


def main() -> None:
    """Judge, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="the folder of a run")
    parser.add_argument("--networks", type=int, default=10, help="for each way (default: %(default)s)")
    parser.add_argument("--set", dest="changes", action="append", default=[], metavar="KEY=VALUE", help="of the run's spec")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    pipeline = pipeline_of(given.run, [*given.changes, f"evaluation.seeds={given.networks}"])
    made, data = dk.load(given.run), pipeline.bundle
    pictures = made.preprocessing.inverse(made.images)
    rows: list[dict[str, Any]] = []
    with Display(Console()) as display:
        for name, one in ways(made, data).items():
            same = one.preprocessing.fingerprint() == data.preprocessing.fingerprint()
            other = None if same else attrs.evolve(pipeline.data, preprocessing=one.preprocessing).load(pipeline.stream.fold("data"))
            judged = dk.evaluate(one, other or data, pipeline.learner, pipeline.evaluation, progress=display)
            values = judged.accuracy.sel(training_steps=judged.selected_steps).values.tolist()
            rows.append({"way": name, "values": values, "training_steps": int(judged.selected_steps)})
            print(f"{name}: {100 * sum(values) / len(values):.1f}", flush=True)
    found = {
        "title": pipeline.title,
        "outside": float(((pictures < 0) | (pictures > 1)).float().mean()),  # share of the pixels that no picture can hold
        "spec": spec.dumps(pipeline),
        "hardware": processor(),
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
        "rows": rows,
    }
    record = json.loads(given.out.read_text(encoding="utf-8")) if given.out.exists() else {"question": "What does a set lose as pictures?"}
    kept = [old for old in record.get("sets", []) if old["title"] != found["title"]]
    given.out.write_text(json.dumps(record | {"sets": [*kept, found]}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""How much of an accuracy is the labels'? A distilled set beside real images, each under hard and under soft labels.

    python examples/labels.py fast/cifar10-ipc1 --row "CIFAR-10, 1" --set data.root=/data
    python examples/labels.py runs/mine --row "CIFAR-10, 1"

Much of what distilled sets gain over real images comes with their soft labels (arXiv 2604.18811, 2606.18209), and a table that gives them
to one side only does not tell. Here the distilled set is judged by its own labels and by the class of each image, and random images,
those next to k-means centres and herding are judged by their class and by what a teacher says of them: a network of the same kind,
trained on all training images. All by the protocol of the run; the number of training steps of each is chosen on validation, and the test
images are used once. What is found takes the place of an earlier entry of that row and set in docs/results/labels.json.
"""

from __future__ import annotations

import argparse
import datetime
import json
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
from headline import processor
from torch import Tensor

import distilkit as dk
from distilkit import process
from distilkit.display import Console, Display
from distilkit.evaluation import training_set
from distilkit.evaluation.baselines import CORESETS, coreset, full_data
from distilkit.evaluation.scoring import Score, score
from distilkit.evaluation.training import TEST_BATCH, TrainingSet, accuracy, train
from distilkit.runs.open import pipeline_of

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results" / "labels.json"


@attrs.frozen(eq=False)
class Teacher:
    """A network that was trained on all training images: bound learner, parameters (P,) and its accuracy on the test images."""

    learner: dk.Learner
    params: Tensor
    accuracy: float

    @classmethod
    def trained(cls, pipeline: dk.Distiller, steps: int, stream: dk.Stream) -> Teacher:
        """Train one by the protocol of a pipeline, with minibatches."""
        evaluation, data = pipeline.evaluation, pipeline.bundle
        learner, everything = evaluation.trainer(pipeline.bound, full_data(data, evaluation.batch_size))
        _, params = next(train(learner, everything, [stream], [steps], mode=evaluation.mode()))
        tested = accuracy(learner, params, data.test, evaluation.mode())
        return cls(learner, params[0], float(tested[0]))

    def labels(self, images: Tensor) -> Tensor:
        """Probabilities (sets, N, K) of the images (sets, N, ...)."""
        with torch.no_grad():
            logits = torch.cat([self.learner.logits(self.params, part) for part in images.flatten(0, 1).split(TEST_BATCH)])
        return logits.softmax(-1).unflatten(0, images.shape[:2])


def sides(pipeline: dk.Distiller, distilled: dk.DistilledSet, teacher: Teacher, stream: dk.Stream) -> dict[tuple[str, str], TrainingSet]:
    """What is trained on, by images and labels."""
    data = pipeline.bundle
    own = training_set(distilled, data)
    one_hot = torch.nn.functional.one_hot(distilled.classes, data.num_classes).to(own.labels)
    found = {
        ("distilled", "soft"): own,
        ("distilled", "hard"): attrs.evolve(own, labels=one_hot, label_space="one-hot"),
    }
    per_class = distilled.per_class
    for name in CORESETS if per_class is not None else ():
        real = coreset(name, data, per_class, pipeline.evaluation.seeds, stream.fold(name))
        found[name, "hard"] = real
        found[name, "soft"] = attrs.evolve(real, labels=teacher.labels(real.images), label_space="probability")
    return found


def row(images: str, labels: str, found: Score) -> dict[str, Any]:
    """As it is stored."""
    return {
        "images": images,
        "labels": labels,
        "mean": float(np.nanmean(found.test)),
        "values": found.test.tolist(),
        "validation": float(np.nanmean(found.selected)),
        "training_steps": found.steps,
    }


def main() -> None:
    """Judge, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="the folder of a run, or the name of a set that comes with distilkit")
    parser.add_argument("--row", required=True, help="data and images per class, such as 'CIFAR-10, 1'")
    parser.add_argument("--set", dest="changes", action="append", default=[], metavar="KEY=VALUE", help="of the run's spec")
    parser.add_argument("--teacher-steps", type=int, default=3000, help="training steps of the teacher (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    pipeline, distilled = pipeline_of(given.run, [*given.changes, 'evaluation.labels="soft"']), dk.load(given.run)
    stream = dk.Stream(0).fold("labels")
    with Display(Console()) as display, process.thread_limit(pipeline.threads), process.keep_freed_memory():
        display.phase("loading data")
        data = pipeline.bundle
        display.phase(f"training a teacher on {len(data.train)} images for {given.teacher_steps} steps")
        teacher = Teacher.trained(pipeline, given.teacher_steps, stream.fold("teacher"))
        rows = []
        for (images, labels), training in sides(pipeline, distilled, teacher, stream).items():
            display.phase(f"training {pipeline.evaluation.seeds} networks: {images}, {labels} labels")
            found = score(pipeline.bound, training, data, pipeline.evaluation, stream.fold("networks"), test=True)
            rows.append(row(images, labels, found))
            print(f"{images}, {labels} labels: {100 * rows[-1]['mean']:.1f} after {found.steps} steps", flush=True)
    one = {
        "row": given.row,
        "set": given.run,
        "teacher": {"steps": given.teacher_steps, "accuracy": teacher.accuracy, "network": repr(pipeline.bound.network)},
        "protocol": pipeline.evaluation.to_json(data),
        "hardware": processor(),
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
        "rows": rows,
    }
    record = json.loads(given.out.read_text(encoding="utf-8")) if given.out.exists() else {"question": "Accuracy by images and labels"}
    kept = [old for old in record.get("sets", []) if (old["row"], old["set"]) != (one["row"], one["set"])]
    given.out.write_text(json.dumps(record | {"sets": [*kept, one]}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

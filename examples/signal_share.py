"""How much of one meta-gradient is signal? The share of a draw's squared length that its mean has, at a set, over all and by frequency.

    python examples/signal_share.py fast/cifar10-ipc1 --set data.root=/data
    python examples/signal_share.py runs/mine --draws 64 --set outer.batch_size=4000

K meta-gradients are taken at one set, each on a fresh network, a fresh real batch and a window of the recipe's policy. With g_k those of
all images, as one vector, the share is |E g|^2 / E |g|^2, where |E g|^2 is the mean of <g_j, g_k> over j != k, without bias (see
`distilkit.studies.statistics`). Its error is the standard deviation that it would have without any signal. Where the share is s, the mean
of about 1/s draws is half signal. Frequencies are those of the orthonormal cosine transform of each channel, (0, 0) for the constant image
to (n - 1, n - 1); a band has those whose length, the root of u^2 + v^2, is between where it begins and where the next one does. What is
found takes the place of an earlier entry of that set and real batch in docs/results/signal.json.
"""

from __future__ import annotations

import argparse
import datetime
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from headline import processor
from scipy.fft import dctn

import distilkit as dk
from distilkit import process
from distilkit.display import Console, Display
from distilkit.runs.open import pipeline_of
from distilkit.studies.statistics import squared_mean

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results" / "signal.json"
BANDS = (0, 2, 4, 8, 16, 32)
Array = npt.NDArray[np.float64]


def share(draws: Array) -> dict[str, float]:
    """Share of signal in draws (K, ...), its error, and the root mean square of their lengths.

    >>> noise = np.random.default_rng(0).normal(size=(200, 50))
    >>> found = share(noise + 0.5)  # 0.25 / 1.25 of it
    >>> abs(found["share"] - 0.2) < 0.03, found["error"] < 0.01
    (True, True)
    """
    vectors = draws.reshape(len(draws), -1).astype(np.float64)
    gram, count = vectors @ vectors.T, len(draws)
    power = float(np.trace(gram)) / count
    others = gram[~np.eye(count, dtype=bool)] - squared_mean(gram)
    error = float(np.sqrt(2 / (count * (count - 1)) * np.mean(others**2)))
    return {"share": squared_mean(gram) / power, "error": error / power, "length": power**0.5}


def by_frequency(draws: Array, images: Array) -> list[dict[str, float]]:
    """The same in bands of frequency, of draws (K, N, C, H, W) at images (N, C, H, W), with the mean squares of a coefficient of both."""
    along = [np.arange(n) for n in images.shape[-2:]]
    frequency = np.hypot(along[0][:, None], along[1])
    draws, images = (dctn(x, axes=(-2, -1), norm="ortho") for x in (draws, images))
    found = []
    for low, high in zip(BANDS, (*BANDS[1:], np.inf), strict=True):
        inside = (frequency >= low) & (frequency < high)
        if inside.any():
            squares = {"of_a_draw": float(np.mean(draws[..., inside] ** 2)), "of_the_images": float(np.mean(images[..., inside] ** 2))}
            found.append({"from": low, **share(draws[..., inside]), **squares})
    return found


def drawn(pipeline: dk.Distiller, count: int, progress: dk.Progress) -> tuple[Array, Array, Array]:
    """Meta-gradients of images and of labels at the start of a pipeline, and those images, as its last network takes them."""
    first = pipeline.init()
    state = first._replace(stage_step=pipeline.stages[0].steps - 1)
    policy, images, labels = pipeline.stages[0].truncation, [], []
    progress.phase("drawing meta-gradients")
    for step in range(count):
        window, _ = policy.plan(first.policy, step, pipeline.stream.fold("window"))
        meta = pipeline.meta_gradient(state._replace(step=step), window)
        images.append(meta.images.cpu().double().numpy())
        labels.append(meta.labels.cpu().double().numpy())
        progress.advance(step + 1, count)
    return np.stack(images), np.stack(labels), first.leaves.images.cpu().double().numpy()


def main() -> None:
    """Draw, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="the folder of a run, or the name of a set that comes with distilkit")
    parser.add_argument("--draws", type=int, default=40, help="how many meta-gradients (default: %(default)s)")
    parser.add_argument("--set", dest="changes", action="append", default=[], metavar="KEY=VALUE", help="of the run's spec")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    if given.draws < 2:
        parser.error(f"--draws {given.draws}: a mean is told from noise by two or more draws, such as --draws 40")
    pipeline = pipeline_of(given.run, [*given.changes, f"images.stored={json.dumps(given.run)}"])
    with Display(Console()) as display, process.thread_limit(pipeline.threads), process.keep_freed_memory():
        images, labels, at = drawn(pipeline, given.draws, display)
    one: dict[str, Any] = {
        "set": given.run,
        "draws": given.draws,
        "truncation": repr(pipeline.stages[0].truncation),
        "batch_size": pipeline.outer.batch_size,
        "images": share(images),
        "labels": share(labels),
        "bands": by_frequency(images, at) if at.ndim == 4 else [],
        "hardware": processor(),
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
    }
    print(json.dumps({name: one[name] for name in ("images", "labels")}, indent=1))
    record = json.loads(given.out.read_text(encoding="utf-8")) if given.out.exists() else {"question": "How much of a draw is signal?"}
    kept = [old for old in record.get("sets", []) if (old["set"], old["batch_size"]) != (one["set"], one["batch_size"])]
    given.out.write_text(json.dumps(record | {"sets": [*kept, one]}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

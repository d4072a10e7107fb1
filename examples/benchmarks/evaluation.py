"""Networks trained one by one against side by side, and the calibrated protocol's cost: `python examples/benchmarks/evaluation.py`.

For each network: 8 of them are trained for a few steps on 10 images both ways, in turn, and the median of the ratios of
neighbouring runs is printed. Ratios of neighbours hold on a busy machine; the milliseconds do not. `picked` is what
`distilkit.evaluation` does by itself.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time

import torch

import distilkit as dk
from distilkit.evaluation.training import TrainingSet, cost, side_by_side, train

NETWORKS = 8
IMAGES = 10
CASES = {  # name: (network, image shape, steps of a run)
    "MLP 128, 8x8": (dk.MLP(hidden=(128,)), (1, 8, 8), 60),
    "MLP 128, 28x28": (dk.MLP(hidden=(128,)), (1, 28, 28), 20),
    "MLP 256, 28x28": (dk.MLP(hidden=(256,)), (1, 28, 28), 20),
    "ConvNet-2, 16, 8x8": (dk.ConvNet(width=16, depth=2), (1, 8, 8), 20),
    "ConvNet-2, 32, 8x8": (dk.ConvNet(width=32, depth=2), (1, 8, 8), 20),
    "ConvNet-3, 32, 28x28": (dk.ConvNet(width=32, depth=3), (1, 28, 28), 6),
    "ConvNet-3, 128, 32x32": (dk.ConvNet(width=128, depth=3), (3, 32, 32), 2),
}


def seconds(learner: dk.Learner, training: TrainingSet, steps: int, together: int) -> float:
    """Wall time of one run, the networks' start included."""
    streams = [dk.Stream(0).fold(i) for i in range(NETWORKS)]
    began = time.perf_counter()
    for _ in train(learner, training, streams, [steps], together=together):
        pass
    return time.perf_counter() - began


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", default="", help="cases whose name holds this")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print(f"torch {torch.__version__}, {platform.machine()}, {given.device}, {given.threads} threads, {NETWORKS} networks, {IMAGES} images")
    print(f"{'':22} {'operations':>10} {'parameters':>10} {'one by one':>11} {'side by side':>12} {'ratio':>6} {'picked':>7}")
    for name, (network, shape, steps) in CASES.items():
        if given.only not in name:
            continue
        learner = dk.Learner(network, dk.Adam()).bind(shape, 10)
        images = dk.Stream(1).normal(IMAGES, *shape).to(given.device)
        classes = torch.arange(IMAGES) % 10
        training = TrainingSet(images, torch.eye(10)[classes].to(given.device), classes)
        seconds(learner, training, steps, 1), seconds(learner, training, steps, NETWORKS)
        pairs = [(seconds(learner, training, steps, 1), seconds(learner, training, steps, NETWORKS)) for _ in range(given.repeats)]
        alone, together = (statistics.median(x) / steps * 1e3 for x in zip(*pairs, strict=True))
        ratio = statistics.median(a / b for a, b in pairs)
        picked = side_by_side(learner, images, NETWORKS)
        work = cost(learner, images).operations
        print(f"{name:22} {work:10.1e} {learner.layout.size:10} {alone:8.2f} ms {together:9.2f} ms {ratio:6.2f} {picked:7}", flush=True)


if __name__ == "__main__":
    main()

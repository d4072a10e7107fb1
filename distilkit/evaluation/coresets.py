"""Real images that stand for all: coresets, to compare distilled sets of the same size with."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from distilkit.data import DataBundle
from distilkit.errors import CombinationError, listing
from distilkit.evaluation.baselines import chosen_images, members_of_classes
from distilkit.evaluation.training import TrainingSet
from distilkit.functional.streams import Stream

CORESETS = ("random real", "k-means real", "herding real")


def coreset(name: str, data: DataBundle, per_class: int, draws: int, stream: Stream) -> TrainingSet:
    """Real training images with one-hot labels, `per_class` of each class, class by class.

    Args:
        name: "random real"; "k-means real", the image next to each centre of k-means over the class; "herding real", images
            picked one after the other so that their mean comes as near as it can to the mean of the class. Distances are
            those of the preprocessed pixels.
        data: the real data.
        per_class: images of each class.
        draws: how many sets. Herding is deterministic, so all of its sets are the same.
        stream: set i draws from `stream.fold(i)`.

    Returns:
        images (draws, N, ...), labels (draws, N, K).

    Raises:
        CombinationError: the name is not known, or a class has too few images.
    """
    if name in CORESETS[:2]:
        return chosen_images(name, data, per_class, draws, stream)
    if name != CORESETS[2]:
        raise CombinationError(f"There is no coreset {name!r}; there are {listing(CORESETS)}.")
    labels = data.train.labels
    picked = []
    for own in members_of_classes(data, per_class):
        members = own.to(labels.device)
        picked.append(members[herd(data.train.images[members].flatten(1), per_class)])
    rows = torch.cat(picked)
    images, targets = data.train.images[rows], F.one_hot(labels[rows], data.classes).float()
    classes = torch.arange(data.classes).repeat_interleave(per_class)
    return TrainingSet(images.expand(draws, *images.shape), targets.expand(draws, *targets.shape), classes)


def herd(points: Tensor, count: int) -> Tensor:
    """Herding (Welling, 2009; Chen, Welling and Smola, 2010): rows whose running mean follows the mean of all.

    Args:
        points: (N, D).
        count: how many rows.

    Returns:
        int64 (count,), in the order in which they were picked; a prefix is what a smaller count gives.

    >>> herd(torch.tensor([[0.0], [1.0], [5.0]]), 2).tolist()
    [1, 2]
    """
    points = points.double()
    mean, total = points.mean(0), torch.zeros_like(points[0])
    chosen: list[int] = []
    for k in range(1, count + 1):
        distances = (mean - (total + points) / k).norm(dim=1)
        distances[chosen] = torch.inf
        chosen.append(int(distances.argmin()))
        total = total + points[chosen[-1]]
    return torch.tensor(chosen)

"""Real images to compare with: random ones, those next to k-means centres, and all of them."""

from __future__ import annotations

import torch
from sklearn.cluster import KMeans
from torch import Tensor
from torch.nn import functional as F

from distilkit.data import DataBundle
from distilkit.errors import CombinationError
from distilkit.evaluation.training import TrainingSet
from distilkit.functional.streams import Stream


def full_data(data: DataBundle, batch_size: int) -> TrainingSet:
    """All training images, in minibatches."""
    labels = F.one_hot(data.train.labels, data.classes).float()
    return TrainingSet(data.train.images, labels, data.train.labels, batch_size=min(batch_size, len(data.train)))


def chosen_images(name: str, data: DataBundle, per_class: int, networks: int, stream: Stream) -> TrainingSet:
    """Real training images, `per_class` of each class; another draw for every network.

    Args:
        name: "random real", or "k-means real": the image next to each centre of k-means over the class.
        data: the real data.
        per_class: images of each class.
        networks: how many draws.
        stream: network i draws from `stream.fold(i)`.

    Raises:
        CombinationError: a class has too few training images.
    """
    choose = {"random real": _random_rows, "k-means real": _kmeans_rows}[name]
    members = members_of_classes(data, per_class)
    rows = torch.stack(
        [
            torch.cat([choose(data.train.images, own, per_class, stream.fold(i).fold(c)) for c, own in enumerate(members)])
            for i in range(networks)
        ]
    ).to(data.train.labels.device)
    targets = F.one_hot(data.train.labels[rows], data.classes).float()
    return TrainingSet(data.train.images[rows], targets, torch.arange(data.classes).repeat_interleave(per_class))


def members_of_classes(data: DataBundle, per_class: int) -> list[Tensor]:
    """Rows of the training images of each class, int64 (n_c,).

    Raises:
        CombinationError: a class has fewer than `per_class`.
    """
    labels = data.train.labels.cpu()
    members = [(labels == c).nonzero()[:, 0] for c in range(data.classes)]
    for name, own in zip(data.class_names, members, strict=True):
        if len(own) < per_class:
            raise CombinationError(
                f"{per_class} images of each class are to be compared with real ones, but class {name!r} has {len(own)} training images.",
                fix=(f"--set images.per_class={len(own)}  # or " if len(own) else "") + "--set 'evaluation.baselines=[\"full data\"]'",
            )
    return members


def _random_rows(images: Tensor, members: Tensor, count: int, stream: Stream) -> Tensor:
    return members[stream.permutation(len(members))[:count]]


def _kmeans_rows(images: Tensor, members: Tensor, count: int, stream: Stream) -> Tensor:
    points = images[members.to(images.device)].flatten(1).cpu().double().numpy()
    centres = KMeans(count, n_init=1, random_state=stream.integer_seed() % 2**32).fit(points).cluster_centers_
    distances = torch.cdist(torch.from_numpy(centres), torch.from_numpy(points))
    chosen: list[int] = []
    for row in distances:  # one image is not taken twice
        row[chosen] = torch.inf
        chosen.append(int(row.argmin()))
    return members[chosen]

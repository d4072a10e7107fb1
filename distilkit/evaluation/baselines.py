"""Real images to compare with: coresets (random images, those next to k-means centres, herding), and all of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from distilkit.data.bundle import DataBundle
from distilkit.errors import Change, CombinationError, counted, listing
from distilkit.evaluation.training import TrainingSet
from distilkit.functional.streams import Stream

CORESETS = ("random real", "k-means real", "herding real")


def full_data(data: DataBundle, batch_size: int) -> TrainingSet:
    """All training images, in minibatches."""
    labels = F.one_hot(data.train.labels, data.num_classes).float()
    return TrainingSet(data.train.images, labels, data.train.labels, batch_size=min(batch_size, len(data.train)))


def chosen_images(name: str, data: DataBundle, per_class: int, networks: int, stream: Stream) -> TrainingSet:
    """Real training images, `per_class` of each class; another draw for every network.

    Args:
        name: "random real", or "k-means real": the image next to each centre of k-means over the class (see `coreset`).
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
    targets = F.one_hot(data.train.labels[rows], data.num_classes).float()
    return TrainingSet(data.train.images[rows], targets, torch.arange(data.num_classes).repeat_interleave(per_class))


def coreset(name: str, data: DataBundle, per_class: int, draws: int, stream: Stream) -> TrainingSet:
    """Real training images with one-hot labels, `per_class` of each class, class by class.

    Args:
        name: "random real"; "k-means real", the image next to each centre of k-means over the class; "herding real", images
            picked one after the other so that their mean comes as near as it can to the mean of the class. Distances are those
            between preprocessed images of unit length: next to the mean of whitened images as they are lie the emptiest ones.
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
        picked.append(members[herd(_directions(data.train.images[members]), per_class)])
    rows = torch.cat(picked)
    images, targets = data.train.images[rows], F.one_hot(labels[rows], data.num_classes).float()
    classes = torch.arange(data.num_classes).repeat_interleave(per_class)
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


def members_of_classes(data: DataBundle, per_class: int) -> list[Tensor]:
    """Rows of the training images of each class, int64 (n_c,).

    Raises:
        CombinationError: a class has fewer than `per_class`.
    """
    labels = data.train.labels.cpu()
    members = [(labels == c).nonzero()[:, 0] for c in range(data.num_classes)]
    for name, own in zip(data.class_names, members, strict=True):
        if len(own) < per_class:
            raise CombinationError(
                f"As many real images of each class as the set has, {per_class}, are to be compared with it, but class {name!r} has "
                f"{counted(len(own), 'training image')}.",
                changes=[
                    *([Change("images.per_class", len(own))] if len(own) else []),
                    Change("evaluation.baselines", ["full data"]),
                ],
            )
    return members


def _directions(images: Tensor) -> Tensor:
    """Rows of unit length (N, D): networks with norm layers do not see the length of an image."""
    return F.normalize(images.flatten(1), dim=1)


def _random_rows(images: Tensor, members: Tensor, count: int, stream: Stream) -> Tensor:
    return members[stream.permutation(len(members))[:count]]


def _kmeans_rows(images: Tensor, members: Tensor, count: int, stream: Stream) -> Tensor:
    from sklearn.cluster import KMeans  # here: it takes a second to import

    points = _directions(images[members.to(images.device)]).cpu().double().numpy()
    make: Any = KMeans  # whose types come from its defaults
    centres = make(count, n_init=1, random_state=stream.integer_seed() % 2**32).fit(points).cluster_centers_
    distances = torch.cdist(torch.from_numpy(centres), torch.from_numpy(points))
    chosen: list[int] = []
    for row in distances:  # one image is not taken twice
        row[chosen] = torch.inf
        chosen.append(int(row.argmin()))
    return members[chosen]

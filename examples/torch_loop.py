"""Train plain torch networks on the ten images of `fast/cifar10-ipc1`, and test them on CIFAR-10.

    python examples/torch_loop.py .data/cifar10.npz

Nothing of distilkit trains here: the set is loaded, and the test images are brought into its space. Network, optimizer, augmentation and
number of steps are those that `provenance["training"]` of the set names; another number of steps gives another accuracy.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.transforms.functional import InterpolationMode, rotate

import distilkit as dk


def convnet(width: int = 128, depth: int = 3, classes: int = 10) -> nn.Module:
    """ConvNet-3 of the field, for images of 32x32: convolution, instance norm, ReLU and pooling, three times, and a linear layer."""
    blocks: list[nn.Module] = []
    for number in range(depth):
        convolution = nn.Conv2d(width if number else 3, width, 3, padding=1)
        blocks += [convolution, nn.GroupNorm(width, width), nn.ReLU(), nn.AvgPool2d(2)]
    return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(width * (32 // 2**depth) ** 2, classes))


def flip_or_rotate(images: Tensor) -> Tensor:
    """Flip each image with probability 1/2, or else turn each by up to 15 degrees."""
    if torch.rand(()) < 0.5:
        return torch.where(torch.rand(len(images), 1, 1, 1) < 0.5, images.flip(3), images)
    angles = (30 * torch.rand(len(images)) - 15).tolist()
    return torch.stack([rotate(image, angle, InterpolationMode.BILINEAR) for image, angle in zip(images, angles, strict=True)])


def accuracy(images: Tensor, labels: Tensor, test_images: Tensor, test_labels: Tensor, steps: int) -> float:
    """Train one network on the images with their soft labels, and test it."""
    network = convnet()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(flip_or_rotate(images)), labels).backward()  # labels as they are: they need not sum to 1
        optimizer.step()
    with torch.no_grad():
        right = sum(int((network(x).argmax(1) == y).sum()) for x, y in zip(test_images.split(500), test_labels.split(500), strict=True))
    return right / len(test_labels)


def main() -> None:
    """Train some networks, and print what they reach beside what the set says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="arrays of CIFAR-10, as in examples/cifar10.toml")
    parser.add_argument("--networks", type=int, default=3)
    given = parser.parse_args()
    distilled = dk.load("fast/cifar10-ipc1")
    how = distilled.provenance["training"]
    # Split as the recipe does it, so that the whitening, which is fitted on the training images, is the same.
    test = dk.Arrays(given.data, validation=0.1, preprocessing=distilled.preprocessing).load(dk.Stream(0).fold("data")).test
    torch.manual_seed(0)
    images, labels = distilled.dataset().tensors
    found = [accuracy(images, labels, test.images, test.labels, how["steps"]) for _ in range(given.networks)]
    print(f"{how['steps']} steps of torch: {statistics.fmean(found):.3f}, each {[round(one, 3) for one in found]}")
    print(f"the set says:        {statistics.fmean(how['test_accuracy']):.3f}, each {[round(one, 3) for one in how['test_accuracy']]}")


if __name__ == "__main__":
    main()

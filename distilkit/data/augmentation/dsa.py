"""Differentiable siamese augmentation (DSA), as most peers of the paper use it."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal

import torch

from distilkit import fields
from distilkit.data.augmentation.base import batch_shape
from distilkit.data.augmentation.geometry import affine, rotations, shifts, stretches
from distilkit.errors import FieldError, listing, nearest
from distilkit.functional.streams import AnyStream

STRATEGIES = ("color", "crop", "cutout", "flip", "scale", "rotate")
GEOMETRIC = ("crop", "flip", "scale", "rotate")

Draw = dict[str, torch.Tensor]

Mode = Literal["single", "multiple"]


@fields.component
class DSA:
    """DSA's strategies, with the parameters of its public code.

    One strategy is drawn at random for the whole batch (`mode="single"`), or all are applied in the order in which they are
    named (`mode="multiple"`).

    Siamese means that synthetic and real batches may get the same parameters. Then they are drawn once a batch, not once an
    image, and do not depend on the size of the batch: two calls of `sample` with one stream give one draw, for both. The
    Distiller has no such pair: gradients are not matched here, so it draws for real images and for each inner step apart.

    Args:
        strategy: names joined by "_": color, crop, cutout, flip, scale, rotate.
        siamese: one set of parameters for the whole batch, so that two batches can share it.
        mode: "single" or "multiple"; "S" and "M" in DSA's code.
        brightness: width of the uniform shift; it is added to preprocessed values.
        saturation: the factor of each pixel's distance from its channel mean is uniform on [0, saturation).
        contrast: the factor of the distance from the image mean is uniform on [contrast, 1 + contrast).
        crop: largest shift, as a share of the side; zeros come in.
        cutout: side of the zeroed box, as a share of the side.
        flip: probability to mirror left to right.
        scale: each side is sampled at a uniform ratio between 1/scale and scale.
        rotate: largest angle in degrees, either way.

    References:
        Zhao and Bilen, "Dataset Condensation with Differentiable Siamese Augmentation", ICML 2021, and its code.

    >>> from distilkit.functional.streams import Stream
    >>> x = torch.rand(3, 3, 8, 8)
    >>> augment = DSA("flip_crop")
    >>> augment.apply(x, augment.sample(Stream(0), x.shape)).shape
    torch.Size([3, 3, 8, 8])
    """

    takes_streams: ClassVar[bool] = True
    by_image: ClassVar[bool] = True
    strategy: str = fields.text(default="color_crop_cutout_flip_scale_rotate")
    siamese: bool = fields.flag(default=True)
    mode: Mode = fields.choice(Mode, default="single")
    brightness: float = fields.number(default=1.0, least=0)
    saturation: float = fields.number(default=2.0, least=0)
    contrast: float = fields.number(default=0.5, least=0)
    crop: float = fields.number(default=0.125, least=0, most=1)
    cutout: float = fields.number(default=0.5, least=0, most=1)
    flip: float = fields.number(default=0.5, least=0, most=1)
    scale: float = fields.number(default=1.2, least=1)
    rotate: float = fields.number(default=15.0, least=0, most=180)

    def __attrs_post_init__(self) -> None:
        wrong = [name for name in self.names if name not in STRATEGIES]
        if wrong:
            near = nearest(wrong[0], STRATEGIES)
            fix = f'strategy="{self.strategy.replace(wrong[0], near)}"' if near and wrong[0] else None
            raise FieldError("strategy", self.strategy, f'names joined by "_": {listing(STRATEGIES)}', fix=fix)

    @property
    def names(self) -> tuple[str, ...]:
        """The strategies, in order."""
        return tuple(self.strategy.split("_"))

    def sample(self, stream: AnyStream, shape: tuple[int, ...]) -> Draw:
        """Draw for one batch.

        Args:
            stream: the source of the draw, or several, whose draws are stacked.
            shape: (N, C, H, W) of the batch.

        Returns:
            Small CPU tensors. In mode "multiple" one entry a strategy; in mode "single" the maps of all geometric strategies
            are one entry, `affine`, and what was not drawn is an identity: so `apply` takes the same path every time.
        """
        n, height, width = batch_shape(shape)
        n = 1 if self.siamese else n
        draws = {name: _DRAW[name](self, stream.fold(name), n, height, width) for name in self.names}
        if self.mode == "multiple":
            return draws
        chosen = stream.fold("strategy").integers(len(self.names), 1)  # (1,), or (streams, 1)

        def if_chosen(name: str, otherwise: torch.Tensor) -> torch.Tensor:
            value = draws[name]
            taken = torch.isin(chosen, torch.tensor([k for k, other in enumerate(self.names) if other == name]))
            return torch.where(taken.reshape(*taken.shape, *[1] * (value.ndim - taken.ndim)), value, otherwise)

        out: Draw = {}
        for name in (name for name in draws if name in GEOMETRIC):
            out["affine"] = if_chosen(name, out.get("affine", _identity("affine", n)))
        for name in ("color", "cutout"):
            if name in draws:
                out[name] = if_chosen(name, _identity(name, n))
        return out

    def apply(self, images: torch.Tensor, draw: Draw) -> torch.Tensor:
        """Augment a batch (N, C, H, W), in the order of the draw."""
        for name, value in draw.items():
            images = _APPLY[name](images, value)
        return images


def _draw_color(dsa: DSA, stream: AnyStream, n: int, height: int, width: int) -> torch.Tensor:
    u = stream.uniform(n, 3)
    return torch.stack([(u[..., 0] - 0.5) * dsa.brightness, u[..., 1] * dsa.saturation, u[..., 2] + dsa.contrast], -1)


def _draw_crop(dsa: DSA, stream: AnyStream, n: int, height: int, width: int) -> torch.Tensor:
    down, across = int(height * dsa.crop + 0.5), int(width * dsa.crop + 0.5)
    return shifts(
        (stream.fold("x").integers(2 * across + 1, n) - across).float(), (stream.fold("y").integers(2 * down + 1, n) - down).float()
    )


def _draw_cutout(dsa: DSA, stream: AnyStream, n: int, height: int, width: int) -> torch.Tensor:
    sides = []
    for axis, length in (("y", height), ("x", width)):
        box = int(length * dsa.cutout + 0.5)
        start = stream.fold(axis).integers(length + 1 - box % 2, n) - box // 2
        # The public code clamps each index into the image, so a box that would leave it still zeroes the border line. A box of
        # no size (end before start) zeroes nothing.
        last = start + box - 1
        sides += [start.clamp(0, length - 1), last.clamp(0, length - 1) if box else torch.full_like(last, -1)]
    return torch.stack(sides, -1).float()


def _draw_flip(dsa: DSA, stream: AnyStream, n: int, height: int, width: int) -> torch.Tensor:
    mirrored = (stream.uniform(n) < dsa.flip).float()
    return stretches(1.0 - 2.0 * mirrored, torch.ones_like(mirrored))


def _draw_scale(dsa: DSA, stream: AnyStream, n: int, height: int, width: int) -> torch.Tensor:
    low, high = 1 / dsa.scale, dsa.scale
    across, down = (stream.fold(axis).uniform(n) * (high - low) + low for axis in ("x", "y"))
    return stretches(across, down)


def _draw_rotate(dsa: DSA, stream: AnyStream, n: int, height: int, width: int) -> torch.Tensor:
    return rotations((2 * stream.uniform(n) - 1) * dsa.rotate, height, width)


def _identity(name: str, n: int) -> torch.Tensor:
    one = {"affine": [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], "color": [0.0, 1.0, 1.0], "cutout": [0.0, -1.0, 0.0, -1.0]}[name]
    value = torch.tensor(one)
    return value.expand(n, *value.shape)


def _apply_color(images: torch.Tensor, draw: torch.Tensor) -> torch.Tensor:
    shift, saturation, contrast = draw.to(images)[:, :, None, None, None].unbind(1)
    images = images + shift
    # factor * x + (1 - factor) * mean, so that a factor of one is exactly no change
    images = images * saturation + images.mean(1, keepdim=True) * (1 - saturation)
    return images * contrast + images.mean((1, 2, 3), keepdim=True) * (1 - contrast)


def _apply_cutout(images: torch.Tensor, draw: torch.Tensor) -> torch.Tensor:
    top, bottom, left, right = draw.to(images.device)[:, :, None, None, None].unbind(1)
    y = torch.arange(images.shape[2], device=images.device)[:, None]
    x = torch.arange(images.shape[3], device=images.device)
    box = (y >= top) & (y <= bottom) & (x >= left) & (x <= right)
    return images * (~box).to(images.dtype)


_DRAW: dict[str, Callable[[DSA, AnyStream, int, int, int], torch.Tensor]] = {
    "color": _draw_color,
    "crop": _draw_crop,
    "cutout": _draw_cutout,
    "flip": _draw_flip,
    "scale": _draw_scale,
    "rotate": _draw_rotate,
}
_APPLY: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "color": _apply_color,
    "cutout": _apply_cutout,
    "affine": affine,
    **dict.fromkeys(GEOMETRIC, affine),
}

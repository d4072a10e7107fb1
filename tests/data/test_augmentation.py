"""Augmentation: parity with torch's own sampler and with loops written from DSA's public code; derivatives; vmap; streams."""

import math

import pytest
import torch
import torch.nn.functional as F

from distilkit.data.augmentation import DSA, FlipRotate
from distilkit.data.augmentation.base import sample_each
from distilkit.data.augmentation.geometry import affine, in_pixels, rotations, shifts, stretches
from distilkit.errors import CombinationError, FieldError
from distilkit.functional.streams import Stream

# One line a component: every test below takes each.
AUGMENTATIONS = {
    "FlipRotate": FlipRotate(),
    "DSA": DSA(),
    "DSA per image": DSA(siamese=False),
    "DSA multiple": DSA(mode="multiple"),
    "DSA multiple per image": DSA(mode="multiple", siamese=False),
    "DSA color": DSA("color"),
}
STREAM = Stream(0).fold("augment")


@pytest.fixture(params=AUGMENTATIONS.values(), ids=AUGMENTATIONS.keys())
def augment(request):
    return request.param


def images(n=3, channels=3, height=6, width=6, dtype=torch.float64):
    return torch.rand(n, channels, height, width, dtype=dtype, generator=torch.Generator().manual_seed(1))


def theta_of(degrees):
    """Rotation as DSA's and the paper's code write it, for affine_grid."""
    angle = torch.as_tensor(degrees, dtype=torch.float64) * math.pi / 180
    zero = torch.zeros_like(angle)
    return torch.stack([torch.stack([angle.cos(), (-angle).sin(), zero], -1), torch.stack([angle.sin(), angle.cos(), zero], -1)], -2)


def reference(x, theta):
    return F.grid_sample(x, F.affine_grid(theta, x.shape, align_corners=False), mode="bilinear", padding_mode="zeros", align_corners=False)


@pytest.mark.parametrize("size", [(8, 8), (7, 5), (5, 12)])
@pytest.mark.parametrize("degrees", [15.0, -15.0, 3.7, -90.0, 137.0])
def test_rotation_is_grid_sample(size, degrees):
    x = images(2, 3, *size)
    ours = affine(x, rotations(torch.full((2,), degrees, dtype=torch.float64), *size))
    torch.testing.assert_close(ours, reference(x, theta_of([degrees] * 2)), rtol=0, atol=1e-13)


@pytest.mark.parametrize("size", [(8, 8), (7, 5)])
def test_any_affine_map_is_grid_sample(size):
    x = images(4, 2, *size)
    theta = torch.randn(4, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(affine(x, in_pixels(theta, *size)), reference(x, theta), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [3, 8, 28, 33])
def test_flips_and_shifts_are_exact(dtype, width):
    x = images(1, 2, 5, width, dtype=torch.float64).to(dtype)
    one = torch.ones(1)
    assert torch.equal(affine(x, stretches(-one, one)), x.flip(3))
    moved = affine(x, shifts(2 * one, -one))  # the input two pixels to the right and one above
    assert torch.equal(moved[:, :, 1:, : width - 2], x[:, :, :-1, 2:])
    assert not moved[:, :, 0].any()
    assert not moved[..., width - 2 :].any()
    assert moved.dtype == dtype


def test_flip_rotate_does_one_or_the_other_for_the_whole_batch():
    augment, x = FlipRotate(), images(40, 1, 5, 5)
    seen = set()
    for step in range(20):
        draw = augment.sample(STREAM.fold(step), x.shape)
        y = augment.apply(x, draw)
        is_flip = [bool(torch.equal(a, b)) for a, b in zip(y, x.flip(3), strict=True)]
        is_same = [bool(torch.equal(a, b)) for a, b in zip(y, x, strict=True)]
        flipping = all(f or s for f, s in zip(is_flip, is_same, strict=True))
        seen.add(flipping)
        if flipping:
            assert 5 <= sum(is_flip) <= 35  # binomial(40, 0.5): beyond 4.7 standard deviations
        else:
            assert not any(is_flip)
            angle = torch.atan2(draw["matrix"][:, 1, 0], draw["matrix"][:, 0, 0]) * 180 / math.pi
            assert angle.abs().max() <= 15.0 + 1e-4
            assert angle.min() < -5  # both signs, each image its own: P(fail) < 0.7^40
            assert angle.max() > 5
    assert seen == {True, False}


def test_a_draw_depends_on_the_stream_only(augment):
    shape = (4, 3, 6, 6)
    first, again, other = (augment.sample(STREAM.fold(i), shape) for i in (0, 0, 1))
    assert first.keys() == again.keys()
    assert all(torch.equal(first[k], again[k]) for k in first)
    many = [augment.sample(STREAM.fold(i), shape) for i in range(8)]
    assert any(not torch.equal(many[0][k], m[k]) for m in many for k in m)
    assert first.keys() == other.keys()  # so that a captured or compiled apply always meets the same tree
    assert all(first[k].shape == other[k].shape and first[k].dtype == other[k].dtype for k in first)


@pytest.mark.parametrize("n", [1, 5, 40])
def test_draws_made_together_are_those_made_alone(augment, n):
    """To the bit, so that it does not matter how many steps are drawn at a time."""
    streams, shape = [STREAM.fold(k) for k in range(30)], (n, 3, 7, 6)
    for stream, found in zip(streams, sample_each(augment, streams, [shape] * 30), strict=True):
        alone = augment.sample(stream, shape)
        assert list(found) == list(alone)  # the order is that in which they are applied
        assert all(torch.equal(found[k], alone[k]) and found[k].dtype == alone[k].dtype for k in alone)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")  # torch 2.15 warns about itself when jvp is first used
def test_second_derivatives_forward_and_reverse(augment):
    x = images(2, 3, 4, 5)
    for step in range(3):
        draw = augment.sample(STREAM.fold(step), x.shape)

        def f(x, draw=draw):
            return augment.apply(x, draw).pow(3).sum()

        direction = torch.randn_like(x)
        forward = torch.func.jvp(torch.func.grad(f), (x,), (direction,))[1]
        backward = torch.func.grad(lambda x, f=f, d=direction: (torch.func.grad(f)(x) * d).sum())(x)
        torch.testing.assert_close(forward, backward, rtol=0, atol=1e-12)
        eps = 1e-6
        grad = torch.func.grad(f)
        numeric = (grad(x + eps * direction) - grad(x - eps * direction)) / (2 * eps)
        torch.testing.assert_close(forward, numeric, rtol=1e-6, atol=1e-7)


def test_vmap_over_images_and_draws(augment):
    x = torch.stack([images(2), images(2) + 1])
    draws = [augment.sample(STREAM.fold(i), x.shape[1:]) for i in range(2)]
    together = {k: torch.stack([d[k] for d in draws]) for k in draws[0]}
    y = torch.vmap(augment.apply)(x, together)
    torch.testing.assert_close(y, torch.stack([augment.apply(x[i], draws[i]) for i in range(2)]), rtol=0, atol=1e-14)
    both = torch.vmap(augment.apply, in_dims=(0, None))(x, draws[0])
    torch.testing.assert_close(both[1], augment.apply(x[1], draws[0]), rtol=0, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_dtype_is_kept(augment, dtype):
    x = images(dtype=torch.float64).to(dtype)
    assert augment.apply(x, augment.sample(STREAM, x.shape)).dtype == dtype


def test_siamese_draws_fit_batches_of_any_size():
    augment = DSA()
    small, large = augment.sample(STREAM, (10, 3, 8, 8)), augment.sample(STREAM, (500, 3, 8, 8))
    assert small.keys() == large.keys()
    assert all(torch.equal(small[k], large[k]) for k in small)
    one = images(1, 3, 8, 8)
    y = augment.apply(one.expand(5, -1, -1, -1), small)
    torch.testing.assert_close(y, augment.apply(one, small).expand(5, -1, -1, -1), rtol=0, atol=1e-15)


def dsa_reference(x, name, draw):
    """DSA's public code, one image at a time, from the numbers of a draw."""
    out = x.clone()
    n, _, height, width = x.shape
    for i in range(n):
        d = draw[name][i]
        if name == "color":
            y = x[i] + d[0].item()
            mean = y.mean(0, keepdim=True)
            y = (y - mean) * d[1].item() + mean
            out[i] = (y - y.mean()) * d[2].item() + y.mean()
        elif name == "cutout":
            top, bottom, left, right = (int(v) for v in d)
            out[i, :, top : bottom + 1, left : right + 1] = 0
        elif name == "crop":
            padded = F.pad(x[i], [width] * 2 + [height] * 2)
            r, c = height + int(d[1, 2]), width + int(d[0, 2])
            out[i] = padded[:, r : r + height, c : c + width]
        else:
            theta = d.double()[None] / torch.tensor([[1, width / height, width / 2], [height / width, 1, height / 2]]).double()
            out[i] = reference(x[i : i + 1], theta)[0]
    return out


@pytest.mark.parametrize("name", ["color", "crop", "cutout", "flip", "scale", "rotate"])
def test_each_strategy_is_as_published(name):
    x = images(6, 3, 8, 10)
    augment = DSA(name, siamese=False, mode="multiple")
    for step in range(5):
        draw = augment.sample(STREAM.fold(step), x.shape)
        torch.testing.assert_close(augment.apply(x, draw), dsa_reference(x, name, draw), rtol=0, atol=1e-7)


def test_ranges_are_as_published():
    n, shape = 4000, (4000, 3, 32, 32)
    draw = DSA(siamese=False, mode="multiple").sample(STREAM, shape)
    near = {"atol": 0.02, "rtol": 0}  # the extremes of 4000 uniform draws are within 0.02 of the ends but for chance < 1e-8

    def ends(value, low, high, **tolerance):
        torch.testing.assert_close(torch.stack([value.min(), value.max()]), torch.tensor([float(low), float(high)]), **(tolerance or near))

    ends(draw["color"][:, 0], -0.5, 0.5)
    ends(draw["color"][:, 1], 0.0, 2.0)
    ends(draw["color"][:, 2], 0.5, 1.5)
    ends(draw["crop"][:, 0, 2], -4, 4)
    ends(draw["crop"][:, 1, 2], -4, 4)
    ends(draw["scale"][:, 0, 0], 1 / 1.2, 1.2)
    ends(draw["scale"][:, 1, 1], 1 / 1.2, 1.2)
    ends(torch.asin(draw["rotate"][:, 1, 0]) * 180 / math.pi, -15, 15, atol=0.2, rtol=0)
    assert abs((draw["flip"][:, 0, 0] < 0).float().mean() - 0.5) < 0.05  # 6 standard deviations
    ends(draw["cutout"][:, 0], 0, 24)  # the centre of an even box is on 0..32, both ends included
    ends(draw["cutout"][:, 3], 7, 31)
    sides = draw["cutout"][:, 1] - draw["cutout"][:, 0] + 1
    assert sides.max() == 16  # half of 32
    assert sides.min() == 1 + 16 // 2 - 1  # a box whose centre lies on the border
    assert n == len(sides)


def test_single_mode_applies_exactly_one():
    x = images(1, 3, 8, 8)
    augment = DSA("cutout_flip")
    outcomes = [augment.apply(x, augment.sample(STREAM.fold(i), x.shape)) for i in range(40)]
    zeroed = [bool((y == 0).any()) for y in outcomes]
    assert 8 < sum(zeroed) < 32  # binomial(40, 0.5)
    for y, z in zip(outcomes, zeroed, strict=True):
        assert z or torch.equal(y, x) or torch.equal(y, x.flip(3))


def test_refusals():
    with pytest.raises(FieldError, match="strategy") as caught:
        DSA("color_cutut")
    assert 'strategy="color_cutout"' in str(caught.value)
    with pytest.raises(FieldError):
        FlipRotate(degrees=400)
    with pytest.raises(CombinationError, match="needs images"):
        FlipRotate().sample(STREAM, (5, 12))

"""Preprocessing: parity with independent computations, inverses, and what keeps two spaces apart."""

import json

import numpy as np
import pytest
import torch

from distilkit.data.preprocessing import Identity, KorniaZCA, Standardize, Whiten, from_arrays, require_same
from distilkit.data.sources.arrays import Arrays
from distilkit.errors import CombinationError, FieldError
from distilkit.functional.streams import Stream

# One line a kind: every test with the fixture takes each.
KINDS = {"Identity": Identity(), "Standardize": Standardize(), "Whiten": Whiten(), "KorniaZCA": KorniaZCA()}


@pytest.fixture(params=KINDS.values(), ids=KINDS.keys())
def declaration(request):
    return request.param


def images(n=60, shape=(3, 4, 5), seed=0):
    """Images in [0, 1] whose pixels correlate, as those of photographs do."""
    noise = torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed))
    return (noise + noise.roll(1, -1)) / 2


def unit(x):
    """Each image less its mean, over its length."""
    x = np.asarray(x, np.float64).reshape(len(x), -1)
    x = x - x.mean(1, keepdims=True)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def paper_whitening(train, test, regularisation=0.1):
    """Section 1 of the method, in float64 numpy with a symmetric solver; independent of ours."""
    u = unit(train)
    values, vectors = np.linalg.eigh(u.T @ u / len(u))
    w = vectors @ np.diag((values + regularisation * values.sum() / len(values)) ** -0.5) @ vectors.T
    return (unit(test) @ w).reshape(np.shape(test))


def kornia_whitening(train, test, eps=0.1):
    """What kornia's source does: feature mean, covariance over N - 1, singular vectors."""
    x = np.asarray(train, np.float64).reshape(len(train), -1)
    mean = x.mean(0)
    left, values, _ = np.linalg.svd((x - mean).T @ (x - mean) / (len(x) - 1))
    t = left @ np.diag(1 / np.sqrt(values + eps)) @ left.T
    return ((np.asarray(test, np.float64).reshape(len(test), -1) - mean) @ t).reshape(np.shape(test))


def test_standardize_is_the_textbook_formula():
    x, other = images(), images(seed=1)
    mean, std = x.double().numpy().mean((0, 2, 3), keepdims=True), x.double().numpy().std((0, 2, 3), keepdims=True)
    got = Standardize().fit(x).forward(other)
    np.testing.assert_allclose(got.numpy(), (other.double().numpy() - mean) / std, rtol=0, atol=1e-5)


def test_standardize_of_a_constant_channel_and_of_features():
    x = images()
    x[:, 1] = 0.5
    y = Standardize().fit(x).forward(x)
    assert y[:, 1].abs().max() < 1e-6
    features = torch.rand(100, 7, generator=torch.Generator().manual_seed(3)) * torch.arange(1, 8)
    z = Standardize().fit(features).forward(features)
    torch.testing.assert_close(z.std(0, unbiased=False), torch.ones(7), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("ours", "truth"), [(Whiten(), paper_whitening), (KorniaZCA(), kornia_whitening)], ids=["Whiten", "KorniaZCA"])
@pytest.mark.parametrize("count", [200, 30])  # 30 images of 60 features: a covariance of less than full rank
def test_whitening_parity(ours, truth, count):
    train, test = images(count), images(20, seed=1)
    # float32 results of size about 10: 1e-5 is ten roundings
    np.testing.assert_allclose(ours.fit(train).forward(test).numpy(), truth(train.numpy(), test.numpy()), rtol=0, atol=1e-5)


def test_whitened_training_images_are_as_white_as_the_regularisation_lets_them():
    """The second moments of whitened training images have the eigenvalues lambda / (lambda + r mean(lambda))."""
    x = images(500)
    u = x.double().flatten(1)
    u = u - u.mean(1, keepdim=True)
    u = u / u.norm(dim=1, keepdim=True)
    for r in (0.01, 0.1, 10.0):
        y = Whiten(regularisation=r).fit(x).forward(x).flatten(1).double()
        before, after = (torch.linalg.eigvalsh(v.T @ v / len(v)) for v in (u, y))
        torch.testing.assert_close(after, before / (before + r * before.mean()), rtol=0, atol=1e-6)


def test_parity_with_kornia_itself():
    enhance = pytest.importorskip("kornia.enhance")
    train, test = images(200), images(20, seed=1)
    theirs = enhance.ZCAWhitening(eps=0.1, compute_inv=True).fit(train)
    ours = KorniaZCA().fit(train)
    torch.testing.assert_close(ours.forward(test), theirs(test), rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.inverse(ours.forward(test)), test, rtol=0, atol=1e-6)


def test_whiten_inverse_of_a_distilled_image_looks_like_an_average_photograph():
    x = images()
    fitted = Whiten().fit(x)
    for size in (0.1, 16.0):  # whatever its norm in whitened space
        seen = fitted.inverse(size * torch.randn(5, 3, 4, 5, generator=torch.Generator().manual_seed(0)))
        mean = x.flatten(1).mean(1)
        torch.testing.assert_close(seen.flatten(1).mean(1), mean.mean().expand(5), rtol=0, atol=0.1)
        norm = (x.flatten(1) - mean[:, None]).norm(dim=1).mean()
        torch.testing.assert_close((seen - fitted.scale[0]).flatten(1).norm(dim=1), norm.expand(5), rtol=1e-4, atol=0)


def test_blank_images_stay_finite():
    x = images()
    x[0] = 0.3
    fitted = Whiten().fit(x)
    y, mean, norm = fitted.forward_with_scale(x)
    assert torch.isfinite(y).all()
    torch.testing.assert_close(fitted.inverse(y, mean, norm), x, rtol=0, atol=1e-6)


def test_inverse(declaration):
    x, other = images(), images(seed=1)
    fitted = declaration.fit(x)
    if hasattr(fitted, "forward_with_scale"):
        back = fitted.inverse(*fitted.forward_with_scale(other))
    else:
        back = fitted.inverse(fitted.forward(other))
    torch.testing.assert_close(back, other, rtol=0, atol=1e-6)


def test_round_trip_through_arrays(declaration):
    x = images()
    fitted = declaration.fit(x)
    meta, arrays = fitted.to_arrays()
    again = from_arrays(json.loads(json.dumps(meta)), {k: v.copy() for k, v in arrays.items()})
    assert torch.equal(again.forward(x), fitted.forward(x))
    assert torch.equal(again.inverse(x), fitted.inverse(x))
    assert again.fingerprint() == fitted.fingerprint()
    require_same(fitted, again)
    meta_without = {k: v for k, v in meta.items() if k != "fitted_on"}  # statistics from elsewhere still have a name
    assert isinstance(from_arrays(meta_without, arrays).fingerprint(), str)


def test_a_fitted_value_is_its_own_declaration(declaration):
    fitted = declaration.fit(images())
    assert fitted.fit(images(seed=5)) is fitted


def test_fit_does_not_change_its_input(declaration):
    x = images()
    kept = x.clone()
    declaration.fit(x).forward(x)
    assert torch.equal(x, kept)


def test_fingerprints_tell_spaces_apart():
    x = images()
    all_kinds = [*KINDS.values(), Whiten(regularisation=0.2), KorniaZCA(eps=0.2)]
    prints = [d.fit(x).fingerprint() for d in all_kinds]
    assert len(set(prints)) == len(prints)
    for declaration in (Standardize(), Whiten(), KorniaZCA()):
        changed = x.clone()
        changed[0, 0, 0, 0] += 1e-3
        assert declaration.fit(changed).fingerprint() != declaration.fit(x).fingerprint()
        with pytest.raises(CombinationError, match="different training images"):
            require_same(declaration.fit(x), declaration.fit(changed))
    with pytest.raises(CombinationError, match="different spaces"):
        require_same(Whiten().fit(x), KorniaZCA().fit(x))


@pytest.mark.parametrize("kind", [Standardize(), Whiten(), KorniaZCA()])
def test_poisoned_test_images_change_nothing_but_themselves(kind):
    x, y = images(100), torch.arange(100) % 2
    clean, poison = images(30, seed=1), torch.full((30, 3, 4, 5), 1e6)
    bundles = [
        Arrays(train_images=x, train_labels=y, test_images=t, test_labels=y[:30], preprocessing=kind).load(Stream(0))
        for t in (clean, poison)
    ]
    for part in ("train", "validation"):
        assert torch.equal(getattr(bundles[0], part).images, getattr(bundles[1], part).images)
    assert bundles[0].preprocessing.fingerprint() == bundles[1].preprocessing.fingerprint()
    for a, b in zip(*(bundle.preprocessing.to_arrays()[1].values() for bundle in bundles), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_cache_is_used_and_survives_damage(tmp_path, monkeypatch):
    monkeypatch.setenv("DISTILKIT_CACHE", str(tmp_path / "deep" / "cache"))
    x = images()
    first = Whiten().fit(x)
    (file,) = (tmp_path / "deep" / "cache").iterdir()
    np.savez(file, matrix=first.matrix * 2, scale=first.scale)  # a mark that only the cache can have
    np.testing.assert_array_equal(Whiten().fit(x).matrix, first.matrix * 2)
    file.write_bytes(b"PK\x03\x04 half a file")
    np.testing.assert_array_equal(Whiten().fit(x).matrix, first.matrix)
    content = file.read_bytes()
    for place in range(0, len(content), 41):  # any byte
        file.write_bytes(content[:place] + bytes([content[place] ^ 16]) + content[place + 1 :])
        np.testing.assert_array_equal(Whiten().fit(x).matrix, first.matrix)
    file.unlink()
    file.parent.rmdir()
    file.parent.write_text("not a folder")
    np.testing.assert_array_equal(Whiten().fit(x).matrix, first.matrix)


def test_refusals():
    with pytest.raises(FieldError, match="preprocessing") as caught:
        from_arrays({"kind": "Whitten"}, {})
    assert "Whiten" in str(caught.value)
    with pytest.raises(FieldError):
        Whiten(regularisation=0)
    with pytest.raises(CombinationError, match="at least 2"):
        KorniaZCA().fit(images(1))


def test_whitening_of_real_photographs(cifar_test):
    pixels = torch.from_numpy(cifar_test[0]).float()[:, :, ::4, ::4] / 255  # every fourth pixel: 192 features, so that it is quick
    train, test = pixels[:2000], pixels[2000:]
    for ours, truth in ((Whiten(), paper_whitening), (KorniaZCA(), kornia_whitening)):
        fitted = ours.fit(train)
        np.testing.assert_allclose(fitted.forward(test).numpy(), truth(train.numpy(), test.numpy()), rtol=0, atol=1e-5)
    y, mean, norm = Whiten().fit(train).forward_with_scale(test)
    assert (Whiten().fit(train).inverse(y, mean, norm) - test).abs().max() < 1e-5


@pytest.mark.slow
def test_whitening_of_cifar10(cifar_npz):
    """Of a twelfth of it, whose matrix has all of its rows and columns: by products of whitened images, which take no other solver."""
    with np.load(cifar_npz) as kept:
        train, test = kept["train_images"][::12], kept["test_images"][:1000]
    fitted = Whiten().fit(torch.from_numpy(train).float() / 255)
    held = torch.from_numpy(test).float() / 255
    y, mean, norm = fitted.forward_with_scale(held)
    assert (fitted.inverse(y, mean, norm) - held).abs().max() < 1e-4
    u, v = unit(train), unit(test)
    matrix = u.T @ u / len(u)
    matrix += 0.1 * np.trace(matrix) / len(matrix) * np.eye(len(matrix))
    products, white = v @ np.linalg.solve(matrix, v.T), y.flatten(1).double().numpy()
    np.testing.assert_allclose(white @ white.T, products, rtol=0, atol=1e-5 * products.max())

"""Dropout in a user's module: the masks of torch's own layers, drawn with the step, and the same gradient through them by every adjoint."""

import pytest
import torch
from torch import nn

import distilkit as dk
from distilkit.errors import CombinationError, DistilkitError
from distilkit.evaluation.training import draws
from distilkit.networks.module import Functional
from distilkit.truncation import Window
from distilkit.unroll.inner import OuterVariables
from distilkit.unroller import RealBatch

STREAM = dk.Stream(3).fold("test of dropout")
LAYERS = {
    "Dropout": (lambda p: nn.Sequential(nn.Flatten(), nn.Dropout(p), nn.Linear(48, 5)), (3, 4, 4)),
    "Dropout1d": (lambda p: nn.Sequential(nn.Flatten(2), nn.Dropout1d(p), nn.Flatten(), nn.Linear(48, 5)), (3, 4, 4)),
    "Dropout2d": (lambda p: nn.Sequential(nn.Dropout2d(p), nn.Flatten(), nn.Linear(48, 5)), (3, 4, 4)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_masks_are_those_of_torchs_layer(name):
    """Entries that go together go together, a share p of them, and what is left is scaled alike: seen on the layer's own output."""
    make, shape = LAYERS[name]
    module = make(0.25)
    net = Functional(lambda: make(0.25)).bind(shape, 5)
    (drawn,) = net.sample(STREAM, 4000).values()
    layer = next(one for one in module if isinstance(one, tuple(getattr(nn, kind) for kind in LAYERS)))
    ones = torch.ones(4000, *shape) if name == "Dropout2d" else torch.ones(4000, *((48,) if name == "Dropout" else (3, 16)))
    theirs, ours = layer(ones), ones * drawn
    assert theirs.unique().tolist() == ours.unique().tolist()
    assert float(ours.mean()) == pytest.approx(1, abs=0.03)
    channels = ours.flatten(2) if ours.ndim > 2 else ours[..., None]
    assert torch.equal(channels.amax(-1), channels.amin(-1))
    assert len(torch.unique(drawn.flatten(1)[:50], dim=0)) > 3  # images differ


def test_a_step_drops_what_was_drawn_and_a_test_drops_nothing():
    make, shape = LAYERS["Dropout"]
    learner = dk.Learner(Functional(lambda: make(0.5)), dk.SGD(lr=0.1)).bind(shape, 5)
    params, images = learner.init(STREAM).params, STREAM.normal(6, *shape)
    drawn = learner.draw(STREAM, torch.arange(6), shape)
    mask = drawn.network["1.mask"]
    weight, bias = (learner.layout.unravel(params)[name] for name in ("2.weight", "2.bias"))
    torch.testing.assert_close(learner.logits(params, images, drawn=drawn.network), (images.flatten(1) * mask) @ weight.T + bias)
    torch.testing.assert_close(learner.logits(params, images), images.flatten(1) @ weight.T + bias)
    again = learner.draw(STREAM, torch.arange(6), shape)
    assert torch.equal(again.network["1.mask"], mask)
    assert not torch.equal(learner.draw(STREAM.fold(1), torch.arange(6), shape).network["1.mask"], mask)


def learner_of(**more):
    def make():
        return nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Dropout2d(0.3), nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Dropout(0.4), nn.Linear(8, 5)
        )

    return dk.Learner(Functional(make), dk.Adam(lr=0.05), **more).bind((3, 4, 4), 5)


UNROLLERS = {
    "replay": dk.Unroller(),
    "eager": dk.Unroller(compile="eager"),
    "kept": dk.Unroller(dk.ReplayAdjoint(keep_last=2)),
    "forward over reverse": dk.Unroller(dk.ReplayAdjoint("forward-over-reverse")),
    "side by side": dk.Unroller(networks_per_step=2, side_by_side="on"),
    "one after the other": dk.Unroller(networks_per_step=2, side_by_side="off"),
}


@pytest.mark.parametrize("name", UNROLLERS)
@pytest.mark.parametrize("batch", [None, 1])
def test_the_meta_gradient_goes_through_it(name, batch):
    """In float64, beside whole-window autograd: masks are the same on the way forwards and back."""
    unroller, learner = UNROLLERS[name], learner_of(batch_per_class=batch)
    images, labels = STREAM.normal(10, 3, 4, 4, dtype=torch.float64), torch.eye(5, dtype=torch.float64).repeat(2, 1)
    leaves = OuterVariables(images, labels, torch.tensor(0.05, dtype=torch.float64).log())
    real = RealBatch(STREAM.fold("real").normal(12, 3, 4, 4, dtype=torch.float64), torch.eye(5, dtype=torch.float64)[torch.arange(12) % 5])
    truth = dk.Unroller(dk.AutogradAdjoint(), networks_per_step=unroller.networks_per_step, side_by_side="off")
    found, right = (one.meta_gradient(learner, leaves, Window(2, 6), real, STREAM) for one in (unroller, truth))
    torch.testing.assert_close(found.images, right.images, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.loss, right.loss, rtol=1e-9, atol=1e-12)
    other = unroller.meta_gradient(learner, leaves, Window(2, 6), real, STREAM.fold("another"))
    assert not torch.allclose(other.images, found.images)


def test_networks_that_are_judged_drop_too():
    learner = learner_of()
    bundle = dk.Arrays(train_images=torch.rand(40, 3, 4, 4), train_labels=torch.arange(40) % 5).load(dk.Stream(0))
    from distilkit.evaluation.baselines import full_data

    training = full_data(bundle, 8)
    assert draws(learner, training, [STREAM], [0])[0].network["6.mask"].shape == (8, 8)


def test_a_run_with_dropout_goes_to_its_end(tmp_path):
    def make():
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 10))

    distiller = dk.Distiller(
        dk.Digits(),
        dk.Learner(Functional(make), dk.Adam(lr=0.01)),
        dk.RandomTruncation(horizon=6, window=3),
        outer=dk.Outer(steps=3, batch_size=32),
        evaluation=dk.Evaluation(seeds=2, steps=(5, 10), baselines=("random real",)),
    )
    tree = distiller.run(tmp_path / "run")
    assert tree.attrs["finished"]
    assert float(tree["evaluation"]["accuracy"].mean()) > 0.05


class TimeFirst(nn.Module):
    """Its dropout sees a row for each column of the image, not for each image."""

    def __init__(self):
        super().__init__()
        self.drop, self.head = nn.Dropout(0.5), nn.Linear(48, 5)

    def forward(self, x):
        return self.head(self.drop(x.permute(3, 0, 1, 2)).permute(1, 2, 3, 0).flatten(1))


def test_what_cannot_be_is_said():
    with pytest.raises(DistilkitError, match="shape of what 1 drops is not known"):
        Functional(lambda: LAYERS["Dropout"][0](0.5)).sample(STREAM, 2)
    net = Functional(TimeFirst).bind((3, 4, 4), 5)
    with pytest.raises(CombinationError, match="called with 4 rows for 6 images"):
        net.apply(net.init(STREAM), torch.zeros(6, 3, 4, 4), net.sample(STREAM, 6))

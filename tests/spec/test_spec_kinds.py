"""The real table of kinds and the real `Distiller`; the other tests of this folder put their own in its place."""

import attrs
import pytest

from distilkit.spec import dumps, kinds, loads, to_tree


@pytest.fixture(autouse=True, scope="module")
def sample_kinds():
    """Hide the fixture of that name in conftest.py, so that the table stays as it is."""


@pytest.mark.parametrize(("slot", "kind"), [(slot, kind) for slot, names in kinds.KINDS.items() for kind in names])
def test_every_kind_is_an_attrs_class_of_its_name(slot, kind):
    cls = kinds.resolve(slot, kind)
    assert attrs.has(cls)
    assert cls.__name__ == kind


SPEC = """
title = "digits"
[data]
kind = "Digits"
[data.preprocessing]
kind = "Whiten"
[learner]
batch_per_class = 1
[learner.network]
kind = "ConvNet"
width = 32
[learner.optimizer]
kind = "Adam"
lr = 0.01
[truncation]
kind = "RandomTruncation"
horizon = 40
window = 20
[unroller.adjoint]
kind = "AutogradAdjoint"
[images]
start = "real"
[labels]
learn = true
[outer]
steps = 300
[outer.optimizer]
kind = "SGD"
lr = 0.5
[outer.clip]
kind = "none"
[evaluation]
seeds = 5
"""


def test_a_whole_pipeline():
    distiller = loads(SPEC, ["outer.augment.kind=FlipRotate"])
    assert type(distiller).__name__ == "Distiller"
    assert distiller.truncation.window == 20
    assert distiller.outer.clip is None
    assert distiller.outer.augment is not None
    assert loads(dumps(distiller)) == distiller
    assert to_tree(distiller)["data"]["preprocessing"]["kind"] == "Whiten"

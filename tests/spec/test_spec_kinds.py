"""The real table of kinds and the real `Distiller`; the other tests of this folder put their own in its place."""

import json
import re

import attrs
import pytest
from hypothesis import HealthCheck, given, reject, settings, strategies as st

from distilkit import Distiller
from distilkit.errors import DistilkitError
from distilkit.spec import PythonComponent, dumps, kinds, loads, to_tree
from distilkit.spec.hints import converted, is_table, settable


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


# Round trip of the real pipeline. What a field may hold is asked of the field itself, so that a new field, kind or part is met here
# without a line.
PLAIN = {
    "flags": (st.booleans(), [True]),
    "whole numbers": (st.integers(0, 40), [1, 4, 10, 18, 32]),
    "shares": (st.floats(0, 1), [0.0, 0.5, 1.0]),
    "numbers": (st.floats(0, 1e300), [2.0]),
    "texts": (st.text(max_size=6), ["a"]),
    "lists of whole numbers": (st.lists(st.integers(1, 64), min_size=1, max_size=3), [[1], [1, 2], [1, 2, 3]]),
    "pairs": (st.lists(st.floats(0, 1, exclude_max=True), min_size=2, max_size=2), [[0.5, 0.5]]),
}
PYTHON = {
    "data": st.builds(lambda v: PythonComponent("distilkit.data.sources:Digits", {"validation": v}), st.floats(0, 0.5)),
    "network": st.builds(lambda h: PythonComponent("distilkit.networks:MLP", {"hidden": h}), st.lists(st.integers(1, 9), min_size=1)),
    "optimizer": st.builds(lambda v: PythonComponent("distilkit.functional.optimizers:SGD", {"lr": v}), st.floats(0.01, 1)),
    "loss": st.builds(PythonComponent, st.just("distilkit.functional.losses:MSE")),
    "augmentation": st.builds(lambda v: PythonComponent("distilkit.data.augmentation:FlipRotate", {"degrees": v}), st.floats(0, 90)),
    "truncation": st.builds(lambda v: PythonComponent("distilkit.truncation:FullUnroll", {"horizon": v}), st.integers(1, 9)),
    "preprocessing": st.builds(PythonComponent, st.just("distilkit.data.preprocessing:Identity")),
    "adjoint": st.builds(PythonComponent, st.just("distilkit.unroll.adjoints:AutogradAdjoint")),
    "schedule": st.builds(PythonComponent, st.just("distilkit.functional.schedules:Cosine")),
}


def taken(field, value):
    try:
        converted(field, value)
    except DistilkitError:
        return False
    return True


def values(field, bare):
    """What a field of a component may hold."""
    part, slot = field.metadata.get("part"), field.metadata.get("slot")
    nothing = [st.none()] if field.metadata.get("optional") or (not is_table(field) and field.default is None) else []
    if part is not None:
        return st.one_of(*nothing, components(part, bare))
    if slot is not None:
        own = [PYTHON[slot]] if slot in kinds.PYTHON_SLOTS else []
        return st.one_of(*nothing, *own, *(components(kinds.resolve(slot, kind), bare) for kind in kinds.KINDS[slot]))
    words = re.findall(r'"([^"]+)"', field.metadata.get("allowed", ""))
    if words:
        return st.sampled_from(words) if taken(field, words[0]) else st.lists(st.sampled_from(words), unique=True)
    fitting = []
    for kind, examples in PLAIN.values():
        good = next((example for example in examples if taken(field, example)), None)
        if good is not None:
            fitting.append(kind.map(lambda v, good=good: v if taken(field, v) else good))
    assert fitting, f"no value is known for {field.name}"
    return st.one_of(*nothing, *fitting)


@st.composite
def components(draw, cls, bare=False):
    """A component with some of its fields set; where those do not go together, another with the required ones alone."""
    for only in (bare, bare, *[True] * 4):
        fields = [field for field in settable(cls).values() if field.default is attrs.NOTHING or (not only and draw(st.booleans()))]
        try:
            return cls(**{field.alias: draw(values(field, only)) for field in fields})
        except DistilkitError:
            continue
    return reject()


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])  # on a busy machine
@given(components(Distiller))
def test_round_trip_of_a_whole_pipeline(distiller):
    again = loads(dumps(distiller), trust=True)
    assert again == distiller
    # 1, 1.0 and True are equal in Python: JSON tells them apart.
    assert json.dumps(to_tree(again), sort_keys=True) == json.dumps(to_tree(distiller), sort_keys=True)

import json

import attrs
import pytest
import tomlkit
from hypothesis import given, strategies as st
from spec_samples import GOOD, MLP, SGD, Adam, Blocks, Constant, ConvNet, Digits, Images, Learner, Pipeline

from distilkit import fields
from distilkit.errors import DistilkitError
from distilkit.spec import PythonComponent, dumps, loads, to_tree

small = st.integers(1, 10**6)
rates = st.floats(0, 1e300, exclude_min=True) | small
shares = st.floats(0, 1, exclude_max=True)
sizes = st.lists(small, max_size=5).map(tuple)
# "kind" and "target" are keys of the table itself.
names = st.text(min_size=1, max_size=5).filter(lambda name: name not in ("kind", "target"))
values = st.recursive(
    st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)
users = st.dictionaries(names, values, max_size=4).map(lambda arguments: PythonComponent("spec_samples:UsersNetwork", arguments))
networks = (
    st.builds(ConvNet, small, st.integers(1, 5), st.sampled_from(["instance", "layer", "none"]), st.none() | sizes.filter(len))
    | st.builds(MLP, small, sizes)
    | users
)
optimizers = st.builds(SGD, rates, shares, st.just(False)) | st.builds(Adam, rates, st.tuples(shares, shares), st.none() | rates)
pipelines = st.builds(
    Pipeline,
    data=st.builds(Digits, small),
    learner=st.builds(Learner, networks, optimizers, st.none() | small),
    images=st.builds(Images, small, st.sampled_from(["noise", "real"])),
    boost=st.none() | st.builds(Blocks, sizes.filter(len)),
    schedule=st.none() | st.just(Constant()),
    warmup=st.none() | st.just(Constant()),
    title=st.text(st.characters(exclude_categories=("Cc", "Cs"))),
    seed=st.integers(0),
)


@given(pipelines)
def test_round_trip(pipeline):
    again = loads(dumps(pipeline), root=Pipeline, trust=True)
    assert again == pipeline
    # 1, 1.0 and True are equal in Python: JSON tells them apart.
    assert json.dumps(to_tree(again), sort_keys=True) == json.dumps(to_tree(pipeline), sort_keys=True)


@given(pipelines)
def test_the_tree_is_what_the_text_says(pipeline):
    assert tomlkit.parse(dumps(pipeline)).unwrap() == to_tree(pipeline)


def test_defaults_are_written_and_none_is_left_out():
    tree = to_tree(loads(GOOD, root=Pipeline))
    assert tree["learner"]["network"] == {"kind": "ConvNet", "width": 32, "depth": 3, "norm": "instance"}
    assert tree["schedule"] == {"kind": "Constant"}
    assert "boost" not in tree


def test_an_optional_component_that_was_taken_away():
    pipeline = loads(GOOD + '[schedule]\nkind = "none"', root=Pipeline)
    assert to_tree(pipeline)["schedule"] == {"kind": "none"}
    assert loads(dumps(pipeline), root=Pipeline).schedule is None


@attrs.frozen
class OwnNetwork:
    def init(self):
        return 1

    apply = init


@attrs.frozen
class Grown(Images):
    more: int = fields.integer(default=1)


@attrs.frozen
class Loose:
    anything: object = None
    sure: int | None = fields.integer(default=3, optional=True)


class OwnData:
    def load(self):
        return 1


BASE = Pipeline(data=Digits(), learner=Learner(ConvNet()))

# Each: a value that TOML cannot hold, the field that the message names.
UNWRITABLE = {
    "own component": (attrs.evolve(BASE, learner=Learner(OwnNetwork())), "learner.network is a OwnNetwork"),
    "other class for a kind": (attrs.evolve(BASE, data=OwnData()), "data is a OwnData"),
    "subclass of a part": (attrs.evolve(BASE, images=Grown()), "images is a Grown"),
    "object in a field": (Loose(object()), "anything is a object"),
    "object in a list": (Loose([1, None]), "anything is a NoneType"),
    "object in an argument": (Learner(PythonComponent("spec_samples:UsersNetwork", {"a": {"b": 1j}})), "network.a.b is a complex"),
    "None that is no default": (Loose(sure=None), "sure is None"),
}


@pytest.mark.parametrize("name", UNWRITABLE)
def test_what_cannot_be_written_is_named(name):
    value, fragment = UNWRITABLE[name]
    with pytest.raises(DistilkitError) as caught:
        dumps(value)
    assert fragment in caught.value.message
    assert "<class" not in str(caught.value)

"""The JSON schema takes what the components take, and nothing else; seen by another library, `jsonschema`."""

import json
import tomllib

import attrs
import jsonschema
import pytest
from hypothesis import given, strategies as st

from distilkit import recipes
from distilkit.errors import DistilkitError
from distilkit.spec import kinds
from distilkit.spec.hints import converted, is_table, settable
from distilkit.spec.schema import json_schema


@pytest.fixture(autouse=True, scope="module")
def sample_kinds():
    """Hide the fixture of that name in conftest.py, so that the table stays as it is."""


@pytest.fixture(scope="module")
def schema():
    return json_schema()


@pytest.fixture(scope="module")
def validator(schema):
    return jsonschema.Draft202012Validator(schema)


def test_it_is_a_schema_that_json_writes(schema):
    jsonschema.Draft202012Validator.check_schema(schema)
    assert json.loads(json.dumps(schema)) == schema


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_is_valid(name, validator):
    assert [error.message for error in validator.iter_errors(tomllib.loads(recipes.read(name)))] == []


def classes():
    """Every class that a spec may hold, each once."""
    found, waiting = (
        {},
        [kinds.import_name(kinds.ROOT), *(kinds.resolve(slot, kind) for slot, names in kinds.KINDS.items() for kind in names)],
    )
    while waiting:
        cls = waiting.pop()
        if cls in found:
            continue
        found[cls] = True
        waiting += [field.metadata["part"] for field in settable(cls).values() if "part" in field.metadata]
    return list(found)


PLAIN = [
    (cls, name, field)
    for cls in classes()
    for name, field in settable(cls).items()
    if not is_table(field) and not field.metadata.get("python")
]
NUMBERS = st.integers(-3, 2000) | st.sampled_from([0.0, 0.5, 1e-8, 0.999, 1.5, -0.1, 1e6])
VALUES = (
    NUMBERS | st.booleans() | st.text(max_size=3).filter(str.isprintable) | st.lists(NUMBERS | st.booleans() | st.just("a"), max_size=4)
)


@pytest.mark.parametrize(("cls", "name", "field"), PLAIN, ids=[f"{cls.__name__}.{name}" for cls, name, _ in PLAIN])
def test_a_field_and_its_schema_take_the_same(cls, name, field):
    own = jsonschema.Draft202012Validator(field.metadata["schema"])
    options = field.metadata.get("options", ())

    @given(VALUES | (st.sampled_from(options) if options else st.nothing()))
    def agree(value):
        try:
            converted(field, value)
            taken = True
        except DistilkitError:
            taken = False
        if taken != own.is_valid(value):
            # JSON Schema has no floats: 3.0 is a whole number there. Some fields have a check of their own beyond the schema.
            assert not taken
            assert has_whole_float(value) or name in STRICTER, value

    agree()


STRICTER = {
    "eps_root",
}


def has_whole_float(value):
    each = value if isinstance(value, list) else [value]
    return any(isinstance(one, float) and one.is_integer() for one in each)


WRONG = {
    "no data": lambda tree: tree.pop("data"),
    "an unknown key": lambda tree: tree.update(windw=3),
    "an unknown kind": lambda tree: tree["learner"]["network"].update(kind="ConvNett"),
    "no kind": lambda tree: tree["learner"]["network"].pop("kind"),
    "a key of another kind": lambda tree: tree["learner"]["network"].update(hidden=[3]),
    "a text for a number": lambda tree: tree["outer"].update(steps="400"),
    "too small": lambda tree: tree["truncation"].update(window=0),
    "an unknown word": lambda tree: tree["images"].update(start="reall"),
    "python without a target": lambda tree: tree.update(data={"kind": "python"}),
    "a word for a table": lambda tree: tree.update(data="CIFAR10"),
    "a number for a network": lambda tree: tree["learner"].update(network=3),
    "a number for what may be left out": lambda tree: tree.update(boost=3),
    "none where something must be": lambda tree: tree.update(data={"kind": "none"}),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_refused(name, validator):
    tree = tomllib.loads(recipes.read("fast/cifar10-ipc1"))
    assert validator.is_valid(tree)
    WRONG[name](tree)
    assert not validator.is_valid(tree)


def test_own_code_and_nothing_may_stand_where_they_can(validator):
    tree = tomllib.loads(recipes.read("fast/cifar10-ipc1"))
    tree["data"] = {"kind": "python", "target": "mine:Data", "size": 3}
    tree["outer"]["clip"] = {"kind": "none"}
    assert validator.is_valid(tree)


def test_editors_have_something_to_say(schema):
    """Each key of each kind says what it is, but for those that a class has from another one."""
    silent = [
        f"{kind}.{key}"
        for kind, table in schema["$defs"].items()
        for key, value in table["properties"].items()
        if "description" not in value and key not in ("kind", "target") and kind != "AdamW"
    ]
    assert silent == []


def test_every_class_of_a_spec_is_in_it(schema):
    assert {cls.__name__ for cls in classes() if attrs.has(cls)} - {"Distiller"} <= set(schema["$defs"])

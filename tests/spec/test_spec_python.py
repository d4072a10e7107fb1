import copy
import pickle

import pytest
from spec_samples import Pipeline

from distilkit.errors import DistilkitError, FieldError
from distilkit.spec import PythonComponent, SpecError, dumps, loads

SPEC = """
[data]
kind = "Digits"
[learner.network]
kind = "python"
target = "users_networks:wide"
width = 7
sizes = [1, 2]
options = {deep = true, names = ["a", "b"]}
"""

MODULE = """
class Wide:
    def __init__(self, width, sizes=(), options=None):
        self.width, self.sizes, self.options = width, sizes, options

    def init(self):
        return None

    def apply(self):
        return self.width

def wide(width, **more):
    return Wide(width, **more)

def nothing(**_):
    return object()

def broken(**_):
    raise RuntimeError("no such weights")

number = 3
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "users_networks.py").write_text(MODULE, encoding="utf-8")
    (tmp_path / "users_broken.py").write_text("import a_library_that_is_not_there\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    import sys

    sys.modules.pop("users_networks", None)


def fails(text, **options):
    with pytest.raises(SpecError) as caught:
        loads(text, root=Pipeline, **options)
    return caught.value.problems


def test_refused_without_trust(tmp_path, monkeypatch):
    (tmp_path / "users_networks.py").write_text("raise SystemExit('this code must not run')", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    (problem,) = fails(SPEC)
    assert problem.path == "learner.network.kind"
    assert "runs code" in problem.message
    assert "users_networks:wide" in problem.message
    assert "--trust" in problem.fix


@pytest.mark.usefixtures("folder")
def test_trusted():
    network = loads(SPEC, root=Pipeline, trust=True).learner.network
    assert network.apply() == 7
    assert network.options == {"deep": True, "names": ["a", "b"]}
    assert network.target == "users_networks:wide"
    with pytest.raises(AttributeError):
        network.depth  # noqa: B018


@pytest.mark.usefixtures("folder")
def test_round_trip():
    built = loads(SPEC, root=Pipeline, trust=True)
    assert loads(dumps(built), root=Pipeline, trust=True) == built
    assert 'target = "users_networks:wide"' in dumps(built)


@pytest.mark.usefixtures("folder")
def test_equal_hashable_and_copyable():
    one, same = (PythonComponent("users_networks:wide", {"width": 1, "sizes": [2]}) for _ in range(2))
    other = PythonComponent("users_networks:wide", {"width": 2})
    assert one == same
    assert hash(one) == hash(same)
    assert one != other
    assert copy.deepcopy(one) == one
    assert pickle.loads(pickle.dumps(PythonComponent("fractions:Fraction"))).numerator == 0


def test_the_folder_leaves_the_path_again(folder):
    import sys

    PythonComponent("users_networks:wide", {"width": 1})
    assert str(folder) not in sys.path


# Each: what to change in the spec, the path, a fragment of the message, the text to paste.
WRONG = {
    "no target": (
        'target = "users_networks:wide"',
        "",
        "learner.network.target",
        'is missing: it takes a text of the form "module:factory"',
    ),
    "target a number": ('"users_networks:wide"', "3", "learner.network.target", "3 cannot be"),
    "no colon": ("networks:wide", "networks.wide", "learner.network.target", '"module:factory"'),
    "no module": ("users_networks:", "no_networks_here:", "learner.network.target", "module no_networks_here of target"),
    "module breaks": ("users_networks:", "users_broken:", "learner.network.target", "a_library_that_is_not_there"),
    "no factory": (":wide", ":wid", "learner.network.target", "no function or class called wid."),
    "not callable": (":wide", ":number", "learner.network.target", "no function or class called number"),
    "wrong arguments": ("width = 7", "", "learner.network.target", "TypeError"),
    "factory raises": (":wide", ":broken", "learner.network.target", "RuntimeError: no such weights"),
    "not a network": (":wide", ":nothing", "learner.network", "an object with init and apply"),
    "a date": ("width = 7", "width = 2026-11-23", "learner.network.width", "2026-11-23 cannot be"),
}


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("name", WRONG)
def test_wrong_python_components(name):
    old, new, path, fragment = WRONG[name]
    (problem,) = fails(SPEC.replace(old, new), trust=True)
    assert problem.path == path
    assert fragment in problem.message
    assert "<class" not in problem.message


@pytest.mark.usefixtures("folder")
def test_the_error_says_where_the_users_code_raised():
    (problem,) = fails(SPEC.replace(":wide", ":broken"), trust=True)
    assert "users_networks.py, line 19" in problem.message


@pytest.mark.usefixtures("folder")
def test_the_nearest_factory():
    (problem,) = fails(SPEC.replace(":wide", ":wid"), trust=True)
    assert problem.fix in ('target = "users_networks:wide"', 'target = "users_networks:Wide"')


def test_from_python():
    with pytest.raises(FieldError, match="kind and target"):
        PythonComponent("fractions:Fraction", {"kind": 3})
    with pytest.raises(DistilkitError, match="ZeroDivisionError"):
        PythonComponent("fractions:Fraction", {"numerator": 1, "denominator": 0})

import subprocess
import sys

import pytest
from spec_samples import GOOD, SGD, Adam, Blocks, ConvNet, Digits, Images, Learner, Pipeline

from distilkit.errors import DistilkitError
from distilkit.spec import SpecError, load, loads


def fails(text, overrides=(), *, root=Pipeline, **options):
    with pytest.raises(SpecError) as caught:
        loads(text, overrides, root=root, **options)
    return caught.value


def good(old="", new=""):
    assert old in GOOD
    return GOOD.replace(old, new, 1)


def test_a_good_spec():
    expected = Pipeline(
        title="digits",
        seed=3,
        data=Digits(),
        learner=Learner(batch=10, network=ConvNet(width=32), optimizer=SGD(lr=0.1)),
        images=Images(start="real"),
    )
    assert loads(GOOD, root=Pipeline) == expected


def test_whole_numbers_are_fine_for_numbers_and_lists_become_tuples():
    built = loads(good("lr = 0.1", "lr = 1") + "[boost]\nsizes = [1, 4]", root=Pipeline)
    assert built.learner.optimizer.lr == 1
    assert built.boost == Blocks((1, 4))


def test_kind_none_takes_away_an_optional_component():
    assert loads(GOOD, root=Pipeline).schedule is not None
    assert loads(GOOD + '[schedule]\nkind = "none"', root=Pipeline).schedule is None
    assert loads(GOOD + '[boost]\nkind = "none"', root=Pipeline).boost is None


# Each: the spec, the path of its only problem, a fragment of the message, the text to paste.
WRONG = {
    "text for number": (
        good("lr = 0.1", 'lr = "0.1"'),
        "learner.optimizer.lr",
        'lr = "0.1" cannot be: it takes a number, above 0',
        "lr = 0.1",
    ),
    "out of range": (good("lr = 0.1", "lr = -1"), "learner.optimizer.lr", "lr = -1 cannot be", "lr = 1"),
    "not finite": (good("lr = 0.1", "lr = nan"), "learner.optimizer.lr", "nan cannot be", "lr = 1"),
    "flag for number": (good("lr = 0.1", "lr = true"), "learner.optimizer.lr", "true cannot be", "lr = 1"),
    "default offered": (good("seed = 3", "seed = []"), "seed", "[] cannot be: it takes a whole number", "seed = 0"),
    "float for integer": (good("width = 32", "width = 32.0"), "learner.network.width", "32.0 cannot be", "width = 32"),
    "fraction for integer": (good("width = 32", "width = 3.7"), "learner.network.width", "3.7 cannot be", "width = 128"),
    "flag for integer": (good("batch = 10", "batch = true"), "learner.batch", "(or left out)", "batch = 1"),
    "number for flag": (good("lr = 0.1", "lr = 1\nnesterov = 1"), "learner.optimizer.nesterov", "true or false", "nesterov = false"),
    "number for text": (good('"digits"', "5"), "title", "a text in quotes", 'title = "5"'),
    "date for text": (good('"digits"', "2026-11-23"), "title", "2026-11-23 is a date or time", 'title = "2026-11-23"'),
    "time for integer": (good("seed = 3", "seed = 07:30:00"), "seed", "is a date or time", "seed = 0"),
    "misspelt choice": (good('"real"', '"Rael"'), "images.start", "Did you mean real?", 'start = "real"'),
    "far choice": (good('"real"', '"zzz"'), "images.start", '"noise" or "real"', 'start = "noise"'),
    "number in a list": (good() + "[boost]\nsizes = 4", "boost.sizes", "whole numbers in a list", "sizes = [4]"),
    "text in a list": (good() + '[boost]\nsizes = [1, "4"]', "boost.sizes", '[1, "4"] cannot be', "sizes = [1]"),
    "empty list": (good() + "[boost]\nsizes = []", "boost.sizes", "[] cannot be", "sizes = [1]"),
    "list for number": (good("lr = 0.1", "lr = [0.1]"), "learner.optimizer.lr", "[0.1] cannot be", "lr = 0.1"),
    "missing key": (good("lr = 0.1", ""), "learner.optimizer.lr", "lr is missing: it takes a number, above 0", "lr = 1"),
    "missing component": (good('[data]\nkind = "Digits"', ""), "data", 'a table with a kind: "Digits"', '[data]\nkind = "Digits"'),
    "missing part": ('data = {kind = "Digits"}', "learner", "the keys network, optimizer or batch", "[learner]"),
    "missing key of an optional part": (good() + "[boost]", "boost.sizes", "sizes is missing", "sizes = [1]"),
    "missing kind": (good('kind = "ConvNet"', ""), "learner.network.kind", 'it takes "ConvNet", "MLP" or "python"', 'kind = "ConvNet"'),
    "missing kind, default known": (good('kind = "SGD"', ""), "learner.optimizer.kind", '"SGD" or "Adam"', 'kind = "Adam"'),
    "unknown kind": (good('"ConvNet"', '"convnet3"'), "learner.network.kind", "Did you mean ConvNet?", 'kind = "ConvNet"'),
    "far kind": (good('"ConvNet"', '"transformer"'), "learner.network.kind", '"transformer" cannot be', 'kind = "ConvNet"'),
    "kind is a number": (good('"ConvNet"', "3"), "learner.network.kind", "kind = 3 cannot be", 'kind = "ConvNet"'),
    "kind none where required": (good('"ConvNet"', '"none"'), "learner.network.kind", '"none" cannot be', 'kind = "ConvNet"'),
    "kind none with keys": (good() + '[boost]\nkind = "none"\nsizes = [1]', "boost.sizes", "there is nothing to set", None),
    "kind for a part": (good("batch = 10", 'kind = "Learner"'), "learner.kind", "[learner] (Learner) takes the keys", None),
    "misspelt key": (good("width = 32", "widht = 32"), "learner.network.widht", "Did you mean width?", "width = 32"),
    "value named like a table": (good() + "[sede]\nx = 1", "sede", "Did you mean seed?", None),
    "misspelt table": (good("[images]", "[imags]"), "imags", "Did you mean images?", "[images]"),
    "key of another table": (
        good("batch = 10", "lr = 0.2"),
        "learner.lr",
        "Did you mean learner.optimizer.lr?",
        "[learner.optimizer]\nlr = 0.2",
    ),
    "far key": (good("seed = 3", "zzz = 3"), "zzz", "the top of the spec takes the keys data, learner", None),
    "key where none is": (good() + '[schedule]\nkind = "Constant"\nxx = 1', "schedule.xx", "[schedule] (Constant) takes no keys", None),
    "table for value": (
        good("batch = 10", "batch = {size = 10}"),
        "learner.batch",
        "cannot be a table: it takes a whole number",
        "batch = 1",
    ),
    "value for part": (
        good('[images]\nstart = "real"', "").replace("seed", "images = 3\nseed"),
        "images",
        "it has to be a table, [images]",
        "[images]",
    ),
    "array of tables": (good("[images]", "[[images]]"), "images", "it has to be a table", "[images]"),
    "value for component": (
        good('[learner.network]\nkind = "ConvNet"\nwidth = 32', 'network = "mlp"'),
        "learner.network",
        'network = "mlp" cannot be',
        '[learner.network]\nkind = "MLP"',
    ),
    "combination": (good("lr = 0.1", "lr = 1\nnesterov = true"), "learner.optimizer", "needs a momentum", "momentum = 0.9"),
    "combination at the top": (good("seed = 3", "seed = -1"), "", "Real images need a seed", "seed = 0"),
    "field error after construction": (good() + "[boost]\nsizes = [1,1,1,1,1,1]", "boost.sizes", "at most 5 blocks", None),
    "python kind where it is not offered": (good('"SGD"', '"python"'), "learner.optimizer.kind", '"python" cannot be', 'kind = "Adam"'),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_specs(name):
    text, path, fragment, fix = WRONG[name]
    error = fails(text)
    assert [problem.path for problem in error.problems] == [path]
    assert fragment in error.problems[0].message
    assert error.problems[0].fix == fix
    for word in ("<class", "object at 0x", "None", "NOTHING", "attrs", "Attribute(", "mappingproxy"):
        assert word not in error.message, error.message


@pytest.mark.parametrize("name", [name for name, row in WRONG.items() if row[3] and row[3].startswith(row[1].rpartition(".")[2] + " =")])
def test_the_line_to_paste_mends_the_spec(name):
    """Where the fix is a line for the very key at fault, a spec with that line in its place has no problem there."""
    text, path, _, fix = WRONG[name]
    overridden = loads(text, [path + fix.removeprefix(path.rpartition(".")[2])], root=Pipeline)
    assert isinstance(overridden, Pipeline)


def test_all_problems_come_out_at_once():
    error = fails(
        """
        sede = 3
        title = 7
        [learner]
        batch = 0
        [learner.network]
        kind = "ConvNet"
        depth = 9
        width = "wide"
        norm = "layr"
        [learner.optimizer]
        kind = "Adm"
        [images]
        per_class = 1.5
        start = "reall"
        [boost]
        """
    )
    paths = [problem.path for problem in error.problems]
    assert sorted(paths) == [
        "boost.sizes",
        "data",
        "images.per_class",
        "images.start",
        "learner.batch",
        "learner.network.depth",
        "learner.network.norm",
        "learner.network.width",
        "learner.optimizer.kind",
        "sede",
        "title",
    ]
    assert "11 problems" in error.message
    assert all(problem.message.splitlines()[0] in error.message for problem in error.problems)
    assert isinstance(error, DistilkitError)


def test_combination_is_reported_beside_unknown_keys():
    error = fails(good("lr = 0.1", "lr = 1\nnesterov = true\nzzz = 1"))
    assert [problem.path for problem in error.problems] == ["learner.optimizer.zzz", "learner.optimizer"]


def test_a_long_value_is_cut():
    error = fails(good("seed = 3", f"seed = {list(range(500))}"))
    assert "..." in error.message
    assert len(error.message) < 300


SYNTAX = {
    "bare word": (good('kind = "ConvNet"', "kind = ConvNet"), "line 9, column 8", "kind = ConvNet", 'kind = "ConvNet"'),
    "capital true": ("a = 1\nflag = True", "line 2, column 8", "flag = True", "flag = true"),
    "two signs": ("a = 1\nb = = 3", "line 2, column 5", "b = = 3", None),
    "repeated key": ("[a]\nx = 1\ny = 2\nx = 3\nz = 4", "line 4, column 1", "x = 3", None),
    "repeated table": ("[a]\nx = 1\n[b]\ny = 2\n[a]\nz = 4\n", "line 5, column 1", "[a]", None),
    "unfinished list": ("x = [1,\n2", "line 2, column 2", "2", None),
    "unfinished text": ('x = "abc\ny = 3', "line 1, column 9", 'x = "abc', None),
}


@pytest.mark.parametrize("name", SYNTAX)
def test_syntax_errors_show_the_line(name):
    text, where, line, fix = SYNTAX[name]
    (problem,) = fails(text).problems
    assert problem.path == where
    assert where in problem.message
    assert f"| {line}" in problem.message
    assert problem.fix == fix
    assert "\\x00" not in problem.message


def test_load_names_the_file(tmp_path):
    spec = tmp_path / "digits.toml"
    spec.write_text(GOOD, encoding="utf-8")
    assert load(spec, root=Pipeline) == loads(GOOD, root=Pipeline)
    spec.write_text(good("width", "widht"), encoding="utf-8")
    with pytest.raises(SpecError, match=r"digits\.toml cannot be used, it has 1 problem"):
        load(spec, root=Pipeline)


def test_a_missing_file_names_the_nearest(tmp_path):
    for name in ("digits.toml", "cifar10.toml", "notes.txt"):
        (tmp_path / name).write_text(GOOD, encoding="utf-8")
    with pytest.raises(SpecError) as caught:
        load(tmp_path / "digit.toml", root=Pipeline)
    (problem,) = caught.value.problems
    assert problem.fix == str(tmp_path / "digits.toml")
    assert "cifar10.toml" in problem.message
    assert "notes.txt" not in problem.message


def test_other_unreadable_files(tmp_path):
    with pytest.raises(SpecError, match=r"holds no \.toml file"):
        load(tmp_path / "x.toml", root=Pipeline)
    with pytest.raises(SpecError, match="is not there either"):
        load(tmp_path / "away" / "x.toml", root=Pipeline)
    with pytest.raises(SpecError, match="is a folder"):
        load(tmp_path, root=Pipeline)
    (tmp_path / "x.toml").write_bytes(b'title = "\xff"')
    with pytest.raises(SpecError, match="not text in UTF-8"):
        load(tmp_path / "x.toml", root=Pipeline)


def test_reading_specs_loads_no_torch():
    code = "import sys, distilkit.spec; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_optimizer_left_out_is_the_default():
    text = good('[learner.optimizer]\nkind = "SGD"\nlr = 0.1', "")
    assert loads(text, root=Pipeline).learner.optimizer == Adam()

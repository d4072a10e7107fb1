import pytest
from spec_samples import GOOD, MLP, Adam, Blocks, ConvNet, Pipeline

from distilkit.spec import SpecError, loads


def problems(*overrides, text=GOOD):
    with pytest.raises(SpecError) as caught:
        loads(text, overrides, root=Pipeline)
    return caught.value.problems


def test_values_are_toml():
    built = loads(
        GOOD,
        ["seed=8", "learner.optimizer.lr = 1e-3", "title='a title'", "learner.optimizer.nesterov=false", "boost.sizes=[1, 4]"],
        root=Pipeline,
    )
    assert (built.seed, built.learner.optimizer.lr, built.title) == (8, 1e-3, "a title")
    assert built.boost == Blocks((1, 4))  # the table was not in the file


@pytest.mark.parametrize(("written", "held"), [("plain words", "plain words"), ("a=b", "a=b"), ("", ""), ('"7"', "7")])
def test_what_is_not_toml_is_a_text(written, held):
    assert loads(GOOD, [f"title={written}"], root=Pipeline).title == held


def test_the_last_override_wins():
    assert loads(GOOD, ["seed=1", "seed=2"], root=Pipeline).seed == 2


def test_a_whole_table():
    built = loads(GOOD, ['learner.network={kind = "MLP", hidden = [9]}', "learner.network.width=5"], root=Pipeline)
    assert built.learner.network == MLP(width=5, hidden=(9,))


def test_overrides_leave_the_rest_alone():
    before, after = loads(GOOD, root=Pipeline), loads(GOOD, ["learner.network.depth=2"], root=Pipeline)
    assert after.learner.network == ConvNet(width=32, depth=2)
    assert (after.data, after.learner.optimizer, after.images) == (before.data, before.learner.optimizer, before.images)


# Each: the override, the path of its only problem, a fragment of the message, the text to paste.
WRONG = {
    "no sign": ("seed", "seed", "not of the form path=value", "--set seed=1"),
    "no path": ("=3", "", "not of the form path=value", "--set seed=1"),
    "empty step": ("learner..lr=3", "learner..lr", "not of the form path=value", "--set seed=1"),
    "bad value": ("learner.optimizer.lr=fast", "learner.optimizer.lr", "a number, above 0", "--set learner.optimizer.lr=1"),
    "not quite a number": ("learner.optimizer.lr=.5", "learner.optimizer.lr", "a number, above 0", "--set learner.optimizer.lr=0.5"),
    "number for text": ("title=3", "title", "a text in quotes", "--set 'title=\"3\"'"),
    "misspelt word": ("images.start=rael", "images.start", "Did you mean real?", "--set images.start=real"),
    "misspelt key": (
        "learner.optimizer.rl=1",
        "learner.optimizer.rl",
        "Did you mean learner.optimizer.lr?",
        "--set learner.optimizer.lr=1",
    ),
    "misspelt table": (
        "lerner.optimizer.lr=1",
        "lerner.optimizer.lr",
        "Did you mean learner.optimizer.lr?",
        "--set learner.optimizer.lr=1",
    ),
    "forgotten table": ("optimizer.momentum=0", "optimizer.momentum", "learner.optimizer.momentum?", "--set learner.optimizer.momentum=0"),
    "far from all": ("zzz=1", "zzz", "names nothing in this spec", None),
    "unknown kind": ("learner.network.kind=mpl", "learner.network.kind", "Did you mean MLP?", "--set learner.network.kind=MLP"),
    "kind without .kind": ("learner.network=mlp", "learner.network", "has to be a table", "--set learner.network.kind=MLP"),
    "through a value": ("seed.x=3", "seed.x", "seed = 3 is a value, not a table", "--set seed=3"),
    "table for value": ("seed={x = 3}", "seed", "cannot be a table", "--set seed=0"),
    "new table lacks a kind": ("warmup={}", "warmup.kind", 'it takes "Constant" or "none"', 'kind = "Constant"'),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_overrides(name):
    override, path, fragment, fix = WRONG[name]
    (problem,) = problems(override)
    assert problem.path == path
    assert fragment in problem.message
    assert problem.fix == fix


@pytest.mark.parametrize("name", [name for name, row in WRONG.items() if row[3] and row[3].startswith("--set")])
def test_the_override_to_paste_works(name):
    import shlex

    _, override = shlex.split(WRONG[name][3])
    assert isinstance(loads(GOOD, [override], root=Pipeline), Pipeline)


def test_another_kind_takes_over_the_keys_that_both_have():
    assert loads(GOOD, ["learner.network.kind=MLP"], root=Pipeline).learner.network == MLP(width=32)


def test_another_kind_with_keys_of_the_old_one():
    text = GOOD.replace("width = 32", "width = 32\ndepth = 2\nnorm = 'layer'")
    (problem,) = problems("learner.network.kind=MLP", "learner.network.width=9", text=text)
    assert problem.path == "learner.network.kind"
    assert "depth and norm" in problem.message
    assert "ConvNet" in problem.message
    assert problem.fix == "--set 'learner.network={kind = \"MLP\", width = 9}'"
    assert loads(text, ['learner.network={kind = "MLP", width = 9}'], root=Pipeline).learner.network == MLP(width=9)


def test_another_kind_that_lacks_a_key_set_beside_it():
    (problem,) = problems("learner.optimizer.kind=Adam", "learner.optimizer.momentum=0.5", "learner.optimizer.lr=2")
    assert problem.path == "learner.optimizer.momentum"
    assert "(Adam) takes the keys lr, betas or decay" in problem.message
    assert loads(GOOD, ["learner.optimizer.kind=Adam"], root=Pipeline).learner.optimizer == Adam(lr=0.1)


def test_problems_of_the_file_and_of_overrides_come_out_together():
    found = problems("zzz=1", "oops", "seed=x", text=GOOD.replace("width = 32", "width = -1"))
    assert {problem.path for problem in found} == {"zzz", "oops", "seed", "learner.network.width"}

"""What an error says to type exists: its fix is read as TOML, as Python or as a command, and every name in it is looked up.

A fix that is given for a component must also hold a value that the component takes there.
"""

import ast
import builtins
import inspect
import itertools
import pickle
import re
import shlex
import tomllib
from fractions import Fraction
from pathlib import Path

import attrs
import numpy as np
import pytest
import tomlkit
import torch
import torchopt
import typer.main
import xarray as xr
from torch import nn

import distilkit as dk
from distilkit import recipes, spec, storage
from distilkit.cli import sharing
from distilkit.cli.app import app, resume
from distilkit.cli.display import option
from distilkit.cli.evaluate import assemble, parse_networks, show_evaluation
from distilkit.cli.new import write_spec
from distilkit.cli.options import shard_of
from distilkit.cli.output import Output
from distilkit.cli.run import show_copy
from distilkit.cli.sheet import show_sheet
from distilkit.cli.specs import schema
from distilkit.data.bundle import Split
from distilkit.data.preprocessing import from_arrays, require_same
from distilkit.distiller import require_finite
from distilkit.errors import Change, DistilkitError, FieldError, RunError
from distilkit.evaluation.baselines import members_of_classes
from distilkit.functional import optimizers
from distilkit.outer import random_rows
from distilkit.ranks import Ranks
from distilkit.report import require_picture
from distilkit.runs.evaluate import require_free
from distilkit.runs.loggers import Tracker, named
from distilkit.runs.open import with_pipeline
from distilkit.runs.stated import stated_pipeline
from distilkit.spec.hints import known_paths
from distilkit.storage import checkpoint, formats, grid, layout
from distilkit.storage.workers import share_out
from distilkit.studies.gradients import gradient_study
from distilkit.studies.sources import intercorrelation_study
from distilkit.studies.subsets import orders
from distilkit.truncation import StepInfo

MODULES = {"dk": dk, "distilkit": dk, "torch": torch, "torchopt": torchopt, "nn": nn, "attrs": attrs, "formats": formats, "layout": layout}
# What a fix may leave for the reader to fill in.
OPEN = {"batch", "bundle", "classes", "class_names", "data", "dims", "distilled", "evaluation", "features", "images", "in_features"}
OPEN |= {"distiller", "labels", "learner", "name", "out_features", "path", "run", "steps", "stream", "tensor", "values", "MyNet"}


@attrs.frozen
class Case:
    """How an error is raised, and what its fix is for.

    Args:
        raises: of a folder.
        of: the component whose field, the function whose argument or the command whose option the fix names.
        names: what other names in it stand for.
    """

    raises: object
    of: object = None
    names: dict = attrs.Factory(dict)


def check(fix, case):
    """Fail where the fix names something that there is not."""
    if fix.startswith("--"):
        return check_options(shlex.split(fix, comments=True), case.of)
    if fix.split()[0] == "mv":
        return None
    if fix.startswith("distilkit "):
        assert fix.split()[1] in typer.main.get_command(app).commands
        return None
    if fix.startswith("pip "):
        return check_pip(shlex.split(fix)[2:])
    if fix.startswith("["):
        return check_table(fix)
    (statement,) = ast.parse(fix).body
    if isinstance(statement, ast.Assign) and case.of is not None:
        (target,) = statement.targets
        check_field(target.id, fix.partition("=")[2], case.of)
    return check_names(statement, case.names)


def check_options(words, command):
    found = typer.main.get_command(app)
    for word in command.split():
        found = found.commands[word]
    known = found.params
    options = {option for parameter in known for option in parameter.opts}
    taken = [word for word in words if word.startswith("--")]
    assert taken
    assert set(taken) <= options, taken
    for before, after in itertools.pairwise(words):
        if before == "--set":
            tree = {"data": {"kind": "Digits"}, "learner": {"network": {"kind": "MLP"}, "optimizer": {"kind": "Adam"}}}
            path, _, value = after.partition("=")
            assert path in set(known_paths(dk.Distiller, tree)), path
            if not re.fullmatch(r"[a-z]\w*", value):  # a bare word is a text
                tomlkit.parse(f"x = {value}")


def check_change(changes):
    """In Python: a keyword of the component that it says, or a folder; components in it can be made."""
    for change in changes:
        words, _, of = str(change).partition("  # of ")
        if change.name == "out":
            assert str(change).startswith('"')
            continue
        call = ast.parse(f"f({words})").body[0].value
        assert of == change.name.rpartition(".")[0]
        assert [keyword.arg for keyword in call.keywords] == [change.name.rpartition(".")[2]]
        value = eval(ast.unparse(call.keywords[0].value), {"dk": dk})
        assert attrs.has(type(value)) == isinstance(change.value, dict)


NO_MODULE = "a_tracker_that_is_not_there"


def check_pip(words):
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    if words[-1] == NO_MODULE:
        return
    extras = re.fullmatch(r"distilkit(?:\[(\w+)\])?", words[-1])
    assert extras
    assert extras[1] is None or extras[1] in project["optional-dependencies"]


def check_table(fix):
    table = tomlkit.parse(fix).unwrap()
    paths = set(known_paths(dk.Distiller, table))
    assert table
    assert set(flat(table)) <= paths


def flat(table, path=""):
    for key, value in table.items():
        here = f"{path}.{key}" if path else key
        yield here
        if isinstance(value, dict):
            yield from flat(value, here)


def check_field(name, value, of):
    if not attrs.has(of):
        assert name in inspect.signature(of).parameters, name
        return
    field = getattr(attrs.fields(of), name)
    try:
        given = tomlkit.parse(f"x = {value}").unwrap()["x"]
    except tomlkit.exceptions.ParseError:
        return  # Python, whose names are looked up
    if "slot" not in field.metadata and field.validator is not None:
        field.validator(None, field, field.converter(given) if field.converter else given)


class Unknown:
    """What a call gives, where only a run would tell."""


def check_names(node, names):
    """Look up every name and attribute, and every keyword in the function that is called."""
    known = vars(builtins) | {name: getattr(dk, name) for name in dk.__all__} | MODULES | {"true": True, "false": False} | names
    bound = {arg.arg for lam in ast.walk(node) if isinstance(lam, ast.Lambda) for arg in lam.args.args}

    def look(part):
        if isinstance(part, ast.Name):
            assert part.id in known or part.id in OPEN | bound, part.id
            return known.get(part.id, Unknown)
        if isinstance(part, ast.Attribute):
            owner = look(part.value)
            return Unknown if owner is Unknown else getattr(owner, part.attr)
        if isinstance(part, ast.Call):
            function = look(part.func)
            for argument in (*part.args, *(keyword.value for keyword in part.keywords)):
                look(argument)
            if function is Unknown:
                return Unknown
            try:
                parameters = inspect.signature(function).parameters
            except ValueError:  # torch's own methods do not say
                return Unknown
            free = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
            for keyword in part.keywords:
                assert free or keyword.arg in parameters, keyword.arg
            return function if isinstance(function, type) else Unknown
        for child in ast.iter_child_nodes(part):
            look(child)
        return Unknown

    look(node.value if isinstance(node, (ast.Assign, ast.Expr)) else node)


def test_the_check_finds_what_is_not_there():
    """So that the test below is not won by taking everything."""
    wrong = [
        ('resume="never"', Case(None, checkpoint.latest)),
        ("--trust", Case(None, "export")),
        ("--set learner.optimizer.rl=0.1", Case(None, "run")),
        ("[bost]", Case(None)),
        ('norm="bach"', Case(None, dk.ConvNet)),
        ("depth = 0", Case(None, dk.ConvNet)),
        ("ConvNet(deep=3)", Case(None)),
        ("dk.evaluate(run, data, learners)", Case(None)),
        ("torchopt.adam(lr=1.0, eps_rot=1e-16)", Case(None)),
        ("pip install 'distilkit[hdf]'", Case(None)),
    ]
    for fix, case in wrong:
        with pytest.raises((AssertionError, AttributeError, DistilkitError)):
            check(fix, case)


# --- what is needed to go wrong ---------------------------------------------------------------------------------------------


def arrays(per_class=3, **changes):
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(2), per_class)
    images = rng.random((len(labels), 1, 4, 4), dtype=np.float32)
    settings = {"train_images": images, "train_labels": labels, "test_images": images, "test_labels": labels, "validation": 0}
    return dk.Arrays(**(settings | changes))


def of_bytes():
    images = np.arange(6 * 16, dtype=np.uint8).reshape(6, 1, 4, 4)
    return {"train_images": images, "test_images": images}


class Mixed:
    """An augmentation that may mix images."""

    def sample(self, stream, shape):
        return {}

    def apply(self, images, draw):
        return images


def of_batches():
    """A learner that takes images in parts, of a module that normalises over the batch."""
    module = dk.Functional(lambda: nn.Sequential(nn.Flatten(), nn.BatchNorm1d(16), nn.Linear(16, 2)), batch_norm="batch")
    return dk.Learner(module, micro_batch=2)


def in_parts(*adjoint, **settings):
    """How inner steps on four images would be run, two at a time."""
    inner = dk.Learner(dk.MLP(hidden=(2,)), dk.SGD(lr=0.1), micro_batch=2).bind((1, 4, 4), 2)
    return dk.Unroller(*adjoint, **settings).execution(inner, (4, 1, 4, 4), torch.device("cpu"))


class OfTheBatch:
    """A preprocessing that looks at the whole batch."""

    def fit(self, images):
        return self

    def forward(self, images):
        return images - images.mean(0)


def bundle(**changes):
    return arrays(**changes).load(dk.Stream(0))


def distilled(**changes):
    settings = {"images": torch.zeros(2, 1, 4, 4), "labels": torch.eye(2), "classes": torch.arange(2), "class_names": ("cat", "dog")}
    return dk.DistilledSet(**(settings | changes))


def kernels_here(adjoint):
    learner = dk.Learner(dk.ConvNet(width=4, depth=1)).bind((1, 4, 4), 2)
    dk.Unroller(adjoint, kernels="triton").execution(learner, (2, 1, 4, 4), torch.device("cpu"))


def of_the_data():
    return distilled(preprocessing=bundle().preprocessing)


def distiller(**changes):
    settings = {"data": arrays(), "learner": dk.Learner(dk.MLP(hidden=(2,)), dk.SGD(lr=0.1)), "truncation": dk.FullUnroll(2)}
    return dk.Distiller(**(settings | changes))


def usual(**changes):
    """Of fixed parts alone, whose spec can be written."""
    return distiller(data=dk.Digits(), **changes)


@attrs.frozen
class NoRoot:
    lr: float = 0.1

    def transformation(self):
        return torchopt.adam(lr=1.0)


@attrs.frozen
class LrInside:
    lr: float = 0.1

    def transformation(self):
        return torchopt.sgd(lr=self.lr)


@attrs.frozen
class OwnNetwork:
    def init(self, stream):
        return {}

    def apply(self, params, images):
        return images


class NoReset(nn.Module):
    def __init__(self):
        super().__init__()
        self.own = nn.Parameter(torch.zeros(2))


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.line = nn.Linear(16, 2)

    def forward(self, x):
        return self.line(x.flatten(1)) + torch.rand(())


def frozen():
    module = nn.Linear(16, 2)
    module.weight.requires_grad_(False)
    return module


def functional(*layers):
    return dk.Functional(lambda: nn.Sequential(nn.Flatten(), *layers), image_shape=(1, 4, 4), classes=2)


def write_run(path, **changes):
    groups = {"distilled": storage.distilled_group(storage.to_arrays(distilled()), 1)}
    tree = layout.build(groups, title="t", spec={}, seed=0, torch_version="0")
    tree.attrs |= changes
    storage.write(tree, path)
    return path


def with_checkpoints(path):
    (path / "checkpoints").mkdir()
    (path / "checkpoints" / "step-000000001.safetensors").touch()
    (path / "spec.toml").touch()
    return path


def saved(path, content):
    torch.save(content, path)
    return path


def dc(path, images=None, labels=None):
    return saved(path / "res_dc.pt", {"data": [[torch.zeros(2, 1, 4, 4) if images is None else images, labels]]})


def hostile(path):
    return saved(path / "res_dc.pt", {"data": Fraction(1, 2)})


SOFT, HARD = torch.tensor([[0.6, 0.4], [0.3, 0.7]]), torch.arange(2)


def foreign(labels=HARD, images=None, **options):
    """Read a file of DC."""
    given = {"preprocessing": "Identity"} | options
    return lambda path: formats.read(dc(path, images, labels), **given)


def text(path, words=""):
    path.write_text(words)
    return path


def spoilt_checkpoint(path):
    checkpoint.save(path / "c", 1, {"x": torch.zeros(2)}, {})
    text(path / "c" / "step-000000001.safetensors", "no")
    return checkpoint.latest(path / "c")


def two_grids(path):
    for seeds in (1, 2):
        dk.subset_grid(of_the_data(), [1], seeds=seeds, pipeline=distiller(evaluation=SHORT), out=path / "grid")


LINE = nn.Linear(16, 2)
SHORT = dk.Evaluation(seeds=1, steps=(1,))
BLOWN = StepInfo(3, float("nan"), 1.0, 1.0, dk.Window(0, 2), 0.1)

CASES = {
    # learner and optimisers
    "rows of a minibatch": Case(
        lambda _: dk.Learner(dk.MLP(), batch_per_class=3).draw(dk.Stream(0), torch.arange(2), (1, 4, 4)), dk.Learner
    ),
    "classes of a minibatch": Case(lambda _: dk.Learner(dk.MLP(), classes_per_step=3).bind((1, 4, 4), 2), dk.Learner),
    "parts of batches that are normalised": Case(lambda _: dk.Learner(dk.ConvNet(norm="batch"), micro_batch=2), dk.ConvNet),
    "parts of a module's batches": Case(lambda _: of_batches().bind((1, 4, 4), 2), dk.Learner),
    "parts of batches that are mixed": Case(lambda _: dk.Learner(dk.MLP(), augment=Mixed(), micro_batch=2), names={"by_image": True}),
    "parts that are kept": Case(lambda _: in_parts(dk.ReplayAdjoint(keep_last=2))),
    "parts of a whole window": Case(lambda _: in_parts(dk.AutogradAdjoint())),
    "parts of networks side by side": Case(lambda _: in_parts(networks_per_step=2, side_by_side="on")),
    "no learning rate": Case(lambda _: dk.Learner(dk.MLP(), learn_lr=True).update(None, None), dk.Learner.update),
    "a module for a network": Case(lambda _: dk.Learner(nn.Sequential(nn.Flatten())), dk.Learner),
    "a module's class": Case(lambda _: dk.Learner(nn.Linear), dk.Learner, names={"Linear": nn.Linear}),
    "a dataset of torch": Case(lambda _: distiller(data=torch.utils.data.TensorDataset(torch.zeros(2))), dk.Distiller),
    "a path for data": Case(lambda _: distiller(data="mine.npz"), dk.Distiller),
    "a class for a value": Case(lambda _: dk.Learner(dk.MLP), dk.Learner),
    "Nesterov without momentum": Case(lambda _: dk.SGD(nesterov=True), dk.SGD),
    "no root": Case(lambda _: optimizers.init(NoRoot(), torch.zeros(2))),
    "learning rate twice": Case(lambda _: optimizers.init(LrInside(), torch.zeros(2))),
    # unroller
    "kernels without a GPU": Case(lambda _: kernels_here(dk.ReplayAdjoint()), dk.Unroller),
    "kernels and a forward derivative": Case(lambda _: kernels_here(dk.ReplayAdjoint(hessian_product="forward-over-reverse")), dk.Unroller),
    # networks
    "too deep": Case(lambda _: dk.ConvNet(width=4).bind((1, 4, 4), 2)),
    "one pixel": Case(lambda _: dk.ConvNet(width=4).bind((1, 1, 1), 2)),
    "no padding": Case(lambda _: dk.ConvNet(width=4, first_padding=0).bind((1, 2, 2), 2), dk.ConvNet),
    "VGG of small images": Case(lambda _: dk.VGG().bind((1, 8, 8), 2)),
    "AlexNet of odd width": Case(lambda _: dk.AlexNet(width=5)),
    "VGG of no depth": Case(lambda _: dk.VGG(depth=12)),
    "ResNet of no depth": Case(lambda _: dk.ResNet(depth=11)),
    "group norm": Case(lambda _: dk.ConvNet(width=6, norm="group").bind((1, 8, 8), 2), dk.ConvNet),
    "norm of a single number": Case(lambda _: dk.ConvNet(width=4, depth=3, pooling="none", norm="instance").bind((1, 1, 1), 2), dk.ConvNet),
    "bound twice": Case(lambda _: dk.MLP().bind((1, 4, 4), 2).bind((1, 4, 4), 3)),
    "not bound": Case(lambda _: dk.MLP().init(dk.Stream(0)), names={"network": dk.MLP()}),
    "another batch": Case(lambda _: dk.MLP().bind((1, 4, 4), 2).apply({}, torch.zeros(1, 3, 3)), names={"x": torch.zeros(2)}),
    "vectors": Case(lambda _: dk.ConvNet().bind((5,), 2)),
    "no module": Case(lambda _: dk.Functional(3)),
    "no factory": Case(lambda _: dk.Functional(nn.Linear)),
    "factory of something": Case(lambda _: dk.Functional(dict)),
    "factory of one module": Case(lambda _: dk.Functional(lambda: LINE).bind((16,), 2).init(dk.Stream(0))),
    "not to be reset": Case(lambda _: dk.Functional(NoReset())),
    "other parameters": Case(lambda _: functional(nn.Linear(16, 2)).apply({}, torch.zeros(2, 1, 4, 4)), names={"network": dk.MLP()}),
    "batch norm": Case(lambda _: functional(nn.BatchNorm1d(16), nn.Linear(16, 2)), names={"module": nn.Linear(2, 2)}),
    "instance norm": Case(lambda _: dk.Functional(lambda: nn.InstanceNorm2d(1, track_running_stats=True)), nn.InstanceNorm2d),
    "dropout of another kind": Case(
        lambda _: functional(nn.AlphaDropout(0.5), nn.Linear(16, 2)), nn.Dropout, names={"module": nn.Linear(2, 2)}
    ),
    "dropout without shapes": Case(
        lambda _: dk.Functional(lambda: nn.Dropout(0.5)).sample(dk.Stream(0), 2),
        names={"network": dk.MLP(), "image_shape": (1, 2, 2), "classes": 2},
    ),
    "dropout of other rows": Case(lambda _: other_rows(), nn.Dropout),
    "lazy": Case(lambda _: functional(nn.LazyLinear(2))),
    "meta": Case(lambda _: functional(nn.Linear(16, 2, device="meta"))),
    "not trained": Case(lambda _: dk.Functional(frozen), names={"self": nn.Linear(2, 2)}),
    "random forward": Case(lambda _: dk.Functional(Noisy, image_shape=(1, 4, 4), classes=2), names={"module": nn.Linear(2, 2)}),
    "in place": Case(lambda _: dk.Functional(lambda: nn.ReLU(inplace=True), image_shape=(2,), classes=2)),
    "other classes": Case(lambda _: functional(nn.Linear(16, 3))),
    # pipeline
    "too few to start from": Case(lambda _: random_rows(bundle().train, ("a", "b"), 9, dk.Stream(0)), dk.Images),
    "none to start from": Case(lambda _: random_rows(bundle().train, ("a", "b", "c"), 1, dk.Stream(0)), dk.Images),
    "blown up": Case(lambda _: require_finite(BLOWN, [], 0.1), "run"),
    "blocks and images": Case(lambda _: usual(boost=dk.BoostSchedule(blocks=(1, 2)), images=dk.Images(per_class=5)), dk.Images),
    "no such device": Case(lambda _: usual(device="cudda"), dk.Distiller),
    "device that is not here": Case(lambda _: usual(device="xpu").torch_device, dk.Distiller),
    "shares that fall": Case(lambda _: dk.Growth(until=(0.5, 0.2), widths=(4, 8)), dk.Growth),
    "nothing that grows": Case(lambda _: dk.Growth(until=(0.5,)), dk.Distiller),
    "widths of parts": Case(lambda _: dk.Growth(until=(0.2, 0.5), widths=(4,)), dk.Growth),
    "no width": Case(lambda _: usual(growth=dk.Growth(until=(0.2,), widths=(4,))), dk.Distiller),
    "steps of stages": Case(lambda _: dk.BoostSchedule(blocks=(1, 2), steps=(1, 2, 3)), dk.BoostSchedule),
    "minibatch of a set": Case(lambda _: usual(learner=dk.Learner(dk.MLP(), batch_per_class=2)), dk.Learner),
    "minibatch of blocks": Case(
        lambda _: usual(boost=dk.BoostSchedule(blocks=(1, 2), minibatch="each block"), learner=dk.Learner(dk.MLP(), batch_per_class=2)),
        dk.Learner,
    ),
    "classes of blocks": Case(
        lambda _: usual(boost=dk.BoostSchedule(blocks=(1, 2), minibatch="each block"), learner=dk.Learner(dk.MLP(), classes_per_step=2)),
        dk.BoostSchedule,
    ),
    "long window": Case(lambda _: dk.TailTruncation(horizon=3, window=4), dk.TailTruncation),
    "short horizon": Case(lambda _: dk.RandomHorizon(horizon=3, shortest=4), dk.RandomHorizon),
    # evaluation and runs
    "steps that fall": Case(lambda _: dk.Evaluation(steps=(3, 1)), dk.Evaluation),
    "augmentation turned off": Case(lambda _: dk.Evaluation(augment=dk.FlipRotate(), augmented=False), dk.Evaluation),
    "real images": Case(lambda _: members_of_classes(bundle(), 9), "run"),
    "large subset": Case(lambda _: dk.subset_grid(distilled(), [2], pipeline=distiller(evaluation=SHORT)), "subsets"),
    "strategy": Case(lambda _: orders("prefxi", distilled(), 1, dk.Stream(0)), "subsets"),
    "draws of one": Case(lambda _: orders("prefix", distilled(), 2, dk.Stream(0)), dk.subset_grid),
    "another grid": Case(two_grids, "subsets"),
    "a run for a grid": Case(
        lambda path: dk.subset_grid(of_the_data(), [1], pipeline=distiller(evaluation=SHORT), out=write_run(path)), "subsets"
    ),
    "a set alone": Case(lambda _: with_pipeline(distilled()), dk.subset_grid),
    "a run of Python parts": Case(lambda path: with_pipeline(write_run(path)), dk.subset_grid),
    "no boost": Case(lambda path: intercorrelation_study(distiller(), path)),
    "few replicates": Case(lambda _: gradient_study(distiller(), replicates=2), gradient_study),
    "beyond the end": Case(lambda _: gradient_study(distiller(), outer_steps=[5000]), "study gradients"),
    "not a run": Case(lambda path: assemble(text(path / "a.npz")), "evaluate"),
    "networks": Case(lambda _: parse_networks(["Convnet"], [], dk.Learner(dk.MLP()), SHORT), "evaluate"),
    "data": Case(lambda path: assemble(text(path / "a.npz"), recipe="paper/cifar10-ipc1", data="CIFAR-10"), "evaluate"),
    "run without a spec": Case(lambda path: dk.evaluate(write_run(path))),
    "no picture": Case(lambda path: require_picture(path / "sheet.docx"), "sheet"),
    "quiet, and nowhere to look": Case(lambda path: show_evaluation(path, {}, {}, None, Output(quiet=True)), "evaluate"),
    "a shard, and nowhere to meet": Case(lambda path: show_evaluation(path, {}, {"shard": (1, 2)}, None, Output()), "evaluate"),
    "a shard without a folder": Case(lambda _: dk.evaluate(distilled(), shard=(1, 2)), dk.evaluate),
    "a logger of no name": Case(lambda _: named("tensorbord"), "run"),
    "a tracker that is not installed": Case(lambda _: Tracker(NO_MODULE)),
    "results are there": Case(lambda path: require_free(write_run(path)), "evaluate"),
    "a set without data": Case(lambda _: dk.evaluate(distilled())),
    "no run": Case(lambda path: dk.evaluate(path / "none")),
    "more processes than work": Case(lambda _: Ranks(size=4).shares(1, 1)),
    "no processes": Case(lambda _: dk.plan(distiller(), processes=0), dk.plan),
    "no workers": Case(lambda _: share_out(print, [1], 0, folder=Path(), seen=print), dk.subset_grid),
    "workers without a folder": Case(lambda _: grid.fill(xr.Dataset(), {}, print, identity={}, workers=2), dk.subset_grid),
    "no such part": Case(lambda _: grid.fill(xr.Dataset(), {}, print, identity={}, shard=(3, 2)), dk.subset_grid),
    "no such part of a command": Case(lambda _: shard_of("3/2"), "subsets"),
    "a spec that is there": Case(lambda path: write_spec(text(path / "mine.toml"), "Digits", 1, None)),
    "a spec of no data": Case(lambda path: write_spec(path / "mine.toml", "CIFAR1O", 1, None), "new"),
    "a spec at a URL": Case(lambda _: write_spec(Path("s3://bucket/mine.toml"), "Digits", 1, None), "new"),
    "a schema at a URL": Case(lambda _: schema(Path("s3://bucket/spec.json")), "schema"),
    "a spec of a file that is not there": Case(lambda path: write_spec(path / "mine.toml", "no.npz", 1, None), "new"),
    "a URL to write to": Case(lambda _: dk.subset_grid(of_the_data(), [1], out="s3://bucket/grid"), "subsets"),
    "a folder to go on elsewhere": Case(lambda path: resume(path / "mine", out=path), "resume"),
    "a copy of a copy": Case(lambda path: show_copy("memory://one", usual(), path, Output(), mirror="memory://two"), "resume"),
    "a copy of another run": Case(lambda path: copy_of_another(path), "resume"),
    "a run is there": Case(lambda path: distiller().run(write_run(path)), "run"),
    "no folder": Case(lambda path: distiller().run(text(path / "file") / "run"), "run"),
    "no recipe": Case(lambda _: recipes.read("paper/cifar10-ipc2")),
    # formats
    "format": Case(lambda path: formats.read(text(path / "a.bin"), "mmt"), formats.read),
    "format not told": Case(lambda path: formats.read(text(path / "a.bin")), formats.read),
    "a run for a file": Case(lambda path: formats.read(write_run(path))),
    "label space": Case(foreign(label_space="logits"), formats.read),
    "soft labels": Case(foreign(SOFT), formats.read),
    "class numbers": Case(foreign(label_space="logit"), formats.read),
    "class names": Case(foreign(class_names=["a"]), formats.read),
    "rows of numbers": Case(foreign(images=torch.zeros(2, 16)), formats.read),
    "preprocessing not told": Case(foreign(preprocessing=None), formats.read),
    "preprocessing": Case(foreign(preprocessing="Whitn"), formats.read),
    "preprocessing to be fitted": Case(foreign(preprocessing="Whiten"), formats.read),
    "preprocessing of other data": Case(foreign(preprocessing="Whiten", data=bundle()), formats.read),
    "experiment": Case(foreign(index=3), formats.read),
    "sparse": Case(foreign(images=torch.zeros(2, 1, 4, 4).to_sparse()), names={"images": torch.zeros(2)}),
    "pickle": Case(lambda path: formats.read(hostile(path))),
    "format to write": Case(lambda path: formats.write(distilled(), path / "a", "safetensor"), "export"),
    "is there": Case(lambda path: formats.write(distilled(), text(path / "a.safetensors"))),
    "a set in a format of others": Case(lambda path: storage.load(dc(path, labels=HARD)), storage.load),
    "real data of a command": Case(lambda path: read_with_data(path), "import"),
    "a newer description": Case(lambda path: formats.read(newer_folder(path))),
    "no real images for a sheet": Case(lambda path: sheet_of(own_file(path)), "sheet"),
    "a network of somebody's own": Case(lambda _: stated_pipeline({"data": "Digits", "training": {"network": "Net()"}}), "evaluate"),
    "data that no name stands for": Case(lambda _: stated_pipeline({"data": "mine", "training": {}}), "evaluate"),
    "no start for a sheet": Case(lambda path: sheet_of(own_file(path), before=True), "sheet"),
    "another start for a sheet": Case(lambda path: sheet_of(with_checkpoints(write_run(path)), data="Digits", before=True), "sheet"),
    "a start of Python parts": Case(lambda path: sheet_of(write_run(path), before=True)),
    "a spec for a command": Case(lambda _: typer.main.get_command(app).main(["digits"], standalone_mode=False)),
    "several rates": Case(lambda path: formats.write(attrs.evolve(distilled(), inner_lr=(0.1, 0.2)), path / "x", "mtt")),
    "no rate to learn": Case(lambda _: dk.Learner(dk.MLP(), lr_steps=3), dk.Learner),
    "folder is there": Case(lambda path: (text(path / "x"), formats.write(distilled(), path, "mtt"))),
    "other safetensors": Case(lambda path: formats.read(spoilt_safetensors(path))),
    "labels of another kind": Case(lambda path: formats.write(distilled(), path / "a.npz", "frepo")),
    "no pictures": Case(lambda path: formats.write(distilled(images=torch.zeros(2, 5)), path / "a", "image-folder")),
    "says otherwise": Case(lambda path: formats.read(own_file(path), class_names=["a", "b"]), formats.read),
    "went through otherwise": Case(lambda path: formats.read(own_file(path), preprocessing="Whiten"), formats.read),
    # storage
    "column": Case(lambda _: layout.history_group({"outer_step": [0], "outer_los": [1.0]})),
    "no units": Case(
        lambda _: layout.build({"history": xr.Dataset({"a": ("x", [1.0])})}, title="", spec={}, seed=0), names={"history": xr.Dataset()}
    ),
    "no store": Case(lambda path: (text(path / "results.zarr"), write_run(path))),
    "newer": Case(lambda path: storage.open(write_run(path, format_version=99))),
    "older": Case(lambda path: storage.open(with_checkpoints(write_run(path, format_version=1)))),
    "which": Case(lambda path: storage.load(path, "bst"), "sheet"),
    "results that are gone": Case(lambda path: storage.load(with_checkpoints(path))),
    "no best": Case(lambda path: storage.load(write_run(path), "best"), "sheet"),
    "checkpoints": Case(spoilt_checkpoint),
    # data
    "labels of a split": Case(lambda _: Split(torch.zeros(2, 3), torch.zeros(2)), names={"labels": torch.zeros(2)}),
    "labels of a set": Case(lambda _: distilled(labels=torch.arange(2)), dk.DistilledSet),
    "stored preprocessing": Case(lambda _: from_arrays({"kind": "Identiy"}, {})),
    "two spaces": Case(lambda _: require_same(distilled().preprocessing, bundle().preprocessing)),
    "augmented vectors": Case(lambda _: dk.FlipRotate().sample(dk.Stream(0), (2, 5)), dk.Learner),
    "strategies": Case(lambda _: dk.DSA("flip_corp"), dk.DSA),
    "no npz": Case(lambda path: dk.Arrays(str(text(path / "x.npz", "no"))).load(dk.Stream(0)), names={"numpy": np}),
    "no images": Case(lambda _: dk.Arrays(train_images=np.zeros((2, 3))).load(dk.Stream(0)), names={"numpy": np}),
    "negative labels": Case(lambda _: bundle(train_labels=np.arange(6) % 2 - 1), names={"numpy": np}),
    "labels with gaps": Case(lambda _: bundle(train_labels=np.arange(6) % 2 * 2), names={"numpy": np}),
    "both or neither": Case(lambda _: dk.Arrays()),
    "last dimension": Case(lambda _: bundle(train_images=np.zeros((6, 8, 8, 3), np.float32)), dk.Arrays),
    "labels with points": Case(lambda _: bundle(train_labels=np.zeros(6)), names={"train_labels": np.zeros(2)}),
    "images of whole numbers": Case(lambda _: bundle(train_images=np.zeros((6, 1, 4, 4), np.int32)), names={"images": np.zeros(2)}),
    "held out": Case(lambda _: bundle(validation=6), dk.Arrays),
    "floats as bytes": Case(lambda _: bundle(store="uint8"), dk.Arrays),
    "batch by batch": Case(lambda _: bundle(store="uint8", preprocessing=OfTheBatch(), **of_bytes()), dk.Arrays),
    "two channels": Case(lambda _: dk.ImageFolder("x", size=8, channels=2), dk.ImageFolder),
    "two channels of Hugging Face": Case(lambda _: dk.HuggingFace("x", size=8, channels=2), dk.HuggingFace),
    "not downloaded": Case(lambda path: dk.CIFAR10(root=str(path)).load(dk.Stream(0))),
    "not unpacked": Case(lambda path: dk.CUB200(root=str(path)).load(dk.Stream(0))),
    # specs: their own fixes are in tests/spec
    "factory of a spec": Case(lambda _: spec.PythonComponent("fractions:Fractio", {}), spec.PythonComponent),
    "a network of one's own": Case(lambda _: spec.dumps(usual(learner=dk.Learner(OwnNetwork()))), dk.Learner),
}


def spoilt_safetensors(path):
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(2)}, path / "a.safetensors")
    return path / "a.safetensors"


def other_rows():
    net = dk.Functional(lambda: nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(4, 2)), image_shape=(1, 2, 2), classes=2)
    net.apply(net.init(dk.Stream(0)), torch.zeros(3, 1, 2, 2), net.sample(dk.Stream(0), 5))


def own_file(path):
    return formats.write(distilled(), path / "own.safetensors")


def newer_folder(path):
    place = formats.write(distilled(), path / "hub", "hugging-face")
    text(place / "distilkit.json", '{"format_version": 99}')
    return place


def read_with_data(path):
    return sharing.read(dc(path, labels=HARD), None, format=None, label_space=None, preprocessing="Whiten")


def copy_of_another(path):
    (path / "one").mkdir()
    text(path / "one" / "spec.toml", 'title = "one"')
    show_copy(f"file://{path}/one", usual(), path / "two", Output())


def sheet_of(path, data=None, **options):
    case = {"data": data, "overrides": [], "trust": False}
    show_sheet(path, path.with_suffix(".png"), case, Output(), which="auto", rows=None, real=2, **options)


@pytest.fixture(scope="module")
def seen():
    """Where errors came from, and by which case."""
    return {}


@pytest.mark.parametrize("name", CASES)
def test_a_fix_names_what_exists(name, tmp_path, seen):
    case = CASES[name]
    with pytest.raises(DistilkitError) as caught:
        case.raises(tmp_path)
    fix = caught.value.fix
    assert fix, caught.value
    for change in caught.value.changes:
        check_options(shlex.split(option(change)), case.of if isinstance(case.of, str) else "evaluate")
    place = (str(caught.traceback[-1].path), caught.traceback[-1].lineno, fix)
    assert seen.setdefault(place, name) == name, "the same error as another case: this one did not go wrong where it should"
    if name == "no recipe":
        assert fix in recipes.names()
    elif caught.value.changes:
        check_change(caught.value.changes)
    else:
        check(fix, case)


def test_a_component_says_all_that_it_needs():
    """All methods are required, so it is "and"."""
    with pytest.raises(DistilkitError, match="an object with init, plan and observe"):
        distiller(truncation=dk.Adam())


def test_a_file_is_told_its_ending(tmp_path):
    with pytest.raises(DistilkitError) as caught:
        formats.write(distilled(), tmp_path / "res", "dc")
    assert formats.write(distilled(), caught.value.fix, "dc").exists()


def test_an_error_crosses_processes_as_it_is():
    for error in (FieldError("width", 0, "at least 1", fix="width = 1"), RunError("taken", changes=[Change("out", "b")])):
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is type(error)
        assert str(again) == str(error)
        assert vars(again) == vars(error)

"""The checks of a cell of the support matrix, each timed and caught on its own. `.ci/matrix` runs this with the cell's Python.

Every outcome is a line of JSON in --out; of two lines with one name the later counts. A line that says "failed" is written before a
check begins, so that a process that dies in the middle leaves a failure, and the next one goes on behind it.

A meta-gradient is compared with that of the same pipeline run as it is, in float32 (`compile="eager"`), which tests/unroll compares
with whole-window autograd in float64 in the same cell. Where float32 is compared with float32 the networks have gelu: with relu and
max pooling, whose slopes jump, a rounding moves a meta-gradient by some percent (float32 and float64 differ by 0.03 for the ConvNet-3
here; with gelu by 1e-5). Those are held to the direction. Deep ones are trained by small steps of SGD: behind a few steps of Adam
float32 and float64 agree in nothing for a ResNet-18 (a cosine of 0.4), and so do two right answers in float32. A program that falls
back to a slower way is right but is not what was asked for: such a check passes with a note.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import attrs
import torch
from torch.nn import functional as F

import distilkit as dk
from distilkit.unroll.execution import ProgramCache
from distilkit.unroll.inner import OuterVariables
from distilkit.unroll.rates import convolution_seconds
from distilkit.unroller import MetaGradient, RealBatch

ROOT = Path(__file__).resolve().parents[1]
RELATIVE = 1e-3  # distance that is allowed in float32, for networks with slopes that do not jump
SAME, ROUGH = 0.99, 0.95  # least cosine in float32 for those whose slopes jump, and in bfloat16
SLOW = 4.0  # times that a convolution takes in bfloat16, from which on networks are narrower there
LIMIT = 1800  # seconds of one check; longer is taken for hanging
# Ways to go back and to step, besides the plain one: an adjoint, and what the inner problem has instead.
WAYS: dict[str, tuple[Any, dict[str, Any]]] = {
    "keep_last = 1": (dk.ReplayAdjoint(keep_last=1), {}),
    "keep_last = 2": (dk.ReplayAdjoint(keep_last=2), {}),
    "checkpoint_every = 2": (dk.ReplayAdjoint(checkpoint_every=2), {}),
    "forward over reverse": (dk.ReplayAdjoint(hessian_product="forward-over-reverse"), {}),
    "DSA": (dk.ReplayAdjoint(), {"augment": dk.DSA()}),
    "minibatch": (dk.ReplayAdjoint(), {"batch_per_class": 1}),
}
SHORT = [  # of ConvNets
    ("ConvNet-3", "auto", "float32", "auto", "plain"),
    ("ConvNet-3", "trace", "float32", "on", "plain"),
    ("ConvNet-3", "trace", "bfloat16", "off", "plain"),
    *(("ConvNet-3", "trace", "float32", "auto", way) for way in ("keep_last = 2", "forward over reverse", "DSA")),
]


class Check(NamedTuple):
    """A check: it raises, or returns a note that may be empty."""

    name: str
    run: Callable[[], str]
    short: bool = False  # whether it is one of --short


class Inner(NamedTuple):
    """An inner problem: a network of distilkit by name, the side of the images, and what a learner may have besides."""

    network: Any
    side: int = 32
    augment: Any = None
    batch_per_class: int | None = None
    optimizer: Any = dk.Adam(lr=1e-3)


def main() -> int:
    """Run the checks whose outcome is not there yet. 0 when all ran, whatever they gave."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--short", action="store_true")
    given = parser.parse_args()
    before = given.out.read_text(encoding="utf-8").splitlines() if given.out.exists() else []
    done = {json.loads(line)["name"] for line in before}
    with given.out.open("a", encoding="utf-8") as file:
        for check in checks():
            if check.name not in done and (check.short or not given.short):
                one(check, lambda outcome: print(json.dumps(outcome), file=file, flush=True))
    return 0


def one(check: Check, record: Callable[[dict[str, Any]], None]) -> None:
    """Run a check, and record what it gave."""
    record({"name": check.name, "passed": False, "seconds": None, "error": "no outcome", "note": ""})
    faulthandler.dump_traceback_later(LIMIT, exit=True)
    began, error, note = time.perf_counter(), "", ""
    try:
        note = check.run()
    except Exception as raised:  # whatever it is, it is this check's outcome, and the next one has its own
        error = f"{type(raised).__name__}: {first_line(raised)}"
    seconds = time.perf_counter() - began
    faulthandler.cancel_dump_traceback_later()
    record({"name": check.name, "passed": not error, "seconds": round(seconds, 1), "error": error, "note": note})
    rest = error or (f"but {note}" if note else "")
    print(f"{'failed' if error else 'passed'}  {seconds:6.1f} s  {check.name}{': ' if rest else ''}{rest}", flush=True)


def first_line(error: object) -> str:
    """Of what an error says."""
    return (str(error).strip() or "no words").splitlines()[0][:300]


def checks() -> Iterator[Check]:
    """All checks, in the order in which they run."""
    folders = (ROOT / "tests" / room for room in ("unroll", "programs", "functional"))
    for path in (*(path for folder in folders for path in sorted(folder.glob("test_*.py"))), ROOT / "tests" / "test_truncation.py"):
        yield Check(path.relative_to(ROOT).as_posix(), partial(tests, path), path.stem == "test_meta_gradient")
    smooth = {"ConvNet-3": Inner(dk.ConvNet(activation="gelu")), "ConvNet-4": Inner(dk.ConvNet(depth=4, activation="gelu"), side=64)}
    for name, inner in smooth.items():
        yield Check(f"{name}, as it is, by whole-window autograd", partial(compare, inner, dk.AutogradAdjoint(), compile="eager"))
    # Recorded, which takes seconds: every network in every precision and layout, and in two of those every way to go back.
    recorded = [(name, "trace", *rest, "plain") for name in smooth for rest in product(("float32", "bfloat16"), ("on", "off"))]
    recorded += [("ConvNet-3", "trace", "float32", "auto", way) for way in WAYS]
    recorded += [("ConvNet-4", "trace", "bfloat16", "on", way) for way in WAYS]
    # Compiled, which takes minutes: every two of network, compile, precision and layout meet in some check, and each way has one.
    compiled = [
        ("ConvNet-3", "auto", "float32", "auto", "plain"),
        ("ConvNet-4", "auto", "bfloat16", "auto", "keep_last = 1"),
        ("ConvNet-3", "inductor", "bfloat16", "on", "keep_last = 2"),
        ("ConvNet-4", "inductor", "float32", "off", "checkpoint_every = 2"),
        ("ConvNet-3", "auto", "bfloat16", "off", "forward over reverse"),
        ("ConvNet-4", "auto", "float32", "on", "DSA"),
        ("ConvNet-3", "inductor", "float32", "auto", "minibatch"),
    ]
    for case in (*recorded, *compiled):
        name, compile, precision, layout, way = case
        adjoint, learner = WAYS.get(way, (dk.ReplayAdjoint(), {}))
        inner, cosine = smooth[name]._replace(**learner), None
        if precision == "bfloat16":
            inner, cosine = inner._replace(network=attrs.evolve(inner.network, activation="relu", width=width_in_bfloat16())), ROUGH
        settings = {"compile": compile, "channels_last": layout, "precision": precision}
        run = partial(narrowed if inner.network.width < 128 else compare, inner, adjoint, cosine=cosine, **settings)
        yield Check(f"{name}, {compile}, {precision}, channels last {layout}, {way}", run, case in SHORT)
    # Instance norm over the 2x2 pixels of the last stage of a VGG lets a move of the images by a millionth turn the meta-gradient to a
    # cosine of 0.85, in float64 as well.
    families = {"ConvNet-3 with relu": dk.ConvNet(), "ResNet-18": dk.ResNet(), "AlexNet": dk.AlexNet()}
    families["VGG-11 with group norm"] = dk.VGG(norm="group")
    for name, network in families.items():
        yield Check(f"{name}, trace, float32", partial(compare, Inner(network, optimizer=dk.SGD(lr=1e-4)), cosine=SAME, compile="trace"))
    yield Check("distilkit run examples/digits.toml, and evaluate", digits, True)


def narrowed(inner: Inner, *arguments: Any, **settings: Any) -> str:
    """The same, with a note that says why the network is narrow."""
    narrow = f"of width {inner.network.width}, as this processor is slow in bfloat16"
    return "; ".join(filter(None, (compare(inner, *arguments, **settings), narrow)))


@cache
def width_in_bfloat16() -> int:
    """128; or 32 on a processor without instructions for bfloat16, where a check would take an hour."""
    full, rounded = (convolution_seconds(dtype, True, torch.device("cpu")) for dtype in (torch.float32, torch.bfloat16))
    return 128 if rounded < SLOW * full else 32


def compare(inner: Inner, adjoint: Any = None, cosine: float | None = None, **settings: Any) -> str:
    """Compare a meta-gradient with that of the same pipeline as it is: their distance, or, where a cosine is given, the direction."""
    expected = reference(inner)
    given, fallbacks = meta_gradient(inner, dk.Unroller(adjoint or dk.ReplayAdjoint(), **settings))
    for name in ("loss", "images", "labels"):
        right, here = getattr(expected, name).double(), getattr(given, name).double()
        distance = ((here - right).norm() / right.norm()).item()
        if name == "loss" or cosine is None:
            allowed = RELATIVE if cosine is None else 1 - cosine
            good, words = distance <= allowed, f"is off by {distance:.1e} of it, and {allowed:.0e} is allowed"
        else:
            found_cosine = F.cosine_similarity(right.flatten(), here.flatten(), dim=0).item()
            good, words = found_cosine >= cosine, f"has a cosine of {found_cosine:.3f} with the right one, and {cosine} is asked for"
        if not good:  # nor is NaN good
            raise AssertionError(f"the outer loss {words}" if name == "loss" else f"the gradient with respect to {name} {words}")
    return f"fell back: {'; '.join(fallbacks)}" if fallbacks else ""


@cache
def reference(inner: Inner) -> MetaGradient:
    """What an inner problem's other meta-gradients are compared with."""
    return meta_gradient(inner, dk.Unroller(compile="eager", channels_last="off"))[0]


PROGRAMS = ProgramCache()  # of all checks, so that what two of them have in common is built once


def meta_gradient(inner: Inner, unroller: dk.Unroller) -> tuple[MetaGradient, list[str]]:
    """A meta-gradient of two images of each of ten classes, through steps 5 and 6; and the programs that run in a slower way, and why."""
    images, labels = pictures(inner.side)
    classes, targets = labels[:20], F.one_hot(labels, 10).float()
    learner = dk.Learner(inner.network, inner.optimizer, augment=inner.augment, batch_per_class=inner.batch_per_class)
    learner = learner.bind(tuple(images.shape[1:]), 10)
    distilled = OuterVariables(images[:20], targets[:20], torch.tensor(1e-3).log())
    batch = RealBatch(images[50:100], targets[50:100])
    found = unroller.meta_gradient(learner, distilled, dk.Window(5, 7), batch, dk.Stream(0), classes, PROGRAMS)
    execution = unroller.execution(learner, (learner.inner_batch_size(classes), *images.shape[1:]), images.device)
    slower = unroller.programs(learner, execution, PROGRAMS).fallbacks
    return found, [f"{name} runs {how}" for name, how in slower.items()]


@cache
def pictures(side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Smooth pictures, each like the others of its class, on which bfloat16 means something."""
    stream, labels = dk.Stream(3), torch.arange(200) % 10
    means, own = stream.fold("classes").normal(10, 3, 8, 8), stream.fold("pictures").normal(200, 3, 8, 8)
    return F.interpolate(means[labels] + own, size=side, mode="bilinear"), labels


def tests(path: Path) -> str:
    """A file of tests, without the slow ones."""
    lines = command(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(path.relative_to(ROOT)))
    return "" if " passed" in lines[-1] else "no test ran"


def digits() -> str:
    """The first run of README through the command, with fewer steps; what it leaves opens, and can be judged once more."""
    program = str(Path(sys.executable).parent / "distilkit")
    fewer = ["outer.steps=20", "evaluation.every=10", "evaluation.seeds=2"]
    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder, "run"))
        command(program, "run", "examples/digits.toml", *(word for setting in fewer for word in ("--set", setting)), "--out", out)
        if not bool(dk.open(out)["evaluation"]["accuracy"].notnull().all()):
            raise AssertionError("the run left no accuracy")
        command(program, "evaluate", out, "--steps", "10,20", "--seeds", "2")
    return ""


def command(*words: str) -> list[str]:
    """What a command prints, in lines; an error where it fails."""
    done = subprocess.run(
        words, cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=LIMIT - 60, env=os.environ | {"COLUMNS": "200"}
    )
    lines = done.stdout.strip().splitlines()
    if done.returncode:
        sys.stderr.write(done.stdout + done.stderr)
        said = [line for line in (*lines, *done.stderr.strip().splitlines()) if line.strip()] or ["no words"]
        bad = [line for line in said if line.startswith(("FAILED", "ERROR"))]
        raise RuntimeError("; ".join([said[-1], *bad[:1]]))
    return lines or [""]


if __name__ == "__main__":
    sys.exit(main())

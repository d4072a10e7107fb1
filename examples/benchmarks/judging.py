"""What does judging a distilled set cost: a training step, and ten thousand test images, for one network of an evaluation?

    python examples/benchmarks/judging.py                           # prints a table, writes docs/results/judging.json and .png
    python examples/benchmarks/judging.py --quick --out /tmp/quick  # a test that it works

One ConvNet-3 is trained by Adam on 10 images of 3x32x32 with `FlipRotate`, and tested. "By autograd" is the usual way: torch.autograd.grad
of the eager network, whose freed memory goes back to the system ("kept" where it does not, as in `process.keep_freed_memory`); it is what
distilkit did before it judged by the programs of the inner step. Building programs is outside of the clock, and told as `build_seconds`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext

import common
import torch
from torch import Tensor

import distilkit as dk
from distilkit import process
from distilkit.data.bundle import Split
from distilkit.evaluation.training import Mode, TrainingSet, accuracy, draws, train
from distilkit.functional import optimizers
from distilkit.unroll.execution import Compile

QUESTION = "time of a training step and of 10,000 test images, for one network that judges a distilled set"
QUICK = {"width": 8, "steps": 3, "tests": 20, "compile": "trace"}
IMAGES, BATCH = 10, 1024
SIDES = ("by autograd, float32", "by autograd, float32, kept", "float32", "bfloat16")
Learning = Callable[[int], Tensor]  # trains for so many steps and gives the parameters (P,)


def by_autograd(learner: dk.Learner, training: TrainingSet, stream: dk.Stream) -> Learning:
    """The usual way."""

    def learn(steps: int) -> Tensor:
        params, state = learner.init(stream.fold("network"), device=training.images.device)
        for t in range(steps):
            made = draws(learner, training, [stream.fold("draw").fold(t)], [t])[0].to(training.images.device)
            params = params.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(learner.objective(params, training.images, training.labels, made), params)
            with torch.no_grad():
                params, state = optimizers.update(learner.optimizer, gradient, state, params)
        return params.detach()

    return learn


def plainly(learner: dk.Learner, params: Tensor, split: Split) -> None:
    """Test as torch does."""
    with torch.no_grad():
        for images in split.images.split(BATCH):
            learner.logits(params, images).argmax(-1)


def measure(side: str, width: int, steps: int, tests: int, compile: Compile, threads: int, device: str) -> common.Row:
    """Run one case in this process."""
    common.prepare(threads, device)
    learner = dk.Learner(dk.ConvNet(width=width), dk.Adam(), augment=dk.FlipRotate()).bind((3, 32, 32), 10)
    stream, classes = dk.Stream(0), torch.arange(IMAGES) % 10
    training = TrainingSet(stream.fold("set").normal(IMAGES, 3, 32, 32).to(device), torch.eye(10)[classes].to(device), classes)
    split = Split(stream.fold("tests").normal(tests, 3, 32, 32).to(device), (torch.arange(tests) % 10).to(device))
    mode = Mode(side, compile)
    usual = side.startswith("by autograd")
    learn = by_autograd(learner, training, stream) if usual else lambda n: next(train(learner, training, [stream], [n], mode=mode))[1][0]
    test = plainly if usual else lambda learner, params, split: accuracy(learner, params[None], split, mode)

    def clocked(work: Callable[[], object]) -> float:
        common.wait(device)
        began = time.perf_counter()
        work()
        common.wait(device)
        return time.perf_counter() - began

    with nullcontext() if side == SIDES[0] else process.keep_freed_memory():
        build = clocked(lambda: test(learner, learn(2), split))
        params = learn(2)
        short, long = clocked(lambda: learn(2)), clocked(lambda: learn(2 + steps))
        tested = clocked(lambda: test(learner, params, split))
    return {"step_seconds": (long - short) / steps, "seconds_of_10000_tests": tested * 1e4 / tests, "build_seconds": build}


def figure(rows: list[common.Row], given: common.argparse.Namespace) -> None:
    """Plot both times."""
    drawn = common.figure(8, 2.6)
    for axes, name, scale, label in zip(
        drawn.subplots(1, 2, sharey=True),
        ("step_seconds", "seconds_of_10000_tests"),
        (1e3, 1),
        ("ms a training step", "s for 10,000 tests"),
        strict=True,
    ):
        axes.barh([row["side"] for row in rows], [scale * row[name]["median"] for row in rows], color=common.BLUE)
        axes.set_xlabel(label)
        axes.invert_yaxis()
    common.save(drawn, given)


def main() -> None:
    """Measure, print, write and draw."""
    parser = common.parser(__doc__, repeats=3)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--tests", type=int, default=4096)
    parser.add_argument("--compile", help="of the evaluation; by default auto on a GPU, and inductor on a CPU")
    given = common.parse(parser, QUICK)
    if given.case:
        common.answer(measure(**given.case))
        return
    given.compile = given.compile or ("auto" if common.on_gpu(given.device) else "inductor")
    settings = {name: getattr(given, name) for name in ("width", "steps", "tests", "compile", "threads", "device")}
    rows = common.run([{"side": side} for side in SIDES], settings, given)
    good = [row for row in rows if "failed" not in row]
    for row in good:
        step, tests = 1e3 * row["step_seconds"]["median"], row["seconds_of_10000_tests"]["median"]
        print(f"{row['side']:28} {step:8.1f} ms a step {tests:8.1f} s / 10,000 tests")
    common.write(given, QUESTION, settings, rows)
    figure(good, given)
    common.finish(given, rows)


if __name__ == "__main__":
    main()

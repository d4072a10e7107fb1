"""Which way to the meta-gradient gives the best set in the same time?

    python examples/ablation.py --data cifar10 --seconds 900                          # all, one after the other
    python examples/ablation.py --data fashion-mnist --only RaT-BPTT "AT-BPTT" --seeds 0 1 2
    python examples/ablation.py --data cifar10 --per-class 10 --seconds 600           # an inner step takes one image of each class
    python examples/ablation.py --data cifar10 --shard 2/4                            # a quarter of them, on a machine of four

Each run is the example of its data with the settings of `FIELD`, much as in `fast/cifar10-ipc1`, and with what stands in `WAYS`. Networks
that judge take plain Adam at 1e-3 where the way does not change the inner rate, and that rate or the learned one where it does.
How many outer steps go into the time is measured on a few of them, so that the cosine of the learning rate ends with it. Looks at
validation and the test are not counted, nor is the building of programs. A machine that does other work beside tells a wrong time:
`--measure` keeps what an outer step of each way costs while it is quiet, in ablation-costs.json, and runs of the same machine, threads and
torch then count that for every step. Sets are tested by networks as wide as those they were made with,
and by the field's, of width 128 (`--judges`). What is found is added to docs/results/ablation.json, run by run, so that a call that was
stopped goes on, and drawn beside it; several processes may add to it. Those of `--workers` share the machine's cores, so that less is done
in the same time than by one alone. A figure and a table hold runs of one width, one time and one number of images per class.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import math
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from headline import processor

import distilkit as dk
from distilkit import spec
from distilkit.cli.options import shard_of
from distilkit.display import Console, Display
from distilkit.report.drawing import new_figure, save
from distilkit.storage.grid import part_of
from distilkit.storage.workers import share_out

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results" / "ablation.json"
COSTS = "ablation-costs.json"  # beside it
SPECS = {"cifar10": "cifar10.toml", "fashion-mnist": "fashion_mnist.toml", "digits": "digits.toml"}
FIELD = [
    'unroller.precision="bfloat16"',
    'evaluation.precision="bfloat16"',  # judges as float32 does (docs: Judging distilled sets), in half of the time
    "outer.batch_size=500",
    "outer.optimizer.lr=0.03",
    'learner.augment={kind="FlipRotate"}',
    'outer.augment={kind="FlipRotate"}',
]
LOOKS = 5  # at validation, in equal distances
TRIED = 5  # places of a run at which two outer steps are taken: the first may build programs, and only the second counts
CALM = "learner.optimizer.eps_root=1e-6"
WITHOUT_FIRST = 'truncation={kind="FixedStart",start=1,window=39}'
SHORT_FIRST = 'truncation={kind="Growing",first=0.25,steps=%d,policy={kind="FixedStart",start=1,window=39}}'
SMALL_BATCH = "outer.batch_size=128"
WAYS: dict[str, list[str]] = {
    "RaT-BPTT": ['truncation={kind="RandomTruncation",horizon=40,window=15}'],
    "RaT-BPTT, the paper's 200 and 60": ['truncation={kind="RandomTruncation",horizon=200,window=60}'],
    "RaT-BPTT, windows of 40 in 120": ['truncation={kind="RandomTruncation",horizon=120,window=40}'],
    "RaT-BPTT, stratified": ['truncation={kind="RandomTruncation",horizon=40,window=15,stratified=true}'],
    "AT-BPTT": ['truncation={kind="AdaptiveTruncation",horizon=40,window=15,spread=5}'],
    "full unroll": ['truncation={kind="FullUnroll",horizon=40}'],
    "full unroll, eps_root": ['truncation={kind="FullUnroll",horizon=40}', CALM],
    "without step 0": [WITHOUT_FIRST],
    "without step 0, eps_root": [WITHOUT_FIRST, CALM],
    "windows of 40 in 120, eps_root": ['truncation={kind="RandomTruncation",horizon=120,window=40}', CALM],
    "twice the steps": ['truncation={kind="FixedStart",start=1,window=79}', CALM],
    "half the steps, inner rate 0.003": ['truncation={kind="FixedStart",start=1,window=19}', CALM, "learner.optimizer.lr=0.003"],
    "quicker second moment": [WITHOUT_FIRST, CALM, "outer.optimizer.betas=[0.9,0.95]"],
    "three ends": [WITHOUT_FIRST, CALM, "outer.ends=3"],
    "ends where the cotangent dies out": [WITHOUT_FIRST, CALM, 'unroller.adjoint={kind="ReplayAdjoint",decay=0.01}'],
    "short inner runs first": [SHORT_FIRST, CALM],
    "smaller real batch": [WITHOUT_FIRST, CALM, SMALL_BATCH],
    "short inner runs first, smaller real batch": [SHORT_FIRST, CALM, SMALL_BATCH],
    "RaT-BPTT, smaller real batch": ['truncation={kind="RandomTruncation",horizon=40,window=15}', SMALL_BATCH],
    "RaT-BPTT, eps_root": ['truncation={kind="RandomTruncation",horizon=40,window=15}', CALM],
    "AT-BPTT, eps_root": ['truncation={kind="AdaptiveTruncation",horizon=40,window=15,spread=5}', CALM],
    "RaT-BPTT, outer rate 0.01": ['truncation={kind="RandomTruncation",horizon=40,window=15}', "outer.optimizer.lr=0.01"],
    "narrow networks first": [WITHOUT_FIRST, CALM, "growth={until=[0.6],widths=[32]}"],
    "average of the set": [WITHOUT_FIRST, CALM, "outer.average=0.99"],
    "two networks a step": [WITHOUT_FIRST, CALM, "unroller.networks_per_step=2"],
    "learned rate": [WITHOUT_FIRST, CALM, "learner.learn_lr=true"],
    "learned rate of each step": [WITHOUT_FIRST, CALM, "learner.learn_lr=true", "learner.lr_steps=40"],
    "hard labels": [WITHOUT_FIRST, CALM, "labels.learn=false"],
}


def ways_of(data: str) -> list[str]:
    """Those that the example of some data can go: the MLP of the digits has no width to grow."""
    return [way for way, changes in WAYS.items() if data != "digits" or not any("widths" in one for one in changes)]


def pipeline(
    data: str, way: str, seed: int, steps: int, networks: int, threads: int | None, width: int = 128, per_class: int = 1
) -> dk.Distiller:
    """The example of some data, with another way to the meta-gradient and so many outer steps."""
    changes = [] if data == "digits" else [*FIELD, f"learner.network.width={width}"]
    changes += [*(one % max(1, steps // 2) if "%d" in one else one for one in WAYS[way])]
    if data != "digits" and not any("learn_lr" in one or "learner.optimizer.lr" in one for one in changes):
        changes += ['evaluation.optimizer={kind="Adam",lr=0.001}']
    if per_class > 1:
        changes += [f"images.per_class={per_class}", "learner.batch_per_class=1"]
    changes += [f"seed={seed}", f"outer.steps={steps}", f"evaluation.every={max(1, math.ceil(steps / LOOKS))}"]
    lengths = "[100,200]" if per_class == 1 else "[100,200,400]"
    changes += [f"evaluation.seeds={networks}", f"evaluation.steps={lengths}", "evaluation.baselines=[]"]
    return spec.load(ROOT / "examples" / SPECS[data], [*changes, *([f"threads={threads}"] if threads else [])])


def seconds_of_a_step(distiller: dk.Distiller) -> float:
    """Of one outer step, its programs built: the mean of some that lie over the whole run, as windows and networks may grow."""
    state, steps = distiller.init(), distiller.outer_steps
    spent = []
    for at in np.linspace(0, steps - 1, TRIED).astype(int).tolist():
        for _ in range(2):  # the second one has the policy of the first, which may have made a trial run that is not made every time
            after, info = distiller.step(state._replace(step=at, stage_step=at))
            state = state._replace(policy=after.policy)
        spent.append(info.seconds)
    return statistics.fmean(spent)


def machine(threads: int | None) -> dict[str, Any]:
    """What a time depends on."""
    return {"hardware": processor(), "threads": threads or torch.get_num_threads(), "torch": torch.__version__}


def run(
    data: str,
    way: str,
    seed: int,
    seconds: float,
    networks: int,
    threads: int | None,
    width: int,
    judges: int,
    per_class: int,
    cost: float | None,
    display: dk.Progress,
) -> dict[str, Any]:
    """One run of so many seconds of outer steps, and what it gave. `cost`: of an outer step, where it is known."""
    display.phase(f"{data}, {way}, seed {seed}: trying some outer steps")
    one = cost or seconds_of_a_step(pipeline(data, way, seed, 1000, networks, threads, width, per_class))
    steps = LOOKS * max(1, round(seconds / one / LOOKS))
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "run")
        tree = dk.run(pipeline(data, way, seed, steps, networks, threads, width, per_class), folder, display)
        wide = None if data == "digits" or judges == width else tested_by_wider(folder, judges, display)
        accuracy, validation = tree["evaluation"]["accuracy"].values, tree["evaluation"]["validation_accuracy"].load()
    history = np.full(steps, cost) if cost else without_building(tree["history"]["seconds"].values)
    done = validation["outer_step"].values.tolist()
    return {
        "data": data,
        "way": way,
        "seed": seed,
        "budget": seconds,
        "width": width,
        "judges": judges,
        "per_class": per_class,
        "mean": float(np.nanmean(accuracy)),  # without those that diverged
        "values": [None if np.isnan(one) else one for one in accuracy.tolist()],
        "wider": wide,
        "outer_steps": steps,
        "seconds": float(history.sum()),
        "seconds_are": "steps of a measured cost" if cost else "of the run's clock",
        "looks": {
            "outer_step": done,
            "seconds": [float(history[:k].sum()) for k in done],
            "accuracy": validation.mean("seed").values.tolist(),
        },
        **machine(threads),
        "date": datetime.date.today().isoformat(),
    }


def without_building(seconds: np.ndarray) -> np.ndarray:
    """The time of each step, where one that took over three times as long as its neighbours, since it built programs, counts as they do."""
    around = np.array([np.median(seconds[max(0, k - 5) : k + 6]) for k in range(len(seconds))])
    return np.where(seconds > 3 * around, around, seconds)


def tested_by_wider(folder: Path, width: int, display: dk.Progress) -> dict[str, Any]:
    """Test accuracies of ConvNets of another width that are trained on the set of a run, after the steps that are best on validation."""
    network = spec.load(folder / "spec.toml", [f"learner.network.width={width}"]).learner.network
    judged = dk.evaluate(folder, networks={"wider": network}, progress=display).sel(network="wider")
    return {"width": width, "values": judged.accuracy.sel(training_steps=judged.selected_steps).values.tolist()}


def draw(found: list[dict[str, Any]], data: str, path: Path) -> None:
    """Validation accuracy against seconds and against outer steps: a colour for each way, a line for each seed."""
    figure = new_figure(11, 4.5)
    left, right = figure.subplots(1, 2, sharey=True)
    ways = list(dict.fromkeys(one["way"] for one in found))
    each = "one image" if found[0]["per_class"] == 1 else f"{found[0]['per_class']} images"
    for one in found:
        number, looks = ways.index(one["way"]), one["looks"]
        style: dict[str, Any] = {"marker": ".", "color": f"C{number % 10}", "linestyle": "-" if number < 10 else "--"}
        height = 100 * np.array(looks["accuracy"])
        left.plot(np.array(looks["seconds"]) / 60, height, label=one["way"], **style)
        right.plot(looks["outer_step"], height, **style)
    left.set(xlabel="minutes of outer steps", ylabel="validation accuracy, %", title=f"{data}, {each} a class")
    right.set(xlabel="outer steps")
    handles = dict(zip(*reversed(left.get_legend_handles_labels()), strict=True))  # one for each way
    figure.legend(handles.values(), handles, loc="outside right center", fontsize=8, frameon=False)
    save(figure, path)


def read(path: Path) -> list[dict[str, Any]]:
    """What was found before."""
    found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    return found


def add(path: Path, one: dict[str, Any]) -> list[dict[str, Any]]:
    """What was found before, and one more, which is added to the file; other processes may be at it."""
    with FileLock(f"{path}.lock"):
        found = [*read(path), one]
        new = path.with_suffix(".new")
        new.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        os.replace(new, path)
    return found


def measure(given: argparse.Namespace) -> None:
    """Keep what an outer step of each way costs."""
    costs = given.out.with_name(COSTS)
    for way in given.only or ways_of(given.data):
        made = pipeline(given.data, way, given.seeds[0], 1000, given.networks, given.threads, given.width, given.per_class)
        one = key_of_cost(given, way) | {"seconds": seconds_of_a_step(made), "date": datetime.date.today().isoformat()}
        print(f"{way}: {one['seconds']:.2f} s", flush=True)
        add(costs, one)


def key_of_cost(given: argparse.Namespace, way: str) -> dict[str, Any]:
    """What the cost of an outer step hangs on."""
    return {"data": given.data, "way": way, "width": given.width, "per_class": given.per_class} | machine(given.threads)


def cost_of(given: argparse.Namespace, way: str) -> float | None:
    """What an outer step of a way costs on this machine, where that was measured."""
    key = key_of_cost(given, way)
    return next((one["seconds"] for one in reversed(read(given.out.with_name(COSTS))) if key.items() <= one.items()), None)


def take(given: argparse.Namespace, way: str, seed: int, display: dk.Progress) -> None:
    """One run, unless it is there; add what it gave, and draw it."""
    asked = {"budget": given.seconds, "width": given.width, "judges": given.judges, "per_class": given.per_class}
    key = {"data": given.data, "way": way, "seed": seed, **asked}
    if any(key.items() <= one.items() for one in read(given.out)):
        return
    settings = (given.seconds, given.networks, given.threads, given.width, given.judges, given.per_class, cost_of(given, way))
    one = run(given.data, way, seed, *settings, display)
    found = add(given.out, one)
    print(f"{way}, seed {seed}: {100 * one['mean']:.1f} after {one['outer_steps']} outer steps in {one['seconds']:.0f} s", flush=True)
    mine = [row for row in found if all(row[name] == one[name] for name in ("data", "budget", "width", "per_class"))]
    many = "" if given.per_class == 1 else f"-ipc{given.per_class}"
    draw(mine, given.data, given.out.with_name(f"{given.out.stem}-{given.data}{many}.png"))


def main() -> None:
    """Run what is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=SPECS, default="cifar10")
    parser.add_argument("--only", nargs="+", choices=WAYS, metavar="WAY", help="; ".join(WAYS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--seconds", type=float, default=900.0, help="of outer steps (default: %(default)s)")
    parser.add_argument("--width", type=int, default=128, help="of the ConvNets, also of those that judge (default: %(default)s)")
    parser.add_argument(
        "--judges", type=int, default=128, help="width of the ConvNets that test each set in the end (default: %(default)s)"
    )
    parser.add_argument("--per-class", type=int, default=1, help="images of each class (default: %(default)s)")
    parser.add_argument("--networks", type=int, default=5, help="that judge a set")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--workers", type=int, metavar="N", help="processes of this machine that share the runs")
    parser.add_argument("--shard", metavar="I/N", help="do the I-th of N parts of the runs only")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--measure", action="store_true", help="only measure what an outer step costs, on a quiet machine")
    given = parser.parse_args()
    if given.measure:
        if given.shard or given.workers:
            parser.error("--measure wants the machine to itself: leave --shard and --workers out")
        return measure(given)
    runs = list(itertools.product(given.seeds, given.only or ways_of(given.data)))
    try:
        runs = [runs[number] for number in part_of(len(runs), shard_of(given.shard))]
    except dk.DistilkitError as error:
        parser.error(str(error))

    def work(number: int, display: dk.Progress = dk.Silent()) -> None:  # noqa: B008  (it has no state)
        seed, way = runs[number]
        take(given, way, seed, display)

    def seen(done: int) -> None:
        """Each run says when it is done."""

    done: set[int] = set()
    if given.workers:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        done = set(share_out(work, range(len(runs)), given.workers, folder=given.out.parent.absolute(), threads=given.threads, seen=seen))
    for number in range(len(runs)):
        if number not in done:
            with Display(Console()) as display:
                work(number, display)


if __name__ == "__main__":
    main()

"""How near is `distilkit plan` to what a run takes: peak memory of the process, and seconds of an outer step?

    python examples/benchmarks/plan.py                     # prints a table, writes docs/results/plan.json and .png
    python examples/benchmarks/plan.py --quick --out /tmp/quick  # a test that it works

Each spec is planned in one fresh process and run in another, whose largest resident memory from its start to its end, evaluation
included, is what was planned for. Real data are noise of CIFAR-10's shapes, or the digits of scikit-learn.
"""

from __future__ import annotations

import resource
import statistics
import tempfile
from pathlib import Path

import common

QUESTION = "planned against measured: peak memory, and seconds of an outer step"
ALLOWED = 0.25  # of the measured peak
SPECS = {
    "digits, MLP": ["data=digits"],
    "ConvNet-3, 100 images": ["width=128", "ipc=10", "window=6", "horizon=10", "batch=200"],
    "ConvNet-3, bfloat16, 4 steps kept": ["width=128", "ipc=10", "window=6", "horizon=10", "batch=200", "precision=bfloat16", "keep=4"],
    "ConvNet-3, whole-window autograd": ["width=64", "ipc=2", "window=12", "horizon=20", "batch=100", "adjoint=autograd"],
    "wide MLP, long window": ["hidden=1000", "ipc=1", "window=60", "horizon=80", "batch=500"],
    "wide MLP, every eighth state": ["hidden=1000", "ipc=1", "window=60", "horizon=80", "batch=500", "every=8"],
    "ConvNet-2, 5 of 20 steps kept": ["width=32", "depth=2", "ipc=5", "window=20", "horizon=30", "batch=200", "keep=5"],
    "ConvNet-2, 8 networks side by side": ["width=8", "depth=2", "ipc=1", "window=20", "horizon=30", "batch=500", "networks=8"],
}
QUICK = ["digits, MLP"]


def pipeline(words: list[str], steps: int):  # type: ignore[no-untyped-def]
    """The distiller of a spec, with a short evaluation."""
    import distilkit as dk

    options = dict(word.split("=") for word in words)
    number = {key: int(value) for key, value in options.items() if value.isdigit()}
    evaluation = dk.Evaluation(seeds=2, steps=(5,), every=0, baselines=("random real",))
    if "data" in options:
        learner = dk.Learner(dk.MLP(hidden=(128,)), dk.Adam(lr=0.01))
        outer = dk.Outer(steps=steps)
        return dk.Distiller(dk.Digits(), learner, dk.RandomTruncation(40, 20), outer=outer, evaluation=evaluation)
    data = common.noise(2000, 200, validation=200)
    network = dk.MLP(hidden=(number["hidden"],)) if "hidden" in number else dk.ConvNet(width=number["width"], depth=number.get("depth", 3))
    replay = dk.ReplayAdjoint(checkpoint_every=number.get("every", 1), keep_last=number.get("keep", 0))
    unroller = dk.Unroller(
        dk.AutogradAdjoint() if options.get("adjoint") == "autograd" else replay,
        precision=options.get("precision", "float32"),
        networks_per_step=number.get("networks", 1),
    )
    return dk.Distiller(
        data,
        dk.Learner(network, dk.Adam(lr=1e-3)),
        dk.RandomTruncation(number["horizon"], number["window"]),
        unroller,
        images=dk.Images(per_class=number["ipc"]),
        outer=dk.Outer(steps=steps, batch_size=number["batch"]),
        evaluation=evaluation,
    )


def measure(spec: str, what: str, steps: int) -> common.Row:
    """Plan or run a spec in this process."""
    distiller = pipeline(SPECS[spec], steps)
    if what == "plan":
        from distilkit.runs.plan import plan

        found = plan(distiller)
        return {"bytes": found.peak, "seconds": found.seconds}
    with tempfile.TemporaryDirectory() as folder:
        tree = distiller.run(Path(folder) / "run")
        seconds = tree["history"]["seconds"].values[1:]  # the first step builds programs
    return {"bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, "seconds": statistics.mean(seconds.tolist())}


def draw(given: common.argparse.Namespace, rows: list[common.Row]) -> None:
    """Planned over measured, spec by spec."""
    figure = common.figure(8, 0.45 * len(rows) + 1.6)
    left, right = figure.subplots(1, 2, sharey=True)
    names = [row["spec"] for row in rows]
    for axes, key, title, color in ((left, "memory_ratio", "peak memory", common.BLUE), (right, "time_ratio", "outer step", common.ORANGE)):
        axes.axvspan(1 - ALLOWED, 1 + ALLOWED, color=common.GRAY, alpha=0.15, linewidth=0)
        axes.axvline(1, color=common.GRAY, linewidth=1)
        axes.plot([row[key] for row in rows], names, "o", color=color)
        axes.set(title=title, xlim=(0, max(2.0, 1.1 * max(row[key] for row in rows))))
        axes.grid(alpha=0.3, axis="x")
    left.invert_yaxis()
    figure.suptitle("planned over measured", fontsize=10)
    common.save(figure, given)


def main() -> None:
    """Plan and run every spec, and compare."""
    made = common.parser(__doc__, repeats=1)
    made.add_argument("--specs", nargs="+", default=list(SPECS), choices=list(SPECS))
    made.add_argument("--steps", type=int, default=6, help="outer steps of a run")
    given = common.parse(made, {"specs": QUICK, "steps": 3})
    if given.case:
        common.answer(measure(**given.case))
        return
    cases = [{"spec": spec, "what": what} for spec in given.specs for what in ("plan", "run")]
    found = common.run(cases, {"steps": given.steps}, given)
    rows, broken = [], [row for row in found if "failed" in row]
    for planned, ran in zip(found[::2], found[1::2], strict=True):
        if planned in broken or ran in broken:
            continue
        ratios = {
            "memory_ratio": planned["bytes"]["median"] / ran["bytes"]["median"],
            "time_ratio": planned["seconds"]["median"] / ran["seconds"]["median"],
        }
        rows.append({"spec": planned["spec"], "options": SPECS[planned["spec"]], "planned": planned, "ran": ran} | ratios)
        gib = [side["bytes"]["median"] / 2**30 for side in (planned, ran)]
        print(f"{planned['spec']:36s} planned {gib[0]:5.2f} GiB, measured {gib[1]:5.2f}, ratio {ratios['memory_ratio']:.2f}; ", end="")
        print(f"{planned['seconds']['median']:.3g} s, {ran['seconds']['median']:.3g} s, ratio {ratios['time_ratio']:.2f}")
    common.write(given, QUESTION, {"outer_steps": given.steps}, [*rows, *broken])
    draw(given, rows)
    common.finish(given, [*rows, *broken])


if __name__ == "__main__":
    main()

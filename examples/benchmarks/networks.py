"""Several inner networks in an outer step: is it faster to stack them and take all by the same operations, or one after the other?

    python examples/benchmarks/networks.py                     # prints a table, writes docs/results/networks.json and .png
    python examples/benchmarks/networks.py --quick --out /tmp/quick  # a test that it works

A meta-gradient through five steps, from step 5 on, of four networks on 10 distilled and 256 real images, recorded. From this come
the limits in `distilkit.unroll.execution` that `side_by_side = "auto"` goes by.
"""

from __future__ import annotations

import statistics
import time

import common

QUESTION = "several networks in an outer step: side by side, or one after the other"
CASES = {
    "MLP 128, 8x8": ("MLP", {"hidden": [128]}, [1, 8, 8]),
    "MLP 128, 28x28": ("MLP", {"hidden": [128]}, [1, 28, 28]),
    "ConvNet-2 16, 8x8": ("ConvNet", {"width": 16, "depth": 2}, [1, 8, 8]),
    "ConvNet-2 32, 8x8": ("ConvNet", {"width": 32, "depth": 2}, [1, 8, 8]),
    "ConvNet-3 16, 28x28": ("ConvNet", {"width": 16}, [1, 28, 28]),
    "ConvNet-3 32, 28x28": ("ConvNet", {"width": 32}, [1, 28, 28]),
    "ConvNet-3 64, 32x32": ("ConvNet", {"width": 64}, [3, 32, 32]),
    "ConvNet-3 128, 32x32": ("ConvNet", {"width": 128}, [3, 32, 32]),
}


def measure(name: str, networks: int, rounds: int, threads: int, device: str) -> common.Row:
    """Time both ways in turn, in this process."""
    import torch

    import distilkit as dk
    from distilkit import process
    from distilkit.unroll.execution import operations
    from distilkit.unroll.inner import OuterVariables
    from distilkit.unroller import RealBatch

    common.prepare(threads, device)
    kind, options, shape = CASES[name]
    learner = dk.Learner(getattr(dk, kind)(**options), dk.Adam(lr=1e-3)).bind(tuple(shape), 10)
    labels = [torch.eye(10)[torch.arange(count) % 10].to(device) for count in (10, 256)]
    images, real = (dk.Stream(0).fold(count).normal(count, *shape).to(device) for count in (10, 256))
    leaves, batch = OuterVariables(images, labels[0], torch.tensor(1e-3).log().to(device)), RealBatch(real, labels[1])
    ways = {
        way: dk.Unroller(compile="auto" if common.on_gpu(device) else "trace", networks_per_step=networks, side_by_side=way)
        for way in ("off", "on")
    }
    found: dict[str, list[float]] = {"off": [], "on": []}
    with process.keep_freed_memory():
        for k in range(rounds + 1):  # the first round builds programs
            for way, unroller in ways.items():
                common.wait(device)
                began = time.perf_counter()
                unroller.meta_gradient(learner, leaves, dk.Window(5, 10), batch, dk.Stream(k), torch.arange(10)).loss.item()
                if k:
                    found[way].append(time.perf_counter() - began)
    ratio = statistics.median(found["off"]) / statistics.median(found["on"])
    facts = {"operations": operations(learner, (10, *shape)), "parameters": learner.layout.size}
    return {"one_by_one_seconds": found["off"], "side_by_side_seconds": found["on"], "times_faster": ratio, "facts": facts}


def draw(given: common.argparse.Namespace, rows: list[common.Row]) -> None:
    """Times faster against the operations of a forward pass."""
    figure = common.figure(7, 4)
    axes = figure.subplots()
    axes.axhline(1, color=common.GRAY, linewidth=1)
    for k, row in enumerate(rows):
        color = common.ORANGE if row["name"].startswith("MLP") else common.BLUE
        axes.plot(row["operations"], row["times_faster"]["median"], "o", color=color)
        axes.annotate(
            row["name"],
            (row["operations"], row["times_faster"]["median"]),
            textcoords="offset points",
            xytext=(0, -13 if k % 2 else 8),
            fontsize=7,
            ha="center",
        )
    axes.set(
        xscale="log",
        xlabel="floating point operations of a forward pass on 10 images",
        ylabel="times faster side by side",
        ylim=(0, None),
        title=f"{given.networks} networks, {given.threads} thread{'s' * (given.threads > 1)}",
    )
    axes.margins(x=0.15)
    axes.grid(alpha=0.3)
    common.save(figure, given)


def main() -> None:
    """Measure every network, print and write."""
    made = common.parser(__doc__, repeats=1)
    made.add_argument("--names", nargs="+", default=list(CASES), choices=list(CASES))
    made.add_argument("--networks", type=int, default=4)
    made.add_argument("--rounds", type=int, default=5)
    given = common.parse(made, {"names": list(CASES)[:1], "rounds": 2})
    if given.case:
        common.answer(measure(**given.case))
        return
    settings = {key: getattr(given, key) for key in ("networks", "rounds", "threads", "device")}
    rows = common.run([{"name": name} for name in given.names], settings, given)
    good = [row for row in rows if "failed" not in row]
    for row in good:
        times = [1e3 * row[key]["median"] for key in ("one_by_one_seconds", "side_by_side_seconds")]
        front = f"{row['name']:24s} {row['operations']:8.1e} operations   one by one {times[0]:8.1f} ms   side by side {times[1]:8.1f} ms"
        print(f"{front}   {row['times_faster']['median']:.2f} times faster")
    common.write(given, QUESTION, settings, rows)
    draw(given, good)
    common.finish(given, rows)


if __name__ == "__main__":
    main()

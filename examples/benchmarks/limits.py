"""What fraction of the machine's limit does a step reach, and where does its time go?

    python examples/benchmarks/limits.py                           # prints tables, writes docs/results/limits.json and .png
    python examples/benchmarks/limits.py --precision float32 --repeats 1
    python examples/benchmarks/limits.py --quick --out /tmp/quick  # a test that it works

The three programs of a meta-gradient, a step, a step back and the end (loss on real images and its gradient), are clocked one call at
a time as `Unroller` runs them. Their products and convolutions are counted, and the rate is set beside that of a large matrix product
and of the network's own largest convolution, forward, in the same dtype (in the faster of both layouts). All else in a recorded
program moves memory: what every such operation reads and writes is added up and set beside the bandwidth of a copy. `limit` is
the time that the products would take at the convolution's rate, and all else at the copy's: for programs as they are recorded. A
compiler fuses operations, so that less is moved, and a fraction above 1 is possible.

The table of operators comes from running the recorded program one operation at a time.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any
from unittest import mock

import common
import optree
import torch
from torch import Tensor, fx
from torch.utils.flop_counter import FlopCounterMode, flop_registry

QUESTION = "the rate of a step's programs over what the machine can do, and the share of each operator"
QUICK = {"width": 8, "images": 10, "window": 2, "product": 256, "copy_mib": 4, "calls": 3, "compile": "trace"}
TITLES = {"step": "step", "back": "step back", "end": "end"}  # how `Unroller` names programs, and how we do
TOP = 12
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Clocked:
    """Programs whose every call is timed, and whose functions and first arguments are kept."""

    def __init__(self, programs: Callable[..., Callable[..., Any]], device: str) -> None:
        self.programs, self.device = programs, device
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.calls: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {}

    def __call__(self, name: str, function: Callable[..., Any], *ways: Callable[..., Any]) -> Callable[..., Any]:
        """The program of that name, timed."""
        program = self.programs(name, function, *ways)

        def clocked(*arguments: Any) -> Any:
            self.calls.setdefault(name, (function, arguments))
            common.wait(self.device)
            began = time.perf_counter()
            result = program(*arguments)
            common.wait(self.device)
            self.seconds[name].append(time.perf_counter() - began)
            return result

        return clocked


def in_use(problem: common.Problem, precision: str, compile: str, window: int, device: str, kernels: str = "torch") -> Clocked:
    """Take meta-gradients with every call of a program clocked. All that reaches into distilkit is here and in `recorded`."""
    import distilkit as dk
    from distilkit.programs.programs import Programs

    unroller = dk.Unroller(dk.ReplayAdjoint(keep_last=0), precision=precision, compile=compile, kernels=kernels)
    shape = tuple(problem.leaves.images.shape)
    kind = unroller.execution(problem.learner, shape, problem.leaves.images.device).kind
    clocked = Clocked(Programs(kind), device)
    with mock.patch("distilkit.unroller.ProgramCache.of", return_value=clocked):
        for steps in (dk.Window(0, 2), dk.Window(1, 1 + window)):  # the first warms up; in bfloat16, step 0 is in float32
            clocked.seconds.clear()
            unroller.meta_gradient(problem.learner, problem.leaves, steps, problem.batch, dk.Stream(0))
    return clocked


def recorded(function: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[fx.GraphModule, list[Any]]:
    """The recorded program of a function, and its flat arguments."""
    from distilkit.programs.programs import record

    flat: list[Any] = optree.tree_leaves(arguments)  # type: ignore[arg-type]
    return record(function, arguments), flat


class Profile(fx.Interpreter):
    """Runs a recorded program one operation at a time: {operator: [calls, seconds, bytes read and written]}."""

    def __init__(self, graph: fx.GraphModule, device: str) -> None:
        super().__init__(graph)
        self.device = device
        self.found: dict[str, list[float]] = defaultdict(lambda: [0, 0.0, 0])

    def run_node(self, n: fx.Node) -> Any:
        """Run one operation on the clock."""
        if n.op != "call_function":
            return super().run_node(n)
        given = tensors(self.fetch_args_kwargs_from_env(n))
        common.wait(self.device)
        began = time.perf_counter()
        result = super().run_node(n)
        common.wait(self.device)
        row = self.found[operator(n)]
        row[0] += 1
        row[1] += time.perf_counter() - began
        if moves(n):
            row[2] += sum(size(x) for x in {id(x): x for x in given + tensors(result)}.values())
        return result


def tensors(tree: Any) -> list[Tensor]:
    """The tensors of a tree."""
    leaves: list[Any] = optree.tree_leaves(tree)
    return [x for x in leaves if isinstance(x, Tensor)]


def operator(node: fx.Node) -> str:
    """The name of an operation without its library and overload."""
    return str(getattr(node.target, "_opname", getattr(node.target, "__name__", node.target)))


def multiplies(node: fx.Node) -> bool:
    """Whether an operation is a product or a convolution."""
    return getattr(node.target, "overloadpacket", None) in flop_registry


def moves(node: fx.Node) -> bool:
    """Whether an operation is made of reading and writing memory: no product, no view, nothing that only makes room."""
    schema = getattr(node.target, "_schema", None)
    if schema is None or multiplies(node) or "empty" in operator(node):
        return False
    return all(result.alias_info is None for result in schema.returns)


def size(x: Tensor) -> int:
    """Bytes of a tensor in memory; what is expanded lies there once."""
    return int(min(x.nbytes, x.untyped_storage().nbytes()))


def clock(work: Callable[[], object], calls: int, device: str) -> list[float]:
    """Seconds of single calls, after two that are not timed."""
    found = []
    for _ in range(calls + 2):
        common.wait(device)
        began = time.perf_counter()
        work()
        common.wait(device)
        found.append(time.perf_counter() - began)
    return found[2:]


def rates(dtype: torch.dtype, width: int, images: int, side: int, product: int, copy_mib: int, calls: int, device: str) -> common.Row:
    """What the machine can do: operations, or bytes, a second."""
    a, b = (torch.randn(product, product, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    products = [2 * product**3 / s for s in clock(lambda: torch.mm(a, b, out=out), calls, device)]
    kernel = torch.randn(width, width, 3, 3, device=device).to(dtype)
    work = 2 * 9 * width**2 * images * side**2
    convolutions: list[list[float]] = []
    for layout in (torch.contiguous_format, torch.channels_last):
        x, k = (t.to(memory_format=layout) for t in (torch.randn(images, width, side, side, device=device).to(dtype), kernel))
        convolutions.append([work / s for s in clock(lambda x=x, k=k: torch.conv2d(x, k, padding=1), calls, device)])  # type: ignore[misc]
    source = torch.ones(copy_mib * 2**18, device=device)
    target = torch.empty_like(source)
    copies = [2 * source.nbytes / s for s in clock(lambda: target.copy_(source), calls, device)]
    return {"matrix_product": products, "convolution": max(convolutions, key=statistics.median), "copy": copies}


def measure(
    precision: str, width: int, images: int, window: int, product: int, copy_mib: int, calls: int, compile: str, threads: int, device: str
) -> common.Row:
    """Run one case in this process."""
    from distilkit import process

    common.prepare(threads, device)
    problem = common.convnet(width, images, images, device)
    clocked = in_use(problem, precision, compile, window, device)
    suffix = next(name for name in clocked.seconds if name.startswith("end")).removeprefix("end")
    found: common.Row = {"facts": {}}
    with torch.no_grad(), process.keep_freed_memory():
        # The second block's: its images are half as large as those of the first, and it has `width` channels in and out.
        found |= rates(DTYPES[precision], width, images, problem.leaves.images.shape[-1] // 2, product, copy_mib, calls, device)
        for name in TITLES:
            program = next(known for known in clocked.seconds if known.startswith(name + suffix))  # "back" also names its product
            function, arguments = clocked.calls[program]
            graph, flat = recorded(function, arguments)
            with FlopCounterMode(display=False) as counter:
                function(*arguments)
            with FlopCounterMode(display=False) as counted:
                graph(*flat)
            profile = Profile(graph, device)
            profile.run(*flat)
            profile.found.clear()
            for _ in range(calls):
                profile.run(*flat)
            found[f"{name}_seconds"] = clocked.seconds[program]
            found[f"{name}_as_recorded_seconds"] = clock(lambda graph=graph, flat=flat: graph(*flat), calls, device)  # type: ignore[misc]
            means = {op: [value / calls for value in values] for op, values in profile.found.items()}
            operators = sorted(means.items(), key=lambda item: -item[1][1])
            total = sum(seconds for _, (_, seconds, _) in operators)
            found["facts"][name] = {
                "operations": counted.get_total_flops(),
                "operations_before_recording": counter.get_total_flops(),
                "elementwise_bytes": sum(moved for _, (_, _, moved) in operators),
                "operators": [
                    {"operator": op, "calls": n, "seconds": seconds, "share": seconds / total, "bytes": moved}
                    for op, (n, seconds, moved) in operators[:TOP]
                ],
                "operators_not_shown_share": sum(seconds for _, (_, seconds, _) in operators[TOP:]) / total,
            }
    return found


def against_limits(row: common.Row) -> list[common.Row]:
    """A row for each program: its rate over those of the machine, and its time over the limit."""
    rows = []
    product, convolution, copy = (row[name]["median"] for name in ("matrix_product", "convolution", "copy"))
    for name, title in TITLES.items():
        facts, seconds = row[name], row[f"{name}_seconds"]
        rate = facts["operations"] / seconds["median"]
        moving = facts["elementwise_bytes"] / copy
        limit = facts["operations"] / convolution + moving
        rows.append(
            {"precision": row["precision"], "program": title, "seconds": seconds, "as_recorded_seconds": row[f"{name}_as_recorded_seconds"]}
            | {"operations_per_second": rate, "over_matrix_product": rate / product, "over_convolution": rate / convolution}
            | {"elementwise_seconds_at_copy_bandwidth": moving, "limit_seconds": limit, "limit_over_seconds": limit / seconds["median"]}
            | facts
        )
    return rows


def show(machine: common.Row, rows: list[common.Row]) -> None:
    """Print the tables of one precision."""
    product, convolution, copy = (machine[name]["median"] / 1e9 for name in ("matrix_product", "convolution", "copy"))
    print(f"\n{machine['precision']}: matrix product {product:.0f}, convolution {convolution:.0f} GFLOP/s; copy {copy:.1f} GB/s")
    print(
        f"{'':10} {'ms':>8} {'GFLOP':>8} {'GFLOP/s':>8} {'of product':>10} {'of conv.':>8} {'GB moved':>8} {'limit, ms':>9} {'of limit':>8}"
    )
    for row in rows:
        rate = row["operations_per_second"] / 1e9
        left = f"{row['program']:10} {row['seconds']['median'] * 1e3:8.1f} {row['operations'] / 1e9:8.2f} {rate:8.1f}"
        right = f"{row['over_matrix_product']:10.2f} {row['over_convolution']:8.2f} {row['elementwise_bytes'] / 1e9:8.2f}"
        print(f"{left} {right} {row['limit_seconds'] * 1e3:9.1f} {row['limit_over_seconds']:8.2f}")
    for row in rows:
        print(f"  {row['program']}, as recorded ({row['as_recorded_seconds']['median'] * 1e3:.1f} ms):")
        for each in row["operators"]:
            print(f"    {each['share']:6.1%}  {each['operator']:32s} {each['calls']:4.0f} calls  {each['bytes'] / 1e6:8.1f} MB moved")


def draw(machines: list[common.Row], rows: list[common.Row], title: str, given: argparse.Namespace) -> None:
    """Plot rates, times beside limits, and the operators of a step back."""
    figure = common.figure(11, 8)
    (rate, spent), shares = figure.subplots(2, 2)
    places = range(len(rows))
    names = [f"{row['program']}\n{row['precision']}" for row in rows]
    rate.bar(places, [row["operations_per_second"] / 1e9 for row in rows], 0.6, color=common.BLUE, label="achieved")
    for machine in machines:
        here = [place for place in places if rows[place]["precision"] == machine["precision"]]
        ends, first = (here[0] - 0.45, here[-1] + 0.45), machine is machines[0]
        limits = {"convolution": (common.ORANGE, "its largest convolution"), "matrix_product": (common.GREEN, "a large matrix product")}
        for name, (color, label) in limits.items():
            rate.hlines(machine[name]["median"] / 1e9, *ends, color=color, linewidth=2, label=label if first else None)
    rate.set_ylabel("GFLOP/s")
    spent.bar(places, [row["seconds"]["median"] * 1e3 for row in rows], 0.36, align="edge", color=common.BLUE, label="in use")
    moving = [row["elementwise_seconds_at_copy_bandwidth"] * 1e3 for row in rows]
    products = [row["limit_seconds"] * 1e3 - m for row, m in zip(rows, moving, strict=True)]
    spent.bar(places, products, -0.36, align="edge", color=common.ORANGE, label="products at the convolution's rate")
    spent.bar(places, moving, -0.36, bottom=products, align="edge", color=common.GRAY, label="the rest at a copy's bandwidth")
    spent.set_ylabel("ms a call")
    for axes in (rate, spent):
        axes.set_xticks(places, names, fontsize=8)
        axes.margins(y=0.3)
        axes.legend(fontsize=8, loc="upper left")
    for axes, machine in zip(shares, machines, strict=False):
        row = next(row for row in rows if row["precision"] == machine["precision"] and row["program"] == TITLES["back"])
        operators = [each["operator"] for each in row["operators"]]
        bars = axes.barh(range(len(operators)), [each["share"] * 100 for each in row["operators"]], color=common.BLUE)
        axes.bar_label(bars, fmt="{:.1f}", fontsize=7, padding=2)
        axes.set_yticks(range(len(operators)), operators, fontsize=8)
        axes.invert_yaxis()
        axes.margins(x=0.12)
        axes.set_xlabel(f"percent of a step back in {machine['precision']}, as recorded", fontsize=9)
    for axes in shares[len(machines) :]:
        axes.set_axis_off()
    figure.suptitle(title, fontsize=10)
    common.save(figure, given)


def main() -> None:
    """Measure every precision, print, write and draw."""
    parser = common.parser(__doc__, repeats=3)
    parser.add_argument("--precision", nargs="+", default=list(DTYPES), choices=list(DTYPES))
    parser.add_argument("--compile", default="auto", help="of the unroller")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--images", type=int, default=100, help="distilled images, and real ones")
    parser.add_argument("--window", type=int, default=10, help="calls of a step and of a step back to time in each process")
    parser.add_argument("--product", type=int, default=4096, help="rows of the large matrix product")
    parser.add_argument("--copy-mib", type=int, default=256, help="size of the tensor that is copied")
    parser.add_argument("--calls", type=int, default=5, help="of everything else that is timed")
    given = common.parse(parser, QUICK)
    if given.case:
        common.answer(measure(**given.case))
        return
    settings = {name: getattr(given, name) for name in ("width", "images", "window", "product", "copy_mib", "calls", "compile", "threads")}
    settings["device"] = given.device
    found = common.run([{"precision": precision} for precision in given.precision], settings, given)
    machines, rows = [row for row in found if "failed" not in row], []
    for machine in machines:
        rows.append(against_limits(machine))
        show(machine, rows[-1])
    flat = [row for some in rows for row in some]
    words = {"convolution": "operations a second", "matrix_product": "operations a second", "copy": "bytes a second, read and written"}
    kept = [{name: machine[name] for name in ("precision", *words)} for machine in machines]
    broken = [row for row in found if "failed" in row]
    common.write(given, QUESTION, settings, flat + broken, machine=kept, units=words, network=f"ConvNet-3 of width {given.width}, Adam")
    if machines:
        draw(machines, flat, f"ConvNet-3 of width {given.width}, {given.images} images of 3x32x32, Adam", given)
    common.finish(given, found)


if __name__ == "__main__":
    main()

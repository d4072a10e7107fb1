"""Tables of benchmarks, each of the record that one of examples/benchmarks wrote."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

Record = dict[str, Any]


def as_table(headings: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A table."""
    headings = list(headings)
    lines = [headings, ["---"] * len(headings), *([str(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _unroll(record: Record) -> str:
    rows = []
    for row in record["rows"]:
        if not row.get("seconds"):
            rows.append([row["window"], row["side"], row.get("reason") or row["failed"], "", "", "", ""])
            continue
        beside = [r for r in record["rows"] if r["window"] == row["window"] and r["side"] == "higher" and r.get("seconds")]
        times, part = "-", "-"
        if beside:
            times = f"{beside[0]['seconds']['median'] / row['seconds']['median']:.1f}"
            part = f"{row['peak_bytes']['median'] / beside[0]['peak_bytes']['median']:.2f}"
        seconds = row["seconds"]
        rows.append([row["window"], row["side"], f"{seconds['median']:.2f}", _gib(row["peak_bytes"]), times, part, seconds["n"]])
    return as_table(["window", "side", "seconds", "peak GiB", "times faster than higher", "of its memory", "n"], rows)


def _limits(record: Record) -> str:
    rows = [
        [
            row["program"],
            row["precision"],
            f"{1e3 * row['seconds']['median']:.0f}",
            f"{1e3 * row['as_recorded_seconds']['median']:.0f}",
            f"{row['operations'] / 1e9:.1f}",
            f"{row['operations_per_second'] / 1e9:.0f}",
            f"{row['over_matrix_product']:.2f}",
            f"{row['over_convolution']:.2f}",
            f"{row['limit_over_seconds']:.2f}",
        ]
        for row in record["rows"]
    ]
    headings = ["program", "precision", "ms", "ms, only recorded", "GFLOP", "GFLOP/s"]
    headings += ["of a matrix product", "of its convolution", "of the limit"]
    rates = [
        [machine["precision"], *(f"{machine[name]['median'] / 1e9:.0f}" for name in ("matrix_product", "convolution", "copy"))]
        for machine in record["machine"]
    ]
    machine = as_table(["precision", "matrix product, GFLOP/s", "convolution, GFLOP/s", "copy, GB/s"], rates)
    return f"{as_table(headings, rows)}\n\n{machine}"


def _operators(record: Record) -> str:
    """Shares of the time of a step back, as recorded, by operator and precision."""
    backs = {row["precision"]: row["operators"] for row in record["rows"] if row["program"] == "step back"}
    names = list(dict.fromkeys(each["operator"] for operators in backs.values() for each in operators))
    share = {(p, each["operator"]): f"{100 * each['share']:.1f}" for p, operators in backs.items() for each in operators}
    return as_table(["operator", *(f"{p}, percent" for p in backs)], [[f"`{n}`", *(share.get((p, n), "") for p in backs)] for n in names])


def _slopes(record: Record) -> str:
    units = {"window": "a step of the window", "prefix": "a step before it", "images_per_class": "an image per class", "width": "width"}
    rows = []
    for name, fits in record["fits"].items():
        seconds, alive = fits["seconds"], fits["alive_bytes"]
        if "exponent" in seconds:
            rows.append([units[name], f"width to the {seconds['exponent']:.2f}", f"width to the {alive['exponent']:.2f}"])
        else:
            rows.append([units[name], f"{1e3 * seconds['slope']:.1f} ms", f"{alive['slope'] / 2**20:.1f} MiB"])
    return as_table(["of", "time", "memory alive"], rows)


def _evaluation(record: Record) -> str:
    rows = [[*_two_ways(row, row["network"], row["ratio"]), row["picked"]] for row in record["rows"] if "ratio" in row]
    return as_table([*TWO_WAYS, "picked"], rows)


def _judging(record: Record) -> str:
    first, rows = record["rows"][0], []
    for row in record["rows"]:
        step, tests = row["step_seconds"], row["seconds_of_10000_tests"]
        times = [f"{first[name]['median'] / row[name]['median']:.2f}" for name in ("step_seconds", "seconds_of_10000_tests")]
        rows.append([row["side"], f"{1e3 * step['median']:.1f}", times[0], f"{tests['median']:.1f}", times[1], step["n"]])
    return as_table(["way", "ms a training step", "times faster", "s for 10,000 tests", "times faster", "n"], rows)


def _processes(record: Record) -> str:
    rows = []
    for row in record["rows"]:
        seconds, model = row["seconds"]["median"], row["predicted_seconds"]
        count = [row["processes"], row["networks"], row["parts"]]
        rows.append([*count, f"{seconds:.2f}", f"{model:.2f}", f"{seconds / model:.2f}", row["seconds"]["n"]])
    return as_table(["processes", "networks", "parts", "s a meta-gradient", "the model", "ratio", "n"], rows)


def _micro_batches(record: Record) -> str:
    total, rows = record["settings"]["images"], []
    for row in record["rows"]:
        first, held = (f"{row[key]['median'] / 2**30:.2f}" for key in ("first_bytes", "held_bytes"))
        rows.append([f"{row['size'] or total} of {total}", first, held, row["held_bytes"]["n"]])
    return as_table(["images at a time", "GiB while programs are built", "GiB after that", "n"], rows)


def _networks(record: Record) -> str:
    return as_table(TWO_WAYS, [_two_ways(row, row["name"], row["times_faster"]) for row in record["rows"] if "times_faster" in row])


TWO_WAYS = ["network", "operations", "one by one, ms", "side by side, ms", "times faster"]


def _two_ways(row: Record, name: str, ratio: Record) -> list[str]:
    times = [f"{1e3 * row[key]['median']:.1f}" for key in ("one_by_one_seconds", "side_by_side_seconds")]
    return [name, f"{row['operations']:.1e}", *times, f"{ratio['median']:.2f}"]


def _plan(record: Record) -> str:
    rows = [
        [
            row["spec"],
            *(_gib(row[side]["bytes"]) for side in ("planned", "ran")),
            f"{row['memory_ratio']:.2f}",
            *(f"{row[side]['seconds']['median']:.3g}" for side in ("planned", "ran")),
            f"{row['time_ratio']:.2f}",
        ]
        for row in record["rows"]
    ]
    headings = ["spec", "planned GiB", "measured GiB", "ratio", "planned seconds a step", "measured", "ratio"]
    return as_table(headings, rows)


def _outer_steps(record: Record) -> str:
    rows = [
        [
            row["ipc"],
            row["precision"],
            f"{row['window'][1]}",
            row["window"][1] - row["window"][0],
            row["real_batch"],
            f"{row['seconds']['median']:.1f}",
            f"{row['inner_steps_per_second']['median']:.2f}",
            _gib(row["peak_bytes"]),
        ]
        for row in record["rows"]
        if "seconds" in row
    ]
    headings = ["images per class", "precision", "inner steps", "window", "real batch", "seconds an outer step"]
    headings += ["inner steps/s", "peak GiB"]
    return as_table(headings, rows)


def _counts(record: Record) -> str:
    """What the programs of a GPU hold: of each kind and size, before its faults were mended, now, and with kernels of our own."""
    rows = []
    cases = {(row["per_class"], row["precision"], row["way"]): row for row in record["rows"]}
    for name in ("step", "back", "end"):
        for images, precision in dict.fromkeys(key[:2] for key in cases):
            ways = [cases[images, precision, way][name] for way in ("before", "recorded", "kernels")]
            flop = f"{ways[-1]['flop'] / 1e9:.3g}" + (f" ({ways[0]['large_flop'] / 1e9:.2g} before)" if ways[0]["large_flop"] else "")
            cells = [" / ".join(f"{way['operations']:.0f}" for way in ways), " / ".join(f"{way['bytes'] / 1e9:.2f}" for way in ways)]
            cells += [" / ".join(f"{way['joined_operations']:.0f}" for way in ways[1:])]
            cells += [" / ".join(f"{way['joined_bytes'] / 1e9:.2f}" for way in ways[1:])]
            rows.append([name, images, precision, flop, *cells])
    headings = ["program", "images per class", "precision", "GFLOP (in large kernels)", "operations: before / now / with ours", "GB"]
    return as_table([*headings, "joined, operations: now / with ours", "joined, GB"], rows)


FORMS = {
    ("before", "recorded"): "before, as recorded",
    ("recorded", "recorded"): "now, as recorded",
    ("recorded", "joined_"): "now, joined",
    ("kernels", "joined_"): "with ours, joined",
}


def _model(record: Record) -> str:
    """Milliseconds of an outer step by the terms of a model."""
    rows = []
    for (way, form), words in FORMS.items():
        for row in record["rows"]:
            if row["way"] == way:
                terms = row["model"][form]
                spent = [f"{1e3 * x:.1f}" for x in (*terms.values(), sum(terms.values()))]
                rows.append([row["per_class"], row["precision"], words, *spent])
    rows.sort(key=lambda row: (row[0], row[1] == "bfloat16"))
    return as_table(["images per class", "precision", "programs", "products", "memory", "launches", "copies", "ms in all"], rows)


def _gib(values: Record) -> str:
    return f"{values['median'] / 2**30:.2f}"


TABLES: dict[str, Callable[[Record], str]] = {
    "unroll": _unroll,
    "limits": _limits,
    "operators": _operators,
    "plan": _plan,
    "outer_steps": _outer_steps,
    "networks": _networks,
    "slopes": _slopes,
    "evaluation": _evaluation,
    "judging": _judging,
    "processes": _processes,
    "micro_batches": _micro_batches,
    "counts": _counts,
    "model": _model,
}

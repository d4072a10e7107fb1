"""MkDocs hook: tables of pages are made of the data, so that the two cannot differ.

`<!-- table: NAME -->` becomes a table of docs/results/NAME.json, and `<!-- table: NAME of FILE -->` one of another file there.
"""

from __future__ import annotations

import csv
import json
import math
import re
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from benchmark_tables import TABLES, Record, as_table

from distilkit.storage.spread import plus_minus, told_cosine
from distilkit.studies.statistics import gain

RESULTS = Path(__file__).resolve().parents[1] / "results"
SCHEMA = Path(__file__).resolve().parents[2] / "distilkit/storage/formats/set.schema.json"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fill in every table of a page."""
    return re.sub(r"<!-- table: (\w+)(?: of (\w+))? -->", lambda found: table(found[1], found[2] or found[1]), markdown)


def table(name: str, source: str) -> str:
    """A table of a file, and what that was measured on where the file says so."""
    if name == "gradients":
        return _gradients(source)
    if name == "set_fields":
        return as_table(["field", "type", "meaning"], _fields(json.loads(SCHEMA.read_text(encoding="utf-8")), ""))
    record = json.loads((RESULTS / f"{source}.json").read_text(encoding="utf-8"))
    if name == "matrix":
        return f"{_matrix(record)}\n\n*All checks and versions: [{source}.json](results/{source}.json).*"
    if name in PLAIN:
        return PLAIN[name](record)
    versions = ", ".join(f"{package} {version}" for package, version in record["versions"].items())
    hardware = record["hardware"]
    kind = f" (family {hardware['family']}, model {hardware['model']})" if hardware.get("family") else ""
    machine = f"{hardware.get('gpu') or hardware['cpu'] + kind}, {hardware['threads']} of {hardware['cores']} cores"
    return f"{TABLES[name](record)}\n\n*{machine}; {versions}; {record['date']}. All numbers: [{source}.json](results/{source}.json).*"


def _fields(schema: Record, above: str) -> Iterable[list[str]]:
    """A row for each field of a JSON Schema, those inside of it below."""
    for name, field in schema.get("properties", {}).items():
        kinds = field.get("type", [])
        values = [f"`{json.dumps(value)}`" for value in field.get("enum", [field["const"]] if "const" in field else [])]
        types = [kinds] if isinstance(kinds, str) else kinds
        yield [f"`{above}{name}`", ", ".join(types) or " or ".join(values), field["description"]]
        yield from _fields(field, f"{above}{name}.")


def _matrix(record: Record) -> str:
    """What the cells of the support matrix gave, and every check that did not give what was asked for."""
    rows, remarks = [], []
    for name, cell in record["cells"].items():
        versions = [cell["versions"].get(package, "-") for package in ("python", "torch", "numpy", "xarray", "zarr")]
        narrow = [check for check in cell["checks"] if "of width" in check["note"]]
        slower = [check for check in cell["checks"] if check["note"] and not check["note"].startswith("of width")]
        rows.append(
            [f"{name}, a few checks" if cell["short"] else name, *versions, cell["passed"], len(slower), cell["failed"], cell["date"]]
        )
        remarks += [f"- {name}, {check['name']}: failed. {_escaped(check['error'])}" for check in cell["checks"] if not check["passed"]]
        remarks += [f"- {name}, {check['name']}: {_escaped(check['note'])}" for check in slower]
        remarks += [f"- {name}, its {len(narrow)} checks in bfloat16: {narrow[0]['note'].split('; ')[-1]}"] if narrow else []
    headings = ["cell", "Python", "torch", "numpy", "xarray", "zarr", "checks passed", "of these slower", "failed", "date"]
    processors = dict.fromkeys(_processor(cell["processor"]) for cell in record["cells"].values())
    return "\n\n".join([as_table(headings, rows), *(["\n".join(remarks)] if remarks else []), f"*Run on {'; '.join(processors)}.*"])


def _gradients(source: str) -> str:
    """A gradient study, as examples/analysis.py writes it: a row for each way, and its variance and direction at each outer step.

    Where one draw is compared with the full unroll too, as in studies since that is measured: by it, and by what it gains a second.
    """
    path = RESULTS / f"{source.replace('_', '-')}.csv"
    with path.open(encoding="utf-8", newline="") as file:
        found = list(csv.DictReader(file))
    steps = list(dict.fromkeys(one["outer_step"] for one in found))
    rows: dict[tuple[str, str], list[str]] = {}
    for one in found:
        told = float(one["variance_error"]) < float(one["variance"])  # else the draws do not tell it apart from zero or infinity
        words = f"{float(one['variance']):.3g} ± {float(one['variance_error']):.2g}" if told else "not told"
        cosine = told_cosine(float(one["cosine"]), float(one["cosine_error"]))
        cells = [words, f"{float(one['variance_clipped']):.2g}", "not told" if math.isnan(cosine) else f"{cosine:.2f}"]
        cells = [*cells, *_gain(one)] if "alignment" in one else cells
        rows.setdefault((one["optimizer"], one["policy"]), []).extend(cells)
    columns = ("variance", "clipped", "cosine", *(GAIN if "alignment" in found[0] else ()))
    headings = [f"{words}, step {step}" if len(steps) > 1 else words for step in steps for words in columns]
    table = as_table(["inner optimiser", "way", *headings], ([*key, *cells] for key, cells in rows.items()))
    return f"{table}\n\n*All numbers: [{path.name}](results/{path.name}).*"


GAIN = ("one draw", "seconds", "gain a second, %")


def _gain(one: dict[str, str]) -> list[str]:
    """How near a draw lies to the mean of the full unroll, its seconds, and what it gains in one, where a step along that is 100 %."""
    found, error, seconds = (float(one[name] or "nan") for name in ("alignment", "alignment_error", "seconds_median"))
    told, worth = f"{found:.2f} ± {error:.2f}" if math.isfinite(error) else "not told", gain(found, error, seconds)
    return [told, f"{seconds:.3g}", "not told" if math.isnan(worth) else f"{100 * worth:.2g}"]


def _numbers(record: Record) -> str:
    """What was published, and the best of ours."""
    rows = []
    for one in record["published"]:
        ours = sorted((run for run in record["ours"] if run["row"] == one["row"]), key=lambda run: run["by_validation"]["mean"])
        best = [_percent(ours[-1]["by_validation"]), _hundred(ours[-1]["by_the_papers_protocol"])] if ours else ["", ""]
        rows.append([one["row"], one["BPTT"], one["RaT-BPTT"], one["AT-BPTT"], *best, one["whole"]])
    headings = ["data, images per class", "plain BPTT", "RaT-BPTT", "AT-BPTT", "ours, by validation", "ours, by the paper's protocol"]
    return as_table([*headings, "whole dataset"], rows)


def _runs(record: Record) -> str:
    """Each run of ours, and below what it ran on: as a column that would make the table wider than a page."""
    rows = [
        [
            f"`{run['title']}`, seed {run['seed']}",
            run["row"],
            f"{_percent(run['by_validation'])} ({run['by_validation']['n']})",
            _hundred(run["by_the_papers_protocol"]),
            *(_hundred(run["beside"].get(name)) for name in ("random real", "k-means real")),
            run["outer_steps"],
            f"{run['seconds'] / 60:.0f} min",
        ]
        for run in record["ours"]
    ]
    headings = ["run", "data, images per class", "by validation (networks)", "by the paper's protocol", "random real", "k-means real"]
    notes = [f"- `{one['title']}`: {one['hardware']}, torch {one['torch']}, {one['date']}. {one['note']}" for one in record["ours"]]
    return "\n\n".join([as_table([*headings, "outer steps", "their time"], rows), "\n".join(notes)])


def _labels(record: Record) -> str:
    """Accuracy by images and labels, of each set."""
    rows, words = [], []
    for one in record["sets"]:
        for name in dict.fromkeys(row["images"] for row in one["rows"]):
            cells = {row["labels"]: row for row in one["rows"] if row["images"] == name}
            rows.append([one["row"], name, *(_row_of_labels(cells.get(labels)) for labels in ("hard", "soft"))])
        teacher = one["teacher"]
        words.append(
            f"{one['row']}: `{one['set']}`; the teacher has {_hundred(teacher['accuracy'])} % after {teacher['steps']} steps; "
            f"{one['hardware']}, torch {one['torch']}, {one['date']}."
        )
    table = as_table(["data, images per class", "images", "hard labels", "soft labels"], rows)
    return f"{table}\n\n*{' '.join(words)} All numbers: [labels.json](results/labels.json).*"


def _signal(record: Record) -> str:
    """Share of signal in one draw at each set, of its images and labels, and by frequency."""
    rows = []
    starts = sorted({band["from"] for one in record["sets"] for band in one["bands"]})
    for one in record["sets"]:
        bands = {band["from"]: _share(band) for band in one["bands"]}
        shares = [_share(one["images"]), _share(one["labels"]), *(bands.get(start, "") for start in starts)]
        rows.append([f"`{one['set']}`", one["batch_size"], one["draws"], *shares])
    words = dict.fromkeys(f"{one['truncation']}, {one['hardware']}, torch {one['torch']}, {one['date']}." for one in record["sets"])
    headings = ["set", "batch", "draws", "images, %", "labels, %", *(f"from {start}" for start in starts)]
    return f"{as_table(headings, rows)}\n\n*{' '.join(words)} All numbers: [signal.json](results/signal.json).*"


def _pictures(record: Record) -> str:
    """Accuracy of each set as it is, and of what pictures make of it."""
    sets = record["sets"]
    rows = [[row["way"], *(_mean(one["rows"][k]["values"]) for one in sets)] for k, row in enumerate(sets[0]["rows"])]
    table = as_table(["the set", *(one["title"] for one in sets)], rows)
    words = dict.fromkeys(f"{one['hardware']}, torch {one['torch']}, {one['date']}." for one in sets)
    return f"{table}\n\n*{' '.join(words)} All numbers: [pictures.json](results/pictures.json).*"


def _share(found: Record) -> str:
    return f"{100 * found['share']:.1f} ± {100 * found['error']:.1f}"


def _row_of_labels(row: Record | None) -> str:
    return "" if row is None else f"{_mean(row['values'])} ({len(row['values'])})"


_ABLATED = ("data", "budget", "width", "judges", "per_class")  # a table for each


def _ablation(record: list[Record]) -> str:
    """Each way at equal seconds, best first: what it came to, and when it was where plain RaT-BPTT ends."""
    parts = []
    for key in dict.fromkeys(tuple(one[name] for name in _ABLATED) for one in record):
        data, budget, width, _, per_class = key
        ways: dict[str, list[Record]] = {}
        for one in record:
            if tuple(one[name] for name in _ABLATED) == key:
                ways.setdefault(one["way"], []).append(one)
        goal = _mean_curve(ways["RaT-BPTT"])[-1][1] if "RaT-BPTT" in ways else None
        rows = []
        for way, runs in sorted(ways.items(), key=lambda item: -statistics.fmean(run["mean"] for run in item[1])):
            reached = next((seconds for seconds, accuracy in _mean_curve(runs) if goal is not None and accuracy >= goal), None)
            when = "" if goal is None else "never" if reached is None else f"{reached:.0f} s"
            steps = round(statistics.fmean(run["outer_steps"] for run in runs))
            validation = f"{100 * _mean_curve(runs)[-1][1]:.1f}"
            wider = [statistics.fmean(run["wider"]["values"]) for run in runs if run.get("wider")]
            tests = [_mean([run["mean"] for run in runs]), *([_mean(wider)] if wider else [])]
            seconds = f"{statistics.fmean(run['seconds'] for run in runs):.0f}"
            rows.append([way, *tests, len(runs), validation, steps, seconds, when])
        first = next(iter(ways.values()))[0]
        judges = [f"test accuracy at width {first['judges']}"] if first.get("wider") else []
        headings = [
            "way",
            "test accuracy",
            *judges,
            "seeds",
            "validation accuracy",
            "outer steps",
            "seconds",
            "at RaT-BPTT's last",
        ]
        threads = "one thread" if first["threads"] == 1 else f"{first['threads']} threads"
        each = "one image" if per_class == 1 else f"{per_class} images"
        words = f"{data}, {each} a class: {budget:.0f} s of outer steps planned, width {width}; {first['hardware']}, {threads}, "
        words += f"torch {first['torch']}."
        parts.append(f"{as_table(headings, rows)}\n\n*{words}*")
    return "\n\n".join([*parts, "*All runs: [ablation.json](results/ablation.json).*"])


def _mean_curve(runs: list[Record]) -> list[tuple[float, float]]:
    """Mean over seeds of seconds and validation accuracy at each look."""
    looks = [run["looks"] for run in runs]
    return [
        (statistics.fmean(seconds), statistics.fmean(accuracy))
        for seconds, accuracy in zip(
            zip(*(look["seconds"] for look in looks), strict=True), zip(*(look["accuracy"] for look in looks), strict=True), strict=True
        )
    ]


def _mean(values: list[float]) -> str:
    """Of fractions, in percent; NaN, of a network that diverged, is left out."""
    return plus_minus([100 * value for value in values], 1)


def _hundred(fraction: float | None) -> str:
    """In percent; blank for what was not measured."""
    return "" if fraction is None else f"{100 * fraction:.1f}"


def _percent(found: Record) -> str:
    return f"{100 * found['mean']:.1f} ± {100 * found['std']:.1f}"


def _processor(found: Record) -> str:
    flags = f" with {', '.join(found['flags'])}" if found["flags"] else ""
    return f"{found['name']} (family {found['family']}, model {found['model']}){flags}"


def _escaped(words: str) -> str:
    """Words of an error, which Markdown is not to read."""
    return "`" + words.replace("`", "'") + "`"


# Their files say themselves what each entry was measured on.
PLAIN: dict[str, Callable[[Any], str]] = {
    "numbers": _numbers,
    "runs": _runs,
    "labels": _labels,
    "pictures": _pictures,
    "signal": _signal,
    "ablation": _ablation,
}

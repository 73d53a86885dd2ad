"""Tables and plots of the backends' benchmark: goals, latency, costs, the measured choice, scaling, rooflines."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.backends_plots import Dot, Line, Panel, roofline_svg, scaling_svg
from benchmarks.backends_tools import (
    BACKENDS,
    BATCHES,
    CHOICE_GOAL,
    FP32,
    INT8,
    INT8_CASE,
    INT8_GOAL,
    ITEMS,
    OPENVINO,
    ORT,
    PRECISIONS,
    TUNED_CASES,
    TUNED_GOAL,
    TVM,
    UNTUNED_GOAL,
    Item,
    Verdict,
    judged,
    latency_of,
)
from benchmarks.cases import ROOT
from benchmarks.peaks import Peaks
from benchmarks.render_quantization import drop_cell
from benchmarks.render_quantization import verdict as goal_verdict
from benchmarks.tables import NONE, markdown_table, number, percent, ratio_text

Document = dict[str, Any]
Row = dict[str, Any]

IMAGES = ROOT / "docs" / "images"
COLOURS = {
    Item(ORT, FP32).key: "#2563eb",
    Item(OPENVINO, FP32).key: "#ea580c",
    Item(TVM, FP32).key: "#86c79a",
    Item(TVM, FP32, True).key: "#15803d",
}
"""INT8 has the colour of its FP32, dashed."""
SLOWEST = 6
"""Layers that the table of a model's artifact shows."""
REASON = 160


def goals_table(document: Document) -> str:
    """Batch 1 on one thread, the goals, and what could not be measured."""
    header = ["model", *(f"{item.label} ms" for item in ITEMS)]
    rows = [[case, *_overview(document, case)] for case in cases_of(document)]
    lines = [f"- {text}" for text in (*_goals(document), *_absent(document))]
    return "\n\n".join([markdown_table(header, rows), "\n".join(lines)])


def _overview(document: Document, case: str) -> list[str]:
    """The median of every artifact at one thread and batch 1; the fastest of each precision is bold."""
    points = {item: latency_of(find(document, case, item.key), 1, 1) for item in ITEMS}
    best = {
        precision: min(
            (p["median"] for item, p in points.items() if p and item.precision == precision), default=None
        )
        for precision in PRECISIONS
    }
    cells = []
    for item, point in points.items():
        text = NONE if point is None else f"{point['median']:.3g}"
        cells.append(f"**{text}**" if point and point["median"] == best[item.precision] else text)
    return cells


def _goals(document: Document) -> list[str]:
    """One line per goal, each with what misses it."""
    cases = cases_of(document)
    networks = [case for case in cases if document["cases"][case]["convolutions"]]
    residual = [case for case in cases if TUNED_CASES in case]
    large = [case for case in cases if INT8_CASE in case]
    plain, integers = Item(TVM, FP32), Item(TVM, INT8)
    tuned, tuned_integers = Item(TVM, FP32, True), Item(TVM, INT8, True)
    lines = [
        _line(
            document, f"TVM FP32 untuned within {UNTUNED_GOAL:g}x of ONNX Runtime", cases, plain, ORT, 1 / UNTUNED_GOAL
        ),
        _line(
            document, f"TVM FP32 tuned within {TUNED_GOAL:g}x of it on the ResNets", residual, tuned, ORT, 1 / TUNED_GOAL
        ),
    ]
    for item, how in ((integers, "untuned"), (tuned_integers, "tuned")):
        lines.append(
            _line(document, f"TVM INT8 faster than its FP32 on every CNN, both {how}", networks, item, "fp32", 1.0)
        )
        text = f"TVM INT8 at least {INT8_GOAL:g}x as fast as its FP32 on EfficientNet, both {how}"
        lines.append(_line(document, text, large, item, "fp32", INT8_GOAL))
    return [*lines, _choice_line(document)]


def _line(document: Document, text: str, cases: Sequence[str], item: Item, against: str, least: float) -> str:
    """A goal over models: each at the worst of its threads and batches."""
    found: list[Verdict] = []
    for case in cases:
        threads = document["cases"][case]["threads"]
        seen = judged(case, find(document, case, item.key), against, least, threads, strict=least == 1.0)
        found += [] if seen is None else [seen]
    missed = [f"{each.case} {each.worst:.2f}x ({each.where})" for each in found if not each.met]
    met = [f"{each.case} {each.worst:.2f}x" for each in found if each.met]
    shown = f"{text}: {goal_verdict([each.met for each in found], 1.0)}."
    if missed:
        shown += f" Speed where it is missed: {', '.join(missed)}."
    return shown + (f" Where it is met, at worst: {', '.join(met)}." if met else "")


def _choice_line(document: Document) -> str:
    found = [
        (f"{case} {choice['precision'].upper()}, {choice['threads']} thread(s)", choice)
        for case in cases_of(document)
        for choice in document["cases"][case].get("choice", ())
        if choice.get("ratio")
    ]
    within = [choice["ratio"]["value"] <= CHOICE_GOAL for _, choice in found]
    missed = [
        f"{name}: {_label(choice['backend'])} {ratio_text(choice['ratio'])}"
        for (name, choice), good in zip(found, within, strict=True)
        if not good
    ]
    text = f"The measured choice (`--target cpu`) at most {CHOICE_GOAL - 1:.0%} slower than the best single backend"
    shown = f"{text}: {goal_verdict(within, 1.0, 'choices')}."
    return shown + (f" Time by the best one's where it is missed: {'; '.join(missed)}." if missed else "")


def _absent(document: Document) -> list[str]:
    """What has no figures, and why; models with the same reason share a line."""
    reasons: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for row in document["rows"]:
        label = _item(row).label
        if row["error"] is not None:
            reasons[label, row["error"]].append(row["case"])
        for threads, reason in row.get("latency_errors", {}).items():
            reasons[f"{label}, {threads} thread(s)", reason].append(row["case"])
        for name in ("start", "judge", "memory"):
            reason = row.get(f"{name}_reason" if name == "memory" else f"{name}_error")
            if reason:
                reasons[f"{label}, {name}", reason].append(row["case"])
    return [
        f"Not measured: {label}: {reason[:REASON]} ({', '.join(cases)})."
        for (label, reason), cases in reasons.items()
    ]


def latency_table(document: Document) -> str:
    """Every artifact at every number of threads and batch of the tables, against its rivals."""
    parts = []
    for case in cases_of(document):
        rows = []
        for threads in document["cases"][case]["threads"]:
            for batch in BATCHES:
                for item in ITEMS:
                    point = latency_of(find(document, case, item.key), threads, batch)
                    if point is None:
                        continue
                    gains = [ratio_text(point["speedups"].get(name)) for name in (ORT, OPENVINO, "fp32", "untuned")]
                    where = f"{threads} thread{'s' * (threads > 1)}, batch {batch}"
                    name = f"{where}: {item.label}" + ("" if point["clean"] else " (disturbed)")
                    rows.append([name, f"{point['median']:.3g}", f"{point['p95']:.3g}", *gains])
        header = ["setting: artifact", "ms", "p95 ms", "ONNX Runtime / this [95 %]", "OpenVINO / this [95 %]"]
        table = markdown_table([*header, "its FP32 / this [95 %]", "untuned / this [95 %]"], rows)
        parts.append(_folded(case, table if rows else "Nothing was measured."))
    return "\n\n".join(parts)


def cost_table(document: Document) -> str:
    """What artifacts cost to make and to start, and what they compute."""
    header = [
        "artifact",
        "passes s",
        "build s",
        "tuning s (kernels faster)",
        "MB",
        "peak memory MB",
        "start to first result s",
        "load and first run ms",
        "largest difference",
        "accuracy",
        "drop, points [95 %]",
    ]
    parts = []
    for case in cases_of(document):
        rows = []
        for item in ITEMS:
            row = find(document, case, item.key)
            if row is None or row["error"] is not None:
                continue
            rows.append([item.label, *_costs(row)])
        parts.append(_folded(case, markdown_table(header, rows) if rows else "Nothing was built."))
    return "\n\n".join([*parts, _folded("Conditions of every model's run", conditions_table(document))])


def _costs(row: Row) -> list[str]:
    start, tuning = row.get("start"), row.get("tuning", [])
    tuned = NONE
    if tuning:
        faster = f"{tuning[0]['faster']} of {tuning[0]['kernels']}"
        tuned = f"{sum(each['seconds'] for each in tuning):.0f} ({faster})"
    accuracy = row.get("accuracy") or {}
    value = percent(accuracy.get("artifact"))
    if accuracy and accuracy.get("artifact") is None:
        value = f"agreement {percent(accuracy.get('agreement'))}"
    return [
        f"{row['passes_seconds']:.1f}",
        f"{next(iter(row['build_seconds'].values())):.2f}",
        tuned,
        f"{row['size_bytes'] / 1e6:.2f}",
        number(row["memory_mb"], ".1f"),
        NONE if start is None else f"{start['total']['median']:.2f}",
        NONE if start is None else f"{1e3 * (start['load']['median'] + start['first_run']['median']):.0f}",
        _difference(row.get("difference")),
        value,
        drop_cell(accuracy),
    ]


def _difference(found: Row | None) -> str:
    if found is None:
        return NONE
    broken = f", {found['broken']} values broken" if found["broken"] else ""
    return f"{found['largest']:.2g} of {found['scale']:.3g}{broken}"


def conditions_table(document: Document) -> str:
    """When, where and how quiet: every model has a run of its own."""
    rows = []
    for case in cases_of(document):
        note = document["cases"][case]
        points = [
            point
            for row in document["rows"]
            if row["case"] == case
            for by_batch in row.get("latency", {}).values()
            for point in by_batch.values()
            if point.get("error") is None
        ]
        disturbed = sum(not point["clean"] for point in points)
        rows.append(
            [
                case + (" (quick, rough)" if note["quick"] else ""),
                note["created"][:10],
                note["cpu"],
                f"{note['load']:g} → {note.get('load_after', note['load']):g}",
                f"{disturbed} of {len(points)}",
                f"{note['tune_seconds']:.0f}",
            ]
        )
    header = ["model", "date", "CPU", "load before → after", "disturbed latencies", "tuning s"]
    return markdown_table(header, rows)


def choice_table(document: Document) -> str:
    """What `--target cpu` picks, and its latency by that of the fastest backend (batch 1)."""
    rows = []
    for case in cases_of(document):
        for choice in document["cases"][case].get("choice", ()):
            name = f"{case}: {choice['precision'].upper()}, {choice['threads']} thread{'s' * (choice['threads'] > 1)}"
            if choice["error"] is not None:
                rows.append([name, f"failed: {choice['error'][:REASON]}", NONE, NONE, NONE])
                continue
            best = next((item.label for item in ITEMS if item.key == choice["best"]), NONE)
            ratio = choice["ratio"]
            met = NONE if ratio is None else "met" if ratio["value"] <= CHOICE_GOAL else "missed"
            rows.append([name, _label(choice["backend"]), best, ratio_text(ratio), met])
    header = ["model", "chosen", "fastest", "time of the chosen / the fastest [95 %]", f"within {CHOICE_GOAL - 1:.0%}"]
    return markdown_table(header, rows)


def scaling_plots(document: Document) -> str:
    """Draw how latency scales with batch and threads, and refer to the pictures."""
    parts = []
    panels = _panels(document, lambda case, item: _by_batch(document, case, item))
    if panels:
        text = scaling_svg("Latency by batch, 1 thread", "samples in a batch", "ms per sample", panels)
        parts.append(_drawn("backends-batch.svg", text, "Milliseconds per sample by batch, model by model"))
    for batch in BATCHES:
        panels = _panels(document, lambda case, item, size=batch: _by_threads(document, case, item, size))
        if panels:
            text = scaling_svg(f"Speed-up by threads, batch {batch}", "threads", "speed of one thread = 1", panels)
            name = f"backends-threads-{batch}.svg"
            parts.append(_drawn(name, text, f"Speed-up by threads at batch {batch}, model by model"))
    return "\n\n".join(parts) or "Nothing was measured."


def _panels(document: Document, points: Any) -> list[Panel]:
    panels = []
    for case in cases_of(document):
        lines = [
            Line(item.label, _colour(item), item.precision == INT8, found)
            for item in ITEMS
            if (found := points(case, item))
        ]
        if lines:
            panels.append(Panel(case.removeprefix("graphs/"), lines))
    return panels


def _by_batch(document: Document, case: str, item: Item) -> list[tuple[float, float]]:
    sizes = (find(document, case, item.key) or {}).get("latency", {}).get("1", {})
    return sorted((float(size), p["median"] / int(size)) for size, p in sizes.items() if p.get("error") is None)


def _by_threads(document: Document, case: str, item: Item, batch: int) -> list[tuple[float, float]]:
    row = find(document, case, item.key)
    counts = document["cases"][case]["threads"]
    points = [(count, latency_of(row, count, batch)) for count in counts]
    times = [(float(count), point["median"]) for count, point in points if point is not None]
    return [(count, times[0][1] / taken) for count, taken in times] if len(times) > 1 and times[0][0] == 1 else []


def roofline_table(document: Document) -> str:
    """TVM's slowest layers by their least time, artifact by artifact, and all layers of all backends as a plot."""
    parts = [_roofline_summary(document)]
    for case in document["cases"]:
        rows = []
        for row in _profiled(document, case):
            if row["backend"] != TVM:
                continue
            for layer in row["layers"][:SLOWEST]:
                rows.append([f"{_item(row).label}: {layer['name']} ({layer['op_type']})", *_layer_cells(layer, row)])
        if rows:
            header = ["artifact: layer", "µs", "share", "MMAC", "MB moved", "least µs", "bound by", "time / least"]
            parts.append(_folded(f"{case}: the slowest layers of TVM's artifacts", markdown_table(header, rows)))
    return "\n\n".join([*parts, *_roofline_picture(document)])


def _roofline_summary(document: Document) -> str:
    """Per artifact: time of all layers with a bound by the sum of their bounds, and the share of those layers."""
    rows = []
    for case, note in document["cases"].items():
        if note.get("error"):
            rows.append([case, f"failed: {note['error'][:REASON]}", *[NONE] * (len(ITEMS) - 1)])
            continue
        cells = []
        for item in ITEMS:
            row = next((row for row in _profiled(document, case) if row["key"] == item.key), None)
            cells.append(NONE if row is None else _total_cell(row))
        rows.append([case, *cells])
    return markdown_table(["time / least time (share of the time)", *(item.label for item in ITEMS)], rows)


def _total_cell(row: Row) -> str:
    bounded = [layer for layer in row["layers"] if layer["bound_us"]]
    if not bounded:
        return NONE
    taken = sum(layer["microseconds"] for layer in bounded)
    return f"{taken / sum(layer['bound_us'] for layer in bounded):.2f} ({percent(taken / row['total_us'], 0)})"


def _layer_cells(layer: Row, row: Row) -> list[str]:
    return [
        f"{layer['microseconds']:.1f}",
        percent(layer["microseconds"] / row["total_us"], 1),
        NONE if layer["macs"] is None else f"{layer['macs'] / 1e6:.2f}",
        NONE if layer["bytes"] is None else f"{layer['bytes'] / 1e6:.3f}",
        number(layer["bound_us"], ".2f"),
        layer["limit"] or NONE,
        number(layer["distance"], ".2f"),
    ]


def _roofline_picture(document: Document) -> list[str]:
    """Layers of TVM's artifacts, untuned and tuned, under the roofs; those of all models together."""
    notes = [note for note in document["cases"].values() if note.get("peaks")]
    dots: dict[str, list[Dot]] = {precision: [] for precision in PRECISIONS}
    for case in document["cases"]:
        for row in _profiled(document, case):
            dots[row["precision"]] += _dots(row)
    if not notes or not any(dots.values()):
        return []
    peaks = Peaks.of(notes[-1]["peaks"])
    panels = [
        (f"{name.upper()} layers", name == INT8, dots[name]) for name in PRECISIONS if dots[name]
    ]
    title = "Layers under the roofline of one core"
    picture = roofline_svg(title, peaks, panels)
    integers = "none measured" if peaks.int8_ops is None else f"{peaks.int8_ops / 1e9:.0f} Gop/s ({peaks.int8})"
    text = (
        f"Peaks of one core, measured: FP32 {peaks.float_ops / 1e9:.0f} GFLOP/s in {peaks.width_bits} bits, "
        f"INT8 {integers}; reading {', '.join(_rates(peaks))}."
    )
    return [text, _drawn("backends-roofline.svg", picture, title)]


def _rates(peaks: Peaks) -> list[str]:
    sizes = [peaks.bandwidth[0], peaks.bandwidth[len(peaks.bandwidth) // 2], peaks.bandwidth[-1]]
    return [f"{rate / 1e9:.0f} GB/s from {size >> 10:,} KiB" for size, rate in sizes]


def _dots(row: Row) -> list[Dot]:
    item = _item(row)
    return [
        Dot(
            f"{BACKENDS[item.backend]}{', tuned' if item.tuned else ''}",
            _colour(item),
            f"{row['case']}, {item.label}: {layer['name']}",
            2 * layer["macs"] / layer["bytes"],
            2e6 * layer["macs"] / layer["microseconds"],
            layer["microseconds"] / row["total_us"],
        )
        for layer in row["layers"]
        if layer["macs"] and layer["bytes"] and layer["microseconds"] and layer["integers"] == (item.precision == INT8)
    ]


def _profiled(document: Document, case: str) -> list[Row]:
    return [row for row in document["rows"] if row["case"] == case and row["error"] is None]


def _drawn(name: str, picture: str, label: str) -> str:
    """Write a picture and refer to it."""
    path: Path = IMAGES / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(picture + "\n", encoding="utf-8")
    return f"![{label}](images/{name})"


def _folded(summary: str, body: str) -> str:
    return f"<details>\n<summary>{summary}</summary>\n\n{body}\n\n</details>"


def _colour(item: Item) -> str:
    return COLOURS[Item(item.backend, FP32, item.tuned).key]


def _label(backend: str) -> str:
    return BACKENDS.get(backend, backend)


def _item(row: Row) -> Item:
    return Item(row["backend"], row["precision"], row["tuned"])


def cases_of(document: Document) -> list[str]:
    return list(document["cases"])


def find(document: Document, case: str, key: str) -> Row | None:
    """The row of an artifact."""
    rows = (row for row in document["rows"] if row["case"] == case and row["key"] == key)
    return next(rows, None)

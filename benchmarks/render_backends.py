"""Tables and plots of the backends' benchmark: goals, latency, costs, the measured choice, scaling."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.backends_plots import Line, Panel, scaling_svg
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
            document,
            f"TVM FP32 untuned within {UNTUNED_GOAL:g}x of ONNX Runtime",
            cases,
            plain,
            ORT,
            1 / UNTUNED_GOAL,
        ),
        _line(
            document,
            f"TVM FP32 tuned within {TUNED_GOAL:g}x of it on the ResNets",
            residual,
            tuned,
            ORT,
            1 / TUNED_GOAL,
        ),
    ]
    for item, how in ((integers, "untuned"), (tuned_integers, "tuned")):
        lines.append(
            _line(
                document,
                f"TVM INT8 faster than its FP32 on every CNN, both {how}",
                networks,
                item,
                "fp32",
                1.0,
            )
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
        label = item_of(row).label
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
                    gains = [
                        ratio_text(point["speedups"].get(name)) for name in (ORT, OPENVINO, "fp32", "untuned")
                    ]
                    where = f"{threads} thread{'s' * (threads > 1)}, batch {batch}"
                    name = f"{where}: {item.label}" + ("" if point["clean"] else " (disturbed)")
                    rows.append([name, f"{point['median']:.3g}", f"{point['p95']:.3g}", *gains])
        header = ["setting: artifact", "ms", "p95 ms", "ONNX Runtime / this [95 %]", "OpenVINO / this [95 %]"]
        table = markdown_table([*header, "its FP32 / this [95 %]", "untuned / this [95 %]"], rows)
        parts.append(folded(case, table if rows else "Nothing was measured."))
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
        parts.append(folded(case, markdown_table(header, rows) if rows else "Nothing was built."))
    return "\n\n".join([*parts, folded("Conditions of every model's run", conditions_table(document))])


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
            rows.append(
                [name, f"{_label(choice['backend'])} ({choice['form']})", best, ratio_text(ratio), met]
            )
    header = [
        "model",
        "chosen",
        "fastest",
        "time of the chosen / the fastest [95 %]",
        f"within {CHOICE_GOAL - 1:.0%}",
    ]
    return markdown_table(header, rows)


def scaling_plots(document: Document) -> str:
    """Draw how latency scales with batch and threads, and refer to the pictures."""
    parts = []
    panels = _panels(document, lambda case, item: _by_batch(document, case, item))
    if panels:
        text = scaling_svg("Latency by batch, 1 thread", "samples in a batch", "ms per sample", panels)
        parts.append(drawn("backends-batch.svg", text, "Milliseconds per sample by batch, model by model"))
    for batch in BATCHES:
        panels = _panels(document, lambda case, item, size=batch: _by_threads(document, case, item, size))
        if panels:
            text = scaling_svg(
                f"Speed-up by threads, batch {batch}", "threads", "speed of one thread = 1", panels
            )
            name = f"backends-threads-{batch}.svg"
            parts.append(drawn(name, text, f"Speed-up by threads at batch {batch}, model by model"))
    return "\n\n".join(parts) or "Nothing was measured."


def _panels(document: Document, points: Any) -> list[Panel]:
    panels = []
    for case in cases_of(document):
        lines = [
            Line(item.label, colour_of(item), item.precision == INT8, found)
            for item in ITEMS
            if (found := points(case, item))
        ]
        if lines:
            panels.append(Panel(case.removeprefix("graphs/"), lines))
    return panels


def _by_batch(document: Document, case: str, item: Item) -> list[tuple[float, float]]:
    sizes = (find(document, case, item.key) or {}).get("latency", {}).get("1", {})
    return sorted(
        (float(size), p["median"] / int(size)) for size, p in sizes.items() if p.get("error") is None
    )


def _by_threads(document: Document, case: str, item: Item, batch: int) -> list[tuple[float, float]]:
    row = find(document, case, item.key)
    counts = document["cases"][case]["threads"]
    points = [(count, latency_of(row, count, batch)) for count in counts]
    times = [(float(count), point["median"]) for count, point in points if point is not None]
    return (
        [(count, times[0][1] / taken) for count, taken in times]
        if len(times) > 1 and times[0][0] == 1
        else []
    )


def drawn(name: str, picture: str, label: str) -> str:
    """Write a picture and refer to it."""
    path: Path = IMAGES / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(picture + "\n", encoding="utf-8")
    return f"![{label}](images/{name})"


def folded(summary: str, body: str) -> str:
    """A part that opens when its summary is clicked."""
    return f"<details>\n<summary>{summary}</summary>\n\n{body}\n\n</details>"


def colour_of(item: Item) -> str:
    """Its colour in plots; FP32 and INT8 share it."""
    return COLOURS[Item(item.backend, FP32, item.tuned).key]


def _label(backend: str) -> str:
    return BACKENDS.get(backend, backend)


def item_of(row: Row) -> Item:
    """The artifact of a row."""
    return Item(row["backend"], row["precision"], row["tuned"])


def cases_of(document: Document) -> list[str]:
    return list(document["cases"])


def find(document: Document, case: str, key: str) -> Row | None:
    """The row of an artifact."""
    rows = (row for row in document["rows"] if row["case"] == case and row["key"] == key)
    return next(rows, None)

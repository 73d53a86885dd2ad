"""Tables and plots of the compression benchmark: the goals, the curves, every point, and what a large model costs."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.bench_compression import LARGE
from benchmarks.cases import ROOT
from benchmarks.compression_plots import Point, Series, curves_svg
from benchmarks.compression_tools import FLOAT, FORMS, INT8, METHODS, QUANTIZED, RESNETS, SMALL_RESNETS, TUNED
from benchmarks.render_quantization import drop_cell, points, verdict
from benchmarks.tables import NONE, markdown_table, percent, ratio_text

Document = dict[str, Any]
Row = dict[str, Any]

IMAGES = ROOT / "docs" / "images"
COLOURS = {
    "greencc-prune": "#93c5fd",
    "greencc-prune-repair": "#1d4ed8",
    "greencc-svd": "#0d9488",
    "greencc-tucker": "#65a30d",
    "greencc-both": "#7c3aed",
    "greencc-prune-int8": "#db2777",
    "greencc-both-int8": "#f472b6",
    "greencc-drop": "#a16207",
    "greencc-drop-prune": "#4338ca",
    "greencc-svd-int8": "#5eead4",
    "greencc-tucker-int8": "#bef264",
    "greencc-drop-int8": "#eab308",
    "greencc-drop-prune-int8": "#9f1239",
    "greencc-recover": "#111827",
    "torch-pruning": "#ea580c",
    "torch-pruning-global": "#fbbf24",
    "torch-pruning-8": "#dc2626",
    "torch-pruning-tuned": "#78716c",
    "tensorly-tucker": "#0891b2",
}

GAIN_GOAL, GAIN_RATIO = 0.10, 0.3
DROP_GOAL, DROP_RATIO = 0.01, 0.25
SPEED_GOAL = 1.2
RECOVER_GOAL, RECOVER_RATIO = 0.005, 0.5
SECONDS_GOAL, EXTRA_MB = 120.0, 1000.0
REACHED = 0.95
"""Share of the MACs asked for that must be gone for a goal to count as met: kernels' multiples are coarse."""
UNTRAINED = (
    "greencc-prune-repair",
    "greencc-svd",
    "greencc-tucker",
    "greencc-both",
    "greencc-drop",
    "greencc-drop-prune",
)


def goals_table(document: Document) -> str:
    """Per model: what is left of the accuracy at the ratios that the goals name, beside the best peer's."""
    header = [
        "model",
        "FP32",
        "−30 % MACs: prune",
        "+ repair",
        "gain, points",
        "−25 %: best without training",
        "drop, points [95 %]",
        "best peer, drop",
        "INT8 on top: speed-up over INT8 [95 %]",
        "−50 %: recover, drop",
        "peer, same tuning",
    ]
    rows = []
    for case in cases_of(document):
        plain, repaired = (
            find(document, case, key, GAIN_RATIO) for key in ("greencc-prune", "greencc-prune-repair")
        )
        ours = best([find(document, case, key, DROP_RATIO) for key in UNTRAINED])
        peer = best([row for row in at_ratio(document, case, DROP_RATIO, FLOAT) if not row["ours"]])
        fastest = fastest_on_int8(document, case)
        tuned = find(document, case, "greencc-recover", RECOVER_RATIO)
        rival = find(document, case, "torch-pruning-tuned", RECOVER_RATIO)
        rows.append(
            [
                case,
                percent(original(document, case).get("value")),
                value_cell(plain),
                value_cell(repaired),
                NONE if gain(plain, repaired) is None else points(gain(plain, repaired)),  # type: ignore[arg-type]
                labelled(ours),
                NONE if ours is None else drop_cell(ours),
                labelled_drop(peer),
                NONE if fastest is None else f"{ratio_text(fastest['over_int8'])} ({fastest['label']})",
                labelled_drop(tuned, name=False),
                labelled_drop(rival, name=False),
            ]
        )
    lines = [f"- {line}" for line in goals(document)]
    return "\n".join([markdown_table(header, rows), "", *lines])


def goals(document: Document) -> list[str]:
    """Each goal with what was found; a model where less than 95 % of the asked MACs went does not meet one."""

    def outcomes(cases: Sequence[str], judge: Callable[[str], bool | None]) -> list[bool]:
        found = [judge(case) for case in cases if case in cases_of(document)]
        return [outcome for outcome in found if outcome is not None]

    def repaired(case: str) -> bool | None:
        rows = [find(document, case, key, GAIN_RATIO) for key in ("greencc-prune", "greencc-prune-repair")]
        found = gain(*rows)
        return None if found is None else found >= GAIN_GOAL and all(reached(document, row) for row in rows)

    def untrained(case: str) -> bool | None:
        rows = [row for key in UNTRAINED if (row := find(document, case, key, DROP_RATIO)) is not None]
        return any(row["drop"] <= DROP_GOAL and reached(document, row) for row in rows) if rows else None

    def faster(case: str) -> bool | None:
        rows = [row for row in at_ratio(document, case, DROP_RATIO, INT8) if row.get("over_int8")]
        good = [row["over_int8"]["value"] >= SPEED_GOAL and row["drop"] <= DROP_GOAL for row in rows]
        return any(good) if rows else None

    def recovered(case: str) -> bool | None:
        row = find(document, case, "greencc-recover", RECOVER_RATIO)
        return None if row is None else row["drop"] <= RECOVER_GOAL and reached(document, row)

    return [
        f"Repair gains at least 10 points at −30 % MACs on the ResNets: {verdict(outcomes(RESNETS, repaired), 1.0)}.",
        "At most 1 point lost at −25 % MACs without training on small ResNets: "
        f"{verdict(outcomes(SMALL_RESNETS, untrained), 1.0)}; "
        f"and at least 1.2x on top of INT8: {verdict(outcomes(SMALL_RESNETS, faster), 1.0)}.",
        "At most 0.5 point lost at −50 % MACs with `recover`: "
        f"{verdict(outcomes(cases_of(document), recovered), 1.0)}.",
        large_goal(document),
    ]


def large_goal(document: Document) -> str:
    row = next((row for row in document["rows"] if row["case"] == LARGE and row["error"] is None), None)
    goal = "Analysis and repair of a ResNet-50-size graph in less than 2 minutes and 2x the model + 1 GB"
    if row is None:
        return f"{goal}: nothing to judge."
    limit = 2 * row["model_bytes"] / 1e6 + EXTRA_MB
    met = row["seconds"] < SECONDS_GOAL and row["peak_mb"] < limit
    return f"{goal}: **{'met' if met else 'missed'}** ({row['seconds']:.0f} s, {row['peak_mb']:.0f} of {limit:.0f} MB)."


def curves(document: Document) -> str:
    """Draw one picture per model and refer to it."""
    IMAGES.mkdir(exist_ok=True)
    lines = []
    for case in cases_of(document):
        base = original(document, case)
        if base.get("value") is None:
            continue
        path = IMAGES / f"compression-{slug(case)}.svg"
        agreement = "agreement" if base["metric"].startswith("agreement") else "accuracy"
        text = curves_svg(case, f"{agreement}, %", series_of(document, case), 100 * base["value"])
        path.write_text(text + "\n", encoding="utf-8")
        where = path.relative_to(IMAGES.parent).as_posix()
        lines.append(f"![{case}: {agreement} against MACs and against measured latency]({where})")
    return "\n\n".join(lines) or "No model was judged."


def series_of(document: Document, case: str) -> list[Series]:
    """One line per method, from what it starts with: the original, or for INT8 the quantized original."""
    base = original(document, case)
    quantized = find(document, case, QUANTIZED.key, 0.0)
    found = []
    for method in METHODS:
        rows = [
            row
            for row in document["rows"]
            if row["case"] == case and row["method"] == method.key and row["error"] is None
        ]
        if not rows:
            continue
        start = quantized if method.form == INT8 else None
        places = [Point(100.0, 100.0, 100 * base["value"])] if method.form == FLOAT else []
        places += [point_of(row, base) for row in ([] if start is None else [start]) + rows]
        label = method.label if method.ours else f"{method.label} (peer)"
        found.append(Series(label, COLOURS[method.key], places, not method.ours, method.form == INT8))
    return found


def point_of(row: Row, base: Row) -> Point:
    macs = row.get("macs")
    share = None if macs is None or not base.get("macs") else 100 * macs / base["macs"]
    ratio = row.get("latency_ratio")
    return Point(share, None if ratio is None else 100 / ratio["value"], 100 * row["value"])


def points_table(document: Document) -> str:
    """Every artifact of every model, one table per model."""
    parts = []
    for case in cases_of(document):
        base = original(document, case)
        rows = []
        for row in [row for row in document["rows"] if row["case"] == case]:
            asked = f"−{100 * row['ratio']:g} %" if row["ratio"] else NONE
            name = row.get("label", "original") + ("" if row.get("ours", True) else " (peer)")
            if row["error"] is not None:
                rows.append([name, asked, f"failed: {short(row['error'])}", *[NONE] * 7])
                continue
            share = point_of(row, base).macs
            rows.append(
                [
                    name,
                    asked,
                    percent(row["value"]),
                    drop_cell(row),
                    NONE if share is None else f"{share:.1f} %",
                    NONE if row.get("params") is None else f"{row['params'] / 1e6:.3f}",
                    f"{row['size_bytes'] / 1e6:.2f}",
                    f"{row['latency_ms']:.3g}" if "latency_ms" in row else NONE,
                    ratio_text(row.get("latency_ratio")),
                    f"{row['seconds']:.1f} / {row['peak_mb']:.0f}" if "seconds" in row else NONE,
                ]
            )
        header = ["artifact", "asked", "accuracy", "drop, points [95 %]", "MACs left", "M params", "MB", "ms"]
        table = markdown_table([*header, "speed-up [95 %]", "build s / peak MB"], rows)
        note = document["cases"].get(case, {"scored": 0, "samples": 0})
        summary = (
            f"{case}: FP32 {percent(base.get('value'))}, {note['scored']:,} samples, "
            f"{note['samples']} for calibration"
        )
        parts.append(
            f"<details>\n<summary>{summary}</summary>\n\n{table}\n\n{paired(document, case)}\n\n</details>"
        )
    return "\n\n".join(parts)


def paired(document: Document, case: str) -> str:
    """Sample by sample: greencc's most accurate against the most accurate peer, at each share and form."""
    rows = []
    for ratio, forms in document["against"].get(case, {}).items():
        for form in [form for form in FORMS if form in forms]:
            found = forms[form]
            for key, gained in found["ours"].items():
                if gained["gain"] is None:
                    continue
                interval = f"{points(gained['gain'])} [{points(gained['low'])}, {points(gained['high'])}]"
                names = [label_of(document, name) for name in (key, found["best_peer"])]
                rows.append([f"−{100 * float(ratio):g} %, {form}", *names, interval])
    header = ["share, form", "greencc's best", "best peer", "gain, points [95 %]"]
    return markdown_table(header, rows) if rows else "No peer's artifact to compare with."


def large_table(document: Document) -> str:
    """What the passes cost on the large model."""
    row = next((row for row in document["rows"] if row["case"] == LARGE), None)
    if row is None:
        return "Not run."
    if row["error"] is not None:
        return f"Failed: {short(row['error'])}."
    before = row["before"]
    cells = [
        f"{row['model_bytes'] / 1e6:.0f}",
        f"{before['macs'] / 1e9:.2f} → {row['macs'] / 1e9:.2f}",
        f"{before['params'] / 1e6:.1f} → {row['params'] / 1e6:.1f}",
        str(row["samples"]),
        f"{row['seconds']:.1f}",
        f"{list(row['passes'].values())[-1]:.1f}",
        f"{row['peak_mb']:.0f}",
    ]
    header = ["model MB", "GMAC", "M params", "samples", "total s", "of it the pass", "peak MB"]
    return markdown_table(["ResNet-50", *header], [["prune 0.3, repair", *cells]])


def cases_of(document: Document) -> list[str]:
    return list(dict.fromkeys(row["case"] for row in document["rows"] if row["case"] != LARGE))


def original(document: Document, case: str) -> Row:
    rows = [row for row in document["rows"] if row["case"] == case and row["method"] == "original"]
    return rows[0] if rows else {"value": None, "metric": "not judged", "macs": None}


def at_ratio(document: Document, case: str, ratio: float, form: str) -> list[Row]:
    """The artifacts of a form at a share that were built, run and judged by accuracy."""
    return [
        row
        for row in document["rows"]
        if row["case"] == case
        and row["ratio"] == ratio
        and row.get("form") == form
        and row["error"] is None
        and row.get("drop") is not None
    ]


def find(document: Document, case: str, method: str, ratio: float) -> Row | None:
    rows = [row for form in (FLOAT, INT8, TUNED) for row in at_ratio(document, case, ratio, form)]
    return next((row for row in rows if row["method"] == method), None)


def best(rows: Sequence[Row | None]) -> Row | None:
    return max((row for row in rows if row is not None), key=lambda row: row["value"], default=None)


def fastest_on_int8(document: Document, case: str) -> Row | None:
    rows = [row for row in at_ratio(document, case, DROP_RATIO, INT8) if row.get("over_int8")]
    return max(rows, key=lambda row: row["over_int8"]["value"], default=None)


def gain(plain: Row | None, repaired: Row | None) -> float | None:
    return None if plain is None or repaired is None else repaired["value"] - plain["value"]


def reached(document: Document, row: Row | None) -> bool:
    """Whether the MACs asked for are gone."""
    if row is None:
        return False
    share = point_of(row, original(document, row["case"])).macs
    return share is not None and 100 - share >= REACHED * 100 * row["ratio"]


def value_cell(row: Row | None) -> str:
    return NONE if row is None else percent(row["value"])


def labelled(row: Row | None) -> str:
    return NONE if row is None else f"{percent(row['value'])} ({row['label']})"


def labelled_drop(row: Row | None, *, name: bool = True) -> str:
    if row is None:
        return NONE
    return f"{points(row['drop'])} ({row['label']})" if name else drop_cell(row)


def label_of(document: Document, key: str) -> str:
    return next((str(row["label"]) for row in document["rows"] if row["method"] == key), key)


def slug(case: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", case.lower()).strip("-")


def short(error: str) -> str:
    return error if len(error) <= 160 else f"{error[:157]}..."

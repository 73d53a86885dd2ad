"""Tables of the quantization benchmark: the goals, every artifact, and what building costs."""

from __future__ import annotations

import math
import re
from typing import Any

from benchmarks.quality import converted
from benchmarks.tables import NONE, markdown_table, percent, ratio_text
from benchmarks.tools import COMPILE, FORMS, INT4, INT8

Document = dict[str, Any]
Row = dict[str, Any]

COST_GOAL = 0.5
ERROR_GOAL = 0.8
DROP_GOAL = 0.01
TUNED = ("adaround", "w4 tuned")
"""Methods whose goal is to stay within a point of FP32 where the peers lose more."""


def goals_table(document: Document) -> str:
    """Per model: `greencc compile --precision int8` and the best recipe against the best INT8 peer."""
    rows = []
    accurate: list[bool] = []
    precise: list[bool] = []
    for case in cases_of(document):
        found = form_rows(document, case, INT8)
        peers = [row for row in found if not row["ours"] and converted(row)]
        compiled = next((row for row in found if row["tool"] == COMPILE.key), None)
        recipes = [row for row in found if row["ours"] and row["tool"] != COMPILE.key]
        compared = document["against"][case]["forms"].get(INT8)
        if not peers or compared is None:
            rows.append([case, *[NONE] * 8])
            continue
        peer = next((row for row in peers if row["tool"] == compared["best_peer"]), None)
        if peer is None:
            rows.append([case, *[NONE] * 8])
            continue
        quietest = max(peers, key=error_merit)
        best = next((row for row in recipes if row["tool"] == compared["best_recipe"]), None)
        cells = [
            case,
            percent(original(document, case)["value"]),
            f"{percent(peer['value'])} ({peer['label']})",
        ]
        for row in (compiled, best):
            cells += gain_cells(row, compared, peer)
        quietest_recipe = max(recipes, key=error_merit, default=None)
        cells.append(f"{decibel(quietest)} ({quietest['label']})")
        cells += [decibel(compiled), labelled_decibel(quietest_recipe)]
        accurate.append(compiled is not None and compiled["value"] >= peer["value"])
        precise.append(compiled is not None and error_merit(compiled) > error_merit(quietest))
        rows.append(cells)
    header = [
        "model",
        "FP32",
        "best peer",
        "greencc compile",
        "gain, points [95 %]",
        "best recipe",
        "gain, points [95 %]",
        "SQNR dB, best peer",
        "greencc compile",
        "best recipe",
    ]
    rows = [[*cells, *[NONE] * (len(header) - len(cells))] for cells in rows]
    lines = [
        f"- Accuracy at least the best INT8 peer's on every model: {verdict(accurate, 1.0)}.",
        f"- Less error than the best INT8 peer on 80 % of the models: {verdict(precise, ERROR_GOAL)}.",
        *(f"- {line}" for line in cost_goals(document)),
        *(f"- {line}" for line in tuned_goals(document)),
    ]
    return "\n".join([markdown_table(header, rows), "", *lines])


def cost_goals(document: Document) -> list[str]:
    """Time and memory goals, over all models and methods that a peer has too."""
    compared = [row for row in document["rows"] if row.get("against_fastest") and row["error"] is None]
    lines = []
    for name, what in (("time", "Build time"), ("memory", "Peak memory")):
        met = [value_of(row["against_fastest"][name]["ratio"]) <= COST_GOAL for row in compared]
        inner = [value_of(row["against_fastest"][f"{name}_job"]["ratio"]) <= COST_GOAL for row in compared]
        lines.append(
            f"{what} at most half the best peer's of the same method: {verdict(met, 1.0, 'comparisons')}; "
            f"without interpreter and imports: {verdict(inner, 1.0, 'comparisons')}."
        )
    return lines


def tuned_goals(document: Document) -> list[str]:
    """AdaRound and GPTQ: where a peer's artifact of the same form loses more than a point, does greencc's?"""
    lines = []
    for method, form, what in zip(TUNED, (INT8, INT4), ("W8A8 after AdaRound", "W4 after GPTQ"), strict=True):
        outcomes = []
        for case in cases_of(document):
            found = form_rows(document, case, form)
            ours = next((row for row in found if row["ours"] and row["method"] == method), None)
            peers = [drop_of(row) for row in found if not row["ours"]]
            losing = [drop for drop in peers if drop is not None and drop > DROP_GOAL]
            if ours is None or not losing:
                continue
            drop = drop_of(ours)
            outcomes.append(drop is not None and drop <= DROP_GOAL)
        lines.append(
            f"{what} within a point of FP32 where a peer's {form} loses more: {verdict(outcomes, 1.0)}."
        )
    return lines


def quality_table(document: Document) -> str:
    """Every artifact of every model, one table per model."""
    parts = []
    for case in cases_of(document):
        base = original(document, case)
        rows = []
        marked = {form: document["against"][case]["forms"].get(form, {}).get("best_peer") for form in FORMS}
        for row in [row for row in document["rows"] if row["case"] == case]:
            name = {"original": "FP32, ONNX Runtime", "original-openvino": "FP32, OpenVINO"}.get(row["tool"])
            if name is None:
                name = f"{row['form']}: {row['label']}"
                name += " **(best peer)**" if row["tool"] == marked[row["form"]] else ""
                idle = (row.get("notes") or {}).get("idle")
                name += f" ({', '.join(idle)} found nothing to do)" if idle else ""
            if row["error"] is not None:
                rows.append([name, failure(row["error"], document["limit_mb"]), *[NONE] * 6])
                continue
            rows.append(
                [
                    name,
                    percent(row["value"]),
                    drop_cell(row),
                    decibel(row) if "form" in row else NONE,
                    f"{row['latency_ms']:.3g}" if "latency_ms" in row else NONE,
                    ratio_text(row.get("latency_ratio")),
                    f"{row['size_bytes'] / 1e6:.2f}",
                    cost_cell(row),
                ]
            )
        header = ["artifact", "accuracy", "drop, points [95 %]", "SQNR dB", "ms", "speed-up [95 %]", "MB"]
        table = markdown_table([*header, "build s / peak MB"], rows)
        scored = document["against"][case]["scored"]
        summary = f"{case}: FP32 {percent(base['value'])}, {scored:,} samples ({base['metric']})"
        parts.append(f"<details>\n<summary>{summary}</summary>\n\n{table}\n\n</details>")
    return "\n\n".join([*parts, environments(document)])


def failure(error: str, limit_mb: int) -> str:
    """Why there is no artifact, short."""
    if re.search("(?i)bad_alloc|MemoryError|failed to allocate", error):
        return f"failed: wants more than {limit_mb:,} MB"
    return f"failed: {error[:160]}"


def cost_table(document: Document) -> str:
    """greencc's time and memory by the best peer's of the same method."""
    rows = []
    for row in document["rows"]:
        found = row.get("against_fastest")
        if found is None or row["error"] is not None:
            continue
        cells = [f"{row['case']}: {row['method']}", f"{row['seconds']['median']:.2f}"]
        for name in ("time", "time_job", "memory", "memory_job"):
            ratio = found[name]["ratio"]
            met = "met" if value_of(ratio) <= COST_GOAL else "missed"
            rival = f" ({label_of(document, found[name]['rival'])})" if name in ("time", "memory") else ""
            cells.append(f"{ratio_text(ratio)}{rival} {met}")
        rows.append(cells)
    header = [
        "model: method",
        "greencc s",
        "time / fastest peer's",
        "the same without imports",
        "peak memory / leanest peer's",
        "the same without imports",
    ]
    return markdown_table(header, rows)


def environments(document: Document) -> str:
    """Which peers with an environment of their own ran, and which did not."""
    lines = [
        f"{name}: " + ", ".join(f"{package} {version}" for package, version in found.items())
        for name, found in document["peer_versions"].items()
    ]
    if document["missing_environments"]:
        names = ", ".join(document["missing_environments"])
        lines.append(f"not installed for this run (`make bench PEERS=all`): {names}")
    return f"Environments of their own: {'; '.join(lines)}." if lines else ""


def cases_of(document: Document) -> list[str]:
    return list(dict.fromkeys(row["case"] for row in document["rows"]))


def form_rows(document: Document, case: str, form: str) -> list[Row]:
    """The artifacts of a form that were built and run."""
    return [
        row
        for row in document["rows"]
        if row["case"] == case and row.get("form") == form and row["error"] is None
    ]


def original(document: Document, case: str) -> Row:
    rows = [row for row in document["rows"] if row["case"] == case and row["tool"] == "original"]
    return rows[0] if rows else {"value": None, "metric": "not judged"}


def label_of(document: Document, key: str) -> str:
    return next(str(row["label"]) for row in document["rows"] if row["tool"] == key)


def drop_of(row: Row) -> float | None:
    """Accuracy lost, as a fraction; where there are no labels, decisions changed."""
    if row["drop"] is not None:
        return float(row["drop"])
    return None if row["agreement"] is None else 1.0 - float(row["agreement"])


def gain_cells(row: Row | None, compared: Row, peer: Row) -> list[str]:
    """Accuracy, and what it is above the best peer's with the interval of the paired difference."""
    if row is None:
        return ["failed", NONE]
    found = compared["ours"].get(row["tool"], {"gain": None})
    value = f"{percent(row['value'])} ({row['label'].removeprefix('greencc ')})"
    if row["tool"] == COMPILE.key:
        value = percent(row["value"])
        precision = (row.get("notes") or {}).get("precision", "int8")
        value += "" if precision == "int8" else f" ({precision})"
    if found["gain"] is None:
        return [value, points(row["value"] - peer["value"])]
    return [value, f"{points(found['gain'])} [{points(found['low'])}, {points(found['high'])}]"]


def drop_cell(row: Row) -> str:
    if row.get("drop") is None:
        return NONE
    return f"{points(row['drop'])} [{points(row['low'])}, {points(row['high'])}]"


def points(share: float) -> str:
    """Percentage points with their sign; nothing is below zero by a rounding."""
    return f"{round(100 * share, 2) + 0.0:+.2f}"


def cost_cell(row: Row) -> str:
    if "seconds" not in row:
        return NONE
    return f"{row['seconds']['median']:.1f} / {row['peak_mb']['median']:.0f}"


def error_merit(row: Row) -> float:
    """Its SQNR; outputs that are equal have none and are best."""
    return math.inf if row["sqnr_db"] is None else float(row["sqnr_db"])


def decibel(row: Row | None) -> str:
    if row is None:
        return NONE
    return "exact" if row["sqnr_db"] is None else f"{row['sqnr_db']:.1f}"


def labelled_decibel(row: Row | None) -> str:
    return NONE if row is None else f"{decibel(row)} ({row['label'].removeprefix('greencc ')})"


def value_of(ratio: Row | None) -> float:
    return math.inf if ratio is None else float(ratio["value"])


def verdict(outcomes: list[bool], share: float, noun: str = "models") -> str:
    """``met (7 of 8 models)``."""
    if not outcomes:
        return "nothing to judge"
    met = sum(outcomes) >= share * len(outcomes)
    return f"**{'met' if met else 'missed'}** ({sum(outcomes)} of {len(outcomes)} {noun})"

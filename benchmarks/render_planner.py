"""Tables and plot of the planner's benchmark: the goals, every method, what compiling costs, and the true best."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from benchmarks.cases import ROOT
from benchmarks.planner_plot import Dot, planner_svg
from benchmarks.planner_tools import METHODS, ORIGINAL, PLAN, geometric_mean, loss_of, verdict
from benchmarks.render_quantization import drop_cell, points
from benchmarks.render_quantization import verdict as goal
from benchmarks.tables import NONE, markdown_table, number, percent, ratio_text

Document = dict[str, Any]
Row = dict[str, Any]

PICTURE = ROOT / "docs" / "images" / "planner.svg"
GAIN_GOAL = 1.3
GAP_GOAL = 0.05
FIRST_GOAL, FIRST_CASE = 600.0, "efficientnet-lite0"
SECOND_GOAL = 60.0
COLOURS = {
    ORIGINAL: "#a1a1aa",
    "original-openvino": "#71717a",
    PLAN: "#15803d",
    "greencc-int8": "#86c79a",
    "ort-minmax": "#2563eb",
    "ort-percentile": "#93c5fd",
    "nncf": "#ea580c",
    "nncf-openvino": "#fbbf24",
    "search": "#9333ea",
}


def goals_table(document: Document) -> str:
    """Per model the plan against FP32 and against the fastest rival that keeps the limit; then the goals."""
    header = [
        "model",
        "FP32 ms",
        "plan ms",
        "speed-up [95 %]",
        "drop, points [95 %]",
        "MB",
        "energy mJ (grade)",
        "fastest rival in the limit",
        "its speed-up",
        "rival / plan [95 %]",
        "rival's energy / plan's",
        "verdict",
    ]
    rows = []
    for case in cases_of(document):
        base, plan = find(document, case, ORIGINAL), find(document, case, PLAN)
        against = document["cases"][case].get("against")
        if plan is None or base is None or against is None:
            rows.append([case, *[NONE] * (len(header) - 2), f"failed: {problem(document, case)}"])
            continue
        rival = find(document, case, against["rival"]) or base
        rows.append(
            [
                case,
                f"{base['latency_ms']:.3g}",
                f"{plan['latency_ms']:.3g}",
                ratio_text(plan["latency_ratio"]),
                drop_cell(plan),
                f"{base['size_bytes'] / 1e6:.2f} → {plan['size_bytes'] / 1e6:.2f}",
                energy_cell(plan),
                rival["label"],
                NONE if rival is base else f"{rival['latency_ratio']['value']:.2f}",
                ratio_text(against["ratio"]),
                energy_quotient(rival, plan),
                verdict(against),
            ]
        )
    lines = [
        *warnings(document),
        markdown_table(header, rows),
        "",
        *(f"- {line}" for line in goals(document)),
    ]
    return "\n".join(lines)


def warnings(document: Document) -> list[str]:
    """What a reader must know before the figures."""
    found = []
    if not document["searched"]:
        found.append("**Optuna was not installed: the search did not run.**")
    return [line for text in found for line in (text, "")]


def goals(document: Document) -> list[str]:
    """Each goal with what was found; the cases where it was not reached by name."""
    compared = {
        case: note["against"] for case, note in document["cases"].items() if note.get("against") is not None
    }
    outcomes = {case: verdict(against) for case, against in compared.items()}
    failed = [case for case in cases_of(document) if case not in compared]
    bad = [f"{case} ({failing(compared[case], told)})" for case, told in outcomes.items() if lost(told)]
    bad += [f"{case} (failed)" for case in failed]
    held = {case: against for case, against in compared.items() if against["within"] and against["ratio"]}
    mean = geometric_mean([against["ratio"]["value"] for against in held.values()])
    left = sorted(set(cases_of(document)) - set(held))
    without = f", without {', '.join(left)}" if left else ""
    faster = geometric_mean(
        [plan["latency_ratio"]["value"] for case in held if (plan := find(document, case, PLAN)) is not None]
    )
    judged = [not lost(told) for told in outcomes.values()] + [False] * len(failed)
    met = mean is not None and mean >= GAIN_GOAL
    return [
        f"Never worse than the best rival within the limit: {goal(judged, 1.0)}.",
        f"**Lost**: {'; '.join(bad)}." if bad else "Lost: none.",
        f"At least 1.3x better than it in the geometric mean: **{'met' if met else 'missed'}** "
        f"({number(mean, '.3f')}x over {len(held)} models{without}); against FP32 in ONNX Runtime: "
        f"{number(faster, '.2f')}x.",
        *cost_goals(document),
        gap_goal(document),
    ]


def lost(told: str) -> bool:
    return told not in ("won", "tied")


def failing(against: Mapping[str, Any], told: str) -> str:
    """What went wrong, for the list of lost cases."""
    if told != "lost":
        return told
    return f"{ratio_text(against['ratio'])} of the plan's speed against {label_of(against['rival'])}"


def label_of(key: str) -> str:
    return next(method.label for method in METHODS if method.key == key)


def cost_goals(document: Document) -> list[str]:
    """First and second compile."""
    first = document["cases"].get(FIRST_CASE, {}).get("compile", {})
    seconds = [
        float(note["compile"]["second_seconds"])
        for note in document["cases"].values()
        if note.get("compile", {}).get("second_seconds") is not None and not note["compile"]["second_error"]
    ]
    reached = "nothing to judge"
    if first and first["first_error"] is None:
        taken = first["first_seconds"]
        reached = f"**{'met' if taken <= FIRST_GOAL else 'missed'}** ({taken:.0f} s)"
    return [
        f"First compile of EfficientNet-Lite0 in at most 10 minutes: {reached}.",
        "Second compile of the same model with another budget in less than 60 s: "
        f"{goal([value < SECOND_GOAL for value in seconds], 1.0)}.",
    ]


def gap_goal(document: Document) -> str:
    found = [
        note["exhaustive"]["gap"] <= GAP_GOAL
        and note["exhaustive"]["plan_loss"] <= document["max_drop"] + 1e-9
        for note in document["cases"].values()
        if (note.get("exhaustive") or {}).get("gap") is not None
    ]
    return f"Plan within 5 % of the true best of a small space: {goal(found, 1.0)}."


def picture(document: Document) -> str:
    """Draw the plot and refer to it."""
    cases = []
    for case in cases_of(document):
        dots = [
            Dot(
                method=row["label"],
                colour=COLOURS[row["method"]],
                ratio=row["latency_ratio"]["value"],
                low=row["latency_ratio"]["low"],
                high=row["latency_ratio"]["high"],
                kept=row["within"],
                drop=100 * loss_of(row),
                ours=row["method"] == PLAN,
            )
            for row in rows_of(document, case)
            if row.get("latency_ratio") is not None
        ]
        if dots:
            cases.append((case, dots))
    if not cases:
        return "No model was judged."
    PICTURE.parent.mkdir(exist_ok=True)
    limit = 100 * document["max_drop"]
    text = planner_svg(f"At most {limit:g} % of accuracy lost, no training", cases)
    PICTURE.write_text(text + "\n", encoding="utf-8")
    where = PICTURE.relative_to(PICTURE.parents[1]).as_posix()
    return f"![Speed-up over FP32 by model and method; crosses break the limit]({where})"


def methods_table(document: Document) -> str:
    """Every method on every model; those that break the limit are marked."""
    parts = []
    for case in cases_of(document):
        note = document["cases"][case]
        rival = (note.get("against") or {}).get("rival")
        rows = [method_cells(row, rival) for row in rows_of(document, case)]
        header = ["variant", "accuracy", "drop, points [95 %]", "within", "ms", "speed-up [95 %]", "MB"]
        table = markdown_table([*header, "energy mJ (grade)", "energy ratio [95 %]", "wall s"], rows)
        summary = case
        if "scored" in note:
            summary += f": {note['scored']:,} samples judge, {note['planning']:,} plan, {note['samples']:,} calibrate"
        parts.append(f"<details>\n<summary>{summary}</summary>\n\n{table}\n\n</details>")
    return "\n\n".join(parts) or "No model was judged."


def method_cells(row: Row, rival: str | None) -> list[str]:
    name = f"{row['label']}{' **(best rival)**' if row['method'] == rival else ''}"
    if row["error"] is not None:
        return [name, f"failed: {row['error'][:160]}", *[NONE] * 8]
    energy = row.get("energy")
    return [
        name,
        percent(row["value"]),
        NONE if row["method"] == ORIGINAL else drop_cell(row),
        "yes" if row["within"] else "**no**",
        f"{row['latency_ms']:.3g}",
        ratio_text(row["latency_ratio"]),
        f"{row['size_bytes'] / 1e6:.2f}",
        energy_cell(row),
        NONE if energy is None else ratio_text(energy["ratio"]),
        number(row["seconds"], ".1f"),
    ]


def cost_table(document: Document) -> str:
    """Both compiles, and what the search did in the time of the first."""
    rows = []
    for case in cases_of(document):
        note = document["cases"][case]
        told, search = note.get("compile") or {}, note.get("search")
        first = NONE
        if told:
            first = f"{told['first_seconds']:.1f}" if told["first_error"] is None else "failed"
        second = NONE
        if told.get("second_seconds") is not None:
            second = f"{told['second_seconds']:.1f}" if told["second_error"] is None else "failed"
        cells = [case, first, number(told.get("rounds"), "d"), second, *[NONE] * 4]
        if search is not None:
            cells[4:] = [
                f"{search['seconds']:.1f}",
                str(search["trials"]),
                str(search["built"]),
                str(search["kept_limit"]),
            ]
        rows.append(cells)
    header = ["model", "first compile s", "plans verified", "second compile s", "search s", "trials", "built"]
    return markdown_table([*header, "in the limit (planning split)"], rows)


def exhaustive_table(document: Document) -> str:
    """The plan against the true best of a space that was built whole."""
    rows = []
    for case in cases_of(document):
        found = document["cases"][case].get("exhaustive")
        if found is None:
            continue
        if found["error"] is not None:
            rows.append([case, f"failed: {found['error'][:120]}", *[NONE] * 7])
            continue
        rows.append(
            [
                case,
                f"{found['members']} ({found['refused']} refused)",
                str(found["kept_limit"]),
                f"{found['original_ms']:.3g}",
                f"{found['best_ms']:.3g}",
                points(found["best_loss"]),
                f"{found['plan_ms']:.3g}",
                points(found["plan_loss"]),
                f"{100 * found['gap']:+.1f} %",
            ]
        )
    if not rows:
        return "No small instance was run."
    header = ["model", "plans built", "in the limit", "FP32 ms", "best ms", "best: points lost", "plan ms"]
    return markdown_table([*header, "plan: points lost", "plan / best - 1"], rows)


def energy_cell(row: Row) -> str:
    energy = row.get("energy")
    if energy is None:
        return NONE
    kind = "" if energy["grade"] in ("A", "B") else ", estimated"
    return f"{energy['mj']:.3g} ({energy['grade']}{kind})"


def energy_quotient(rival: Row, plan: Row) -> str:
    if rival.get("energy") is None or plan.get("energy") is None:
        return NONE
    return f"{rival['energy']['mj'] / plan['energy']['mj']:.2f} ({plan['energy']['grade']})"


def cases_of(document: Document) -> list[str]:
    return list(dict.fromkeys(row["case"] for row in document["rows"]))


def rows_of(document: Document, case: str) -> list[Row]:
    return [row for row in document["rows"] if row["case"] == case]


def find(document: Document, case: str, method: str) -> Row | None:
    """A method's row where it ran and was timed."""
    rows = [row for row in rows_of(document, case) if row["method"] == method and row["error"] is None]
    return rows[0] if rows and rows[0].get("latency_ms") is not None else None


def problem(document: Document, case: str) -> str:
    """Why there is nothing to compare."""
    row = next((row for row in rows_of(document, case) if row["method"] == PLAN), None)
    told = document["cases"][case].get("error") or (row or {}).get("error") or "not judged"
    return re.sub(r"\s+", " ", str(told))[:160]

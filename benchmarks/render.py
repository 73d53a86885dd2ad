"""`python -m benchmarks.render`: put the tables made from `results/*.json` into `docs/benchmarks.md`.

The text around the tables is written by hand; what stands between `<!-- begin: NAME -->` and `<!-- end: NAME -->`
is replaced. A benchmark that has not run says so.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from benchmarks import render_backends as backends
from benchmarks import render_compression as compression
from benchmarks import render_planner as planner
from benchmarks.cases import ROOT
from benchmarks.render_quantization import cost_table, goals_table, quality_table
from benchmarks.results import Row, load
from benchmarks.tables import NONE, markdown_table, number, percent, ratio_text

PAGE = ROOT / "docs" / "benchmarks.md"
Document = dict[str, Any]
MOVED = 1e-3
BUSY_LOAD = 0.5


def main() -> None:
    """Render all tables."""
    text = PAGE.read_text(encoding="utf-8")
    for name, table in TABLES.items():
        # One benchmark may have several tables, NAME and NAME-PART, and more than one file of results, NAME_MORE.
        benchmark = name.partition("-")[0]
        document = load(benchmark)
        body = (
            f"Not run yet: `python -m benchmarks.run --only {benchmark.partition('_')[0]}`."
            if document is None
            else f"{table(document)}\n\n{provenance(document)}"
        )
        text = replace_section(text, name, body)
    PAGE.write_text(text, encoding="utf-8")


def replace_section(text: str, name: str, body: str) -> str:
    """Replace what stands between the markers of a section.

    Raises:
        ValueError: The page has no such section, or more than one.
    """
    pattern = re.compile(
        rf"(<!-- begin: {re.escape(name)} -->\n).*?(<!-- end: {re.escape(name)} -->)", re.DOTALL
    )
    if len(pattern.findall(text)) != 1:
        raise ValueError(f"the page needs one section <!-- begin: {name} --> ... <!-- end: {name} -->")
    return pattern.sub(lambda found: f"{found[1]}{body}\n{found[2]}", text)


def provenance(document: Document) -> str:
    """Where and how the figures came about, in one line."""
    machine = document["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in document["versions"].items())
    quick = " **Quick run: the figures are rough.**" if document["quick"] else ""
    alone = "" if document["models_folder"] else " Only the shipped example was run (no models folder given)."
    load_before = document["load_before"]
    busy = f" **Others kept the machine busy (load {load_before:g}).**" if load_before > BUSY_LOAD else ""
    return (
        f"<sub>{document['created'][:10]}, {machine['cpu']} ({machine_threads(machine)} threads, "
        f"{machine['features']}{', virtual machine' if machine['virtualised'] == 'yes' else ''}), "
        f"Python {machine['python']}, {versions}. `{document['command']}`.{quick}{busy}{alone}</sub>"
    )


def machine_threads(machine: Row) -> int:
    return int(machine["threads"])


def build_table(document: Document) -> str:
    rows = []
    for row in document["rows"]:
        if row["error"]:
            rows.append([f"{row['case']}: {row['tool']}", f"failed: {row['error']}", *[NONE] * 5])
            continue
        seconds = row["seconds"]
        mark = " (fastest peer)" if row["fastest_peer"] else ""
        rows.append(
            [
                f"{row['case']}: {row['tool']}{mark}",
                f"{seconds['median']:.2f}",
                f"{seconds['min']:.2f}–{seconds['max']:.2f}",
                f"{row['job_seconds']['median']:.2f}",
                f"{row['cpu_seconds']['median']:.2f}",
                f"{row['peak_mb']['median']:.0f}",
                NONE if row["tool"] == "greencc" else ratio_text(row["greencc_ratio"]),
            ]
        )
    header = [
        "model: tool",
        "total s (median)",
        "min–max",
        "without imports s",
        "CPU s",
        "peak MB",
        "greencc's time / this [95 %]",
    ]
    table = markdown_table(header, rows)
    goals = [
        f"{row['case']}: {ratio_text(row['greencc_ratio'])} of {row['tool']}'s time, "
        f"goal 0.50 {'met' if row['greencc_ratio']['value'] <= 0.5 else 'missed'}"
        for row in document["rows"]
        if row.get("fastest_peer") and row["greencc_ratio"]
    ]
    return f"{table}\n\nAgainst the fastest peer: {'; '.join(goals) or NONE}."


def memory_table(document: Document) -> str:
    counts = sorted({row["samples"] for row in document["rows"]})
    cells: dict[tuple[str, str], dict[int, str]] = {}
    for row in document["rows"]:
        if row["error"]:
            out_of_memory = re.search("(?i)alloc|MemoryError", row["error"])
            shown = f"over {document['limit_mb']:,}" if out_of_memory else f"failed ({row['error'][:60]})"
        else:
            shown = f"{row['peak_mb']:.0f}"
        cells.setdefault((row["tool"], row["method"]), {})[row["samples"]] = shown
    rows = [
        [f"{tool}, {method}", *(found.get(count, NONE) for count in counts)]
        for (tool, method), found in cells.items()
    ]
    return markdown_table(["peak MB", *(f"{count:,} samples" for count in counts)], rows)


def latency_table(document: Document) -> str:
    threads = [str(count) for count in document["threads"]]
    rows = []
    for row in document["rows"]:
        name = f"{row['case']}: {row['variant']}"
        if row["error"]:
            rows.append([name, f"failed: {row['error'][:80]}", *[NONE] * (2 * len(threads) + 2)])
            continue
        cells = [name]
        for count in threads:
            cells += [f"{row['latency'][count]['median']:.3g}", ratio_text(row["latency"][count]["ratio"])]
        accuracy = row["accuracy"]
        drop = NONE
        if accuracy["drop"] is not None and row["variant"] != "FP32 original":
            drop = (
                f"{100 * accuracy['drop']:+.2f} [{100 * accuracy['low']:+.2f}, {100 * accuracy['high']:+.2f}]"
            )
        cells += [f"{row['size_bytes'] / 1e6:.2f}", percent(accuracy["value"]), drop]
        rows.append(cells)
    header = ["model: artifact"]
    for count in threads:
        label = f"{count} thread{'s' * (count != '1')}"
        header += [f"ms, {label}", f"speed-up, {label} [95 %]"]
    return markdown_table([*header, "MB", "accuracy", "drop, points [95 %]"], rows)


def cleanup_table(document: Document) -> str:
    cases: dict[str, dict[str, Row]] = {}
    for row in document["rows"]:
        cases.setdefault(row["case"], {})[row["tool"]] = row
    rows = []
    for case, tools in cases.items():
        if "nodes" not in tools["original"]:
            rows.append([case, f"not run: {tools['original']['error'][:60]}", *[NONE] * 7])
            continue
        cells = [case, str(tools["original"]["nodes"])]
        for tool in ("greencc", "onnxslim", "onnxsim"):
            row = tools[tool]
            cells.append(str(row["nodes"]) if row["error"] is None else "failed")
        cells.append(number(tools["original"].get("median_ms"), ".3g"))
        for tool in ("greencc", "onnxslim", "onnxsim"):
            row = tools[tool]
            cells.append(ratio_text(row.get("ratio")) + (" (outputs differ)" if differs(row) else ""))
        rows.append(cells)
    header = ["model", "nodes", "greencc", "onnxslim", "onnxsim", "ms"]
    return markdown_table(
        [*header, "speed-up greencc [95 %]", "speed-up onnxslim [95 %]", "speed-up onnxsim [95 %]"], rows
    )


def differs(row: Row) -> bool:
    """Whether the outputs moved by more than 0.1 % of their range; None stands for a change of shape or of integers."""
    if row["error"] is not None or "output_error" not in row:
        return False
    return row["output_error"] is None or row["output_error"] > MOVED


def models_table(document: Document) -> str:
    rows = []
    refused = []
    for row in document["rows"]:
        if row["exit_code"]:
            refused.append(f"- **{row['case']}**: exit code {row['exit_code']}: {row['message']}")
            rows.append([row["case"], f"refused (exit {row['exit_code']})", *[NONE] * 7])
            continue
        rows.append(_model_row(row))
    header = [
        "model",
        "chosen",
        "latency ms",
        "latency ratio [95 %]",
        "energy ratio (grade)",
        "size ratio",
        "accuracy before → after",
        "drop, points [95 %]",
        "certified",
    ]
    table = markdown_table(header, rows)
    command = f"`{document['compile_command']}` (time and energy with `{document['effort']}` effort):"
    return "\n\n".join([command, table, *(["Refused:\n\n" + "\n".join(refused)] if refused else [])])


def _model_row(row: Row) -> list[str]:
    accuracy = row["accuracy"]
    if accuracy["baseline"] is not None:
        shown = f"{percent(accuracy['baseline'])} → {percent(accuracy['artifact'])}"
        drop = f"{100 * accuracy['drop']:+.2f} [{100 * accuracy['low']:+.2f}, {100 * accuracy['high']:+.2f}]"
    else:
        shown, drop = f"agreement {percent(accuracy['agreement'])}", NONE
    for extra in row.get("extra", ()):
        shown += f"; {extra['metric']} {extra['baseline']:.4f} → {extra['artifact']:.4f}"
    certified = "yes" if accuracy["certified"] else "no"
    if not row["data"]:
        certified = "no (no data)"
    elif not accuracy["certified"] and accuracy["n_needed"] is not None:
        certified += f" (n = {accuracy['n']:,}; needs {accuracy['n_needed']:,})"
    energy = (
        NONE if row["energy_ratio"] is None else f"{ratio_text(row['energy_ratio'])} ({row['energy_grade']})"
    )
    return [
        row["case"],
        row["precision"],
        f"{row['latency_ms'][0]:.3g} → {row['latency_ms'][1]:.3g}",
        ratio_text(row["latency_ratio"]),
        energy,
        f"{row['size_ratio']['value']:.2f}",
        shown,
        drop,
        certified,
    ]


TABLES: dict[str, Callable[[Document], str]] = {
    "build": build_table,
    "memory": memory_table,
    "latency": latency_table,
    "cleanup": cleanup_table,
    "models": models_table,
    "quantization": goals_table,
    "quantization-artifacts": quality_table,
    "quantization-cost": cost_table,
    "compression": compression.goals_table,
    "compression-curves": compression.curves,
    "compression-points": compression.points_table,
    "compression-large": compression.large_table,
    "planner": planner.goals_table,
    "planner-plot": planner.picture,
    "planner-methods": planner.methods_table,
    "planner-cost": planner.cost_table,
    "planner-exhaustive": planner.exhaustive_table,
    "backends": backends.goals_table,
    "backends-latency": backends.latency_table,
    "backends-scaling": backends.scaling_plots,
    "backends-choice": backends.choice_table,
    "backends-cost": backends.cost_table,
    "backends_roofline": backends.roofline_table,
}


if __name__ == "__main__":
    main()

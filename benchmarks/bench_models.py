"""Every model: the same `greencc compile` on each, with the verdict as its own report gives it."""

from __future__ import annotations

from typing import Any

from benchmarks.cases import Case, find_cases
from benchmarks.compiling import Compiled, arguments, compile_case
from benchmarks.results import Row, Settings, save


def run(settings: Settings) -> None:
    """Compile every model and write `models.json`."""
    rows = []
    effort = "quick"
    for case in find_cases(settings.models):
        compiled = compile_case(case, settings.work, effort)
        row = summarise(case, compiled)
        if compiled.report is not None:
            row["extra"] = [_extra(case, compiled, settings, *item) for item in case.extra]
        rows.append(row)
        print(
            f"  models {case.name}: {row.get('precision') or row['message']} ({row['seconds']:.0f} s)",
            flush=True,
        )
    save("models", settings, rows, effort=effort, compile_command=shown_command())


def shown_command() -> str:
    """What was run, as a reader would type it."""
    case = Case("CASE", model=find_cases(None)[0].model)
    options = [item for item in arguments(case, case.model.parent) if item != str(case.model)]
    return (
        f"greencc {options[0]} MODEL {' '.join(options[1:])} [--calibration DATA --eval DATA] --effort quick"
    )


def summarise(case: Case, compiled: Compiled) -> Row:
    """A row of the table from a report."""
    row: Row = {
        "case": case.name,
        "data": case.calibration is not None,
        "exit_code": compiled.exit_code,
        "seconds": compiled.seconds,
        "message": compiled.message,
    }
    report = compiled.report
    if report is None:
        return row
    energy = report["artifact"]["energy_mj"]
    return row | {
        "verdict": report["verdict"],
        "precision": report["precision"],
        "params": report["model"]["params"],
        "macs": report["model"]["macs"],
        "latency_ms": [report[side]["latency_ms"]["median"] for side in ("baseline", "artifact")],
        "latency_ratio": report["ratio"]["latency"],
        "energy_ratio": report["ratio"]["energy"],
        "energy_grade": None if energy is None else energy["grade"],
        "size_ratio": report["ratio"]["size"],
        "accuracy": {key: value for key, value in report["accuracy"].items() if key != "outputs"},
        "budget_met": report["budget"]["met"],
        "candidates": report["candidates"],
        "phases": report["compile"]["phases"],
        "compile_seconds": report["compile"]["seconds"],
        "peak_rss_mb": report["compile"]["peak_rss_mb"],
        "warnings": report["warnings"],
        "rolled_back": [record["name"] for record in report["passes"] if record["rolled_back"]],
    }


def _extra(case: Case, compiled: Compiled, settings: Settings, name: str, metric: str) -> dict[str, Any]:
    """Another metric of baseline and artifact on the evaluation data."""
    from greencc.calibration import open_data
    from greencc.targets.cpu import CpuTarget
    from greencc.verify.compare import compare

    del settings
    target = CpuTarget()
    baseline = target.open(case.model)
    artifact = target.open(compiled.bundle / "artifact" / "model.onnx")
    try:
        assert case.evaluation is not None
        data = open_data(case.evaluation, baseline.inputs, labels=case.labels, role="evaluation")
        found = compare(baseline, artifact, data, metric=metric)
    finally:
        baseline.close()
        artifact.close()
    return {"metric": name, "baseline": found.baseline, "artifact": found.artifact, "n": found.n}

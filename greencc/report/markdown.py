"""The report as Markdown, for pull requests and wikis."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from greencc.core.passes import Finding
from greencc.core.report import PassRecord, Report
from greencc.core.report_plan import PlanInfo
from greencc.report import build, energy, plan, run_times
from greencc.report.figures import (
    MISSING,
    bytes_text,
    count_text,
    figure_rows,
    joules,
    latency_estimated,
    number,
    percent,
    points,
    printable,
    share,
    time_ms,
)
from greencc.report.tuning import tuning_text
from greencc.report.verdict import judge

_SPECIAL = re.compile(r"([\\`*_\[\]<>|~#])")
_SLOWEST = 15
_WORST = 15
_POINTS = 25
_CHOICES = 25


def render_markdown(report: Report) -> str:
    """Return the report as GitHub-flavoured Markdown, ending in a newline. Names from the model are escaped."""
    verdict = judge(report)
    parts = [
        f"# {escape(report.model.name)} on {escape(report.target)}",
        f"**{escape(verdict.headline)}**",
        *([] if verdict.notice is None else [f"> **{escape(verdict.notice)}**"]),
        escape(" ".join(verdict.details)),
        *section("Warnings", bullets(report.warnings)),
        *section("On the device", _build(report)),
        *section("Figures", _figures(report)),
        *section("The plan", _plan(report)),
        *section("Outputs", _outputs(report)),
        *section("Layers kept in float", _kept(report)),
        *section("Forms considered", _candidates(report)),
        *section("Run times", table(run_times.HEADER, run_times.rows(report), right=(2, 3, 4))),
        *section("Passes", _passes(report.passes)),
        *section("Slowest layers", _layers(report)),
        *section("Energy by layer, attributed by model", _energies(report)),
        *section("Carbon and break-even", bullets(text for text in _spending(report) if text)),
        *section("Layers with the largest error", _errors(report)),
        *section("Provenance", _provenance(report)),
    ]
    return "\n\n".join(parts) + "\n"


def escape(text: object) -> str:
    """Plain text in Markdown: no markup, no HTML, one line."""
    return _SPECIAL.sub(r"\\\1", printable(text))


def section(title: str, body: str) -> list[str]:
    """A heading and its body; nothing where there is no body."""
    return [f"## {escape(title)}", body] if body else []


def bullets(lines: Iterable[str]) -> str:
    """A list; the lines are escaped."""
    return "\n".join(f"- {escape(line)}" for line in lines)


def table(header: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """A table whose cells are escaped; `right` are the columns that align right. Empty without rows."""
    if not rows:
        return ""
    rule = ["---:" if column in right else "---" for column in range(len(header))]
    lines = [header, rule, *([escape(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _figures(report: Report) -> str:
    rows = [(row.label, row.baseline, row.artifact, row.change, row.note) for row in figure_rows(report)]
    return table(("", "Baseline", "Artifact", "Change", "How it is known"), rows, right=(1, 2))


def _build(report: Report) -> str:
    checks = table(("Check", "Result", "What it says"), build.check_rows(report))
    steps = "\n".join(f"{number}. {escape(step)}" for number, step in enumerate(build.steps(report), 1))
    return "\n\n".join(filter(None, [checks, steps]))


def _plan(report: Report) -> str:
    found = report.plan
    if found is None:
        return ""
    limits = [
        (row.limit, row.allowed, row.found, row.verdict, row.known or MISSING)
        for row in plan.limit_rows(report)
    ]
    parts = [
        escape(" ".join(plan.plan_sentences(report))),
        table(("Limit", "Allowed", "Found", "Verdict", "How it is known"), limits, right=(1, 2)),
        _points(report, found),
    ]
    choices = plan.rarest_first(found.choices)
    listed = [(item.unit, item.kind, item.option, item.reason) for item in choices[:_CHOICES]]
    if units := table(("Unit", "Kind", "Option", "Why"), listed):
        parts.append(units)
        if more := len(choices) - len(listed):
            parts.append(f"{more:,} more units: see report.html.")
    if found.predictions:
        rows = [
            (
                plan.quantity_label(item.quantity),
                MISSING if item.median is None else share(item.median, 2),
                MISSING if item.worst is None else share(item.worst, 2),
                f"{len(item.pairs):,}",
            )
            for item in plan.prediction_accuracy(found.predictions)
        ]
        parts.append(table(("Predicted", "Median error", "Worst", "Plans"), rows, right=(1, 2, 3)))
    if text := plan.solver_text(found):
        parts.append(escape(f"Solver: {text}."))
    return "\n\n".join(parts)


def _points(report: Report, found: PlanInfo) -> str:
    basis = plan.energy_basis(report)
    rows = [
        (
            plan.point_name(point),
            MISSING if point.latency_ms is None else time_ms(point.latency_ms),
            MISSING if point.energy_mj is None else joules(point.energy_mj),
            MISSING if point.size_bytes is None else bytes_text(point.size_bytes),
            MISSING if point.drop is None else plan.loss_text(report, point.drop),
            "chosen" if point.chosen else ("front" if point.front else ""),
            point.place,
        )
        for point in plan.verified_points(found)[:_POINTS]
    ]
    header = (
        "Plan",
        "Latency, estimated" if found.estimated_on else "Latency",
        f"Energy ({basis})",
        "Size",
        plan.loss_label(report).split(",")[0],
        "",
        "Why",
    )
    return table(header, rows, right=(1, 2, 3, 4))


def _outputs(report: Report) -> str:
    rows = [
        (
            item.name,
            _optional(item.sqnr_db, "{:.1f} dB"),
            _optional(item.cosine, "{:.6f}"),
            _optional(item.max_abs, "{:.3g}"),
            MISSING if item.differing is None else share(item.differing),
            str(item.broken),
        )
        for item in report.accuracy.outputs
    ]
    return table(
        ("Output", "SQNR", "Cosine", "Largest error", "Differing", "Broken samples"),
        rows,
        right=(1, 2, 3, 4, 5),
    )


def _candidates(report: Report) -> str:
    rows = [
        (
            item.name,
            MISSING if item.latency_ms is None else time_ms(item.latency_ms),
            MISSING if item.drop is None else f"{points(item.drop)} points",
            "chosen" if item.chosen else "",
            item.reason,
        )
        for item in report.candidates
    ]
    latency = "Latency, estimated" if latency_estimated(report.baseline, report.artifact) else "Latency"
    return table(("Form", latency, "Drop", "", "Why"), rows, right=(1, 2))


def _passes(passes: Sequence[PassRecord]) -> str:
    rows = [
        (
            record.name,
            "rolled back" if record.rolled_back else f"{record.changed:,}",
            _optional(record.error, "{:.2g}"),
            f"{record.seconds:.2f} s",
        )
        for record in passes
    ]
    listing = table(("Pass", "Rewrites", "Output error", "Time"), rows, right=(1, 2, 3))
    findings = bullets(
        f"{record.name}, {finding.kind}: {finding_text(finding)}"
        for record in passes
        for finding in record.findings
    )
    return f"{listing}\n\n{findings}" if findings else listing


def finding_text(finding: Finding) -> str:
    """The message, and where it applies unless the message says so itself."""
    if finding.node is None or finding.node in finding.message:
        return finding.message
    return f"{finding.message} (at {finding.node})"


def _layers(report: Report) -> str:
    slowest = sorted(report.layers, key=lambda item: -max(item.baseline_us or 0.0, item.artifact_us or 0.0))
    rows = [
        (item.name, item.op_type, _micro(item.baseline_us), _micro(item.artifact_us))
        for item in slowest[:_SLOWEST]
    ]
    return table(("Layer", "Operator", "Baseline", "Artifact"), rows, right=(2, 3))


def _energies(report: Report) -> str:
    found = report.layer_energy
    if found is None:
        return ""
    rows = [
        (row.name, row.op_type, row.baseline, row.baseline_share, row.artifact, row.artifact_share)
        for row in energy.layer_rows(found, _SLOWEST)
    ]
    note = escape(f"Totals: {energy.grade_text(found)}. {found.method[:1].upper()}{found.method[1:]}.")
    header = ("Layer", "Operator", "Baseline", "Share", "Artifact", "Share")
    return f"{table(header, rows, right=(2, 3, 4, 5))}\n\n{note}"


def _spending(report: Report) -> tuple[str, str]:
    return energy.carbon_note(report.carbon), energy.compile_note(report)


def _kept(report: Report) -> str:
    rows = [
        (
            item.name,
            item.op_type,
            MISSING if item.error is None else number(item.error),
            _micro(item.saved_us),
            item.reason,
        )
        for item in report.layer_choices
        if item.precision == "float"
    ]
    return table(("Layer", "Operator", "Error of INT8", "INT8 would save", "Why"), rows, right=(2, 3))


def _errors(report: Report) -> str:
    worst = sorted(report.layer_errors, key=lambda item: item.sqnr_db)
    rows = [(item.name, item.op_type, f"{item.sqnr_db:.1f} dB") for item in worst[:_WORST]]
    return table(("Layer", "Operator", "SQNR"), rows, right=(2,))


def _provenance(report: Report) -> str:
    model, found, data = report.model, report.accuracy, report.calibration
    macs = MISSING if model.macs is None else count_text(model.macs)
    lines = [
        f"Model: {model.name}, sha256 {model.sha256}, {count_text(model.params)} parameters, {macs} MACs, "
        f"opset {model.opset}, {model.nodes} nodes",
        f"Accuracy: {found.metric}, n = {found.n:,}"
        + ("" if found.agreement is None else f", agreement {percent(found.agreement)}")
        + ("" if found.p_value is None else f", p = {number(found.p_value, 2)}"),
        "Calibration: none"
        if data is None
        else f"Calibration: {data.source}, {data.n:,} samples, digest {data.digest}"
        + (", synthetic" if data.synthetic else ""),
        "Device: " + _pairs(report.device),
        "Conditions: " + _pairs(report.conditions),
        "Versions: " + _pairs(report.versions),
        f"Compile: {report.compile.seconds:.1f} s"
        + (
            ""
            if report.compile.peak_rss_mb is None
            else f", peak {bytes_text(report.compile.peak_rss_mb * 1e6)}"
        ),
        *(tuning_text(each) for each in report.compile.tuning),
        f"greencc {report.greencc}, {report.created}",
    ]
    return bullets(lines)


def _pairs(values: dict[str, object] | dict[str, str]) -> str:
    return "; ".join(f"{key} {value}" for key, value in values.items()) or MISSING


def _micro(value: float | None) -> str:
    return MISSING if value is None else f"{number(value)} µs"


def _optional(value: float | None, form: str) -> str:
    return MISSING if value is None else form.format(value)

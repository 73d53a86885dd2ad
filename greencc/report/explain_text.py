"""What `greencc explain` prints, as rich renderables that read without colour and at 80 columns."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from greencc.core.meter import Grade
from greencc.core.passes import Finding
from greencc.core.report import LayerChoice, LayerShare, Report
from greencc.core.report_plan import PlanChoice
from greencc.report import plan as words
from greencc.report.energy import ATTRIBUTED, share_interval
from greencc.report.explain import EnergyShares, Explanation
from greencc.report.figures import (
    capitalized,
    joules,
    joules_interval,
    number,
    printable,
    shorten,
    time_ms,
    watts,
)

_MOST = 40
_LONGEST_NAME = 60


def explanation_text(report: Report, found: Explanation) -> RenderableType:
    """One layer or unit: what was decided and why, times, energies and errors."""
    parts: list[RenderableType] = [Text(printable(found.name), style="bold")]
    if not found.planned:
        parts += [Text(), Text(no_plan_text(report))]
    for unit in found.units:
        parts += [Text(), *_unit(report, unit)]
    if found.planned and not found.units:
        parts += [Text(), Text(_undecided(report))]
    for choice in found.layer_choices:
        parts += [Text(), Text(_layer_choice(choice))]
    if found.decisions:
        parts.append(Text())
        parts += [Text(f"{item.name} has {item.layer} among its {item.option}") for item in found.decisions]
    if found.findings:
        parts.append(Text())
        parts += [Text(_finding(item.name, item.finding)) for item in found.findings]
    parts += _figures(found)
    return Group(*parts)


def overview_text(report: Report, *, everything: bool) -> RenderableType:
    """All units and what they became; without a plan, the layers that were weighed and what the passes said."""
    found = report.plan
    if found is None:
        return _without_plan(report, everything)
    if found.estimated_on:
        return Group(
            Text(" ".join(words.plan_sentences(report))), Text(), *_forms_in_modes(report, everything)
        )
    shown = list(found.choices) if everything else words.rarest_first(found.choices)[:_MOST]
    parts: list[RenderableType] = [Text(" ".join(words.plan_sentences(report))), Text()]
    table = _table(("Unit", "Kind", "Option", "Why"))
    for item in shown:
        style = "bold blue" if words.changed(item) else ""
        table.add_row(
            _name(item.unit),
            Text(printable(item.kind)),
            Text(printable(item.option), style=style),
            Text(printable(item.reason)),
        )
    parts.append(table if shown else Text("There was nothing to decide."))
    return Group(*parts, *_more(len(found.choices) - len(shown), "units"))


def _undecided(report: Report) -> str:
    """Why a plan decided nothing on a layer."""
    plan = report.plan
    picked = None if plan is None else words.chosen_point(plan)
    if plan is None or picked is None or not plan.estimated_on:
        return "The plan had nothing to decide on it: it is as the source model has it."
    return (
        f"The plan chose among forms of the whole model by estimate, not layer by layer: {words.point_name(picked)} "
        "was chosen. What follows is what its passes and its search have recorded."
    )


def _forms_in_modes(report: Report, everything: bool) -> list[RenderableType]:
    """All forms of an estimated plan by power mode."""
    plan = report.plan
    assert plan is not None
    points = words.verified_points(plan)
    shown = points if everything else points[:_MOST]
    table = _table(("Form", "Latency", "Energy", "Power", "Why"), right=(1, 2, 3))
    for point in shown:
        table.add_row(
            Text(("* " if point.chosen else "  ") + words.point_name(point)),
            "" if point.latency_ms is None else time_ms(point.latency_ms),
            "" if point.energy_mj is None else joules(point.energy_mj),
            "" if point.watts is None else watts(point.watts),
            Text(printable(point.place)),
        )
    note = (
        f"* chosen. Latency, energy and power ({words.rate_text(plan)}): {words.energy_basis(report)}; "
        "nothing ran on the device."
    )
    return [table, Text(note, style="dim"), *_more(len(points) - len(shown), "forms and modes")]


def no_plan_text(report: Report) -> str:
    """Says that there is no plan, and what the compile was asked for instead."""
    asked = report.budget.asked
    how = next(
        (f"--{key} {printable(asked[key])}" for key in ("passes", "recipe", "precision") if asked.get(key)),
        "without a budget",
    )
    return (
        f"This bundle was not made by a plan (it was compiled with {how}): what follows is what its passes "
        f"and its search have recorded. The form that was kept is {printable(report.precision)}."
    )


def _without_plan(report: Report, everything: bool) -> RenderableType:
    parts: list[RenderableType] = [Text(no_plan_text(report))]
    choices = sorted(report.layer_choices, key=lambda item: item.precision != "float")
    shown = choices if everything else choices[:_MOST]
    if shown:
        table = _table(("Layer", "Operator", "Precision", "Why"))
        for item in shown:
            table.add_row(
                _name(item.name),
                Text(printable(item.op_type)),
                Text(printable(item.precision)),
                Text(printable(item.reason)),
            )
        parts += [Text(), table, *_more(len(choices) - len(shown), "layers")]
    else:
        parts += [Text(), Text("No layers were weighed against each other.")]
    findings = [(record.name, finding) for record in report.passes for finding in record.findings]
    listed = findings if everything else findings[:_MOST]
    if listed:
        parts.append(Text())
        parts += [Text(_finding(name, finding)) for name, finding in listed]
        parts += _more(len(findings) - len(listed), "findings")
    return Group(*parts)


def _more(count: int, what: str) -> list[RenderableType]:
    return [Text(f"... and {count:,} more {what} (--all lists them)")] if count > 0 else []


def _unit(report: Report, unit: PlanChoice) -> list[RenderableType]:
    head = Text.assemble(
        (f"{capitalized(printable(unit.kind))}: ", ""),
        (printable(unit.option), "bold"),
        f". {capitalized(printable(unit.reason).rstrip('.'))}.",
    )
    parts: list[RenderableType] = [head]
    if unit.nodes != (unit.unit,):
        nodes = ", ".join(shorten(printable(node), _LONGEST_NAME) for node in unit.nodes[:_MOST])
        more = f" and {len(unit.nodes) - _MOST:,} more" if len(unit.nodes) > _MOST else ""
        parts.append(Text(f"Unit {printable(unit.unit)}, which touches {nodes}{more}" if nodes else ""))
    if not unit.options:
        return parts
    table = _table(("", "Adds error", "Saves time", "energy", "bytes", "The error is"), right=(1, 2, 3, 4))
    for option in unit.options:
        taken = option.name == unit.option
        cells = words.option_cells(option)
        table.add_row(
            Text(("* " if taken else "  ") + printable(option.name), style="bold" if taken else ""),
            *(Text(cell) for cell in cells),
        )
    note = f"* chosen. Each option alone; energy per inference: {words.energy_basis(report)}."
    return [*parts, table, Text(note, style="dim")]


def _layer_choice(choice: LayerChoice) -> str:
    """In a sentence."""
    texts = [f"{capitalized(printable(choice.precision))} was chosen for {printable(choice.name)}"]
    if choice.reason:
        texts.append(printable(choice.reason).rstrip("."))
    facts = []
    if choice.error is not None:
        facts.append(f"INT8 adds {number(choice.error)} to the error of the outputs")
    if choice.saved_us is not None:
        verb = "saves" if choice.saved_us >= 0 else "costs"
        facts.append(f"INT8 {verb} {_micro(abs(choice.saved_us))}")
    if choice.saved_mj is not None and choice.grade is not None:
        word = "measured" if Grade[choice.grade].measured else "estimated"
        where = printable(choice.boundary or "boundary not told")
        facts.append(
            f"INT8 saves {joules(choice.saved_mj)} of energy ({word}, grade {choice.grade}, {where})"
        )
    return ": ".join(texts) + "." + "".join(f" {fact}." for fact in facts)


def _finding(name: str, finding: Finding) -> str:
    at = "" if finding.node is None or finding.node in finding.message else f" (at {printable(finding.node)})"
    return f"{printable(name)}, {finding.kind}: {printable(finding.message)}{at}"


def _figures(found: Explanation) -> list[RenderableType]:
    parts: list[RenderableType] = []
    if found.layers:
        table = _table(("Layer", "Operator", "Baseline", "Artifact"), right=(2, 3))
        for row in found.layers[:_MOST]:
            table.add_row(
                _name(row.name), printable(row.op_type), _micro(row.baseline_us), _micro(row.artifact_us)
            )
        parts += [Text(), Text("Measured times"), table]
        if any(row.artifact_us is None for row in found.layers):
            parts.append(Text("none: fused into another layer, or removed", style="dim"))
    if found.layer_energy is not None:
        parts += [Text(), *_energies(found.layer_energy)]
    if found.layer_errors:
        table = _table(("Layer", "SQNR"), right=(1,))
        for item in found.layer_errors[:_MOST]:
            table.add_row(_name(item.name), f"{item.sqnr_db:.1f} dB")
        parts += [
            Text(),
            Text("Signal to noise ratio against the float model, earlier errors included"),
            table,
        ]
    return parts


def _energies(energy: EnergyShares) -> list[RenderableType]:
    table = _table(("Layer", "Baseline", "Artifact"), right=(1, 2))
    for row in energy.rows[:_MOST]:
        table.add_row(_name(row.name), _share(row.baseline), _share(row.artifact))
    word = "measured" if Grade[energy.grade].measured else "estimated"
    title = f"Energy, {ATTRIBUTED} (totals {word}, grade {energy.grade}, {printable(energy.boundary)})"
    return [Text(title), table]


def _share(part: LayerShare | None) -> Text:
    return Text("none" if part is None else f"{joules_interval(part.mj)}\n{share_interval(part)}")


def _micro(value: float | None) -> str:
    return "none" if value is None else time_ms(value / 1000.0)


def _name(name: str) -> Text:
    return Text(shorten(printable(name), _LONGEST_NAME))


def _table(columns: Sequence[str], right: Sequence[int] = ()) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for index, name in enumerate(columns):
        table.add_column(name, justify="right" if index in right else "left", overflow="fold")
    return table

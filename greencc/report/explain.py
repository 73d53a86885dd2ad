"""Why a layer is as it is: everything that a report holds about one layer or unit, found by its name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

from greencc.core.errors import UsageError
from greencc.core.passes import Finding
from greencc.core.report import REST, LayerChoice, LayerEnergy, LayerError, LayerTime, Report
from greencc.core.report_plan import PlanChoice
from greencc.report.figures import printable, shorten
from greencc.report.plan import energy_basis

_LISTED = 12
_LONGEST = 96


@dataclass(frozen=True)
class PassFinding:
    """What a pass said of a layer."""

    name: str
    finding: Finding


@dataclass(frozen=True)
class PassDecision:
    """A list of names that a pass decided on, such as `skip`, with the layer among them."""

    name: str
    option: str
    layer: str


@dataclass(frozen=True)
class EnergyShares:
    """Rows of the energy by layer, with how the totals are known."""

    grade: str
    boundary: str
    method: str
    rows: tuple[LayerEnergy, ...]


@dataclass(frozen=True)
class Explanation:
    """All that is known of a layer or unit.

    Attributes:
        name: The full name that was meant.
        planned: Whether the bundle was made by a plan.
        form: The form that was kept.
        units: Everything that was decided on it; empty without a plan.
        units_energy: How the energies of the units' options are known: ``estimated, grade D, ...``.
        nodes: Names of the source model's nodes that it is about.
        layers: Times of those before and after.
        layer_energy: Their energies, attributed by model.
        layer_errors: Signal to noise ratios of their outputs.
        layer_choices: The precisions that were chosen for them by a sensitivity search, without a plan.
        findings: What the passes said of them; `decisions` what they decided.
    """

    name: str
    planned: bool
    form: str
    units: tuple[PlanChoice, ...]
    units_energy: str | None
    nodes: tuple[str, ...]
    layers: tuple[LayerTime, ...]
    layer_energy: EnergyShares | None
    layer_errors: tuple[LayerError, ...]
    layer_choices: tuple[LayerChoice, ...]
    findings: tuple[PassFinding, ...]
    decisions: tuple[PassDecision, ...]


def explain(report: Report, layer: str) -> Explanation:
    """Everything on the layer or unit of this name, or of the only name that has this part.

    Raises:
        UsageError: No name has it, or several have.
    """
    name = find_name(report, layer)
    choices = () if report.plan is None else report.plan.choices
    units = tuple(item for item in choices if name == item.unit or name in item.nodes)
    # A unit is explained with all of its nodes, a node with itself alone.
    own = [node for item in units if item.unit == name for node in item.nodes]
    nodes = tuple(dict.fromkeys([*own, *([name] if name in _layer_names(report) or not own else [])]))
    about = frozenset(nodes)
    energy = report.layer_energy
    rows = () if energy is None else tuple(row for row in energy.rows if row.name in about)
    return Explanation(
        name=name,
        planned=report.plan is not None,
        form=report.precision,
        units=units,
        units_energy=None if report.plan is None else energy_basis(report),
        nodes=nodes,
        layers=tuple(item for item in report.layers if item.name in about),
        layer_energy=None
        if energy is None or not rows
        else EnergyShares(energy.grade, energy.boundary, energy.method, rows),
        layer_errors=tuple(item for item in report.layer_errors if item.name in about),
        layer_choices=tuple(item for item in report.layer_choices if item.name in about),
        findings=tuple(
            PassFinding(record.name, finding)
            for record in report.passes
            for finding in record.findings
            if _is_about(finding, about)
        ),
        decisions=tuple(
            PassDecision(record.name, option, node)
            for record in report.passes
            for option, names in record.chosen.items()
            for node in nodes
            if node in names
        ),
    )


def find_name(report: Report, layer: str) -> str:
    """The full name of a unit or layer; see `explain` for the errors."""
    names = known_names(report)
    if layer in names:
        return layer
    part = layer.casefold()
    # A part that ends a name says more than one within it: "/conv1" is not "/conv1/bias".
    for matches in (
        [name for name in names if name.casefold().endswith(part)] if part else [],
        [name for name in names if part in name.casefold()] if part else [],
    ):
        if len(matches) == 1:
            return matches[0]
        if matches:
            listed = ", ".join(_short(name) for name in matches[:_LISTED])
            more = f" and {len(matches) - _LISTED} more" if len(matches) > _LISTED else ""
            raise UsageError(
                f"{len(matches)} layers or units have {_short(layer)!r} in their names",
                hint=f"give more of the name: {listed}{more}",
            )
    close = difflib.get_close_matches(layer, names, n=1, cutoff=0.5)
    start = f"did you mean '{_short(close[0])}'? " if close else ""
    raise UsageError(
        f"the report knows no layer or unit {_short(layer)!r}",
        hint=f"{start}without a name, 'greencc explain' lists them",
    )


def known_names(report: Report) -> list[str]:
    """Units first, then layers; each once."""
    units = [] if report.plan is None else [item.unit for item in report.plan.choices]
    nodes = [] if report.plan is None else [node for item in report.plan.choices for node in item.nodes]
    return list(dict.fromkeys([*units, *nodes, *_layer_names(report)]))


def _layer_names(report: Report) -> dict[str, None]:
    """Every layer that a figure, a choice or a finding is about."""
    energies: Iterable[LayerEnergy] = () if report.layer_energy is None else report.layer_energy.rows
    return dict.fromkeys(
        [
            *(item.name for item in report.layers),
            *(item.name for item in report.layer_choices),
            *(item.name for item in report.layer_errors),
            *(item.name for item in energies if item.name != REST),
            *(item.node for record in report.passes for item in record.findings if item.node),
        ]
    )


def _is_about(finding: Finding, names: frozenset[str]) -> bool:
    if finding.node in names:
        return True
    # Short names occur in any sentence: only those in quotes are meant.
    return any(f"'{name}'" in finding.message for name in names)


def _short(name: str) -> str:
    return shorten(printable(name), _LONGEST)

"""Wording of energy by layer, carbon, the compile's own energy and break-even, which every format shares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from greencc.core.meter import Grade
from greencc.core.report import (
    REST,
    Carbon,
    CompileInfo,
    Interval,
    LayerEnergies,
    LayerEnergy,
    LayerShare,
    Report,
)
from greencc.report.figures import (
    MISSING,
    Row,
    co2_text,
    joules_interval,
    measured,
    number,
    printable,
    share,
    shorten,
)

ATTRIBUTED = "attributed by model"
_SCALES = ((1e9, " billion"), (1e6, " million"), (1e3, " thousand"))
_NAMED = 3
_LONGEST = 48


@dataclass(frozen=True)
class LayerRow:
    """A layer with its energy and share on both sides, as text; `MISSING` where it is not there."""

    name: str
    op_type: str
    baseline: str
    baseline_share: str
    artifact: str
    artifact_share: str


def grade_text(found: LayerEnergies | Carbon) -> str:
    """``estimated, grade D, CPU package + DRAM``: how the totals are known."""
    return f"{word(found)}, grade {found.grade}, {printable(found.boundary)}"


def word(found: LayerEnergies | Carbon) -> str:
    return "measured" if Grade[found.grade].measured else "estimated"


def heaviest(found: LayerEnergies, most: int) -> list[LayerEnergy]:
    """The layers that take most in either variant; what lies between the layers is not one of them."""
    layers = [row for row in found.rows if row.name != REST]
    return sorted(layers, key=_weight)[:most]


def layer_rows(found: LayerEnergies, most: int) -> list[LayerRow]:
    """The heaviest layers, the sum of the others where there are any, and what lies between them."""
    top = heaviest(found, most)
    chosen = {id(row) for row in top}
    others = [row for row in found.rows if row.name != REST and id(row) not in chosen]
    rows = [_row(item) for item in top]
    if others:
        rows.append(_others(others))
    return rows + [_row(item) for item in found.rows if item.name == REST]


def layers_note(report: Report) -> str:
    """One sentence with the layers that take most, or an empty text."""
    found = report.layer_energy
    if found is None:
        return ""
    parts = []
    for side in ("baseline", "artifact"):
        known = [(row, part) for row in found.rows if (part := _part(row, side)) is not None]
        top = sorted(known, key=lambda item: -item[1].share.value)[:_NAMED]
        named = [
            f"{shorten(printable(row.name), _LONGEST)} {share_interval(part)}"
            for row, part in top
            if part.share.value > 0
        ]
        parts.append(f"{side}: {', '.join(named)}")
    return f"Energy by layer, {ATTRIBUTED} (total {grade_text(found)}): {'; '.join(parts)}."


def carbon_row(found: Carbon) -> Row:
    """SCI per inference of both variants."""
    return Row(
        "SCI per inference, CO2e",
        _co2_cell(found.baseline_ug),
        _co2_cell(found.artifact_ug),
        "",
        carbon_basis(found),
    )


def carbon_basis(found: Carbon) -> str:
    """Energy, grid, year, source and embodied share that the figures stand on."""
    grid = found.grid
    year = "" if grid.year is None else f", {grid.year}"
    text = (
        f"gross energy ({grade_text(found)}) at {grid.grams_per_kwh:g} g CO2e/kWh "
        f"({printable(grid.place)}{year}: {printable(grid.source)}); "
    )
    if found.embodied is None:
        return f"{text}embodied emissions not included"
    return (
        f"{text}with the inference's share of {found.embodied.kg:g} kg CO2e embodied in the device, "
        f"over {found.embodied.lifetime_years:g} years"
    )


def carbon_note(found: Carbon | None) -> str:
    """One sentence, or an empty text."""
    if found is None:
        return ""
    cells = [_co2_cell(side, " CO2e") for side in (found.baseline_ug, found.artifact_ug)]
    return f"Carbon (SCI) per inference: {cells[0]} before, {cells[1]} after; {carbon_basis(found)}."


def compile_energy(info: CompileInfo, *, method: bool = True) -> str:
    """``5.1 kJ [1.2 kJ, 9 kJ], estimated, grade D, ...``, or an empty text."""
    energy = info.energy_j
    if energy is None:
        return ""
    kind = "measured" if measured(energy) else "estimated"
    values = Interval(*(1e3 * value for value in (energy.value, energy.low, energy.high)))
    known = f"grade {energy.grade}, {printable(energy.boundary)}"
    # The method begins with the word.
    how = f"{known}; {printable(energy.method)}" if method else f"{kind}, {known}, gross, this run alone"
    return f"{joules_interval(values)}, {how}"


def break_even(info: CompileInfo) -> str:
    """``pays for itself after 1.2 million inferences [0.90, 1.9]``, why it does not, or an empty text."""
    found = info.break_even
    if found is None:
        return ""
    if found.inferences is None:
        return printable(found.reason)
    count = found.inferences
    scale, unit = next(((scale, unit) for scale, unit in _SCALES if count.value >= scale), (1.0, ""))
    low, value, high = (number(item / scale, 2) for item in (count.low, count.value, count.high))
    return f"pays for itself after {value}{unit} inferences [{low}, {high}] ({printable(found.reason)})"


def compile_note(report: Report, *, method: bool = True) -> str:
    """One sentence, or an empty text."""
    energy = compile_energy(report.compile, method=method)
    if not energy:
        return ""
    repaid = break_even(report.compile)
    return f"This compile took {energy}." + (f" Break-even: {repaid}." if repaid else "")


def notes(report: Report) -> list[str]:
    """The sentences that there is something to say in, for a terminal."""
    texts = (layers_note(report), carbon_note(report.carbon), compile_note(report, method=False))
    return [text for text in texts if text]


def _part(row: LayerEnergy, side: str) -> LayerShare | None:
    return row.baseline if side == "baseline" else row.artifact


def _weight(row: LayerEnergy) -> float:
    return -max(_value(row.baseline), _value(row.artifact))


def _value(part: LayerShare | None) -> float:
    return 0.0 if part is None else part.share.value


def _row(item: LayerEnergy) -> LayerRow:
    return LayerRow(
        item.name,
        item.op_type,
        *(
            cell
            for part in (item.baseline, item.artifact)
            for cell in (_energy_cell(part), _share_cell(part))
        ),
    )


def _others(rows: Sequence[LayerEnergy]) -> LayerRow:
    """Sums of the rest."""
    cells = []
    for side in ("baseline", "artifact"):
        part = sum_shares([part for row in rows if (part := _part(row, side)) is not None])
        cells += [_energy_cell(part), _share_cell(part)]
    return LayerRow(f"{len(rows)} other layer" + ("s" if len(rows) > 1 else ""), "", *cells)


def sum_shares(parts: Sequence[LayerShare]) -> LayerShare | None:
    """Shares and energies of layers together. Their ends are sums too: wider than need be, where layers share a cause.

    None without any.
    """
    if not parts:
        return None
    shares, energies = [part.share for part in parts], [part.mj for part in parts]
    share_sum, energy_sum = (
        Interval(
            sum(item.value for item in items),
            sum(item.low for item in items),
            sum(item.high for item in items),
        )
        for items in (shares, energies)
    )
    return LayerShare(replace(share_sum, high=min(1.0, share_sum.high)), energy_sum)


def _energy_cell(part: LayerShare | None) -> str:
    return MISSING if part is None else joules_interval(part.mj)


def _share_cell(part: LayerShare | None) -> str:
    return MISSING if part is None else share_interval(part)


def share_interval(part: LayerShare) -> str:
    """``5.8 % [5.2, 6.4]``."""
    return f"{share(part.share.value, 2)} [{_percents(part.share)}]"


def _percents(interval: Interval) -> str:
    return f"{number(interval.low * 100, 2)}, {number(interval.high * 100, 2)}"


def _co2_cell(interval: Interval, of: str = "") -> str:
    return f"{co2_text(interval.value)}{of} [{co2_text(interval.low)}, {co2_text(interval.high)}]"

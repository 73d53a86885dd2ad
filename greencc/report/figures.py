"""Numbers as people read them, and the rows of the baseline / artifact / ratio table that every format shares."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from greencc.core.meter import Grade
from greencc.core.report import Energy, Figures, Interval, Latency, Ratio, Report

MINUS = "\N{MINUS SIGN}"
MISSING = "\N{EN DASH}"
NOT_CLAIMED = "no saving claimed"
NO_SAVING = "no saving shown"
NO_SPEED_UP = "no speed-up shown"
BUSY = "other processes were busy while measuring"
PARTIAL = "the energy rests on part of the measurement"

# Sizes and counts that differ by less are the same.
_SAME = 0.005

_TIME = ((1e3, "s"), (1.0, "ms"), (1e-3, "µs"))  # in milliseconds
_ENERGY = ((1e6, "kJ"), (1e3, "J"), (1.0, "mJ"), (1e-3, "µJ"), (1e-6, "nJ"))  # in millijoules
_POWER = ((1e3, "kW"), (1.0, "W"), (1e-3, "mW"), (1e-6, "µW"))  # in watts
_CARBON = ((1e9, "kg"), (1e6, "g"), (1e3, "mg"), (1.0, "µg"), (1e-3, "ng"), (1e-6, "pg"))  # in micrograms
_BYTES = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B"))
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://")
_COUNTS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))


@dataclass(frozen=True)
class Row:
    """One line of the figures table; `change` says in words what the ratio means, `note` how it is known."""

    label: str
    baseline: str
    artifact: str
    change: str
    note: str = ""


def printable(text: object) -> str:
    """The text with control, bidirectional-override and unassigned characters replaced, newlines as spaces.

    Names come from models, that is from anywhere: they must not move a terminal's cursor or reverse a line.
    """
    return "".join(
        " "
        if char in "\n\t"
        else ("\N{REPLACEMENT CHARACTER}" if unicodedata.category(char)[0] == "C" else char)
        for char in str(text)
    )


def shorten(text: str, limit: int) -> str:
    """At most `limit` characters, with an ellipsis in the middle: both ends of a layer's name tell."""
    if len(text) <= limit:
        return text
    head = (limit - 1) // 2
    return f"{text[:head]}\N{HORIZONTAL ELLIPSIS}{text[len(text) - (limit - 1 - head) :]}"


def number(value: float, digits: int = 3) -> str:
    """`digits` significant digits, no exponent above 1e-4; thousands are grouped, minus is a minus sign."""
    if value == 0:
        return "0"
    size = abs(value)
    rounded = float(f"{size:.{digits}g}")  # 0.9996 counts as 1.00, 99.96 as 100
    if rounded >= 1:
        text = f"{size:,.{max(0, digits - len(str(int(rounded))))}f}"
    else:
        text = f"{size:.{digits}g}"
        if "e" in text:
            text = f"{size:.1e}"
    return f"{MINUS}{text}" if value < 0 else text


def share(value: float, digits: int = 3) -> str:
    """A fraction as a percentage: ``31 %``."""
    return f"{number(value * 100, digits)} %"


def round_share(value: float) -> str:
    """A fraction that someone chose, as a percentage without trailing zeros: ``1 %``, ``99.5 %``."""
    return f"{value * 100:g} %"


def percent(value: float) -> str:
    """An accuracy: two decimals, ``91.24 %``."""
    return f"{value * 100:.2f} %"


def points(value: float) -> str:
    """A difference of accuracies, in percentage points with two decimals."""
    text = f"{abs(value) * 100:.2f}"
    return f"{MINUS}{text}" if value < 0 and float(text) != 0 else text


def time_ms(value: float) -> str:
    return _scaled(value, _TIME)


def bytes_text(value: float) -> str:
    return _scaled(value, _BYTES)


def joules(value: float) -> str:
    """An energy given in millijoules."""
    return _scaled(value, _ENERGY)


def watts(value: float) -> str:
    return _scaled(value, _POWER)


def co2_text(value: float) -> str:
    """Emissions given in micrograms of CO2 equivalent."""
    return _scaled(value, _CARBON)


def count_text(value: float) -> str:
    """``11.7 M``."""
    return _scaled(value, _COUNTS).rstrip()


def _scaled(value: float, units: Sequence[tuple[float, str]]) -> str:
    for factor, unit in units:
        # 0.9995 of a unit would print as 1,000 of the one below.
        if abs(value) >= 0.9995 * factor:
            return f"{number(value / factor)} {unit}"
    factor, unit = units[-1]
    return f"{number(value / factor)} {unit}"


def interval_text(interval: Interval) -> str:
    """``[1.78, 1.88]``."""
    return f"[{number(interval.low)}, {number(interval.high)}]"


def saving(ratio: Interval) -> Interval:
    """The share saved, 1 - 1/ratio, with its interval."""
    return Interval(1 - 1 / ratio.value, 1 - 1 / ratio.low, 1 - 1 / ratio.high)


def measured(*energies: Energy | None) -> bool:
    """True when every figure given comes from a meter (grade A or B)."""
    return all(energy is not None and Grade[energy.grade].measured for energy in energies)


def clean(report: Report) -> bool:
    """False when the machine was too busy while measuring: neither latency nor energy is claimed then."""
    return report.conditions.get("clean") is not False


def partial(conditions: Mapping[str, object], *energies: Energy | None) -> bool:
    """True when the meter failed on the way: energy rests on the rounds before, and nothing is claimed of it."""
    return bool(conditions.get("energy_problem")) and measured(*energies)


def energy_doubt(report: Report) -> str:
    """Why no saving of energy is claimed; empty where it may be."""
    return _energy_doubt(report.conditions, report.baseline.energy_mj, report.artifact.energy_mj)


def _energy_doubt(conditions: Mapping[str, object], old: Energy | None, new: Energy | None) -> str:
    if conditions.get("clean") is False:
        return BUSY
    return PARTIAL if partial(conditions, old, new) else ""


def basis(*energies: Energy) -> str:
    """``net`` or ``gross``: what measured figures, and their ratio, are; estimates are gross by definition."""
    return "net" if all(energy.net for energy in energies) else "gross"


def unchanged(ratio: Interval) -> bool:
    """True for a ratio that is 1 by construction: the artifact is the baseline."""
    return ratio.value == ratio.low == ratio.high == 1.0


def worst_grade(*energies: Energy) -> str:
    """The grade a comparison has: the worse of its sides."""
    return max(energy.grade for energy in energies)


def energy_text(energy: Energy) -> str:
    """Value, interval and grade: joules never stand alone."""
    word = "measured" if measured(energy) else "estimated"
    return (
        f"{joules(energy.value)} [{joules(energy.low)}, {joules(energy.high)}], {word}, grade {energy.grade}"
    )


def change_text(ratio: Interval, better: str, worse: str, nothing: str) -> str:
    """``1.83x faster [1.78, 1.88]``; `nothing` when the interval contains 1, "unchanged" when it is exactly 1."""
    if unchanged(ratio):
        return "unchanged"
    if ratio.low > 1.0:
        return f"{number(ratio.value)}× {better} {interval_text(ratio)}"
    if ratio.high < 1.0:
        inverse = Interval(1 / ratio.value, 1 / ratio.high, 1 / ratio.low)
        return f"{number(inverse.value)}× {worse} {interval_text(inverse)}"
    return f"{nothing} {interval_text(ratio)}"


def ratio_text(ratio: Interval) -> str:
    """``1.83× [1.78, 1.88]``."""
    return f"{number(ratio.value)}× {interval_text(ratio)}"


def _claim(ratio: Interval, text: str, conditions: Mapping[str, object], doubt: str) -> str:
    """What a ratio shows: of an artifact beside itself its noise, and nothing where there is a doubt."""
    if unchanged(ratio):
        return text
    if conditions.get("same_artifact") is True:
        return f"{ratio_text(ratio)}, noise"
    return NOT_CLAIMED if doubt else text


def size_text(ratio: Interval) -> str:
    """Size is exact: no interval. A difference under half a percent is none."""
    if abs(ratio.value - 1.0) < _SAME:
        return "same size"
    return f"{number(ratio.value)}× smaller" if ratio.value > 1 else f"{number(1 / ratio.value)}× larger"


def figure_rows(report: Report) -> list[Row]:
    """The rows of the figures table; figures that were not measured are left out."""
    return [
        *measured_rows(report.baseline, report.artifact, report.ratio, report.conditions),
        *_accuracy_rows(report),
    ]


def measured_rows(old: Figures, new: Figures, ratio: Ratio, conditions: Mapping[str, object]) -> list[Row]:
    """The rows that need no accuracy: latency, energy, size and memory.

    The conditions tell what may be claimed: nothing on a busy machine (`clean` false), nothing of energy that rests on
    part of the measurement (`energy_problem`), and of an artifact beside itself (`same_artifact`) only the noise.
    """
    rows = [
        *_latency_rows(old.latency_ms, new.latency_ms, ratio.latency, conditions),
        *_energy_rows(old.energy_mj, new.energy_mj, ratio.energy, conditions),
        Row("Size", bytes_text(old.size_bytes), bytes_text(new.size_bytes), size_text(ratio.size)),
        *_count_row("Parameters", old.params, new.params),
        *_count_row("MACs", old.macs, new.macs),
    ]
    if old.peak_memory_mb is not None and new.peak_memory_mb is not None:
        rows.append(
            Row("Peak memory", bytes_text(old.peak_memory_mb * 1e6), bytes_text(new.peak_memory_mb * 1e6), "")
        )
    return rows


def latency_estimated(*figures: Figures) -> bool:
    """True where no latency was measured: the target's device is not at hand."""
    return any(each.latency_ms.estimated for each in figures)


def latency_change(ratio: Interval, *, estimated: bool) -> str:
    """``1.83x faster [1.78, 1.88]``; an estimate is called one, whatever it says."""
    if not estimated:
        return change_text(ratio, "faster", "slower", NO_SPEED_UP)
    text = change_text(ratio, "faster", "slower", f"{NO_SPEED_UP}, {number(ratio.value)}×")
    return text if unchanged(ratio) else f"{text}, estimated"


def latency_interval(latency: Latency) -> str:
    """``3.1 ms``, of an estimate with its range: ``3.1 ms [1.9 ms, 6.2 ms]``."""
    if latency.low is None or latency.high is None:
        return time_ms(latency.median)
    return f"{time_ms(latency.median)} [{time_ms(latency.low)}, {time_ms(latency.high)}]"


def _latency_rows(old: Latency, new: Latency, ratio: Interval, conditions: Mapping[str, object]) -> list[Row]:
    if old.estimated or new.estimated:
        change = _claim(ratio, latency_change(ratio, estimated=True), conditions, "")
        note = f"not measured; {new.method or old.method}"
        return [Row("Latency, estimated", latency_interval(old), latency_interval(new), change, note)]
    doubt = BUSY if conditions.get("clean") is False else ""
    faster = latency_change(ratio, estimated=False)
    interleaved = f"measured, {_runs(old.runs, new.runs)}, interleaved"
    tails = [
        Row(f"Latency, p{key}", time_ms(old.percentiles[key]), time_ms(new.percentiles[key]), "")
        for key in (95, 99)
    ]
    return [
        Row(
            "Latency, median",
            time_ms(old.median),
            time_ms(new.median),
            _claim(ratio, faster, conditions, doubt),
            f"{interleaved}; {doubt}" if doubt else interleaved,
        ),
        *tails,
    ]


def _count_row(label: str, old: int | None, new: int | None) -> list[Row]:
    """A count that a change of shape moved; like sizes, less than half a percent is none."""
    if not old or not new or abs(old / new - 1.0) < _SAME:
        return []
    change = f"{number(old / new)}× fewer" if old > new else f"{number(new / old)}× more"
    return [Row(label, count_text(old), count_text(new), change, "counted in the graph")]


def _runs(baseline: int, artifact: int) -> str:
    if baseline == artifact:
        return f"{baseline:,} runs each"
    return f"{baseline:,} and {artifact:,} runs"


def _energy_rows(
    old: Energy | None, new: Energy | None, ratio: Interval | None, conditions: Mapping[str, object]
) -> list[Row]:
    if old is None or new is None:
        return []
    sure, grade = measured(old, new), worst_grade(old, new)
    word = "measured" if sure else "estimated"
    doubt = _energy_doubt(conditions, old, new)
    change = ""
    if ratio is not None:
        kind = "measured, gross" if sure and basis(old, new) == "gross" else word
        change = _claim(ratio, energy_change(ratio, kind), conditions, doubt)
    note = f"{word}, grade {grade}: {old.boundary}, {old.method}"
    if (old.boundary, old.method) != (new.boundary, new.method):
        note += f"; artifact: {new.boundary}, {new.method}"
    if doubt:
        note += f"; {doubt}"
    label = f"Energy, {word} ({grade})"
    if sure:
        label += f", {basis(old, new)}"
    gross = (joules_interval(old.gross_interval()), joules_interval(new.gross_interval()))
    if basis(old, new) == "gross":
        return [Row(label, *gross, change, note)]
    known = f"{word}, grade {grade}: {old.boundary}, idle power included"
    return [
        Row(label, joules_interval(old), joules_interval(new), change, note),
        Row(f"Energy, {word} ({grade}), gross", *gross, "", known),
    ]


def joules_interval(energy: Energy | Interval) -> str:
    """``12.1 mJ [9.80 mJ, 15.2 mJ]``; its grade must stand beside it."""
    return f"{joules(energy.value)} [{joules(energy.low)}, {joules(energy.high)}]"


def energy_change(ratio: Interval, word: str) -> str:
    """``saves 31 % [27, 35]``, claimed only when the whole interval clears 1; "unchanged" when it is exactly 1.

    `word` follows, but for "measured", which is what nobody has to be told: ``estimated``, or ``gross``.
    """
    if unchanged(ratio):
        return "unchanged"
    saved = saving(ratio)
    bounds = f"[{number(saved.low * 100, 2)}, {number(saved.high * 100, 2)}]"
    told = word.removeprefix("measured").removeprefix(", ")
    suffix = f", {told}" if told else ""
    if ratio.low > 1.0:
        return f"saves {number(saved.value * 100, 2)} % {bounds}{suffix}"
    if ratio.high < 1.0:
        more = Interval(1 / ratio.value - 1, 1 / ratio.high - 1, 1 / ratio.low - 1)
        return (
            f"costs {number(more.value * 100, 2)} % more "
            f"[{number(more.low * 100, 2)}, {number(more.high * 100, 2)}]{suffix}"
        )
    return f"{NO_SAVING} {bounds}{suffix}"


def _accuracy_rows(report: Report) -> list[Row]:
    found = report.accuracy
    if found.baseline is not None and found.artifact is not None and found.drop is not None:
        change = f"drop {points(found.drop)} points"
        if found.low is not None and found.high is not None:
            change += f" [{points(found.low)}, {points(found.high)}]"
        return [
            Row(
                capitalized(printable(found.metric)),
                percent(found.baseline),
                percent(found.artifact),
                change,
                certificate_note(report),
            )
        ]
    if found.agreement is not None:
        label = capitalized(printable(found.metric))
        return [Row(label, MISSING, percent(found.agreement), "", certificate_note(report))]
    return []


def certificate_note(report: Report) -> str:
    """``certified, n = 4,500`` or ``not certified, n = 120``."""
    word = "certified" if report.accuracy.certified else "not certified"
    return f"{word}, n = {report.accuracy.n:,}"


def unbroken(text: str) -> str:
    """The text with its bracketed intervals kept on one line each."""
    return re.sub(r"\[[^\]]*\]", lambda match: match.group().replace(" ", "\N{NO-BREAK SPACE}"), text)


def capitalized(text: str) -> str:
    """First letter in upper case, the rest as it is; the address of a device is left alone."""
    return text if _ADDRESS.match(text) else text[:1].upper() + text[1:]

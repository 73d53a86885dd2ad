"""Wording of a test campaign's figures, which every format shares."""

from __future__ import annotations

from dataclasses import dataclass

from greencc.core.meter import Grade
from greencc.core.report import Interval
from greencc.report.campaign_summary import CampaignSummary, Ratio, Row
from greencc.report.figures import (
    MISSING,
    NOT_CLAIMED,
    bytes_text,
    change_text,
    energy_change,
    joules_interval,
    percent,
    points,
    ratio_text,
    round_share,
    size_text,
    time_ms,
)


@dataclass(frozen=True)
class RowText:
    """A row as text: figures, and under each what it means or how it is known."""

    name: str
    form: str
    repetitions: str
    accuracy: str
    accuracy_note: str
    latency: str
    latency_note: str
    energy: str
    energy_change: str
    energy_note: str
    size: str
    size_note: str


def row_text(row: Row, repetitions: int) -> RowText:
    """The row in words; `MISSING` where there is no figure."""
    accuracy, accuracy_note = _accuracy(row)
    latency, latency_note = _latency(row)
    energy, change, energy_note = _energy(row)
    size, size_note = _size(row)
    counted = f"{row.measured} of {repetitions}"
    if row.partial:
        counted += f", {row.partial} partial: the meter failed"
    if row.disturbed:
        counted += f", {row.disturbed} disturbed"
    return RowText(
        row.variant, row.form or MISSING, counted, accuracy, accuracy_note, latency, latency_note,
        energy, change, energy_note, size, size_note,
    )  # fmt: skip


def word(grade: str) -> str:
    return "measured" if Grade[grade].measured else "estimated"


def _accuracy(row: Row) -> tuple[str, str]:
    if row.original:
        return "the reference", ""
    found = row.accuracy
    if found is None or found.n == 0:
        return MISSING, "" if row.seen == 0 else "not checked"
    certified = (
        f"certified: at most {round_share(found.epsilon)}, n = {found.n:,}"
        if found.certified
        else f"not certified, n = {found.n:,}"
    )
    if found.drop is None:
        text = MISSING if found.agreement is None else f"agreement {percent(found.agreement)}"
        return text, certified
    text = f"drop {points(found.drop)} points"
    if found.low is not None and found.high is not None:
        text += f" [{points(found.low)}, {points(found.high)}]"
    if found.baseline is not None and found.artifact is not None:
        certified = f"{percent(found.baseline)} → {percent(found.artifact)}; {certified}"
    return text, certified


def _latency(row: Row) -> tuple[str, str]:
    found = row.latency
    if found is None:
        return MISSING, ""
    note = f"{time_ms(found.baseline_ms)} → {time_ms(found.artifact_ms)}"
    note += f", p99 {time_ms(found.baseline_p99_ms)} → {time_ms(found.artifact_p99_ms)}"
    if row.load is not None:
        note += f"; under load p99 {time_ms(row.load.baseline_p99_ms)} → {time_ms(row.load.artifact_p99_ms)}"
    if found.ratio is None:
        return MISSING, note
    return _claim(
        row, found.ratio, change_text(found.ratio.interval, "faster", "slower", "no speed-up shown")
    ), note


def _energy(row: Row) -> tuple[str, str, str]:
    found = row.energy
    if found is None:
        return MISSING, "", ""
    kind = word(found.grade)
    joules = f"{joules_interval(found.baseline)} → {joules_interval(found.artifact)}"
    note = f"{kind}, grade {found.grade}, {found.boundary}"
    if found.ratio is None:
        return MISSING, joules, note
    change = energy_change(found.ratio.interval, kind)
    return _claim(row, found.ratio, change), joules, note


def _claim(row: Row, ratio: Ratio, text: str) -> str:
    """What a ratio shows; nothing where the machine was busy, and of the model itself its noise."""
    if row.original:
        return f"{ratio_text(ratio.interval)}, noise"
    if row.disturbed:
        return f"{NOT_CLAIMED}: {ratio_text(ratio.interval)}"
    return text


def _size(row: Row) -> tuple[str, str]:
    if row.size_bytes is None or not row.baseline_bytes or not row.size_bytes:
        return MISSING, ""
    ratio = row.baseline_bytes / row.size_bytes
    return size_text(
        Interval(ratio, ratio, ratio)
    ), f"{bytes_text(row.baseline_bytes)} → {bytes_text(row.size_bytes)}"


def headline(summary: CampaignSummary) -> str:
    """What was done."""
    models, variants, devices = (
        len({getattr(row, key) for row in summary.rows}) for key in ("model", "variant", "device")
    )
    return (
        f"{_count(variants, 'variant')} of {_count(models, 'model')} on {_count(devices, 'device')}, "
        f"{_count(summary.repetitions, 'repetition')}"
    )


def findings(summary: CampaignSummary) -> list[str]:
    """What was found, a sentence for each model and device."""
    found = []
    for model, device in dict.fromkeys((row.model, row.device) for row in summary.rows):
        rows = [row for row in summary.rows if (row.model, row.device) == (model, device)]
        found.append(f"{model} on {device}: {_finding(rows)}.")
    return found


def _finding(rows: list[Row]) -> str:
    if not any(row.seen for row in rows):
        return "nothing could be measured"
    others = [row for row in rows if row.seen and not row.original]
    if not others:
        return "only the model itself was measured, which shows the noise"
    if any(row.disturbed for row in others):
        return "other processes were busy while measuring, so no saving is claimed"
    faster = [
        row for row in others if row.latency and row.latency.ratio and row.latency.ratio.interval.low > 1.0
    ]
    if not faster:
        return "no variant was shown to be faster than the model"
    best = max(
        faster, key=lambda row: row.latency.ratio.interval.value if row.latency and row.latency.ratio else 0.0
    )
    assert best.latency is not None
    assert best.latency.ratio is not None
    text = (
        f"{best.variant} is the fastest, {change_text(best.latency.ratio.interval, 'faster', 'slower', '')}"
    )
    if best.energy is not None and best.energy.ratio is not None:
        change = energy_change(best.energy.ratio.interval, word(best.energy.grade))
        text += f"; energy: {change}, grade {best.energy.grade}"
    accuracy, note = _accuracy(best)
    return f"{text}; {accuracy}, {note}" if note else f"{text}; {accuracy}"


def missing(summary: CampaignSummary) -> list[tuple[str, str, str, str]]:
    """Model, variant, device and reason of what was not measured, or not as often as was asked."""
    return [
        (row.model, row.variant, row.device, "; ".join(row.reasons) or "not yet measured")
        for row in summary.rows
        if row.measured < summary.repetitions
    ]


def energy_kinds(summary: CampaignSummary) -> list[str]:
    """``estimated, grade D, CPU package`` for each kind of energy figure that there is."""
    kinds = {(row.energy.grade, row.energy.boundary): None for row in summary.rows if row.energy is not None}
    return [f"{word(grade)}, grade {grade}, {boundary}" for grade, boundary in kinds]


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


EXPLANATIONS: tuple[tuple[str, str], ...] = (
    (
        "Ratios",
        "Baseline divided by variant, the baseline being the model as given, measured in turns with the "
        "variant in the same cell. A gain is claimed only when the whole interval clears 1, and never where "
        "other processes were busy.",
    ),
    (
        "Intervals over repetitions",
        "Student's t-interval of the repetitions' log ratios, so that what differs between repetitions is in "
        "it; with two repetitions it has one degree of freedom and is wide. It is never narrower than the "
        "repetitions' own intervals allow. What is common to all repetitions (a model's coefficients, a "
        "meter's gain) does not average out and is added in quadrature. Each interval stands for itself: "
        "among many variants some miss by chance.",
    ),
    (
        "Original",
        "The model measured against itself: how far its ratio is from 1 is noise.",
    ),
    (
        "Energy grades",
        "A: wall or rail meter outside the device. B: counter or sensor on the device. C: model calibrated on "
        "this device class. D: uncalibrated model. A and B are measured; C and D are estimated.",
    ),
    (
        "Certified",
        "An exact binomial test on held-out samples that the compile has used for nothing else: the true drop "
        "is at most the limit, with the confidence given.",
    ),
    (
        "Order",
        "Every repetition holds each combination of model, variant and device once, in a random order drawn "
        "with the seed given (a randomised complete block design), so that slow drift meets all of them "
        "alike.",
    ),
)

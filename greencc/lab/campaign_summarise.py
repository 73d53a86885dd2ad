"""The summary of a test campaign from its cells, finished or not."""

from __future__ import annotations

import hashlib
import re
import shlex
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import greencc
from greencc.compiler.campaign import describe_load, make_plan
from greencc.core.meter import Grade
from greencc.core.report import Energy
from greencc.lab.campaign_inputs import Inputs
from greencc.lab.campaign_record import CellRecord, Figures
from greencc.lab.campaign_spec import CampaignSpec
from greencc.lab.campaign_statistics import combine_energies, combine_ratios
from greencc.report.campaign_summary import CampaignSummary, Ratio, Row, RowEnergy, RowLatency, RowLoad
from greencc.report.figures import shorten

# So many different values of one condition are listed.
_FEW = 3
_OWN_ROWS = ("blocks_discarded", "energy_stopped")


def summarise(
    spec: CampaignSpec, records: Sequence[CellRecord], inputs: Inputs, folder: Path, started: str
) -> CampaignSummary:
    """Sum up.

    Args:
        spec: The campaign.
        records: The last one of each cell.
        inputs: What results depend on.
        folder: Of the results, for the command.
        started: When the campaign was.
    """
    protocol = spec.protocol
    plan = make_plan(
        protocol.name,
        rate=protocol.rate,
        poisson=protocol.poisson,
        until=protocol.until,
        limit_seconds=protocol.limit_seconds,
    )
    done = [record for record in records if record.figures is not None]
    counts = [record.figures.blocks for record in done if record.figures is not None]
    discarded: Counter[str] = Counter()
    for each in counts:
        discarded.update(each.discarded)
    warnings: list[str] = []
    rows = tuple(
        _row(spec, model.name, variant.name, device.name, records, warnings)
        for model in spec.models
        for device in spec.devices
        for variant in spec.variants
    )
    return CampaignSummary(
        name=spec.name,
        greencc=greencc.__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        started=started,
        file=spec.path.name,
        sha256=hashlib.sha256(spec.text.encode()).hexdigest(),
        text=spec.text,
        command=shlex.join(("greencc", "lab", "run", str(spec.path), "-o", str(folder), "--fresh")),
        protocol=plan.protocol.title,
        load=describe_load(plan.load),
        repetitions=protocol.repetitions,
        seed=protocol.seed,
        confidence=protocol.confidence,
        clears_gate=plan.protocol.clears_gate,
        cells=len(spec.cells()),
        cells_measured=sum(record.status == "measured" for record in done),
        cells_partial=sum(record.status == "partial" for record in done),
        rows=rows,
        blocks=sum(each.counted for each in counts),
        discarded=dict(discarded.most_common()),
        inputs=dict(inputs.files),
        devices={name: dict(facts) for name, facts in inputs.facts.items() if facts},
        conditions={
            device.name: found
            for device in spec.devices
            if (found := _conditions([record for record in done if record.device == device.name]))
        },
        versions=dict(inputs.versions),
        warnings=(*warnings, *_warnings(done)),
    )


def _row(
    spec: CampaignSpec,
    model: str,
    variant: str,
    device: str,
    records: Sequence[CellRecord],
    warnings: list[str],
) -> Row:
    mine = [
        record
        for record in records
        if (record.model, record.variant, record.device) == (model, variant, device)
    ]
    done = [record for record in mine if record.figures is not None]
    figures = [record.figures for record in done if record.figures is not None]
    made = done[-1].made if done else None
    last = figures[-1] if figures else None
    confidence = spec.protocol.confidence
    reasons = Counter(reason for record in mine if (reason := record.reason or record.problem))
    return Row(
        model=model,
        variant=variant,
        device=device,
        form=None if made is None else made.form,
        measured=sum(record.status == "measured" for record in done),
        disturbed=sum(not each.clean for each in figures),
        latency=_latency(figures, confidence) if figures else None,
        energy=_energy(figures, confidence, f"{model}, {variant} on {device}", warnings),
        load=None if spec.protocol.rate is None else _load(figures),
        size_bytes=None if last is None else last.artifact.size_bytes,
        baseline_bytes=None if last is None else last.baseline.size_bytes,
        memory_mb=None if last is None else last.artifact.memory_mb,
        accuracy=None if made is None else made.accuracy,
        original=spec.variant(variant).original,
        bundle=None if made is None else made.bundle,
        reasons=tuple(reasons),
        partial=sum(record.status == "partial" for record in done),
    )


def _latency(figures: Sequence[Figures], confidence: float) -> RowLatency:
    ratios = [each.latency for each in figures if each.latency is not None]
    sides = [[each.baseline.times for each in figures], [each.artifact.times for each in figures]]
    medians = [statistics.fmean(times.median for times in side) for side in sides]
    slow = [statistics.fmean(times.p99 for times in side) for side in sides]
    ratio = combine_ratios(ratios, confidence) if ratios else None
    return RowLatency(medians[0], medians[1], slow[0], slow[1], ratio)


def _energy(
    figures: Sequence[Figures], confidence: float, what: str, warnings: list[str]
) -> RowEnergy | None:
    """Of the repetitions with one grade and boundary, all net or all gross: the most, or the best known."""
    known = [
        (each.baseline.energy, each.artifact.energy, each.energy)
        for each in figures
        if each.baseline.energy is not None and each.artifact.energy is not None
    ]
    if not known:
        return None
    kinds = Counter(_kind(first, second) for first, second, _ in known)
    kind, count = min(kinds.items(), key=lambda item: (-item[1], item[0]))
    grade, boundary, gross = kind
    if count < len(known):
        warnings.append(
            f"{what}: the energy of {len(known) - count} repetitions has another grade or boundary, or idle power, "
            f"than grade {grade}, {boundary}, {'gross' if gross else 'net'}, and is left out"
        )
    kept = [each for each in known if _kind(each[0], each[1]) == kind]
    ratios = [ratio for _, _, ratio in kept if ratio is not None]
    return RowEnergy(
        baseline=combine_energies([first for first, _, _ in kept], confidence),
        artifact=combine_energies([second for _, second, _ in kept], confidence),
        ratio=_ratio(ratios, grade, confidence),
        grade=grade,
        boundary=boundary,
        method=kept[-1][1].method,
    )


def _kind(baseline: Energy, artifact: Energy) -> tuple[str, str, bool]:
    """What energies must share to be averaged: grade, boundary, whether they are gross."""
    return max(baseline.grade, artifact.grade), artifact.boundary, not (baseline.net and artifact.net)


def _ratio(ratios: Sequence[Any], grade: str, confidence: float) -> Ratio | None:
    return combine_ratios(ratios, confidence, common=not Grade[grade].measured) if ratios else None


def _load(figures: Sequence[Figures]) -> RowLoad | None:
    pairs = [
        (each.baseline.load, each.artifact.load)
        for each in figures
        if each.baseline.load is not None and each.artifact.load is not None
    ]
    if not pairs:
        return None
    requests = sum(first.requests + second.requests for first, second in pairs)
    return RowLoad(
        statistics.fmean(first.p99 for first, _ in pairs),
        statistics.fmean(second.p99 for _, second in pairs),
        sum(first.late + second.late for first, second in pairs) / max(1, requests),
    )


def _conditions(records: Sequence[CellRecord]) -> dict[str, str]:
    """What was recorded with the measurements of a device; what changed meanwhile as a few of its values."""
    values: dict[str, dict[str, None]] = {}
    for record in records:
        for key, value in record.conditions.items():
            if key not in _OWN_ROWS:
                values.setdefault(key, {})[_text(value)] = None
    found = {key: _several(list(texts)) for key, texts in values.items()}
    blocks = [record.figures.blocks for record in records if record.figures is not None]
    celsius = [value for each in blocks for value in each.celsius]
    if celsius:
        found["temperature_celsius"] = f"{min(celsius):.0f} to {max(celsius):.0f}"
    others = [each.others for each in blocks if each.others is not None]
    if others:
        found["load_of_others"] = f"{min(others):.0%} to {max(others):.0%}, means of cells"
    return found


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return "; ".join(f"{key} {item}" for key, item in value.items()) or "none"
    return str(value)


def _several(texts: Sequence[str]) -> str:
    shown = " | ".join(shorten(text, 80) for text in texts[:_FEW])
    return f"{shown} | {len(texts) - _FEW} more" if len(texts) > _FEW else shown


def _warnings(records: Sequence[CellRecord]) -> list[str]:
    """Warnings of the cells with how many had them, the most frequent first.

    Numbers differ from cell to cell: warnings that differ in them alone are one, shown as it was said first.
    """
    first: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for record in records:
        for key, text in {_without_numbers(text): text for text in record.warnings}.items():
            first.setdefault(key, text)
            counts[key] += 1
    return [f"{first[key]} ({count} of {len(records)} measurements)" for key, count in counts.most_common()]


def _without_numbers(text: str) -> str:
    head, colon, _ = text.partition("are busy:")
    if colon:
        return head
    return re.sub(r"\d[\d.,]*", "#", text)

"""What `greencc measure --save` writes: measurement.json, blocks.csv, trace.csv (or .parquet) and trace.svg."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np

from greencc.compiler.campaign import Campaign, describe_load, percentiles
from greencc.compiler.measurement import Measurement
from greencc.core.errors import InputError, UnavailableError
from greencc.core.files import atomic_folder, check_can_write
from greencc.measure.blocks import Block, IdlePart
from greencc.measure.carbon import CarbonOptions
from greencc.meters.sampling import TracePoint
from greencc.report.trace_plot import Span, trace_plot

SCHEMA = "greencc.measurement/1"


class TraceFormat(Enum):
    """Of the saved trace."""

    CSV = "csv"
    PARQUET = "parquet"


@dataclass(frozen=True)
class SaveOptions:
    """What to write.

    Attributes:
        folder: Must not exist, unless `overwrite`.
        format: Of the trace.
        plot: Draw it as well.
        overwrite: Replace the folder.
        carbon: What carbon figures are for.
    """

    folder: Path
    format: TraceFormat = TraceFormat.CSV
    plot: bool = False
    overwrite: bool = False
    carbon: CarbonOptions = field(default_factory=CarbonOptions)


def measurement_json(
    measured: Measurement, warnings: Sequence[str], carbon: CarbonOptions | None = None
) -> dict[str, Any]:
    """The measurement as plain data, with one row per block; docs/energy.md lists the keys."""
    campaign, emitted = measured.campaign, measured.carbon(carbon or CarbonOptions())
    return {
        "schema": SCHEMA,
        "baseline": asdict(measured.baseline),
        "artifact": asdict(measured.artifact),
        "ratio": asdict(measured.ratio),
        "carbon": None if emitted is None else asdict(emitted),
        "conditions": measured.conditions,
        "campaign": None if campaign is None else _campaign(campaign),
        "warnings": list(warnings),
    }


def check_writable(options: SaveOptions) -> None:
    """Make sure that the folder can be written, before minutes are spent on measuring.

    Raises:
        InputError: The folder exists or cannot be written.
        UnavailableError: Parquet was asked for without its dependency.
    """
    if os.path.lexists(options.folder) and not options.overwrite:
        raise InputError(
            f"{options.folder} exists already", hint="--force replaces it, or choose another folder"
        )
    check_can_write(options.folder)
    if options.format is TraceFormat.PARQUET:
        _parquet()


def save(measured: Measurement, warnings: Sequence[str], options: SaveOptions) -> list[str]:
    """Write the folder, whole or not at all; returns the names of its files.

    Raises:
        InputError: The folder exists or cannot be written.
        UnavailableError: Parquet was asked for without its dependency.
    """
    campaign = measured.campaign
    with atomic_folder(options.folder, overwrite=options.overwrite) as work:
        data = json.dumps(measurement_json(measured, warnings, options.carbon), indent=2, allow_nan=False)
        (work / "measurement.json").write_text(f"{data}\n", encoding="utf-8")
        if campaign is not None:
            _write_csv(work / "blocks.csv", _block_rows(campaign))
            if campaign.trace:
                _write_trace(work, campaign, options.format)
                if options.plot:
                    (work / "trace.svg").write_text(plot(campaign), encoding="utf-8")
        return sorted(path.name for path in work.iterdir())


def plot(campaign: Campaign) -> str:
    """The campaign's trace as SVG."""
    began, meter = campaign.result.began, campaign.meter
    assert meter is not None
    spans = [
        Span(
            each.variant if isinstance(each, Block) else "idle",
            each.begin - began,
            each.begin + each.seconds - began,
            each.discarded is not None,
        )
        for each in _windows(campaign)
    ]
    seconds = np.array([point.seconds - began for point in campaign.trace])
    watts = np.array(
        [np.nan if point.watts is None else sum(point.watts.values()) for point in campaign.trace]
    )
    return trace_plot(
        seconds,
        watts,
        spans,
        title=f"Power during the campaign, {campaign.plan.protocol.title}",
        subtitle=meter.title,
    )


def _campaign(campaign: Campaign) -> dict[str, Any]:
    result = campaign.result
    return {
        "protocol": campaign.plan.protocol.name,
        "described_as": campaign.plan.protocol.title,
        "load": describe_load(campaign.plan.load),
        "meter": None if campaign.meter is None else asdict(campaign.meter),
        "complete": result.problem is None,
        "clears_gate": campaign.plan.protocol.clears_gate
        and result.comparison is not None
        and not result.problem,
        "problem": result.problem,
        "stopped": result.stopped,
        "rounds": result.rounds,
        "discarded": dict(result.discarded),
        "warm_up": None if result.warm_up is None else asdict(result.warm_up),
        "idle_watts": None if result.idle_watts is None else result.idle_watts.value,
        "idle_power": None
        if result.idle_watts is None
        else {**asdict(result.idle_watts), **_known(campaign, result.idle_watts.value)},
        "under_load": {
            "baseline": None if campaign.baseline is None else asdict(campaign.baseline),
            "artifact": None if campaign.artifact is None else asdict(campaign.artifact),
        },
        "sampling": None
        if campaign.cost is None
        else {**asdict(campaign.cost), "core_share": campaign.cost.core_share, "failures": campaign.failures},
        "idle": [_idle_row(part, campaign) for part in result.idle_parts],
        "blocks": [_block_row(block, campaign) for block in result.blocks],
    }


def _known(campaign: Campaign, figure: float | None) -> dict[str, Any]:
    """Grade and boundary, which no joule or watt goes without."""
    meter = None if figure is None else campaign.meter
    return {
        "grade": None if meter is None else meter.grade,
        "boundary": None if meter is None else meter.boundary,
    }


def _block_row(block: Block, campaign: Campaign) -> dict[str, Any]:
    return {
        "variant": block.variant,
        "round": block.round,
        "begin_s": block.begin - campaign.result.began,
        "seconds": block.seconds,
        "inferences": block.count,
        "late": block.late,
        "joules": block.joules,
        "watts": None if block.joules is None or block.seconds <= 0.0 else block.joules / block.seconds,
        **_known(campaign, block.joules),
        "domains": dict(block.domains),
        "latency_ms": asdict(percentiles(block.latencies_ms)) if block.count else None,
        "service_ms": asdict(percentiles(block.services_ms)) if block.count else None,
        "discarded": None if block.discarded is None else block.discarded.value,
        "note": block.note,
        "celsius": block.celsius,
        "others_share": block.others,
    }


def _idle_row(part: IdlePart, campaign: Campaign) -> dict[str, Any]:
    return {
        "window": part.which,
        "begin_s": part.begin - campaign.result.began,
        "seconds": part.seconds,
        "joules": part.joules,
        **_known(campaign, part.joules),
        "discarded": None if part.discarded is None else part.discarded.value,
        "note": part.note,
    }


def _block_rows(campaign: Campaign) -> Iterator[dict[str, Any]]:
    """Rows of blocks.csv: as in the JSON, with nested columns spread out."""
    for block in campaign.result.blocks:
        row = _block_row(block, campaign)
        domains = row.pop("domains")
        for key in ("latency_ms", "service_ms"):
            for name, value in (row.pop(key) or {}).items():
                row[f"{key.removesuffix('_ms')}_{name}_ms"] = value
        yield {**row, **{f"{name}.joules": value for name, value in domains.items()}}


def _windows(campaign: Campaign) -> list[Block | IdlePart]:
    windows: list[Block | IdlePart] = [*campaign.result.idle_parts, *campaign.result.blocks]
    return sorted(windows, key=lambda each: each.begin)


def _trace_rows(campaign: Campaign) -> Iterator[dict[str, Any]]:
    """Rows of the trace. A label stands on the readings inside its window, that is on the power that led to them."""
    windows, index = _windows(campaign), 0
    known = (
        {} if campaign.meter is None else {"grade": campaign.meter.grade, "boundary": campaign.meter.boundary}
    )
    for point in campaign.trace:
        while index < len(windows) and point.seconds > windows[index].begin + windows[index].seconds + 1e-9:
            index += 1
        inside = index < len(windows) and point.seconds > windows[index].begin
        yield {
            "seconds": point.seconds - campaign.result.began,
            "epoch": point.epoch,
            "block": _label(windows[index]) if inside else "",
            **{f"{name}.joules": value for name, value in point.joules.items()},
            **_watts(point),
            **known,
        }


def _label(window: Block | IdlePart) -> str:
    if isinstance(window, IdlePart):
        return window.which
    return f"{window.variant} {window.round}{' discarded' if window.discarded is not None else ''}"


def _watts(point: TracePoint) -> dict[str, float | None]:
    return {f"{name}.watts": None if point.watts is None else point.watts[name] for name in point.joules}


def _write_trace(folder: Path, campaign: Campaign, form: TraceFormat) -> None:
    if form is TraceFormat.CSV:
        _write_csv(folder / "trace.csv", _trace_rows(campaign))
        return
    pyarrow, parquet = _parquet()
    rows = list(_trace_rows(campaign))
    columns = _columns(rows)
    table = pyarrow.table({name: [row.get(name) for row in rows] for name in columns})
    parquet.write_table(table, folder / "trace.parquet")


def _write_csv(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    found = list(rows)
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, _columns(found), lineterminator="\n")
        writer.writeheader()
        writer.writerows(found)


def _columns(rows: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _parquet() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise UnavailableError(
            "writing Parquet takes pyarrow, which is not installed", hint="pip install 'greencc[parquet]'"
        ) from error
    return pyarrow, parquet

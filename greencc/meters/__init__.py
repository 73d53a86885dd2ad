"""Energy meters, and the model that stands in where there is none.

Adding a meter is a file and a line in `METERS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from greencc.core.meter import Grade, Meter
from greencc.meters.model import MODEL_BOUNDARY
from greencc.meters.rapl import SYSFS, RaplMeter

METERS: tuple[Callable[[Path], Meter], ...] = (RaplMeter,)


@dataclass(frozen=True)
class MeterProbe:
    """A row of `greencc doctor`. `reason` says why the meter gives no reading and how to get one."""

    name: str
    grade: Grade
    boundary: str
    ok: bool
    reason: str | None


def available_meters(root: Path = SYSFS) -> list[Meter]:
    """Meters that give a reading on this machine, best grade first."""
    meters = [make(root) for make in METERS]
    working = [meter for meter in meters if meter.missing() is None]
    return sorted(working, key=lambda meter: meter.grade.name)


def probe(root: Path = SYSFS) -> list[MeterProbe]:
    """Every meter greencc knows, whether it works here, and the grade D model at the end."""
    rows = []
    for make in METERS:
        meter = make(root)
        reason = meter.missing()
        boundary = meter.boundary if reason is None else "CPU package"
        rows.append(MeterProbe(meter.name, meter.grade, boundary, reason is None, reason))
    rows.append(MeterProbe("model", Grade.D, MODEL_BOUNDARY, True, None))
    return rows


__all__ = ["METERS", "MeterProbe", "available_meters", "probe"]

"""Energy meters, and the model that stands in where there is none.

Adding a meter is a file and a line in `METERS`.
"""

from __future__ import annotations

from dataclasses import dataclass

from greencc.core.meter import Grade, Meter, PowerMeter
from greencc.meters.known import METERS, Covers, Known, Sources, blind_to
from greencc.meters.model import MODEL_BOUNDARY


@dataclass(frozen=True)
class MeterProbe:
    """A row of `greencc doctor`. `reason` says why the meter gives no reading and how to get one."""

    name: str
    grade: Grade
    boundary: str
    ok: bool
    reason: str | None


def available_meters(processor: str = "cpu", sources: Sources | None = None) -> list[Meter | PowerMeter]:
    """Meters that give a reading on this machine and see what runs on `processor`, the best first.

    They are of different boundaries: use one, do not add them up. Power meters are to be watched by a
    `greencc.meters.sampling.Sampler`, which is a `Meter`; counters may be.

    Args:
        processor: ``cpu`` or ``gpu``: a CPU package's meter says nothing of a GPU, and the other way round.
        sources: Where to look; default this machine.
    """
    at = sources or Sources()
    meters = [known.open(at) for known in METERS if known.covers.fits(processor)]
    working = [meter for meter in meters if meter.missing() is None]
    return sorted(working, key=lambda meter: meter.grade.name)


def probe(sources: Sources | None = None) -> list[MeterProbe]:
    """Every meter greencc knows, whether it works here, and the grade D model at the end."""
    at = sources or Sources()
    rows = []
    for known in METERS:
        meter = known.open(at)
        reason = meter.missing()
        boundary = meter.boundary if reason is None else known.boundary
        name = meter.name if reason is None else known.name
        rows.append(MeterProbe(name, meter.grade, boundary, reason is None, reason))
    rows.append(MeterProbe("model", Grade.D, MODEL_BOUNDARY, True, None))
    return rows


__all__ = ["METERS", "Covers", "Known", "MeterProbe", "Sources", "available_meters", "blind_to", "probe"]

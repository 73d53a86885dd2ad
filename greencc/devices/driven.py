"""What a stretch of load gave, out of the untrusted JSON of a job of kind ``drive`` or ``idle``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from greencc.core.elsewhere import Driven, SiteState
from greencc.core.meter import PowerSample, Reading
from greencc.devices.protocol import ProtocolError
from greencc.devices.values import Told

LATENCIES, SERVICES = "latencies.f64", "services.f64"
"""Files of a job: milliseconds, little-endian, one per run."""
BYTES_PER_TIME = 8
_MOST_SAMPLES = 10_000_000


def parse_driven(told: Mapping[str, Any], name: str, latencies: bytes = b"", services: bytes = b"") -> Driven:
    """A stretch as the measuring code wants it.

    Args:
        told: The job's result.
        name: Of the device, for messages.
        latencies: The file of that name.
        services: Likewise.

    Raises:
        ProtocolError: Something is missing, or is not what it should be.
    """
    where = f"a measurement of {name}"
    facts = Told(told, where)
    begin, seconds, count = facts.number("begin"), facts.number("seconds"), facts.count("count")
    if begin is None or seconds is None or count is None or seconds < 0.0:
        raise ProtocolError(f"{where} does not tell when it was, or how much was run")
    others = facts.number("others")
    return Driven(
        begin=begin,
        seconds=seconds,
        count=count,
        latencies_ms=_times(latencies, count, where),
        services_ms=_times(services, count, where),
        late=facts.count("late") or 0,
        samples=[
            PowerSample(seconds, watts) for seconds, watts in _rows(told.get("samples"), "watts", where)
        ],
        readings=_readings(told.get("readings"), where),
        suspended=facts.number("suspended") or 0.0,
        others=others,
        before=_state(facts.inner("before")),
        after=_state(facts.inner("after")),
        problem=facts.text("problem"),
    )


def _times(data: bytes, count: int, where: str) -> list[float]:
    if not data:
        return []
    if len(data) != BYTES_PER_TIME * count:
        raise ProtocolError(f"{where} has {len(data):,} bytes of times for {count:,} runs")
    values = np.frombuffer(data, "<f8")
    if not np.isfinite(values).all() or (values < 0.0).any():
        raise ProtocolError(f"{where} has times that are none")
    found: list[float] = values.tolist()
    return found


def _readings(rows: Any, where: str) -> list[Reading]:
    epochs = [row.get("epoch", 0) if isinstance(row, Mapping) else 0 for row in rows or ()]
    if not all(isinstance(epoch, int) for epoch in epochs):
        raise ProtocolError(f"{where} has readings of an epoch that is none")
    found = _rows(rows, "joules", where)
    return [Reading(seconds, joules, epoch) for (seconds, joules), epoch in zip(found, epochs, strict=True)]


def _rows(rows: Any, key: str, where: str) -> list[tuple[float, dict[str, float]]]:
    """Moments with a figure for each domain."""
    if rows is None:
        return []
    if not isinstance(rows, list) or len(rows) > _MOST_SAMPLES:
        raise ProtocolError(f"{where} has no list of what its meter gave")
    found = []
    for row in rows:
        seconds, values = (row.get("seconds"), row.get(key)) if isinstance(row, Mapping) else (None, None)
        if isinstance(seconds, int | float) and isinstance(values, Mapping):
            figures = {str(domain): value for domain, value in values.items()}
            numbers = [seconds, *figures.values()]
            if all(isinstance(each, int | float) and math.isfinite(each) for each in numbers):
                found.append((float(seconds), {domain: float(value) for domain, value in figures.items()}))
                continue
        raise ProtocolError(f"{where} has a reading of its meter that is none")
    return found


def _state(told: Told | None) -> SiteState:
    if told is None:
        return SiteState()
    return SiteState(
        told.number("celsius"), told.number("clock_mhz"), told.count("throttle_count"), told.mapping("facts")
    )

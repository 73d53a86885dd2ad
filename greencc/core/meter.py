"""What the compiler asks of an energy meter. `greencc.meters` has the implementations."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Protocol, TypeGuard

from greencc.core.errors import UnavailableError
from greencc.core.report import Energy, Interval


class Grade(Enum):
    """Provenance of a figure in joules (see docs/energy.md)."""

    A = "wall or rail meter outside the device"
    B = "counter or sensor on the device"
    C = "model calibrated on this device class"
    D = "uncalibrated model"

    @property
    def measured(self) -> bool:
        """True for A and B; C and D are always called estimated."""
        return self in (Grade.A, Grade.B)


@dataclass(frozen=True)
class Reading:
    """Cumulative joules of each domain since an arbitrary start, taken at `seconds` (monotonic)."""

    seconds: float
    joules: Mapping[str, float]
    epoch: int = 0
    """Readings of different epochs do not subtract: what happened in between is unknown."""


@dataclass(frozen=True)
class PowerSample:
    """Watts that each domain draws at `seconds` (monotonic)."""

    seconds: float
    watts: Mapping[str, float]


def joules_between(before: Reading, after: Reading) -> dict[str, float]:
    """Joules by domain between two readings.

    Raises:
        UnavailableError: They do not subtract: another epoch, other domains, time stood still, or energy came back.
    """
    if before.epoch != after.epoch:
        raise UnavailableError("the meter has a gap: what it measured before and after does not subtract")
    if after.seconds <= before.seconds or set(before.joules) != set(after.joules):
        raise UnavailableError(
            "the meter's readings do not fit together: a domain came or went, or time stood still"
        )
    domains = {name: after.joules[name] - before.joules[name] for name in sorted(after.joules)}
    total = math.fsum(domains.values())
    if not math.isfinite(total) or min(domains.values(), default=0.0) < 0.0:
        raise UnavailableError(f"the meter counted {total:.6g} J between two readings")
    return domains


class Sensor(Protocol):
    """What every source of power or energy says of itself. What was not measured is absent or None, never 0."""

    @property
    def name(self) -> str: ...

    @property
    def grade(self) -> Grade: ...

    @property
    def boundary(self) -> str:
        """What the sensor covers, e.g. ``package-0 + dram``."""

    @property
    def period_s(self) -> float:
        """How often the sensor updates."""

    @property
    def uncertainty(self) -> float | None:
        """Relative standard uncertainty of the gain, as its vendor publishes it; None where no figure is published."""

    def missing(self) -> str | None:
        """Why no *reading* can be taken and what to do, or None."""


class Meter(Sensor, Protocol):
    """A cumulative energy counter."""

    def read(self) -> Reading:
        """Take a reading.

        Raises:
            UnavailableError: The sensor vanished, or its permission was withdrawn.
        """


def is_counter(sensor: Sensor) -> TypeGuard[Meter]:
    """Whether a sensor counts energy, rather than telling power, or telling of itself alone."""
    return hasattr(sensor, "read")


class PowerMeter(Sensor, Protocol):
    """A sensor of instantaneous power. `greencc.meters.sampling` integrates it to a `Meter`."""

    def sample(self) -> PowerSample:
        """Take a sample.

        Raises:
            UnavailableError: As `Meter.read`.
        """


@dataclass(frozen=True)
class EnergyComparison:
    """Energy per inference of the baseline and the artifact.

    Attributes:
        baseline: Millijoules per inference.
        artifact: Likewise.
        ratio: baseline / artifact, narrower than the quotient of the two intervals: what they share cancels.
        warnings: What a reader must know.
    """

    baseline: Energy
    artifact: Energy
    ratio: Interval
    warnings: tuple[str, ...] = ()

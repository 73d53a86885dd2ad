"""What the compiler asks of an energy meter. `greencc.meters` has the implementations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

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


class Meter(Protocol):
    """A cumulative energy counter. What was not measured is absent or None, never 0."""

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

    def missing(self) -> str | None:
        """Why no *reading* can be taken and what to do, or None."""

    def read(self) -> Reading:
        """Take a reading.

        Raises:
            UnavailableError: The sensor vanished, or its permission was withdrawn.
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

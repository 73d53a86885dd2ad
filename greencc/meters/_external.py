"""What meters outside the device share: a source of stamped values becomes a power meter or an energy counter.

`Source` is where a value comes from (an HTTP answer, an MQTT message); `ExternalPower` and `ExternalCounter` are what
the rest of greencc sees. A counter that goes back was reset: it starts a new epoch, so nobody subtracts across it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Protocol

from greencc.core.errors import GreenccError, UnavailableError, UsageError
from greencc.core.meter import Grade, PowerSample, Reading


@dataclass(frozen=True)
class Stamped:
    """A value, in watts or joules, and the monotonic second at which it was true."""

    seconds: float
    value: float


class Source(Protocol):
    """Where the values of one meter come from."""

    @property
    def boundary(self) -> str:
        """What the meter covers."""

    def fetch(self) -> Stamped:
        """The newest value.

        Raises:
            UnavailableError: There is none, and why.
        """


@dataclass(frozen=True)
class Facts:
    """What is said of a meter outside the device.

    Attributes:
        name: Kind of meter, as in its spec.
        period_s: How often its value changes.
        uncertainty: Relative standard uncertainty of its gain, from its data sheet; None where none is published.
        grade: A, unless the source is known to be on the device.
        domain: Name of its one domain.

    Raises:
        UsageError: A number is out of range, or the grade is not one of a measurement.
    """

    name: str
    period_s: float
    uncertainty: float | None = None
    grade: Grade = Grade.A
    domain: str = "wall"

    def __post_init__(self) -> None:
        check_period(self.name, self.period_s)
        check_uncertainty(self.name, self.uncertainty)
        if not self.grade.measured:
            raise UsageError(f"{self.name}: grade {self.grade.name} is an estimate", hint="known: A, B")


def check_period(name: str, period_s: float) -> None:
    """Refuse a period that is not a positive number of seconds.

    Raises:
        UsageError: As said.
    """
    if not (math.isfinite(period_s) and period_s > 0.0):
        raise UsageError(f"{name}: the period is {period_s:g} s", hint="give a positive number of seconds")


def check_uncertainty(name: str, uncertainty: float | None) -> None:
    """Refuse a relative uncertainty that is no share.

    Raises:
        UsageError: As said.
    """
    if uncertainty is not None and not 0.0 <= uncertainty < 1.0:
        raise UsageError(
            f"{name}: the uncertainty is {uncertainty:g}", hint="give a share between 0 and 1, such as 0.01"
        )


@dataclass
class _External:
    source: Source
    facts: Facts

    @property
    def name(self) -> str:
        return self.facts.name

    @property
    def grade(self) -> Grade:
        return self.facts.grade

    @property
    def boundary(self) -> str:
        return self.source.boundary

    @property
    def period_s(self) -> float:
        return self.facts.period_s

    @property
    def uncertainty(self) -> float | None:
        return self.facts.uncertainty

    def missing(self) -> str | None:
        """Takes a value, so that what is missing is what a measurement would miss."""
        return reason(self.source.fetch)


@dataclass
class ExternalPower(_External):
    """Implements `greencc.core.meter.PowerMeter` over a source of watts."""

    def sample(self) -> PowerSample:
        """Take a sample.

        Raises:
            UnavailableError: The source has no value.
        """
        stamped = self.source.fetch()
        return PowerSample(stamped.seconds, {self.facts.domain: stamped.value})


@dataclass
class ExternalCounter(_External):
    """Implements `greencc.core.meter.Meter` over a source of cumulative joules."""

    _last: float | None = field(default=None, init=False)
    _epoch: int = field(default=0, init=False)

    def read(self) -> Reading:
        """Take a reading.

        Raises:
            UnavailableError: The source has no value, or its counter went back.
        """
        stamped = self.source.fetch()
        last, self._last = self._last, stamped.value
        if last is not None and stamped.value < last:
            self._epoch += 1
            raise UnavailableError(
                f"the counter of {self.boundary} went back from {last:.6g} to {stamped.value:.6g} J",
                hint="it was reset, or its device restarted; measure again",
            )
        return Reading(stamped.seconds, {self.facts.domain: stamped.value}, self._epoch)


class _Call(Protocol):
    def __call__(self) -> object: ...


def reason(take: _Call) -> str | None:
    """Why taking a value fails, or None."""
    try:
        take()
    except GreenccError as error:
        return str(error)
    return None

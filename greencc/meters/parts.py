"""Some domains of a meter that has more: one of several GPUs, one CPU package."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import cast

from greencc.core.errors import UnavailableError, did_you_mean
from greencc.core.meter import Grade, Meter, PowerMeter, PowerSample, Reading, is_counter
from greencc.meters._external import reason


@dataclass
class _Part:
    sensor: Meter | PowerMeter
    part: str

    @property
    def name(self) -> str:
        return f"{self.sensor.name}:{self.part}"

    @property
    def grade(self) -> Grade:
        return self.sensor.grade

    @property
    def boundary(self) -> str:
        return f"{self.part} of {self.sensor.boundary}"

    @property
    def period_s(self) -> float:
        return self.sensor.period_s

    @property
    def uncertainty(self) -> float | None:
        return self.sensor.uncertainty

    def missing(self) -> str | None:
        """Why the meter or this part of it gives no reading."""
        return self.sensor.missing() or reason(self._take)

    def _take(self) -> Reading | PowerSample:
        if is_counter(self.sensor):
            reading = self.sensor.read()
            return replace(reading, joules=self._only(reading.joules))
        sample = cast(PowerMeter, self.sensor).sample()
        return replace(sample, watts=self._only(sample.watts))

    def _only(self, domains: Mapping[str, float]) -> dict[str, float]:
        kept = {name: value for name, value in domains.items() if _belongs(name.split("/")[0], self.part)}
        if not kept:
            raise UnavailableError(
                f"{self.sensor.name} has no part {self.part!r}", hint=did_you_mean(self.part, domains)
            )
        return kept


class EnergyPart(_Part):
    """Implements `greencc.core.meter.Meter`."""

    def read(self) -> Reading:
        """As the meter's, with this part's domains alone.

        Raises:
            UnavailableError: The meter fails, or has no such part.
        """
        return cast(Reading, self._take())


class PowerPart(_Part):
    """Implements `greencc.core.meter.PowerMeter`."""

    def sample(self) -> PowerSample:
        """As the meter's, with this part's domains alone.

        Raises:
            UnavailableError: The meter fails, or has no such part.
        """
        return cast(PowerSample, self._take())


def part_of(sensor: Meter | PowerMeter, part: str) -> EnergyPart | PowerPart:
    """The domains of `sensor` called `part`, or numbered so (``0`` is ``gpu-0``), with what is inside them."""
    return EnergyPart(sensor, part) if is_counter(sensor) else PowerPart(sensor, part)


def _belongs(domain: str, part: str) -> bool:
    return part == domain or (part.isdecimal() and domain.endswith(f"-{part}"))

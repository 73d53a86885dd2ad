"""Temperature, clocks and throttling, from Linux's `/sys`.

Sources: Documentation/admin-guide/sysfs (thermal_throttle counters of x86), thermal zones and their trip points,
cpufreq's `scaling_cur_freq` and `scaling_max_freq` (which thermald and firmware lower).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from greencc.core import machine

_ZONES = "sys/class/thermal"
_CPUS = "sys/devices/system/cpu"
_THROTTLING_TRIPS = ("passive", "hot", "critical")
# Turbo steps down by a bin or two without anything being wrong.
_CLOCK_DROP = 0.75


@dataclass(frozen=True)
class ThermalState:
    """What the machine shows at one moment; None: it does not tell.

    Attributes:
        celsius: Of the hottest zone.
        throttles: How often cores and packages have been throttled since boot.
        tripped: Names a zone that is at a trip point where the kernel begins to throttle.
        limit_mhz: The highest clock any processor may take.
        clock_mhz: The highest clock any processor has.
    """

    celsius: float | None = None
    throttles: int | None = None
    tripped: str | None = None
    limit_mhz: float | None = None
    clock_mhz: float | None = None


class ThermalProbe(Protocol):
    """Looks at the machine."""

    def look(self) -> ThermalState: ...


@dataclass(frozen=True)
class SystemThermal:
    """`ThermalProbe` of this machine; `root` is its file system root, so that recorded machines can be replayed."""

    root: Path = machine.ROOT

    def look(self) -> ThermalState:
        cpus = self.root / _CPUS
        counts = [_integer(path) for path in cpus.glob("cpu[0-9]*/thermal_throttle/*_throttle_count")]
        known = [count for count in counts if count is not None]
        return ThermalState(
            celsius=hottest(self.root),
            throttles=sum(known) if known else None,
            tripped=_tripped(self.root),
            limit_mhz=_highest(cpus, "scaling_max_freq"),
            clock_mhz=_highest(cpus, "scaling_cur_freq"),
        )


def hottest(root: Path = machine.ROOT) -> float | None:
    """Degrees Celsius of the hottest thermal zone, or None where there is none."""
    readings = [celsius for _, celsius in _zones(root)]
    return max(readings, default=None)


def throttled(before: ThermalState, after: ThermalState, fastest_mhz: float | None = None) -> str | None:
    """Say how the machine was throttled between two looks, or None.

    Args:
        before: At the start.
        after: At the end.
        fastest_mhz: The clock of earlier blocks of the same load, flat out; None: there is nothing to compare with.
    """
    if before.throttles is not None and after.throttles is not None and after.throttles > before.throttles:
        return f"the CPU was throttled {after.throttles - before.throttles} times"
    if after.tripped is not None:
        return after.tripped
    if before.limit_mhz and after.limit_mhz and after.limit_mhz < before.limit_mhz:
        return f"the clock limit fell from {before.limit_mhz:.0f} to {after.limit_mhz:.0f} MHz"
    if fastest_mhz and after.clock_mhz and after.clock_mhz < _CLOCK_DROP * fastest_mhz:
        return f"the clock fell from {fastest_mhz:.0f} to {after.clock_mhz:.0f} MHz"
    return None


def _zones(root: Path) -> Iterator[tuple[Path, float]]:
    for zone in sorted((root / _ZONES).glob("thermal_zone*")):
        value = _integer(zone / "temp")
        if value is not None:
            yield zone, value / 1e3


def _tripped(root: Path) -> str | None:
    for zone, celsius in _zones(root):
        for kind in sorted(zone.glob("trip_point_*_type")):
            if machine.read_text(kind) not in _THROTTLING_TRIPS:
                continue
            trip = _integer(kind.with_name(kind.name.removesuffix("_type") + "_temp"))
            # Zones without a real trip point have 0 or a negative one.
            if trip is not None and 0 < trip <= celsius * 1e3:
                name = machine.read_text(zone / "type") or zone.name
                return f"{name} is at {celsius:.0f} degrees Celsius, where throttling begins"
    return None


def _highest(cpus: Path, name: str) -> float | None:
    values = [_integer(path) for path in cpus.glob(f"cpu[0-9]*/cpufreq/{name}")]
    return max((value / 1e3 for value in values if value is not None), default=None)


def _integer(path: Path) -> int | None:
    text = machine.read_text(path) or ""
    return int(text) if re.fullmatch(r"-?[0-9]+", text) else None

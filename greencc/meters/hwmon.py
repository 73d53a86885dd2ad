"""Any power or energy channel of Linux's hardware monitoring tree, by name.

A channel says what its rail is called, not what hangs on it. So only an ACPI power meter of one channel, which is
defined to measure the platform, is used without being asked for; every other channel is chosen by its name
(``ina226/VDD_CPU``), and the boundary is that name. Left out are the channels of other meters: the power monitors of a
Jetson, `amd_energy` (RAPL's counters again), batteries and chargers.

Source: Linux, Documentation/hwmon/sysfs-interface.rst; ACPI 6.5, section 10.4 (power meters).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from greencc.core.errors import UnavailableError
from greencc.core.meter import Grade, Meter, PowerMeter, PowerSample, Reading
from greencc.meters._hwmon import DEFAULT_PERIOD, Channel, find_channels
from greencc.meters._reading import SYSFS, Tally, moving
from greencc.meters.jetson import find_module

# What Linux's acpi_power_meter driver calls its chip.
_PLATFORM = "power_meter"
_ELSEWHERE = ("amd_energy",)
_STUCK_AFTER_SECONDS = 10.0
_PROBE_SECONDS = 1.0


def known_channels(root: Path = SYSFS) -> tuple[Channel, ...]:
    """The channels that may be chosen, without those that other meters read."""
    jetson = find_module(root) is not None
    return tuple(
        channel
        for channel in find_channels(root)
        if not channel.supply
        and not channel.chip.startswith(_ELSEWHERE)
        and not (jetson and channel.chip.startswith(("ina3221", "ina238")))
    )


def choose(root: Path, names: tuple[str, ...]) -> tuple[Channel, ...]:
    """The channels called `names`, all of one kind; without names the one of an ACPI power meter.

    Raises:
        UnavailableError: A name is unknown, power and energy are mixed, or nothing says what the channels cover, or
            whether they overlap.
    """
    channels = known_channels(root)
    if not channels:
        raise UnavailableError(f"no power or energy channel under {root / 'class/hwmon'}")
    listing = ", ".join(dict.fromkeys(channel.name for channel in channels))
    if not names:
        platform = tuple(channel for channel in channels if channel.chip.split("@")[0] == _PLATFORM)
        if not platform:
            raise UnavailableError(
                f"there are channels ({listing}), and nothing says what they cover",
                hint="choose those that make up what you want to measure, by name: --meter hwmon:CHIP/LABEL+CHIP/LABEL",
            )
        if len(platform) > 1:
            # A platform's meter may have channels of its parts, and chassis share meters: their sum may count twice.
            raise UnavailableError(
                f"there are several ACPI power channels ({', '.join(channel.name for channel in platform)}), "
                "and nothing says whether one is part of another",
                hint="choose what does not overlap, by name: --meter hwmon:CHIP/LABEL or hwmon:CHIP/LABEL+CHIP/LABEL",
            )
        return platform
    chosen = [channel for channel in channels if channel.name in names]
    unknown = [name for name in names if all(channel.name != name for channel in chosen)]
    if unknown:
        raise UnavailableError(f"no hwmon channel {', '.join(unknown)}", hint=f"there are: {listing}")
    for counts in (True, False):
        # A chip may show one rail both ways; the counter is the better one.
        alike = [channel for channel in chosen if channel.counts is counts]
        if {channel.name for channel in alike} == set(names):
            if len(alike) != len(names):
                raise UnavailableError(f"a hwmon name stands for several channels: {', '.join(names)}")
            return tuple(alike)
    raise UnavailableError(
        f"the hwmon channels {', '.join(names)} mix power and energy counters", hint="measure them apart"
    )


def open_hwmon(
    root: Path = SYSFS, names: tuple[str, ...] = (), clock: Callable[[], float] = time.monotonic
) -> Meter | PowerMeter:
    """The meter for some channels: a counter where they count energy, else a power meter (whose `missing` may say why
    there is none)."""
    try:
        counts = all(channel.counts for channel in choose(root, names))
    except UnavailableError:
        counts = False
    return HwmonCounter(root, names, clock) if counts else HwmonMeter(root, names, clock)


@dataclass
class _Chosen:
    """What both kinds share.

    Args:
        root: The sysfs root.
        names: Channels such as ``ina226/VDD_CPU``, disjoint rails: they are added up. Empty: an ACPI power meter.
        clock: Monotonic seconds.
    """

    root: Path = SYSFS
    names: tuple[str, ...] = ()
    clock: Callable[[], float] = time.monotonic
    _channels: tuple[Channel, ...] | None = field(default=None, init=False, repr=False)

    @property
    def name(self) -> str:
        return "hwmon"

    @property
    def grade(self) -> Grade:
        return Grade.B

    @property
    def uncertainty(self) -> float | None:
        """A channel tells none."""
        return None

    @property
    def period_s(self) -> float:
        """Of the slowest channel; 0.1 s is assumed where the driver tells none."""
        return max((channel.period_s for channel in self._channels or ()), default=DEFAULT_PERIOD)

    @property
    def boundary(self) -> str:
        if self._channels is None:
            return "hwmon channels"
        names = " + ".join(channel.name for channel in self._channels)
        if all(channel.chip.split("@")[0] == _PLATFORM for channel in self._channels):
            return f"{names} (the platform, as its ACPI power meter measures it)"
        return f"{names} (as the board labels its rails)"

    def _values(self) -> Mapping[str, float]:
        if self._channels is None:
            self._channels = choose(self.root, self.names)
        return {channel.name: channel.value() for channel in self._channels}


@dataclass
class HwmonMeter(_Chosen):
    """Power channels; implements `greencc.core.meter.PowerMeter`."""

    def missing(self) -> str | None:
        try:
            self.sample()
        except UnavailableError as error:
            return str(error)
        return None

    def sample(self) -> PowerSample:
        """Watts of each channel.

        Raises:
            UnavailableError: See `choose`; or a channel vanished, may not be read, or gives no number.
        """
        watts = self._values()
        return PowerSample(self.clock(), watts)


@dataclass
class HwmonCounter(_Chosen):
    """Energy channels; implements `greencc.core.meter.Meter`.

    Args:
        sleep: Waits while probing.
    """

    sleep: Callable[[float], None] = time.sleep
    _tally: Tally = field(
        default_factory=lambda: Tally("hwmon", _STUCK_AFTER_SECONDS), init=False, repr=False
    )

    def missing(self) -> str | None:
        try:
            moved = moving(self._values, self.sleep, _PROBE_SECONDS)
        except UnavailableError as error:
            return str(error)
        stuck = [channel.name for channel in self._channels or () if channel.name not in moved]
        return f"the hwmon counter of {', '.join(stuck)} never moves" if stuck else None

    def read(self) -> Reading:
        """Joules of each channel since the first reading.

        Raises:
            UnavailableError: As `HwmonMeter.sample`; or a counter went back or stands still.
        """
        values = self._values()
        return self._tally.reading(self.clock(), values)

"""The battery's own gauge, through Linux's `power_supply` tree, while the machine runs on it.

On mains the battery tells what charges it, not what the machine draws; then there is no meter. Gauges update slowly
(about once a second) and their accuracy is not published.

Source: Linux, Documentation/ABI/testing/sysfs-class-power: uW, uV, uA, uWh, uAh; signs differ between drivers.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from greencc.core.errors import UnavailableError
from greencc.core.machine import read_text
from greencc.core.meter import Grade, Meter, PowerMeter, PowerSample, Reading
from greencc.meters._reading import SYSFS, Tally, read_integer

_FOLDER = "class/power_supply"
_DENIED = "the battery's attributes are readable by every user on most systems; ask the administrator"
# Gauges are asked through the embedded controller, which polls them; no driver tells how often.
_POWER_PERIOD = 1.0
_ENERGY_PERIOD = 15.0
_JOULES_PER_MICROWATT_HOUR = 3600e-6
_JOULES_PER_MICROAMPERE_HOUR_AND_MICROVOLT = 3600e-12
_STUCK_AFTER_SECONDS = 600.0


def discharging(root: Path) -> tuple[Path, ...]:
    """Folders of the batteries that feed this machine now.

    Raises:
        UnavailableError: There is no battery, or the machine is on mains.
    """
    supplies = sorted((root / _FOLDER).glob("*"))
    batteries = [
        path
        for path in supplies
        # `Device` is the battery of a mouse or a headset.
        if read_text(path / "type") == "Battery" and read_text(path / "scope") != "Device"
    ]
    if not batteries:
        raise UnavailableError("no battery")
    plugged = [
        path.name
        for path in supplies
        if read_text(path / "type") in ("Mains", "USB") and read_text(path / "online") == "1"
    ]
    states = {path: read_text(path / "status") or "Unknown" for path in batteries}
    feeding = tuple(path for path, state in states.items() if state == "Discharging")
    if plugged or "Charging" in states.values() or not feeding:
        told = ", ".join(f"{path.name} is {state.lower()}" for path, state in states.items())
        raise UnavailableError(
            f"the machine runs on mains ({told}), where the battery does not tell what it draws",
            hint="unplug it",
        )
    return feeding


def open_battery(root: Path = SYSFS, clock: Callable[[], float] = time.monotonic) -> Meter | PowerMeter:
    """The meter for this machine's batteries: of their power, or where a gauge tells only what is left, of that."""
    try:
        batteries = discharging(root)
    except UnavailableError:
        return BatteryMeter(root, clock)
    if all(_power_files(battery) is not None for battery in batteries):
        return BatteryMeter(root, clock)
    return BatteryCounter(root, clock)


@dataclass
class _Battery:
    """What both kinds share.

    Args:
        root: The sysfs root.
        clock: Monotonic seconds.
    """

    root: Path = SYSFS
    clock: Callable[[], float] = time.monotonic
    _names: tuple[str, ...] = field(default=(), init=False, repr=False)

    @property
    def grade(self) -> Grade:
        return Grade.B

    @property
    def uncertainty(self) -> float | None:
        """Not published."""
        return None

    @property
    def boundary(self) -> str:
        """Everything the battery feeds, the screen included."""
        return f"whole machine on battery ({' + '.join(self._names) or 'none'})"

    def _batteries(self) -> tuple[Path, ...]:
        found = discharging(self.root)
        self._names = tuple(path.name for path in found)
        return found


@dataclass
class BatteryMeter(_Battery):
    """Power drawn from the batteries; implements `greencc.core.meter.PowerMeter`."""

    @property
    def name(self) -> str:
        return "battery"

    @property
    def period_s(self) -> float:
        """Assumed: no driver tells it."""
        return _POWER_PERIOD

    def missing(self) -> str | None:
        try:
            self.sample()
        except UnavailableError as error:
            return str(error)
        return None

    def sample(self) -> PowerSample:
        """Watts of each battery.

        Raises:
            UnavailableError: The machine is on mains, or a gauge tells no power.
        """
        watts = {battery.name: _watts(battery) for battery in self._batteries()}
        return PowerSample(self.clock(), watts)


@dataclass(frozen=True)
class _Charge:
    """Of a gauge that tells charge: uAh and uV at its newest step, and joules up to it."""

    charge: int
    volts: int
    joules: float


@dataclass
class BatteryCounter(_Battery):
    """Energy taken from the batteries, from what is left in them; implements `greencc.core.meter.Meter`.

    What is left is told in steps of about 10 mWh (36 J): only windows of many minutes mean anything. Of a gauge that
    tells charge, each step is taken at the mean of the voltages before and after it.
    """

    _tally: Tally = field(
        default_factory=lambda: Tally("battery", _STUCK_AFTER_SECONDS), init=False, repr=False
    )
    _charges: dict[str, _Charge] = field(default_factory=dict, init=False, repr=False)

    @property
    def name(self) -> str:
        return "battery-energy"

    @property
    def period_s(self) -> float:
        """Assumed: no driver tells it."""
        return _ENERGY_PERIOD

    def missing(self) -> str | None:
        try:
            self._taken()
        except UnavailableError as error:
            return str(error)
        return None

    def read(self) -> Reading:
        """Joules taken from each battery since the first reading.

        Raises:
            UnavailableError: The machine is on mains, or a gauge tells nothing or more than before.
        """
        try:
            taken = self._taken()
        except UnavailableError:
            # What was charged in between is unknown.
            self._tally.restart()
            self._charges.clear()
            raise
        return self._tally.reading(self.clock(), taken)

    def _taken(self) -> dict[str, float]:
        return {battery.name: self._taken_from(battery) for battery in self._batteries()}

    def _taken_from(self, battery: Path) -> float:
        if (battery / "energy_now").exists() or not (battery / "charge_now").exists():
            return -read_integer(battery / "energy_now", _DENIED) * _JOULES_PER_MICROWATT_HOUR
        charge = read_integer(battery / "charge_now", _DENIED)
        volts = abs(read_integer(battery / "voltage_now", _DENIED))
        if volts == 0:
            raise UnavailableError(f"{battery.name} tells a voltage of 0: its charge means no energy")
        before = self._charges.get(battery.name, _Charge(charge, volts, 0.0))
        # The voltage sags and recovers with the load: it must not move the sum while the charge stands still.
        if charge == before.charge and battery.name in self._charges:
            return before.joules
        mean = (volts + before.volts) / 2.0
        joules = before.joules + (before.charge - charge) * mean * _JOULES_PER_MICROAMPERE_HOUR_AND_MICROVOLT
        self._charges[battery.name] = _Charge(charge, volts, joules)
        return joules


def _power_files(battery: Path) -> tuple[Path, ...] | None:
    """What tells the battery's power: in uW, or in uV and uA."""
    if (battery / "power_now").exists():
        return (battery / "power_now",)
    pair = (battery / "voltage_now", battery / "current_now")
    return pair if all(path.exists() for path in pair) else None


def _watts(battery: Path) -> float:
    files = _power_files(battery)
    if files is None:
        raise UnavailableError(f"{battery.name} tells neither power_now nor voltage_now and current_now")
    value = 1.0
    for file in files:
        value *= read_integer(file, _DENIED) * 1e-6
    if value == 0.0:
        raise UnavailableError(f"{battery.name} is discharging at 0 W: its gauge does not tell the power")
    return abs(value)

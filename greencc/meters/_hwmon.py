"""Linux's hardware monitoring tree: chips, and those of their channels that tell power or energy.

Source: Linux, Documentation/hwmon/sysfs-interface.rst: `powerN_*` in uW, `energyN_input` in uJ, `inN_input` in mV,
`currN_input` in mA, `update_interval` and `powerN_average_interval` in ms.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from greencc.core.machine import read_text
from greencc.meters._reading import read_integer

DENIED = "the attribute is not readable by this user; try as root, or give the group read permission by a udev rule"
DEFAULT_PERIOD = 0.1
"""Seconds assumed between updates where the driver tells nothing."""
SHORTEST_PERIOD = 0.05
"""Chips that update faster are read 20 times a second: that keeps the reading below 1 % of a core (docs/energy.md)."""
_UNUSED = ("", "NC", "sum of shunt voltages")
# Types of the `power_supply` class, whose devices show up as chips too.
_SUPPLIES = ("Battery", "Mains", "USB", "UPS", "Wireless")
_MICRO = 1e-6


@dataclass(frozen=True)
class Channel:
    """One channel of a chip.

    Attributes:
        chip: The driver's name for the chip, e.g. ``ina3221``.
        label: What the board calls the rail, e.g. ``VDD_IN``.
        counts: True for a counter of joules, False for watts.
        files: Attributes whose product, times `scale`, is the value in joules or watts.
        scale: See `files`.
        period_s: How often it updates.
        supply: It belongs to a battery or a charger.
    """

    chip: str
    label: str
    counts: bool
    files: tuple[Path, ...]
    scale: float
    period_s: float
    supply: bool = False

    @property
    def name(self) -> str:
        """E.g. ``ina3221/VDD_IN``: how a channel is asked for."""
        return f"{self.chip}/{self.label}"

    def value(self) -> float:
        """Watts or joules now.

        Raises:
            UnavailableError: The channel vanished, may not be read, or gives no number.
        """
        value = self.scale
        for file in self.files:
            value *= read_integer(file, DENIED)
        return value


def find_channels(root: Path) -> tuple[Channel, ...]:
    """All channels of all chips, whether or not they can be read. Chips of one name get their address appended."""
    folders = sorted((root / "class/hwmon").glob("hwmon*"), key=lambda path: (len(path.name), path.name))
    names = {folder: read_text(folder / "name") or folder.name for folder in folders}
    often = Counter(names.values())
    found: list[Channel] = []
    for folder, name in names.items():
        address = (folder / "device").resolve().name if (folder / "device").exists() else folder.name
        found += _chip_channels(folder, name if often[name] == 1 else f"{name}@{address}")
    return tuple(found)


def _chip_channels(folder: Path, chip: str) -> list[Channel]:
    update = _seconds(folder / "update_interval") or DEFAULT_PERIOD
    supply = read_text(folder / "device/type") in _SUPPLIES
    whole = read_text(folder / "label")
    found: list[Channel] = []
    for number in _numbers(folder, "energy", "input"):
        label = read_text(folder / f"energy{number}_label") or whole or f"energy{number}"
        file = folder / f"energy{number}_input"
        found.append(Channel(chip, label, True, (file,), _MICRO, update, supply))
    powers = sorted({*_numbers(folder, "power", "input"), *_numbers(folder, "power", "average")})
    for number in powers:
        label = read_text(folder / f"power{number}_label") or whole or f"power{number}"
        file, period = folder / f"power{number}_input", update
        if not file.exists():
            file = folder / f"power{number}_average"
            period = _seconds(folder / f"power{number}_average_interval") or update
        found.append(Channel(chip, label, False, (file,), _MICRO, period, supply))
    if powers:
        # The chip multiplies itself; its voltages and currents are the same rails again.
        return found
    for number in _numbers(folder, "curr", "input"):
        named = read_text(folder / f"in{number}_label") or read_text(folder / f"curr{number}_label")
        volts = folder / f"in{number}_input"
        if named is None or named in _UNUSED or not volts.exists():
            continue
        # mV times mA.
        found.append(
            Channel(chip, named, False, (volts, folder / f"curr{number}_input"), _MICRO, update, supply)
        )
    return found


def _numbers(folder: Path, kind: str, what: str) -> list[int]:
    pattern = re.compile(rf"{kind}(\d+)_{what}")
    matches = (pattern.fullmatch(path.name) for path in folder.glob(f"{kind}*_{what}"))
    return sorted(int(match[1]) for match in matches if match)


def _seconds(path: Path) -> float | None:
    """A file of milliseconds as seconds, at least `SHORTEST_PERIOD`; None where it tells nothing."""
    text = read_text(path) or ""
    return max(int(text) * 1e-3, SHORTEST_PERIOD) if text.isdigit() and int(text) > 0 else None

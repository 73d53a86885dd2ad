"""Power modes as budgets: ``jetson-orin-nano:7W`` stands for the watts that the mode allows the module.

The modes are those of the device profiles (`greencc.meters.device_store`), shipped and the user's own: names and
caps as NVIDIA's nvpmodel has them. A mode is known by its name, never by its number, which differs between releases. A
mode without a cap (MAXN of an Orin) is no budget.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from greencc.core.errors import UsageError, did_you_mean
from greencc.meters.device import PowerMode
from greencc.meters.device_store import stored_profiles


@dataclass(frozen=True)
class Preset:
    """A power mode of a device and its cap in watts."""

    device: str
    mode: str
    watts: float

    @property
    def shown(self) -> str:
        """For people, such as ``jetson-orin-nano 7W``."""
        return f"{self.device} {self.mode}"

    @property
    def text(self) -> str:
        """As a budget says it."""
        return f"{self.device}:{self.mode}"


def known_modes(folder: Path | None = None) -> Mapping[str, tuple[PowerMode, ...]]:
    """Power modes by device, of those that have any with a cap.

    Args:
        folder: As for `stored_profiles`.
    """
    profiles = [entry.profile for entry in stored_profiles(folder) if entry.profile is not None]
    return {
        profile.name: profile.modes
        for profile in profiles
        if any(mode.watts is not None for mode in profile.modes)
    }


def presets_of(device: str, folder: Path | None = None) -> tuple[Preset, ...]:
    """The capped modes of a device, the smallest first.

    Raises:
        UsageError: No device of that name has power modes.
    """
    modes = known_modes(folder)
    name = _named(device, modes)
    capped = [Preset(name, mode.name, mode.watts) for mode in modes[name] if mode.watts is not None]
    return tuple(sorted(capped, key=lambda preset: preset.watts))


def find_preset(text: str, folder: Path | None = None) -> Preset | None:
    """The power mode that `text` names as ``device:mode``; None: it does not look like one.

    Raises:
        UsageError: The device or the mode is unknown, the mode is missing or has no cap.
    """
    device, colon, mode = (part.strip() for part in text.partition(":"))
    if not device[:1].isalpha() or (not colon and device.lower() not in known_modes(folder)):
        return None
    presets = presets_of(device, folder)
    by_name = {preset.mode.lower(): preset for preset in presets}
    if mode.lower() in by_name:
        return by_name[mode.lower()]
    asked = presets[0].device
    choices = ", ".join(preset.text for preset in presets)
    if not mode:
        raise UsageError(f"{asked} without a power mode is no limit", hint=f"write one of {choices}")
    uncapped = {each.name.lower(): each.name for each in known_modes(folder)[asked]}.keys() - by_name.keys()
    if mode.lower() in uncapped:
        raise UsageError(f"the mode {mode} of {asked} has no cap in watts", hint=f"write watts, or {choices}")
    raise UsageError(
        f"{asked} has no power mode {mode!r}", hint=did_you_mean(mode, [preset.mode for preset in presets])
    )


def mode_within(device: str, watts: float, folder: Path | None = None) -> Preset | None:
    """The largest mode of a device whose cap is within a budget of watts: what nvpmodel should be set to.

    None: even the smallest cap is above the budget. The module then *may* draw more than the budget, and only a
    measurement tells whether a plan keeps it.

    Raises:
        UsageError: No device of that name has power modes.
    """
    within = [preset for preset in presets_of(device, folder) if preset.watts <= watts]
    return within[-1] if within else None


def _named(device: str, modes: Mapping[str, tuple[PowerMode, ...]]) -> str:
    for name in modes:
        if name.lower() == device.lower():
            return name
    raise UsageError(f"no device {device!r} with power modes", hint=did_you_mean(device, modes))

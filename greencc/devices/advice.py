"""What makes figures of a device less certain, or work on it fail, as far as a probe shows it."""

from __future__ import annotations

from greencc.devices.facts import DeviceFacts

_LITTLE_DISK = 1 << 30
_HOT_CELSIUS = 80.0
_BUSY_SHARE = 0.5


def warnings(facts: DeviceFacts) -> list[str]:
    """One line each, with what to do."""
    told = []
    if not facts.meters:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in facts.missing_meters.items())
        told.append(
            f"no energy meter works there, so energy is not measured{f' ({reasons})' if reasons else ''}"
        )
    if facts.clocks_fixed is False:
        told.append(
            "its clocks are not fixed, so times and watts vary more: run there 'sudo jetson_clocks' before measuring"
            if facts.is_jetson
            else "its clocks are not fixed, so times and watts vary more: set the 'performance' governor there"
        )
    if facts.disk_free_bytes is not None and facts.disk_free_bytes < _LITTLE_DISK:
        told.append(f"only {gigabytes(facts.disk_free_bytes)} of its disk are free: builds may not fit")
    if facts.celsius is not None and facts.celsius >= _HOT_CELSIUS:
        told.append(
            f"it is {facts.celsius:.0f} °C hot, and may slow itself down: let it cool, or check its fan"
        )
    if facts.busy:
        told.append(f"it is in use by {facts.busy}: measurements wait until that has ended")
    if facts.power is not None and facts.power.problem:
        told.append(f"its power mode should be {facts.power.before} again, and is not: {facts.power.problem}")
    if facts.load and facts.processors and facts.load[0] > _BUSY_SHARE * facts.processors:
        told.append(
            f"other programs keep it busy (load {facts.load[0]:.1f}): what is measured meanwhile is theirs too"
        )
    return told


def gigabytes(count: int | None) -> str:
    """``1.5 GB``; smaller ones as MB."""
    if count is None:
        return "?"
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"

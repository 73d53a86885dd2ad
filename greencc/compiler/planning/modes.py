"""Power modes of a device: which of them are open to a budget, and what a limit in watts means in them.

A power mode is a guarantee: the module never draws more than its cap for long. So watts are kept in the largest mode
whose cap is within them, and in no larger one, whatever an estimate says of it. Where even the smallest cap is above
the limit (5 W on a Jetson Orin Nano, whose smallest mode is 7W), that mode it is, and only a measurement tells whether
the limit is kept. Without a limit in watts all modes are open.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from greencc.core.errors import UsageError
from greencc.meters.device import DeviceProfile, PowerMode
from greencc.planner.budget import BudgetLimit, Kind

_RAIL = re.compile(r"\b([A-Z][A-Z0-9_]+) rail\b")


@dataclass(frozen=True)
class OpenModes:
    """The power modes of a device, as a budget sees them.

    Attributes:
        device: Name of its profile; empty: it has none.
        boundary: What its watts cover.
        all: Its modes, the default one first; of a device without any one nameless mode.
        budget: The mode that the limit in watts is for; None: there is no such limit, or no mode with a cap.
        limit: That limit.
    """

    device: str
    boundary: str
    all: tuple[PowerMode, ...]
    budget: PowerMode | None = None
    limit: BudgetLimit | None = None

    @property
    def open(self) -> tuple[PowerMode, ...]:
        """Those that a plan may choose."""
        return self.all if self.budget is None else (self.budget,)

    @property
    def exceeds(self) -> bool:
        """Whether even the smallest mode allows more than the limit."""
        return self.budget is not None and self.limit is not None and _cap(self.budget) > self.limit.value

    def closed(self, mode: PowerMode) -> str:
        """Why a mode may not be chosen; empty where it may."""
        if mode in self.open or self.budget is None or self.limit is None:
            return ""
        larger = mode.watts is None or mode.watts > _cap(self.budget)
        if self.exceeds:
            why = f"{self.limit.shown} is kept in the smallest mode, {self.budget.name}, if at all"
        elif larger:
            why = "has no cap" if mode.watts is None else f"allows {mode.watts:g} W"
            why = f"the mode {why}, and the mode is what guarantees {self.limit.shown}"
        else:
            why = f"{self.limit.shown} means the largest mode within it, {self.budget.name}"
        return f"not open: {why}"

    def meaning(self, mode: PowerMode, rate: float | None) -> str:
        """What watts are, in words: ``the average of VDD_IN at 30 requests/s in the 7W mode (nvpmodel)``."""
        found = _RAIL.search(self.boundary)
        what = found[1] if found else "the " + self.boundary.partition(";")[0].removeprefix("the ")
        load = "flat out" if rate is None else f"at {rate:g} requests/s"
        where = f" in the {mode.name} mode" if mode.name else ""
        if where and found:
            where += " (nvpmodel)"
        return f"the average of {what} {load}{where}"


def modes_of_profile(profile: DeviceProfile, budget: Sequence[BudgetLimit]) -> OpenModes:
    """`open_modes` of a device that is known by its profile alone."""
    return open_modes(profile.name, profile.boundary, profile.modes, budget)


def open_modes(
    device: str, boundary: str, modes: tuple[PowerMode, ...], budget: Sequence[BudgetLimit]
) -> OpenModes:
    """The modes of a device, and those that are open to a budget.

    Args:
        device: Name of its profile; empty: it has none.
        boundary: What its watts cover.
        modes: That it has, the default one first.
        budget: The limits.

    Raises:
        UsageError: A limit names a power mode of another device, or one that this device does not have.
    """
    found = OpenModes(device, boundary, modes or (PowerMode("", None),))
    capped = sorted((mode for mode in modes if mode.watts is not None), key=_cap)
    limit = next((limit for limit in budget if limit.kind is Kind.POWER), None)
    if limit is None:
        return found
    if limit.device and limit.device != device:
        own = ", ".join(f"{device}:{mode.name}" for mode in capped if device)
        raise UsageError(
            f"{limit.shown} is a power mode of another device: the target's is {device or 'not known'}",
            hint=f"write watts, such as {limit.value:g}W" + (f", or {own}" if own else ""),
        )
    if not capped:
        return found
    within = [mode for mode in capped if _cap(mode) <= limit.value]
    budget_mode = within[-1] if within else capped[0]
    if limit.device:
        named = [mode for mode in capped if mode.name.lower() == limit.mode_name.lower()]
        if not named:
            raise UsageError(
                f"the device has no power mode {limit.mode_name}",
                hint=f"it has {', '.join(mode.name for mode in modes)}",
            )
        budget_mode = named[0]
    return replace(found, budget=budget_mode, limit=limit)


def _cap(mode: PowerMode) -> float:
    assert mode.watts is not None
    return mode.watts

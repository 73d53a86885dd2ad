"""How busy the rest of the machine is, to tell a disturbed measurement from a clean one."""

from __future__ import annotations

import os
from typing import Protocol

import psutil

BUSY_SHARE = 0.1
"""A measurement during which others used more of the machine is disturbed."""


class LoadProbe(Protocol):
    """Cumulative CPU seconds; the difference of two readings is what happened in between."""

    @property
    def cpus(self) -> int:
        """Processors the seconds are spread over."""

    def others_seconds(self) -> float | None:
        """CPU seconds that other processes (and the hypervisor) have used since boot, or None when unknown."""


class SystemLoad:
    """`LoadProbe` of this machine: busy and stolen time of all processors, less this process's own."""

    @property
    def cpus(self) -> int:
        return os.cpu_count() or 1

    def others_seconds(self) -> float | None:
        try:
            times = psutil.cpu_times()
            own = os.times()
        except (OSError, psutil.Error):
            return None
        busy = sum(
            float(getattr(times, name, 0.0)) for name in ("user", "nice", "system", "irq", "softirq", "steal")
        )
        return busy - own.user - own.system


def others_share(before: float | None, after: float | None, wall_seconds: float, cpus: int) -> float | None:
    """Share of the machine's CPU time that others used between two readings, in [0, 1]; None when unknown."""
    if before is None or after is None or wall_seconds <= 0.0:
        return None
    return min(1.0, max(0.0, after - before) / (wall_seconds * cpus))

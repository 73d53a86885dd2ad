"""Whether time ran evenly: a suspended machine and a clock that was set show as differences between clocks.

Linux counts three times: CLOCK_MONOTONIC stands still while the machine is suspended, CLOCK_BOOTTIME goes on, and
CLOCK_REALTIME can be set. (`clock_gettime(2)`.)
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol

_SUSPENDED_SECONDS = 0.1
# The kernel slews at most 500 ppm; a step is what exceeds that, and 50 ms.
_STEP_SECONDS = 0.05
_SLEW = 1e-3
# The three are read one after another; when that took longer, something came in between, and they are read again.
_TOGETHER_SECONDS = 0.005
_TRIES = 5


@dataclass(frozen=True)
class ClockReading:
    """Seconds of the three clocks at one moment."""

    monotonic: float
    boottime: float
    realtime: float


class ClockProbe(Protocol):
    """Reads the clocks."""

    def look(self) -> ClockReading: ...


class SystemClocks:
    """`ClockProbe` of this machine. Where there is no boot time clock, a suspend is not seen."""

    def look(self) -> ClockReading:
        boottime = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
        for _ in range(_TRIES):
            before = time.monotonic()
            reading = ClockReading(before, time.clock_gettime(boottime), time.time())
            if time.monotonic() - before < _TOGETHER_SECONDS:
                break
        return reading


def suspended(before: ClockReading, after: ClockReading) -> str | None:
    """Say for how long the machine slept between two readings, or None."""
    return slept_for((after.boottime - before.boottime) - (after.monotonic - before.monotonic))


def slept_for(seconds: float) -> str | None:
    """Say that the machine slept for so long, or None where it is too little to tell."""
    return f"the machine was suspended for {seconds:.1f} s" if seconds > _SUSPENDED_SECONDS else None


def stepped(before: ClockReading, after: ClockReading) -> str | None:
    """Say by how much the wall clock was set between two readings, or None. A suspend alone is no step."""
    elapsed = after.boottime - before.boottime
    step = (after.realtime - before.realtime) - elapsed
    if abs(step) <= max(_STEP_SECONDS, _SLEW * elapsed):
        return None
    return f"the wall clock was set {'forward' if step > 0 else 'back'} by {abs(step):.1f} s"

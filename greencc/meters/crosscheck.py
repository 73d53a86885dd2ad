"""Does another tool see the same energy? Ours and Zeus' joules of one window, side by side.

Zeus is not a meter of greencc: it counts RAPL's `psys` as one more CPU, is wrong after a counter wraps, and knows no
total of an AGX Orin (docs/energy.md). Where none of that applies both must agree to within a step of the counter at
each end of the window. Needs Zeus (greencc[zeus], some 300 MB with what it depends on).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from greencc.core.errors import UnavailableError
from greencc.core.meter import Meter, joules_between

_WINDOW = "greencc"


class Part(Enum):
    """What of the machine both tools measure: the names of Zeus' fields."""

    GPU = ("gpu_energy",)
    CPU = ("cpu_energy",)
    DRAM = ("dram_energy",)
    CPU_DRAM = ("cpu_energy", "dram_energy")


@dataclass(frozen=True)
class CrossCheck:
    """One window seen by two tools.

    Attributes:
        ours: Joules by greencc's meter, whose window lies just inside the other's.
        theirs: Joules by the other tool.
        seconds: Length of our window.
        boundary: Of our meter.
        counted: What the other tool counted, joules by name; names too many or too few explain most differences.
    """

    ours: float
    theirs: float
    seconds: float
    boundary: str
    counted: Mapping[str, float]

    @property
    def difference(self) -> float:
        """theirs / ours - 1; infinite where ours is 0 and theirs is not."""
        if self.ours == 0.0:
            return 0.0 if self.theirs == 0.0 else math.inf
        return self.theirs / self.ours - 1.0


def cross_check_zeus(
    meter: Meter, work: Callable[[], object], part: Part, monitor: Any | None = None
) -> CrossCheck:
    """Measure `work` with our meter and with Zeus at once.

    Args:
        meter: Covers the same part of the machine as `part`; `missing()` is None.
        work: Returns when all it started is done, also on a GPU: Zeus is not asked to synchronise.
        part: Which of Zeus' figures to add up.
        monitor: A `zeus.monitor.ZeusMonitor`; default: a new one.

    Raises:
        UnavailableError: Zeus is not installed, cannot start or reads no such energy here, our meter fails, or its
            readings do not fit together.
    """
    monitor = _monitor() if monitor is None else monitor
    monitor.begin_window(_WINDOW, sync_execution=False)
    try:
        before = meter.read()
        work()
        after = meter.read()
    finally:
        # Also after a failure, or the monitor keeps the window and refuses the next one.
        seen = monitor.end_window(_WINDOW, sync_execution=False)
    ours = math.fsum(joules_between(before, after).values())
    counted = _counted(seen, part)
    return CrossCheck(ours, sum(counted.values()), after.seconds - before.seconds, meter.boundary, counted)


def _counted(seen: Any, part: Part) -> dict[str, float]:
    counted: dict[str, float] = {}
    for field in part.value:
        values = getattr(seen, field, None)
        # No CPU is None, no GPU is an empty dictionary: neither is 0 J.
        if not values:
            raise UnavailableError(
                f"Zeus reads no {field.removesuffix('_energy').upper()} energy here",
                hint="it needs readable RAPL counters, or an NVIDIA or AMD GPU",
            )
        for index, joules in values.items():
            if not math.isfinite(joules) or joules < 0.0:
                raise UnavailableError(
                    f"Zeus gave {joules} J for {field}[{index}]", hint="its counter wrapped"
                )
            counted[f"{field}[{index}]"] = float(joules)
    return counted


def _monitor() -> Any:
    try:
        from zeus.monitor import ZeusMonitor
    except ImportError as error:
        raise UnavailableError(
            "the cross-check needs Zeus, which is not installed", hint="pip install 'greencc[zeus]'"
        ) from error
    try:
        return ZeusMonitor()
    except (RuntimeError, ValueError, OSError) as error:
        raise UnavailableError(f"Zeus cannot start: {error}") from error

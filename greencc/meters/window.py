"""The energy of a stretch of time: metered where a meter works, else estimated from what was done meanwhile."""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from greencc.core.errors import UnavailableError
from greencc.core.meter import Grade, Meter, PowerMeter, Reading, is_counter
from greencc.core.report import Energy
from greencc.meters import available_meters
from greencc.meters.busy import BusyTime, estimate_busy
from greencc.meters.model import DevicePower, OperationCounts, Workload, estimate
from greencc.meters.sampling import Sampler

# Counters wrap after minutes at the earliest; a reading takes far less than a millisecond of each interval.
_COUNTER_SECONDS = 10.0
# A long call that holds the interpreter's lock keeps the watching thread waiting. Power is taken to change evenly
# meanwhile: within a stretch of minutes that matters less than to know nothing of the whole.
_GAP_SECONDS = 2.0


@dataclass(frozen=True)
class Spent:
    """Joules of a stretch of time.

    Attributes:
        seconds: How long it was.
        energy: In joules (not millijoules), with its grade; gross. None where nothing can be said.
    """

    seconds: float
    energy: Energy | None

    def text(self) -> str:
        if self.energy is None:
            return f"{self.seconds:.1f} s; its energy is not known"
        kind = "measured" if Grade[self.energy.grade].measured else "estimated"
        return (
            f"{self.seconds:.1f} s and {self.energy.value:.3g} J {kind} "
            f"[{self.energy.low:.3g}, {self.energy.high:.3g}] "
            f"(grade {self.energy.grade}, {self.energy.boundary}, gross)"
        )


class Window:
    """A stretch of time whose energy is wanted.

    The meter is watched in a thread, counters too: so it is seen that they wrap or stand still, whatever the work does.
    """

    def __init__(self, meters: Callable[[], list[Meter | PowerMeter]] = available_meters) -> None:
        self._meter: Meter | None = None
        self._first: Reading | None = None
        self._stop: Callable[[], object] | None = None
        for sensor in meters():
            interval = max(sensor.period_s, _COUNTER_SECONDS) if is_counter(sensor) else None
            meter = Sampler(sensor, interval_s=interval, gap_s=None if is_counter(sensor) else _GAP_SECONDS)
            try:
                self._first = meter.read()
            except UnavailableError:
                continue
            self._meter = meter
            meter.start()
            # Also where the work fails and nobody closes the window.
            self._stop = weakref.finalize(self, meter.stop)
            break
        self._start = time.perf_counter()
        self._cpu = _cpu_seconds()

    def tick(self) -> Reading | None:
        """A reading, or None where there is no meter (any more)."""
        if self._meter is None:
            return None
        try:
            return self._meter.read()
        except UnavailableError:
            self._meter = None
            return None

    def close(self, work: OperationCounts | None, power: DevicePower, load: float) -> Spent:
        """End the stretch; without a meter, estimate from the work that was done in it.

        Args:
            work: What was computed in it, for an estimate; None when it could not be counted.
            power: Of the machine.
            load: Share of the machine's cores that were busy.
        """
        seconds = time.perf_counter() - self._start
        metered = self._metered(seconds)
        if metered is not None or work is None or seconds <= 0:
            return Spent(seconds, metered)
        found = estimate(Workload(work, seconds), power, load)
        each = (found.value / 1e3, found.low / 1e3, found.high / 1e3)
        return Spent(seconds, Energy(*each, found.grade, found.boundary, found.method))

    def close_busy(self, power: DevicePower, facts: Mapping[str, str]) -> tuple[Spent, BusyTime | None]:
        """End the stretch; without a meter, estimate from the CPU time of this process and of its children.

        Args:
            power: Of the machine.
            facts: `Device.facts`, for the number of cores.

        Returns:
            What was spent, and the CPU time where it is an estimate from that.
        """
        seconds = time.perf_counter() - self._start
        metered = self._metered(seconds)
        if metered is not None or seconds <= 0:
            return Spent(seconds, metered), None
        busy = BusyTime.of(seconds, _cpu_seconds() - self._cpu, facts)
        return Spent(seconds, estimate_busy(busy, power)), busy

    def _metered(self, seconds: float) -> Energy | None:
        last, meter, first = self.tick(), self._meter, self._first
        if self._stop is not None:
            self._stop()
        # Across epochs the energy is not known.
        if last is None or meter is None or first is None or last.epoch != first.epoch:
            return None
        joules = sum(last.joules[name] - first.joules[name] for name in first.joules)
        slack = joules * min(1.0, meter.period_s / max(seconds, 1e-9))
        method = f"measured with {meter.name}, gross, everything on the machine"
        return Energy(
            joules, joules - slack, joules + slack, meter.grade.name, meter.boundary, method, joules
        )


def _cpu_seconds() -> float:
    """Of this process and its finished children."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system

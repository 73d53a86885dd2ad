"""The energy that training takes: metered where a meter works, else estimated from counted work and measured time."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass

from greencc.core.errors import UnavailableError
from greencc.core.meter import Meter, PowerMeter, Reading
from greencc.core.report import Energy
from greencc.meters import available_meters
from greencc.meters.model import DevicePower, OperationCounts, Workload, estimate
from greencc.meters.sampling import Sampler, is_counter

# A backward pass costs twice a forward pass: one product for the inputs' gradients, one for the weights'.
BACKWARD = 2.0


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
        kind = "measured" if self.energy.grade in ("A", "B") else "estimated"
        return (
            f"{self.seconds:.1f} s and {self.energy.value:.3g} J {kind} "
            f"[{self.energy.low:.3g}, {self.energy.high:.3g}] "
            f"(grade {self.energy.grade}, {self.energy.boundary}, gross)"
        )


class Window:
    """A stretch of time whose energy is wanted. `tick` now and then lets a meter see that its counter wraps."""

    def __init__(self, meters: Callable[[], list[Meter | PowerMeter]] = available_meters) -> None:
        self._meter: Meter | None = None
        self._first: Reading | None = None
        self._stop: Callable[[], object] | None = None
        for sensor in meters():
            meter = sensor if is_counter(sensor) else Sampler(sensor)
            try:
                self._first = meter.read()
            except UnavailableError:
                continue
            self._meter = meter
            if isinstance(meter, Sampler):
                meter.start()
                # Also where the work fails and nobody closes the window.
                self._stop = weakref.finalize(self, meter.stop)
            break
        self._start = time.perf_counter()

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
        """End the stretch.

        Args:
            work: What was computed in it, for an estimate; None when it could not be counted.
            power: Of the machine.
            load: Share of the machine's cores that were busy.
        """
        seconds = time.perf_counter() - self._start
        last, meter = self.tick(), self._meter
        if self._stop is not None:
            self._stop()
        first = self._first
        # Across epochs the energy is not known.
        if last is not None and meter is not None and first is not None and last.epoch == first.epoch:
            joules = sum(last.joules[name] - first.joules[name] for name in first.joules)
            slack = joules * min(1.0, meter.period_s / max(seconds, 1e-9))
            grade, method = meter.grade.name, f"{meter.name}, gross, everything on the machine"
            return Spent(
                seconds, Energy(joules, joules - slack, joules + slack, grade, meter.boundary, method, joules)
            )
        if work is None or seconds <= 0:
            return Spent(seconds, None)
        found = estimate(Workload(work, seconds), power, load)
        each = (found.value / 1e3, found.low / 1e3, found.high / 1e3)
        return Spent(seconds, Energy(*each, found.grade, found.boundary, found.method))


def training_work(
    student: OperationCounts | None, teacher: OperationCounts | None, samples: int
) -> OperationCounts | None:
    """What training on `samples` computes, from what one run of both networks does."""
    if student is None or teacher is None:
        return None
    macs: dict[str, float] = {}
    for counts, factor in ((student, 1.0 + BACKWARD), (teacher, 1.0)):
        for dtype, count in counts.macs_by_dtype.items():
            macs[dtype] = macs.get(dtype, 0.0) + factor * samples * count
    moved = samples * ((1.0 + BACKWARD) * student.bytes_moved + teacher.bytes_moved)
    return OperationCounts(macs, moved)

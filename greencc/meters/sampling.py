"""Watch a sensor in a thread: integrate power to energy, keep the trace, and account for what the watching costs.

A `Sampler` stands in front of any sensor and is itself a `Meter`. Of a power sensor it sums the trapezoids between
samples; of a counter it passes the readings on, and reads often enough that no wrap goes unseen. The readings of the
thread and of whoever calls `read` share one lock, so a sensor never sees two callers at once.

What is not known is not made up: after a failed or late sample (a gap, such as a suspended machine leaves; see
`greencc.core.trapezoid`) the sum starts a new epoch, and energies across it are refused by whoever subtracts readings.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self, cast

from greencc.core.errors import GreenccError
from greencc.core.meter import Grade, Meter, PowerMeter, PowerSample, Reading, is_counter
from greencc.core.trapezoid import joules_from, longest_gap

STEP_PERIODS = 5
"""A counter that steps once a period is off by up to a step at either end: its watts are means over so many periods at
least, which keeps that error below a fifth."""
COUNTER_INTERVAL = 0.1
"""Seconds between the readings of a counter that make up its trace."""
SHORTEST_INTERVAL = 0.01


@dataclass(frozen=True)
class TracePoint:
    """One row of a trace.

    Attributes:
        seconds: When it was read, monotonic.
        epoch: As `Reading.epoch`.
        joules: Cumulative, of each domain.
        watts: Mean of each domain since the row before. Of a counter it is the mean over at least `STEP_PERIODS` of its
            periods; rows that follow each other faster repeat it. None until there is one in this epoch.
    """

    seconds: float
    epoch: int
    joules: Mapping[str, float]
    watts: Mapping[str, float] | None


@dataclass(frozen=True)
class Failure:
    """A reading that failed in the thread, and when."""

    seconds: float
    message: str


@dataclass(frozen=True)
class SamplingCost:
    """What the watching itself took.

    Attributes:
        cpu_seconds: Processor time of the sampling thread.
        wall_seconds: For how long it has watched.
        samples: Readings taken.
        late: Readings that came more than an interval late.
    """

    cpu_seconds: float
    wall_seconds: float
    samples: int
    late: int

    @property
    def core_share(self) -> float:
        """Share of one processor core, in [0, 1]; 0 before any time has passed."""
        return self.cpu_seconds / self.wall_seconds if self.wall_seconds > 0.0 else 0.0


class Sampler:
    """Watches a sensor between `start` and `stop` (or in a `with` block); implements `greencc.core.meter.Meter`.

    Args:
        sensor: A counter or a power sensor whose `missing()` is None.
        interval_s: Seconds between samples; default: the sensor's period, for counters at least `COUNTER_INTERVAL`.
        gap_s: Samples of power that are further apart end the epoch; default: `longest_gap`.
        clock: Monotonic seconds.
        thread_clock: Processor seconds of the calling thread.

    Without `start`, `read` still works: each call takes one sample, which is how tests with a fake clock drive it.
    """

    def __init__(
        self,
        sensor: Meter | PowerMeter,
        *,
        interval_s: float | None = None,
        gap_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        thread_clock: Callable[[], float] = time.thread_time,
    ) -> None:
        self.sensor = sensor
        shortest = COUNTER_INTERVAL if is_counter(sensor) else SHORTEST_INTERVAL
        self.interval_s = max(sensor.period_s, shortest) if interval_s is None else interval_s
        self._gap_s = longest_gap(self.interval_s) if gap_s is None else gap_s
        self._clock, self._thread_clock = clock, thread_clock
        self._lock = threading.Lock()
        self._end = threading.Event()
        self._thread: threading.Thread | None = None
        self._points: list[TracePoint] = []
        self._failures: list[Failure] = []
        # The reading since which watts are counted: of the newest point whose watts are its own.
        self._base: Reading | None = None
        self._last: PowerSample | None = None
        self._sums: dict[str, float] = {}
        self._epoch = 0
        self._samples = self._late = 0
        self._cpu = self._wall = 0.0

    @property
    def name(self) -> str:
        return self.sensor.name

    @property
    def grade(self) -> Grade:
        return self.sensor.grade

    @property
    def boundary(self) -> str:
        return self.sensor.boundary

    @property
    def period_s(self) -> float:
        return max(self.sensor.period_s, 0.0 if is_counter(self.sensor) else self.interval_s)

    @property
    def uncertainty(self) -> float | None:
        return self.sensor.uncertainty

    def missing(self) -> str | None:
        with self._lock:
            return self.sensor.missing()

    def start(self) -> None:
        """Begin to watch; a second call does nothing."""
        if self._thread is None:
            self._end.clear()
            self._thread = threading.Thread(target=self._watch, name=f"sampler-{self.name}", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End watching; what was seen stays."""
        if self._thread is not None:
            self._end.set()
            self._thread.join()
            self._thread = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def read(self) -> Reading:
        """Take a reading now: joules of each domain since the first one of this epoch.

        Raises:
            UnavailableError: The sensor vanished or its permission was withdrawn.
        """
        with self._lock:
            return self._take()

    def trace(self) -> list[TracePoint]:
        """All readings so far."""
        with self._lock:
            return list(self._points)

    def failures(self) -> list[Failure]:
        """Readings that failed in the thread."""
        with self._lock:
            return list(self._failures)

    def cost(self) -> SamplingCost:
        """What the thread has taken so far."""
        with self._lock:
            return SamplingCost(self._cpu, self._wall, self._samples, self._late)

    def _watch(self) -> None:
        start, used = self._clock(), self._thread_clock()
        due = start
        if self.trace():
            # Whoever started this has just taken a reading.
            due += self.interval_s
            self._end.wait(self.interval_s)
        while not self._end.is_set():
            with self._lock:
                try:
                    self._take()
                except Exception as error:  # noqa: BLE001 - a thread that dies would leave a gap nobody is told of
                    self._failures.append(Failure(self._clock(), _told(error)))
                now = self._clock()
                self._samples += 1
                self._late += now - due > 2.0 * self.interval_s
                self._cpu, self._wall = self._thread_clock() - used, now - start
            # The next multiple of the interval that is still ahead: late samples are not made up for in a burst.
            due += self.interval_s * max(1.0, -(-(now - due) // self.interval_s))
            self._end.wait(max(0.0, due - now))

    def _take(self) -> Reading:
        try:
            reading = self._count()
        except Exception:
            # Whatever failed: what happened meanwhile is not known.
            self._epoch += 1
            self._last = self._base = None
            self._sums.clear()
            raise
        before = self._points[-1] if self._points else None
        if before is not None and before.epoch == reading.epoch and reading.seconds <= before.seconds:
            return reading
        self._points.append(TracePoint(reading.seconds, reading.epoch, reading.joules, self._watts(reading)))
        return reading

    def _watts(self, reading: Reading) -> dict[str, float] | None:
        """Mean watts since the base, where that is far enough back; else those of the row before."""
        base = self._base
        if base is None or base.epoch != reading.epoch:
            self._base = reading
            return None
        elapsed = reading.seconds - base.seconds
        if is_counter(self.sensor) and elapsed < STEP_PERIODS * self.sensor.period_s:
            before = self._points[-1].watts
            return None if before is None else dict(before)
        self._base = reading
        return {
            name: (joules - base.joules.get(name, joules)) / elapsed
            for name, joules in reading.joules.items()
        }

    def _count(self) -> Reading:
        if not is_counter(self.sensor):
            return self._integrate(cast(PowerMeter, self.sensor))
        reading = self.sensor.read()
        return replace(reading, epoch=reading.epoch + self._epoch)

    def _integrate(self, sensor: PowerMeter) -> Reading:
        sample, last = sensor.sample(), self._last
        if last is not None:
            joules = joules_from(self.name, last, sample)
            if sample.seconds - last.seconds > self._gap_s:
                self._epoch += 1
                self._sums.clear()
            else:
                for name, value in joules.items():
                    self._sums[name] = self._sums.get(name, 0.0) + value
        self._last = sample
        return Reading(
            sample.seconds, {name: self._sums.get(name, 0.0) for name in sample.watts}, self._epoch
        )


def _told(error: Exception) -> str:
    """What a failure is recorded as: errors that greencc did not foresee with their kind."""
    return str(error) if isinstance(error, GreenccError) else f"{type(error).__name__}: {error}"

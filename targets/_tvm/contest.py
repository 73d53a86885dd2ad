"""Which schedule of a workload is the fastest: successive halving (Jamieson and Talwalkar, AISTATS 2016), in slices.

A slice takes a few candidates, spread over the space, and halves them in rounds of blocks measured in turns, each time
with more rounds; the last one is measured beside the best schedule so far and the default. It replaces the best only
if it is faster with its whole interval. So every slice ends with a result that can be kept, and the next goes on.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from greencc.core.report import Interval
from greencc.targets._tvm.kernels.template import Schedule
from greencc.targets._tvm.records import SLOWER, Place, Record
from greencc.targets._tvm.trial_data import weight_shape
from greencc.targets._tvm.trials import Bench, OutError
from greencc.targets._tvm.workload import Workload, key_of

SLICE = 8
"""Candidates of a slice."""
_SLICE_BYTES = 512 << 20
_ROUNDS = 5
_FINAL_ROUNDS = 15
# A candidate whose best call takes so many times longer than the best schedule's is out at once.
_CLEARLY = 1.6
# Less is not worth a change.
_WORTH = 0.01
# What a slice is expected to save before anything is known, as a share of the workload's time.
_PRIOR = 0.15


def median_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Distribution-free interval of a median, between order statistics; of few values, their whole range."""
    ordered, count = sorted(values), len(values)
    # The k lowest and the k highest values are left out: the median is beyond with twice P(Binomial(n, 1/2) <= k).
    left_out, beyond = 0, 0.5**count
    while True:
        beyond += math.comb(count, left_out + 1) * 0.5**count
        if 2.0 * beyond > 1.0 - confidence or left_out + 1 > (count - 1) // 2:
            break
        left_out += 1
    return Interval(statistics.median(ordered), ordered[left_out], ordered[count - 1 - left_out])


@dataclass
class Contest:
    """One workload's tuning.

    Attributes:
        workload: What the kernel computes.
        label: The workload, for people.
        count: How many nodes of the model have it.
        space: The schedules, the default first.
        place: Where it is measured.
        record: What is known; None: nothing yet.
        expected: What the next slice is expected to save, as a share of the workload's time.
        seconds: What the last slice took.
        broken: Why the default cannot be measured, or None.
        failed: Candidates that were out for another reason than their time, with the reason.
        trials: Built and measured in this run.
    """

    workload: Workload
    label: str
    count: int
    space: Sequence[Schedule]
    place: Place
    record: Record | None = None
    expected: float = _PRIOR
    seconds: float = 1.0
    broken: str | None = None
    failed: list[str] = field(default_factory=list)
    trials: int = 0

    @property
    def fresh(self) -> list[Schedule]:
        """What was not tried yet, in the order of the space."""
        if self.record is None:
            return list(self.space[1:])
        known = {self.record.best, *self.record.out}
        return [schedule for schedule in self.space if schedule not in known]

    @property
    def open(self) -> bool:
        """Whether there is something to do."""
        return self.broken is None and (self.record is None or bool(self.fresh))

    @property
    def width(self) -> int:
        """Candidates of a slice: fewer where the weights are large, because each has its own."""
        shape = weight_shape(self.workload)
        return SLICE if shape is None else max(1, min(SLICE, _SLICE_BYTES // (4 * math.prod(shape))))

    @property
    def slices(self) -> int:
        """How many are left."""
        return math.ceil(len(self.fresh) / self.width)

    @property
    def promise(self) -> float:
        """Microseconds of the model that the next slice may save, per second spent."""
        assert self.record is not None
        return self.count * self.record.best_us.value * self.expected / max(self.seconds, 1e-3)

    def begin(self, bench: Bench, now: float) -> Record | None:
        """Measure the default; the record, or None where it cannot be run."""
        default = self.space[0]
        try:
            bench.open(self.workload, default)
            us = median_interval(bench.time([default], _ROUNDS)[0])
        except OutError as error:
            self.broken = str(error)
            self.failed.append(f"{self.label}, the schedule without tuning: {error}")
            return None
        self.trials += 1
        self.record = Record(
            workload=key_of(self.workload),
            label=self.label,
            place=self.place,
            best=default,
            default=default,
            best_us=us,
            default_us=us,
            gain=Interval(1.0, 1.0, 1.0),
            space=len(self.space),
            created=now,
        )
        return self.record

    def slice(
        self, bench: Bench, deadline: float, clock: Callable[[], float], wall: Callable[[], float]
    ) -> Record:
        """Try the next candidates; what is known behind them. Ends soon after the deadline."""
        before, started = self.record, clock()
        assert before is not None
        out = dict(before.out)
        default, best = before.default, before.best
        try:
            best_us = default_us = bench.open(self.workload, default)
            if best != default:
                best_us = self._kept_best(bench, best)
                best, best_us = (best, best_us) if best_us < math.inf else (default, default_us)
        except OutError as error:
            self.broken = str(error)
            self.failed.append(f"{self.label}, the schedule without tuning: {error}")
            return before
        if best != before.best:
            out[before.best] = self.failed[-1]
            out.pop(default, None)
        alive = self._built(bench, _spread(self.fresh, self.width), best_us, out, deadline, clock)
        try:
            alive = self._halved(bench, best, alive, out)
            self.record = self._decided(bench, best, alive, out, wall())
        except OutError as error:
            # Which of them it was, nobody knows.
            for schedule in alive:
                self._fail(schedule, f"one of {len(alive)} was lost while they were measured: {error}", out)
            try:
                self.record = self._decided(bench, best, [], out, wall())
            except OutError as again:
                self.broken = str(again)
                self.failed.append(f"{self.label}: {again}")
                return before
        saved = max(0.0, 1.0 - before.gain.value / self.record.gain.value)
        self.expected = (self.expected + saved) / 2.0
        self.seconds = clock() - started
        return self.record

    def _kept_best(self, bench: Bench, best: Schedule) -> float:
        """Microseconds of the best schedule so far; infinite if it does not run any more."""
        try:
            return bench.add(best)
        except OutError as error:
            self.failed.append(f"{self.label}, {describe(best)}: {error}")
            return math.inf

    def _fail(self, schedule: Schedule, reason: str, out: dict[Schedule, str]) -> None:
        out[schedule] = reason
        self.failed.append(f"{self.label}, {describe(schedule)}: {reason}")

    def _built(
        self,
        bench: Bench,
        candidates: Sequence[Schedule],
        best_us: float,
        out: dict[Schedule, str],
        deadline: float,
        clock: Callable[[], float],
    ) -> list[Schedule]:
        """Those that are right and not clearly slower."""
        alive: list[Schedule] = []
        for schedule in candidates:
            if clock() >= deadline:
                break
            self.trials += 1
            try:
                us = bench.add(schedule)
            except OutError as error:
                self._fail(schedule, str(error), out)
                continue
            if us > _CLEARLY * best_us:
                out[schedule] = SLOWER
                bench.drop([schedule])
            else:
                alive.append(schedule)
        return alive

    def _halved(
        self, bench: Bench, best: Schedule, alive: list[Schedule], out: dict[Schedule, str]
    ) -> list[Schedule]:
        """At most one: the fastest of those that are not shown to be slower than the best so far."""
        rounds = _ROUNDS
        while len(alive) > 1:
            reference, *times = bench.time([best, *alive], rounds)
            ratios = [_ratio(reference, each) for each in times]
            ranked = sorted(range(len(alive)), key=lambda index: -ratios[index].value)
            kept = [index for index in ranked[: len(alive) // 2] if ratios[index].high >= 1.0]
            gone = [schedule for index, schedule in enumerate(alive) if index not in kept]
            out.update(dict.fromkeys(gone, SLOWER))
            bench.drop(gone)
            # In the order of the space, which decides ties.
            alive = [alive[index] for index in sorted(kept)]
            rounds *= 2
        return alive

    def _decided(
        self, bench: Bench, best: Schedule, alive: Sequence[Schedule], out: dict[Schedule, str], now: float
    ) -> Record:
        assert self.record is not None
        default = self.record.default
        finalists = list(dict.fromkeys((default, best, *alive)))
        times = dict(zip(finalists, bench.time(finalists, _FINAL_ROUNDS), strict=True))
        for schedule in alive:
            ratio = _ratio(times[best], times[schedule])
            if ratio.low > 1.0 and ratio.value > 1.0 + _WORTH:
                out[best], best = SLOWER, schedule
            else:
                out[schedule] = SLOWER
        gain = Interval(1.0, 1.0, 1.0) if best == default else _ratio(times[default], times[best])
        return Record(
            workload=self.record.workload,
            label=self.label,
            place=self.place,
            best=best,
            default=default,
            best_us=median_interval(times[best]),
            default_us=median_interval(times[default]),
            gain=gain,
            out=out,
            space=len(self.space),
            created=now,
        )


def describe(schedule: Schedule) -> str:
    """For people."""
    return (
        f"schedule {schedule.rows}x{schedule.columns}x{schedule.vectors} "
        f"band {schedule.band} unroll {schedule.unroll}"
    )


def wall_clock() -> float:
    """Seconds since 1970."""
    return time.time()


def _spread(candidates: Sequence[Schedule], width: int) -> Sequence[Schedule]:
    """A slice of them, evenly over the space: neighbours are alike."""
    return candidates[:: max(1, math.ceil(len(candidates) / width))]


def _ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Interval:
    """What slows a whole round down cancels in the ratio of its blocks."""
    return median_interval([first / second for first, second in zip(numerators, denominators, strict=True)])

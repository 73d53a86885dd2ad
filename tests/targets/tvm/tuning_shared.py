"""What the tests of the tuner share: records, and a machine on which trials take the time they are told to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from greencc.core.report import Interval
from greencc.targets._tvm.kernels.template import Schedule
from greencc.targets._tvm.machine import Machine
from greencc.targets._tvm.records import Place, Record
from greencc.targets._tvm.trials import OutError
from greencc.targets._tvm.workload import Dense, Workload

MACHINE = Machine("x86_64-linux-gnu", "x86-64-v3", frozenset({"avx2", "fma"}))
PLACE = Place("x86_64-linux-gnu", "x86-64-v3", ("avx2", "fma"), 1, 1, "0.27.0", 22)


def schedule(number: int) -> Schedule:
    return Schedule(rows=number, columns=1, vectors=1, band=1)


def record(workload: str = "dense-1", best: int = 2, gain: float = 1.5, **changes: object) -> Record:
    values: dict[str, object] = {
        "workload": workload,
        "label": f"label of {workload}",
        "place": PLACE,
        "best": schedule(best),
        "default": schedule(1),
        "best_us": Interval(10.0, 9.0, 11.0),
        "default_us": Interval(10.0 * gain, 9.0 * gain, 11.0 * gain),
        "gain": Interval(gain, gain * 0.9, gain * 1.1),
        "out": {} if best == 1 else {schedule(1): "slower"},
        "space": 4,
        "created": 5.0,
    }
    return Record(**{**values, **changes})  # type: ignore[arg-type]


def workload(number: int) -> Dense:
    """Different ones."""
    return Dense((16, 16 * number))


@dataclass
class Space:
    """A template that knows schedules only."""

    schedules: Sequence[Schedule]

    def default(self, workload: Workload, machine: Machine) -> Schedule:
        return self.schedules[0]

    def space(self, workload: Workload, machine: Machine) -> Sequence[Schedule]:
        return self.schedules


@dataclass
class FakeClock:
    """Seconds that pass only when somebody works."""

    now: float = 100.0

    def __call__(self) -> float:
        return self.now


@dataclass
class FakeBench:
    """Kernels that take what `times` says, by workload and schedule, times a drift that grows with every block.

    Attributes:
        times: Microseconds.
        clock: Moves on: `build` seconds per candidate, and what blocks take.
        out: Candidates that are out, with the reason.
        build: Seconds.
        interrupt_after: Ctrl-C comes with that many candidates built.
        added: All candidates that were built, in order.
        lost: Schedules that end the process when they are timed.
    """

    times: Mapping[Workload, Mapping[Schedule, float]]
    clock: FakeClock
    out: Mapping[Schedule, str] = field(default_factory=dict)
    build: float = 1.0
    interrupt_after: int | None = None
    added: list[tuple[Workload, Schedule]] = field(default_factory=list)
    lost: frozenset[Schedule] = frozenset()
    closed: bool = False
    _workload: Workload | None = None
    _present: set[Schedule] = field(default_factory=set)
    _blocks: int = 0

    def open(self, workload: Workload, default: Schedule) -> float:
        self._workload, self._present = workload, set()
        return self._make(default)

    def add(self, schedule: Schedule) -> float:
        assert self._workload is not None
        if len(self.added) == self.interrupt_after:
            raise KeyboardInterrupt
        self.added.append((self._workload, schedule))
        return self._make(schedule)

    def drop(self, schedules: Sequence[Schedule]) -> None:
        self._present -= set(schedules)

    def time(self, schedules: Sequence[Schedule], rounds: int) -> list[list[float]]:
        assert self._workload is not None
        assert self._present >= set(schedules), "measured without having been built"
        if not self.lost.isdisjoint(schedules):
            self._present -= self.lost
            raise OutError("it crashed with SIGSEGV")
        found: list[list[float]] = [[] for _ in schedules]
        for _ in range(rounds):
            self._blocks += 1
            drift = 1.0 + 0.01 * self._blocks
            for each, times in zip(schedules, found, strict=True):
                times.append(drift * self.times[self._workload][each])
                self.clock.now += 0.002
        return found

    def close(self) -> None:
        self.closed = True

    def _make(self, schedule: Schedule) -> float:
        self.clock.now += self.build
        if schedule in self.out:
            raise OutError(self.out[schedule])
        assert self._workload is not None
        self._present.add(schedule)
        return self.times[self._workload][schedule]


def nothing_to_warn_of() -> Callable[[str], None]:
    def fail(message: str) -> None:
        raise AssertionError(message)

    return fail

"""Fakes: an engine that takes fake time, a machine load, a meter driven by the fake clock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from greencc.core.data import Array, Feeds, TensorSpec
from greencc.core.errors import UnavailableError
from greencc.core.meter import Grade, Reading
from greencc.measure.blocks import Bench
from greencc.measure.clocks import ClockReading
from greencc.measure.thermal import ThermalState


@dataclass
class FakeTime:
    """Seconds that pass only when someone sleeps or an engine runs."""

    now: float = 1000.0
    watts: float = 5.0
    joules: float = 0.0

    def seconds(self) -> float:
        return self.now

    def nanoseconds(self) -> int:
        return round(self.now * 1e9)

    def sleep(self, seconds: float) -> None:
        self.pass_by(seconds, 0.0)

    def pass_by(self, seconds: float, extra_watts: float) -> None:
        self.now += seconds
        self.joules += seconds * (self.watts + extra_watts)


@dataclass
class FakeEngine:
    """Takes `duration(run number)` seconds and `extra_watts` above idle."""

    time: FakeTime
    duration: Callable[[int], float]
    extra_watts: float = 0.0
    seen: list[float] = field(default_factory=list)
    runs: int = 0

    @property
    def inputs(self) -> Sequence[TensorSpec]:
        return ()

    @property
    def outputs(self) -> Sequence[TensorSpec]:
        return ()

    def run(self, feeds: Feeds, outputs: Sequence[str] | None = None) -> dict[str, Array]:
        del outputs
        self.seen.append(float(feeds["x"][0]))
        self.time.pass_by(self.duration(self.runs), self.extra_watts)
        self.runs += 1
        return {}

    def close(self) -> None:
        pass


@dataclass
class FakeLoad:
    """Others use `share` of the machine, as a function of the time."""

    time: FakeTime
    share: Callable[[float], float | None]
    used: float = 0.0
    last: float | None = None
    cpus: int = 2

    def others_seconds(self) -> float | None:
        elapsed = 0.0 if self.last is None else self.time.now - self.last
        share = self.share(self.time.now)
        self.last = self.time.now
        if share is None:
            return None
        self.used += share * elapsed * self.cpus
        return self.used


@dataclass
class FakeMeter:
    """Reads the fake time's joules; fails at the readings in `failing`."""

    time: FakeTime
    grade: Grade = Grade.B
    period_s: float = 0.001
    gain: float = 1.0
    failing: Callable[[int], bool] = lambda number: False
    epoch: Callable[[float], int] = lambda now: 0
    shown: Callable[[float, float], float] = lambda now, joules: joules
    readings: int = 0
    name: str = "fake"
    boundary: str = "test bench"
    uncertainty: float | None = None

    def missing(self) -> str | None:
        return None

    def read(self) -> Reading:
        self.readings += 1
        if self.failing(self.readings):
            raise UnavailableError("the sensor hiccuped")
        joules = self.shown(self.time.now, self.gain * self.time.joules)
        return Reading(self.time.now, {"total": joules}, self.epoch(self.time.now))


@dataclass
class FakeClocks:
    """Clocks that agree, but for `asleep` and `set_by` seconds, as functions of the time."""

    time: FakeTime
    asleep: Callable[[float], float] = lambda now: 0.0
    set_by: Callable[[float], float] = lambda now: 0.0

    def look(self) -> ClockReading:
        now = self.time.now
        boottime = now + self.asleep(now)
        return ClockReading(now, boottime, 1.7e9 + boottime + self.set_by(now))


@dataclass
class FakeThermal:
    """Shows `state` as a function of the time."""

    time: FakeTime
    state: Callable[[float], ThermalState] = lambda now: ThermalState()

    def look(self) -> ThermalState:
        return self.state(self.time.now)


@pytest.fixture
def fake_time() -> FakeTime:
    return FakeTime()


@pytest.fixture
def make_engine(fake_time: FakeTime) -> Callable[..., FakeEngine]:
    def make(duration: float | Callable[[int], float], extra_watts: float = 0.0) -> FakeEngine:
        return FakeEngine(fake_time, duration if callable(duration) else lambda run: duration, extra_watts)

    return make


@pytest.fixture
def make_load(fake_time: FakeTime) -> Callable[..., FakeLoad]:
    def make(share: Callable[[float], float | None] | float | None = 0.0) -> FakeLoad:
        return FakeLoad(fake_time, share if callable(share) else lambda now: share)

    return make


@pytest.fixture
def make_bench(fake_time: FakeTime) -> Callable[..., Bench]:
    """A machine on fake time; options replace its parts."""

    def make(
        *,
        others: FakeLoad | None = None,
        asleep: Callable[[float], float] = lambda now: 0.0,
        set_by: Callable[[float], float] = lambda now: 0.0,
        thermal: Callable[[float], ThermalState] = lambda now: ThermalState(),
    ) -> Bench:
        return Bench(
            clock=fake_time.seconds,
            sleep=fake_time.sleep,
            others=others or FakeLoad(fake_time, lambda now: 0.0),
            clocks=FakeClocks(fake_time, asleep, set_by),
            thermal=FakeThermal(fake_time, thermal),
        )

    return make


@pytest.fixture
def make_meter(fake_time: FakeTime) -> Callable[..., FakeMeter]:
    def make(**options: object) -> FakeMeter:
        return FakeMeter(fake_time, **options)  # type: ignore[arg-type]

    return make


@pytest.fixture
def feeds() -> list[dict[str, Array]]:
    return [{"x": np.array([float(index)])} for index in range(3)]

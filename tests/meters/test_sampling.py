"""The sampler: integration, epochs, traces and its own cost."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import pytest

from greencc.core.errors import UnavailableError
from greencc.core.meter import Grade, PowerSample, Reading
from greencc.meters.sampling import Sampler


@dataclass
class Power:
    """Watts as a function of its own clock; fails where the function gives None."""

    watts: Callable[[float], Mapping[str, float] | None]
    now: float = 0.0
    step: float = 0.0
    name: str = "fake power"
    grade: Grade = Grade.B
    boundary: str = "test bench"
    period_s: float = 0.1
    uncertainty: float | None = None

    def missing(self) -> str | None:
        return None

    def clock(self) -> float:
        return self.now

    def sample(self) -> PowerSample:
        self.now += self.step
        watts = self.watts(self.now)
        if watts is None:
            raise UnavailableError("the rail vanished")
        return PowerSample(self.now, watts)


@dataclass
class Counter:
    joules: float = 0.0
    epoch: int = 0
    now: float = 0.0
    failing: set[int] = field(default_factory=set)
    readings: int = 0
    name: str = "fake counter"
    grade: Grade = Grade.B
    boundary: str = "test bench"
    period_s: float = 0.001
    uncertainty: float | None = None

    def missing(self) -> str | None:
        return None

    def read(self) -> Reading:
        self.readings += 1
        if self.readings in self.failing:
            raise UnavailableError("the counter hiccuped")
        self.now += 1.0
        self.joules += 3.0
        return Reading(self.now, {"total": self.joules}, self.epoch)


def test_power_is_integrated_by_trapezoids() -> None:
    power = Power(lambda now: {"a": 2.0 * now, "b": 1.0}, step=0.5)
    sampler = Sampler(power, clock=power.clock)
    readings = [sampler.read() for _ in range(5)]
    assert readings[0].joules == {"a": 0.0, "b": 0.0}
    # The integral of 2t from 0.5 to 2.5; trapezoids are exact on a straight line.
    assert readings[-1].joules["a"] == pytest.approx(2.5**2 - 0.5**2)
    assert readings[-1].joules["b"] == pytest.approx(2.0)
    assert sampler.trace()[-1].watts == pytest.approx({"a": 4.5, "b": 1.0})


def test_a_failure_starts_a_new_epoch() -> None:
    power = Power(lambda now: None if now == 3.0 else {"a": 1.0}, step=1.0, period_s=1.0)
    sampler = Sampler(power, clock=power.clock)
    assert [sampler.read().epoch for _ in range(2)] == [0, 0]
    with pytest.raises(UnavailableError, match="vanished"):
        sampler.read()
    after = sampler.read()
    assert (after.epoch, after.joules) == (1, {"a": 0.0})
    assert sampler.trace()[-1].watts is None


def test_a_late_sample_leaves_a_gap() -> None:
    power = Power(lambda now: {"a": 1.0}, step=0.1)
    sampler = Sampler(power, clock=power.clock)
    sampler.read()
    assert sampler.read().epoch == 0
    power.step = 60.0
    reading = sampler.read()
    assert (reading.epoch, reading.joules) == (1, {"a": 0.0})


def test_a_domain_that_comes_or_goes_is_refused() -> None:
    power = Power(lambda now: {"a": 1.0, "b": 1.0} if now < 2.0 else {"a": 1.0}, step=1.0, period_s=1.0)
    sampler = Sampler(power, clock=power.clock)
    sampler.read()
    with pytest.raises(UnavailableError, match="came or went"):
        sampler.read()


def test_a_counter_is_passed_on_with_its_epochs() -> None:
    counter = Counter(failing={3})
    sampler = Sampler(counter)
    assert [sampler.read().joules["total"] for _ in range(2)] == [3.0, 6.0]
    with pytest.raises(UnavailableError):
        sampler.read()
    counter.epoch = 2
    assert sampler.read().epoch == 3
    assert [point.watts for point in sampler.trace()] == [None, {"total": 3.0}, None]


@dataclass
class Stepping(Counter):
    """100 W, counted in steps of 10 J each tenth of a second."""

    period_s: float = 0.1

    def read(self) -> Reading:
        return Reading(self.now, {"total": 10.0 * int(self.now / 0.1 + 1e-9)}, self.epoch)


def test_watts_of_a_stepping_counter_are_its_power_and_joules_stay_exact() -> None:
    counter = Stepping()
    sampler = Sampler(counter)
    # The thread reads every 0.1 s with some jitter; block edges read a few milliseconds after it.
    jitter = (0.0, 0.004, -0.003, 0.006, -0.004)
    for number in range(400):
        counter.now = 1.05 + 0.1 * number + 5.0 * jitter[number % 5]
        at_thread = sampler.read()
        counter.now += 0.005
        at_edge = sampler.read()
        assert 0.0 <= at_edge.joules["total"] - at_thread.joules["total"] <= 10.0
    points = sampler.trace()
    assert len(points) == 800
    known = [point.watts["total"] for point in points if point.watts is not None]
    assert len(known) > 780
    assert 80.0 <= min(known) <= max(known) <= 120.0
    assert points[-1].joules["total"] == 10.0 * int(counter.now / 0.1)


def test_watts_of_an_epoch_are_not_carried_into_the_next() -> None:
    counter = Stepping()
    sampler = Sampler(counter)
    for counter.now in (0.0, 1.0, 1.01):
        sampler.read()
    counter.epoch = 1
    for counter.now in (1.02, 1.03, 3.02):
        sampler.read()
    watts = [None if point.watts is None else point.watts["total"] for point in sampler.trace()]
    assert watts == [None, 100.0, 100.0, None, None, pytest.approx(100.0)]


@pytest.mark.parametrize(("period", "bridged", "gap"), [(0.1, 0.4, 0.6), (1.0, 4.5, 5.5)])
def test_no_more_than_about_five_intervals_are_bridged(period: float, bridged: float, gap: float) -> None:
    power = Power(lambda now: {"a": 1.0}, step=bridged, period_s=period)
    sampler = Sampler(power, clock=power.clock)
    assert [sampler.read().epoch for _ in range(3)] == [0, 0, 0]
    power.step = gap
    assert sampler.read().epoch == 1
    patient = Sampler(Power(lambda now: {"a": 1.0}, step=gap, period_s=period), gap_s=2.0 * gap)
    assert [patient.read().epoch for _ in range(3)] == [0, 0, 0]


def test_the_thread_survives_errors_that_nobody_foresaw() -> None:
    power = Power(lambda now: {"a": 1.0})
    calls = 0

    def sample() -> PowerSample:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyError("rail")
        return PowerSample(time.monotonic(), {"a": 1.0})

    power.sample = sample  # type: ignore[method-assign]
    with Sampler(power, interval_s=0.01) as sampler:
        while calls < 4:
            time.sleep(0.005)
    assert [failure.message for failure in sampler.failures()] == ["KeyError: 'rail'"]
    assert sampler.trace()[-1].epoch == 1


def test_the_sensor_is_never_asked_twice_at_once() -> None:
    power = Power(lambda now: {"a": 1.0})
    inside, waiting, overlapped = threading.Event(), threading.Event(), False

    def missing() -> str | None:
        inside.set()
        waiting.wait(0.2)
        inside.clear()
        return None

    def sample() -> PowerSample:
        nonlocal overlapped
        overlapped |= inside.is_set()
        return PowerSample(time.monotonic(), {"a": 1.0})

    power.missing, power.sample = missing, sample  # type: ignore[method-assign]
    with Sampler(power, interval_s=0.01) as sampler:
        assert sampler.missing() is None
        sampler.read()
    assert not overlapped


def test_the_thread_does_not_repeat_a_reading_just_taken() -> None:
    counter = Counter()
    sampler = Sampler(counter, interval_s=60.0)
    sampler.read()
    with sampler:
        sampler.read()
    assert counter.readings == 2


def test_the_thread_watches_counts_its_cost_and_survives_failures() -> None:
    start = time.monotonic()
    power = Power(lambda now: {"a": 1.0})
    calls = 0

    def sample() -> PowerSample:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise UnavailableError("the rail vanished")
        return PowerSample(time.monotonic(), {"a": 1.0})

    power.sample = sample  # type: ignore[method-assign]
    with Sampler(power, interval_s=0.01) as sampler:
        while calls < 6:
            time.sleep(0.005)
    assert sampler.cost().samples >= 5
    assert 0.0 <= sampler.cost().core_share <= 1.0
    assert sampler.cost().wall_seconds <= time.monotonic() - start
    assert [failure.message for failure in sampler.failures()] == ["the rail vanished"]
    assert sampler.trace()[-1].epoch == 1
    seen = calls
    time.sleep(0.03)
    assert calls == seen, "the thread has ended"


def test_watching_starts_once() -> None:
    power = Power(lambda now: {"a": 1.0})
    sampler = Sampler(power, interval_s=0.01)
    sampler.start()
    sampler.start()
    sampler.stop()
    sampler.stop()

"""What disturbs a measurement is found, named and counted, and never in a figure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from greencc.core.errors import UnavailableError
from greencc.core.meter import Reading
from greencc.measure.blocks import Discard, energy_between
from greencc.measure.energy import EnergyResult, measure_energy
from greencc.measure.protocols import EnergyProtocol
from greencc.measure.thermal import ThermalState

Make = Callable[..., Any]
PROTOCOL = EnergyProtocol("test", 5.0, 1.0, rounds=3, target=0.02, limit_seconds=60.0, warm_up_seconds=0.0)


@pytest.fixture
def measure(make_engine: Make, make_meter: Make, make_bench: Make, feeds: Any) -> Callable[..., EnergyResult]:
    def run(*, meter: Any = None, bench: Any = None, protocol: EnergyProtocol = PROTOCOL) -> EnergyResult:
        return measure_energy(
            make_engine(0.1, 20.0),
            make_engine(0.1, 20.0),
            feeds,
            meter or make_meter(),
            protocol,
            bench=bench or make_bench(),
        )

    return run


def notes(result: EnergyResult) -> str:
    windows = [*result.blocks, *result.idle_parts]
    return "; ".join(each.note for each in windows if each.note)


def untouched(result: EnergyResult) -> bool:
    """Whether the figures are what they would be without the disturbance."""
    assert result.comparison is not None
    return bool(result.comparison.baseline.value == pytest.approx(2000.0))


def test_a_failed_reading_costs_its_round(measure: Make, make_meter: Make) -> None:
    # Ten readings are the idle window's; the 13th is the begin of the second block.
    result = measure(meter=make_meter(failing=lambda number: number == 13))
    assert result.discarded == {Discard.COMPANION.value: 1, Discard.FAILED.value: 1}
    assert (result.rounds, result.problem) == (3, None)
    assert untouched(result)
    assert notes(result) == "the sensor hiccuped"


def test_a_meter_that_dies_leaves_what_was_measured(measure: Make, make_meter: Make) -> None:
    result = measure(
        meter=make_meter(failing=lambda number: number > 30), protocol=replace(PROTOCOL, target=None)
    )
    assert result.rounds == 2
    assert result.problem == "fake failed 3 times in a row: the sensor hiccuped"
    assert result.stopped.startswith("the meter failed; the half-width of the ratio is ")
    assert untouched(result)
    assert any("one side only" in warning for warning in result.warnings)
    assert {part.which for part in result.idle_parts} == {"idle before"}


def test_a_meter_that_dies_at_once_gives_no_figure(measure: Make, make_meter: Make) -> None:
    result = measure(meter=make_meter(failing=lambda number: number > 12))
    assert (result.comparison, result.rounds) == (None, 0)
    assert "failed 3 times in a row" in result.problem
    assert result.meter_failed
    # The one block before it is kept, marked.
    assert [block.discarded for block in result.blocks if block.joules] == [Discard.COMPANION]


def test_readings_of_two_epochs_are_not_subtracted(measure: Make, make_meter: Make, fake_time: Any) -> None:
    begin = fake_time.now
    result = measure(meter=make_meter(epoch=lambda now: int(now - begin > 6.5)))
    assert result.discarded[Discard.GAP.value] == 1
    assert "does not subtract" in notes(result)
    assert untouched(result)


def test_a_counter_that_stands_still_is_stuck(measure: Make, make_meter: Make, fake_time: Any) -> None:
    begin = fake_time.now
    frozen = make_meter(shown=lambda now, joules: min(joules, 60.0) if now - begin < 12.0 else joules)
    result = measure(meter=frozen)
    assert result.discarded[Discard.STUCK.value] >= 1
    assert "the meter counted nothing in" in notes(result)


def test_a_meter_that_always_shows_the_same_power_is_stuck(measure: Make, make_meter: Make) -> None:
    result = measure(meter=make_meter(shown=lambda now, joules: 7.0 * now, period_s=0.0))
    assert result.comparison is None
    assert result.problem == "fake is stuck: it shows the same power at rest and under load"


def test_a_meter_that_freezes_on_the_way_is_stuck(measure: Make, make_meter: Make, fake_time: Any) -> None:
    """From the second round on it shows 12 W, whatever runs."""
    frozen: list[float] = []

    def shown(now: float, joules: float) -> float:
        if now - begin < 9.5:
            frozen[:] = [now, joules]
            return joules
        return frozen[1] + 12.0 * (now - frozen[0])

    begin = fake_time.now
    result = measure(meter=make_meter(shown=shown))
    assert result.comparison is None
    assert result.problem == "fake got stuck: in the last round and at rest after it, it shows the same power"


def test_a_suspended_machine_is_named(measure: Make, make_bench: Make, fake_time: Any) -> None:
    begin = fake_time.now
    result = measure(bench=make_bench(asleep=lambda now: 3600.0 if now - begin > 7.0 else 0.0))
    assert result.discarded[Discard.SUSPENDED.value] == 1
    assert "suspended for 3600.0 s" in notes(result)
    assert untouched(result)


@pytest.mark.parametrize(("step", "word"), [(5.0, "forward"), (-5.0, "back")])
def test_a_clock_that_was_set_is_named(
    measure: Make, make_bench: Make, fake_time: Any, step: float, word: str
) -> None:
    begin = fake_time.now
    result = measure(bench=make_bench(set_by=lambda now: step if now - begin > 7.0 else 0.0))
    assert result.discarded[Discard.CLOCK.value] == 1
    assert f"set {word} by 5.0 s" in notes(result)


def test_a_clock_that_is_slewed_is_left_alone(measure: Make, make_bench: Make, fake_time: Any) -> None:
    begin = fake_time.now
    result = measure(bench=make_bench(set_by=lambda now: 5e-4 * (now - begin)))
    assert result.discarded == {}


def test_busy_neighbours_cost_their_blocks(
    measure: Make, make_bench: Make, make_load: Make, fake_time: Any
) -> None:
    begin = fake_time.now
    busy = make_load(lambda now: 0.5 if 8.0 < now - begin < 9.5 else 0.0)
    result = measure(bench=make_bench(others=busy))
    assert 1 <= result.discarded[Discard.BUSY.value] <= 2
    assert "% of the CPU" in notes(result)
    assert result.rounds == 3


def test_a_busy_idle_window_is_measured_again(
    measure: Make, make_bench: Make, make_load: Make, fake_time: Any
) -> None:
    begin = fake_time.now
    busy = make_load(lambda now: 0.5 if now - begin < 1.5 else 0.0)
    result = measure(bench=make_bench(others=busy))
    before = [part for part in result.idle_parts if part.which == "idle before"]
    assert [part.discarded for part in before] == [Discard.BUSY] + [None] * 5


def test_a_machine_that_is_always_busy_gives_no_figure(
    measure: Make, make_bench: Make, make_load: Make
) -> None:
    result = measure(bench=make_bench(others=make_load(0.9)))
    assert result.comparison is None
    assert result.problem.startswith("only 0 rounds of blocks were undisturbed within 60 s")
    assert "another process was busy: " in result.problem
    assert not result.meter_failed


def test_without_a_quiet_moment_before_and_after_energy_is_gross(
    measure: Make, make_bench: Make, make_load: Make, fake_time: Any
) -> None:
    begin = fake_time.now
    busy = make_load(lambda now: 0.5 if now - begin < 10.0 or now - begin > 23.0 else 0.0)
    result = measure(bench=make_bench(others=busy))
    assert result.idle is None
    assert "the idle power is not known: energy is gross" in result.warnings
    assert "gross" in result.comparison.baseline.method


@pytest.mark.parametrize(
    ("cold", "hot", "message"),
    [
        (ThermalState(throttles=3), ThermalState(throttles=5), "throttled 2 times"),
        (ThermalState(limit_mhz=3000.0), ThermalState(limit_mhz=1800.0), "limit fell from 3000 to 1800 MHz"),
        (ThermalState(clock_mhz=3000.0), ThermalState(clock_mhz=2000.0), "clock fell from 3000 to 2000 MHz"),
        (ThermalState(), ThermalState(tripped="x86 is at 100 degrees"), "x86 is at 100 degrees"),
    ],
    ids=["counter", "limit", "clock", "trip point"],
)
def test_throttling_is_named(
    measure: Make, make_bench: Make, fake_time: Any, cold: ThermalState, hot: ThermalState, message: str
) -> None:
    begin = fake_time.now
    result = measure(bench=make_bench(thermal=lambda now: hot if 8.0 < now - begin < 9.5 else cold))
    assert result.discarded[Discard.THROTTLED.value] >= 1
    assert message in notes(result)
    assert result.rounds == 3


def test_energy_between_readings() -> None:
    first = Reading(1.0, {"a": 1.0, "b": 2.0})
    assert energy_between(first, Reading(2.0, {"a": 1.5, "b": 4.0})).total == pytest.approx(2.5)
    for second, message in [
        (Reading(2.0, {"a": 1.5, "b": 4.0}, epoch=1), "gap"),
        (Reading(2.0, {"a": 1.5}), "came or went"),
        (Reading(1.0, {"a": 1.5, "b": 4.0}), "time stood still"),
        (Reading(2.0, {"a": 0.5, "b": 4.0}), "counted"),
        (Reading(2.0, {"a": float("nan"), "b": 4.0}), "counted nan"),
    ]:
        with pytest.raises(UnavailableError, match=message):
            energy_between(first, second)

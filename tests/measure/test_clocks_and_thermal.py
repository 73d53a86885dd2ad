"""The clock watch, and what the machine shows of temperature and throttling."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from greencc.measure.clocks import ClockReading, SystemClocks, stepped, suspended
from greencc.measure.loadgen import Arrivals, Load
from greencc.measure.thermal import SystemThermal, ThermalState, hottest, throttled
from greencc.measure.warm_up import warm_up

Make = Callable[..., Any]


def test_clocks_that_agree() -> None:
    before, after = ClockReading(1.0, 5.0, 1e9), ClockReading(11.0, 15.0, 1e9 + 10.004)
    assert (suspended(before, after), stepped(before, after)) == (None, None)


def test_a_suspend_is_no_step() -> None:
    before, after = ClockReading(1.0, 5.0, 1e9), ClockReading(11.0, 75.0, 1e9 + 70.0)
    assert suspended(before, after) == "the machine was suspended for 60.0 s"
    assert stepped(before, after) is None


def test_a_step() -> None:
    before, after = ClockReading(1.0, 5.0, 1e9), ClockReading(11.0, 15.0, 1e9 - 3590.0)
    assert stepped(before, after) == "the wall clock was set back by 3600.0 s"


def test_the_clocks_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = SystemClocks().look(), SystemClocks().look()
    assert first.monotonic <= second.monotonic
    assert suspended(first, second) is None
    # Without a boot time clock a suspend is not seen, and nothing breaks.
    monkeypatch.delattr(time, "CLOCK_BOOTTIME")
    reading = SystemClocks().look()
    assert reading.boottime == pytest.approx(reading.monotonic, abs=60.0)


@pytest.fixture
def board(tmp_path: Path) -> Path:
    """The file system root of a machine with two zones and two processors."""
    files = {
        "sys/class/thermal/thermal_zone0/type": "acpitz",
        "sys/class/thermal/thermal_zone0/temp": "41000",
        "sys/class/thermal/thermal_zone1/type": "x86_pkg_temp",
        "sys/class/thermal/thermal_zone1/temp": "73500",
        "sys/class/thermal/thermal_zone1/trip_point_0_type": "passive",
        "sys/class/thermal/thermal_zone1/trip_point_0_temp": "-274000",
        "sys/class/thermal/thermal_zone1/trip_point_1_type": "critical",
        "sys/class/thermal/thermal_zone1/trip_point_1_temp": "100000",
        "sys/class/thermal/thermal_zone2/temp": "--7",
        "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": "2",
        "sys/devices/system/cpu/cpu0/thermal_throttle/package_throttle_count": "1",
        "sys/devices/system/cpu/cpu1/thermal_throttle/core_throttle_count": "garbage",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq": "3400000",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "1200000",
        "sys/devices/system/cpu/cpu1/cpufreq/scaling_cur_freq": "3300000",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return tmp_path


def test_what_a_machine_shows(board: Path) -> None:
    state = SystemThermal(board).look()
    assert state == ThermalState(73.5, 3, None, 3400.0, 3300.0)
    assert hottest(board) == 73.5


def test_a_trip_point_that_is_reached(board: Path) -> None:
    (board / "sys/class/thermal/thermal_zone1/temp").write_text("100000\n")
    state = SystemThermal(board).look()
    assert state.tripped == "x86_pkg_temp is at 100 degrees Celsius, where throttling begins"
    assert throttled(state, state) == state.tripped


def test_a_machine_that_shows_nothing(tmp_path: Path) -> None:
    state = SystemThermal(tmp_path).look()
    assert state == ThermalState()
    assert throttled(state, state, 3000.0) is None


def test_turbo_bins_are_no_throttling() -> None:
    assert throttled(ThermalState(clock_mhz=3400.0), ThermalState(clock_mhz=2700.0), 3400.0) is None
    assert throttled(ThermalState(throttles=7), ThermalState(throttles=7)) is None


def test_warm_up_ends_when_the_temperature_stands_still(
    make_engine: Make, make_bench: Make, feeds: Any
) -> None:
    engines = make_engine(0.1), make_engine(0.1)
    begin = make_bench().clock()
    # Rises by 0.5 K a second for 20 s.
    bench = make_bench(thermal=lambda now: ThermalState(celsius=40.0 + 0.5 * min(now - begin, 20.0)))
    found = warm_up(engines, feeds, Load(), bench, window=30.0, limit=300.0)
    assert found.steady
    assert found.seconds == pytest.approx(49.0, abs=2.0)
    assert found.why.startswith("the temperature moved")
    assert min(engine.runs for engine in engines) > 200


def test_warm_up_keeps_to_a_low_rate(make_engine: Make, make_bench: Make, feeds: Any, fake_time: Any) -> None:
    engine = make_engine(0.1)
    begin = fake_time.now
    warm_up((engine,), feeds, Load(Arrivals.FIXED, 0.1), make_bench(), window=30.0, limit=60.0)
    assert engine.runs == 3
    assert fake_time.now - begin == pytest.approx(30.0)


def test_warm_up_ends_at_the_limit(make_engine: Make, make_bench: Make, feeds: Any) -> None:
    bench = make_bench(thermal=lambda now: ThermalState(celsius=now / 10.0))
    found = warm_up((make_engine(0.1),), feeds, Load(), bench, window=30.0, limit=60.0)
    assert (found.steady, found.seconds) == (False, pytest.approx(60.0, abs=1.2))

"""The energy of a compile and its break-even count."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest

from greencc.compiler import CompileOptions
from greencc.compiler.measurement import Measurement
from greencc.compiler.session import Session
from greencc.compiler.spending import account
from greencc.core.engine import Device
from greencc.core.meter import Grade, Reading
from greencc.core.report import BreakEven, CompileInfo, Energy, Figures, Interval, Latency, Ratio
from greencc.meters.model import OperationCounts
from greencc.meters.window import Window
from greencc.targets import CpuTarget

DEVICE = Device("test", {"cpu": "test", "physical_cores": "2", "threads": "2"}, "0")
ONE = Interval(1.0, 1.0, 1.0)
NOTHING = OperationCounts({}, 0.0)


class Counter:
    """A meter that counts 100 J between readings."""

    name, grade, boundary, period_s, uncertainty = "counter", Grade.B, "package-0", 0.0, None
    epochs: ClassVar[tuple[int, ...]] = (0,)

    def __init__(self) -> None:
        self.readings = 0

    def missing(self) -> None:
        return None

    def read(self) -> Reading:
        self.readings += 1
        epoch = self.epochs[min(self.readings, len(self.epochs)) - 1]
        return Reading(float(self.readings), {"package-0": 100.0 * self.readings}, epoch)


class Restarted(Counter):
    epochs = (0, 1)


def session(tmp_path: Path, window: Window | None) -> Session:
    return Session(CompileOptions(cache=False), CpuTarget(), tmp_path, window=window)


def measured(
    before: Energy | None, after: Energy | None, ratio: Interval | None, clean: bool = True
) -> Measurement:
    figures = [
        Figures(Latency(median, median, median, 10), energy, 1, None, None)
        for median, energy in ((20.0, before), (10.0, after))
    ]
    return Measurement(*figures, Ratio(Interval(2.0, 1.9, 2.1), ratio, ONE), {"clean": clean})


def energy(value: float, low: float, high: float, grade: str = "B", gross: float | None = None) -> Energy:
    return Energy(value, low, high, grade, "package-0", "test", gross)


METERED = measured(energy(100.0, 98.0, 102.0), energy(50.0, 49.0, 51.0), Interval(2.0, 1.96, 2.04))


def accounted(tmp_path: Path, found: Measurement, meter: Counter | None) -> CompileInfo:
    window = Window(lambda: [] if meter is None else [meter])
    return account(session(tmp_path, window), DEVICE, found, (NOTHING, NOTHING))


def repaid(info: CompileInfo) -> BreakEven:
    assert info.break_even is not None
    return info.break_even


def test_metered(tmp_path: Path) -> None:
    info = accounted(tmp_path, METERED, Counter())
    assert info.energy_j is not None
    assert (info.energy_j.value, info.energy_j.grade) == (100.0, "B")
    count = repaid(info).inferences
    assert count is not None
    # 100 J at 50 mJ saved; [98 x (1 - 1/1.96), 102 x (1 - 1/2.04)] saved at the ends.
    assert count.value == pytest.approx(2000)
    assert count.low == pytest.approx(1e5 / (102 * (1 - 1 / 2.04)))
    assert count.high == pytest.approx(1e5 / (98 * (1 - 1 / 1.96)))
    assert repaid(info).reason == "measured, grade B"


def test_estimated_from_cpu_time_and_by_one_model(tmp_path: Path) -> None:
    found = measured(energy(100.0, 20.0, 500.0, "D"), energy(50.0, 10.0, 250.0, "D"), Interval(2.0, 1.9, 2.1))
    info = accounted(tmp_path, found, None)
    assert info.energy_j is not None
    assert info.energy_j.grade == "D"
    assert "CPU time" in info.energy_j.method
    count = repaid(info).inferences
    assert count is not None
    # With the same coefficients on both sides; apart, the ends would be those of the two intervals.
    apart = info.energy_j.high / info.energy_j.low * 500.0 / 20.0
    assert count.high / count.low < 0.2 * apart
    assert "same model" in repaid(info).reason


@pytest.mark.parametrize(
    "ratio",
    [Interval(1.02, 0.97, 1.08), Interval(1.0, 1.0, 1.0), Interval(0.8, 0.7, 0.9), Interval(1.5, 1.0, 2.0)],
)
def test_an_interval_that_does_not_clear_zero_shows_nothing(tmp_path: Path, ratio: Interval) -> None:
    info = accounted(tmp_path, replace(METERED, ratio=replace(METERED.ratio, energy=ratio)), Counter())
    assert repaid(info) == BreakEven(None, "no saving shown")


def test_net_energy_that_may_be_below_zero_shows_nothing(tmp_path: Path) -> None:
    found = measured(
        energy(1.0, -1.0, 3.0, gross=20.0), energy(0.5, -1.5, 2.5, gross=18.0), Interval(1.1, 1.05, 1.2)
    )
    assert repaid(accounted(tmp_path, found, Counter())).inferences is None


def test_where_net_is_lost_the_saving_is_that_of_gross_energy(tmp_path: Path) -> None:
    found = measured(energy(20.0, 19.0, 21.0), energy(10.0, 9.0, 11.0), Interval(2.0, 2.0, 2.0))
    count = repaid(accounted(tmp_path, found, Counter())).inferences
    assert count is not None
    assert count.value == pytest.approx(1e5 / 10.0)


def test_nothing_is_claimed_on_a_busy_machine(tmp_path: Path) -> None:
    busy = replace(METERED, conditions={"clean": False})
    assert "other processes" in repaid(accounted(tmp_path, busy, Counter())).reason


def test_nothing_is_claimed_of_energy_that_rests_on_part_of_the_measurement(tmp_path: Path) -> None:
    part = replace(METERED, conditions={"energy_problem": "the rail vanished"})
    assert "part of the measurement" in repaid(accounted(tmp_path, part, Counter())).reason


@pytest.mark.parametrize("side", ["baseline", "artifact", "ratio"])
def test_what_is_not_known_is_not_made_up(tmp_path: Path, side: str) -> None:
    part = getattr(METERED, side)
    empty = replace(part, energy=None) if side == "ratio" else replace(part, energy_mj=None)
    assert repaid(accounted(tmp_path, replace(METERED, **{side: empty}), Counter())).inferences is None


def test_readings_that_do_not_subtract_are_no_measurement(tmp_path: Path) -> None:
    info = accounted(tmp_path, METERED, Restarted())
    assert info.energy_j is not None
    assert info.energy_j.grade == "D"


def test_without_a_window_nothing_is_said(tmp_path: Path) -> None:
    info = account(session(tmp_path, None), DEVICE, METERED, (None, None))
    assert (info.energy_j, info.break_even) == (None, None)


def test_what_the_cache_brought_is_named(tmp_path: Path) -> None:
    work = session(tmp_path, Window(lambda: [Counter()]))
    work.cache.hits = 3
    info = account(work, DEVICE, METERED, (NOTHING, NOTHING))
    assert info.energy_j is not None
    assert "this run alone: 3 results of earlier runs came from the cache" in info.energy_j.method

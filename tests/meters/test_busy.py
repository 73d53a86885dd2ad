"""Energy from CPU time, and how many inferences pay it back."""

from __future__ import annotations

import pytest

from greencc.core.report import Interval
from greencc.meters.busy import BusyTime, estimate_busy, inferences_to_repay
from greencc.meters.model import DevicePower, OperationCounts, Range, Workload

POWER = DevicePower(Range(10.0, 10.0, 10.0), "test")
WIDE = DevicePower(Range(1.0, 10.0, 100.0), "test")


def work(seconds: float) -> Workload:
    return Workload(OperationCounts({}, 0.0), seconds)


@pytest.mark.parametrize(
    ("facts", "cores"),
    [
        ({"physical_cores": "4", "threads": "2"}, 4),
        ({"threads": "2"}, 2),
        ({"physical_cores": "0"}, 1),
        ({"physical_cores": "many"}, 1),
        ({}, 1),
    ],
)
def test_cores_come_from_the_device(facts: dict[str, str], cores: int) -> None:
    assert BusyTime.of(10.0, 5.0, facts).cores == cores


def test_load_is_at_most_one() -> None:
    assert BusyTime(10.0, 10.0, 2).load == 0.5
    assert BusyTime(10.0, 100.0, 2).load == 1.0
    assert BusyTime.of(10.0, -0.1, {}).load == 0.0


def test_the_estimate_lies_between_steady_load_and_all_or_nothing() -> None:
    energy = estimate_busy(BusyTime(100.0, 100.0, 2), POWER)
    # 10 W x 100 s x (idle + (1 - idle) x a): idle 0.05, 0.1, 0.3 and a = 0.5^3, 0.5^2, 0.5.
    assert energy.value == pytest.approx(1000 * (0.1 + 0.9 * 0.25))
    assert energy.low == pytest.approx(1000 * (0.05 + 0.95 * 0.125))
    assert energy.high == pytest.approx(1000 * (0.3 + 0.7 * 0.5))
    assert energy.grade == "D"
    assert "estimated" in energy.method
    assert "100 s of CPU time" in energy.method


def test_an_idle_process_still_takes_the_idle_power() -> None:
    assert estimate_busy(BusyTime(100.0, 0.0, 2), POWER).value == pytest.approx(100.0)


def test_break_even_by_hand() -> None:
    busy = BusyTime(100.0, 100.0, 1)
    one = Interval(2.0, 2.0, 2.0)
    found = inferences_to_repay(busy, work(0.02), work(0.01), POWER, 1.0, one)
    assert found is not None
    # 1 kJ x (0.1 + 0.9); an inference of 10 ms less saves 10 W x (0.1 + 0.9 x 0.8) x 10 ms = 82 mJ.
    assert found.value == pytest.approx(1000 / 0.082)
    assert found.low <= found.value <= found.high


def test_design_power_cancels() -> None:
    """Both sides have it, however uncertain: the count is as sure as with a known one."""
    busy = BusyTime(100.0, 100.0, 1)
    ratio = Interval(2.0, 1.9, 2.1)
    known = inferences_to_repay(busy, work(0.02), work(0.01), POWER, 1.0, ratio)
    unknown = inferences_to_repay(busy, work(0.02), work(0.01), WIDE, 1.0, ratio)
    assert known is not None
    assert unknown is not None
    assert (unknown.low, unknown.high) == pytest.approx((known.low, known.high))


def test_no_saving_no_count() -> None:
    busy = BusyTime(100.0, 100.0, 1)
    for ratio in (Interval(1.1, 0.9, 1.3), Interval(1.0, 1.0, 1.0), Interval(0.5, 0.4, 0.6)):
        assert inferences_to_repay(busy, work(0.02), work(0.02 / ratio.value), POWER, 1.0, ratio) is None

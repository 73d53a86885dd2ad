"""Verdicts on the limits of a budget."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from greencc.core.report import Energy, Latency
from greencc.core.report_plan import LimitVerdict
from greencc.planner.assess import assess, quantile_interval
from greencc.planner.budget import parse_budget

LATENCY = Latency(median=10.0, p95=12.0, p99=15.0, runs=1000, samples=tuple(np.linspace(9.0, 15.2, 500)))
MEASURED = Energy(30.0, 28.0, 32.0, "B", "VDD_IN", "measured", gross=50.0, gross_low=47.0, gross_high=53.0)
ESTIMATED = Energy(50.0, 30.0, 90.0, "D", "CPU package + DRAM (estimated)", "estimated, gross")


def verdict(text: str, **changed: Any) -> LimitVerdict:
    given: dict[str, Any] = {"latency": LATENCY, "energy": MEASURED, "size_bytes": 1000, "macs": 5e6}
    (limit,) = parse_budget(text)
    return assess(limit, **(given | changed))


@pytest.mark.parametrize(
    ("text", "quantity", "unit", "allowed", "found", "met"),
    [
        ("1KB", "size", "bytes", 1000.0, 1000.0, True),
        ("0.999KB", "size", "bytes", 999.0, 1000.0, False),
        ("5MMACs", "macs", "MACs", 5e6, 5e6, True),
        ("4MMACs", "macs", "MACs", 4e6, 5e6, False),
        ("12ms p50", "latency", "ms", 12.0, 10.0, True),
        ("12ms", "latency", "ms", 12.0, 12.0, True),
        ("12ms p99", "latency", "ms", 12.0, 15.0, False),
        ("30mJ", "energy", "mJ", 30.0, 30.0, True),
        ("29mJ", "energy", "mJ", 29.0, 30.0, False),
        ("5W", "power", "W", 5.0, 5.0, True),
        ("4.9W", "power", "W", 4.9, 5.0, False),
    ],
)
def test_what_is_found(text: str, quantity: str, unit: str, allowed: float, found: float, met: bool) -> None:
    got = verdict(text)
    assert (got.quantity, got.unit, got.allowed) == (quantity, unit, allowed)
    assert got.found == pytest.approx(found)
    assert got.met is met
    assert got.sure in (met, False)


def test_counts_have_no_interval_and_are_sure() -> None:
    size = verdict("2KB")
    assert (size.low, size.high, size.sure, size.grade) == (None, None, True, None)
    none = verdict("5MMACs", macs=None)
    assert (none.found, none.met, none.sure, none.note) == (None, False, False, "not counted")


def test_a_limit_inside_the_interval_is_met_but_not_sure() -> None:
    inside, above = verdict("31mJ"), verdict("33mJ")
    assert (inside.met, inside.sure) == (True, False)
    assert (above.met, above.sure) == (True, True)
    assert (above.low, above.high, above.grade) == (28.0, 32.0, "B")
    assert "measured: VDD_IN" in above.note


def test_power_flat_out_is_gross_energy_over_time() -> None:
    got = verdict("6W")
    assert (got.found, got.low, got.high) == pytest.approx((5.0, 4.7, 5.3))
    assert "flat out" in got.note


def test_power_at_a_rate_is_idle_and_what_inferences_add() -> None:
    got = verdict("3W", rate=20.0, idle_watts=2.0)
    assert (got.found, got.low, got.high) == pytest.approx((2.6, 2.56, 2.64))
    assert got.met
    assert got.sure
    assert "at 20/s, 2 W idle" in got.note
    gross = verdict("3W", rate=20.0, idle_watts=2.0, energy=ESTIMATED)
    assert (gross.found, gross.low, gross.high) == pytest.approx((2.6, 2.2, 3.4))
    assert (gross.met, gross.sure) == (True, False)


def test_at_full_rate_both_meanings_of_power_agree() -> None:
    assert verdict("9W", rate=100.0, idle_watts=2.0).found == pytest.approx(verdict("9W").found)


def test_a_rate_that_is_not_kept_up_with_is_not_met() -> None:
    got = verdict("50W", rate=101.0, idle_watts=2.0)
    assert (got.met, got.sure) == (False, False)
    assert "does not keep up with 101/s" in got.note


def test_without_an_idle_power_the_interval_reaches_to_flat_out() -> None:
    got = verdict("3W", rate=20.0, energy=ESTIMATED)
    assert (got.found, got.low, got.high) == pytest.approx((1.0, 0.6, 9.0))
    assert (got.met, got.sure) == (True, False)
    assert "the idle power is not known" in got.note
    assert "estimated: CPU package + DRAM" in got.note
    assert got.grade == "D"


def test_an_estimate_is_compared_gross_and_says_so() -> None:
    got = verdict("50mJ", energy=ESTIMATED)
    assert (got.found, got.grade, got.met, got.sure) == (50.0, "D", True, False)
    assert "gross: the idle power is in it" in got.note
    assert "gross" not in verdict("50mJ").note


@pytest.mark.parametrize("text", ["5W", "20mJ"])
def test_without_any_energy_nothing_is_met(text: str) -> None:
    got = verdict(text, energy=None)
    assert (got.found, got.met, got.sure, got.grade) == (None, False, False, None)
    assert got.note == "no energy is known"


def test_notes_say_the_power_mode_and_what_the_caller_knows() -> None:
    got = verdict("jetson-orin-nano:7W", note="nvpmodel 15W")
    assert got.limit == "jetson-orin-nano:7W"
    assert got.allowed == 7.0
    assert got.note.startswith("nvpmodel 15W; power mode jetson-orin-nano 7W; ")


def test_a_latency_without_enough_samples_is_never_sure() -> None:
    few = Latency(10.0, 12.0, 15.0, 30, samples=tuple(np.linspace(9.0, 15.0, 30)))
    got = verdict("33ms p99", latency=few)
    assert (got.met, got.sure, got.high) == (True, False, None)
    assert "30 samples give p99 no upper end" in got.note
    none = verdict("33ms", latency=Latency(10.0, 12.0, 15.0, 30))
    assert (none.met, none.sure, none.low, none.high) == (True, False, None, None)


@pytest.mark.parametrize("share", [0.5, 0.95, 0.99])
def test_the_interval_of_a_quantile_covers_it(share: float) -> None:
    """1,000 draws whose quantile is known: at least 95 % of the intervals have it, less four standard errors."""
    draws = np.random.default_rng(7).exponential(size=(1000, 500))
    true = -np.log(1.0 - share)
    ends = np.array([quantile_interval(draw.tolist(), share) for draw in draws])
    covered = np.mean((ends[:, 0] <= true) & (true <= ends[:, 1]))
    assert covered >= 0.95 - 4.0 * np.sqrt(0.95 * 0.05 / len(draws))
    assert np.all(ends[:, 0] < ends[:, 1])


@pytest.mark.parametrize(("share", "enough"), [(0.5, 6), (0.95, 72), (0.99, 368)])
def test_how_many_samples_an_upper_end_takes(share: float, enough: int) -> None:
    """The largest value is above the quantile with 1 - share ** n."""
    times = [float(n) for n in range(1, enough + 1)]
    assert quantile_interval(times, share)[1] == times[-1]
    assert quantile_interval(times[:-1], share)[1] == float("inf")

"""The uncertainty in closed form, and Stein's stopping rule against simulation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.stats import t as student

from greencc.measure.blocks import Block, Discard, IdlePart
from greencc.measure.energy_statistics import IdlePower, Round, idle_power, summarise
from greencc.measure.intervals import half_width
from greencc.measure.protocols import DEFAULT

Make = Callable[..., Any]
STAGE_OF_TWO = replace(DEFAULT, rounds=2)


def rounds_of(pairs: Sequence[tuple[float, float]], *, seconds: float = 10.0) -> list[Round]:
    """Rounds of one block each, of 100 inferences and so many joules."""
    return [Round((Block(a, seconds, 100),), (Block(b, seconds, 100),)) for a, b in pairs]


def test_the_uncertainty_formula(make_meter: Make) -> None:
    # Two blocks of 10 s and 100 inferences: 300 and 320 J; idle 10 +- 0.5 W; gain 2 %; period 0.1 s.
    meter = make_meter(period_s=0.1, uncertainty=0.02)
    idle = IdlePower(10.0, 0.5, degrees=4.0, unknown=0.2)
    energy = summarise(rounds_of([(300.0, 200.0), (320.0, 220.0)]), idle, meter, STAGE_OF_TWO).baseline
    spread = student.ppf(0.975, 1) * np.std([2.0, 2.2], ddof=1) / math.sqrt(2)
    noise = student.ppf(0.975, 4) * 0.1 * 0.5
    rest = 1.959964 * np.array([0.1 * 0.2, 0.02 * 2.1, 0.1 / 10 / math.sqrt(6) * 3.1])
    expanded = math.hypot(spread, noise, *rest)
    assert energy.value == pytest.approx(2100.0)
    assert energy.high - energy.value == pytest.approx(expanded * 1e3, rel=1e-4)
    assert energy.value - energy.low == pytest.approx(expanded * 1e3, rel=1e-4)


def test_the_error_of_the_idle_power_widens_the_ratio(make_meter: Make) -> None:
    rounds = rounds_of([(300.0, 150.0)] * 4)
    exact = summarise(rounds, IdlePower(10.0, 0.0), make_meter(), DEFAULT).ratio
    vague = summarise(rounds, IdlePower(10.0, 0.5, degrees=8.0), make_meter(), DEFAULT).ratio
    assert (exact.low, exact.high) == pytest.approx((4.0, 4.0))
    # d log(E1/E2) / d idle = t2/E2 - t1/E1 = 10/50 - 10/200 = 0.15 per watt.
    assert math.log(vague.high / 4.0) == pytest.approx(student.ppf(0.975, 8) * 0.15 * 0.5, rel=1e-4)


def test_net_energy_that_idle_could_explain_is_not_compared(make_meter: Make) -> None:
    comparison = summarise(rounds_of([(102.0, 101.0)] * 4), IdlePower(10.0, 0.1), make_meter(), DEFAULT)
    assert comparison.ratio.value == pytest.approx(102.0 / 101.0)
    assert any("too small to tell from idle" in warning for warning in comparison.warnings)
    for side, joules in ((comparison.baseline, 102.0), (comparison.artifact, 101.0)):
        # The figures are of the same kind as the ratio.
        assert side.value == pytest.approx(joules * 10.0)
        assert side.low <= side.value <= side.high
        assert (side.net, side.gross) == (False, None)
        assert "gross, too little to tell from 10 W idle [9.8, 10.2]" in side.method


def test_net_figures_have_gross_ones_with_their_own_interval_beside(make_meter: Make) -> None:
    meter = make_meter(period_s=0.0, uncertainty=0.01)
    rounds = rounds_of([(300.0, 200.0)] * 4)
    energy = summarise(rounds, IdlePower(10.0, 1.0, degrees=4.0), meter, DEFAULT).baseline
    assert energy.net
    # Gross has the gain of gross energy in it, and nothing of the idle power.
    assert energy.gross_interval().value == pytest.approx(3000.0)
    assert energy.gross_high - energy.gross == pytest.approx(1.959964 * 0.01 * 3000.0, rel=1e-4)
    assert energy.high - energy.value == pytest.approx(
        math.hypot(1.959964 * 0.01 * 2000.0, student.ppf(0.975, 4) * 100.0), rel=1e-4
    )


def test_where_idle_is_not_known_there_is_no_gross_beside(make_meter: Make) -> None:
    energy = summarise(rounds_of([(300.0, 200.0)] * 4), None, make_meter(), DEFAULT).baseline
    assert (energy.gross, energy.gross_low, energy.gross_high) == (None, None, None)
    assert energy.gross_interval() == energy.interval()
    assert "gross, idle is not subtracted" in energy.method


def window(which: str, begin: float, watts: Sequence[float]) -> list[IdlePart]:
    return [IdlePart(which, begin + number, 1.0, value) for number, value in enumerate(watts)]


def test_idle_power_lies_on_the_line_through_both_windows() -> None:
    parts = window("idle before", 0.0, [9.0, 10.0, 11.0]) + window("idle after", 100.0, [13.0, 14.0, 15.0])
    power = idle_power(parts)
    assert power is not None
    assert [power.at(1.5), power.at(51.5), power.at(101.5)] == pytest.approx([10.0, 12.0, 14.0])
    assert power.error == pytest.approx(math.hypot(1.0, 1.0) / math.sqrt(3) / 2.0)
    assert power.unknown == pytest.approx(4.0 / math.sqrt(12.0))
    assert power.degrees == 2.0


def test_idle_power_of_one_window_or_none() -> None:
    before = window("idle before", 0.0, [9.0, 10.0, 11.0])
    spoilt = [replace(part, discarded=Discard.BUSY) for part in window("idle after", 100.0, [99.0] * 3)]
    power = idle_power([*before, *spoilt])
    assert power is not None
    assert (power.watts, power.slope, power.unknown) == pytest.approx((10.0, 0.0, 0.0))
    assert idle_power(spoilt) is None
    assert idle_power(before[:1]) is None


def test_a_linear_drift_of_idle_cancels_in_net_energy(make_meter: Make) -> None:
    idle = IdlePower(10.0, 0.0, slope=0.05, centre=0.0)
    rounds = [
        Round(
            (Block(200.0 + 10.0 * idle.at(at + 5.0), 10.0, 100, begin=at),),
            (Block(100.0 + 10.0 * idle.at(at + 15.0), 10.0, 100, begin=at + 10.0),),
        )
        for at in (0.0, 20.0, 40.0)
    ]
    comparison = summarise(rounds, idle, make_meter(period_s=0.0), DEFAULT)
    assert comparison.baseline.value == pytest.approx(2000.0)
    assert half_width(comparison.ratio) == pytest.approx(0.0, abs=1e-9)


def test_the_ratio_interval_covers_the_truth(make_meter: Make) -> None:
    rng = np.random.default_rng(11)
    hits = 0
    trials = 1000
    for _ in range(trials):
        drift = rng.normal(0.0, 0.1, size=8)
        pairs = [
            (
                float(100 + 200 * np.exp(d + rng.normal(0, 0.02))),
                float(100 + 100 * np.exp(d + rng.normal(0, 0.02))),
            )
            for d in drift
        ]
        idle = IdlePower(10.0 + rng.normal(0.0, 0.05), 0.05)
        ratio = summarise(rounds_of(pairs), idle, make_meter(), DEFAULT).ratio
        hits += ratio.low <= 2.0 <= ratio.high
    assert hits / trials >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / trials)


def test_stopping_when_the_spread_is_small_does_not_make_claims(make_meter: Make) -> None:
    """Equal variants, looked at after every round until the half-width is 2 %.

    The ordinary t-interval, for comparison, is too narrow then; the reported one keeps its 5 %.
    """
    rng = np.random.default_rng(5)
    trials, most = 300, 30
    claims = 0
    for logs in rng.normal(0.0, 0.02, size=(trials, most)):
        for count in range(DEFAULT.rounds, most + 1):
            rounds = rounds_of([(100.0 * math.exp(log), 100.0) for log in logs[:count]])
            ratio = summarise(rounds, None, make_meter(), DEFAULT).ratio
            if half_width(ratio) <= 0.02:
                break
        claims += not ratio.low <= 1.0 <= ratio.high
    assert claims / trials <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / trials)
    # The same with the ordinary interval, many times: well above 5 %.
    most = 60
    logs = rng.normal(0.0, 0.03, size=(20_000, most))
    open_, naive = np.ones(len(logs), bool), 0
    for count in range(DEFAULT.rounds, most + 1):
        part = logs[:, :count]
        half = student.ppf(0.975, count - 1) * part.std(axis=1, ddof=1) / math.sqrt(count)
        ends = open_ & ((half <= 0.02) | (count == most))
        naive += int((np.abs(part.mean(axis=1)) > half)[ends].sum())
        open_ &= ~ends
    assert naive / len(logs) > 0.06

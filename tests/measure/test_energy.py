"""The measuring protocol on a fake meter, and the uncertainty in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from greencc.core.errors import UnavailableError, UsageError
from greencc.core.meter import Grade
from greencc.measure.energy import (
    PROTOCOLS,
    QUICK,
    Block,
    EnergyProtocol,
    IdlePower,
    measure_energy,
    summarise,
)

Make = Callable[..., Any]
PROTOCOL = EnergyProtocol(
    "test", idle_seconds=5.0, block_seconds=1.0, pairs=4, target=0.02, limit_seconds=100.0
)


def measure(
    first: Any, second: Any, feeds: Any, meter: Any, load: Any, protocol: EnergyProtocol = PROTOCOL
) -> Any:
    time = meter.time
    return measure_energy(
        first, second, feeds, meter, protocol, clock=time.seconds, sleep=time.sleep, load=load
    )


def test_net_and_gross_of_steady_engines(
    make_engine: Make, make_meter: Make, make_load: Make, feeds: Any
) -> None:
    # Idle 5 W. The baseline takes 10 ms at 5 + 20 W, the artifact 4 ms at 5 + 10 W.
    first, second = make_engine(0.010, 20.0), make_engine(0.004, 10.0)
    result = measure(first, second, feeds, make_meter(period_s=0.0), make_load())
    baseline, artifact = result.comparison.baseline, result.comparison.artifact
    assert (baseline.value, baseline.gross) == pytest.approx((200.0, 250.0))
    assert (artifact.value, artifact.gross) == pytest.approx((40.0, 60.0))
    assert result.comparison.ratio.value == pytest.approx(5.0)
    assert result.comparison.ratio.low == pytest.approx(5.0, rel=1e-4)
    assert result.idle_watts == pytest.approx(5.0)
    assert (result.pairs, result.discarded, result.stopped) == (4, 0, "the ratio is known to 2%")
    assert (baseline.grade, baseline.boundary) == ("B", "test bench")
    assert "net of 5 W idle" in baseline.method
    assert first.seen[:6] == [0.0, 1.0, 2.0, 0.0, 1.0, 2.0]


def test_a_block_lasts_a_hundred_meter_periods(
    make_engine: Make, make_meter: Make, make_load: Make, feeds: Any
) -> None:
    result = measure(
        make_engine(0.1, 5.0), make_engine(0.1, 5.0), feeds, make_meter(period_s=0.05), make_load()
    )
    assert "blocks of 5" in result.comparison.baseline.method


def test_the_gain_of_the_meter_cancels_in_the_ratio(
    make_engine: Make, make_meter: Make, make_load: Make, feeds: Any
) -> None:
    engines = make_engine(0.010, 20.0), make_engine(0.004, 10.0)
    right = measure(*engines, feeds, make_meter(), make_load()).comparison
    wrong = measure(*engines, feeds, make_meter(gain=1.3), make_load()).comparison
    assert wrong.baseline.value == pytest.approx(1.3 * right.baseline.value)
    assert wrong.ratio.value == pytest.approx(right.ratio.value)


def test_a_noisy_load_stops_at_the_time_limit(
    make_engine: Make, make_meter: Make, make_load: Make, feeds: Any
) -> None:
    rng = np.random.default_rng(0)
    noisy = make_engine(lambda run: float(0.5 * rng.lognormal(0.0, 0.5)), 20.0)
    result = measure(
        noisy, make_engine(0.5, 20.0), feeds, make_meter(), make_load(), replace(PROTOCOL, target=1e-6)
    )
    assert result.stopped == "the time limit of 100 s"
    assert result.pairs > 10
    ratio = result.comparison.ratio
    assert ratio.low < ratio.value < ratio.high


def test_a_failed_reading_costs_its_pair_and_is_counted(
    make_engine: Make, make_meter: Make, make_load: Make, feeds: Any
) -> None:
    meter = make_meter(failing=lambda number: number == 10)
    result = measure(make_engine(0.1, 5.0), make_engine(0.1, 5.0), feeds, meter, make_load())
    assert (result.pairs, result.discarded) == (4, 1)


def test_a_meter_that_keeps_failing_is_given_up(
    make_engine: Make, make_meter: Make, make_load: Make, feeds: Any
) -> None:
    meter = make_meter(failing=lambda number: number > 8)
    with pytest.raises(UnavailableError, match="fake failed 3 times in a row: the sensor hiccuped"):
        measure(make_engine(0.1, 5.0), make_engine(0.1, 5.0), feeds, meter, make_load())


def test_pairs_with_busy_neighbours_are_discarded(
    make_engine: Make, make_meter: Make, make_load: Make, fake_time: Any, feeds: Any
) -> None:
    begin = fake_time.now
    busy = make_load(lambda now: 0.5 if 8.0 < now - begin < 11.0 else 0.0)
    result = measure(make_engine(0.1, 5.0), make_engine(0.1, 5.0), feeds, make_meter(), busy)
    assert result.pairs == 4
    assert result.discarded in (1, 2)


def test_a_machine_that_is_always_busy_gives_no_figure(
    make_engine: Make, make_meter: Make, make_load: Make, feeds: Any
) -> None:
    with pytest.raises(UnavailableError, match=r"only 0 of .* pairs of blocks were undisturbed"):
        measure(make_engine(0.1, 5.0), make_engine(0.1, 5.0), feeds, make_meter(), make_load(0.9))


def test_a_load_below_idle_falls_back_to_gross(
    make_engine: Make, make_meter: Make, make_load: Make, feeds: Any
) -> None:
    comparison = measure(
        make_engine(0.02, -0.5), make_engine(0.01, -0.5), feeds, make_meter(), make_load()
    ).comparison
    assert comparison.ratio.value == pytest.approx(2.0, rel=1e-6)
    assert any("gross" in warning for warning in comparison.warnings)


def test_quick_results_say_that_they_clear_no_gate(
    make_engine: Make, make_meter: Make, make_load: Make, feeds: Any
) -> None:
    comparison = measure(
        make_engine(0.02, 5.0), make_engine(0.01, 5.0), feeds, make_meter(), make_load(), QUICK
    ).comparison
    assert any("cannot clear a gate" in warning for warning in comparison.warnings)
    assert [protocol.clears_gate for protocol in PROTOCOLS] == [False, True, True]


def test_models_do_not_measure(make_engine: Make, make_meter: Make, make_load: Make, feeds: Any) -> None:
    with pytest.raises(UsageError, match="grade D"):
        measure(make_engine(1.0), make_engine(1.0), feeds, make_meter(grade=Grade.D), make_load())
    with pytest.raises(UsageError, match="at least one input"):
        measure(make_engine(1.0), make_engine(1.0), [], make_meter(), make_load())


def test_the_uncertainty_formula(make_meter: Make) -> None:
    # Two blocks of 10 s and 100 inferences: 300 and 320 J; idle 10 +- 0.5 W; gain 2 %; period 0.1 s.
    pairs = [
        (Block(300.0, 10.0, 100), Block(200.0, 10.0, 100)),
        (Block(320.0, 10.0, 100), Block(220.0, 10.0, 100)),
    ]
    protocol = replace(PROTOCOL, calibration=0.02)
    energy = summarise(pairs, IdlePower(10.0, 0.5), make_meter(period_s=0.1), protocol).baseline
    nets = np.array([2.0, 2.2])
    u = math.sqrt(nets.var(ddof=1) / 2 + (0.1 * 0.5) ** 2 + (0.02 * 2.1) ** 2 + (0.1 / 10 * 3.1) ** 2)
    assert energy.value == pytest.approx(2100.0)
    assert energy.high - energy.value == pytest.approx(12.7062 * u * 1e3, rel=1e-4)
    assert energy.value - energy.low == pytest.approx(12.7062 * u * 1e3, rel=1e-4)


def test_the_error_of_the_idle_power_widens_the_ratio(make_meter: Make) -> None:
    pairs = [(Block(300.0, 10.0, 100), Block(150.0, 10.0, 100))] * 4
    exact = summarise(pairs, IdlePower(10.0, 0.0), make_meter(), PROTOCOL).ratio
    vague = summarise(pairs, IdlePower(10.0, 0.5), make_meter(), PROTOCOL).ratio
    assert (exact.low, exact.high) == pytest.approx((4.0, 4.0))
    # d log(E1/E2) / d idle = t2/E2 - t1/E1 = 10/50 - 10/200 = 0.15 per watt; t(3) = 3.1824.
    assert math.log(vague.high / 4.0) == pytest.approx(3.1824 * 0.15 * 0.5, rel=1e-4)


def test_the_ratio_interval_covers_the_truth(make_meter: Make) -> None:
    rng = np.random.default_rng(11)
    hits = 0
    trials = 1000
    for _ in range(trials):
        drift = rng.normal(0.0, 0.1, size=8)
        pairs = [
            (
                Block(float(100 + 200 * np.exp(d + rng.normal(0, 0.02))), 10.0, 100),
                Block(float(100 + 100 * np.exp(d + rng.normal(0, 0.02))), 10.0, 100),
            )
            for d in drift
        ]
        idle = IdlePower(10.0 + rng.normal(0.0, 0.05), 0.05)
        ratio = summarise(pairs, idle, make_meter(), PROTOCOL).ratio
        hits += ratio.low <= 2.0 <= ratio.high
    assert hits / trials >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / trials)

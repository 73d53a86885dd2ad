"""Interleaved latency on fake time."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from greencc.core.errors import UsageError
from greencc.measure.latency import measure_latency, quick_compare
from greencc.measure.profiles import FULL, PROFILES, QUICK, STANDARD, Profile

Make = Callable[..., Any]
SHORT = Profile("short", seconds=2.0, rounds=10, min_rounds=4, min_runs=20, warm_up_seconds=0.5)


def test_constant_engines_are_measured_exactly(
    make_engine: Make, make_load: Make, fake_time: Any, feeds: Any
) -> None:
    slow, fast = make_engine(0.010), make_engine(0.004)
    result = measure_latency([slow, fast], feeds, SHORT, clock_ns=fake_time.nanoseconds, load=make_load())
    assert [latency.median for latency in result.latencies] == pytest.approx([10.0, 4.0])
    assert result.latencies[0].p99 == pytest.approx(10.0)
    (ratio,) = result.ratios
    assert (ratio.low, ratio.value, ratio.high) == pytest.approx((2.5, 2.5, 2.5))
    assert (result.rounds, result.discarded, result.warnings) == (10, 0, ())


def test_the_budget_is_kept(make_engine: Make, make_load: Make, fake_time: Any, feeds: Any) -> None:
    start = fake_time.now
    measure_latency(
        [make_engine(0.01), make_engine(0.01)], feeds, SHORT, clock_ns=fake_time.nanoseconds, load=make_load()
    )
    assert fake_time.now - start <= SHORT.seconds + 2 * SHORT.warm_up_seconds + 0.2


def test_slow_engines_get_the_fewest_rounds_and_a_warning(
    make_engine: Make, make_load: Make, fake_time: Any, feeds: Any
) -> None:
    result = measure_latency(
        [make_engine(3.0), make_engine(1.0)], feeds, SHORT, clock_ns=fake_time.nanoseconds, load=make_load()
    )
    assert result.rounds == SHORT.min_rounds
    assert result.latencies[0].runs == SHORT.min_rounds
    assert any("only 4 runs" in warning for warning in result.warnings)


def test_engines_take_turns_in_alternating_order(
    make_engine: Make, make_load: Make, fake_time: Any, feeds: Any
) -> None:
    order: list[str] = []

    def noting(name: str) -> Callable[[int], float]:
        def duration(run: int) -> float:
            order.append(name)
            return 0.1

        return duration

    profile = Profile("turns", seconds=1.6, rounds=4, min_rounds=4, min_runs=1, warm_up_seconds=0.0)
    measure_latency(
        [make_engine(noting("A")), make_engine(noting("B"))],
        feeds,
        profile,
        clock_ns=fake_time.nanoseconds,
        load=make_load(),
    )
    # Warm-up is two runs each; every block is two runs: A B B A A B B A.
    assert "".join(order[4:]) == "AABBBBAAAABBBBAA"


def test_all_engines_see_the_same_inputs(
    make_engine: Make, make_load: Make, fake_time: Any, feeds: Any
) -> None:
    a, b = make_engine(0.02), make_engine(0.003)
    measure_latency([a, b], feeds, SHORT, clock_ns=fake_time.nanoseconds, load=make_load())
    # The warm-ups may differ in length.
    runs = min(a.runs, b.runs) - 40
    assert runs > 20
    assert a.seen[-runs:] == b.seen[-runs:]
    assert set(a.seen) == {0.0, 1.0, 2.0}


def test_a_drift_of_the_clock_falls_on_both(
    make_engine: Make, make_load: Make, fake_time: Any, feeds: Any
) -> None:
    def drifting(base: float) -> Callable[[int], float]:
        return lambda run: base * (1.0 + 0.1 * (fake_time.now - 1000.0))

    result = measure_latency(
        [make_engine(drifting(0.010)), make_engine(drifting(0.005))],
        feeds,
        SHORT,
        clock_ns=fake_time.nanoseconds,
        load=make_load(),
    )
    (ratio,) = result.ratios
    assert ratio.low <= 2.0 <= ratio.high
    assert ratio.value == pytest.approx(2.0, rel=0.01)


def test_the_interval_covers_the_truth_on_a_noisy_machine(
    make_engine: Make, make_load: Make, fake_time: Any, feeds: Any
) -> None:
    rng = np.random.default_rng(3)
    profile = Profile("noisy", seconds=1.0, rounds=10, min_rounds=10, min_runs=1, warm_up_seconds=0.0)
    hits = 0
    trials = 200
    for _ in range(trials):
        state = {"level": 0.0}

        def noisy(base: float, state: dict[str, float] = state) -> Callable[[int], float]:
            def duration(run: int) -> float:
                state["level"] = 0.95 * state["level"] + rng.normal(0.0, 0.05)
                return float(base * math.exp(state["level"] + rng.normal(0.0, 0.1) + rng.exponential(0.05)))

            return duration

        result = measure_latency(
            [make_engine(noisy(0.012)), make_engine(noisy(0.010))],
            feeds,
            profile,
            clock_ns=fake_time.nanoseconds,
            load=make_load(),
        )
        (ratio,) = result.ratios
        hits += ratio.low <= 1.2 <= ratio.high
    assert hits / trials >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / trials)


def test_rounds_with_busy_neighbours_are_discarded(
    make_engine: Make, make_load: Make, fake_time: Any, feeds: Any
) -> None:
    begin = fake_time.now
    busy = make_load(lambda now: 0.5 if 0.6 < now - begin < 1.5 else 0.0)
    disturbed = make_engine(lambda run: 0.05 if 0.6 < fake_time.now - begin < 1.0 else 0.01)
    result = measure_latency(
        [disturbed, make_engine(0.01)], feeds, SHORT, clock_ns=fake_time.nanoseconds, load=busy
    )
    assert result.discarded >= 1
    assert result.rounds >= SHORT.min_rounds
    assert result.latencies[0].p95 == pytest.approx(10.0)
    assert any("discarded" in warning for warning in result.warnings)
    assert result.clean


def test_measuring_goes_on_until_enough_rounds_are_clean(
    make_engine: Make, make_load: Make, fake_time: Any, feeds: Any
) -> None:
    begin = fake_time.now
    busy = make_load(lambda now: 0.5 if now - begin < 2.4 else 0.0)
    disturbed = make_engine(lambda run: 0.05 if fake_time.now - begin < 2.1 else 0.01)
    result = measure_latency(
        [disturbed, make_engine(0.01)], feeds, SHORT, clock_ns=fake_time.nanoseconds, load=busy
    )
    assert result.clean
    assert result.rounds == SHORT.rounds // 2
    assert result.discarded > SHORT.rounds // 2
    assert result.latencies[0].p99 == pytest.approx(10.0)
    assert fake_time.now - begin <= 2 * SHORT.seconds


def test_one_round_too_few_is_made_up_for(
    make_engine: Make, make_load: Make, fake_time: Any, feeds: Any
) -> None:
    profile = Profile("few", seconds=4.0, rounds=4, min_rounds=4, min_runs=1, warm_up_seconds=0.0)
    begin = fake_time.now
    busy = make_load(lambda now: 0.5 if now - begin < 1.5 else 0.0)
    result = measure_latency([make_engine(0.01)], feeds, profile, clock_ns=fake_time.nanoseconds, load=busy)
    assert (result.rounds, result.clean) == (4, True)
    assert result.discarded in {1, 2}


def test_when_always_busy_all_rounds_are_kept_with_a_warning(
    make_engine: Make, make_load: Make, fake_time: Any, feeds: Any
) -> None:
    begin = fake_time.now
    result = measure_latency(
        [make_engine(0.01), make_engine(0.01)],
        feeds,
        SHORT,
        clock_ns=fake_time.nanoseconds,
        load=make_load(0.4),
    )
    assert (result.rounds, result.discarded, result.clean) == (20, 0, False)
    assert fake_time.now - begin <= 2 * SHORT.seconds + 2 * SHORT.warm_up_seconds + 0.4
    assert any("40% of the CPU" in warning for warning in result.warnings)


def test_an_unknown_load_discards_nothing(
    make_engine: Make, make_load: Make, fake_time: Any, feeds: Any
) -> None:
    result = measure_latency(
        [make_engine(0.01)], feeds, SHORT, clock_ns=fake_time.nanoseconds, load=make_load(None)
    )
    assert (result.ratios, result.discarded, result.warnings) == ((), 0, ())
    assert result.clean


def test_warm_up_waits_for_a_steady_state(
    make_engine: Make, make_load: Make, fake_time: Any, feeds: Any
) -> None:
    engine = make_engine(lambda run: 0.010 if run >= 12 else 0.040 - 0.002 * run)
    result = measure_latency([engine], feeds, SHORT, clock_ns=fake_time.nanoseconds, load=make_load())
    assert result.latencies[0].p99 == pytest.approx(10.0)


def test_the_garbage_collector_is_paused_and_comes_back(
    make_engine: Make, make_load: Make, fake_time: Any, feeds: Any
) -> None:
    states: list[bool] = []

    def duration(run: int) -> float:
        states.append(gc.isenabled())
        return 0.05

    assert gc.isenabled()
    measure_latency([make_engine(duration)], feeds, SHORT, clock_ns=fake_time.nanoseconds, load=make_load())
    assert gc.isenabled()
    assert states[-1] is False


def test_nothing_to_measure(make_engine: Make, feeds: Any) -> None:
    with pytest.raises(UsageError):
        measure_latency([], feeds, SHORT)
    with pytest.raises(UsageError):
        measure_latency([make_engine(1.0)], [], SHORT)


def test_quick_compare_picks_the_fastest(
    make_engine: Make, make_load: Make, fake_time: Any, feeds: Any
) -> None:
    engines = [make_engine(0.010), make_engine(0.012), make_engine(0.004), make_engine(0.006)]
    choice = quick_compare(engines, feeds, clock_ns=fake_time.nanoseconds, load=make_load())
    assert choice.faster == (2, 3)
    assert choice.best == 2
    assert choice.median_ms == pytest.approx((10.0, 12.0, 4.0, 6.0))
    assert choice.clean
    busy = quick_compare(engines, feeds, clock_ns=fake_time.nanoseconds, load=make_load(0.4))
    assert (busy.best, busy.clean) == (2, False)


def test_quick_compare_keeps_the_incumbent_within_the_noise(
    make_engine: Make, make_load: Make, fake_time: Any, feeds: Any
) -> None:
    rng = np.random.default_rng(0)

    def noisy(base: float) -> Callable[[int], float]:
        return lambda run: float(base * rng.lognormal(0.0, 0.8))

    engines = [make_engine(noisy(0.05)), make_engine(noisy(0.0499))]
    choice = quick_compare(engines, feeds, clock_ns=fake_time.nanoseconds, load=make_load())
    assert (choice.best, choice.faster) == (0, ())


def test_more_candidates_make_wider_intervals(
    make_engine: Make, make_load: Make, fake_time: Any, feeds: Any
) -> None:
    def width(count: int) -> float:
        rng = np.random.default_rng(5)
        engines = [make_engine(lambda run: float(0.01 * rng.lognormal(0.0, 0.3))) for _ in range(2)]
        engines += [make_engine(0.01) for _ in range(count - 2)]
        ratio = quick_compare(engines, feeds, clock_ns=fake_time.nanoseconds, load=make_load()).ratios[0]
        return math.log(ratio.high / ratio.low)

    assert width(6) > width(2)


def test_profiles_grow() -> None:
    assert PROFILES == (QUICK, STANDARD, FULL)
    assert QUICK.seconds < STANDARD.seconds < FULL.seconds
    assert len({profile.name for profile in PROFILES}) == 3

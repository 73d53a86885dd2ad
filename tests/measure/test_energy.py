"""The measuring protocol on a fake meter and fake time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from greencc.core.errors import UsageError
from greencc.core.meter import Grade
from greencc.measure.energy import measure_energy
from greencc.measure.intervals import half_width
from greencc.measure.loadgen import Arrivals, Load
from greencc.measure.protocols import (
    DEFAULT,
    MLPERF_POWER,
    MLPERF_TINY,
    PROTOCOLS,
    QUICK,
    EnergyProtocol,
    protocol_named,
)
from greencc.measure.thermal import ThermalState

Make = Callable[..., Any]
PROTOCOL = EnergyProtocol(
    "test",
    idle_seconds=5.0,
    block_seconds=1.0,
    rounds=3,
    target=0.02,
    limit_seconds=100.0,
    warm_up_seconds=0.0,
)


@pytest.fixture
def measure(make_engine: Make, make_meter: Make, make_bench: Make, feeds: Any) -> Make:
    """Measure two engines of (seconds, watts), or engines made before."""

    def run(
        first: Any = (0.1, 20.0),
        second: Any = (0.1, 20.0),
        *,
        meter: Any = None,
        protocol: EnergyProtocol = PROTOCOL,
        bench: Any = None,
        **options: Any,
    ) -> Any:
        engines = [make_engine(*each) if isinstance(each, tuple) else each for each in (first, second)]
        return measure_energy(
            engines[0],
            engines[1],
            feeds,
            make_meter() if meter is None else meter,
            protocol,
            bench=bench or make_bench(),
            **options,
        )

    return run


def test_net_and_gross_of_steady_engines(measure: Make, make_engine: Make, make_meter: Make) -> None:
    # Idle 5 W. The baseline takes 10 ms at 5 + 20 W, the artifact 4 ms at 5 + 10 W.
    first = make_engine(0.010, 20.0)
    result = measure(first, (0.004, 10.0), meter=make_meter(period_s=0.0))
    baseline, artifact = result.comparison.baseline, result.comparison.artifact
    assert (baseline.value, baseline.gross) == pytest.approx((200.0, 250.0))
    assert (artifact.value, artifact.gross) == pytest.approx((40.0, 60.0))
    assert result.comparison.ratio.value == pytest.approx(5.0)
    assert result.comparison.ratio.low == pytest.approx(5.0, rel=1e-4)
    assert result.idle.watts == pytest.approx(5.0)
    assert (result.rounds, result.discarded) == (3, {})
    assert result.stopped.startswith("the ratio is known well enough; the half-width of the ratio is 0.0")
    assert result.stopped.endswith("(2% was asked for)")
    assert (result.problem, result.warnings) == (None, ())
    assert (baseline.grade, baseline.boundary) == ("B", "test bench")
    assert "net of 5 W idle [5, 5]" in baseline.method
    assert first.seen[:6] == [0.0, 1.0, 2.0, 0.0, 1.0, 2.0]


def test_blocks_are_in_the_order_a_b_b_a_between_idle_windows(measure: Make) -> None:
    result = measure()
    names = [block.variant[0] for block in result.blocks]
    assert names == ["b", "a", "a", "b", "a", "b", "b", "a", "b", "a", "a", "b"]
    assert [block.round for block in result.blocks] == [0] * 4 + [1] * 4 + [2] * 4
    assert [part.which for part in result.idle_parts] == ["idle before"] * 5 + ["idle after"] * 5
    assert sum(part.seconds for part in result.idle_parts) == pytest.approx(10.0)
    assert result.idle_parts[4].begin < result.blocks[0].begin < result.idle_parts[5].begin


def test_a_block_lasts_a_hundred_meter_periods(measure: Make, make_meter: Make) -> None:
    result = measure(meter=make_meter(period_s=0.05))
    assert "blocks of 5" in result.comparison.baseline.method
    # Each begins at a phase of its own.
    gaps = [
        later.begin - earlier.begin - earlier.seconds
        for earlier, later in zip(result.blocks, result.blocks[1:], strict=False)
    ]
    assert len({round(gap, 6) for gap in gaps}) == len(gaps)
    assert all(0.0 <= gap <= 0.05 for gap in gaps)


def test_the_gain_of_the_meter_cancels_in_the_ratio(measure: Make, make_meter: Make) -> None:
    engines = (0.010, 20.0), (0.004, 10.0)
    right = measure(*engines).comparison
    wrong = measure(*engines, meter=make_meter(gain=1.3)).comparison
    assert wrong.baseline.value == pytest.approx(1.3 * right.baseline.value)
    assert wrong.ratio.value == pytest.approx(right.ratio.value)


def test_a_drift_of_the_idle_power_cancels(measure: Make, make_meter: Make, fake_time: Any) -> None:
    # 5 W, and 0.02 W more every second; the meter sees both.
    begin = fake_time.now
    meter = make_meter(shown=lambda now, joules: joules + 0.01 * (now - begin) ** 2)
    comparison = measure((0.1, 20.0), (0.1, 10.0), meter=meter).comparison
    assert comparison.baseline.value == pytest.approx(2000.0, rel=1e-3)
    assert comparison.artifact.value == pytest.approx(1000.0, rel=1e-3)
    assert comparison.ratio.low <= 2.0 <= comparison.ratio.high


def test_a_noisy_load_stops_at_the_time_limit(measure: Make, make_engine: Make) -> None:
    rng = np.random.default_rng(0)
    noisy = make_engine(lambda run: float(0.5 * rng.lognormal(0.0, 0.5)), 20.0)
    result = measure(noisy, (0.5, 20.0), protocol=replace(PROTOCOL, target=1e-6))
    assert result.stopped.startswith("the time limit of 100 s; the half-width of the ratio is ")
    # Idle windows take 10 s; a round is not begun when it would end too late.
    assert 85.0 <= result.blocks[-1].begin + 0.5 - result.began <= 100.0
    ratio = result.comparison.ratio
    assert ratio.low < ratio.value < ratio.high


def test_it_measures_until_the_ratio_is_known(measure: Make, make_engine: Make) -> None:
    rng = np.random.default_rng(1)
    noisy = make_engine(lambda run: float(0.05 * rng.lognormal(0.0, 0.4)), 20.0)
    rough = measure(noisy, (0.05, 20.0), protocol=replace(PROTOCOL, target=0.1, limit_seconds=2000.0))
    fine = measure(noisy, (0.05, 20.0), protocol=replace(PROTOCOL, target=0.03, limit_seconds=2000.0))
    assert rough.stopped.startswith("the ratio is known well enough")
    assert fine.stopped.startswith("the ratio is known well enough")
    assert rough.rounds < fine.rounds
    assert half_width(fine.comparison.ratio) <= 0.031


def test_at_a_rate_idle_time_is_in_gross_and_not_in_net(measure: Make) -> None:
    # One request of 0.1 s at 5 + 20 W every half second.
    result = measure(load=Load(Arrivals.FIXED, 2.0))
    energy = result.comparison.baseline
    assert energy.value == pytest.approx(2000.0)
    assert energy.gross == pytest.approx(5.0 * 0.5 * 1e3 + 2000.0)
    assert {block.count for block in result.blocks} == {2}


def test_both_variants_of_a_round_get_the_same_arrivals(measure: Make) -> None:
    result = measure(
        (0.001, 20.0),
        (0.001, 20.0),
        load=Load(Arrivals.POISSON, 50.0),
        protocol=replace(PROTOCOL, target=None),
    )
    counts = [
        [block.count for block in result.blocks if block.round == number] for number in range(result.rounds)
    ]
    assert all(len(set(each)) == 1 for each in counts)
    assert len({each[0] for each in counts}) > 1


def test_a_rate_that_is_too_high_is_named(measure: Make) -> None:
    result = measure(load=Load(Arrivals.FIXED, 20.0))
    assert any("the rate is too high" in warning for warning in result.warnings)


def test_without_a_meter_the_load_is_measured(make_engine: Make, make_bench: Make, feeds: Any) -> None:
    result = measure_energy(make_engine(0.1), make_engine(0.2), feeds, None, PROTOCOL, bench=make_bench())
    assert (result.comparison, result.problem, result.idle_parts) == (None, None, ())
    assert result.stopped == "all 3 rounds are measured"
    assert {block.joules for block in result.blocks} == {None}
    assert list(result.blocks[1].latencies_ms.values) == pytest.approx([200.0] * 5, rel=1e-5)


def test_a_load_below_idle_falls_back_to_gross(measure: Make) -> None:
    comparison = measure((0.02, -0.5), (0.01, -0.5)).comparison
    assert comparison.ratio.value == pytest.approx(2.0, rel=1e-6)
    assert any("gross" in warning for warning in comparison.warnings)


# The protocols.


def test_quick_results_say_that_they_clear_no_gate(measure: Make) -> None:
    comparison = measure((0.02, 5.0), (0.01, 5.0), protocol=QUICK).comparison
    assert any("cannot clear a gate" in warning for warning in comparison.warnings)
    assert [protocol.name for protocol in PROTOCOLS if not protocol.clears_gate] == ["quick"]


def test_short_blocks_of_a_slow_meter_are_named(measure: Make, make_meter: Make) -> None:
    result = measure(protocol=QUICK, meter=make_meter(period_s=0.1))
    assert any("are 10 periods of fake, fewer than 100" in warning for warning in result.warnings)
    assert (
        measure(protocol=replace(PROTOCOL, limit_seconds=1e4), meter=make_meter(period_s=0.1)).warnings == ()
    )


def test_the_default_protocol_warms_up_before_it_measures(measure: Make) -> None:
    result = measure(protocol=DEFAULT)
    assert result.warm_up.why.endswith("there is no temperature sensor")
    assert result.idle_parts[0].begin - result.began == pytest.approx(30.0, abs=1.2)
    assert min(block.seconds for block in result.blocks) >= 10.0


def test_mlperf_tiny_is_the_median_of_five_loops(measure: Make, make_engine: Make) -> None:
    # One loop of five is much slower.
    slow = make_engine(lambda run: 0.5 if run > 550 else 0.1, 20.0)
    result = measure(slow, (0.1, 20.0), protocol=MLPERF_TINY)
    energy = result.comparison.baseline
    assert (result.rounds, result.idle) == (5, None)
    assert result.stopped.startswith("all 5 rounds are measured; the half-width of the ratio is ")
    assert [block.variant[0] for block in result.blocks] == ["b", "a", "a", "b"] * 2 + ["b", "a"]
    assert energy.value == pytest.approx(2500.0)
    assert energy.gross is None
    assert energy.low <= energy.value <= energy.high


def test_mlperf_power_averages_ten_minutes_and_keeps_idle(measure: Make) -> None:
    result = measure(protocol=MLPERF_POWER)
    assert min(block.seconds for block in result.blocks) >= 600.0
    # 5 + 20 W for 0.1 s.
    assert result.comparison.baseline.value == pytest.approx(2500.0)
    assert not result.comparison.baseline.net
    assert result.idle_parts == ()


@pytest.mark.parametrize("protocol", [MLPERF_TINY, MLPERF_POWER], ids=lambda each: each.name)
def test_the_label_of_mlperf_is_not_claimed(measure: Make, protocol: EnergyProtocol) -> None:
    method = measure(protocol=protocol).comparison.baseline.method
    assert "not an MLPerf result" in method
    assert "windows as in MLPerf" in method
    assert protocol.name not in method


def test_the_uncertainty_that_is_not_published_is_named(measure: Make, make_meter: Make) -> None:
    assert "gain error of the meter is not published" in measure().comparison.baseline.method
    known = measure(meter=make_meter(uncertainty=0.02)).comparison.baseline
    assert "not published" not in known.method
    assert known.high / known.value == pytest.approx(1.0 + 1.96 * 0.02, rel=2e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": 0.0}, "half-width of 0 cannot be reached"),
        ({"target": float("nan")}, "half-width of nan"),
        ({"limit_seconds": 0.0}, "the time limit is 0 s"),
        ({"limit_seconds": float("inf")}, "the time limit is inf"),
    ],
)
def test_bad_protocols_are_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        DEFAULT.adapted(**change)


def test_a_limit_too_short_for_two_rounds_is_refused(measure: Make, make_meter: Make) -> None:
    with pytest.raises(
        UsageError,
        match=r"protocol with a meter that updates every 0.001 s take 18 s, more than the limit of 17 s",
    ):
        measure(protocol=replace(PROTOCOL, limit_seconds=17.0))
    # A slow meter takes longer blocks.
    with pytest.raises(UsageError, match="updates every 1 s take 1000 s"):
        measure(meter=make_meter(period_s=1.0))


def test_protocols_by_name() -> None:
    assert [protocol_named(protocol.name) for protocol in PROTOCOLS] == list(PROTOCOLS)
    with pytest.raises(UsageError, match="no protocol 'mlperf'") as caught:
        protocol_named("mlperf")
    assert "mlperf-tiny" in (caught.value.hint or "")


def test_models_do_not_measure(measure: Make, make_meter: Make, make_engine: Make, make_bench: Make) -> None:
    with pytest.raises(UsageError, match="grade D"):
        measure(meter=make_meter(grade=Grade.D))
    with pytest.raises(UsageError, match="at least one input"):
        measure_energy(make_engine(0.1), make_engine(0.1), [], make_meter(), PROTOCOL, bench=make_bench())


def test_a_machine_that_does_not_get_warm_is_named(measure: Make, make_bench: Make) -> None:
    rising = make_bench(thermal=lambda now: ThermalState(celsius=now))
    result = measure(protocol=replace(PROTOCOL, warm_up_seconds=5.0), bench=rising)
    assert any("did not get warm: the temperature still moved" in warning for warning in result.warnings)

"""Measuring on another machine whose power, clock and mishaps are known exactly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from greencc.core.elsewhere import Driven, LostError, SiteState
from greencc.core.errors import UnavailableError, UsageError
from greencc.core.meter import PowerSample, Reading
from greencc.measure.blocks import Discard
from greencc.measure.elsewhere import site_of
from greencc.measure.energy import measure_energy
from greencc.measure.latency import measure_latency
from greencc.measure.loadgen import Arrivals, Load
from greencc.measure.profiles import Profile
from greencc.measure.protocols import QUICK, EnergyProtocol

from .fake_site import METER, FakeDistantEngine, FakeSite, gone_from, lost

Make = Callable[..., Any]
PROTOCOL = EnergyProtocol(
    "test",
    idle_seconds=5.0,
    block_seconds=1.0,
    rounds=3,
    target=0.02,
    limit_seconds=300.0,
    warm_up_seconds=0.0,
    periods=10,
)
SHORT = Profile("short", seconds=2.0, rounds=10, min_rounds=4, min_runs=20, warm_up_seconds=0.5)


@pytest.fixture
def measure(fake_time: Any, make_bench: Make, feeds: Any) -> Make:
    """Measure a baseline of 10 ms at 25 W against an artifact of 4 ms at 15 W; idle has 5 W."""

    def run(
        spoil: Any = None, protocol: EnergyProtocol = PROTOCOL, load: Load | None = None, **options: Any
    ) -> Any:
        site = FakeSite(fake_time, **options)
        if spoil is not None:
            site.spoil = spoil
        engines = FakeDistantEngine(site, 0.010, 20.0), FakeDistantEngine(site, 0.004, 10.0)
        result = measure_energy(
            *engines, feeds, site.meter, protocol, load=load or Load(), bench=make_bench()
        )
        return site, result

    return run


@pytest.mark.parametrize("counter", [False, True])
def test_net_and_gross_energy_by_the_clock_and_the_meter_of_the_site(measure: Make, counter: bool) -> None:
    site, result = measure(counter=counter)
    baseline, artifact = result.comparison.baseline, result.comparison.artifact
    # 10 ms at 5 + 20 W, and 4 ms at 5 + 10 W.
    assert (baseline.value, baseline.gross) == pytest.approx((200.0, 250.0))
    assert (artifact.value, artifact.gross) == pytest.approx((40.0, 60.0))
    assert (baseline.grade, baseline.boundary) == ("B", "VDD_IN")
    assert result.comparison.ratio.value == pytest.approx(5.0)
    assert result.idle.watts == pytest.approx(5.0)
    assert (result.rounds, result.discarded, result.problem) == (3, {}, None)
    # A B B A, and B A A B in the second round; the inputs go on from round to round.
    order = [block.variant[0] for block in result.blocks]
    assert "".join(order) == "baab" + "abba" + "baab"
    assert {stretch.metered for stretch in site.asked} == {True}
    assert [stretch.seconds for stretch in site.asked] == pytest.approx([1.0] * 12)


def test_the_trace_and_the_blocks_are_on_this_machines_clock(measure: Make, fake_time: Any) -> None:
    began = fake_time.now
    _, result = measure()
    moments = [reading.seconds for reading in result.readings]
    assert moments == sorted(moments)
    assert began - 1.0 < moments[0]
    assert moments[-1] <= fake_time.now
    for block in result.blocks:
        inside = [
            each
            for each in result.readings
            if block.begin - 1e-6 <= each.seconds <= block.begin + block.seconds + 1e-6
        ]
        assert len({each.epoch for each in inside}) == 1
        assert inside[-1].joules["VDD_IN"] - inside[0].joules["VDD_IN"] == pytest.approx(block.joules)


def test_power_between_samples_is_interpolated_at_the_ends(measure: Make) -> None:
    def shifted(number: int, driven: Driven) -> Driven:
        """The moments of the samples fall anywhere, and the power rises evenly from one to the next."""
        at = driven.begin
        ramp = [PowerSample(at - 0.05 + 0.1 * step, {"VDD_IN": 0.1 * step}) for step in range(200)]
        return replace(driven, samples=ramp) if driven.count else driven

    _, result = measure(shifted)
    (block, *_) = [block for block in result.blocks if block.variant == "baseline"]
    # From 0.05 W to 1.05 W within a second.
    assert block.joules == pytest.approx((0.05 + 1.05) / 2.0)


def _showing(driven: Driven, watts: float) -> Driven:
    return replace(driven, samples=[PowerSample(each.seconds, {"VDD_IN": watts}) for each in driven.samples])


def _counting(driven: Driven, before: float, after: float) -> Driven:
    readings = [Reading(0.0, {"VDD_IN": before}), Reading(1e9, {"VDD_IN": after})]
    return replace(driven, samples=[], readings=readings)


def _in_modes(driven: Driven, before: str, after: str) -> Driven:
    first, last = (SiteState(facts={"power_mode": mode}) for mode in (before, after))
    return replace(driven, before=first, after=last)


@pytest.mark.parametrize(
    ("change", "reason", "note"),
    [
        (lambda driven: replace(driven, others=0.4), Discard.BUSY, "used 40%"),
        (lambda driven: replace(driven, suspended=12.0), Discard.SUSPENDED, "suspended for 12.0 s"),
        (
            lambda driven: replace(driven, before=SiteState(throttle_count=3), after=SiteState(throttle_count=5)),
            Discard.THROTTLED,
            "throttled 2 times",
        ),
        (lambda driven: _in_modes(driven, "15W", "7W"), Discard.MODE, "its power mode was 7W, and not 15W"),
        (lambda driven: _in_modes(driven, "25W", "25W"), Discard.MODE, "its power mode was 25W, and not 15W"),
        (lambda driven: replace(driven, after=SiteState(clock_mhz=700.0)), Discard.THROTTLED, "fell from 1500"),
        (lambda driven: replace(driven, problem="the rail vanished", samples=()), Discard.FAILED, "vanished"),
        (lambda driven: replace(driven, samples=driven.samples[::12]), Discard.GAP, "a gap"),
        (lambda driven: replace(driven, samples=driven.samples[4:]), Discard.GAP, "do not cover"),
        (lambda driven: replace(driven, samples=driven.samples[:-2]), Discard.GAP, "do not cover"),
        (lambda driven: _showing(driven, 0.0), Discard.STUCK, "counted nothing"),
        (lambda driven: _counting(driven, 9.0, 3.0), Discard.GAP, "counted -6 J"),
    ],
)  # fmt: skip
def test_a_disturbed_block_is_discarded_with_its_round(
    measure: Make, change: Any, reason: Discard, note: str
) -> None:
    # Five parts of the idle window, then the rounds: the second block of the third round is spoilt.
    spoilt = 5 + 4 + 4 + 2
    _, result = measure(lambda number, driven: change(driven) if number == spoilt else driven)
    (bad,) = [block for block in result.blocks if block.discarded is reason]
    assert note in bad.note
    assert result.discarded == {reason.value: 1, Discard.COMPANION.value: 1}
    # Another round takes its place.
    assert result.rounds == 3
    assert result.comparison.ratio.value == pytest.approx(5.0)


def test_a_power_mode_that_somebody_changes_is_told(measure: Make) -> None:
    changed = 5 + 4 + 2
    _, result = measure(lambda n, driven: _in_modes(driven, "15W", "7W") if n == changed else driven)
    (warning,) = [each for each in result.warnings if "power mode" in each]
    assert warning.startswith(
        "somebody changed the power mode of the device meanwhile: its power mode was 7W"
    )
    assert result.rounds == 3
    # Without a meter there is no energy to protect, and it is told all the same.
    _, loaded = measure(lambda n, driven: _in_modes(driven, "7W", "7W") if n == 2 else driven, meter=None)
    assert any("somebody changed the power mode" in each for each in loaded.warnings)
    assert loaded.discarded == {Discard.MODE.value: 1}


def test_a_power_mode_that_stays_wrong_ends_it(measure: Make) -> None:
    _, result = measure(lambda n, driven: _in_modes(driven, "7W", "7W") if n > 9 else driven)
    assert result.rounds == 1
    assert result.problem == "the device failed 3 times in a row: its power mode was 7W, and not 15W"
    assert (result.meter_failed, result.stopped) == (False, "the device failed")


def test_a_site_that_tells_no_power_mode_has_the_right_one(measure: Make) -> None:
    _, result = measure(lambda n, driven: replace(driven, before=SiteState(), after=SiteState()))
    assert (result.rounds, result.discarded) == (3, {})
    # One that is not known beforehand must not change within a stretch.
    _, result = measure(
        lambda n, driven: _in_modes(driven, "15W", "7W") if n == 7 else driven, power_mode=None
    )
    assert result.discarded == {Discard.MODE.value: 1, Discard.COMPANION.value: 1}


def test_what_stretches_take_to_begin_is_not_counted_on_the_time_limit(measure: Make) -> None:
    # As with trtexec, which loads the engine anew for every block.
    _, near = measure(protocol=QUICK, overhead=0.0)
    site, result = measure(protocol=QUICK, overhead=5.0)
    assert result.rounds == near.rounds == 3
    assert (result.problem, result.stopped) == (None, near.stopped)
    assert result.comparison.ratio.value == pytest.approx(5.0)
    # Not for ever: with two rounds it ends at some limits of this machine's time.
    began = site.here.now
    _, result = measure(protocol=QUICK, overhead=15.0)
    assert result.rounds == 2
    assert result.stopped.startswith("120 s, most of which blocks took to begin; ")
    assert site.here.now - began < 2 * 120.0 + 15 * 15.0


@pytest.mark.parametrize(
    ("busy", "problem"),
    [
        (range(10, 999), "only 1 round of blocks was undisturbed within 20 s (another process was busy: "),
        (range(6, 999), "only 0 rounds of blocks were undisturbed within 20 s (another process was busy: "),
    ],
)
def test_too_few_rounds_are_told_with_what_spoilt_the_others(
    measure: Make, busy: range, problem: str
) -> None:
    _, result = measure(lambda n, driven: replace(driven, others=0.4) if n in busy else driven, QUICK)
    assert result.problem.startswith(problem)


def test_rounds_that_do_not_fit_are_not_called_disturbed(
    fake_time: Any, make_bench: Make, feeds: Any
) -> None:
    site = FakeSite(fake_time)
    slow = FakeDistantEngine(site, 12.0, 10.0)
    result = measure_energy(slow, slow, feeds, site.meter, QUICK, bench=make_bench())
    assert result.problem == "only 1 round of blocks fitted into the time limit of 20 s"


def test_disturbed_idle_parts_are_measured_again(measure: Make) -> None:
    _, result = measure(lambda number, driven: replace(driven, others=0.5) if number == 2 else driven)
    assert [part.discarded for part in result.idle_parts[:3]] == [None, Discard.BUSY, None]
    assert len([part for part in result.idle_parts if part.which == "idle before"]) == 6
    assert result.idle.watts == pytest.approx(5.0)


def test_a_lost_block_is_discarded_and_measuring_goes_on(measure: Make) -> None:
    _, result = measure(lost(7, 13))
    assert result.discarded == {Discard.LOST.value: 2, Discard.COMPANION.value: 2}
    assert result.rounds == 3
    assert result.problem is None
    bad = [block for block in result.blocks if block.discarded is Discard.LOST]
    assert [(block.joules, block.count, block.note) for block in bad] == [
        (None, 0, "the device was restarted")
    ] * 2
    assert result.comparison.ratio.value == pytest.approx(5.0)


def test_idle_power_is_right_though_a_reboot_sets_the_clock_back(measure: Make, fake_time: Any) -> None:
    def restarted(number: int, driven: Driven) -> Driven:
        """Half way through, the machine was restarted, and boots for a minute and a half."""
        if number < 12:
            return driven
        if number == 12:
            fake_time.now += 90.0
            raise LostError("the device was restarted")
        moved = [PowerSample(each.seconds - 80.0, each.watts) for each in driven.samples]
        return replace(driven, begin=driven.begin - 80.0, samples=moved)

    _, result = measure(restarted)
    assert result.rounds == 3
    begins = [block.begin for block in result.blocks]
    assert begins == sorted(begins)
    assert result.idle.watts == pytest.approx(5.0)
    assert result.comparison.baseline.value == pytest.approx(200.0)


def test_a_device_that_does_not_come_back_ends_it_with_what_there_is(measure: Make) -> None:
    _, result = measure(gone_from(5 + 4 + 4 + 2))
    assert result.rounds == 2
    assert result.comparison is not None
    assert "ssh://user@fake does not answer" in result.problem
    assert (result.meter_failed, result.stopped.split(";")[0]) == (False, "the device was lost")
    # Nobody waits for the second idle window, and one side is said to be missing.
    assert {part.which for part in result.idle_parts} == {"idle before"}
    assert any("one side only" in warning for warning in result.warnings)


def test_an_engine_that_dies_every_time_is_given_up(measure: Make) -> None:
    _, result = measure(lost(*range(6, 100)))
    assert (result.rounds, result.comparison, result.meter_failed) == (0, None, False)
    assert result.problem == "the device failed 3 times in a row: the device was restarted"


def test_a_meter_that_fails_every_time_is_given_up(measure: Make) -> None:
    _, result = measure(lambda number, driven: replace(driven, problem="no rail") if number > 5 else driven)
    assert result.meter_failed
    assert result.problem == "jetson failed 3 times in a row: no rail"


def test_warm_up_goes_by_the_temperature_there(measure: Make) -> None:
    warming = replace(PROTOCOL, warm_up_seconds=30.0)
    site, result = measure(protocol=warming, celsius=lambda now: min(60.0, 40.0 + (now - 40.0) / 2.0))
    assert result.warm_up.steady
    assert result.warm_up.why == "the temperature moved 0.0 K in 30 s"
    slices = [stretch for stretch in site.asked if not stretch.metered]
    assert {stretch.seconds for stretch in slices} == {5.0}
    # 40 s until it is warm, and 30 s more.
    assert 70.0 <= 5.0 * len(slices) <= 80.0
    assert result.blocks[0].celsius == pytest.approx(60.0)


def test_warm_up_survives_a_restart_but_not_a_dead_device(measure: Make) -> None:
    warming = replace(PROTOCOL, warm_up_seconds=30.0)
    _, result = measure(lost(1, 2), protocol=warming)
    assert result.warm_up.why.endswith("there is no temperature sensor")
    told = "2 stretches of the warm-up were lost with the device or its engine, and repeated"
    assert told in result.warnings
    with pytest.raises(LostError):
        measure(lost(1, 2, 3), protocol=warming)
    with pytest.raises(UnavailableError, match="does not answer"):
        measure(gone_from(2), protocol=warming)


def test_both_variants_of_a_round_get_the_same_arrivals(measure: Make) -> None:
    site, result = measure(load=Load(Arrivals.POISSON, 30.0, seed=4))
    seeds = [stretch.seed for stretch in site.asked]
    assert seeds[:8] == [4] * 4 + [5] * 4
    assert {(stretch.rate, stretch.poisson) for stretch in site.asked} == {(30.0, True)}
    first, second = result.blocks[0], result.blocks[1]
    assert first.count == second.count
    # At a rate both take the same time; the artifact draws less of it.
    assert result.comparison.ratio.value == pytest.approx(5.0)


def test_without_a_meter_the_load_alone_is_measured(measure: Make) -> None:
    site, result = measure(meter=None)
    assert result.comparison is None
    assert [block.joules for block in result.blocks] == [None] * 12
    assert {stretch.metered for stretch in site.asked} == {False}
    assert result.blocks[0].services_ms.percentiles((50.0,)) == pytest.approx([10.0])


def test_meters_and_machines_must_fit_together(
    fake_time: Any, make_engine: Make, make_meter: Make, feeds: Any
) -> None:
    site, other = FakeSite(fake_time), FakeSite(fake_time, name="ssh://user@other")
    there, elsewhere, here = FakeDistantEngine(site, 0.01), FakeDistantEngine(other, 0.01), make_engine(0.01)
    assert site_of((here, here)) is None
    assert site_of((there, there)) is site
    with pytest.raises(UsageError, match=r"different machines .* ssh://user@fake, ssh://user@other"):
        site_of((there, elsewhere))
    with pytest.raises(UsageError, match="this machine"):
        measure_latency((here, there), feeds, SHORT)
    with pytest.raises(UsageError, match="fake is not the meter of ssh://user@fake"):
        measure_energy(there, there, feeds, make_meter(), PROTOCOL)
    with pytest.raises(UsageError, match="jetson counts no energy on this machine"):
        measure_energy(here, here, feeds, METER, PROTOCOL)


def test_latency_is_timed_there_in_turns(fake_time: Any, feeds: Any) -> None:
    site = FakeSite(fake_time)
    slow, fast = FakeDistantEngine(site, 0.010), FakeDistantEngine(site, 0.004)
    result = measure_latency((slow, fast), feeds, SHORT)
    assert [latency.median for latency in result.latencies] == pytest.approx([10.0, 4.0])
    (ratio,) = result.ratios
    assert (ratio.low, ratio.value, ratio.high) == pytest.approx((2.5, 2.5, 2.5))
    assert (result.rounds, result.discarded, result.warnings, result.clean) == (10, 0, (), True)
    warm_up, blocks = site.asked[:2], site.asked[2:]
    assert [stretch.seconds for stretch in warm_up] == [0.5, 0.5]
    # 0.2 s a round hold 14 runs of both; every round goes on in the inputs where the last one ended.
    assert [(stretch.runs, stretch.first) for stretch in blocks[:6:2]] == [(14, 0), (14, 2), (14, 1)]


def test_disturbed_rounds_do_not_count(fake_time: Any, feeds: Any) -> None:
    def spoil(number: int, driven: Driven) -> Driven:
        if number == 5:
            return replace(driven, others=0.3, services_ms=[99.0] * driven.count)
        if number == 9:
            return replace(driven, suspended=3.0)
        return driven

    site = FakeSite(fake_time, spoil=spoil)
    result = measure_latency([FakeDistantEngine(site, 0.01), FakeDistantEngine(site, 0.01)], feeds, SHORT)
    assert (result.rounds, result.discarded) == (8, 2)
    assert result.warnings == (
        "2 of 10 rounds were discarded: the machine was suspended for 3.0 s; other processes were busy",
    )
    assert result.latencies[0].p99 == pytest.approx(10.0)


def test_lost_rounds_are_measured_again(fake_time: Any, feeds: Any) -> None:
    site = FakeSite(fake_time, spoil=lost(1, 4, 9))
    result = measure_latency([FakeDistantEngine(site, 0.01), FakeDistantEngine(site, 0.01)], feeds, SHORT)
    assert result.rounds == 10
    # The first was lost in the warm-up.
    assert result.warnings == (
        "3 stretches of the latency measurement were lost with the device or its engine, and repeated",
    )
    site = FakeSite(fake_time, spoil=lost(4, 5, 6))
    with pytest.raises(LostError):
        measure_latency([FakeDistantEngine(site, 0.01)], feeds, SHORT)

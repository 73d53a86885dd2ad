"""A budget as rows of the solver, the floors under it, and what is refused before anything is built."""

from __future__ import annotations

import itertools
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greencc.core.errors import ExitCode, LimitError, UsageError
from greencc.meters.device_store import stored_profiles
from greencc.planner.budget import BudgetLimit, Kind, Objective, parse_budget
from greencc.planner.limits import (
    Floor,
    conflicts,
    limits_for,
    lower_bounds,
    plan_floors,
    require_reachable,
)
from greencc.planner.physics import idle_floor, physics_floors
from greencc.planner.problem import Amounts, Limit, Option, Pair, Problem, Quantity, Unit, weigh

Q = Quantity
TAILS = {95: 1.1, 99: 1.2}


def totals(latency: float, energy: float, size: float = 0.0, macs: float = 0.0) -> dict[Quantity, float]:
    return {Q.LATENCY: latency, Q.ENERGY: energy, Q.SIZE: size, Q.MACS: macs, Q.ERROR: 0.0}


def keeps(limits: tuple[Limit, ...], of: dict[Quantity, float]) -> list[bool]:
    return [weigh(limit.weights, of) <= limit.bound + 1e-9 for limit in limits]


def test_plain_kinds_are_their_own_rows() -> None:
    limits = limits_for(parse_budget("20mJ,40MB,1GMACs"))
    assert [dict(limit.weights) for limit in limits] == [{Q.ENERGY: 1.0}, {Q.SIZE: 1.0}, {Q.MACS: 1.0}]
    assert [limit.bound for limit in limits] == [20.0, 40e6, 1e9]
    assert [limit.name for limit in limits] == ["20mJ", "40MB", "1GMACs"]


def test_a_percentile_is_the_median_times_its_measured_factor() -> None:
    limits = limits_for(parse_budget("10ms p50,11ms,12ms p99"), tails=TAILS)
    assert [dict(limit.weights) for limit in limits] == [{Q.LATENCY: 1.0}, {Q.LATENCY: 1.1}, {Q.LATENCY: 1.2}]
    assert keeps(limits, totals(10.0, 0.0)) == [True, True, True]
    assert keeps(limits, totals(10.01, 0.0)) == [False, False, False]


@pytest.mark.parametrize("tails", [None, {99: 1.2}, {95: math.nan}, {95: 0.0}])
def test_a_percentile_without_its_factor_is_refused(tails: dict[int, float] | None) -> None:
    with pytest.raises(UsageError, match="p95"):
        limits_for(parse_budget("33ms"), tails=tails)


@given(
    st.floats(0.1, 100.0), st.floats(0.1, 1000.0), st.floats(0.1, 50.0), st.floats(0.0, 40.0), st.booleans(),
    st.none() | st.floats(0.1, 1000.0),
)  # fmt: skip
def test_a_power_row_says_what_the_watts_say(
    latency: float, active: float, watts: float, idle: float, net: bool, rate: float | None
) -> None:
    """`active` millijoules above idle: the power is computed outright and compared with the row."""
    gross = active + idle * latency
    power = gross / latency if rate is None else idle + rate * active / 1e3
    if abs(power - watts) < 1e-6 * watts:
        return
    limits = limits_for((BudgetLimit(Kind.POWER, watts),), rate=rate, idle_watts=idle, net=net)
    kept = keeps(limits, totals(latency, active if net else gross))
    assert kept[0] == (power < watts)
    if rate is not None and abs(latency * rate - 1e3) > 1e-6:
        assert limits[1].name == f"keeping up with {rate:g}/s"
        assert kept[1] == (latency * rate < 1e3)
    assert len(limits) == (1 if rate is None else 2)


def test_gross_energies_do_without_the_idle_power_and_net_ones_do_not() -> None:
    (flat,) = limits_for(parse_budget("5W"))
    assert keeps((flat,), totals(10.0, 49.0)) == [True]
    assert keeps((flat,), totals(10.0, 51.0)) == [False]
    with pytest.raises(UsageError, match="idle power"):
        limits_for(parse_budget("5W"), net=True)


@pytest.mark.parametrize("rate", [0.0, -1.0, math.nan, math.inf])
def test_a_rate_out_of_range(rate: float) -> None:
    with pytest.raises(UsageError, match="the rate"):
        limits_for(parse_budget("5W"), rate=rate)


@pytest.mark.parametrize("idle", [-1.0, math.nan])
def test_an_idle_power_out_of_range(idle: float) -> None:
    with pytest.raises(UsageError, match="the idle power"):
        limits_for(parse_budget("5W"), idle_watts=idle)


def amounts(latency: float, energy: float, size: float) -> Amounts:
    return {Q.LATENCY: latency, Q.ENERGY: energy, Q.SIZE: size}


PROBLEM = Problem(
    units=(
        Unit("a", (Option("float", amounts(5.0, 50.0, 100.0)), Option("int8", amounts(2.0, 30.0, 30.0)))),
        Unit("b", (Option("float", amounts(4.0, 20.0, 80.0)), Option("int8", amounts(3.0, 9.0, 40.0)))),
    ),
    base=amounts(1.0, 2.0, 7.0),
)


def test_lower_bounds_are_sums_of_minima() -> None:
    limits = limits_for(parse_budget("5ms,40mJ,80B"), tails=TAILS)
    assert lower_bounds(PROBLEM, limits) == pytest.approx((6.6, 41.0, 77.0))


def test_a_pair_counts_where_it_lowers_the_sum() -> None:
    pairs = (
        Pair(("a", "int8"), ("b", "int8"), amounts(-0.5, 1.0, 0.0)),
        Pair(("a", "float"), ("b", "int8"), amounts(-9.0, -9.0, -9.0), forbidden=True),
    )
    problem = Problem(PROBLEM.units, pairs, PROBLEM.base)
    assert lower_bounds(problem, limits_for(parse_budget("5ms p50,40mJ"))) == (5.5, 41.0)


FIGURES = st.floats(0.1, 20.0)
OPTIONS = st.lists(st.tuples(FIGURES, FIGURES, FIGURES), min_size=1, max_size=3)


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    units = tuple(
        Unit(f"u{place}", tuple(Option(f"o{n}", amounts(*each)) for n, each in enumerate(options)))
        for place, options in enumerate(draw(st.lists(OPTIONS, min_size=1, max_size=3)))
    )
    return Problem(units, base=amounts(draw(FIGURES), draw(FIGURES), draw(FIGURES)))


@given(problems(), st.none() | st.floats(1.0, 50.0), st.floats(0.0, 5.0), st.booleans())
def test_floors_are_the_minima_over_all_plans(
    problem: Problem, rate: float | None, idle: float, net: bool
) -> None:
    """Without pairs nothing is lost: each floor is what the best of all plans takes."""
    budget = parse_budget("5W,20mJ,33ms,40MB")
    floors = plan_floors(problem, budget, rate=rate, idle_watts=idle, tails=TAILS, net=net)

    def figures(of: dict[Quantity, float]) -> tuple[float, ...]:
        own = of[Q.ENERGY] if net else of[Q.ENERGY] - idle * of[Q.LATENCY]
        watts = idle + (own / of[Q.LATENCY] if rate is None else rate * own / 1e3)
        return watts, of[Q.ENERGY], 1.1 * of[Q.LATENCY], of[Q.SIZE], of[Q.LATENCY]

    plans = itertools.product(
        *([(unit.name, option.name) for option in unit.options] for unit in problem.units)
    )
    reached = [figures(problem.totals(dict(plan))) for plan in plans]
    assert [floor.least for floor in floors] == pytest.approx(
        [min(each) for each in zip(*reached, strict=True)]
    )


def test_below_the_floor_every_bound_is_printed() -> None:
    budget = parse_budget("3W,1ms p50,20mJ,60B")
    floors = plan_floors(PROBLEM, budget, tails=TAILS)
    with pytest.raises(LimitError) as caught:
        require_reachable(budget, floors, None)
    assert caught.value.exit_code is ExitCode.LIMIT
    message = caught.value.message
    for least in ("3W is out", "1ms p50", "20mJ", "60B", "takes 6ms", "takes 41mJ", "takes 77B"):
        assert least in message, message
    assert "keeping up" not in message


def test_what_is_printed_as_the_least_is_not_refused() -> None:
    third = Problem((), base={Q.LATENCY: 1.0 / 3.0})
    with pytest.raises(LimitError, match=r"takes 333\.4us"):
        require_reachable(parse_budget("0.3ms p50"), plan_floors(third, parse_budget("0.3ms p50")), None)
    enough = parse_budget("333.4us p50")
    require_reachable(enough, plan_floors(third, enough), None)


def test_a_rate_that_no_plan_keeps_up_with() -> None:
    budget = parse_budget("500W")
    floors = plan_floors(PROBLEM, budget, rate=200.0, idle_watts=1.0)
    with pytest.raises(LimitError, match=r"keeping up with 200/s is out of reach: .* 6ms, that is 166\.7/s"):
        require_reachable(budget, floors, 200.0)
    require_reachable(budget, floors, 166.0)
    require_reachable(parse_budget("40MB"), floors, 200.0)  # the rate is for limits in W


def test_watts_below_idle() -> None:
    with pytest.raises(
        LimitError, match=r"2W is out of reach: without any work the device draws \(measured\) 2\.5W"
    ):
        require_reachable(parse_budget("2W"), [idle_floor(2.5)], None)
    require_reachable(parse_budget("2.5W"), [idle_floor(2.5)], None)


def test_a_floor_of_one_percentile_is_no_floor_of_another() -> None:
    floors = [Floor(Kind.LATENCY, 10.0, "measured", 99)]
    require_reachable(parse_budget("5ms p50"), floors, None)
    with pytest.raises(LimitError):
        require_reachable(parse_budget("5ms p99"), floors, None)


@pytest.mark.parametrize("name", [entry.name for entry in stored_profiles() if entry.origin == "shipped"])
def test_physics_of_every_shipped_device(name: str) -> None:
    profile = next(entry.profile for entry in stored_profiles() if entry.name == name)
    assert profile is not None
    for mode in profile.modes or (profile.mode(None),):
        small = physics_floors(profile, mode, macs=1e6, bytes_moved=1e5)
        large = physics_floors(profile, mode, macs=1e10, bytes_moved=1e9)
        assert [floor.kind for floor in small] == [Kind.LATENCY, Kind.ENERGY, Kind.POWER]
        assert all(0.0 < one.least <= other.least for one, other in zip(small, large, strict=True))
        if profile.peaks:
            # No more than an overhead above the time that the fastest type's peak allows.
            assert large[0].least >= 2e10 / (max(profile.peaks.values()) * mode.compute) * 1e3
        with pytest.raises(LimitError, match=name):
            require_reachable(parse_budget("1us p50"), large, None)


def test_physics_takes_the_measured_idle_power() -> None:
    profile = next(entry.profile for entry in stored_profiles() if entry.name == "jetson-orin-nano")
    assert profile is not None
    floors = physics_floors(profile, profile.mode("7W"), macs=1e9, bytes_moved=1e6, idle_watts=3.25)
    assert floors[-1].least == 3.25
    assert "jetson-orin-nano 7W" in floors[0].why


def test_the_least_error_without_a_budget_is_nothing_to_decide() -> None:
    with pytest.raises(UsageError, match="the model as it is"):
        conflicts((), Objective.ERROR, None)
    assert conflicts(parse_budget("40MB"), Objective.ERROR, None) == ()
    assert conflicts((), Objective.ENERGY, None) == ()


@pytest.mark.parametrize(
    ("text", "rate", "said"),
    [
        ("33ms", 30.0, "changes nothing.*33.33ms"),
        ("5W", None, "5W without --rate is the power flat out"),
        ("5W,50ms p50", 30.0, "50ms p50 says nothing beside --rate 30/s"),
    ],
)
def test_what_says_less_than_it_seems_is_a_warning(text: str, rate: float | None, said: str) -> None:
    (warning,) = conflicts(parse_budget(text), Objective.ENERGY, rate)
    assert re.search(said, warning)


@pytest.mark.parametrize(
    ("text", "rate"), [("5W", 30.0), ("33ms,40MB", None), ("5W,20ms p50,50ms p99", 30.0)]
)
def test_nothing_is_said_where_nothing_is_wrong(text: str, rate: float | None) -> None:
    assert conflicts(parse_budget(text), Objective.ENERGY, rate) == ()


def test_contradictions_of_limits_made_in_python() -> None:
    twice = (BudgetLimit(Kind.POWER, 5.0), BudgetLimit(Kind.POWER, 6.0))
    with pytest.raises(UsageError, match="two limits on the power"):
        conflicts(twice, Objective.ENERGY, None)

"""The Pareto front against trying everything, and the nearest plans."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greencc.core.errors import UsageError
from greencc.planner.front import front, reachable, undominated
from greencc.planner.problem import Limit, Option, Pair, Problem, Quantity, Unit
from greencc.planner.solve import Solution, least_violation

A, B, C = Quantity.ENERGY, Quantity.ERROR, Quantity.LATENCY


def small(seed: int) -> Problem:
    """Up to four units; amounts are whole multiples of very different scales, so that ties occur."""
    rng = np.random.default_rng(seed)
    scales = {A: 1e6, B: 1e-6, C: 1.0}

    def amounts(low: int, high: int) -> dict[Quantity, float]:
        return {q: float(scale * rng.integers(low, high)) for q, scale in scales.items()}

    units = tuple(
        Unit(f"u{i}", tuple(Option(f"o{k}", amounts(0, 9)) for k in range(rng.integers(1, 4))))
        for i in range(rng.integers(1, 5))
    )
    pairs = tuple(
        Pair((one.name, a.name), (other.name, b.name), amounts(-3, 4), forbidden=bool(rng.random() < 0.2))
        for one, other in itertools.combinations(units, 2)
        for a in one.options
        for b in other.options
        if rng.random() < 0.3
    )
    return Problem(units, pairs)


def everything(problem: Problem) -> list[dict[Quantity, float]]:
    """Totals of all that can be chosen."""
    names = [unit.name for unit in problem.units]
    every = itertools.product(*([option.name for option in unit.options] for unit in problem.units))
    choices = [dict(zip(names, options, strict=True)) for options in every]
    return [problem.totals(item) for item in choices if problem.allows(item, ())]


def rounded(totals: dict[Quantity, float], quantities: tuple[Quantity, ...]) -> tuple[int, ...]:
    """In whole multiples."""
    scales = {A: 1e6, B: 1e-6, C: 1.0}
    return tuple(round(totals[q] / scales[q]) for q in quantities)


def best_of(points: set[tuple[int, ...]]) -> set[tuple[int, ...]]:
    return {
        point
        for point in points
        if not any(
            other != point and all(x <= y for x, y in zip(other, point, strict=True)) for other in points
        )
    }


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1), st.sampled_from([(A, B), (B, A), (A, B, C)]))
def test_all_points_are_those_that_trying_everything_finds(
    seed: int, quantities: tuple[Quantity, ...]
) -> None:
    problem = small(seed)
    found = front(problem, quantities, steps=None, gap=1e-9)
    expected = best_of({rounded(totals, quantities) for totals in everything(problem)})
    assert [rounded(point.totals, quantities) for point in found] == sorted(expected)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1), st.sampled_from([(A, B), (A, B, C)]))
def test_a_sweep_finds_points_of_the_front_and_its_ends(seed: int, quantities: tuple[Quantity, ...]) -> None:
    problem = small(seed)
    every = everything(problem)
    found = [rounded(point.totals, quantities) for point in front(problem, quantities, steps=4)]
    expected = best_of({rounded(totals, quantities) for totals in every})
    assert set(found) <= expected
    assert len(found) == len(set(found))
    if every:
        for axis in range(len(quantities)):
            assert min(point[axis] for point in found) == min(point[axis] for point in expected)


def test_a_front_keeps_the_limits() -> None:
    problem = small(7)
    bound = sorted(totals[C] for totals in everything(problem))[2]
    limit = Limit("latency", {C: 1.0}, bound)
    found = front(problem, (A, B), [limit], steps=None)
    assert found
    assert all(point.totals[C] <= bound for point in found)
    assert front(problem, (A, B), [Limit("latency", {C: 1.0}, -1e3)]) == ()


def test_what_a_front_needs() -> None:
    with pytest.raises(UsageError, match="two or three"):
        front(small(1), (A,))
    with pytest.raises(UsageError, match="two or three"):
        front(small(1), (A, A))
    with pytest.raises(UsageError, match="steps"):
        front(small(1), (A, B), steps=1)


def point(energy: float, error: float) -> Solution:
    totals = dict.fromkeys(Quantity, 0.0) | {A: energy, B: error}
    return Solution({}, totals, energy, energy, 0.0, optimal=True)


def test_dominated_and_equal_points_go() -> None:
    points = [point(2, 2), point(1, 3), point(2, 2), point(2, 3), point(3, 1)]
    assert [item.totals[A] for item in undominated(points, (A, B))] == [1, 2, 3]


def test_what_is_reachable_when_two_limits_conflict() -> None:
    options = (
        Option("float", {A: 10.0, B: 0.0}),
        Option("half", {A: 6.0, B: 1.0}),
        Option("int8", {A: 4.0, B: 4.0}),
    )
    problem = Problem((Unit("u", options), Unit("v", options)))
    limits = [Limit("10mJ", {A: 1.0}, 10.0), Limit("error", {B: 1.0}, 2.0)]
    closest = least_violation(problem, limits)
    assert closest is not None
    # 12 against 10; everything else breaks one of the two by more.
    assert closest.value == pytest.approx(0.2)
    assert closest.value == pytest.approx(0.2)
    energy, error = reachable(problem, limits)
    assert energy.alone is not None
    assert energy.others is not None
    assert (energy.alone.totals[A], energy.others.totals[A]) == (8.0, 12.0)
    assert error.alone is not None
    assert error.others is not None
    assert (error.alone.totals[B], error.others.totals[B]) == (0.0, 5.0)

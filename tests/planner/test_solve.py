"""The exact solver against trying everything."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greencc.core.errors import UsageError
from greencc.planner import exact
from greencc.planner import solve as solver
from greencc.planner.elimination import Elimination, elimination_order
from greencc.planner.problem import Limit, Option, Pair, Problem, Quantity, Unit
from greencc.planner.relax import relax
from greencc.planner.solve import UndecidedError, least_violation, solve
from greencc.planner.tables import build_tables

COSTS = (Quantity.LATENCY, Quantity.ENERGY, Quantity.SIZE)
GAP = 1e-6


@dataclass(frozen=True)
class Case:
    """A small problem, its limits, and the totals of everything that could be chosen (limits not asked)."""

    problem: Problem
    limits: tuple[Limit, ...]
    possible: tuple[tuple[dict[str, str], dict[Quantity, float]], ...]

    def best(self, quantity: Quantity) -> float | None:
        kept = [
            totals[quantity] for chosen, totals in self.possible if self.problem.allows(chosen, self.limits)
        ]
        return min(kept, default=None)


def random_case(seed: int, spread: int) -> Case:
    """Up to five units of up to four options; amounts of each quantity about 10**-spread to 10**spread."""
    rng = np.random.default_rng(seed)
    scales = {quantity: 10.0 ** rng.integers(-spread, spread + 1) for quantity in COSTS}
    count = int(rng.integers(1, 6))

    def amounts(low: float, high: float) -> dict[Quantity, float]:
        # Whole multiples make ties and totals that meet a bound exactly.
        whole = rng.random() < 0.5
        draw = {q: rng.uniform(low, high) for q in COSTS}
        return {q: float(scales[q] * (round(draw[q]) if whole else draw[q])) for q in COSTS}

    units = tuple(
        Unit(f"u{i}", tuple(Option(f"o{k}", amounts(-3, 10)) for k in range(rng.integers(1, 5))))
        for i in range(count)
    )
    pairs = []
    for first, second in itertools.combinations(units, 2):
        if rng.random() < 0.5:
            continue
        for one, other in itertools.product(first.options, second.options):
            kind = rng.random()
            ends = ((first.name, one.name), (second.name, other.name))
            if kind < 0.4:
                pairs.append(Pair(*ends, amounts(-3, 3)))
            elif kind < 0.5:
                pairs.append(Pair(ends[1], ends[0], forbidden=True))
    barred = []
    for _ in range(rng.integers(0, 3)):
        some = rng.choice(count, int(rng.integers(1, count + 1)), replace=False)
        barred.append(
            frozenset(
                (units[i].name, units[i].options[rng.integers(len(units[i].options))].name) for i in some
            )
        )
    problem = Problem(units, tuple(pairs), {COSTS[0]: 3 * scales[COSTS[0]]}, tuple(barred))
    names = [unit.name for unit in units]
    every = itertools.product(*([option.name for option in unit.options] for unit in units))
    choices = [dict(zip(names, options, strict=True)) for options in every]
    possible = tuple((item, problem.totals(item)) for item in choices if problem.allows(item, ()))
    limits = []
    for quantity in COSTS[1 : 1 + int(rng.integers(0, 3))]:
        seen = sorted(problem.totals(item)[quantity] for item in choices)
        bound = seen[int(len(seen) * rng.uniform(0, 0.7))]
        limits.append(Limit(quantity.value, {quantity: 1.0}, float(bound)))
    return Case(problem, tuple(limits), possible)


@pytest.fixture(
    autouse=True, params=[0, solver.FEW], ids=["integer program", "few are tried"], scope="module"
)
def few(request: pytest.FixtureRequest) -> Iterator[None]:
    """What is left is mostly so little in small problems that all of it is tried; HiGHS must find the same."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(solver, "FEW", request.param)
        yield


cases = st.builds(random_case, seed=st.integers(0, 2**32 - 1), spread=st.sampled_from((0, 3, 9)))
every_case = settings(max_examples=60, deadline=None, derandomize=True)


@every_case
@given(cases)
def test_the_plan_is_what_trying_everything_finds(case: Case) -> None:
    best = case.best(COSTS[0])
    found = solve(case.problem, {COSTS[0]: 1.0}, case.limits, gap=GAP)
    if best is None or found is None:
        assert best is None
        assert found is None
        return
    assert case.problem.allows(found.chosen, case.limits)
    assert found.totals == case.problem.totals(found.chosen)
    largest = max(abs(totals[COSTS[0]]) for _, totals in case.possible)
    assert found.value <= best + GAP * abs(best) + 1e-12 * largest
    # The bound is honest whether or not the gap was closed.
    assert found.bound <= best + 1e-12 * largest
    assert found.optimal == (found.value - found.bound <= GAP * abs(found.value) * (1 + 1e-9))


@every_case
@given(cases)
def test_the_least_violation_is_what_trying_everything_finds(case: Case) -> None:
    found = least_violation(case.problem, case.limits, gap=GAP)
    # As `Problem.allows` has it, a bound is exceeded from its tolerance on.
    loose = [
        Limit(item.name, item.weights, item.bound + 1e-9 * max(1.0, abs(item.bound))) for item in case.limits
    ]
    sizes = [abs(item.bound) or 1.0 for item in case.limits]

    def broken(totals: dict[Quantity, float]) -> float:
        excess = [totals[COSTS[1 + i]] - item.bound for i, item in enumerate(loose)]
        return max(0.0, *(over / size for over, size in zip(excess, sizes, strict=True))) if loose else 0.0

    if found is None:
        assert not case.possible
        return
    assert case.problem.allows(found.chosen, ())
    best = min(broken(totals) for _, totals in case.possible)
    noise = 1e-12 * max(
        [1.0, *(abs(t[COSTS[1 + i]]) / s for _, t in case.possible for i, s in enumerate(sizes))]
    )
    assert broken(found.totals) <= best * (1 + GAP) + noise + 2e-9


@every_case
@given(cases, st.integers(0, 4))
def test_a_known_plan_never_makes_the_answer_worse(case: Case, which: int) -> None:
    kept = [chosen for chosen, _ in case.possible if case.problem.allows(chosen, case.limits)]
    if not kept:
        return
    start = kept[which % len(kept)]
    found = solve(case.problem, {COSTS[0]: 1.0}, case.limits, start=start)
    assert found is not None
    assert found.value <= case.problem.totals(start)[COSTS[0]] + 1e-12 * abs(found.value)


@every_case
@given(cases, st.floats(0.0, 2.0))
def test_more_budget_is_never_worse(case: Case, more: float) -> None:
    tight = solve(case.problem, {COSTS[0]: 1.0}, case.limits, gap=GAP)
    if tight is None:
        return
    wider = [Limit(item.name, item.weights, item.bound + more * abs(item.bound)) for item in case.limits]
    loose = solve(case.problem, {COSTS[0]: 1.0}, wider, gap=GAP)
    assert loose is not None
    largest = max(abs(totals[COSTS[0]]) for _, totals in case.possible)
    assert loose.value <= tight.value + GAP * abs(tight.value) + 1e-12 * largest


@every_case
@given(cases)
def test_the_relaxation_never_promises_too_much(case: Case) -> None:
    tables = build_tables(case.problem, {COSTS[0]: 1.0}, case.limits)
    best = case.best(COSTS[0])
    if tables is None:
        assert best is None
        return
    found = relax(tables, lambda labels: case.problem.allows(tables.assignment(labels), case.limits))
    if best is None:
        assert found.labels is None
        return
    largest = max(abs(totals[COSTS[0]]) for _, totals in case.possible)
    assert found.bound <= best + 1e-11 * largest
    for chosen, totals in case.possible:
        labels = [
            options.index(chosen[unit]) for unit, options in zip(tables.units, tables.options, strict=True)
        ]
        # Plans with an option that was taken out as dominated are not bounded by it.
        if case.problem.allows(chosen, case.limits) and tables.usable[range(len(labels)), labels].all():
            bounds = found.forced[range(len(labels)), labels]
            assert bounds.max() <= totals[COSTS[0]] + 1e-8 * largest


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1))
def test_elimination_is_a_bound_and_exact_where_nothing_is_split(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count, options = int(rng.integers(1, 7)), int(rng.integers(1, 4))
    joined = [pair for pair in itertools.combinations(range(count), 2) if rng.random() < rng.random() + 0.3]
    order = elimination_order(count, np.array(joined, int).reshape(-1, 2))
    single = rng.normal(size=(count, options))
    joint = rng.normal(size=(len(joined), options, options))
    least = np.full((count, options), np.inf)
    for labels in itertools.product(range(options), repeat=count):
        value = sum(single[i, k] for i, k in enumerate(labels))
        value += sum(joint[e, labels[u], labels[v]] for e, (u, v) in enumerate(joined))
        least[np.arange(count), labels] = np.minimum(least[np.arange(count), labels], value)
    found = Elimination(order, single, joint)
    forced = found.forced()
    assert found.value <= least.min() + 1e-9
    assert (forced <= least + 1e-9).all()
    if order.exact:
        np.testing.assert_allclose(forced, least)
        labels = found.labels()
        assert least[np.arange(count), labels].max() == pytest.approx(found.value)


def test_rings_are_exact_and_dense_graphs_are_not() -> None:
    ring = np.array([(i, (i + 1) % 9) for i in range(9)])
    assert elimination_order(9, ring).exact
    assert not elimination_order(5, np.array(list(itertools.combinations(range(5), 2)))).exact


def chain(count: int, options: int, seed: int = 0) -> tuple[Problem, Limit]:
    """Neighbours joined, and a limit on the error that about half of what can be saved must be given up for."""
    rng = np.random.default_rng(seed)
    units = tuple(
        Unit(
            f"u{i}",
            tuple(
                Option(
                    f"o{k}",
                    {
                        Quantity.ENERGY: float(rng.uniform(0.5, 1) * (options - k) * 1e-9),
                        Quantity.ERROR: float(rng.uniform(0.5, 1) * k * 1e9),
                    },
                )
                for k in range(options)
            ),
        )
        for i in range(count)
    )
    pairs = tuple(
        Pair((f"u{i}", f"o{a}"), (f"u{i + 1}", f"o{b}"), {Quantity.ENERGY: float(rng.normal() * 1e-10)})
        for i in range(count - 1)
        for a in range(options)
        for b in range(options)
        if rng.random() < 0.3
    )
    problem = Problem(units, pairs)
    return problem, Limit("error", {Quantity.ERROR: 1.0}, 0.4 * count * (options - 1) * 1e9)


def test_a_large_plan_is_proven_and_the_same_every_time() -> None:
    problem, limit = chain(120, 8)
    found = solve(problem, {Quantity.ENERGY: 1.0}, [limit])
    again = solve(problem, {Quantity.ENERGY: 1.0}, [limit])
    assert found is not None
    assert again is not None
    assert found.optimal
    assert 0 <= found.gap <= GAP * (1 + 1e-9)
    assert again.chosen == found.chosen
    assert problem.allows(found.chosen, [limit])


def test_without_time_for_a_proof_the_gap_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        exact.Program,
        "solve",
        lambda self, gap, seconds: exact.Found(exact.Ending.STOPPED, None, -np.inf),
    )
    problem, limit = chain(40, 6)
    found = solve(problem, {Quantity.ENERGY: 1.0}, [limit], gap=0.0)
    assert found is not None
    assert not found.optimal
    assert 0 < found.gap < 0.1
    monkeypatch.undo()
    best = solve(problem, {Quantity.ENERGY: 1.0}, [limit], gap=0.0)
    assert best is not None
    assert found.bound <= best.value <= found.value


def test_without_a_plan_in_time_it_is_undecided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        exact.Program,
        "solve",
        lambda self, gap, seconds: exact.Found(exact.Ending.STOPPED, None, -np.inf),
    )
    monkeypatch.setattr(solver, "FEW", 0)
    # What the relaxation proposes is barred, and nothing improves it.
    monkeypatch.setattr("greencc.planner.relax.improved", lambda *rest: iter(()))
    units = tuple(Unit(name, (Option("a"), Option("b", {Quantity.ENERGY: 1.0}))) for name in ("x", "y", "z"))
    barred = (frozenset((unit.name, "a") for unit in units),)
    with pytest.raises(UndecidedError, match="more time"):
        solve(Problem(units, barred=barred), {Quantity.ENERGY: 1.0}, [])
    monkeypatch.undo()
    found = solve(Problem(units, barred=barred), {Quantity.ENERGY: 1.0}, [])
    assert found is not None
    assert found.value == 1.0


def test_an_answer_beyond_the_tolerance_is_refused_and_sought_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """HiGHS may break a row by its tolerance; what the problem does not allow is never returned."""
    monkeypatch.setattr(solver, "FEW", 0)
    problem, limit = chain(12, 4)
    real = exact.Program.solve
    asked: list[int] = []

    def loose(self: exact.Program, gap: float, seconds: float) -> exact.Found:
        asked.append(1)
        if len(asked) == 1:
            # Every unit at its most compressed: over the limit.
            return exact.Found(exact.Ending.CLOSED, np.full(12, 3), 0.0)
        return real(self, gap, seconds)

    monkeypatch.setattr(exact.Program, "solve", loose)
    found = solve(problem, {Quantity.ENERGY: 1.0}, [limit], gap=0.0)
    monkeypatch.undo()
    best = solve(problem, {Quantity.ENERGY: 1.0}, [limit], gap=0.0)
    assert found is not None
    assert best is not None
    assert len(asked) > 1
    assert problem.allows(found.chosen, [limit])
    assert found.value == pytest.approx(best.value, rel=1e-9)


def test_a_problem_without_units_or_with_an_empty_barred_set() -> None:
    nothing = solve(Problem(()), {Quantity.ENERGY: 1.0}, [])
    assert nothing is not None
    assert nothing.chosen == {}
    over = solve(Problem((), base={Quantity.SIZE: 2.0}), {}, [Limit("size", {Quantity.SIZE: 1.0}, 1.0)])
    assert over is None
    unit = Unit("u", (Option("a"),))
    assert solve(Problem((unit,), barred=(frozenset(),)), {}, []) is None


def test_equal_rows_of_a_table_share_their_variables() -> None:
    options = tuple(Option(f"{kind}{k}") for kind in ("float", "int") for k in range(10))
    units = (Unit("a", options), Unit("b", options))
    pairs = tuple(
        Pair(("a", one.name), ("b", other.name), {Quantity.LATENCY: 1.0})
        for one in options
        for other in options
        if one.name[:3] != other.name[:3]
    )
    tables = build_tables(Problem(units, pairs), {Quantity.LATENCY: 1.0}, [])
    assert tables is not None
    columns, _ = exact.Program(tables, np.ones((2, 20), bool)).size
    assert columns == 20 + 20 + 4 + 1


@pytest.mark.parametrize(
    ("objective", "bound", "pair"),
    [(math.nan, 1.0, 0.0), (1.0, math.inf, 0.0), (1.0, 1.0, math.nan)],
)
def test_numbers_that_are_not_finite_are_named(objective: float, bound: float, pair: float) -> None:
    units = (Unit("a", (Option("x"),)), Unit("b", (Option("x"),)))
    problem = Problem(units, (Pair(("a", "x"), ("b", "x"), {Quantity.SIZE: pair}),))
    limit = Limit("size", {Quantity.SIZE: 1.0}, bound)
    with pytest.raises(UsageError, match="not finite"):
        solve(problem, {Quantity.SIZE: objective}, [limit])


def test_a_start_that_does_not_fit_and_options_out_of_range() -> None:
    problem = Problem((Unit("a", (Option("x"),)),))
    with pytest.raises(UsageError, match="'a'"):
        solve(problem, {}, [], start={"a": "y"})
    with pytest.raises(UsageError, match="gap"):
        solve(problem, {}, [], gap=-1.0)

"""Solve, build, verify, correct the tables, solve again.

What an error of the outputs does to the accuracy is not known, so the error that a plan may have is found by bisection:
verified plans that hold raise it, those that do not lower it, in units of the error that was measured of them. Every
verified plan also corrects the tables: by kind of unit, how much more or less error came out than their sum, and how
much more or less time was saved. The search ends when a plan comes out that is known, when no plan between the best
one that holds and the worst that does not is left, when several plans in a row are no better, or when time is over.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from greencc.compiler.options import Effort
from greencc.compiler.planning.assembly import Corrections, Tables, make_problem
from greencc.compiler.planning.points import Point
from greencc.compiler.planning.space import Kind, Space
from greencc.compiler.planning.verifier import CannotBuildError, Verifier
from greencc.compiler.session import Deadline
from greencc.core.report_plan import Prediction
from greencc.planner.budget import Objective
from greencc.planner.problem import Assignment, Limit, Problem, Quantity, weigh
from greencc.planner.solve import Solution, UndecidedError, least_violation, solve

ROUNDS = {Effort.QUICK: 4, Effort.STANDARD: 14, Effort.FULL: 40}
_PATIENCE = 5
# A smaller gain than this is none.
_BETTER = 1e-3
# Plans that differ by less error than this are one.
_CLOSE = 1.15
# By how much the error allowed moves at most from one plan to the next.
_STEP = 16.0
_CORRECTION = (0.05, 20.0)
# Seconds of one solution at most.
_SOLVE_SECONDS = 10.0
# Options whose error is measured alone before they are built together, per solution.
_MEASURED = 4
# Those with a smaller part of a plan's error are taken as predicted.
_MATTERS = 0.05


@dataclass
class Bracket:
    """The error that plans may have: `low` held, `high` did not."""

    low: float = 0.0
    high: float = math.inf

    def learn(self, error: float, *, holds: bool) -> None:
        """A verified plan had this error."""
        if holds:
            self.low = max(self.low, error)
            self.high = max(self.high, self.low)
        elif error > self.low:
            self.high = min(self.high, error)

    def next(self, loss: float, limit: float) -> float:
        """What to allow next, after a plan that lost so much: decisions change with the root of the divergence."""
        if math.isinf(self.high):
            factor = (limit / loss) ** 2 if loss > 0.0 else _STEP
            return self.low * min(max(factor, 2.0), _STEP)
        if self.low <= 0.0:
            return self.high / 4.0
        return math.sqrt(self.low * self.high)

    @property
    def closed(self) -> bool:
        return self.low > 0.0 and self.high / self.low < _CLOSE


@dataclass
class Log:
    """What the search did, for the report."""

    solutions: int = 0
    seconds: float = 0.0
    gap: float = 0.0
    predictions: list[Prediction] = field(default_factory=list)
    ended: str = ""
    pairs: int = 0
    nearest: Solution | None = None

    def add(self, solution: Solution) -> None:
        self.solutions += 1
        self.seconds += solution.seconds
        self.gap = max(self.gap, solution.gap)


@dataclass
class Search:
    """See the module.

    Attributes:
        verifier: Makes points.
        space: What may be decided.
        tables: What that costs.
        objective: What is minimised.
        limits: Rows of the budget, for the tails of the latency that were seen so far.
        keeps: Whether a point keeps the budget.
        measure_errors: Errors of assignments, built and run; None of those that cannot be built.
        max_drop: The limit of the loss on the planning split.
        few: The smallest loss that the planning split can show.
        deadline: When to stop.
        rounds: Plans at most.
    """

    verifier: Verifier
    space: Space
    tables: Tables
    objective: Objective
    limits: Callable[[], Sequence[Limit]]
    keeps: Callable[[Point], bool]
    measure_errors: Callable[[Sequence[Assignment]], Sequence[float | None]]
    max_drop: float
    few: float
    deadline: Deadline
    rounds: int
    corrections: Corrections = field(default_factory=Corrections)
    log: Log = field(default_factory=Log)
    points: list[Point] = field(default_factory=list)
    slack: dict[str, float] = field(default_factory=dict)
    _barred: list[frozenset[tuple[str, str]]] = field(default_factory=list)
    _seen: dict[str, Point] = field(default_factory=dict)

    def run(self, start: Point | None) -> None:
        """Search; `start` is a form whose loss and error are known, such as the one with all layers in integers."""
        bracket = Bracket()
        loss, allowed = self.few, max(self.tables.errors.values(), default=0.0)
        if start is not None:
            loss = max(start.figures.loss or 0.0, self.few)
            holds = (start.figures.loss or 0.0) <= self.max_drop
            bracket.learn(start.figures.error, holds=holds)
            allowed = bracket.next(loss, self.max_drop)
        idle = known = 0
        best = math.inf
        while True:
            if self.deadline.over:
                self.log.ended = "the time budget was over"
                return
            if self.verifier.built >= self.rounds or len(self._seen) >= 4 * self.rounds:
                self.log.ended = f"{self.rounds} plans were built (--effort full builds more)"
                return
            solution = self._solve(allowed)
            if solution is None:
                # Less error than this leaves no plan that keeps the budget.
                hopeless = math.isinf(allowed) or self.objective is Objective.ERROR
                if not hopeless:
                    bracket.low = max(bracket.low, allowed, 1e-6 * self._largest_error())
                if hopeless or bracket.closed:
                    self._out_of_reach()
                    return
                allowed = self._next(bracket, loss)
                continue
            before = len(self.points)
            point = self._point(solution)
            if point is None:
                continue
            new = len(self.points) > before
            loss = max(point.figures.loss or 0.0, self.few)
            holds = (point.figures.loss or 0.0) <= self.max_drop
            if self.objective is Objective.ERROR:
                if self.keeps(point):
                    self.log.ended = "the plan with the least error that the tables know keeps the budget"
                    return
                known += not new
                if known > _PATIENCE:
                    self.log.ended = "no other plan comes out of the tables"
                    return
                continue
            if holds and not new and math.isinf(bracket.high) and math.isinf(allowed):
                self.log.ended = "no option is left that makes the plan better"
                return
            # A plan that is known stands for all up to the error that was allowed.
            bracket.learn(max(point.figures.error, 1e-12) if new else allowed, holds=holds)
            if bracket.closed:
                self.log.ended = (
                    "no plan is left between the best one that holds and the next one, which does not"
                )
                return
            if not holds and not new and math.isinf(allowed):
                self.log.ended = "no plan keeps both the budget and the accuracy, by the tables"
                return
            allowed = self._next(bracket, loss)
            if not new:
                continue
            value = self._value(point)
            if holds and self.keeps(point) and value < best * (1.0 - _BETTER):
                best, idle = value, 0
            else:
                idle += 1
            if idle >= _PATIENCE:
                self.log.ended = f"{_PATIENCE} plans in a row were no better"
                return

    def problem(self) -> Problem:
        """With the corrections so far."""
        found = make_problem(self.space, self.tables, self.corrections)
        self.log.pairs = len(found.pairs)
        return replace(found, barred=tuple(self._barred))

    def rows(self) -> list[Limit]:
        """The budget, tightened by what verified plans took beyond what was predicted."""
        return [
            replace(limit, bound=limit.bound * self.slack.get(limit.name, 1.0))
            if limit.bound > 0.0
            else limit
            for limit in self.limits()
        ]

    def _solve(self, allowed: float) -> Solution | None:
        """The best plan by the tables with at most such an error; errors of what it takes are measured alone first."""
        for _ in range(2):
            problem, rows = self.problem(), self.rows()
            if math.isfinite(allowed) and self.objective is not Objective.ERROR:
                rows.append(Limit("error", {Quantity.ERROR: 1.0}, allowed))
            try:
                solution = solve(problem, self.objective.weights, rows, seconds=_SOLVE_SECONDS)
            except UndecidedError:
                # Nothing was found in time: for the search that is as if there were nothing.
                return None
            if solution is None:
                return None
            self.log.add(solution)
            if not self._measure(solution):
                return solution
        return solution

    def _measure(self, solution: Solution) -> bool:
        """Measure the errors of structural options in a solution; whether any is far from what was predicted."""
        wanted = [
            pair
            for pair in solution.chosen.items()
            if pair in self.space.offers and pair not in self.tables.measured
        ]
        total = solution.totals[Quantity.ERROR]
        known = self.tables.errors
        wanted = [pair for pair in wanted if known.get(pair, 0.0) >= _MATTERS * total]
        wanted = sorted(wanted, key=lambda pair: -known.get(pair, 0.0))[:_MEASURED]
        far = False
        plans = [self.space.alone(self.space.unit(name), option) for name, option in wanted]
        errors = self.measure_errors(plans) if plans else []
        if self.deadline.over:
            return False
        for (name, option), found in zip(wanted, errors, strict=True):
            self.tables.measured.add((name, option))
            if found is None:
                self._barred.append(frozenset({(name, option)}))
                far = True
                continue
            before = self.tables.errors.get((name, option), 0.0)
            self.tables.errors[name, option] = found
            far |= not 0.5 <= (found + 1e-12) / (before + 1e-12) <= 2.0
        return far

    def _point(self, solution: Solution) -> Point | None:
        """The verified point of a solution; None where it cannot be built (it is barred then)."""
        steps = self.space.steps(solution.chosen)
        if (known := self._seen.get(str(steps))) is not None:
            return known
        try:
            point = self.verifier.verify(
                steps,
                self.space.summary(solution.chosen),
                chosen=dict(solution.chosen),
                predicted=solution.totals,
            )
        except CannotBuildError as error:
            touched = self.space.untouched()
            picked = {pair for pair in solution.chosen.items() if pair[1] != touched[pair[0]]}
            structural = frozenset(pair for pair in picked if pair in self.space.offers)
            self.verifier.session.warn(f"a plan could not be built and was left out: {error}")
            self._barred.append(structural or frozenset(picked))
            return None
        self._seen[str(steps)] = point
        self.points.append(point)
        self._learn(point)
        return point

    def _learn(self, point: Point) -> None:
        """Compare a point with what the tables said of it, and correct them."""
        found = point.figures.amounts()
        for quantity, unit in (
            (Quantity.LATENCY, "ms"),
            (Quantity.ENERGY, "mJ"),
            (Quantity.SIZE, "bytes"),
            (Quantity.ERROR, ""),
        ):
            measured = found[quantity]
            if measured is not None and quantity in point.predicted:
                self.log.predictions.append(
                    Prediction(point.name, quantity.value, unit, point.predicted[quantity], measured)
                )
        self._correct(point)
        for limit in self.limits():
            if any(found.get(quantity) is None for quantity in limit.weights) or limit.bound <= 0.0:
                continue
            measured = weigh(limit.weights, {key: value or 0.0 for key, value in found.items()})
            predicted = weigh(limit.weights, point.predicted)
            if measured > limit.bound and predicted <= limit.bound and predicted > 0.0:
                self.slack[limit.name] = self.slack.get(limit.name, 1.0) * 0.99 * predicted / measured

    def _correct(self, point: Point) -> None:
        assert point.chosen is not None
        problem = make_problem(self.space, self.tables, self.corrections)
        errors: dict[Kind, float] = dict.fromkeys(Kind, 0.0)
        saved: dict[Kind, float] = dict.fromkeys(Kind, 0.0)
        for unit in problem.units:
            option = next(item for item in unit.options if item.name == point.chosen[unit.name])
            kind = self.space.unit(unit.name).kind
            errors[kind] += option.amounts.get(Quantity.ERROR, 0.0)
            saved[kind] += max(-option.amounts.get(Quantity.LATENCY, 0.0), 0.0)
        total = sum(errors.values())
        if total > 0.0 and point.figures.error > 0.0:
            _scale(self.corrections.error, errors, point.figures.error / total)
        base = self.tables.base[Quantity.LATENCY]
        expected = base - point.predicted.get(Quantity.LATENCY, base)
        if expected > 0.02 * base:
            factor = max(base - point.figures.latency_ms[50], 0.0) / expected
            _scale(self.corrections.saved, saved, min(max(factor, 0.3), 2.0))

    def _out_of_reach(self) -> None:
        """No plan keeps the budget by the tables: verify the nearest one."""
        problem, rows = self.problem(), self.rows()
        nearest = least_violation(problem, rows)
        if nearest is not None:
            self.log.nearest = nearest
            self._point(nearest)
        self.log.ended = "no plan keeps the budget, by the tables"

    def _next(self, bracket: Bracket, loss: float) -> float:
        """The error to allow next; without end where it is more than any plan has."""
        found = bracket.next(loss, self.max_drop)
        return math.inf if math.isinf(bracket.high) and found >= self._largest_error() else found

    def _largest_error(self) -> float:
        """More than any plan has by the tables."""
        kinds = {unit.name: unit.kind for unit in self.space.units}
        return sum(
            value * self.corrections.of_error(kinds[name])
            for (name, _), value in self.tables.errors.items()
            if name in kinds
        )

    def _value(self, point: Point) -> float:
        """What is minimised, as it was found."""
        found = point.figures.amounts()
        if any(found[quantity] is None for quantity in self.objective.weights):
            return math.inf
        return weigh(self.objective.weights, {key: value or 0.0 for key, value in found.items()})


def _scale(factors: dict[Kind, float], parts: dict[Kind, float], ratio: float) -> None:
    """Spread what came out over what was expected over the kinds, in proportion to their parts."""
    total = sum(parts.values())
    if total <= 0.0 or ratio <= 0.0:
        return
    for kind, part in parts.items():
        if part > 0.0:
            value = factors.get(kind, 1.0) * ratio ** (part / total)
            factors[kind] = min(max(value, _CORRECTION[0]), _CORRECTION[1])

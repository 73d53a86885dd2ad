"""Solve, build, verify, correct the tables, solve again.

What an error of the outputs does to the accuracy is not known, so the error that a plan may have is found by bisection:
verified plans that hold raise it, those that do not lower it, in units of the error that was measured of them. Every
verified plan also corrects the tables: by kind of unit, how much more or less error came out than their sum, and how
much more or less time was saved. The search ends when a plan comes out that is known, when no plan between the best
one that holds and the worst that does not is left, when several plans in a row are no better, or when time is over.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from greencc.compiler.options import Effort
from greencc.compiler.planning.assembly import Corrections, Tables, make_problem
from greencc.compiler.planning.points import Point
from greencc.compiler.planning.space import WHOLE, Kind, Number, Space
from greencc.compiler.planning.verifier import CannotBuildError, Verifier
from greencc.compiler.session import Deadline
from greencc.core.report_plan import Prediction
from greencc.planner.budget import Objective
from greencc.planner.front import front
from greencc.planner.problem import Assignment, Limit, Problem, Quantity, weigh
from greencc.planner.solve import Solution, UndecidedError, least_violation, solve

ROUNDS = {Effort.QUICK: 4, Effort.STANDARD: 14, Effort.FULL: 40}
_PATIENCE = 5
_ROUNDING = 1e-9
# No error at all could not be raised by a factor.
_LEAST_ERROR = 1e-12
# A smaller gain than this is none.
_BETTER = 1e-3
# A plan that is predicted to be so much worse than the best verified one is not built.
_HOPELESS = 1.02
# Plans that differ by less error than this are one.
_CLOSE = 1.15
# By how much the error allowed moves at most from one plan to the next.
_STEP = 6.0
_CORRECTION = (0.05, 20.0)
# Nothing saves much more than all of what it takes.
_SAVED = (0.4, 1.1)
# Seconds of one solution at most.
_SOLVE_SECONDS = 10.0
# Of a solution: what the tables know is far rougher.
_GAP = 1e-4
_FRONT_STEPS, _FRONT_GAP, _FRONT_SECONDS = 9, 1e-3, 15.0
# Options whose error is measured alone before they are built together, per solution.
_MEASURED = 4
# Those with a smaller part of a plan's error are taken as predicted.
_MATTERS = 0.05
# Of the time that is left, what measuring them may take.
_MEASURE_SHARE = 0.2


def loss_allowed(max_drop: float, samples: int) -> float:
    """The most that a plan may lose on the planning split: the limit, or one sample where that is more.

    Less than one sample cannot be seen, and one of few says nothing: the certification split decides.
    """
    return max(max_drop, 1.0 / max(samples, 1) + _ROUNDING)


def aim_of(max_drop: float, samples: int) -> float:
    """What plans are to lose at most on the planning split, so that they hold on samples that they have not seen.

    One standard deviation below the limit, for what a plan at the limit would show by chance; at least half of it, and
    at least what can be seen.
    """
    aim = max(0.5 * max_drop, max_drop - math.sqrt(max_drop * (1.0 - max_drop) / max(samples, 1)))
    return aim if aim * samples >= 1.0 else loss_allowed(max_drop, samples)


@dataclass
class Bracket:
    """The error that plans may have: `low` held, `high` did not; up to `floor` none keeps the budget."""

    low: float = 0.0
    high: float = math.inf
    floor: float = 0.0

    def learn(self, error: float, *, holds: bool) -> None:
        """A verified plan had this error."""
        if holds:
            self.low = max(self.low, error)
            self.high = max(self.high, self.low)
        elif error > self.low:
            self.high = min(self.high, error)

    def next(self, loss: float, limit: float) -> float:
        """What to allow next, after a plan that lost so much: decisions change with the root of the divergence."""
        low = max(self.low, self.floor)
        if math.isinf(self.high):
            factor = (limit / loss) ** 2 if loss > 0.0 else _STEP
            return low * min(max(factor, 2.0), _STEP)
        if low <= 0.0:
            return self.high / 4.0
        return math.sqrt(low * self.high)

    @property
    def closed(self) -> bool:
        low = max(self.low, self.floor)
        return low > 0.0 and self.high / low < _CLOSE


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
        limits: Rows of the budget.
        keeps: Whether a point keeps the budget.
        measure_errors: Errors of assignments, built and run; None of those that cannot be built.
        aim: What a plan may lose on the planning split to be called one that holds (`aim_of`).
        few: The smallest loss that the planning split can show.
        deadline: When to stop.
        earlier: Points that other compiles of the model verified.
        rounds: Plans at most.
    """

    verifier: Verifier
    space: Space
    tables: Tables
    objective: Objective
    limits: Callable[[], Sequence[Limit]]
    keeps: Callable[[Point], bool]
    measure_errors: Callable[[Sequence[Assignment]], Sequence[float | None]]
    aim: float
    few: float
    deadline: Deadline
    rounds: int
    corrections: Corrections = field(default_factory=Corrections)
    log: Log = field(default_factory=Log)
    points: list[Point] = field(default_factory=list)
    slack: dict[str, float] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)
    expected: tuple[Solution, ...] = ()
    earlier: Sequence[Point] = ()
    _barred: list[frozenset[tuple[str, str]]] = field(default_factory=list)
    _seen: dict[str, Point] = field(default_factory=dict)
    _usual: dict[str, str] = field(default_factory=dict)

    def run(self, start: Point | None) -> None:
        """Search; `start` is a form whose loss and error are known, such as the one with all layers in integers."""
        bracket = Bracket()
        loss, allowed = self.few, max(self.tables.errors.values(), default=0.0)
        if start is not None:
            loss = max(start.figures.lost, self.few)
            holds = start.figures.lost <= self.aim
            bracket.learn(max(start.figures.error, _LEAST_ERROR), holds=holds)
            allowed = bracket.next(loss, self.aim)
            if start.steps is not None:
                self._seen[str(start.steps)] = start
        idle = known = tried = 0
        best = self._recall(bracket)
        if self.objective is not Objective.ERROR and math.isfinite(best):
            allowed = bracket.next(self.few, self.aim)
        while True:
            if self.deadline.over:
                self.log.ended = "the time budget was over"
                return
            tried += 1
            if self.verifier.built >= self.rounds or tried > 4 * self.rounds:
                self.log.ended = f"{self.rounds} plans were built (--effort full builds more)"
                return
            solution = self._solve(allowed)
            if solution is None:
                # Less error than this leaves no plan that keeps the budget.
                hopeless = math.isinf(allowed) or self.objective is Objective.ERROR
                if not hopeless:
                    bracket.floor = max(bracket.floor, allowed, 1e-6 * self._largest_error())
                if hopeless or bracket.closed:
                    self._out_of_reach()
                    return
                allowed = self._next(bracket, loss)
                continue
            if self.objective is not Objective.ERROR and solution.value > best * _HOPELESS:
                # Nothing with so little error is as good as what is verified already.
                bracket.floor = max(bracket.floor, allowed, 1e-6 * self._largest_error())
                if math.isinf(allowed) or bracket.closed:
                    self.log.ended = "no plan promises to be better than the best one that was verified"
                    return
                allowed = self._next(bracket, loss)
                continue
            before = len(self.points)
            point = self._point(solution)
            if point is None:
                continue
            new = len(self.points) > before
            loss = max(point.figures.lost, self.few)
            holds = point.figures.lost <= self.aim
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
            bracket.learn(max(point.figures.error, _LEAST_ERROR) if new else allowed, holds=holds)
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
            value = point.figures.value(self.objective.weights)
            if holds and self.keeps(point) and value < best * (1.0 - _BETTER):
                best, idle = value, 0
            else:
                idle += 1
            if idle >= _PATIENCE:
                self.log.ended = f"{_PATIENCE} plans in a row were no better"
                return

    def _recall(self, bracket: Bracket) -> float:
        """Learn from what earlier compiles verified; the value of the best of them that keeps this budget."""
        best = math.inf
        units = {unit.name: unit.options for unit in self.space.units}
        for point in sorted(self.earlier, key=lambda item: item.figures.error):
            holds = point.figures.lost <= self.aim
            if holds and self.keeps(point):
                best = min(best, point.figures.value(self.objective.weights))
            bracket.learn(max(point.figures.error, _LEAST_ERROR), holds=holds)
            chosen = point.chosen
            if chosen is None or not _fits(chosen, units):
                continue
            point.predicted = self.problem().totals(chosen)
            self._correct(point)
            assert point.steps is not None
            self._seen[str(point.steps)] = point
        return best

    def expect_front(self) -> None:
        """Sweep the front of the corrected tables: what else could be had, as far as they know."""
        weighed = next(iter(self.objective.weights))
        against = Quantity.LATENCY if weighed is Quantity.ERROR else weighed
        self.expected = front(
            self.problem(),
            (against, Quantity.ERROR),
            steps=_FRONT_STEPS,
            gap=_FRONT_GAP,
            seconds=_FRONT_SECONDS,
        )

    def problem(self) -> Problem:
        """With the corrections so far."""
        found = make_problem(self.space, self.tables, self.corrections, self._usual)
        self.log.pairs = len(found.pairs)
        unknown = (frozenset({pair}) for pair in sorted(self.tables.unknown))
        return replace(found, barred=(*self._barred, *unknown))

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
        for _ in range(3):
            problem, rows = self.problem(), self.rows()
            if math.isfinite(allowed) and self.objective is not Objective.ERROR:
                rows.append(Limit("error", {Quantity.ERROR: 1.0}, allowed))
            try:
                solution = solve(problem, self.objective.weights, rows, gap=_GAP, seconds=_SOLVE_SECONDS)
            except UndecidedError:
                # Nothing was found in time: for the search that is as if there were nothing.
                return None
            if solution is None:
                return None
            self.log.add(solution)
            # Overlaps are counted in the arithmetic of the last solution: where it differs, once more.
            moved = self._assume(solution.chosen)
            if not self._measure(solution) and not moved:
                return solution
        return solution

    def _assume(self, chosen: Assignment) -> bool:
        """Count overlaps in the arithmetic of this plan; whether that is another one than before."""
        found = {unit.subject: chosen[unit.name] for unit in self.space.units if unit.kind is Kind.ARITHMETIC}
        restructured = {layer for pair in self.space.offers for layer in self.tables.work.get(pair, {})}
        moved = any(self._usual.get(layer) != found[layer] for layer in restructured if layer in found)
        self._usual = found
        return moved

    def _measure(self, solution: Solution) -> bool:
        """Measure the errors of structural options in a solution; whether any is far from what was predicted.

        Ranks first, however small they are said to be: with few samples a rank fits these very samples. No more time is
        spent than a share of what is left: large models take half a minute for each.
        """
        known, total = self.tables.errors, solution.totals[Quantity.ERROR]
        wanted = []
        for pair in solution.chosen.items():
            if pair not in self.space.offers or pair in self.tables.measured:
                continue
            rank = self.space.unit(pair[0]).kind is Kind.RANK
            if rank or known.get(pair, 0.0) >= _MATTERS * total:
                wanted.append((not rank, -known.get(pair, 0.0), pair))
        far = False
        end = self.deadline.elapsed + _MEASURE_SHARE * (self.deadline.seconds - self.deadline.elapsed)
        for _, _, (name, option) in sorted(wanted)[:_MEASURED]:
            if self.deadline.elapsed >= end:
                return far
            (found,) = self.measure_errors([self.space.alone(self.space.unit(name), option)])
            if found is None and self.deadline.over:
                return far
            self.tables.measured.add((name, option))
            if found is None:
                self._barred.append(frozenset({(name, option)}))
                far = True
                continue
            before = known.get((name, option), 0.0)
            known[name, option] = found
            # What was wrong of one size of a unit is taken to be as wrong of its others.
            worse = max(found / max(before, _LEAST_ERROR), 1.0)
            for other in self.space.unit(name).options[1:]:
                if (name, other) in known and (name, other) not in self.tables.measured:
                    known[name, other] *= worse
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
            self.refused.append(str(error))
            self._barred.append(self._culprits(solution.chosen, str(error)))
            return None
        self._seen[str(steps)] = point
        self.points.append(point)
        self._learn(point)
        return point

    def _culprits(self, chosen: Assignment, message: str) -> frozenset[tuple[str, str]]:
        """What is not tried together again: the layer that the message names with what changes it, else all of it."""
        touched = self.space.untouched()
        picked = frozenset(pair for pair in chosen.items() if pair[1] != touched[pair[0]])
        structural = frozenset(pair for pair in picked if pair in self.space.offers)
        for name, option in sorted(structural):
            unit = self.space.unit(name)
            if repr(unit.subject) in message:
                near = {pair for pair in structural if unit.subject in self.tables.work.get(pair, {})}
                return frozenset({(name, option), *near})
        return structural or picked

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
            # Times are noisy: half of what one plan shows, in logarithms.
            _scale(self.corrections.saved, saved, math.sqrt(min(max(factor, 0.4), 1.6)), _SAVED)

    def _out_of_reach(self) -> None:
        """No plan keeps the budget by the tables, or none that loses little enough: build the one that misses least."""
        problem, rows = self.problem(), self.rows()
        nearest = least_violation(problem, rows, seconds=_SOLVE_SECONDS)
        if nearest is not None:
            self.log.nearest = nearest
            self._point(nearest)
        self.log.ended = "no plan keeps the budget, by the tables"
        if nearest is not None and nearest.value <= 0.0:
            self.log.ended += ", and loses little enough"

    def _next(self, bracket: Bracket, loss: float) -> float:
        """The error to allow next; without end where it is more than any plan has."""
        found = bracket.next(loss, self.aim)
        return math.inf if math.isinf(bracket.high) and found >= self._largest_error() else found

    def _largest_error(self) -> float:
        """More than any plan has by the tables."""
        kinds = {unit.name: unit.kind for unit in self.space.units}
        return sum(
            value * self.corrections.of_error(kinds[name])
            for (name, _), value in self.tables.errors.items()
            if name in kinds
        )


def _fits(chosen: Assignment, units: Mapping[str, Sequence[str]]) -> bool:
    """Whether an assignment is of these units: all have an option of theirs, and no other changes anything."""
    if any(chosen.get(name) not in options for name, options in units.items()):
        return False
    untouched = (WHOLE, Number.FLOAT.value)
    return all(name in units or option in untouched for name, option in chosen.items())


def _scale(
    factors: dict[Kind, float],
    parts: dict[Kind, float],
    ratio: float,
    ends: tuple[float, float] = _CORRECTION,
) -> None:
    """Spread what came out over what was expected over the kinds, in proportion to their parts."""
    total = sum(parts.values())
    if total <= 0.0 or ratio <= 0.0:
        return
    for kind, part in parts.items():
        if part > 0.0:
            value = factors.get(kind, 1.0) * ratio ** (part / total)
            factors[kind] = min(max(value, ends[0]), ends[1])

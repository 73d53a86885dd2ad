"""The best plan and a proof: relaxation first, then an integer program of what the relaxation leaves open.

The relaxation (`greencc.planner.relax`) gives a bound, mostly a plan close to it, and for every option a bound on the
plans that choose it. Options whose bound is above the plan at hand cannot be in a better one and are taken out
(reduced-cost fixing); HiGHS decides among the few that are left (`greencc.planner.exact`).
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from greencc.core.data import Array
from greencc.core.errors import LimitError, UsageError
from greencc.planner.exact import Ending, Program
from greencc.planner.problem import Amounts, Assignment, Limit, Problem, Quantity
from greencc.planner.relax import relax, worth
from greencc.planner.tables import ROUNDING, TOLERANCE, Tables, build_tables

DEFAULT_GAP = 1e-6
DEFAULT_SECONDS = 60.0

# HiGHS tries first with what is this close to the bound, as a share of the distance of the plan at hand.
_CORES = (0.05, 0.25)
_CORE_LEAST = 60
# HiGHS looks at its clock seldom in a large program.
_CORE_SECONDS, _CORE_MOST = 0.15, 20_000
# So few choices are tried one by one.
FEW = 4096
# After so many answers that only its tolerances let pass, limits are drawn tighter.
_REFUSALS = 40


class UndecidedError(LimitError):
    """Time was over before a plan was found or proven impossible."""


@dataclass(frozen=True)
class Solution:
    """A plan that keeps the limits.

    Attributes:
        chosen: The option of every unit.
        totals: What it adds up to.
        value: Its objective.
        bound: No plan that keeps the limits has a lower objective than this.
        seconds: Wall time.
        optimal: Whether the gap asked for was reached.
    """

    chosen: Assignment
    totals: dict[Quantity, float]
    value: float
    bound: float
    seconds: float
    optimal: bool

    @property
    def gap(self) -> float:
        """By how much at most a better plan is better, relative to this one's objective."""
        distance = max(0.0, self.value - self.bound)
        return 0.0 if distance == 0 else distance / max(abs(self.value), abs(self.bound))


def solve(
    problem: Problem,
    objective: Amounts,
    limits: Sequence[Limit],
    *,
    gap: float = DEFAULT_GAP,
    seconds: float = DEFAULT_SECONDS,
    start: Assignment | None = None,
) -> Solution | None:
    """The plan of the least objective that keeps the limits, or None where it is proven that none does.

    The same call gives the same plan, as long as it is not stopped by `seconds`.

    Args:
        problem: What is to be decided.
        objective: Weights of the totals.
        limits: What must hold, to the tolerance of `Problem.allows`.
        gap: Relative; plans that are better by less need not be found.
        seconds: Wall time to stop at, roughly; the answer then has the gap that was reached.
        start: A plan known. HiGHS cannot start from one here: it is a bar that others must beat (a row that cuts off
            what is not better), and what is returned when none does. One that does not keep the limits is ignored.

    Raises:
        UndecidedError: Time was over, with no plan found and no proof that there is none.
        UsageError: A number is not finite, or `start` does not fit the problem.
    """
    return _solve(problem, objective, limits, gap=gap, seconds=seconds, start=start, elastic=False)


def least_violation(
    problem: Problem,
    limits: Sequence[Limit],
    *,
    gap: float = 1e-4,
    seconds: float = DEFAULT_SECONDS,
) -> Solution | None:
    """The plan whose largest relative violation of a limit is least; None if what is forbidden leaves no plan at all.

    `value` and `bound` are that violation: ``(total - bound) / |bound|``, or the excess itself where a bound is 0.
    A value of 0 says that all limits hold.

    Raises:
        UndecidedError: Time was over before any plan was found.
    """
    return _solve(problem, {}, limits, gap=gap, seconds=seconds, start=None, elastic=True)


def _solve(
    problem: Problem,
    objective: Amounts,
    limits: Sequence[Limit],
    *,
    gap: float,
    seconds: float,
    start: Assignment | None,
    elastic: bool,
) -> Solution | None:
    if not (gap >= 0 and seconds > 0):
        raise UsageError(f"a solver's gap must be >= 0 and its seconds > 0, not {gap} and {seconds}")
    begun = time.monotonic()
    tables = build_tables(problem, objective, limits, elastic=elastic)
    if tables is None:
        return None
    kept: Sequence[Limit] = () if elastic else limits

    def judge(labels: Array) -> bool:
        return problem.allows(tables.assignment(labels), kept)

    known = None if start is None else tables.labels(start)
    search = _Search(tables, judge, gap, begun + seconds, elastic)
    search.run(known)
    if search.labels is None:
        if search.bound == np.inf:
            return None
        raise UndecidedError(
            f"no plan that keeps the limits was found within {seconds:g} s, and none was proven impossible",
            hint="give the planner more time, or loosen a limit",
        )
    chosen = tables.assignment(search.labels)
    bound = min(search.value, search.bound)
    return Solution(
        chosen=chosen,
        totals=problem.totals(chosen),
        value=float(search.value),
        bound=float(bound),
        seconds=time.monotonic() - begun,
        optimal=bool(search.value - bound <= gap * abs(search.value) * (1 + 1e-9)),
    )


class _Search:
    """The best plan so far, and the bound."""

    def __init__(
        self, tables: Tables, judge: Callable[[Array], bool], gap: float, deadline: float, elastic: bool
    ) -> None:
        self._tables, self._judge, self._elastic = tables, judge, elastic
        self._gap, self._deadline = gap, deadline
        self.labels: Array | None = None
        self.value, self.bound = np.inf, -np.inf
        self._refused: list[Array] = []

    def run(self, start: Array | None) -> None:
        relaxed = relax(
            self._tables,
            self._judge,
            start=start,
            gap=self._gap,
            deadline=self._deadline,
            elastic=self._elastic,
        )
        self.labels, self.value, self.bound = relaxed.labels, relaxed.value, relaxed.bound
        if self._closed() or relaxed.bound == np.inf:
            return
        for share in _CORES:
            self._near(relaxed.forced, share)
        self._finish(relaxed.forced)

    def _closed(self) -> bool:
        return self.labels is not None and self.value - self.bound <= self._gap * abs(self.value)

    def _bar(self) -> float:
        """What a plan must reach to be worth finding."""
        return self.value - 0.5 * self._gap * abs(self.value) if self.labels is not None else np.inf

    def _near(self, forced: Array, share: float) -> None:
        """Improve the plan at hand among the options closest to the bound."""
        if self.labels is None or time.monotonic() >= self._deadline:
            return
        usable = self._tables.usable & (forced <= self.bound + share * (self.value - self.bound))
        usable[np.arange(len(usable)), self.labels] = True
        if usable.sum() - len(usable) < _CORE_LEAST:
            return
        program = self._program(usable)
        if program.size[0] > _CORE_MOST:
            return
        found = program.solve(self._gap, min(self._deadline - time.monotonic(), _CORE_SECONDS))
        if found.labels is not None:
            self._take(found.labels)

    def _finish(self, forced: Array) -> None:
        """Find the best plan among all options that may be in one, and prove it."""
        proven = True
        for _ in range(10 * _REFUSALS):
            bar = self._bar()
            usable = self._tables.usable & (forced <= bar)
            if not usable.any(1).all():
                self.bound = max(self.bound, bar) if proven else self.bound
                return
            if math.prod(int(count) for count in usable.sum(1)) <= FEW:
                # Exact, where a solver's tolerances are not.
                self._try_all(usable)
                self.bound = max(self.bound, min(self.value, bar))
                return
            left = self._deadline - time.monotonic()
            if left <= 0:
                return
            found = self._program(usable).solve(self._gap, left)
            # Whatever was left out is not below the bar.
            if proven:
                self.bound = max(self.bound, min(found.bound, bar))
            if found.labels is None or found.ending is Ending.EMPTY:
                return
            if self._take(found.labels) or found.ending is Ending.STOPPED:
                return
            if len(self._refused) >= _REFUSALS:
                proven = False
                self._tighten(found.labels)
            self._refused.append(found.labels)

    def _try_all(self, usable: Array) -> None:
        every = list(itertools.product(*(np.flatnonzero(row) for row in usable)))
        labels = np.array(every, int).reshape(len(every), len(usable))
        totals = self._tables.totals_of_many(labels)
        fits = np.ones(len(labels), bool) if self._elastic else (totals[:, 1:] <= ROUNDING).all(1)
        values = np.array([worth(self._tables, row, self._elastic) for row in totals[fits]])
        for index in np.argsort(values, kind="stable"):
            if values[index] >= self.value or self._take(labels[fits][index]):
                return

    def _program(self, usable: Array) -> Program:
        return Program(self._tables, usable, elastic=self._elastic, below=self._bar(), refused=self._refused)

    def _take(self, labels: Array) -> bool:
        """Whether an answer keeps everything beyond the solver's tolerances; the best of those is kept."""
        totals = self._tables.totals(labels)
        if not self._elastic and (totals[1:] > ROUNDING).any():
            return False
        if not (self._tables.possible(labels) and self._judge(labels)):
            return False
        value = worth(self._tables, totals, self._elastic)
        if value < self.value:
            self.labels, self.value = labels, value
        return True

    def _tighten(self, labels: Array) -> None:
        over = np.maximum(0.0, self._tables.totals(labels)[1:])
        constant = self._tables.constant.copy()
        constant[1:] += np.where(over > 0, 2 * over, TOLERANCE)
        self._tables = replace(self._tables, constant=constant)

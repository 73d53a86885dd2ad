"""A bound on the best plan, and a good plan, without integer programming: limits are priced into the objective.

    bound(p) = min over x of  objective(x) + p . limits(x),   p >= 0

never exceeds the objective of a plan that keeps the limits (Geoffrion, "Lagrangean relaxation for integer
programming", 1974). For given prices what is left is a labelling of units joined by pairs, which elimination solves;
the prices with the largest bound are found by cutting planes (Kelley, 1960). The labellings met on the way, improved
by changing one unit at a time, give plans. Seconds for ten thousand units.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from greencc.core.data import Array
from greencc.planner.elimination import Elimination, Order, elimination_order
from greencc.planner.moves import improved
from greencc.planner.tables import ROUNDING, Tables

_MOST_CUTS = 80
_FIRST_BOX, _LARGEST_BOX = 10.0, 1e7
# Relative to the scaled costs of one evaluation (about 1 an option); far above what sums of them may reach.
_NEVER = 1e7
_POLISHED = 6
# The bound is taken as lower by this share of what was added up, for rounding.
_ROUNDING = 1e-13


@dataclass(frozen=True)
class Relaxed:
    """What the relaxation found.

    Attributes:
        bound: No plan that keeps the limits has a lower objective; infinite: there is none.
        labels: The best plan met that keeps them, if one was met.
        value: Its objective, infinite if none.
        forced: (N, K) a bound on the plans with an option chosen.
        evaluations: How many labellings were solved.
    """

    bound: float
    labels: Array | None
    value: float
    forced: Array
    evaluations: int


def relax(
    tables: Tables,
    judge: Callable[[Array], bool],
    *,
    start: Array | None = None,
    gap: float = 1e-6,
    deadline: float = float("inf"),
    elastic: bool = False,
) -> Relaxed:
    """Bound and improve.

    Args:
        tables: The problem.
        judge: Whether a choice really keeps everything, asked before it is taken.
        start: A plan to begin with.
        gap: Stop when value and bound are this close, relative to the value.
        deadline: Of `time.monotonic`; the bound is then weaker. At least one evaluation is made.
        elastic: Minimise the largest relative violation of a limit in place of the objective.
    """
    search = _Search(tables, judge, elastic)
    if start is not None:
        search.offer(start)
    search.ascend(gap, deadline)
    if np.isfinite(search.bound):
        search.polish(deadline)
    forced = search.forced() if np.isfinite(search.bound) else np.full(tables.usable.shape, np.inf)
    return Relaxed(search.bound, search.labels, search.value, forced, search.evaluations)


def worth(tables: Tables, totals: Array, elastic: bool) -> float:
    """What is minimised, of a plan's totals."""
    if not elastic:
        return float(totals[0])
    return float(max(0.0, totals[1:].max(initial=0.0)))


class _Search:
    def __init__(self, tables: Tables, judge: Callable[[Array], bool], elastic: bool) -> None:
        self._tables, self._judge, self._elastic = tables, judge, elastic
        self._order: Order = elimination_order(len(tables.units), tables.ends)
        least = np.where(tables.usable, tables.single, np.inf).min(2, keepdims=True)
        # Every unit's least is put into the constant part: what is left is what is decided on.
        self._single = np.where(tables.usable, tables.single - least, 0.0)
        self._constant = tables.constant + least.sum((1, 2))
        span = self._single.max((1, 2), initial=0.0)
        span = np.maximum(span, np.abs(tables.joint).max((1, 2, 3), initial=0.0))
        self._span = np.where(span > 0, span, 1.0)
        self._unit = 1.0 if elastic else float(self._span[0])
        self._limits = len(tables.constant) - 1
        self._best_prices = np.zeros(self._limits)
        self._cuts: list[tuple[float, Array]] = []
        self._met: list[tuple[float, Array]] = []
        self.bound, self.value, self.evaluations = -np.inf, np.inf, 0
        self.labels: Array | None = None

    def offer(self, labels: Array) -> bool:
        """Take a plan if it is better than the best and keeps everything."""
        totals = self._tables.totals(labels)
        if not self._elastic and (totals[1:] > ROUNDING).any():
            return False
        value = worth(self._tables, totals, self._elastic)
        if value < self.value and self._tables.possible(labels) and self._judge(labels):
            self.labels, self.value = labels.copy(), value
            return True
        return False

    def ascend(self, gap: float, deadline: float) -> None:
        """Find the prices of the largest bound."""
        self._evaluate(self._best_prices, 0.0 if self._elastic else 1.0)
        if self.bound == np.inf:
            return
        for row in range(self._limits):
            # The least of a limit's row alone: a plan near it, and a proof when even that is too much.
            prices = np.zeros(self._limits)
            prices[row] = 1.0
            if self._evaluate(prices, 0.0) > 1e-9 * self._unit and not self._elastic:
                self.bound = np.inf
                return
        if self.bound == np.inf:
            return
        box = float("inf") if self._elastic else _FIRST_BOX
        most = self._most()
        while self._limits and self.evaluations < _MOST_CUTS and time.monotonic() < deadline:
            ceiling, prices = self._master(box)
            close = ceiling - self.bound <= max(0.05 * gap * abs(self.bound), 1e-9 * self._unit)
            known = self.labels is not None and self.value - self.bound <= gap * abs(self.value)
            if close or known:
                if not known and (prices >= box * (1 - 1e-9)).any() and box < _LARGEST_BOX:
                    box *= 10.0
                    continue
                return
            if self._limits > 1:
                # In between, which keeps several prices from swinging.
                prices = 0.7 * prices + 0.3 * self._best_prices
            self._evaluate(prices, 0.0 if self._elastic else 1.0)
            if self.bound > most:
                self.bound = np.inf
                return
            if box < _LARGEST_BOX and (prices >= box * 0.7).any():
                box *= 10.0

    def polish(self, deadline: float) -> None:
        """Improve the most promising labellings."""
        self._met.sort(key=lambda item: item[0])
        seen: set[bytes] = set()
        tried = [] if self.labels is None else [self.labels]
        tried += [labels for _, labels in self._met]
        for labels in tried:
            if labels.tobytes() in seen or len(seen) >= _POLISHED or (seen and time.monotonic() >= deadline):
                continue
            seen.add(labels.tobytes())
            for found in improved(self._tables, labels, self._best_prices, self._elastic, deadline):
                self.offer(found)

    def forced(self) -> Array:
        """Bounds with an option chosen, at the best prices."""
        elimination, scale, constant = self._eliminate(self._best_prices, 0.0 if self._elastic else 1.0)
        return elimination.forced() * scale + constant

    def _eliminate(self, prices: Array, weight: float) -> tuple[Elimination, float, float]:
        """The minimisation at some prices (of rows scaled to about 1); costs are given to it scaled to about 1."""
        tables = self._tables
        full = np.concatenate([[weight], prices * self._unit])
        scale = float(full @ self._span) or 1.0
        single = np.tensordot(full / scale, self._single, 1)
        joint = np.tensordot(full / scale, tables.joint, 1)
        single[~tables.usable] = _NEVER
        joint[tables.forbidden] = _NEVER
        return Elimination(self._order, single, joint), scale, float(full @ self._constant)

    def _evaluate(self, prices: Array, weight: float) -> float:
        """One bound; returns the value of the relaxation. The labelling that reaches it is kept as a cut."""
        tables, order = self._tables, self._order
        elimination, scale, constant = self._eliminate(prices, weight)
        self.evaluations += 1
        if elimination.value > _NEVER / 4:
            self.bound = np.inf
            return np.inf
        labels = elimination.labels()
        count = len(tables.units)
        rows = (self._single[:, order.origin, labels] * order.share).sum(1) + self._constant
        first, second = order.joined.T
        rows = rows + tables.joint[:, np.arange(len(first)), labels[first], labels[second]].sum(1)
        self._cuts.append((0.0 if self._elastic else float(rows[0]), rows[1:]))
        value: float = elimination.value * scale + constant
        value -= _ROUNDING * scale * (1 + abs(elimination.value)) * math.sqrt(max(1, count))
        if (weight > 0 or self._elastic) and (value > self.bound or not np.isfinite(self.bound)):
            self.bound, self._best_prices = value, prices
        own = labels[:count].copy()
        self.offer(own)
        over = np.maximum(0.0, self._tables.totals(own)[1:])
        self._met.append((float(rows[0]) / self._unit + 1e3 * float(over.sum()), own))
        return value

    def _most(self) -> float:
        """More than any plan's objective."""
        tables = self._tables
        if self._elastic:
            return float("inf")
        most = self._single[0].max(1, initial=0.0).sum()
        most += np.maximum(0.0, tables.joint[0]).max((1, 2), initial=0.0).sum()
        return float(most + self._constant[0] + 1e-6 * self._unit)

    def _master(self, box: float) -> tuple[float, Array]:
        """The largest value that the cuts leave, and the prices there."""
        # Importing it takes a third of a second.
        from scipy.optimize import linprog

        values = np.array([value for value, _ in self._cuts])
        slopes = np.array([slope for _, slope in self._cuts]).reshape(len(values), -1)
        # ``t - slope . prices <= value``, all divided by the unit of the objective; t is relative to the bound.
        rows = np.hstack([np.ones((len(values), 1)), -slopes])
        unit = max(self.bound, 1e-3 * self._span[1:].min()) if self._elastic else self._unit
        sides = (values - self.bound) / unit
        slopes = slopes * (self._unit / unit)
        size = np.maximum(1.0, np.abs(rows).max(1))
        rows, sides = rows / size[:, None], sides / size
        if self._elastic:
            rows = np.vstack([rows, np.concatenate([[0.0], np.ones(self._limits)])])
            sides = np.append(sides, 1.0)
        cost = np.concatenate([[-1.0], np.zeros(self._limits)])
        found = linprog(
            cost, A_ub=rows, b_ub=sides, bounds=[(None, None), *[(0.0, box)] * self._limits], method="highs"
        )
        if found.x is None:
            return self.bound, self._best_prices
        return self.bound + float(found.x[0]) * unit, np.maximum(0.0, found.x[1:])

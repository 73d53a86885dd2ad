"""What can be had at all: the Pareto front, and the nearest plans where limits cannot be kept.

The front by the epsilon-constraint method: one quantity is minimised under bounds on the others, and the bounds move
(Haimes, Lasdon and Wismer, 1971; with the others added in a small part, so that every point is efficient: Mavrotas,
"Effective implementation of the epsilon-constraint method", 2009).
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from greencc.core.errors import UsageError
from greencc.planner.problem import Amounts, Limit, Problem, Quantity, weigh
from greencc.planner.solve import DEFAULT_GAP, Solution, UndecidedError, solve
from greencc.planner.tables import TOLERANCE

# What the other quantities count beside the one minimised, all relative to their range.
_SMALL_PART = 1e-3
# Of a quantity's range: points closer than this are one point when all are listed.
_STEP = 1e-8
_ROUNDING = 1e-9


def front(
    problem: Problem,
    quantities: Sequence[Quantity],
    limits: Sequence[Limit] = (),
    *,
    steps: int | None = 12,
    gap: float = DEFAULT_GAP,
    seconds: float = 60.0,
) -> tuple[Solution, ...]:
    """Plans of which none is better than another in all quantities, by the first quantity.

    Args:
        problem: What is to be decided.
        quantities: Two or three that compete.
        limits: What every plan must keep.
        steps: Bounds tried on each quantity but the first, evenly over its range; None: every point there is, for
            small problems (points closer than 1e-8 of a range, or 4e-9 of a total, are one).
        gap: Of each solution, relative.
        seconds: Wall time for all; what was found by then is returned.

    Returns:
        The points; none when nothing keeps the limits, or nothing was found in time.

    Raises:
        UsageError: Not two or three different quantities, or fewer than two steps.
    """
    if len(set(quantities)) != len(quantities) or not 2 <= len(quantities) <= 3:
        raise UsageError(f"a front needs two or three different quantities, not {len(quantities)}")
    if steps is not None and steps < 2:
        raise UsageError(f"a front needs at least 2 steps, not {steps}")
    sweep = _Sweep(problem, tuple(quantities), tuple(limits), gap, time.monotonic() + seconds)
    if sweep.ranges():
        if steps is None:
            sweep.every()
        else:
            sweep.grid(steps)
    return undominated(sweep.points, quantities)


def undominated(points: Iterable[Solution], quantities: Sequence[Quantity]) -> tuple[Solution, ...]:
    """The points that no other is at least as good as in every quantity; of equal ones the first stays.

    Differences below 1e-9 of the largest amount are rounding.
    """
    ordered = sorted(points, key=lambda item: [item.totals[quantity] for quantity in quantities])
    amounts = np.array([[point.totals[quantity] for quantity in quantities] for point in ordered])
    if not len(ordered):
        return ()
    noise = _ROUNDING * np.abs(amounts).max(0)
    kept = []
    for index, own in enumerate(amounts):
        as_good = (amounts <= own + noise).all(1)
        better = as_good & (amounts < own - noise).any(1)
        # Only those that came before, of the equal ones.
        if not better.any() and not as_good[:index].any():
            kept.append(ordered[index])
    return tuple(kept)


@dataclass(frozen=True)
class Reach:
    """How low one limit's total can get.

    Attributes:
        limit: The limit.
        alone: The plan of the least total when nothing else is asked for; None: not found in time.
        others: The plan of the least total that keeps all other limits; None: none does, or not found in time.
    """

    limit: Limit
    alone: Solution | None
    others: Solution | None


def reachable(problem: Problem, limits: Sequence[Limit], *, seconds: float = 60.0) -> tuple[Reach, ...]:
    """For every limit, what could be asked for in its place."""
    deadline = time.monotonic() + seconds

    def least(limit: Limit, others: Sequence[Limit], left: int) -> Solution | None:
        share = max(0.1, (deadline - time.monotonic()) / left)
        try:
            return solve(problem, limit.weights, others, gap=1e-4, seconds=share)
        except UndecidedError:
            return None

    found = []
    for index, limit in enumerate(limits):
        left = 2 * (len(limits) - index)
        others = [*limits[:index], *limits[index + 1 :]]
        alone = least(limit, (), left)
        found.append(Reach(limit, alone, least(limit, others, left - 1) if others else alone))
    return tuple(found)


class _Sweep:
    """Solves under moving bounds and keeps every plan met."""

    def __init__(
        self,
        problem: Problem,
        quantities: tuple[Quantity, ...],
        limits: tuple[Limit, ...],
        gap: float,
        deadline: float,
    ) -> None:
        self._problem, self._quantities, self._limits = problem, quantities, limits
        self._gap, self._deadline = gap, deadline
        self._unit = dict.fromkeys(quantities, 1.0)
        self.points: list[Solution] = []

    def ranges(self) -> bool:
        """Find the least of each quantity, and with that the range of each; False if there is no plan."""
        for quantity in self._quantities:
            if self._least({quantity: 1.0}, ()) is None:
                return False
        for quantity in self._quantities:
            seen = [point.totals[quantity] for point in self.points]
            # Bounds and objectives are counted in this, so that tolerances are relative to it.
            self._unit[quantity] = (max(seen) - min(seen)) or max(map(abs, seen)) or 1.0
        return True

    def grid(self, steps: int) -> None:
        """Try evenly spaced bounds, from the tightest on: a plan found keeps all looser ones."""
        first, *others = self._quantities
        axes = []
        for quantity in others:
            seen = [point.totals[quantity] for point in self.points]
            axes.append(np.linspace(min(seen), max(seen), steps))
        weights = self._weights(first)
        for bounds in itertools.product(*axes):
            if time.monotonic() >= self._deadline:
                return
            pairs = zip(others, bounds, strict=True)
            self._least(weights, [self._bound(quantity, float(bound)) for quantity, bound in pairs])

    def every(self) -> None:
        """List all points."""
        self._list(self._quantities, ())

    def _list(self, order: tuple[Quantity, ...], bounds: tuple[Limit, ...]) -> list[Solution]:
        """The front of the leading quantities under bounds; ties are settled by the quantities that follow.

        The bound on the last goes below the largest that the front of the others has: nothing is passed over, because
        what that front lacks is beaten there by a plan with more of the last.
        """
        if len(order) == 1:
            found = self._lexicographic(bounds)
            return [] if found is None else [found]
        *leading, last = order
        listed: list[Solution] = []
        tight: tuple[Limit, ...] = ()
        while time.monotonic() < self._deadline:
            part = self._list(tuple(leading), (*bounds, *tight))
            if not part:
                break
            listed += part
            largest = max(point.totals[last] for point in part)
            # More than what `Problem.allows` lets pass, or the same points come again.
            step = max(_STEP * self._unit[last], 4 * TOLERANCE * abs(largest))
            tight = (self._bound(last, largest - step),)
        return list(undominated(listed, order))

    def _lexicographic(self, bounds: tuple[Limit, ...]) -> Solution | None:
        """The least of the first quantity, of those the least of the second, and so on."""
        found = None
        kept = list(bounds)
        for quantity in self._quantities:
            better = self._least({quantity: 1.0 / self._unit[quantity]}, kept)
            if better is None:
                return found
            found = better
            kept.append(self._bound(quantity, found.totals[quantity]))
        return found

    def _weights(self, first: Quantity) -> Amounts:
        parts = {quantity: _SMALL_PART / self._unit[quantity] for quantity in self._quantities}
        return {**parts, first: 1.0 / self._unit[first]}

    def _bound(self, quantity: Quantity, bound: float) -> Limit:
        unit = self._unit[quantity]
        return Limit(quantity.value, {quantity: 1.0 / unit}, bound / unit)

    def _least(self, weights: Amounts, bounds: Sequence[Limit]) -> Solution | None:
        """Solve; the best plan met so far that keeps the bounds is what others must beat."""
        limits = (*self._limits, *bounds)
        fitting = [
            point
            for point in self.points
            if all(weigh(item.weights, point.totals) <= item.bound for item in bounds)
        ]
        start = min(fitting, key=lambda point: weigh(weights, point.totals)).chosen if fitting else None
        left = max(0.05, self._deadline - time.monotonic())
        try:
            found = solve(self._problem, weights, limits, gap=self._gap, seconds=left, start=start)
        except UndecidedError:
            return None
        if found is not None:
            self.points.append(found)
        return found

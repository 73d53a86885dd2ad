"""Which groups stay in float so that the accuracy holds at the least cost in joules: a 0-1 knapsack, solved exactly.

    maximise  sum saved_j x_j     subject to  sum error_j x_j <= allowed,   x_j in {0, 1}

x_j = 1 quantizes group j. Errors are additive to first order (`greencc.verify.divergence`), but what they do to the
accuracy is not known, so `allowed` is found by bisection: every answer is built and verified on held-out data,
and only a verified one is returned. HAWQ-V3 (arXiv 2011.10680, section 3.4) poses the same integer program.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from greencc.compiler.session import Deadline

T = TypeVar("T")

_BISECTIONS = 8
_POLISH_TRIES = 12
# A choice that saves less than this share of what all groups would may not be the best there is.
_SATISFYING = 0.8
# Errors below this share of the total are noise to the bisection.
_SMALLEST_SHARE = 1e-6


@dataclass(frozen=True)
class Item:
    """One group: what quantizing it costs in error and saves in millijoules (negative: it costs joules)."""

    name: str
    error: float
    saved_mj: float


@dataclass(frozen=True)
class Verified(Generic[T]):
    """A built and judged choice: what was quantized, and what `build` made of it."""

    quantized: frozenset[str]
    saved_mj: float
    result: T


def best_subset(items: Sequence[Item], allowed: float) -> frozenset[str]:
    """The groups to quantize: the most joules saved within the allowed error."""
    gainful = [item for item in items if item.saved_mj > 0]
    if not gainful:
        return frozenset()
    errors = np.array([item.error for item in gainful])
    if errors.sum() <= allowed:
        return frozenset(item.name for item in gainful)
    saved = np.array([item.saved_mj for item in gainful])
    # Scaled to about 1: the solver's tolerances are absolute.
    scale = max(allowed, float(errors[errors > 0].min(initial=1.0)))
    # Importing it takes a third of a second.
    from scipy.optimize import Bounds, LinearConstraint, milp

    solution = milp(
        -saved / saved.max(),
        constraints=LinearConstraint(errors[np.newaxis] / scale, -np.inf, allowed / scale),
        integrality=np.ones(len(gainful)),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": 1e-7},
    )
    if solution.x is None:
        return frozenset()
    return frozenset(item.name for item, x in zip(gainful, solution.x, strict=True) if x > 0.5)


def search(
    items: Sequence[Item],
    build: Callable[[frozenset[str]], T],
    holds: Callable[[T], bool],
    drop: Callable[[T], None],
    deadline: Deadline,
) -> Verified[T] | None:
    """The verified choice that saves the most joules, or None when none was found in time.

    Args:
        items: All groups in the order of the graph; with all of them quantized the accuracy is known not to hold.
        build: Builds the model with exactly these groups quantized.
        holds: Judges it on held-out data.
        drop: Called for every result that is not returned.
        deadline: No new build starts after it.
    """
    attempts = _Attempts(items, build, holds, drop)
    gainful = frozenset(item.name for item in items if item.saved_mj > 0)
    total = sum(item.error for item in items if item.name in gainful)
    if not gainful or deadline.over:
        return None
    if len(gainful) < len(items) and attempts.hold(gainful):
        return attempts.best
    if total <= 0:
        return None
    low, high = math.log(_SMALLEST_SHARE * total), math.log(total)
    for _ in range(_BISECTIONS):
        if deadline.over:
            return attempts.best
        middle = (low + high) / 2
        chosen = best_subset(items, math.exp(middle))
        if not chosen or attempts.hold(chosen):
            low = middle
        else:
            high = middle
    best = attempts.best
    possible = sum(item.saved_mj for item in items if item.name in gainful)
    if best is None or best.saved_mj < _SATISFYING * possible:
        _leading(items, attempts, deadline)
    _polish(items, attempts, deadline)
    return attempts.best


def _leading(items: Sequence[Item], attempts: _Attempts[T], deadline: Deadline) -> None:
    """Try to leave only the first groups in float, by bisection on their number.

    Errors of early layers add up in all that follows, which a table of one group at a time does not show.
    """
    low, high = 0, len(items)
    while high - low > 1 and not deadline.over:
        middle = (low + high) // 2
        chosen = frozenset(item.name for item in items[middle:] if item.saved_mj > 0)
        if not chosen or attempts.hold(chosen):
            high = middle
        else:
            low = middle


class _Attempts(Generic[T]):
    """What was built and judged so far; only the best is kept."""

    def __init__(
        self,
        items: Sequence[Item],
        build: Callable[[frozenset[str]], T],
        holds: Callable[[T], bool],
        drop: Callable[[T], None],
    ) -> None:
        self.best: Verified[T] | None = None
        self._build, self._holds, self._drop = build, holds, drop
        self._saved = {item.name: item.saved_mj for item in items}
        self._known: dict[frozenset[str], bool] = {}

    def hold(self, chosen: frozenset[str]) -> bool:
        """Whether the accuracy holds with these groups quantized."""
        if chosen in self._known:
            return self._known[chosen]
        result = self._build(chosen)
        verdict = self._known[chosen] = self._holds(result)
        gain = sum(self._saved[name] for name in chosen)
        if not verdict or (self.best is not None and gain <= self.best.saved_mj):
            self._drop(result)
        else:
            if self.best is not None:
                self._drop(self.best.result)
            self.best = Verified(chosen, gain, result)
        return verdict


def _polish(items: Sequence[Item], attempts: _Attempts[T], deadline: Deadline) -> None:
    """Try to quantize more, the most joules for their error first: the additive table may have been too careful."""
    left = [item for item in items if item.saved_mj > 0]
    left.sort(key=lambda item: -item.saved_mj / max(item.error, 1e-30))
    tries = 0
    for item in left:
        best = attempts.best
        if best is None or deadline.over or tries >= _POLISH_TRIES:
            return
        if item.name not in best.quantized:
            attempts.hold(best.quantized | {item.name})
            tries += 1

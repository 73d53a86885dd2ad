"""A problem as arrays, for one objective and some limits: what the relaxation and the exact solver share.

Row 0 is the objective, the others are limits. Every limit is scaled to about 1 (the solver's tolerances are absolute,
amounts span many orders), what cannot be chosen is taken out, and what always holds is dropped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from greencc.core.data import Array
from greencc.core.errors import UsageError
from greencc.planner.problem import Amounts, Assignment, Limit, Problem, Quantity

ROUNDING = 1e-12
"""What sums of a scaled row may be off by."""

TOLERANCE = 1e-9
"""Of `Problem.allows`: relative to a bound, absolute below 1."""

_ROUNDS = 6


@dataclass(frozen=True)
class Tables:
    """Units are nodes, options are labels; K is the largest number of options.

    Attributes:
        units: Names in order.
        options: Names of the options of each unit.
        usable: (N, K) which options may be chosen at all.
        single: (R, N, K) amounts of one option.
        ends: (E, 2) units that a table of pairs joins, the lower first.
        joint: (R, E, K, K) amounts of two options chosen together.
        forbidden: (E, K, K) which two cannot be.
        constant: (R,) what is there whatever is chosen; a limit holds where its row's total is <= 0.
        barred: Sets of three or more (unit, label) of which not all may be chosen.
    """

    units: tuple[str, ...]
    options: tuple[tuple[str, ...], ...]
    usable: Array
    single: Array
    ends: Array
    joint: Array
    forbidden: Array
    constant: Array
    barred: tuple[tuple[tuple[int, int], ...], ...]

    def totals(self, labels: Array) -> Array:
        """(R,) totals of a choice, `labels` (N,)."""
        return np.asarray(self.totals_of_many(labels[None])[0])

    def totals_of_many(self, labels: Array) -> Array:
        """(M, R) totals of M choices, `labels` (M, N)."""
        nodes, edges = np.arange(len(self.units)), np.arange(len(self.ends))
        first, second = labels[:, self.ends[:, 0]], labels[:, self.ends[:, 1]]
        total = self.single[:, nodes, labels].sum(2) + self.joint[:, edges, first, second].sum(2)
        return np.asarray(self.constant + total.T)

    def possible(self, labels: Array) -> bool:
        """Whether nothing forbidden or barred is chosen; limits are not asked."""
        first, second = self.ends[:, 0], self.ends[:, 1]
        if self.forbidden[np.arange(len(self.ends)), labels[first], labels[second]].any():
            return False
        if not self.usable[np.arange(len(self.units)), labels].all():
            return False
        return not any(all(labels[unit] == label for unit, label in part) for part in self.barred)

    def assignment(self, labels: Array) -> dict[str, str]:
        """Names of what is chosen."""
        chosen = zip(self.units, self.options, labels, strict=True)
        return {unit: options[label] for unit, options, label in chosen}

    def labels(self, chosen: Assignment) -> Array:
        """The inverse of `assignment`.

        Raises:
            UsageError: A unit is missing, or its option is unknown.
        """
        found = []
        for unit, options in zip(self.units, self.options, strict=True):
            if chosen.get(unit) not in options:
                raise UsageError(f"the plan to start from has no option of unit {unit!r}")
            found.append(options.index(chosen[unit]))
        return np.array(found, int)


def build_tables(
    problem: Problem, objective: Amounts, limits: Sequence[Limit], *, elastic: bool = False
) -> Tables | None:
    """Arrays of a problem, or None where a look at them shows that nothing keeps the limits.

    Args:
        problem: What is to be decided.
        objective: Weights of what is minimised.
        limits: What must hold.
        elastic: Limits may be broken: no option is taken out because of them, and their rows are scaled so that a
            total is the relative violation (the excess itself where a bound is 0).

    Raises:
        UsageError: A weight, a bound or an amount of a pair is not finite.
    """
    rows: list[Amounts] = [objective, *(limit.weights for limit in limits)]
    finite = [value for row in rows for value in row.values()] + [limit.bound for limit in limits]
    finite += [value for pair in problem.pairs for value in pair.amounts.values()]
    if not all(math.isfinite(value) for value in finite):
        raise UsageError("a weight, a bound or a pair's amount of a plan is not finite")
    tables = _gather(problem, rows)
    bounds = np.array([limit.bound for limit in limits])
    slack = (1 - 1e-6) * TOLERANCE * np.maximum(1.0, np.abs(bounds))
    tables.constant[1:] -= bounds + slack
    scale = np.where(bounds != 0, np.abs(bounds), 1.0) if elastic else None
    if not tables.usable.any(1).all():
        return None
    return _reduced(tables, scale)


def _gather(problem: Problem, rows: Sequence[Amounts]) -> Tables:
    units, count = problem.units, max((len(unit.options) for unit in problem.units), default=1)
    place = {unit.name: index for index, unit in enumerate(units)}
    label = {(unit.name, option.name): k for unit in units for k, option in enumerate(unit.options)}
    order = list(Quantity)
    weights = np.array([[row.get(quantity, 0.0) for quantity in order] for row in rows])
    usable = np.zeros((len(units), count), bool)
    single = np.zeros((len(rows), len(units), count))
    for index, unit in enumerate(units):
        usable[index, : len(unit.options)] = True
        single[:, index, : len(unit.options)] = weights @ _vectors([o.amounts for o in unit.options], order).T

    barred = []
    forbidden = [(pair.first, pair.second) for pair in problem.pairs if pair.forbidden]
    for part in problem.barred:
        if len({unit for unit, _ in part}) < len(part) or any(item not in label for item in part):
            continue  # Two options of one unit are never chosen together.
        if len(part) == 1:
            ((name, option),) = part
            usable[place[name], label[name, option]] = False
        elif len(part) == 2:
            first, second = sorted(part)
            forbidden.append((first, second))
        else:
            barred.append(tuple(sorted((place[item[0]], label[item]) for item in part)))
    if any(not part for part in problem.barred):
        usable[:] = False

    edges: dict[tuple[int, int], int] = {}

    def entry(first: tuple[str, str], second: tuple[str, str]) -> tuple[int, int, int]:
        u, v, a, b = place[first[0]], place[second[0]], label[first], label[second]
        if u > v:
            u, v, a, b = v, u, b, a
        return edges.setdefault((u, v), len(edges)), a, b

    costly = [pair for pair in problem.pairs if any(pair.amounts.values())]
    where = np.array([entry(pair.first, pair.second) for pair in costly], int).reshape(-1, 3)
    never = np.array([entry(*pair) for pair in forbidden], int).reshape(-1, 3)
    joint = np.zeros((len(rows), len(edges), count, count))
    amounts = weights @ _vectors([pair.amounts for pair in costly], order).T
    for row in range(len(rows)):
        np.add.at(joint[row], tuple(where.T), amounts[row])
    bar = np.zeros((len(edges), count, count), bool)
    bar[tuple(never.T)] = True
    joint[:, bar] = 0.0
    return Tables(
        units=tuple(unit.name for unit in units),
        options=tuple(tuple(option.name for option in unit.options) for unit in units),
        usable=usable,
        single=single,
        ends=np.array(list(edges), int).reshape(-1, 2),
        joint=joint,
        forbidden=bar,
        constant=weights @ _vectors([problem.base], order)[0],
        barred=tuple(barred),
    )


def _vectors(amounts: Sequence[Mapping[Quantity, float]], order: Sequence[Quantity]) -> Array:
    found = [[item.get(quantity, 0.0) for quantity in order] for item in amounts]
    return np.array(found, float).reshape(-1, len(order))


def _reduced(tables: Tables, fixed: Array | None) -> Tables | None:
    """Take out options that break a limit whatever else is chosen, and dominated ones; drop limits that always hold."""
    keep = np.ones(len(tables.constant), bool)
    usable = tables.usable.copy()
    for _ in range(_ROUNDS):
        before = int(usable.sum())
        low, high = _ranges(tables, usable)
        least = tables.constant + low[0].sum(1) + low[1].sum(1)
        most = tables.constant + high[0].sum(1) + high[1].sum(1)
        noise = 1e-12 * (np.abs(tables.constant) + np.abs(tables.single).max(2, initial=0).sum(1))
        keep[1:] = most[1:] > -noise[1:]
        if fixed is not None:
            break
        if (least[1:] > noise[1:]).any():
            return None
        # The least total with an option chosen: its own amount in place of its unit's least.
        forced = least[:, None, None] + tables.single - low[0][:, :, None]
        usable &= ~(forced[1:] > noise[1:, None, None]).any(0)
        if not usable.any(1).all():
            return None
        if int(usable.sum()) == before:
            break
    usable &= ~_dominated(tables, usable, keep)
    low, high = _ranges(tables, usable)
    # One over the largest amount that is left to decide on.
    span = np.maximum((high[0] - low[0]).max(1, initial=0), np.abs(tables.joint).max((1, 2, 3), initial=0))
    room = -(tables.constant + low[0].sum(1) + low[1].sum(1))
    scale = np.maximum(span, np.abs(room))[1:] if fixed is None else fixed
    full = np.concatenate([[1.0], np.where(scale > 0, scale, 1.0)])
    return replace(
        tables,
        usable=usable,
        single=(tables.single / full[:, None, None])[keep],
        joint=(tables.joint / full[:, None, None, None])[keep],
        constant=(tables.constant / full)[keep],
    )


def _ranges(tables: Tables, usable: Array) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """Least and most of every row over each unit's options, (R, N), and over each table of pairs, (R, E)."""
    single = tables.single
    first, second = tables.ends[:, 0], tables.ends[:, 1]
    both = usable[first][:, :, None] & usable[second][:, None, :] & ~tables.forbidden
    low = np.where(usable, single, np.inf).min(2), np.where(both, tables.joint, np.inf).min((2, 3))
    high = np.where(usable, single, -np.inf).max(2), np.where(both, tables.joint, -np.inf).max((2, 3))
    # A table of which everything is forbidden says nothing here; the solver will.
    empty = ~both.any((1, 2))
    low[1][:, empty], high[1][:, empty] = 0.0, 0.0
    return low, high


def _dominated(tables: Tables, usable: Array, keep: Array) -> Array:
    """Options in no pair that another option in no pair of the same unit beats in every row."""
    count = usable.shape[1]
    free = usable.copy()
    touched = (tables.joint != 0).any(0) | tables.forbidden
    for side, axis in ((0, 2), (1, 1)):
        np.logical_and.at(free, tables.ends[:, side], ~touched.any(axis))
    for part in tables.barred:
        for unit, label in part:
            free[unit, label] = False
    beaten = np.zeros_like(usable)
    single = tables.single[keep]
    for k in range(count):
        mine = single[:, :, k : k + 1]
        better = (mine <= single).all(0) & free & free[:, k : k + 1]
        equal = (mine == single).all(0)
        earlier = np.arange(count)[None, :] > k
        better &= (~equal | earlier) & ~beaten[:, k : k + 1]
        better[:, k] = False
        beaten |= better
    return beaten

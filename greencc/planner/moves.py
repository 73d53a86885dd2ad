"""Better plans by changing one unit at a time: first until the limits hold, then as long as the objective falls."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np

from greencc.core.data import Array
from greencc.planner.tables import Tables

_NO = 1e30


class _State:
    """A choice, and what every other option of every unit would add to each row, the rest as it is."""

    def __init__(self, tables: Tables, labels: Array) -> None:
        self.tables, self.labels = tables, labels.copy()
        self.totals = tables.totals(labels)
        first, second = tables.ends[:, 0], tables.ends[:, 1]
        edges = np.arange(len(first))
        self.rows = tables.single.copy()
        self.blocked = np.zeros(tables.usable.shape)
        for side, other, axis in ((first, second, 1), (second, first, 2)):
            at = labels[other]
            seen = tables.joint[:, edges, :, at] if axis == 1 else tables.joint[:, edges, at]
            if axis == 1:
                seen = seen.transpose(1, 0, 2)
            closed = tables.forbidden[edges, :, at] if axis == 1 else tables.forbidden[edges, at]
            for row in range(len(self.rows)):
                np.add.at(self.rows[row], side, seen[row])
            np.add.at(self.blocked, side, closed.astype(float))
        self._touching: list[list[int]] = [[] for _ in tables.units]
        for edge, (u, v) in enumerate(tables.ends):
            self._touching[u].append(edge)
            self._touching[v].append(edge)

    def steps(self) -> Array:
        """(R, N, K) how the totals change."""
        nodes = np.arange(len(self.labels))
        return np.asarray(self.rows - self.rows[:, nodes, self.labels][:, :, None])

    def open(self) -> Array:
        """(N, K) what can be chosen; single choices that complete a barred set are asked for later."""
        can = self.tables.usable & (self.blocked == 0)
        can[np.arange(len(self.labels)), self.labels] = False
        return np.asarray(can)

    def move(self, unit: int, label: int) -> None:
        """Choose another option."""
        tables, old = self.tables, int(self.labels[unit])
        self.totals = self.totals + self.rows[:, unit, label] - self.rows[:, unit, old]
        for edge in self._touching[unit]:
            u, v = (int(end) for end in tables.ends[edge])
            table, closed = tables.joint[:, edge], tables.forbidden[edge]
            if u == unit:
                self.rows[:, v] += table[:, label] - table[:, old]
                self.blocked[v] += closed[label].astype(float) - closed[old]
            else:
                self.rows[:, u] += table[:, :, label] - table[:, :, old]
                self.blocked[u] += closed[:, label].astype(float) - closed[:, old]
        self.labels[unit] = label


def improved(tables: Tables, labels: Array, prices: Array, elastic: bool, deadline: float) -> Iterator[Array]:
    """Plans that a choice leads to: those worth judging, the last is the best.

    Args:
        tables: The problem.
        labels: (N,) where to start.
        prices: (R - 1,) of the limits, in units of the objective's largest amount: what breaking one is worth.
        elastic: Only the limits count.
        deadline: Of `time.monotonic`.
    """
    state = _State(tables, labels)
    if not len(tables.units):
        return
    for _ in range(20 + 4 * len(tables.units)):
        if time.monotonic() >= deadline:
            break
        steps = state.steps()
        over = state.totals[1:]
        after = over[:, None, None] + steps[1:]
        now = float(np.maximum(0.0, over).sum())
        left = np.maximum(0.0, after).sum(0)
        can = state.open()
        if now > 0:
            gain = now - left
            can &= gain > 1e-12 * max(1.0, now)
            costs = -gain if elastic else _per_gain(steps[0], steps[1:], prices, gain)
        elif elastic:
            break
        else:
            can &= (left <= 0) & (steps[0] < 0)
            costs = steps[0]
        if not can.any():
            break
        unit, label = np.unravel_index(np.where(can, costs, _NO).argmin(), can.shape)
        state.move(int(unit), int(label))
        if now <= 0 or elastic:
            yield state.labels
    yield state.labels


def _per_gain(objective: Array, limits: Array, prices: Array, gain: Array) -> Array:
    """What a step costs beyond its price for each unit of violation that it removes."""
    largest = float(np.abs(objective).max()) or 1.0
    cost = objective / largest + np.tensordot(prices, limits, 1)
    return np.asarray(np.where(cost > 0, cost / np.maximum(gain, 1e-300), cost * np.maximum(gain, 1e-12)))

"""The tables as a mixed-integer linear program for HiGHS.

One binary x for every option of a unit, exactly one of them 1. Two units with a table of pairs get a variable y for
every two of their options, whose sums are the x of both sides: the local polytope, the tightest there is for one table,
whether its amounts are positive or negative, and y need not be declared integer. Options with equal rows in a table
share their y, so a table that only asks "integer or float?" costs four. Tables that only forbid get sums of x <= 1.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np

from greencc.core.data import Array
from greencc.planner._quiet import without_output
from greencc.planner.tables import Tables

# HiGHS allows 1e-6 in a row and closes gaps to 1e-6, absolute: what is about 1 is given to it as this.
_SIZE = 1e3


class Ending(Enum):
    """How a search ended."""

    CLOSED = "within the gap"
    EMPTY = "nothing is possible"
    STOPPED = "time is over"


@dataclass(frozen=True)
class Found:
    """What a search found: how it ended, the best choice if any, and a bound on every choice it could have made."""

    ending: Ending
    labels: Array | None
    bound: float


class _Rows:
    """A sparse matrix row by row."""

    def __init__(self) -> None:
        self.rows: list[Array] = []
        self.columns: list[Array] = []
        self.values: list[Array] = []
        self.low: list[float] = []
        self.high: list[float] = []

    def add(
        self, columns: Sequence[int] | Array, values: Sequence[float] | Array, low: float, high: float
    ) -> None:
        self.rows.append(np.full(len(columns), len(self.low)))
        self.columns.append(np.asarray(columns, int))
        self.values.append(np.asarray(values, float))
        self.low.append(low)
        self.high.append(high)


class Program:
    """A program of the options in `usable`.

    Args:
        tables: The problem.
        usable: (N, K) options that may be chosen, at least one for every unit.
        elastic: Minimise the largest relative violation of a limit in place of the objective.
        below: Only choices of at most this objective are looked for.
        refused: (n,) labels of choices that must not be found again.
    """

    def __init__(
        self,
        tables: Tables,
        usable: Array,
        *,
        elastic: bool = False,
        below: float = float("inf"),
        refused: Sequence[Array] = (),
    ) -> None:
        self._tables = tables
        self._elastic = elastic
        self._column = np.full(usable.shape, -1)
        self._column[usable] = np.arange(int(usable.sum()))
        self._fixed = usable.sum(1) == 1
        self._upper = [1.0] * int(usable.sum())
        self._rows = _Rows()
        # Amounts of every column in every row of the tables.
        self._single = tables.single.copy()
        self._constant = tables.constant.copy()
        self._pairs: list[tuple[Array, Array]] = []
        for columns in self._column:
            self._rows.add(columns[columns >= 0], np.ones(int((columns >= 0).sum())), 1.0, 1.0)
        for edge in range(len(tables.ends)):
            self._join(edge, usable)
        self._bar(refused)
        self._amounts(usable, below)

    def _join(self, edge: int, usable: Array) -> None:
        u, v = (int(end) for end in self._tables.ends[edge])
        ours, theirs = np.flatnonzero(usable[u]), np.flatnonzero(usable[v])
        table = self._tables.joint[:, edge][:, ours][:, :, theirs]
        closed = self._tables.forbidden[edge][ours][:, theirs]
        if len(ours) == 1 or len(theirs) == 1:
            # Not a pair any more: it belongs to the side that is still open.
            unit, labels = (v, theirs) if len(ours) == 1 else (u, ours)
            self._single[:, unit, labels] += table.reshape(len(table), -1)
            for label in labels[closed.reshape(-1)]:
                self._upper[self._column[unit, label]] = 0.0
            return
        if not table.any() and not closed.any():
            return
        both = np.concatenate([table, closed[None]])
        rows, row_of = _classes(both)
        columns, column_of = _classes(both.transpose(0, 2, 1))
        table, closed = table[:, rows][:, :, columns], closed[rows][:, columns]
        mine = [self._column[u, ours[row_of == index]] for index in range(len(rows))]
        other = [self._column[v, theirs[column_of == index]] for index in range(len(columns))]
        if not table.any():
            for row, sums in zip(closed, mine, strict=True):
                if row.any():
                    members = np.concatenate([sums, *(other[index] for index in np.flatnonzero(row))])
                    self._rows.add(members, np.ones(len(members)), -np.inf, 1.0)
            return
        y = len(self._upper) + np.arange(closed.size).reshape(closed.shape)
        self._upper += [0.0 if never else 1.0 for never in closed.reshape(-1)]
        self._pairs.append((y.reshape(-1), table.reshape(len(table), -1)))
        for lines, sides in ((y, mine), (y.T, other)):
            for line, side in zip(lines, sides, strict=True):
                values = np.concatenate([np.ones(len(line)), -np.ones(len(side))])
                self._rows.add(np.concatenate([line, side]), values, 0.0, 0.0)

    def _bar(self, refused: Sequence[Array]) -> None:
        for part in self._tables.barred:
            columns = [self._column[unit, label] for unit, label in part]
            if min(columns) >= 0:
                self._rows.add(columns, np.ones(len(columns)), -np.inf, len(columns) - 1.0)
        for labels in refused:
            columns = list(self._column[np.arange(len(labels)), labels])
            if columns and min(columns) >= 0:
                self._rows.add(columns, np.ones(len(columns)), -np.inf, len(columns) - 1.0)

    def _amounts(self, usable: Array, below: float) -> None:
        least = np.where(usable, self._single, np.inf).min(2)
        self._constant = self._constant + least.sum(1)
        count = int(usable.sum())
        full = np.zeros((len(self._constant), len(self._upper)))
        full[:, :count] = (self._single - least[:, :, None])[:, usable]
        for columns, values in self._pairs:
            full[:, columns] = values
        largest = np.abs(full).max(1, initial=0.0)
        self._scale = _SIZE / (largest[0] if largest[0] > 0 else 1.0)
        self._cost = full[0] * self._scale
        extra = 0.0
        if self._elastic:
            self._upper.append(np.inf)
            # The violation is counted in parts of the one to beat.
            extra = below if 0 < below < np.inf else float(largest[1:].max(initial=0.0)) or 1.0
            self._cost = np.append(np.zeros(len(self._cost)), _SIZE)
            self._scale = _SIZE / extra
        for row in range(1, len(full)):
            room = -float(self._constant[row])
            columns = np.flatnonzero(full[row])
            size = _SIZE / (max(abs(room), float(largest[row]), extra) or 1.0)
            values = full[row, columns] * size
            if extra:
                columns = np.append(columns, len(self._upper) - 1)
                values = np.append(values, -extra * size)
            elif full[row][full[row] > 0].sum() <= room:
                continue
            self._rows.add(columns, values, -np.inf, room * size)
        offset = 0.0 if self._elastic else float(self._constant[0])
        if np.isfinite(below):
            columns = np.flatnonzero(self._cost)
            self._rows.add(columns, self._cost[columns], -np.inf, (below - offset) * self._scale)
        # A column fixed at 1 holds the constant part, so that HiGHS takes its relative gap of the whole.
        self._cost = np.append(self._cost, offset * self._scale)
        self._binary = count

    @property
    def size(self) -> tuple[int, int]:
        """Columns and rows."""
        return len(self._cost), len(self._rows.low)

    def solve(self, gap: float, seconds: float) -> Found:
        """Run HiGHS until its relative gap is `gap`, or for some seconds."""
        # Importing these takes a third of a second.
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import csr_matrix

        width = len(self._cost)
        rows = self._rows
        parts = [
            np.concatenate(part) if part else np.zeros(0) for part in (rows.rows, rows.columns, rows.values)
        ]
        matrix = csr_matrix(
            (parts[2], (parts[0].astype(int), parts[1].astype(int))), shape=(len(rows.low), width)
        )
        lower = np.zeros(width)
        lower[-1] = 1.0
        whole = np.zeros(width)
        whole[: self._binary] = 1
        begun = time.monotonic()
        for presolve in (True, False):
            with without_output():
                found = milp(
                    self._cost,
                    constraints=LinearConstraint(matrix, rows.low, rows.high),
                    integrality=whole,
                    bounds=Bounds(lower, np.array([*self._upper, 1.0])),
                    options={
                        "mip_rel_gap": gap,
                        "time_limit": max(seconds - (time.monotonic() - begun), 0.01),
                        "presolve": presolve,
                    },
                )
            if found.status == 2:
                return Found(Ending.EMPTY, None, float("inf"))
            if found.status in (0, 1):
                break
        else:
            # Numerical trouble in both, which says nothing about the problem.
            return Found(Ending.STOPPED, None, -np.inf)
        bound = found.get("mip_dual_bound")
        bound = -np.inf if bound is None or not np.isfinite(bound) else float(bound) / self._scale
        ending = Ending.CLOSED if found.status == 0 else Ending.STOPPED
        if found.x is None:
            return Found(ending, None, bound)
        values = np.where(self._column >= 0, found.x[np.maximum(self._column, 0)], -1.0)
        return Found(ending, values.argmax(1), bound)


def _classes(table: Array) -> tuple[Array, Array]:
    """Rows of (R, A, B) that are equal: one of each kind, and the kind of every row."""
    flat = table.transpose(1, 0, 2).reshape(table.shape[1], -1)
    _, first, kind = np.unique(flat, axis=0, return_index=True, return_inverse=True)
    return first, kind.reshape(-1)

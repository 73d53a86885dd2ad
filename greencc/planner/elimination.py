"""Units joined by pairs, minimised exactly by eliminating one unit after another (non-serial dynamic programming).

A unit with at most two neighbours is replaced by what its best option costs given theirs: a new table between the two
(Bertele and Brioschi, "Nonserial Dynamic Programming", 1972). Units that do not touch each other go in one round, so a
chain of n takes about log2(n) rounds of array operations. Exact where two neighbours are enough (chains, rings,
residual blocks). Elsewhere a unit is split into copies that may choose differently, which makes the minimum a lower
bound (mini-buckets: Dechter and Rish, "Mini-Buckets", 2003).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from greencc.core.data import Array


@dataclass(frozen=True)
class _Round:
    """Units that go at once.

    `alone` (n,); `ends` (n, 4): unit, neighbour, their table, whether the unit is in its columns; `links` (n, 9): unit,
    two neighbours, and three tables with the same mark: towards the one, towards the other, and between these two.
    """

    alone: Array
    ends: Array
    links: Array


@dataclass(frozen=True)
class Order:
    """In which order units go. Depends on which units are joined alone, not on any amount.

    Attributes:
        origin: (N',) the unit each node is a copy of; the first N are the units themselves.
        share: (N',) the part of its unit's amounts that a copy carries.
        tables: Number of tables; the first E are the pairs', in their order.
        joined: (E, 2) the nodes that the pairs' tables join, in the order of `ends`.
    """

    origin: Array
    share: Array
    tables: int
    joined: Array
    rounds: tuple[_Round, ...]

    @property
    def exact(self) -> bool:
        """Whether no unit had to be split."""
        return bool((self.share == 1).all())


def elimination_order(count: int, ends: Array) -> Order:
    """Plan the elimination of `count` units joined by `ends` (E, 2)."""
    origin = list(range(count))
    neighbours: list[dict[int, int]] = [{} for _ in range(count)]
    # The node in the rows of each table, and the one in its columns.
    sides = [[int(u), int(v)] for u, v in ends]
    for table, (u, v) in enumerate(sides):
        neighbours[u][v] = neighbours[v][u] = table
    left = set(range(count))
    rounds = []
    while left:
        ready = sorted(node for node in left if len(neighbours[node]) <= 2)
        if not ready:
            node = min(left, key=lambda item: (len(neighbours[item]), item))
            for other in sorted(neighbours[node])[2:]:
                table = neighbours[node].pop(other)
                copy = len(origin)
                origin.append(origin[node])
                left.add(copy)
                neighbours.append({other: table})
                del neighbours[other][node]
                neighbours[other][copy] = table
                sides[table] = [copy if item == node else item for item in sides[table]]
            continue
        alone, single, links = [], [], []
        busy: set[int] = set()
        between: set[tuple[int, ...]] = set()
        for node in ready:
            near = sorted(neighbours[node])
            if node in busy or tuple(near) in between:
                continue
            if not near:
                alone.append(node)
            elif len(near) == 1:
                table = neighbours[node][near[0]]
                single.append((node, near[0], table, sides[table][1] == node))
            else:
                u, v = near
                between.add((u, v))
                table = neighbours[u].get(v, -1)
                if table < 0:
                    table = len(sides)
                    sides.append([u, v])
                marks = [
                    (item, sides[item][1] == node) for item in (neighbours[node][u], neighbours[node][v])
                ]
                links.append((node, u, v, *marks[0], *marks[1], table, sides[table][1] == u))
            # Neighbours stay until the next round.
            busy.update(near)
        for node in (*alone, *(item[0] for item in single), *(item[0] for item in links)):
            left.discard(node)
            for other in neighbours[node]:
                del neighbours[other][node]
            neighbours[node] = {}
        for _, u, v, *_, table, _ in links:
            neighbours[u][v] = neighbours[v][u] = table
        rounds.append(
            _Round(
                np.array(alone, int),
                np.array(single, int).reshape(-1, 4),
                np.array(links, int).reshape(-1, 9),
            )
        )
    copies = np.bincount(origin, minlength=count) if count else np.zeros(0, int)
    return Order(
        origin=np.array(origin, int),
        share=1.0 / copies[origin] if count else np.zeros(0),
        tables=len(sides),
        joined=np.array(sides[: len(ends)], int).reshape(-1, 2),
        rounds=tuple(rounds),
    )


class Elimination:
    """One minimisation: `value`, the `labels` that reach it, and what forcing an option would make of it.

    Args:
        order: From `elimination_order`.
        single: (N, K) costs of the options of each unit; large, but finite, where one cannot be chosen.
        joint: (E, K, K) costs of two options.
    """

    def __init__(self, order: Order, single: Array, joint: Array) -> None:
        self._order = order
        self._costs = single[order.origin] * order.share[:, None]
        count = single.shape[1] if single.ndim == 2 else 1
        self._tables = np.zeros((order.tables, count, count))
        self._tables[: len(joint)] = joint
        self._made: list[Array] = []
        value = 0.0
        for item in order.rounds:
            value += float(self._costs[item.alone].min(1).sum())
            if len(item.ends):
                node, near, table, turn = item.ends.T
                step = self._facing(table, turn) + self._costs[node][:, :, None]
                np.add.at(self._costs, near, step.min(1))
            made = np.zeros((len(item.links), count, count))
            if len(item.links):
                left, right = self._sides(item.links)
                made = _best(left, right)
                # No two of a round go into one table.
                self._tables[item.links[:, 7]] += _turned(made.copy(), item.links[:, 8])
            self._made.append(made)
        self.value = value

    def labels(self) -> Array:
        """(N',) the option that every node chooses."""
        found = np.zeros(len(self._order.origin), int)
        for item in reversed(self._order.rounds):
            found[item.alone] = self._costs[item.alone].argmin(1)
            if len(item.ends):
                node, near, table, turn = item.ends.T
                rows = self._facing(table, turn)[np.arange(len(node)), :, found[near]]
                found[node] = (self._costs[node] + rows).argmin(1)
            if len(item.links):
                left, right = self._sides(item.links)
                rows = np.arange(len(item.links))
                sums = left[rows, :, found[item.links[:, 1]]] + right[rows, :, found[item.links[:, 2]]]
                found[item.links[:, 0]] = sums.argmin(1)
        return found

    def forced(self) -> Array:
        """(N, K) the least value with an option chosen: for a unit of several copies, the largest of theirs."""
        costs = self._costs
        least = np.zeros_like(costs)
        pairs = np.zeros_like(self._tables)
        for item, made in zip(reversed(self._order.rounds), reversed(self._made), strict=True):
            own = costs[item.alone]
            least[item.alone] = self.value + own - own.min(1, keepdims=True)
            if len(item.ends):
                node, near, table, turn = item.ends.T
                step = self._facing(table, turn) + costs[node][:, :, None]
                both = step + (least[near] - step.min(1))[:, None, :]
                least[node] = both.min(2)
                pairs[table] = _turned(both, turn)
            if len(item.links):
                node, _, _, to_u, turn_u, to_v, turn_v, table, turn = item.links.T
                left, right = self._sides(item.links)
                rest = _turned(pairs[table], turn) - made
                with_u, with_v = np.empty_like(left), np.empty_like(right)
                for k in range(left.shape[1]):
                    three = rest + left[:, k, :, None] + right[:, k, None, :]
                    with_u[:, k] = three.min(2)
                    with_v[:, k] = three.min(1)
                least[node] = with_u.min(2)
                pairs[to_u], pairs[to_v] = _turned(with_u, turn_u), _turned(with_v, turn_v)
        count = int(self._order.origin.max(initial=-1)) + 1
        found = np.full((count, costs.shape[1]), -np.inf)
        np.maximum.at(found, self._order.origin, least)
        return found

    def _facing(self, table: Array, turn: Array) -> Array:
        """Copies of tables with the options of the unit that goes in rows."""
        return _turned(self._tables[table], turn)

    def _sides(self, links: Array) -> tuple[Array, Array]:
        node, _, _, to_u, turn_u, to_v, turn_v, _, _ = links.T
        left = self._facing(to_u, turn_u) + self._costs[node][:, :, None]
        return left, self._facing(to_v, turn_v)


def _turned(tables: Array, turn: Array) -> Array:
    """Tables (n, K, K), transposed where marked, in place where they are."""
    marked = turn.astype(bool)
    tables[marked] = tables[marked].transpose(0, 2, 1)
    return tables


def _best(left: Array, right: Array) -> Array:
    """(n, A, B): the least over k of ``left[n, k, a] + right[n, k, b]``."""
    found = left[:, 0, :, None] + right[:, 0, None, :]
    work = np.empty_like(found)
    for k in range(1, left.shape[1]):
        np.add(left[:, k, :, None], right[:, k, None, :], out=work)
        np.minimum(found, work, out=found)
    return found

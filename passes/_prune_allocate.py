"""How many channels each group loses: the least harm for the work that is to go, greedily.

Cutting takes steps of as many channels as the target's kernels like. The next step is the one with the least score per
multiply-accumulate saved, as things stand then. Scores add up along a group (its least needed channels go first), so
with independent groups this is the greedy solution of a knapsack whose steps get ever dearer, exact but for the last
one.

Kernels compute in blocks of channels, so that time is a step function of them. In float a block that is not full takes
at most as long as a full one: cutting small groups in finer steps costs no time and gains accuracy. On integers less
than one block takes longer than the block, and what is cut off another saves little (`whole`): then only full blocks
are left, and groups of one block stay as they are unless the others cannot give enough.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from greencc.core.groups import PruneGroup
from greencc.passes._prune_costs import WorkModel

# A group keeps at least this many steps, so that small ones are cut in finer steps than kernels would like.
_STEPS = 8
# With less than this share of the wanted work gone, groups of one block are cut, too.
_ENOUGH = 0.9
# Sums of shares are not exact.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Allocation:
    """Which channels go, by group, and the share of the model's work that they make up."""

    removed: dict[str, list[int]]
    saved: float


@dataclass(frozen=True)
class _Steps:
    """In which steps a group is cut.

    Attributes:
        group: What is cut.
        unit: The channels left are a multiple of this.
        narrow: Any step leaves less than a whole block, where that matters.
        most: Channels that may go.
    """

    group: PruneGroup
    unit: int
    narrow: bool
    most: int

    def after(self, taken: int) -> int | None:
        """Channels gone after the next step; None where there is none."""
        left = self.group.size - taken
        gone = taken + (left % self.unit or self.unit)
        return gone if gone <= self.most else None


def steps_of(group: PruneGroup, align: int, limit: float, *, whole: bool) -> _Steps:
    """Steps that leave multiples of `align` coordinates, or finer ones: see `allocate`."""
    unit = max(1, align // group.width)
    narrow = whole and 1 < unit >= group.size
    if narrow or not whole:
        while unit > 1 and (group.size < _STEPS * unit or group.size % unit):
            unit //= 2
    return _Steps(group, unit, narrow, min(int(limit * group.size), group.size - 1))


def allocate(
    groups: Sequence[PruneGroup],
    scores: Mapping[str, NDArray[np.float64]],
    work: WorkModel,
    *,
    ratio: float,
    limit: float,
    align: int,
    whole: bool,
    weights: Mapping[str, float] = MappingProxyType({}),
) -> Allocation:
    """Choose channels until `ratio` of the work is gone or no group may lose more.

    Args:
        groups: What may be cut.
        scores: For each group, what cutting each channel costs.
        work: It is changed: afterwards it is the work that is left.
        ratio: Share of the work to remove.
        limit: Largest share of a group's channels to remove.
        align: Kernels run well with multiples of so many coordinates.
        whole: Other numbers are slower: small groups are not cut in finer steps while others can give enough.
        weights: Of the scores of each group, 1 where none is given. Which channels of a group go is decided without.
    """
    order = {group.name: np.argsort(scores[group.name], kind="stable") for group in groups}
    cost = {
        name: weights.get(name, 1.0) * np.concatenate([[0.0], np.cumsum(scores[name][chosen])])
        for name, chosen in order.items()
    }
    taken = dict.fromkeys(order, 0)
    wanted, saved = ratio * work.whole, 0.0
    steps = [steps_of(group, align, limit, whole=whole) for group in groups]
    wide = [step for step in steps if not step.narrow]
    for usable in (wide, steps):
        while saved < wanted * (1.0 - _ROUNDING):
            best = _cheapest(usable, taken, cost, work, wanted - saved)
            if best is None:
                break
            name, ahead = best
            saved += work.remove(name, ahead - taken[name])
            taken[name] = ahead
        if saved >= _ENOUGH * wanted:
            break
    removed = {name: np.sort(order[name][:count]).tolist() for name, count in taken.items() if count}
    return Allocation(removed, saved / work.whole if work.whole else 0.0)


def _cheapest(
    steps: Sequence[_Steps],
    taken: Mapping[str, int],
    cost: Mapping[str, NDArray[np.float64]],
    work: WorkModel,
    left: float,
) -> tuple[str, int] | None:
    """The group to cut next and its channels gone then: the least score for the work that is still to go."""
    best, cheapest = None, np.inf
    for step in steps:
        name = step.group.name
        ahead = step.after(taken[name])
        if ahead is None:
            continue
        gain = work.saved(name, ahead - taken[name])
        if gain <= 0:
            continue
        # More than what is left to save is worth nothing: the last step need not be the largest.
        price = (cost[name][ahead] - cost[name][taken[name]]) / min(gain, left)
        if price < cheapest:
            best, cheapest = (name, ahead), price
    return best

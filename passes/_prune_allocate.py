"""How many channels each group loses: the least harm for the work that is to go, greedily.

What kernels take is a step function of the channels: they compute in blocks, and a block that is not full takes as long
as a full one, or longer. So steps leave whole blocks, and groups of one block stay whole unless the others cannot give
enough. The next step is the one with the least score per multiply-accumulate saved, as things stand then. Scores add
up along a group (its least needed channels go first), so with independent groups this is the greedy solution of a
knapsack whose steps get ever dearer, exact but for the last one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from greencc.core.groups import PruneGroup
from greencc.passes._prune_costs import WorkModel

# A group narrower than the kernels' steps keeps at least this many of its own.
_STEPS = 8
# With less than this share of the wanted work gone, groups narrower than the kernels' steps are cut, too.
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
        narrow: The group has not even two units of the kernels, so that these are its own.
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


def steps_of(group: PruneGroup, align: int, limit: float) -> _Steps:
    """Steps that leave multiples of `align` coordinates; finer ones in groups that have none below their size."""
    unit = max(1, align // group.width)
    narrow = unit > 1 and group.size <= unit
    while narrow and unit > 1 and (group.size < _STEPS * unit or group.size % unit):
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
) -> Allocation:
    """Choose channels until `ratio` of the work is gone or no group may lose more.

    Args:
        groups: What may be cut.
        scores: For each group, what cutting each channel costs.
        work: It is changed: afterwards it is the work that is left.
        ratio: Share of the work to remove.
        limit: Largest share of a group's channels to remove.
        align: Kernels run well with multiples of so many coordinates.
    """
    order = {group.name: np.argsort(scores[group.name], kind="stable") for group in groups}
    cost = {name: np.concatenate([[0.0], np.cumsum(scores[name][chosen])]) for name, chosen in order.items()}
    taken = dict.fromkeys(order, 0)
    wanted, saved = ratio * work.whole, 0.0
    steps = [steps_of(group, align, limit) for group in groups]
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

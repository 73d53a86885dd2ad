"""How many channels each group loses: the least harm for the work that is to go, greedily.

Cutting takes steps of as many channels as the target's kernels like. The next step is the one with the least score
per multiply-accumulate saved, as things stand then. Scores add up along a group (its least needed channels go first),
so with independent groups this is the greedy solution of a knapsack whose steps get ever dearer, exact but for the
last one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from greencc.core.groups import PruneGroup
from greencc.passes._prune_costs import WorkModel

# A group keeps at least this many steps, so that small ones are cut in finer steps than kernels would like.
_STEPS = 8
# Sums of shares are not exact.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Allocation:
    """Which channels go, by group, and the share of the model's work that they make up."""

    removed: dict[str, list[int]]
    saved: float


def step_of(group: PruneGroup, align: int) -> int:
    """Channels cut at once: `align` coordinates, or fewer where the group is small."""
    step = max(1, align // group.width)
    while step > 1 and (group.size < _STEPS * step or group.size % step):
        step //= 2
    return step


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
        align: Coordinates that kernels like to have at once.
    """
    order = {group.name: np.argsort(scores[group.name], kind="stable") for group in groups}
    cost = {name: np.concatenate([[0.0], np.cumsum(scores[name][chosen])]) for name, chosen in order.items()}
    step = {group.name: step_of(group, align) for group in groups}
    most = {group.name: int(limit * group.size) // step[group.name] * step[group.name] for group in groups}
    taken = dict.fromkeys(order, 0)
    wanted, saved = ratio * work.whole, 0.0
    while saved < wanted * (1.0 - _ROUNDING):
        best, cheapest = None, np.inf
        for group in groups:
            name = group.name
            ahead = taken[name] + step[name]
            if ahead > min(most[name], group.size - 1):
                continue
            gain = work.saved(name, step[name])
            if gain <= 0:
                continue
            price = (cost[name][ahead] - cost[name][taken[name]]) / gain
            if price < cheapest:
                best, cheapest = name, price
        if best is None:
            break
        saved += work.remove(best, step[best])
        taken[best] += step[best]
    removed = {name: np.sort(order[name][:count]).tolist() for name, count in taken.items() if count}
    return Allocation(removed, saved / work.whole if work.whole else 0.0)

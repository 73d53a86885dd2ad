"""Channels that are given: how many of which groups stay, as text.

``GROUP=KEPT``, such as ``/layer1/conv=48``: of the group of that name (`PruneGroup.name`) 48 channels stay. A cut in
several rounds has a number for each, ``/layer1/conv=56:48``; a group that a round leaves alone repeats its number. What
a run has chosen is written in the same way, so that it can be given back.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from greencc.core.errors import UsageError, did_you_mean
from greencc.core.groups import PruneGroup, Role, Structure

WHERE = "prune: channels"
"""How messages begin."""

_ITEM = re.compile(r"(?P<group>.+)=(?P<kept>[0-9]+(?::[0-9]+)*)")
_GRAMMAR = "write GROUP=KEPT, such as /conv=48: the name of a group and the number of its channels that stay"

Plan = Mapping[str, Sequence[int]]
"""Channels that stay after each round, by the name of the group; the last number holds for later rounds."""


def parse_channels(items: Iterable[str], where: str) -> dict[str, tuple[int, ...]]:
    """Read a plan.

    Raises:
        UsageError: An item is malformed, no channel would stay, numbers grow, or a group comes twice.
    """
    plan: dict[str, tuple[int, ...]] = {}
    for item in items:
        found = _ITEM.fullmatch(item)
        if found is None:
            raise UsageError(
                f"{where}: {item!r} is no group with its number of channels; --groups of greencc inspect lists them",
                hint=_GRAMMAR,
            )
        kept = tuple(map(int, found["kept"].split(":")))
        if min(kept) < 1:
            raise UsageError(f"{where}: {item!r} leaves no channel", hint="at least 1 stays")
        if any(later > before for before, later in pairwise(kept)):
            raise UsageError(
                f"{where}: {item!r} grows from round to round",
                hint="give falling numbers, one for each round",
            )
        if found["group"] in plan:
            raise UsageError(f"{where}: {found['group']!r} comes twice", hint="name every group once")
        plan[found["group"]] = kept
    return plan


def rounds_of(plan: Plan) -> int:
    """In how many rounds a plan is carried out."""
    return max((len(kept) for kept in plan.values()), default=0)


def after_round(plan: Plan, number: int) -> dict[str, int]:
    """The channels of each group that stay after a round; the first one is 0."""
    return {name: kept[min(number, len(kept) - 1)] for name, kept in plan.items()}


def check_channels(plan: Plan, structure: Structure, excluded: Collection[str]) -> None:
    """Make sure that every group is there, may be cut, and has more channels than stay in the end.

    Args:
        plan: The plan.
        structure: Of the model as it came.
        excluded: Names of nodes whose output channels stay.

    Raises:
        UsageError: It is not so.
    """
    groups = {group.name: group for group in structure.groups}
    cuttable = [name for name, group in groups.items() if why_whole(group, excluded) is None]
    for name, kept in plan.items():
        if name not in groups:
            raise UsageError(f"{WHERE}: no group is named {name!r}", hint=did_you_mean(name, cuttable))
        group = groups[name]
        reason = why_whole(group, excluded)
        if reason is not None:
            raise UsageError(f"{WHERE}: {name!r} cannot be cut: {reason}", hint=did_you_mean(name, cuttable))
        if kept[-1] >= group.size or max(kept) > group.size:
            most = "leave it out" if group.size == 1 else f"give a number between 1 and {group.size - 1}"
            raise UsageError(
                f"{WHERE}: {max(kept)} of {name!r} cannot stay, it has {group.size} {group.kind}", hint=most
            )


def why_whole(group: PruneGroup, excluded: Collection[str]) -> str | None:
    """Why a group may not be cut; None where it may."""
    if group.reason is not None:
        return group.reason
    if any(site.node in excluded for site in group.having(Role.PRODUCER)):
        return "excluded by the options"
    return None


def least_needed(scores: NDArray[np.float64], count: int) -> list[int]:
    """The `count` channels with the lowest scores, ascending; of equal ones the first."""
    return sorted(int(channel) for channel in np.argsort(scores, kind="stable")[:count])


@dataclass
class Chosen:
    """What the rounds of a run have left of each group."""

    _sizes: dict[str, int] = field(default_factory=dict)
    _rounds: list[dict[str, int]] = field(default_factory=list)

    def add(self, structure: Structure, removed: Mapping[str, Sequence[int]]) -> None:
        """Note a round.

        Args:
            structure: Before the cut.
            removed: What was cut.
        """
        sizes = {group.name: group.size for group in structure.groups}
        for name in removed:
            self._sizes.setdefault(name, sizes[name])
        self._rounds.append({name: sizes[name] - len(channels) for name, channels in removed.items()})

    def items(self) -> tuple[str, ...]:
        """The items that `parse_channels` reads, without numbers that only repeat the last one."""
        items = []
        for name, size in self._sizes.items():
            kept: list[int] = []
            for left in self._rounds:
                kept.append(left.get(name, kept[-1] if kept else size))
            while len(kept) > 1 and kept[-1] == kept[-2]:
                kept.pop()
            items.append(f"{name}={':'.join(map(str, kept))}")
        return tuple(items)

"""Prune groups: channels of a model and every place that has to shrink when one of them is cut."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from greencc.core.groups.analysis import Analysis
from greencc.core.groups.roles import Role


@dataclass(frozen=True)
class Site:
    """A constant and where the channels of a group lie along one of its axes.

    Attributes:
        tensor: Name of the constant.
        axis: The axis.
        positions: int64, (channels, n): the n coordinates that each channel has along the axis.
        role: See `Role`.
        node: Name of the node that reads the constant.
    """

    tensor: str
    axis: int
    positions: NDArray[np.int64]
    role: Role
    node: str


@dataclass(frozen=True)
class Reader:
    """A weighted node that sums over the channels of a group, and the value it reads them from.

    Attributes:
        node: Name of the node.
        value: Name of the activation.
        axis: Of the activation that has the channels.
        positions: int64, (channels, n): their coordinates along that axis.
    """

    node: str
    value: str
    axis: int
    positions: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class PruneGroup:
    """Channels that have the same places in the same tensors: any of them can be cut without the others.

    Attributes:
        name: The node that computes the channels first.
        kind: What they are, for people: "channels", "heads" or "hidden units".
        size: How many channels there are.
        sites: Every constant that shrinks with them.
        readers: The weighted nodes that read them, for scores and repair.
        labels: int64, (size,): their labels in the analysis.
        reason: Why none of them may be cut; None where they may.
    """

    name: str
    kind: str
    size: int
    sites: tuple[Site, ...]
    readers: tuple[Reader, ...]
    labels: NDArray[np.int64]
    reason: str | None = None

    def having(self, role: Role) -> tuple[Site, ...]:
        """The sites of one role."""
        return tuple(site for site in self.sites if site.role is role)

    @property
    def width(self) -> int:
        """Coordinates per channel where it is computed: 64 for a head of 64."""
        first = self.having(Role.PRODUCER)[0]
        return int(first.positions.shape[1])


@dataclass(frozen=True, eq=False)
class Structure:
    """The prune groups of a model.

    Attributes:
        groups: In the order of the graph; those with a `reason` may not be cut.
        unknown: Operators where groups end because their rule is not known, each with the names of its nodes.
        analysis: The labels behind them, for `cut`. It belongs to the model that was analysed, not to clones of it.
    """

    groups: tuple[PruneGroup, ...]
    unknown: dict[str, list[str]]
    analysis: Analysis

    @property
    def prunable(self) -> tuple[PruneGroup, ...]:
        return tuple(group for group in self.groups if group.reason is None)

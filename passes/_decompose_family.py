"""A family of candidates: one form of a layer, everything but one rank fixed, and how that rank is chosen."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum

import numpy as np

from greencc.passes._decompose_factors import Candidate, Factor
from greencc.passes._decompose_problem import Matrix, Problem
from greencc.passes._rank import aligned_ranks, nearest_rank

# A form must save this share of the work: less does not pay for one operator more.
_WORTH = 0.1
# Errors below this are rounding: the layer has no more components.
_EXACT = 1e-12


class RankRule(Enum):
    """What decides the ranks."""

    ENERGY = "energy"  # The least work that keeps a share of every layer's energy.
    EVBMF = "evbmf"  # What noise does not explain.
    RATIO = "ratio"  # The least error of the whole model for a share of its work (`_decompose_allocate`).
    LAYER_RATIO = "layer-ratio"  # The least error of every layer for a share of its own work.


@dataclass(frozen=True)
class RankChoice:
    """The options that decide ranks.

    Attributes:
        rule: Which of the rules.
        energy: Share of the outputs' energy that is kept, for `RankRule.ENERGY`.
        ratio: Share of the multiply-accumulates that is saved, for `RankRule.LAYER_RATIO`.
        align: Ranks are multiples of this.
    """

    rule: RankRule
    energy: float
    ratio: float
    align: int


@dataclass(frozen=True, eq=False)
class Family:
    """Candidates ordered by a rank.

    Attributes:
        form: Name of the form.
        problem: The layer.
        top: The largest rank that means anything.
        solve: The weights of the factors at a rank, and the weights of the layer they amount to.
        shapes: Shapes of the weights of the factors at a rank.
        build: The factors from their weights.
        evbmf: The rank that EVBMF gives.
        errors: Error at ranks 0, 1, ..., top where it is known without solving.
        fixed: Ranks that come before the free one.
        aligned: The rank counts channels that should be aligned.
    """

    form: str
    problem: Problem
    top: int
    solve: Callable[[int], tuple[Sequence[Matrix], Matrix]]
    shapes: Callable[[int], Sequence[tuple[int, ...]]]
    build: Callable[[Sequence[Matrix]], tuple[Factor, ...]]
    evbmf: Callable[[], int]
    errors: Matrix | None = None
    fixed: tuple[int, ...] = ()
    aligned: bool = True
    _solved: dict[int, Candidate] = field(default_factory=dict, repr=False)

    def candidate(self, rank: int) -> Candidate:
        """The factorised layer at a rank."""
        if rank not in self._solved:
            weights, approximation = self.solve(rank)
            self._solved[rank] = Candidate(
                self.form, (*self.fixed, rank), self.build(weights), self.problem.error(approximation)
            )
        return self._solved[rank]

    def cost(self, rank: int) -> tuple[int, int]:
        """Multiply-accumulates and parameters at a rank."""
        # Weights without memory of their own: only their shapes count.
        factors = self.build([np.broadcast_to(np.float64(0), shape) for shape in self.shapes(rank)])
        return sum(factor.macs for factor in factors), sum(factor.weight.size for factor in factors)

    def choose(self, choice: RankChoice) -> Candidate | None:
        """The candidate that the options ask for, or None when none of that rank saves anything."""
        ranks = aligned_ranks(self.top, choice.align if self.aligned else 1)
        limit = self.problem.macs * (1 - (choice.ratio if choice.rule is RankRule.LAYER_RATIO else _WORTH))
        count = bisect_left(ranks, True, key=lambda rank: not self._saves(rank, limit))
        ranks = ranks[:count]
        if not ranks:
            return None
        if choice.rule is RankRule.LAYER_RATIO:
            return self.candidate(self.needed(ranks[-1]))
        if choice.rule is RankRule.EVBMF:
            wanted = self.evbmf()
            rank = nearest_rank(wanted, ranks)
            return self.candidate(self.needed(rank)) if rank >= wanted else None
        # Errors fall as ranks grow; rounding may make one of equal errors the larger.
        allowed = (1 - choice.energy) * (1 + 1e-9)
        place = bisect_left(ranks, True, key=lambda rank: self.error(rank) <= allowed)
        return self.candidate(self.needed(ranks[place])) if place < len(ranks) else None

    def saving(self, align: int = 1) -> list[int]:
        """The ranks that save work worth an operator more, smallest first."""
        ranks = aligned_ranks(self.top, align if self.aligned else 1)
        limit = self.problem.macs * (1 - _WORTH)
        return ranks[: bisect_left(ranks, True, key=lambda rank: not self._saves(rank, limit))]

    def needed(self, rank: int) -> int:
        """A smaller rank where that is exact: alignment is not worth components of zeros."""
        if self.errors is None:
            return rank
        return min(rank, max(1, int(np.argmax(self.errors <= _EXACT)))) if self.errors[-1] <= _EXACT else rank

    def saves(self, rank: int) -> bool:
        """Whether a rank takes less work and fewer parameters than the layer."""
        return self._saves(rank, self.problem.macs)

    def _saves(self, rank: int, limit: float) -> bool:
        macs, params = self.cost(rank)
        return macs <= limit and macs < self.problem.macs and params < self.problem.params

    def error(self, rank: int) -> float:
        """Share of the outputs' energy that is lost at a rank."""
        return float(self.errors[rank]) if self.errors is not None else self.candidate(rank).error

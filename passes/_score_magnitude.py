"""Magnitude: the weights that make a channel times the weights that read it. Needs no data.

`score_c = |P_c|^2 |R_c|^2 / sum over the group`, with P_c the weights that produce channel c and R_c those that
read it; per reader, then summed over the readers. This is the share of a reader's output energy that goes through the
channel when the producer's inputs are white. L2 norms of filters: Li et al., ICLR 2017 (arXiv 1608.08710, section 3.1);
with the consumers, as in DepGraph (arXiv 2301.12900, section 3.4), a scaling moved from one layer into the
next changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from greencc.core.groups import PruneGroup, Role
from greencc.core.passes import Context
from greencc.passes._score_options import Float64, ScoreOptions
from greencc.passes._score_reads import Weights, shares


def magnitude(
    model: ir.Model, groups: Sequence[PruneGroup], ctx: Context, options: ScoreOptions
) -> dict[str, Float64]:
    """Scores by group name, (channels,)."""
    del ctx, options
    weights = Weights(model)
    return {group.name: magnitude_of(weights, group) for group in groups}


def magnitude_of(weights: Weights, group: PruneGroup) -> Float64:
    """Scores of one group; also for groups that nothing reads with weights (by their producers alone)."""
    # Producers of one sum count alike, whatever the scale of their weights.
    produced = np.zeros(group.size)
    for site in group.having(Role.PRODUCER):
        energy = weights.energy(site)
        produced += shares(energy, float(energy.sum()))
    consumers = group.having(Role.CONSUMER)
    if not consumers:
        return shares(produced, float(produced.sum()))
    score = np.zeros(group.size)
    for site in consumers:
        squares = np.square(weights.rows(site).astype(np.float64)).sum(axis=1)
        read = squares[site.positions].sum(axis=1)
        # A reader of several groups (after Concat) reads this one with a part of its weights.
        part = float(read.sum() / squares.sum()) if squares.any() else 0.0
        product = produced * read
        score += part * shares(product, float(product.sum()))
    return score


def with_magnitudes(
    weights: Weights, groups: Sequence[PruneGroup], scores: dict[str, Float64]
) -> dict[str, Float64]:
    """Scores of all groups: those without one get their magnitudes, in the unit that fits the others best."""
    if len(scores) == len(groups):
        return scores
    magnitudes = {group.name: magnitude_of(weights, group) for group in groups}
    known = sum(float(magnitudes[name].sum()) for name in scores)
    unit = sum(float(score.sum()) for score in scores.values()) / known if known > 0.0 else 1.0
    return scores | {name: unit * found for name, found in magnitudes.items() if name not in scores}

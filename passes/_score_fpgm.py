"""Redundancy of filters: distance to the geometric median of the group's filters.

The filter near the point with the least sum of distances to all filters is the one that the others can replace best
(FPGM: He et al., CVPR 2019, arXiv 1811.00250, eq. 8): `d_c = sum_j |F_c - F_j|`, where F_c are all the weights that
produce channel c. `score_c = d_c / sum of d`. Channels that are never written or never read score 0. Needs no data.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from greencc.core.groups import PruneGroup, Role
from greencc.core.passes import Context
from greencc.passes._score_magnitude import magnitude_of
from greencc.passes._score_options import Float64, ScoreOptions
from greencc.passes._score_reads import Weights, shares

# Rows of the distance matrix made at once.
_BLOCK = 1024


def fpgm(
    model: ir.Model, groups: Sequence[PruneGroup], ctx: Context, options: ScoreOptions
) -> dict[str, Float64]:
    """Scores by group name, (channels,)."""
    del ctx, options
    weights = Weights(model)
    scores: dict[str, Float64] = {}
    for group in groups:
        distances = _distance_sums(_filters(weights, group))
        distances[magnitude_of(weights, group) == 0.0] = 0.0
        scores[group.name] = shares(distances, float(distances.sum()))
    return scores


def _filters(weights: Weights, group: PruneGroup) -> Float64:
    """(channels, weights): all that produces each channel; each layer's filters divided by their norm."""
    parts = []
    for site in group.having(Role.PRODUCER):
        rows = weights.rows(site)[site.positions].reshape(group.size, -1).astype(np.float64)
        norm = float(np.linalg.norm(rows))
        parts.append(rows / norm if norm > 0.0 else rows)
    return np.concatenate(parts, axis=1)


def _distance_sums(filters: Float64) -> Float64:
    squares = np.square(filters).sum(axis=1)
    sums = np.empty(len(filters))
    for start in range(0, len(filters), _BLOCK):
        block = slice(start, start + _BLOCK)
        apart = squares[block, np.newaxis] + squares - 2.0 * (filters[block] @ filters.T)
        sums[block] = np.sqrt(np.maximum(apart, 0.0)).sum(axis=1)
    return sums

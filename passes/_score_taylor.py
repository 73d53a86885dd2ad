"""Taylor: how fast the loss changes as the gate of a channel closes, squared.

It is ``mean_B (d mean_{n in B} CE_n / d gate)^2`` over mini-batches B: the first-order estimate of the squared change
of the loss when the channel goes, with a gate per channel (Molchanov et al., CVPR 2019, arXiv 1906.10771). Mini-batches
are small, for each of them is one draw of a square.

Without labels there is no loss whose gradient is not zero at the model as it is (the divergence from its own outputs
has its minimum there), and the score is that of `_score_fisher`. So it is where the outputs are no class scores.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from greencc.core.groups import PruneGroup
from greencc.core.kl import is_scores
from greencc.core.passes import Context
from greencc.passes._score_fisher import Gradients, fisher, log_slope
from greencc.passes._score_gates import Piece, gated_pieces
from greencc.passes._score_magnitude import with_magnitudes
from greencc.passes._score_options import Float64, ScoreOptions
from greencc.passes._score_reads import Weights


def taylor(
    model: ir.Model, groups: Sequence[PruneGroup], ctx: Context, options: ScoreOptions
) -> dict[str, Float64]:
    """Scores by group name, (channels,); groups without gates as in `fisher`."""
    weights = Weights(model)
    gated = [group for group in groups if weights.readers(group)]
    rows: list[Gradients] = []
    for piece in gated_pieces(model, gated, weights, ctx, options):
        found = _label_gradients(piece)
        if found is None:
            return fisher(model, groups, ctx, options)
        rows.append(found)
    scores = {
        group.name: _squared(np.concatenate([found[group.name] for found in rows]), options.mini_batch)
        for group in gated
    }
    return with_magnitudes(weights, groups, scores)


def _squared(gradients: Float64, size: int) -> Float64:
    """The mean over mini-batches of the squared mean gradient; (channels,) from (samples, channels)."""
    batches = [gradients[start : start + size].mean(axis=0) for start in range(0, len(gradients), size)]
    return np.asarray(np.mean(np.square(batches), axis=0))


def _label_gradients(piece: Piece) -> Gradients | None:
    """Of the cross-entropy of each sample's label; None without labels, or where the outputs are no class scores."""
    labels = piece.labels
    if labels is None or len(piece.outputs) != 1 or not np.issubdtype(labels.dtype, np.integer):
        return None
    ((name, scores),) = piece.outputs.items()
    flat = labels.reshape(-1)
    if not is_scores(scores) or flat.size != len(scores) or flat.min() < 0 or flat.max() >= scores.shape[1]:
        return None
    return piece.gradients({name: -log_slope(scores, flat)})

"""Taylor: how fast the loss changes as the gate of a channel closes, squared.

It is ``mean_B (d mean_{n in B} CE_n / d gate)^2`` over mini-batches B: the first-order estimate of the squared change
of the loss when the channel goes, with a gate per channel (Molchanov et al., CVPR 2019, arXiv 1906.10771). Mini-batches
are small, for each of them is one draw of a square. Samples whose label is none of the classes (-1 often means that
there is none) are left out.

Without labels there is no loss whose gradient is not zero at the model as it is (the divergence from its own outputs
has its minimum there), and the score has to be another one. So it has where the outputs are no class scores. That is
found out before gradients are taken.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from greencc.core.data import Array
from greencc.core.groups import PruneGroup
from greencc.core.kl import is_scores
from greencc.core.passes import Context
from greencc.passes._capture import require_data
from greencc.passes._score_fisher import Gradients, log_slope
from greencc.passes._score_gates import Piece, gated_pieces
from greencc.passes._score_magnitude import with_magnitudes
from greencc.passes._score_options import Float64, ScoreOptions
from greencc.passes._score_reads import Weights

_NO_CLASS = "no label of the calibration data is a class of the model"


def taylor(
    model: ir.Model, groups: Sequence[PruneGroup], ctx: Context, options: ScoreOptions
) -> dict[str, Float64] | str:
    """Scores by group name, (channels,); groups without gates as in `fisher`. Or why there is no such score."""
    weights = Weights(model)
    gated = [group for group in groups if weights.readers(group)]
    reason = _no_labels(ctx) if gated else None
    if reason is not None:
        return reason
    rows: list[Gradients] = []
    for piece in gated_pieces(model, gated, weights, ctx, options):
        classes = _classes(piece)
        if isinstance(classes, str):
            return classes
        found = _label_gradients(piece, classes)
        if found is not None:
            rows.append(found)
    if gated and not rows:
        return _NO_CLASS
    scores = {
        group.name: _squared(np.concatenate([found[group.name] for found in rows]), options.mini_batch)
        for group in gated
    }
    return with_magnitudes(weights, groups, scores)


def _squared(gradients: Float64, size: int) -> Float64:
    """The mean over mini-batches of the squared mean gradient; (channels,) from (samples, channels)."""
    batches = [gradients[start : start + size].mean(axis=0) for start in range(0, len(gradients), size)]
    return np.asarray(np.mean(np.square(batches), axis=0))


def _no_labels(ctx: Context) -> str | None:
    """Why the labels alone rule the score out, without a look at the outputs."""
    source = require_data(ctx)
    if not source.has_labels:
        return "the calibration data has no labels"
    usable = False
    for item in source.batches(32):
        if item.labels is None:
            return "the calibration data has no labels"
        if item.labels.size != item.count or not np.issubdtype(item.labels.dtype, np.integer):
            return "the labels of the calibration data are not one class per sample"
        usable |= bool((item.labels >= 0).any())
    # Data without samples is refused where they are asked for.
    return None if usable or not source.count else _NO_CLASS


def _classes(piece: Piece) -> Array | str:
    """The labels, (samples,), or why the outputs have no classes."""
    if len(piece.outputs) != 1:
        return f"the model has {len(piece.outputs)} float outputs, not one of class scores"
    ((name, scores),) = piece.outputs.items()
    if not is_scores(scores) or piece.labels is None or piece.labels.size != len(scores):
        return f"output {name!r} holds no class scores"
    return np.asarray(piece.labels.reshape(-1))


def _label_gradients(piece: Piece, labels: Array) -> Gradients | None:
    """Of the cross-entropy of each sample's label; without the samples whose label is no class, None without any."""
    ((name, scores),) = piece.outputs.items()
    known = (labels >= 0) & (labels < scores.shape[1])
    if not known.any():
        return None
    slope = -log_slope(scores, np.where(known, labels, 0))
    return {group: values[known] for group, values in piece.gradients({name: slope}).items()}

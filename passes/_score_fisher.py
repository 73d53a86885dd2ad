"""Fisher: the curvature of the divergence from the model's own outputs along the gate of a channel.

Closing a gate costs about ``1/2 F``, with the Fisher information F of the gate (Theis et al. 2018, arXiv 1801.05787).
It is taken from the model's own probabilities, ``F = mean_n sum_y p_y (d log p_y / d gate)^2``, which makes ``1/2 F``
the second-order term of KL(model || model without the channel); the first-order term is zero. Labels are not asked
for: squared gradients of the right labels, which Theis et al. take in place of the sum over y, are large only for the
few samples that a trained network gets wrong, and so are much noisier. Up to 16 classes are summed over; of more, some
are drawn.

Outputs that are no class scores get the same with a Gaussian around them (Gauss-Newton): ``|d f / d gate|^2 / |f|^2``,
the relative squared change of the outputs to first order, by random projections with signs (Hutchinson). Draws are
seeded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from greencc.core.data import Array
from greencc.core.groups import PruneGroup
from greencc.core.kl import TINY, are_probabilities, is_scores, log_probabilities
from greencc.core.passes import Context
from greencc.passes._score_gates import Piece, gated_pieces
from greencc.passes._score_magnitude import with_magnitudes
from greencc.passes._score_options import Float64, ScoreOptions
from greencc.passes._score_reads import Weights

# More classes than this are drawn from; so many draws, of labels and of projections.
_ENUMERATED = 16
_DRAWS = 8

Gradients = Mapping[str, Float64]


def fisher(
    model: ir.Model, groups: Sequence[PruneGroup], ctx: Context, options: ScoreOptions
) -> dict[str, Float64]:
    """Scores by group name, (channels,).

    Groups that nothing reads with weights have no gates: they get their magnitudes, in the unit that fits the other
    groups best.
    """
    weights = Weights(model)
    gated = [group for group in groups if weights.readers(group)]
    totals = {group.name: np.zeros(group.size) for group in gated}
    used = 0
    generator = np.random.default_rng(options.seed)
    for piece in gated_pieces(model, gated, weights, ctx, options):
        for weight, gradients in _expected(piece, generator):
            for name, values in gradients.items():
                totals[name] += weight @ np.square(values) / 2.0
        used += piece.count
    return with_magnitudes(weights, groups, {name: total / used for name, total in totals.items()})


def _expected(piece: Piece, generator: np.random.Generator) -> Iterator[tuple[Float64, Gradients]]:
    """Gradients whose weighted squares sum up to (twice) what the model's own distribution expects.

    Yields:
        (samples,) weights, and (samples, channels) by group.
    """
    if all(is_scores(values) for values in piece.outputs.values()):
        for name, scores in piece.outputs.items():
            chances, classes = np.exp(log_probabilities(scores)), scores.shape[1]
            if classes <= _ENUMERATED:
                for label in range(classes):
                    slope = log_slope(scores, np.full(len(scores), label))
                    yield chances[:, label], piece.gradients({name: slope})
                continue
            for _ in range(_DRAWS):
                labels = [generator.choice(classes, p=row / row.sum()) for row in chances]
                slope = log_slope(scores, np.array(labels))
                yield np.full(len(scores), 1.0 / _DRAWS), piece.gradients({name: slope})
        return
    for name, values in piece.outputs.items():
        finite = np.isfinite(values)
        rows = np.where(finite, values, 0.0).astype(np.float64).reshape(piece.count, -1)
        energy = np.square(rows).sum(axis=1)
        for _ in range(_DRAWS):
            signs = np.where(finite, generator.choice([-1.0, 1.0], size=values.shape), 0.0)
            weight = np.where(energy > 0.0, 2.0 / (_DRAWS * np.maximum(energy, TINY)), 0.0)
            yield weight, piece.gradients({name: signs.astype(np.float32)})


def log_slope(scores: Array, labels: Array) -> Array:
    """The derivative of each label's log-probability by the scores, of their shape."""
    every = np.arange(len(scores))
    slope = np.zeros((len(scores), scores.shape[1]))
    if are_probabilities(scores):
        slope[every, labels] = 1.0 / np.maximum(scores.reshape(len(scores), -1)[every, labels], TINY)
    else:
        slope -= np.exp(log_probabilities(scores))
        slope[every, labels] += 1.0
    return np.asarray(slope.reshape(scores.shape).astype(np.float32))

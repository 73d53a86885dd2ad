"""Redundancy of activations: how much of a channel the others do not explain.

`score_c = tr(E_Q) / n`: the part of the variance of x_Q that is left after the best linear prediction from all other
channels of the value (`_score_residuals`), the mean over the values in which the channel is read. It is 1 less the
squared multiple correlation: 0 for a duplicate or a constant channel, 1 for one that nothing predicts. The weights
that read the channel do not count. Removing what others can express: channel selection by reconstruction (He et al.,
ICCV 2017, arXiv 1707.06168), redundancy by correlation (Suau et al. 2018, arXiv 1807.10585, section 3).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from greencc.core.groups import PruneGroup, Reader
from greencc.core.passes import Context
from greencc.passes._channel_grams import each_gram
from greencc.passes._score_magnitude import magnitude_of
from greencc.passes._score_options import Float64, ScoreOptions
from greencc.passes._score_reads import Weights
from greencc.passes._score_residuals import inverse


def correlation(
    model: ir.Model, groups: Sequence[PruneGroup], ctx: Context, options: ScoreOptions
) -> dict[str, Float64]:
    """Scores by group name, (channels,). A group that nothing reads with weights is scored by magnitude.

    A channel that is read from a value too wide for a matrix counts as unexplained there.
    """
    weights = Weights(model)
    read = {group.name: _values(weights.readers(group)) for group in groups}
    scores = {group.name: np.zeros(group.size) for group in groups}
    seen: dict[str, int] = dict.fromkeys(scores, 0)
    for key, gram in each_gram(model, weights.all_readers(groups), ctx, options.batch):
        surgeon = inverse(gram, options.damping)
        for name, readers in read.items():
            if key in readers:
                left = surgeon.residuals(readers[key].positions)
                scores[name] += np.trace(left, axis1=1, axis2=2) / left.shape[1]
                seen[name] += 1
    for group in groups:
        wanted = len(read[group.name])
        if not wanted:
            scores[group.name] = magnitude_of(weights, group)
        else:
            total = scores[group.name] + (wanted - seen[group.name])
            scores[group.name] = np.clip(total / wanted, 0.0, 1.0)
    return scores


def _values(readers: Sequence[Reader]) -> dict[tuple[str, int], Reader]:
    """One reader for each value."""
    return {(reader.value, reader.axis): reader for reader in readers}

"""Activation energy: what a channel contributes to the outputs of its readers.

`score_c = var(x_c) |R_c|^2 / sum over all channels that the reader reads`, summed over readers, with R_c the weights
that read channel c. What a constant channel contributes goes into the reader's bias when it is cut, so the energy
is that around the mean. Channels that the reader reads from other groups count in the sum. Energy of activations
times norm of weights: Wanda (Sun et al., ICLR 2024, arXiv 2306.11695, section 3), here for whole channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from greencc.core.groups import PruneGroup
from greencc.core.passes import Context
from greencc.passes._channel_grams import channel_energies
from greencc.passes._score_magnitude import magnitude_of
from greencc.passes._score_options import Float64, ScoreOptions
from greencc.passes._score_reads import Weights, shares


def activation(
    model: ir.Model, groups: Sequence[PruneGroup], ctx: Context, options: ScoreOptions
) -> dict[str, Float64]:
    """Scores by group name, (channels,). A group that nothing reads with weights is scored by magnitude."""
    weights = Weights(model)
    energies = channel_energies(model, weights.all_readers(groups), ctx, options.batch)
    scores: dict[str, Float64] = {}
    for group in groups:
        readers = weights.readers(group)
        if not readers:
            scores[group.name] = magnitude_of(weights, group)
            continue
        scores[group.name] = np.zeros(group.size)
        for reader in readers:
            norms = np.square(weights.read(group, reader).astype(np.float64)).sum(axis=1)
            parts = energies[reader.node].variance * norms
            scores[group.name] += shares(parts[reader.positions].sum(axis=1), float(parts.sum()))
    return scores

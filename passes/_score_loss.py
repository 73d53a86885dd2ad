"""Loss: how much the model's outputs change when a channel is switched off, tried out channel by channel.

The oracle of Molchanov et al. (ICLR 2017, arXiv 1611.06440, section 3.1). On each of a few samples
- with labels and class scores: `|CE(masked) - CE(all on)|`, the change of the cross-entropy of the label, either way;
- without labels, class scores: the Kullback-Leibler divergence of the class probabilities from those with all on;
- else: the squared change of the outputs over their squares;
the mean over the samples. It does not know what repair will make up for, and it costs one inference per channel and
sample; masks share runs (`_score_masks`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from greencc.core.data import Array, Batch
from greencc.core.errors import InputError
from greencc.core.groups import PruneGroup
from greencc.core.kl import are_probabilities, is_float, is_scores, kl_divergence, log_probabilities
from greencc.core.passes import Context
from greencc.passes._capture import no_samples, require_data, single_samples
from greencc.passes._score_magnitude import with_magnitudes
from greencc.passes._score_masks import Key, MaskedRuns
from greencc.passes._score_options import OTHER_SCORE, Float64, ScoreOptions
from greencc.passes._score_reads import Weights

# An output that is no number any more is worse than any change.
_BROKEN = 1e6


def loss(
    model: ir.Model, groups: Sequence[PruneGroup], ctx: Context, options: ScoreOptions
) -> dict[str, Float64]:
    """Scores by group name, (channels,).

    After `loss_seconds` no further sample is begun; one is always used. Groups that nothing reads with weights
    cannot be masked: they get their magnitudes, in the unit that fits the other groups best.
    """
    weights = Weights(model)
    masked = [group for group in groups if weights.readers(group)]
    scores = _measured(model, masked, weights, ctx, options) if masked else {}
    return with_magnitudes(weights, groups, scores)


def _measured(
    model: ir.Model, groups: Sequence[PruneGroup], weights: Weights, ctx: Context, options: ScoreOptions
) -> dict[str, Float64]:
    source = require_data(ctx)
    totals = {group.name: np.zeros(group.size) for group in groups}
    runs = MaskedRuns(model, weights.all_readers(groups), ctx)
    offs = {group.name: _masks(runs, weights, group) for group in groups}
    used, end = 0, time.monotonic() + options.loss_seconds
    wanted = min(options.loss_samples, source.count)
    try:
        for sample in ctx.progress(single_samples(source, wanted), label="Masking channels", total=wanted):
            if used and time.monotonic() > end:
                break
            base = runs.baseline(sample)
            floats = [array for array in base.values() if is_float(array)]
            if not floats:
                raise InputError(
                    "the model has no float output whose change could be measured", hint=OTHER_SCORE
                )
            if not any(np.isfinite(array).any() for array in floats):
                raise InputError(
                    "the outputs of the model are no finite numbers on the calibration data",
                    hint="check the preprocessing of the samples",
                )
            label = _label(base, sample)
            for name, masks in offs.items():
                for channel, found in runs.outputs(sample, masks):
                    totals[name][channel] += change(base, found, label)
            used += 1
    finally:
        runs.close()
    if not used:
        raise no_samples(source)
    return {name: total / used for name, total in totals.items()}


def _masks(runs: MaskedRuns, weights: Weights, group: PruneGroup) -> list[dict[Key, Array]]:
    """For each channel, which coordinates of which values are off."""
    masks: list[dict[Key, Array]] = []
    readers = {(reader.value, reader.axis): reader for reader in weights.readers(group)}
    for channel in range(group.size):
        off: dict[Key, Array] = {}
        for key, reader in readers.items():
            off[key] = np.zeros(runs.masks[key].size, bool)
            off[key][reader.positions[channel]] = True
        masks.append(off)
    return masks


def change(base: Mapping[str, Array], found: Mapping[str, Array], label: int | None = None) -> float:
    """How far the outputs for one sample are from those with all channels on; at least 0.

    Where no output is float it is the share of elements that differ. An output of another shape (as many as the data
    decide) has changed altogether.

    Args:
        base: With all channels on.
        found: With a channel off.
        label: The right class, where it is known and there is one output of class scores.
    """
    floats = [name for name, array in base.items() if is_float(array)]
    if any(found[name].shape != base[name].shape for name in floats or base):
        return 1.0
    if not floats:
        return max((_differing(base[name], found[name]) for name in base), default=0.0)
    if not all(np.isfinite(found[name][np.isfinite(base[name])]).all() for name in floats):
        return _BROKEN
    if not all(is_scores(base[name]) and len(base[name]) == 1 for name in floats):
        return max(_relative(base[name], found[name]) for name in floats)
    if label is not None:
        (name,) = floats
        probable = are_probabilities(base[name])
        before, after = (log_probabilities(item[name], probable=probable)[0] for item in (base, found))
        return abs(float(after[label] - before[label]))
    return max(_divergence(base[name], found[name]) for name in floats)


def _divergence(base: Array, found: Array) -> float:
    each = kl_divergence(base, found)
    return _BROKEN if each is None else float(each[0])


def _differing(base: Array, found: Array) -> float:
    return float(np.mean(base != found)) if base.size else 0.0


def _label(base: Mapping[str, Array], sample: Batch) -> int | None:
    """The class of the sample, when it has one and the model has one output of scores with it."""
    scores = [array for array in base.values() if is_float(array)]
    if sample.labels is None or len(scores) != 1 or not is_scores(scores[0]):
        return None
    label = np.asarray(sample.labels)
    if label.size != 1 or not np.issubdtype(label.dtype, np.integer):
        return None
    number = int(label.reshape(()))
    return number if 0 <= number < scores[0].shape[1] else None


def _relative(base: Array, found: Array) -> float:
    a, b = base.astype(np.float64), found.astype(np.float64)
    # Masked scores are legitimately infinite in both.
    finite = np.isfinite(a)
    noise = float(np.square(a[finite] - b[finite]).sum())
    signal = float(np.square(a[finite]).sum())
    if noise == 0.0:
        return 0.0
    return min(noise / signal, _BROKEN) if signal > 0.0 else _BROKEN

"""How far a variant's outputs are from the float model's, as one number that adds up over layers.

Quantization noise of different layers is nearly uncorrelated, so its powers add up: the noise-to-signal power of an
output grows by each layer's share. The Kullback-Leibler divergence of class probabilities is quadratic in the noise for
small noise, so it adds up likewise, and it sees only what may change a decision. That is what makes an error table
per layer useful for planning (HAWQ-V3, arXiv 2011.10680, section 3.4, uses the same additivity).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from greencc.core.data import Array
from greencc.core.kl import is_float, is_scores, kl_divergence
from greencc.verify.metrics import Auto, Metric, TopOne

# A broken output (another shape, not finite) is worse than any noise.
BROKEN = 1e6


def divergence(
    reference: Sequence[Mapping[str, Array]], found: Sequence[Mapping[str, Array]], metric: Metric
) -> float:
    """Mean KL divergence of the class probabilities where the metric is a decision, else noise over signal power.

    Args:
        reference: Outputs of the float model, one mapping per batch, samples on the first axis.
        found: Outputs of the variant for the same inputs.
        metric: What decides; with `Auto` all outputs must be class scores for the divergence to be used.

    Returns:
        At least 0; the largest over the outputs. 0 when there is no float output.
    """
    names = _scored(reference[0], metric)
    if names:
        return max(_over_batches(reference, found, name, _kl) for name in names)
    floats = [name for name, value in reference[0].items() if is_float(value)]
    return max((_noise_to_signal(reference, found, name) for name in floats), default=0.0)


def _scored(outputs: Mapping[str, Array], metric: Metric) -> list[str]:
    if isinstance(metric, TopOne):
        scores = [name for name, value in outputs.items() if is_scores(value)]
        return [metric.output] if metric.output in scores else scores[:1]
    floats = [name for name, value in outputs.items() if is_float(value)]
    if isinstance(metric, Auto) and floats and all(is_scores(outputs[name]) for name in floats):
        return floats
    return []


def _over_batches(
    reference: Sequence[Mapping[str, Array]],
    found: Sequence[Mapping[str, Array]],
    name: str,
    measure: Callable[[Array, Array], NDArray[np.float64]],
) -> float:
    total, count = 0.0, 0
    for old, new in zip(reference, found, strict=True):
        if new[name].shape != old[name].shape:
            return BROKEN
        values = measure(old[name], new[name])
        total += float(values.sum())
        count += len(values)
    return total / max(count, 1)


def _kl(old: Array, new: Array) -> NDArray[np.float64]:
    found = kl_divergence(old, new)
    return np.full(len(old), BROKEN) if found is None else found


def _noise_to_signal(
    reference: Sequence[Mapping[str, Array]], found: Sequence[Mapping[str, Array]], name: str
) -> float:
    signal = noise = 0.0
    for old, new in zip(reference, found, strict=True):
        a, b = old[name].astype(np.float64), new[name].astype(np.float64)
        if a.shape != b.shape:
            return BROKEN
        # Masked scores are legitimately infinite in both.
        finite = np.isfinite(a)
        if not np.isfinite(b[finite]).all():
            return BROKEN
        signal += float(np.square(a[finite]).sum())
        noise += float(np.square(a[finite] - b[finite]).sum())
    if noise == 0.0:
        return 0.0
    return min(noise / signal, BROKEN) if signal > 0 else BROKEN

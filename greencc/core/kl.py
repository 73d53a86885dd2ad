"""Kullback-Leibler divergence of class scores."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from greencc.core.data import Array

Float64 = NDArray[np.float64]
_SUM_TOLERANCE = 1e-3


def kl_divergence(old: Array, new: Array) -> Float64 | None:
    """KL(old || new) of each sample; rows that are no probabilities go through a softmax.

    Args:
        old: Samples on the first axis, classes over the others.
        new: Of the same shape.

    Returns:
        float64, (samples,), at least 0; None where `new` is not finite.
    """
    p, q = old.reshape(len(old), -1).astype(np.float64), new.reshape(len(new), -1).astype(np.float64)
    if not np.isfinite(q).all():
        return None
    if (p >= 0).all() and (np.abs(p.sum(axis=1) - 1.0) < _SUM_TOLERANCE).all():
        p, q = np.log(np.maximum(p, 1e-12)), np.log(np.maximum(q, 1e-12))
    log_p, log_q = _log_softmax(p), _log_softmax(q)
    each: Float64 = (np.exp(log_p) * (log_p - log_q)).sum(axis=1)
    return np.maximum(each, 0.0)


def _log_softmax(scores: Float64) -> Float64:
    shifted = scores - scores.max(axis=1, keepdims=True)
    result: Float64 = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result

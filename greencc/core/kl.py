"""Class scores: what they look like, their probabilities, and the Kullback-Leibler divergence of these."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from greencc.core.data import Array

Float64 = NDArray[np.float64]
SUM_TOLERANCE = 1e-3
TINY = 1e-12


def is_float(array: Array) -> bool:
    """True for NumPy's floats and for bfloat16 and the 8-bit floats of ml_dtypes."""
    return array.dtype.kind == "f" or "float" in array.dtype.name


def is_scores(array: Array) -> bool:
    """True for the shape and type of class scores, a row for each sample."""
    return (
        is_float(array)
        and array.ndim >= 2
        and array.shape[1] >= 2
        and all(size == 1 for size in array.shape[2:])
    )


def are_probabilities(scores: Array) -> bool:
    """Whether every sample's values (samples on the first axis, classes over the others) are probabilities."""
    rows = scores.reshape(len(scores), -1).astype(np.float64)
    return bool((rows >= 0).all() and (np.abs(rows.sum(axis=1) - 1.0) < SUM_TOLERANCE).all())


def log_probabilities(scores: Array, *, probable: bool | None = None) -> Float64:
    """float64, (samples, classes); scores that are no probabilities go through a softmax.

    Args:
        scores: Samples on the first axis, classes over the others; -inf or NaN where a class is masked out.
        probable: Whether they are probabilities; None: as `are_probabilities` finds.
    """
    rows = scores.reshape(len(scores), -1).astype(np.float64)
    if are_probabilities(scores) if probable is None else probable:
        rows = np.log(np.maximum(rows, TINY))
    # Classes that are masked out have no probability.
    rows = np.maximum(np.where(np.isnan(rows), -np.inf, rows), -1e30)
    shifted = rows - rows.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def kl_divergence(old: Array, new: Array) -> Float64 | None:
    """KL(old || new) of each sample; rows that are no probabilities go through a softmax.

    Args:
        old: Samples on the first axis, classes over the others.
        new: Of the same shape.

    Returns:
        float64, (samples,), at least 0; None where `new` is not finite and `old` is.
    """
    if not np.isfinite(new[np.isfinite(old)]).all():
        return None
    probable = are_probabilities(old)
    log_p, log_q = (log_probabilities(scores, probable=probable) for scores in (old, new))
    each: Float64 = (np.exp(log_p) * (log_p - log_q)).sum(axis=1)
    return np.maximum(each, 0.0)

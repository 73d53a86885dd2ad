"""Intervals of paired measurements."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import stdtrit

from greencc.core.report import Interval


def t_quantile(confidence: float, degrees: float) -> float:
    """Two-sided quantile of Student's t, degrees of freedom need not be whole; infinite without any."""
    return float(stdtrit(degrees, 0.5 + confidence / 2.0)) if degrees > 0 else math.inf


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Student's t-interval of the mean of independent values."""
    sample = np.asarray(values, dtype=np.float64)
    centre = float(sample.mean())
    if len(sample) < 2:
        return Interval(centre, -math.inf, math.inf)
    half = t_quantile(confidence, len(sample) - 1) * float(sample.std(ddof=1)) / math.sqrt(len(sample))
    return Interval(centre, centre - half, centre + half)


def ratio_interval(
    numerators: Sequence[float], denominators: Sequence[float], confidence: float = 0.95
) -> Interval:
    """Interval of a ratio from paired positive values: a t-interval on the logarithms of the pairs' ratios.

    What multiplies both values of a pair (a clock frequency, a meter's gain) cancels.
    """
    logs = np.log(np.asarray(numerators, dtype=np.float64)) - np.log(
        np.asarray(denominators, dtype=np.float64)
    )
    interval = mean_interval(logs.tolist(), confidence)
    return Interval(math.exp(interval.value), _exp(interval.low), _exp(interval.high))


def half_width(ratio: Interval) -> float:
    """Relative half-width of a ratio's interval: half the distance of its ends' logarithms."""
    if not 0.0 < ratio.low <= ratio.high < math.inf:
        return math.inf
    return math.log(ratio.high / ratio.low) / 2.0


def percentile(values: Sequence[float], percent: float) -> float:
    """Percentile with linear interpolation between order statistics."""
    return float(np.percentile(np.asarray(values, dtype=np.float64), percent))


def thin(values: Sequence[float], limit: int) -> tuple[float, ...]:
    """At most `limit` of the values, evenly spaced, in their order."""
    if len(values) <= limit:
        return tuple(values)
    picks = np.linspace(0, len(values) - 1, limit).round().astype(int)
    return tuple(values[index] for index in picks)


def _exp(value: float) -> float:
    return math.exp(value) if value < 700.0 else math.inf

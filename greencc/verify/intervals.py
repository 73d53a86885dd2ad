"""Confidence intervals for paired comparisons."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

_REPLICATES = 1000
_SEED = 20211005


def paired_drop(worse: int, better: int, n: int, confidence: float) -> tuple[float, float]:
    """Two-sided interval for the difference of paired proportions, (worse - better) / n.

    `worse` samples were right in the baseline alone, `better` in the artifact alone. The asymptotic score
    interval: the values d where ``|worse - better - n d| <= z sqrt(n (2 q + d (1 - d)))``, with q the
    restricted maximum-likelihood estimate of the second discordant probability. It stays in [-1, 1] and keeps
    its coverage for small n and for no discordant samples at all.

    Source: Tango, "Equivalence test and confidence interval for the difference in proportions for the
    paired-sample design", Statistics in Medicine 17 (1998) 891-908.
    """
    z = float(ndtri(0.5 + confidence / 2.0))
    estimate = (worse - better) / n
    return (
        _crossing(worse, better, n, z, inside=estimate, outside=-1.0),
        _crossing(worse, better, n, z, inside=estimate, outside=1.0),
    )


def _accepts(worse: int, better: int, n: int, z: float, difference: float) -> bool:
    """True when the score test does not reject `difference`."""
    a = 2.0 * n
    b = -worse - better + (2.0 * n - worse + better) * difference
    c = -better * difference * (1.0 - difference)
    q = (math.sqrt(max(b * b - 4.0 * a * c, 0.0)) - b) / (2.0 * a)
    variance = n * (2.0 * q + difference * (1.0 - difference))
    return abs(worse - better - n * difference) <= z * math.sqrt(max(variance, 0.0))


def _crossing(worse: int, better: int, n: int, z: float, inside: float, outside: float) -> float:
    """Bisect for the end of the acceptance region between the estimate and -1 or 1."""
    if _accepts(worse, better, n, z, outside):
        return outside
    for _ in range(60):
        middle = (inside + outside) / 2.0
        if _accepts(worse, better, n, z, middle):
            inside = middle
        else:
            outside = middle
    return inside


@dataclass
class PoissonBootstrap:
    """Percentile interval of a mean over a stream, in constant memory.

    Each replicate weights each sample by an independent Poisson(1) count, so that no sample needs to be kept.
    The seed is fixed: equal streams give equal intervals.

    Source: Chamandy et al., "Estimating uncertainty for massive data streams", Google (2012).
    """

    replicates: int = _REPLICATES

    def __post_init__(self) -> None:
        self._random = np.random.default_rng(_SEED)
        self._weights = np.zeros(self.replicates)
        self._sums = np.zeros(self.replicates)

    def add(self, values: NDArray[np.float64]) -> None:
        """Add the values of some samples, shape (n,)."""
        counts = self._random.poisson(1.0, size=(len(values), self.replicates))
        self._weights += counts.sum(axis=0)
        self._sums += values @ counts

    def interval(self, confidence: float) -> tuple[float, float]:
        """The percentile interval; replicates that drew no sample at all are left out."""
        drawn = self._weights > 0
        means = self._sums[drawn] / self._weights[drawn]
        tail = (1.0 - confidence) / 2.0
        low, high = np.quantile(means, [tail, 1.0 - tail])
        return float(low), float(high)


def resamples(n: int, replicates: int = _REPLICATES) -> Iterator[NDArray[np.int64]]:
    """Yield index arrays of bootstrap resamples of `n` samples, drawn with a fixed seed."""
    random = np.random.default_rng(_SEED)
    for _ in range(replicates):
        yield random.integers(0, n, size=n)

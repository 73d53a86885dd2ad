"""Streaming observers: the range of an activation over any number of samples, in constant memory.

`Histogram` counts values in bins whose width is a power of two. When a value falls outside, the range doubles
and neighbouring bins are merged, which is exact: the counts are those that the final grid would have given
from the start, whatever the order of the samples. So histograms of parts of the samples add up to that of all
(`merge`), to the last count.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from greencc.core.data import Array

# At least 2048 bins between 0 and the largest magnitude: 8 for each step of an 8-bit grid.
BINS = 8192
HALF = BINS // 2
# Elements binned at a time: the temporaries stay in the L2 cache.
_CHUNK = 1 << 15
# 2**-100 keeps the reciprocal of the bin width finite in float32.
_MIN_EXPONENT = -100


@dataclass(frozen=True)
class Range:
    """Closed interval of the values an activation takes; both ends are finite and low <= high."""

    low: float
    high: float

    def union(self, other: Range) -> Range:
        return Range(min(self.low, other.low), max(self.high, other.high))

    def clamp(self, other: Range) -> Range:
        """The part of `other` inside this range."""
        return Range(max(self.low, min(other.low, self.high)), min(self.high, max(other.high, self.low)))


@dataclass
class Histogram:
    """Counts of values on the grid [-2**e, 2**e) of `BINS` equal bins, e growing as needed.

    Attributes:
        counts: int64, shape (BINS,): how many values fell into each bin.
        exponent: e, or None before the first value.
        zeros: How many values were exactly 0: a spike that every grid with a zero point represents exactly.
        low: Smallest value seen (exact, not a bin edge).
        high: Largest value seen.
    """

    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))
    exponent: int | None = None
    zeros: int = 0
    low: float = math.inf
    high: float = -math.inf

    def update(self, values: Array) -> bool:
        """Count the values of an array of any shape.

        Returns:
            False, and nothing is counted, when the array holds a NaN or an infinity.
        """
        flat = np.ascontiguousarray(values, np.float32).reshape(-1)
        if not flat.size:
            return True
        low, high = float(flat.min()), float(flat.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            return False
        self.low, self.high = min(self.low, low), max(self.high, high)
        largest = max(-low, high)
        # Zeros fit any grid: they must not decide how coarse it is.
        self._grow(math.frexp(largest)[1] if largest > 0 else _MIN_EXPONENT)
        assert self.exponent is not None
        inverse_width = np.float32(math.ldexp(HALF, -self.exponent))
        # Wide bins: tiny values become 0 when they are scaled, which would move negative ones across it.
        underflow = self.exponent > HALF.bit_length() - 1 and low < 0
        for start in range(0, flat.size, _CHUNK):
            part = flat[start : start + _CHUNK]
            self.zeros += int(np.count_nonzero(part == 0))
            # Multiplying by a power of two and flooring are exact, so a bin never depends on the order.
            scaled = part * inverse_width
            bins = np.floor(scaled, out=scaled).astype(np.intp)
            if underflow:
                bins[(bins == 0) & (part < 0)] = -1
            bins += HALF
            self.counts += np.bincount(bins, minlength=BINS)
        return True

    def merge(self, other: Histogram) -> None:
        """Count what another histogram has counted, which is left as it is."""
        if other.exponent is None:
            return
        self._grow(other.exponent)
        assert self.exponent is not None
        same = replace(other)
        same._grow(self.exponent)
        self.counts = self.counts + same.counts
        self.zeros += other.zeros
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)

    def percentile(self, percent: float) -> Range:
        """The range left when (100 - percent) / 2 % of the values are cut off at each end.

        Each end lies within one bin width of the exact quantile, inside the values seen.
        """
        if percent >= 100:
            return Range(self.low, self.high)
        cumulative = np.cumsum(self.counts)
        total = int(cumulative[-1])
        tail = (100.0 - percent) / 200.0 * total
        ends = [self._quantile(cumulative, tail), self._quantile(cumulative, total - tail)]
        return Range(self.low, self.high).clamp(Range(min(ends), max(ends)))

    @property
    def width(self) -> float:
        """Width of one bin."""
        assert self.exponent is not None
        return math.ldexp(1.0, self.exponent) / HALF

    def _quantile(self, cumulative: NDArray[np.int64], mass: float) -> float:
        """The value below which `mass` values lie, interpolated inside its bin."""
        index = min(int(np.searchsorted(cumulative, mass)), BINS - 1)
        before = float(cumulative[index] - self.counts[index])
        inside = (mass - before) / max(float(self.counts[index]), 1.0)
        return (index - HALF + min(max(inside, 0.0), 1.0)) * self.width

    def _grow(self, exponent: int) -> None:
        exponent = max(exponent, _MIN_EXPONENT)
        if self.exponent is None:
            self.exponent = exponent
        # After log2(BINS) doublings all mass sits in the two middle bins, and stays there.
        for _ in range(min(max(exponent - self.exponent, 0), HALF.bit_length() + 1)):
            merged = self.counts.reshape(HALF, 2).sum(axis=1)
            self.counts = np.zeros(BINS, np.int64)
            self.counts[HALF // 2 : HALF // 2 + HALF] = merged
        self.exponent = max(exponent, self.exponent)

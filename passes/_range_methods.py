"""How the range of an activation is chosen from its statistics.

`mse` and `entropy` search both ends of the range, coarse to fine, for the least cost on the integer grid that
will be used (`Grid`). Both costs treat exact zeros apart, since the grid represents them exactly: the spike that
a ReLU leaves at 0 says nothing about where to clip.

MSE: the expected squared error, what is clipped counting threefold (`_CLIPPING`). With levels q_0 < ... < q_n a
step s apart and cells bounded by e_k = q_k + s/2, summation by parts turns the sum over cells into one over bounds,

    sum (x - Q(x))^2  =  sum (x - q_n)^2  -  2 s sum_k I(e_k),    I(e) = integral of F from -inf to e,

F(e) being how many values lie below e. I comes from prefix sums over the histogram, values being spread evenly
inside a bin, so a candidate costs one look-up per level; clipping is in it, because the outer cells are unbounded,
and alone it is the integral of I below q_0, and likewise above q_n.

Entropy: the Kullback-Leibler divergence of Migacz, "8-bit inference with TensorRT", GTC 2017: P is the histogram
with all that is clipped added to its end bins, Q the histogram without it, levelled over the bins of each cell that
are not empty. Prefix sums of p, p log p and of the bins in use make this one look-up per level as well. Unlike
there, the range may be asymmetric and the number of levels is that of the grid.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from greencc.core.capabilities import Int8Support
from greencc.core.errors import UsageError
from greencc.passes._ranges import BINS, HALF, Histogram, Range

Floats = NDArray[np.float64]
Cost = Callable[[Floats, Floats], Floats]

# The coarse candidates are the ends seen times 2^(-k/3): from all down to 1 %.
_COARSE_STEP = 1.0 / 3.0
_COARSE = 21
# Each round looks at 7 points per end around the best one and shrinks the step to a third.
_ROUNDS = 3
_FINE = np.arange(-3, 4) / 3.0
# Clipping errors of one place all have one sign and add up in the next sum, while rounding errors average out. Counting
# them threefold gained 0.2 to 0.9 dB at the outputs of six models over 1, and more did not gain more.
_CLIPPING = 3.0
# Share of the values other than 0 that `entropy` keeps. Nothing in the divergence tells how far away what is clipped
# lies, and with nearly everything clipped to one bin it is 0.
_LEAST_INSIDE = 0.9999


class RangeMethod(Enum):
    """How the range of an activation is chosen from its values."""

    MINMAX = "minmax"
    MOVING_AVERAGE = "moving-average"
    PERCENTILE = "percentile"
    ENTROPY = "entropy"
    MSE = "mse"

    @property
    def needs_histogram(self) -> bool:
        return self not in (RangeMethod.MINMAX, RangeMethod.MOVING_AVERAGE)


@dataclass(frozen=True)
class RangeOptions:
    """What ranges are chosen by.

    Attributes:
        method: `minmax` keeps every value seen, `moving-average` the ends of an average run, `percentile` cuts
            rare outliers off, `entropy` and `mse` lose the least information and the least squared error.
        percentile: Share of the values `percentile` keeps, in percent, in (50, 100].
        momentum: Weight of the past in `moving-average`, in [0, 1).
    """

    method: RangeMethod = RangeMethod.MINMAX
    percentile: float = 99.99
    momentum: float = 0.9

    def __post_init__(self) -> None:
        if not 50 < self.percentile <= 100:
            raise UsageError(f"percentile is {self.percentile:g}", hint="give a value in (50, 100]")
        if not 0 <= self.momentum < 1:
            raise UsageError(f"momentum is {self.momentum:g}", hint="give a value in [0, 1)")


@dataclass(frozen=True)
class Grid:
    """The integers an activation is quantized to.

    Attributes:
        steps: Steps between the lowest and the highest integer.
        symmetric: The zero point is in the middle.
    """

    steps: int = 255
    symmetric: bool = False

    @classmethod
    def of(cls, int8: Int8Support) -> Grid:
        """The 8-bit grid of a target; symmetric ones have 127 steps on each side."""
        return cls(254, True) if int8.symmetric_activations else cls()

    def bounds(self, low: Floats, high: Floats) -> tuple[Floats, Floats]:
        """Size of a step and the lowest level for candidate ranges that hold 0 (not only 0)."""
        if self.symmetric:
            largest = np.maximum(-low, high)
            return 2.0 * largest / self.steps, -largest
        step = (high - low) / self.steps
        return step, -np.clip(np.rint(-low / step), 0, self.steps) * step


@dataclass
class Statistics:
    """What was seen of one value.

    Attributes:
        low: Smallest element; larger than `high` when there was none.
        high: Largest element.
        average_low: Moving average of the smallest element of each run.
        average_high: Likewise of the largest.
        histogram: Of all elements, or of evenly spaced ones where there are very many; None: not observed.
    """

    low: float = math.inf
    high: float = -math.inf
    average_low: float = 0.0
    average_high: float = 0.0
    histogram: Histogram | None = None


def choose_range(seen: Statistics, options: RangeOptions, grid: Grid) -> Range:
    """The range by the method asked for; [0, 0] for a value that never had elements."""
    if seen.low > seen.high:
        return Range(0.0, 0.0)
    everything = Range(seen.low, seen.high)
    if options.method is RangeMethod.MINMAX or seen.low == seen.high:
        return everything
    if options.method is RangeMethod.MOVING_AVERAGE:
        return everything.clamp(Range(seen.average_low, seen.average_high))
    histogram = seen.histogram
    assert histogram is not None
    if histogram.exponent is None:
        return everything
    if options.method is RangeMethod.PERCENTILE:
        return everything if options.percentile >= 100 else histogram.percentile(options.percentile)
    cost = (
        squared_error(histogram, grid) if options.method is RangeMethod.MSE else divergence(histogram, grid)
    )
    return everything.clamp(_search(cost, everything, histogram.width, grid))


def _search(cost: Cost, everything: Range, width: float, grid: Grid) -> Range:
    """The range of least cost inside the one seen, of which 0 is always part; ties go to the wider one."""
    low, high = min(everything.low, 0.0) / width, max(everything.high, 0.0) / width
    if grid.symmetric:
        # Only the magnitude matters.
        peak = max(-low, high)
        _, octaves = _refine(lambda _, up: cost(-up, up), 0.0, peak)
        return Range(-peak * 2.0**octaves * width, peak * 2.0**octaves * width)
    down, up = _refine(cost, low, high)
    return Range(low * 2.0**down * width, high * 2.0**up * width)


def _refine(cost: Cost, low: float, high: float) -> tuple[float, float]:
    """Binary logarithms of the best shares of the two ends."""
    coarse = -_COARSE_STEP * np.arange(_COARSE)
    lows = coarse if low < 0 else np.zeros(1)
    highs = coarse if high > 0 else np.zeros(1)
    step = _COARSE_STEP
    best = (0.0, 0.0)
    for _ in range(_ROUNDS + 1):
        pairs = np.stack(np.meshgrid(lows, highs, indexing="ij"), axis=-1).reshape(-1, 2)
        values = cost(low * np.exp2(pairs[:, 0]), high * np.exp2(pairs[:, 1]))
        chosen = pairs[int(np.argmin(values))]
        best = (float(chosen[0]), float(chosen[1]))
        lows, highs = (
            np.unique(np.minimum(end + step * _FINE, 0.0))[::-1] if bound else np.zeros(1)
            for end, bound in zip(best, (low, high), strict=True)
        )
        step /= 3.0
    return best


def squared_error(histogram: Histogram, grid: Grid, clipping: float = _CLIPPING) -> Cost:
    """Mean squared error of quantizing the values, for ranges in bin widths; what is clipped counts `clipping` fold."""
    counts = _without_zeros(histogram)
    total = max(float(counts.sum()), 1.0)
    left = np.arange(-HALF, HALF, dtype=np.float64)
    first = float(counts @ (left + 0.5))
    second = float(counts @ (left * left + left + 1.0 / 3.0))
    # F, its integral and the integral of that at the left edge of each bin, and of the one after the last.
    density = np.append(counts, 0.0)
    below = np.concatenate([[0.0], np.cumsum(counts)])
    integral = np.concatenate([[0.0], np.cumsum(below[:-1] + counts / 2.0)])
    twice = np.concatenate([[0.0], np.cumsum(integral[:-1] + below[:-1] / 2.0 + counts / 6.0)])

    def locate(points: Floats) -> tuple[NDArray[np.intp], Floats]:
        position = np.maximum(points + HALF, 0.0)
        index = np.minimum(position, BINS).astype(np.intp)
        return index, position - index

    def missed_below(points: Floats) -> Floats:
        """Sum of (p - x)^2 over the values x below each point p."""
        index, inside = locate(points)
        slope = below[index] / 2.0 + inside * density[index] / 6.0
        return np.asarray(2.0 * (twice[index] + inside * (integral[index] + inside * slope)), np.float64)

    def cost(low: Floats, high: Floats) -> Floats:
        step, floor = grid.bounds(low, high)
        index, inside = locate(floor[:, None] + step[:, None] * (np.arange(grid.steps) + 0.5))
        area = integral[index] + inside * (below[index] + inside * density[index] / 2.0)
        top = floor + step * grid.steps
        around_top = second - 2.0 * top * first + top * top * below[-1]
        errors = around_top - 2.0 * step * area.sum(axis=1)
        clipped = missed_below(floor) + around_top - missed_below(top)
        return np.asarray((errors + (clipping - 1.0) * clipped) / total, np.float64)

    return cost


def divergence(histogram: Histogram, grid: Grid) -> Cost:
    """Kullback-Leibler divergence of the clipped histogram from its quantized form, for ranges in bin widths."""
    counts = _without_zeros(histogram)
    total = max(float(counts.sum()), 1.0)
    below = np.concatenate([[0.0], np.cumsum(counts)])
    used = np.concatenate([[0.0], np.cumsum(counts > 0)])
    informed = np.concatenate([[0.0], np.cumsum(_x_log(counts))])

    def cost(low: Floats, high: Floats) -> Floats:
        step, floor = grid.bounds(low, high)
        inner = np.rint(floor[:, None] + step[:, None] * (np.arange(grid.steps) + 0.5))
        ends = np.floor(floor), np.ceil(floor + step * grid.steps)
        edges = np.concatenate([ends[0][:, None], inner, ends[1][:, None]], axis=1)
        index = np.clip(edges + HALF, 0, BINS).astype(np.intp)
        start = np.minimum(index[:, 0], BINS - 1)
        stop = np.maximum(index[:, -1], start + 1)
        mass = np.diff(below[index], axis=1)
        # An end bin without values still stands for what is clipped there.
        level = np.maximum(mass, 0.5) / np.maximum(np.diff(used[index], axis=1), 1.0)
        lost = informed[stop] - informed[start] - (mass * np.log(level)).sum(axis=1)
        for end, cell, clipped in ((start, 0, below[start]), (stop - 1, -1, below[-1] - below[stop])):
            kept = counts[end]
            lost += _x_log(kept + clipped) - _x_log(kept) - clipped * np.log(level[:, cell])
        inside = below[stop] - below[start]
        values = lost / total + np.log(np.maximum(inside, 0.5) / total)
        return np.asarray(np.where(inside < _LEAST_INSIDE * total, np.inf, values), np.float64)

    return cost


def _without_zeros(histogram: Histogram) -> Floats:
    counts = histogram.counts.astype(np.float64)
    counts[HALF] -= histogram.zeros
    return counts


def _x_log(values: Floats) -> Floats:
    return np.asarray(values * np.log(np.maximum(values, 1.0)), np.float64)

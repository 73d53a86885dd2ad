"""Times of very many runs in bounded memory.

Up to `EXACT` times are kept as they are. More go into bins whose edges rise by 0.1 %, as in an HDR histogram (Tene,
"HdrHistogram", 2014): a percentile is then within 0.05 % of a time that was measured, however many there are. Ten
minutes flat out at 10 µs are 60 million runs, a gigabyte as Python floats; the bins take a quarter of a megabyte.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from greencc.core.data import Array

EXACT = 1 << 17
"""So many times are kept exactly."""
RESOLUTION = 1e-3
"""Relative width of a bin."""
# From 10 ns to 28 hours, in milliseconds; what lies outside goes to the ends.
_LOWEST, _HIGHEST = 1e-5, 1e8
_STEP = math.log1p(RESOLUTION)
_BINS = math.ceil(math.log(_HIGHEST / _LOWEST) / _STEP)
# Small, so that sorting them into bins (0.2 ms) holds up no request to speak of.
_CHUNK = 1 << 13


@dataclass(frozen=True)
class Times:
    """Milliseconds, and how often each came.

    Attributes:
        values: float64, in the order of the runs where each came once; bins' middles, rising, otherwise.
        counts: int64, as many.
    """

    values: Array = field(default_factory=lambda: np.zeros(0))
    counts: Array = field(default_factory=lambda: np.zeros(0, np.int64))

    def __len__(self) -> int:
        return int(self.counts.sum())

    def percentiles(self, percents: Sequence[float]) -> list[float]:
        """As `numpy.percentile` of all times, interpolated linearly.

        Raises:
            ValueError: There are none.
        """
        total = len(self)
        if total == 0:
            raise ValueError("there are no times")
        order = np.argsort(self.values, kind="stable")
        values, reached = self.values[order], np.cumsum(self.counts[order])
        places = np.asarray(percents, np.float64) / 100.0 * (total - 1)
        below = np.floor(places)
        low, high = (
            values[np.searchsorted(reached, np.minimum(index, total - 1), side="right")]
            for index in (below, below + 1)
        )
        return [float(value) for value in low + (places - below) * (high - low)]


def times_of(values: Sequence[float] | Array) -> Times:
    """Each of the milliseconds once."""
    found = np.asarray(values, np.float64)
    return Times(found, np.ones(len(found), np.int64))


def joined(parts: Sequence[Times]) -> Times:
    """All times of all parts."""
    if not parts:
        return Times()
    return Times(
        np.concatenate([part.values for part in parts]), np.concatenate([part.counts for part in parts])
    )


class TimesRecorder:
    """Takes times one by one.

    Attributes:
        append: Takes a time. It is the array's own method, since a load generator's overhead is in what it measures.
            After `EXACT` times, and then after as many as `fold` says each time, `fold` is due.
    """

    def __init__(self) -> None:
        self._recent = array("d")
        self._bins: Array | None = None
        self.append: Callable[[float], None] = self._recent.append

    def times(self) -> Times:
        """All that were added."""
        if self._bins is None:
            return times_of(np.array(self._recent, np.float64))
        self.fold()
        found = np.flatnonzero(self._bins)
        return Times(_LOWEST * np.exp((found + 0.5) * _STEP), self._bins[found])

    def fold(self) -> int:
        """Sort what came recently into the bins; returns how many times may come before the next fold."""
        if self._bins is None:
            self._bins = np.zeros(_BINS, np.int64)
        values = np.clip(np.array(self._recent, np.float64), _LOWEST, _HIGHEST)
        places = np.minimum((np.log(values / _LOWEST) / _STEP).astype(np.int64), _BINS - 1)
        self._bins += np.bincount(places, minlength=_BINS)
        del self._recent[:]
        return _CHUNK

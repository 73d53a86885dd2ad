"""Statistics of values as arrays: for the cache, and on their way between processes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from greencc.core.data import Array
from greencc.passes._range_methods import Statistics
from greencc.passes._ranges import BINS, Histogram

# Instead of the exponent of a histogram without values, and of one that was not observed.
_EMPTY, _ABSENT = -(1 << 14), -(1 << 15)


def pack(statistics: Mapping[str, Statistics]) -> dict[str, Array]:
    """Statistics by the name of the value, as arrays."""
    found = list(statistics.values())
    ends = [[item.low, item.high, item.average_low, item.average_high] for item in found]
    histograms = [item.histogram for item in found]
    counted = [item for item in histograms if item is not None and item.exponent is not None]
    return {
        "names": np.array(list(statistics), np.str_),
        "ends": np.array(ends, np.float64),
        "exponents": np.array(
            [
                _ABSENT if item is None else _EMPTY if item.exponent is None else item.exponent
                for item in histograms
            ],
            np.int32,
        ),
        "zeros": np.array([item.zeros for item in counted], np.int64),
        "inner": np.array([[item.low, item.high] for item in counted], np.float64).reshape(-1, 2),
        "counts": np.array([item.counts for item in counted], np.uint32).reshape(-1, BINS),
    }


def unpack(entry: Mapping[str, Array]) -> Iterator[tuple[str, Statistics]]:
    """What `pack` was given; nothing for no arrays."""
    if not entry:
        return
    row = 0
    for name, ends, exponent in zip(entry["names"], entry["ends"], entry["exponents"], strict=True):
        histogram = None
        if exponent == _EMPTY:
            histogram = Histogram()
        elif exponent != _ABSENT:
            low, high = entry["inner"][row]
            histogram = Histogram(
                entry["counts"][row].astype(np.int64),
                int(exponent),
                int(entry["zeros"][row]),
                float(low),
                float(high),
            )
            row += 1
        yield str(name), Statistics(float(ends[0]), float(ends[1]), float(ends[2]), float(ends[3]), histogram)

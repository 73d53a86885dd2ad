"""Ranges of inner values over the calibration data: one pass for all methods, in constant memory.

What is seen in the pass (`_statistics`) is kept in the cache under the digests of the model and the data, value by
value, so another method, or another choice of layers, on the same model runs only what was never observed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from greencc.core.cache import cache_key
from greencc.core.data import Array
from greencc.core.model import digest
from greencc.core.passes import Context
from greencc.passes._capture import require_data
from greencc.passes._range_methods import Grid, RangeMethod, RangeOptions, Statistics, choose_range
from greencc.passes._ranges import BINS, Histogram, Range
from greencc.passes._statistics import observe

__all__ = ["Grid", "RangeMethod", "RangeOptions", "observe_ranges", "observe_statistics"]

_MINMAX, _UINT8 = RangeOptions(), Grid()
_KIND = "statistics"
_VERSION = 1
# Instead of the exponent of a histogram without values, and of one that was not observed.
_EMPTY, _ABSENT = -(1 << 14), -(1 << 15)


def observe_ranges(
    model: ir.Model,
    names: Sequence[str],
    ctx: Context,
    options: RangeOptions = _MINMAX,
    grid: Grid = _UINT8,
    batch: int = 8,
) -> dict[str, Range]:
    """The range of each named float value of the main graph, by the method asked for.

    Args:
        model: The float model; it is left unchanged.
        names: Values to observe; values that only ever have no elements get [0, 0].
        ctx: Gives the calibration data, the engine and the cache.
        options: The method and what it is tuned by.
        grid: The integers that `entropy` and `mse` choose the range for.
        batch: Samples run at once, where the model's batch is dynamic.

    Raises:
        InputError: There is no calibration data, or an input or activation holds NaN or infinity.
    """
    seen = observe_statistics(
        model,
        names,
        ctx,
        batch=batch,
        momentum=options.momentum,
        histograms=options.method.needs_histogram,
    )
    return {name: choose_range(found, options, grid) for name, found in seen.items()}


def observe_statistics(
    model: ir.Model,
    names: Sequence[str],
    ctx: Context,
    *,
    batch: int = 8,
    momentum: float = RangeOptions.momentum,
    histograms: bool = True,
) -> dict[str, Statistics]:
    """The statistics of each named value, from the cache as far as it has them; see `observe_ranges`."""
    source = require_data(ctx)
    if not names:
        return {}
    key = cache_key(_VERSION, BINS, digest(model), source.digest(), batch, momentum)
    known = dict(_unpack(ctx.cache.get(_KIND, key) or {}))
    missing = [
        name
        for name in dict.fromkeys(names)
        if name not in known or (histograms and known[name].histogram is None)
    ]
    if missing:
        known |= observe(model, missing, ctx, batch, momentum, histograms=histograms)
        ctx.cache.put(_KIND, key, _pack(known))
    return {name: known[name] for name in names}


def _pack(statistics: Mapping[str, Statistics]) -> dict[str, Array]:
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


def _unpack(entry: Mapping[str, Array]) -> Iterator[tuple[str, Statistics]]:
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

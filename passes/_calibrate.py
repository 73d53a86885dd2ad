"""Ranges of inner values over the calibration data: one pass for all methods, in constant memory.

What is seen in the pass (`_statistics`) is kept in the cache under the digests of the model and the data, value by
value, so another method, or another choice of layers, on the same model runs only what was never observed.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from greencc.core.cache import cache_key
from greencc.core.model import digest
from greencc.core.passes import Context
from greencc.passes._capture import require_data
from greencc.passes._range_methods import Grid, RangeMethod, RangeOptions, Statistics, choose_range
from greencc.passes._ranges import BINS, Range
from greencc.passes._statistics import observe
from greencc.passes._statistics_arrays import pack, unpack

__all__ = ["Grid", "RangeMethod", "RangeOptions", "observe_ranges", "observe_statistics"]

_MINMAX, _UINT8 = RangeOptions(), Grid()
_KIND = "statistics"
_VERSION = 1


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
    known = dict(unpack(ctx.cache.get(_KIND, key) or {}))
    missing = [
        name
        for name in dict.fromkeys(names)
        if name not in known or (histograms and known[name].histogram is None)
    ]
    if missing:
        observed = observe(model, missing, ctx, batch, momentum, histograms=histograms)
        known |= observed.statistics
        ctx.cache.put(_KIND, key, pack(known))
        if ctx.observe_shards is not None:
            ctx.observe_shards.forget(observed.shards)
    return {name: known[name] for name in names}

"""Whether an artifact keeps a limit, by its measured figures."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy.special import bdtr

from greencc.core.meter import Grade
from greencc.core.report import Energy, Interval, Latency
from greencc.core.report_plan import LimitVerdict
from greencc.planner.budget import BudgetLimit, Kind

CONFIDENCE = 0.95


def assess(
    limit: BudgetLimit,
    *,
    latency: Latency,
    energy: Energy | None,
    size_bytes: int,
    macs: float | None,
    rate: float | None = None,
    idle_watts: float | None = None,
    note: str = "",
) -> LimitVerdict:
    """The verdict on one limit.

    Watts are made of the energy of one inference: gross over its median time flat out, and at a rate what the device
    draws idle plus the rate times what one inference adds. They have the energy's grade, and its interval.

    Args:
        limit: What was asked.
        latency: Of the artifact.
        energy: Of the artifact; None: not known, and no limit in W or J is met then.
        size_bytes: Likewise.
        macs: Likewise; None: not counted.
        rate: Requests per second; None: flat out.
        idle_watts: Measured; None: not known.
        note: Put before what is found out here, such as a power mode of the machine.
    """
    grade = None
    notes = [note, f"power mode {limit.mode}" if limit.mode else ""]
    found: Interval | None
    if limit.kind is Kind.LATENCY:
        found, more = _percentile(latency, limit.percentile)
    elif limit.kind is Kind.SIZE:
        found, more = Interval(size_bytes, size_bytes, size_bytes), ""
    elif limit.kind is Kind.MACS:
        found, more = (None, "not counted") if macs is None else (Interval(macs, macs, macs), "")
    elif energy is None:
        found, more = None, "no energy is known"
    elif limit.kind is Kind.ENERGY:
        found, more = energy.interval(), "" if energy.net else "gross: the idle power is in it"
    else:
        found, more = _watts(energy, latency.median, rate, idle_watts)
    notes.append(more)
    if limit.kind in (Kind.POWER, Kind.ENERGY) and energy is not None:
        grade = energy.grade
        boundary = energy.boundary.removesuffix(" (estimated)")
        notes.append(f"{'measured' if Grade[grade].measured else 'estimated'}: {boundary}")
    exact = limit.kind in (Kind.SIZE, Kind.MACS)
    late = limit.kind is Kind.POWER and rate is not None and latency.median * rate > 1e3
    met = found is not None and found.value <= limit.value and not late
    return LimitVerdict(
        limit=limit.shown,
        quantity=limit.kind.value,
        unit=limit.kind.unit,
        allowed=limit.value,
        found=None if found is None else found.value,
        low=None if found is None or exact else _finite(found.low),
        high=None if found is None or exact else _finite(found.high),
        grade=grade,
        met=met,
        sure=met and found is not None and found.high <= limit.value,
        note="; ".join(each for each in notes if each),
    )


def _watts(
    energy: Energy, milliseconds: float, rate: float | None, idle: float | None
) -> tuple[Interval, str]:
    gross = energy.gross_interval()
    flat_out = _each(gross, lambda millijoules: millijoules / milliseconds)
    if rate is None:
        return flat_out, "flat out"
    if milliseconds * rate > 1e3:
        return flat_out, f"flat out: at {1e3 / milliseconds:.4g}/s it does not keep up with {rate:g}/s"
    if idle is not None:
        # Net energy has the idle power's own uncertainty in its interval; of a gross figure it is taken off as it is.
        own = energy.interval() if energy.net else _each(gross, lambda e: max(0.0, e - idle * milliseconds))
        return _each(own, lambda e: idle + rate * e / 1e3), f"at {rate:g}/s, {idle:.3g} W idle"
    # What is drawn between requests is not known: at least nothing, at most as much as during one.
    low = _each(gross, lambda millijoules: rate * millijoules / 1e3)
    return (
        Interval(low.value, low.low, flat_out.high),
        f"at {rate:g}/s, without what is drawn between requests: the idle power is not known",
    )


def _each(interval: Interval, change: Callable[[float], float]) -> Interval:
    return Interval(change(interval.value), change(interval.low), change(interval.high))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _percentile(latency: Latency, percentile: int | None) -> tuple[Interval, str]:
    value = latency.percentiles[percentile or 95]
    low, high = quantile_interval(latency.samples, (percentile or 95) / 100.0)
    if high == math.inf:
        return Interval(value, low, high), f"{len(latency.samples)} samples give p{percentile} no upper end"
    return Interval(value, min(low, value), max(high, value)), ""


def quantile_interval(
    samples: Sequence[float], share: float, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """Ends of the order statistics' interval of a quantile; infinite where the samples are too few for one.

    The number of samples below the quantile is binomial, whatever their distribution (David and Nagaraja, "Order
    Statistics", section 7.1). Independent samples; neighbouring runs of a model are close to that.

    Args:
        samples: Positive times, in any order.
        share: 0.95 for p95.
        confidence: Of both ends together.
    """
    ordered = np.sort(np.asarray(samples, dtype=np.float64))
    count, tail = len(ordered), (1.0 - confidence) / 2.0
    if not count:
        return -math.inf, math.inf
    below = bdtr(np.arange(count + 1), count, share)  # P(B <= k)
    # 1-based places: the largest `first` with P(B < first) <= tail, the smallest `last` with P(B >= last) <= tail.
    first = int(np.searchsorted(below, tail, side="right"))
    last = int(np.searchsorted(below, 1.0 - tail, side="left")) + 1
    return (
        float(ordered[first - 1]) if 1 <= first <= count else -math.inf,
        float(ordered[last - 1]) if last <= count else math.inf,
    )

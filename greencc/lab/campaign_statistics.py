"""From repetitions to one figure with its interval.

A repetition's own interval tells how far its blocks and rounds scatter. It does not tell what stays the same
throughout a repetition and differs between them: where memory was laid out, what the clock and the neighbours did,
how warm the machine was. So the interval over R repetitions is Student's t-interval of their R log ratios, with R
- 1 degrees of freedom: under the random-effects model `log r_i = log r + b_i + e_i` the variance of a mean of the
log ratios is that of `b_i + e_i` over R, which their spread estimates, and which needs no estimate of the two
parts.

Few repetitions may agree by chance. The interval is therefore never narrower than the repetitions' own intervals
allow (the half-widths in quadrature over R, where they are independent). What is common to all repetitions does
not average out: the plausible range of a model's coefficients (grades C and D), a meter's gain. There the mean
half-width is added in quadrature to the t-interval's.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from greencc.core.report import Energy, Interval
from greencc.measure.intervals import t_quantile
from greencc.report.campaign_summary import Ratio


def combine_ratios(ratios: Sequence[Interval], confidence: float, *, common: bool = False) -> Ratio:
    """One ratio of those of the repetitions.

    Args:
        ratios: At least one, positive and finite.
        confidence: Of the intervals given, and of the result.
        common: What widens the intervals is the same in all of them (grades C and D).
    """
    logs = [math.log(ratio.value) for ratio in ratios]
    mean = statistics.fmean(logs)
    below = _half(logs, [math.log(ratio.value / ratio.low) for ratio in ratios], confidence, common)
    above = _half(logs, [math.log(ratio.high / ratio.value) for ratio in ratios], confidence, common)
    return Ratio(
        Interval(math.exp(mean), math.exp(mean - below), math.exp(min(mean + above, 700.0))),
        statistics.stdev(logs) if len(logs) > 1 else None,
        len(logs),
    )


def combine_energies(energies: Sequence[Energy], confidence: float) -> Interval:
    """Energy over the repetitions: the gain of a meter and the coefficients of a model are common to all of them."""
    if min(energy.low for energy in energies) > 0.0:
        ratio = combine_ratios(
            [Interval(energy.value, energy.low, energy.high) for energy in energies], confidence, common=True
        )
        return ratio.interval
    # Net energy near nothing: its interval holds 0, which has no logarithm.
    values = [energy.value for energy in energies]
    mean = statistics.fmean(values)
    return Interval(
        mean,
        mean - _half(values, [energy.value - energy.low for energy in energies], confidence, True),
        mean + _half(values, [energy.high - energy.value for energy in energies], confidence, True),
    )


def _half(values: Sequence[float], own: Sequence[float], confidence: float, common: bool) -> float:
    """Half-width of the mean's interval, from the values' spread and their own half-widths."""
    count = len(values)
    if count == 1:
        return own[0]
    between = t_quantile(confidence, count - 1.0) * statistics.stdev(values) / math.sqrt(count)
    if common:
        return math.hypot(between, statistics.fmean(own))
    return max(between, math.hypot(*own) / count)

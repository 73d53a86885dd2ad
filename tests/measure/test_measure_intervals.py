"""Intervals against closed forms and in simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from greencc.core.report import Interval
from greencc.measure.intervals import half_width, mean_interval, percentile, ratio_interval, t_quantile, thin


@pytest.mark.parametrize(
    ("confidence", "degrees", "expected"),
    [(0.95, 1, 12.7062), (0.95, 9, 2.2622), (0.99, 9, 3.2498), (0.95, 1000, 1.9623)],
)
def test_quantiles_of_the_tables(confidence: float, degrees: int, expected: float) -> None:
    assert t_quantile(confidence, degrees) == pytest.approx(expected, abs=5e-4)


def test_mean_interval_in_closed_form() -> None:
    interval = mean_interval([1.0, 2.0, 3.0])
    assert interval.value == 2.0
    assert interval.high - interval.value == pytest.approx(4.30265 / math.sqrt(3), abs=1e-4)


def test_one_value_says_nothing() -> None:
    assert mean_interval([2.0]) == Interval(2.0, -math.inf, math.inf)
    ratio = ratio_interval([2.0], [1.0])
    assert (ratio.low, ratio.high) == (0.0, math.inf)
    assert half_width(ratio) == math.inf


def test_a_common_factor_of_each_pair_cancels() -> None:
    noise = np.random.default_rng(0).lognormal(0.0, 1.0, size=20)
    ratio = ratio_interval((3.0 * noise).tolist(), (2.0 * noise).tolist())
    assert (ratio.low, ratio.value, ratio.high) == pytest.approx((1.5, 1.5, 1.5))
    assert half_width(ratio) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("count", [4, 10, 30])
def test_the_ratio_interval_covers_the_truth_as_often_as_it_says(count: int) -> None:
    rng = np.random.default_rng(7)
    trials = 2000
    hits = 0
    for _ in range(trials):
        common = rng.normal(0.0, 0.5, size=count)
        first = np.exp(common + rng.normal(math.log(1.3), 0.05, size=count))
        second = np.exp(common + rng.normal(0.0, 0.05, size=count))
        interval = ratio_interval(first.tolist(), second.tolist())
        hits += interval.low <= 1.3 <= interval.high
    # Three standard errors of a proportion of 0.95.
    assert hits / trials == pytest.approx(0.95, abs=3 * math.sqrt(0.95 * 0.05 / trials))


def test_percentiles_and_thinning() -> None:
    values = [float(value) for value in range(101)]
    assert (percentile(values, 50), percentile(values, 95), percentile(values, 99)) == (50.0, 95.0, 99.0)
    assert thin(values, 500) == tuple(values)
    assert thin(values, 3) == (0.0, 50.0, 100.0)

"""Properties of the streaming histogram."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from greencc.passes._ranges import BINS, Histogram, Range

chunks = st.lists(
    arrays.arrays(
        np.float32,
        st.integers(1, 50),
        # Down to values that do not vanish in float32 against the largest.
        elements=st.floats(-(2.0**40), 2.0**40, width=32).map(lambda x: x if abs(x) > 2.0**-60 else 0.0),
    ),
    min_size=1,
    max_size=6,
)


def histogram_of(parts: list[np.ndarray]) -> Histogram:
    histogram = Histogram()
    for part in parts:
        assert histogram.update(part)
    return histogram


@given(chunks)
def test_mass_is_exact(parts: list[np.ndarray]) -> None:
    histogram = histogram_of(parts)
    assert histogram.counts.sum() == sum(part.size for part in parts)
    assert histogram.low == min(part.min() for part in parts)
    assert histogram.high == max(part.max() for part in parts)


@given(chunks)
def test_the_order_and_the_splits_do_not_matter(parts: list[np.ndarray]) -> None:
    forward, backward = histogram_of(parts), histogram_of(parts[::-1])
    whole = histogram_of([np.concatenate(parts)])
    for other in (backward, whole):
        np.testing.assert_array_equal(forward.counts, other.counts)
        assert forward.exponent == other.exponent


# Next to the largest of them the smallest vanish in float32.
extremes = st.sampled_from([0.0, -0.0, 1e-45, -1e-45, 1e-38, -1e-38, -1.0, 1.0, -3e38, 3e38, -70000.0])


@given(chunks, st.lists(st.lists(extremes, min_size=1), max_size=4), st.integers(0, 10))
def test_parts_add_up_to_the_whole(parts: list[np.ndarray], more: list[list[float]], cut: int) -> None:
    parts = parts + [np.array(values, np.float32) for values in more]
    whole = histogram_of(parts)
    first, second = histogram_of(parts[:cut]), histogram_of(parts[cut:])
    before = second.counts.copy()
    first.merge(second)
    assert (second.counts == before).all()
    assert (first.counts == whole.counts).all()
    assert (first.exponent, first.zeros) == (whole.exponent, whole.zeros)
    assert (first.low, first.high) == (whole.low, whole.high)


def test_tiny_negative_values_stay_below_zero() -> None:
    """Scaled to the bins of the others they are 0 in float32."""
    for parts in ([[-1e-45], [3e38]], [[3e38], [-1e-45]]):
        counts = histogram_of([np.array(part, np.float32) for part in parts]).counts
        assert counts[BINS // 2 - 1] == 1


@given(chunks, st.floats(51, 100))
def test_percentiles_lie_within_a_bin_of_the_exact_ones(parts: list[np.ndarray], percent: float) -> None:
    values = np.sort(np.concatenate(parts).astype(np.float64))
    histogram = histogram_of(parts)
    found = histogram.percentile(percent)
    tail = (100 - percent) / 200
    width = histogram.width
    assert found.low <= found.high
    for end, share in ((found.low, tail), (found.high, 1 - tail)):
        # Between two samples any value is a quantile, so the neighbours bound it.
        below = np.quantile(values, share, method="inverted_cdf")
        above = values[min(int(np.floor(share * values.size + 1e-9)), values.size - 1)]
        assert min(below, above) - width <= end <= max(below, above) + width


def test_the_state_does_not_grow_with_the_number_of_samples() -> None:
    histogram = Histogram()
    generator = np.random.default_rng(0)
    histogram.update(generator.standard_normal(10))
    before = histogram.counts.nbytes
    for exponent in range(40):
        histogram.update(generator.standard_normal(1000) * 2.0**exponent)
    assert histogram.counts.nbytes == before == BINS * 8
    assert histogram.counts.sum() == 40_010


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_values_are_refused_and_not_counted(bad: float) -> None:
    histogram = histogram_of([np.ones(4, np.float32)])
    assert not histogram.update(np.array([0.5, bad], np.float32))
    assert histogram.counts.sum() == 4
    assert histogram.high == 1


def test_percentile_cuts_a_rare_outlier() -> None:
    values = np.random.default_rng(1).uniform(0, 1, 100_000).astype(np.float32)
    values[0] = 1000
    assert histogram_of([values]).percentile(99.9).high < 2
    assert histogram_of([values]).percentile(100).high == 1000


@pytest.mark.parametrize("constant", [0.0, 3.0, -2.5, 1e-42, 3e38])
def test_constant_values(constant: float) -> None:
    value = float(np.float32(constant))
    histogram = histogram_of([np.full(10, constant, np.float32)])
    assert histogram.percentile(99.0) == Range(value, value)


def test_empty_arrays_count_nothing() -> None:
    histogram = Histogram()
    assert histogram.update(np.empty((0, 3), np.float32))
    assert histogram.exponent is None

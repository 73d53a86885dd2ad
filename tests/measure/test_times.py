"""Times of many runs against NumPy's percentiles of all of them."""

from __future__ import annotations

import numpy as np
import pytest

from greencc.measure.times import EXACT, RESOLUTION, Times, TimesRecorder, joined, times_of

PERCENTS = (0.0, 1.0, 50.0, 95.0, 99.0, 99.9, 100.0)


def recorded(values: np.ndarray) -> Times:
    recorder, room = TimesRecorder(), EXACT
    for number, value in enumerate(values.tolist(), 1):
        recorder.append(value)
        if number > room:
            room = number + recorder.fold()
    return recorder.times()


@pytest.mark.parametrize("count", [1, 2, 7, 1000])
def test_few_times_are_exact_and_in_order(count: int) -> None:
    values = np.random.default_rng(count).lognormal(1.0, 1.0, count)
    found = recorded(values)
    assert list(found.values) == list(values)
    assert found.percentiles(PERCENTS) == pytest.approx(np.percentile(values, PERCENTS), rel=1e-12)


@pytest.mark.parametrize("scale", [0.011, 30.0])
def test_many_times_keep_their_percentiles_to_the_resolution(scale: float) -> None:
    """Two humps and a long tail, whose percentiles lie in different places."""
    rng = np.random.default_rng(1)
    count = 3 * EXACT + 12345
    values = scale * np.where(
        rng.random(count) < 0.97, rng.lognormal(0.0, 0.02, count), rng.lognormal(2.0, 0.5, count)
    )
    found = recorded(values)
    assert len(found) == count
    assert len(found.values) < 20_000
    assert found.percentiles(PERCENTS) == pytest.approx(np.percentile(values, PERCENTS), rel=RESOLUTION)
    # The middle of a bin is half its width from its edges.
    typical = found.percentiles((50.0, 95.0))
    assert typical == pytest.approx(np.percentile(values, (50.0, 95.0)), rel=0.55 * RESOLUTION)


def test_what_is_out_of_range_counts_at_the_ends() -> None:
    found = recorded(np.concatenate([np.zeros(10), np.full(EXACT, 1.0), np.full(10, 1e12)]))
    assert len(found) == EXACT + 20
    assert found.percentiles((0.0,))[0] == pytest.approx(1e-5, rel=RESOLUTION)
    assert found.percentiles((100.0,))[0] == pytest.approx(1e8, rel=RESOLUTION)


def test_blocks_are_joined_by_their_weight() -> None:
    rng = np.random.default_rng(2)
    long, short = rng.uniform(1.0, 2.0, EXACT + 9000), rng.uniform(5.0, 6.0, 9000)
    found = joined([recorded(long), recorded(short), Times()])
    exact = np.percentile(np.concatenate([long, short]), PERCENTS)
    assert found.percentiles(PERCENTS) == pytest.approx(exact, rel=2 * RESOLUTION)


def test_of_nothing_there_are_no_percentiles() -> None:
    assert len(joined([])) == len(times_of([])) == 0
    with pytest.raises(ValueError, match="no times"):
        Times().percentiles((50.0,))

"""What each method promises about the range it chooses."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greencc.core.capabilities import ElementType
from greencc.core.errors import UsageError
from greencc.passes import _range_methods
from greencc.passes._quantize_scales import activation_scale
from greencc.passes._range_methods import (
    Grid,
    RangeMethod,
    RangeOptions,
    Statistics,
    choose_range,
    divergence,
    squared_error,
)
from greencc.passes._ranges import BINS, HALF, Histogram, Range

GRIDS = [Grid(), Grid(254, True)]
SEARCHED = [RangeMethod.ENTROPY, RangeMethod.MSE]


def statistics(values: np.ndarray) -> Statistics:
    histogram = Histogram()
    assert histogram.update(values)
    low, high = float(values.min()), float(values.max())
    return Statistics(low, high, low, high, histogram)


def quantize(values: np.ndarray, chosen: Range, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """The values on the grid, and which of them are clipped."""
    step, floor = grid.bounds(np.array([min(chosen.low, 0)]), np.array([max(chosen.high, 0)]))
    levels = np.clip(np.rint((values - floor) / step), 0, grid.steps) * step + floor
    return levels, (values < floor) | (values > floor + step * grid.steps)


def loss(values: np.ndarray, chosen: Range, grid: Grid, clipping: float = 3.0) -> float:
    levels, clipped = quantize(values, chosen, grid)
    return float((np.square(values - levels) * np.where(clipped, clipping, 1.0)).mean())


def sample(kind: str, count: int = 20_000) -> np.ndarray:
    rng = np.random.default_rng(3)
    values = {
        "normal": lambda: rng.standard_normal(count),
        "relu": lambda: np.maximum(rng.standard_normal(count), 0),
        "relu6": lambda: np.clip(3 * rng.standard_normal(count), 0, 6),
        "laplace": lambda: rng.laplace(size=count),
        "heavy": lambda: rng.standard_t(2.5, count),
        "asymmetric": lambda: np.where(rng.random(count) < 0.3, -1, 4) * rng.random(count) ** 3,
        "negative": lambda: -rng.gamma(2.0, size=count),
        "shifted": lambda: 5 + rng.standard_normal(count),
        "outlier": lambda: np.append(rng.standard_normal(count - 1), 1000.0),
        "discrete": lambda: rng.integers(0, 17, count),
        "tiny": lambda: rng.standard_normal(count) * 1e-20,
    }[kind]()
    return np.asarray(values, np.float32)


KINDS = [
    "normal",
    "relu",
    "relu6",
    "laplace",
    "heavy",
    "asymmetric",
    "negative",
    "shifted",
    "outlier",
    "discrete",
    "tiny",
]


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "discrete"])
def test_the_error_from_the_histogram_is_the_real_one(kind: str, grid: Grid) -> None:
    values = sample(kind)
    seen = statistics(values)
    assert seen.histogram is not None
    width = seen.histogram.width
    for share in (1.0, 0.5, 0.25):
        low, high = min(seen.low, 0.0) * share, max(seen.high, 0.0) * share
        found = squared_error(seen.histogram, grid)(np.array([low / width]), np.array([high / width]))
        real = loss(values, Range(low, high), grid) * values.size / max(np.count_nonzero(values), 1)
        assert found[0] * width**2 == pytest.approx(real, rel=0.05, abs=width**2 / 4)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("kind", KINDS)
def test_mse_is_no_worse_than_any_other_range(kind: str, grid: Grid) -> None:
    values = sample(kind)
    seen = statistics(values)
    chosen = choose_range(seen, RangeOptions(RangeMethod.MSE), grid)
    others = [
        Range(min(seen.low, 0) * down, max(seen.high, 0) * up)
        for down in (1.0, 0.8, 0.6, 0.4, 0.2, 0.1)
        for up in (1.0, 0.8, 0.6, 0.4, 0.2, 0.1)
    ]
    best = min(loss(values, other, grid) for other in others)
    # Of discrete values a histogram knows the bin, not the place in it.
    assert loss(values, chosen, grid) <= 1.02 * best + (seen.histogram.width**2 if seen.histogram else 0)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("method", list(RangeMethod))
@pytest.mark.parametrize("kind", KINDS)
def test_ranges_lie_inside_what_was_seen(kind: str, method: RangeMethod, grid: Grid) -> None:
    values = sample(kind)
    chosen = choose_range(statistics(values), RangeOptions(method), grid)
    assert values.min() <= chosen.low <= chosen.high <= values.max()
    if method is RangeMethod.ENTROPY:
        outside = (values < min(chosen.low, 0)) | (values > max(chosen.high, 0))
        assert outside.sum() <= 1e-4 * np.count_nonzero(values) + 1


@pytest.mark.parametrize("method", [RangeMethod.PERCENTILE, RangeMethod.ENTROPY])
def test_one_far_outlier_is_clipped(method: RangeMethod) -> None:
    values = np.append(sample("normal", 200_000), np.float32(200))
    assert choose_range(statistics(values), RangeOptions(method), Grid()).high < 20


@pytest.mark.parametrize("method", SEARCHED)
def test_a_spike_at_zero_does_not_change_the_range(method: RangeMethod) -> None:
    values = sample("relu")
    values = values[values > 0]
    alone = choose_range(statistics(np.append(values, np.float32(0))), RangeOptions(method), Grid())
    spiked = choose_range(statistics(np.pad(values, (0, 10**6))), RangeOptions(method), Grid())
    assert spiked == alone


@pytest.mark.parametrize("method", SEARCHED)
def test_mirrored_values_give_mirrored_ranges(method: RangeMethod) -> None:
    values = np.abs(sample("heavy"))
    up = choose_range(statistics(values), RangeOptions(method), Grid())
    down = choose_range(statistics(-values), RangeOptions(method), Grid())
    assert down.low == pytest.approx(-up.high, rel=0.02)
    assert (up.low, down.high) == (values.min(), -values.min()) or max(up.low, -down.high) <= values.min()


def test_the_divergence_is_that_of_the_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_range_methods, "_LEAST_INSIDE", 0.5)
    values = sample("laplace", 3000)
    histogram = statistics(values).histogram
    assert histogram is not None
    grid = Grid(15)
    low, high = np.array([-900.0, -HALF, -1.0]), np.array([1100.0, HALF, 20.0])
    found = divergence(histogram, grid)(low, high)
    steps, floors = grid.bounds(low, high)
    for index, (step, floor) in enumerate(zip(steps, floors, strict=True)):
        counts = histogram.counts.astype(float)
        counts[HALF] -= histogram.zeros
        bounds = floor + step * (np.arange(grid.steps) + 0.5)
        cells = np.clip(
            np.concatenate([[np.floor(floor)], np.rint(bounds), [np.ceil(floor + step * grid.steps)]]) + HALF,
            0,
            BINS,
        ).astype(int)
        start, stop = cells[0], cells[-1]
        p, q = np.zeros(BINS), np.zeros(BINS)
        p[start:stop] = counts[start:stop]
        for left, right in pairwise(cells):
            used = counts[left:right] > 0
            q[left:right][used] = max(counts[left:right].sum(), 0.5) / max(used.sum(), 1)
            for end in (start, stop - 1):
                if left <= end < right:
                    q[end] = max(counts[left:right].sum(), 0.5) / max(used.sum(), 1)
        p[start] += counts[:start].sum()
        p[stop - 1] += counts[stop:].sum()
        assert index == 1 or counts[:start].sum() + counts[stop:].sum() > 1
        inside = counts[start:stop].sum()
        expected = sum(
            part / counts.sum() * np.log((part / counts.sum()) / (level / inside))
            for part, level in zip(p, q, strict=True)
            if part > 0
        )
        kept = inside >= 0.5 * counts.sum()
        assert kept == (index < 2)
        assert found[index] == (pytest.approx(expected, rel=1e-9) if kept else np.inf)


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(list(RangeMethod)),
    st.sampled_from(GRIDS),
    st.lists(st.floats(-(2.0**40), 2.0**40, width=32), min_size=1, max_size=20),
)
def test_any_values_give_a_valid_range(method: RangeMethod, grid: Grid, values: list[float]) -> None:
    array = np.array(values, np.float32)
    chosen = choose_range(statistics(array), RangeOptions(method), grid)
    assert array.min() <= chosen.low <= chosen.high <= array.max()


@pytest.mark.parametrize("method", list(RangeMethod))
@pytest.mark.parametrize("value", [0.0, 3.0, -0.1, 1e-30, 3e38])
def test_constants_are_exact(method: RangeMethod, value: float) -> None:
    values = np.full(10, value, np.float32)
    for grid in GRIDS:
        assert choose_range(statistics(values), RangeOptions(method), grid) == Range(values[0], values[0])


def test_no_elements() -> None:
    for method in RangeMethod:
        seen = Statistics(histogram=Histogram())
        assert choose_range(seen, RangeOptions(method), Grid()) == Range(0, 0)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("activation", [ElementType.UINT8, ElementType.INT8])
def test_the_grid_is_that_of_the_scales(kit: Any, activation: ElementType, symmetric: bool) -> None:
    int8 = replace(kit.int8, activation=activation, symmetric_activations=symmetric)
    grid = Grid.of(int8)
    for chosen in (Range(-1.0, 3.0), Range(0.0, 6.0), Range(-2.0, 0.0), Range(-0.1, 5.0)):
        scale = activation_scale(chosen, int8)
        step, floor = grid.bounds(np.array([chosen.low]), np.array([chosen.high]))
        lowest = -128 if activation is ElementType.INT8 else 0
        if symmetric:
            lowest += 1
        assert step[0] == pytest.approx(float(scale.scale), rel=1e-6)
        assert floor[0] == pytest.approx((lowest - scale.zero_point) * float(scale.scale), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize(
    "options", [{"percentile": 50}, {"percentile": 101}, {"momentum": 1.0}, {"momentum": -0.1}]
)
def test_options_are_checked(options: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        RangeOptions(**options)  # type: ignore[arg-type]

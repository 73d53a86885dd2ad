"""Rounding to blocks: half a step, the search, packing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greencc.passes._block_quantize import (
    BlockWeight,
    Grid,
    block_scales,
    is_finite,
    nearest,
    pack_blocks,
    pack_nibbles,
)

GRIDS = st.builds(
    Grid,
    bits=st.sampled_from([4, 8]),
    block_size=st.sampled_from([0, 16, 32]),
    symmetric=st.booleans(),
    search=st.just(False),
)


def steps_of(weight: BlockWeight) -> Any:
    columns = weight.codes.shape[1]
    return np.repeat(weight.scales, weight.grid.width(columns), axis=1)[:, :columns]


@settings(max_examples=60, deadline=None)
@given(
    grid=GRIDS,
    rows=st.integers(1, 5),
    columns=st.integers(1, 70),
    magnitude=st.sampled_from([1e-30, 1e-3, 1.0, 1e30]),
    outlier=st.sampled_from([0.0, 1e4, 3e38]),
    flipped=st.booleans(),
    seed=st.integers(0, 99),
)
def test_every_weight_is_within_half_a_step(
    grid: Grid, rows: int, columns: int, magnitude: float, outlier: float, flipped: bool, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    matrix = (generator.standard_normal((rows, columns)) * magnitude).astype(np.float32)
    matrix[0] = 0.0
    if outlier:
        matrix[-1, -1] = outlier
    if flipped:
        matrix = np.asfortranarray(matrix)
    weight = nearest(matrix, grid)
    error = np.abs(weight.dequantize().astype(np.float64) - matrix)
    # The last digits of a float32 quotient may round a weight halfway between two codes to the other one.
    assert (error <= 0.5 * steps_of(weight).astype(np.float64) * (1 + 1e-4)).all()
    assert np.isfinite(weight.scales).all()
    assert (weight.scales > 0).all()
    assert not weight.dequantize()[0].any() or (rows == 1 and outlier)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 999),
    symmetric=st.booleans(),
    block=st.sampled_from([0, 16, 32]),
    negative=st.booleans(),
)
def test_search_only_lowers_the_squared_error_and_clips_what_it_leaves_out(
    seed: int, symmetric: bool, block: int, negative: bool
) -> None:
    matrix = np.random.default_rng(seed).standard_t(4, (4, 64)).astype(np.float32)
    plain = nearest(matrix, Grid(4, block, symmetric, search=False))
    searched = nearest(matrix, Grid(4, block, symmetric, search=True, negative=negative))
    blocks = (4, -1, plain.grid.width(64))
    errors = [
        np.square(weight.dequantize() - matrix).reshape(blocks).sum(axis=-1) for weight in (plain, searched)
    ]
    assert (errors[1] <= errors[0] * (1 + 1e-5)).all()
    inside = (searched.codes > 0) & (searched.codes < 15)
    error = np.abs(searched.dequantize() - matrix)
    assert (error <= 0.5001 * np.abs(steps_of(searched)))[inside].all()
    assert (searched.scales > 0).all() or (negative and symmetric)


def test_negative_scales_give_the_larger_side_the_extra_code() -> None:
    matrix = np.zeros((1, 16), np.float32)
    matrix[0, :3] = [8.0, 7.0, -1.0]
    one_sided = nearest(matrix, Grid(4, 16, True, search=True))
    both = nearest(matrix, Grid(4, 16, True, search=True, negative=True))
    assert both.scales[0, 0] < 0
    errors = [np.square(weight.dequantize() - matrix).sum() for weight in (one_sided, both)]
    assert errors[1] < errors[0]
    # Large negative weights have the extra code anyway.
    assert nearest(-matrix, Grid(4, 16, True, search=True, negative=True)).scales[0, 0] > 0


def test_importance_decides_the_search() -> None:
    values = np.array([[0.1, 0.2, -0.15, 3.0] * 4], np.float32)
    grid = Grid(4, 16, True, search=True)
    even, _ = block_scales(values, grid)
    importance = np.array([1.0, 1.0, 1.0, 1e-6] * 4)
    small, _ = block_scales(values, grid, importance)
    assert small[0] < even[0]
    dead, _ = block_scales(values, grid, np.zeros(16))
    assert dead[0] == pytest.approx(3.0 / 7)


@pytest.mark.parametrize("symmetric", [True, False])
def test_memory_layout_and_chunks_do_not_matter(symmetric: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = np.random.default_rng(0).standard_normal((12, 70)).astype(np.float32)
    for block in (0, 16):
        grid = Grid(4, block, symmetric, search=block != 0)
        whole = nearest(matrix, grid)
        with monkeypatch.context() as patch:
            patch.setattr("greencc.passes._block_quantize._CHUNK", 100)
            for layout in (matrix, np.asfortranarray(matrix)):
                parts = nearest(layout, grid)
                np.testing.assert_array_equal(parts.codes, whole.codes)
                np.testing.assert_array_equal(parts.scales, whole.scales)
                np.testing.assert_array_equal(parts.zero_points, whole.zero_points)
    assert nearest(matrix.T, Grid(8, 0, symmetric, search=False)).codes.flags.f_contiguous


def test_nibbles_and_blocks() -> None:
    np.testing.assert_array_equal(pack_nibbles(np.array([1, 2, 15], np.uint8)), [0x21, 0x0F])
    matrix = np.random.default_rng(0).standard_normal((3, 40)).astype(np.float32)
    for symmetric in (True, False):
        weight = nearest(matrix, Grid(4, 32, symmetric, search=False))
        codes, zeros = pack_blocks(weight)
        assert codes.shape == (3, 2, 16)
        low, high = codes & 0xF, codes >> 4
        unpacked = np.stack([low, high], axis=-1).reshape(3, 64)
        np.testing.assert_array_equal(unpacked[:, :40], weight.codes)
        # The rest stands for zeros.
        np.testing.assert_array_equal(unpacked[:, 40:], np.repeat(weight.zero_points[:, 1:], 24, axis=1))
        assert (zeros is None) == symmetric


def test_finite() -> None:
    assert is_finite(np.zeros((0, 3), np.float32))
    assert is_finite(np.full(3, 3e38, np.float32))
    for bad in (np.nan, np.inf, -np.inf):
        assert not is_finite(np.array([0.0, bad, 1.0], np.float32))

"""Weights as small integers with one scale per block: w = s (q - z), q in [0, 2^bits - 1].

A weight is seen as a matrix whose rows are output channels; a block is a run of weights of one row. Symmetric
blocks have z in the middle, and at 8 bits -128 is left out so that signs are even; asymmetric ones always
hold 0 exactly. At 4 bits the range that holds all weights is rarely the best: each block tries smaller ones and
keeps the one with the least squared error (weighted, where the importance of the inputs is known), the
search of GPTQ's and OmniQuant's baselines. Rounding to nearest then clips the few weights outside.

Everything works on chunks of a large weight, so temporaries stay small next to it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from greencc.core.data import Array

BITS = (4, 8)
BLOCK_SIZES = (16, 32, 64, 128)
# The product with an activation scale is still a normal float32.
_MIN_SCALE = 2.0**-60
_CHUNK = 1 << 18
# Ranges tried, as shares of the one that holds all weights; the optimum for normal weights at 4 bits is near 0.85.
_SHRINK = tuple(np.linspace(1.0, 0.58, 13).tolist())


@dataclass(frozen=True)
class Grid:
    """How weights are rounded.

    Attributes:
        bits: 4 or 8.
        block_size: Weights that share a scale; 0: all of a row.
        symmetric: The zero point is the middle.
        search: Look for the range with the least squared error instead of taking the one that holds all weights.
        negative: With `search` and `symmetric`, scales may be negative: at 4 bits one side has a code more, which
            then always goes to the larger weights.
    """

    bits: int
    block_size: int
    symmetric: bool
    search: bool
    negative: bool = False

    @property
    def top(self) -> int:
        """The highest code."""
        return (1 << self.bits) - 1

    @property
    def middle(self) -> int:
        """The zero point of symmetric blocks."""
        return 1 << (self.bits - 1)

    @property
    def bottom(self) -> int:
        """The lowest code."""
        return 1 if self.symmetric and self.bits == 8 else 0

    def width(self, columns: int) -> int:
        """Weights of a whole block in rows of this length."""
        return self.block_size or columns

    def blocks(self, columns: int) -> int:
        """Blocks of a row."""
        return math.ceil(columns / self.width(columns))


@dataclass(frozen=True)
class BlockWeight:
    """A rounded matrix.

    Attributes:
        grid: How it was rounded.
        codes: (rows, columns).
        scales: (rows, blocks).
        zero_points: (rows, blocks).
    """

    grid: Grid
    codes: NDArray[np.uint8]
    scales: NDArray[np.float32]
    zero_points: NDArray[np.uint8]

    def dequantize(self) -> NDArray[np.float32]:
        """The float matrix that the integers stand for."""
        columns = self.codes.shape[1]
        width = self.grid.width(columns)
        scales = np.repeat(self.scales, width, axis=1)[:, :columns]
        zero_points = np.repeat(self.zero_points, width, axis=1)[:, :columns]
        values: NDArray[np.float32] = (self.codes.astype(np.float32) - zero_points) * scales
        return values


def block_scales(
    values: Array, grid: Grid, importance: Array | None = None
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Scales and zero points of blocks along the last axis of finite `values`; a block of zeros gets scale 1.

    Args:
        values: (..., width).
        grid: How to round.
        importance: What the squared error of each weight counts, to be broadcast against `values`.
    """
    # In float64 the distance between the largest floats does not overflow.
    low = values.min(axis=-1).astype(np.float64)
    high = values.max(axis=-1).astype(np.float64)
    scales, zero_points = _parameters(low, high, grid)
    if not grid.search:
        return scales, zero_points
    sign = np.where(grid.negative & grid.symmetric & (high > -low), np.float32(-1), np.float32(1))
    best = np.full(low.shape, np.inf)
    for share in _SHRINK:
        tried, zeros = _parameters(low * share, high * share, grid)
        tried *= sign
        error = np.square(
            (_round(values, tried, zeros, grid) - zeros[..., np.newaxis]) * tried[..., np.newaxis] - values,
            dtype=np.float64,
        )
        total = (error if importance is None else error * importance).sum(axis=-1)
        better = total < best
        best = np.where(better, total, best)
        scales, zero_points = np.where(better, tried, scales), np.where(better, zeros, zero_points)
    return scales, zero_points


def _parameters(
    low: NDArray[np.float64], high: NDArray[np.float64], grid: Grid
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    if grid.symmetric:
        step = np.maximum(-low, high) / (grid.top - grid.middle)
        zeros = np.full(low.shape, grid.middle)
    else:
        low, high = np.minimum(low, 0.0), np.maximum(high, 0.0)
        step = (high - low) / grid.top
        zeros = np.rint(np.divide(-low, step, out=np.zeros_like(low), where=step > 0))
    scales = np.where(step > 0, np.maximum(step, _MIN_SCALE), 1.0).astype(np.float32)
    return scales, np.clip(zeros, 0, grid.top).astype(np.uint8)


def _round(
    values: Array, scales: NDArray[np.float32], zeros: NDArray[np.uint8], grid: Grid
) -> NDArray[np.float32]:
    steps = np.divide(values, scales[..., np.newaxis], dtype=np.float32)
    np.rint(steps, out=steps)
    steps += zeros[..., np.newaxis]
    rounded: NDArray[np.float32] = np.clip(steps, grid.bottom, grid.top, out=steps)
    return rounded


def encode(
    values: Array, scales: NDArray[np.float32], zeros: NDArray[np.uint8], grid: Grid
) -> NDArray[np.uint8]:
    """Codes of blocks along the last axis, each nearest to its weight."""
    return _round(values, scales, zeros, grid).astype(np.uint8)


def nearest(matrix: Array, grid: Grid) -> BlockWeight:
    """Round every weight of a finite float matrix (rows, columns) to the nearest code.

    The codes lie in memory as the matrix does: a transposed view gives transposed codes.
    """
    rows, columns = matrix.shape
    flipped = matrix.flags.f_contiguous and not matrix.flags.c_contiguous
    codes = np.empty(matrix.shape, np.uint8, order="F" if flipped else "C")
    if not grid.block_size and not grid.search:
        scales, zeros = _parameters(
            matrix.min(axis=1, keepdims=True).astype(np.float64),
            matrix.max(axis=1, keepdims=True).astype(np.float64),
            grid,
        )
        for down, across in _chunks(rows, columns, 1, by_columns=flipped):
            part = matrix[down, across][:, np.newaxis]
            codes[down, across] = encode(part, scales[down], zeros[down], grid)[:, 0]
        return BlockWeight(grid, codes, scales, zeros)
    blocks, width = grid.blocks(columns), grid.width(columns)
    scales = np.empty((rows, blocks), np.float32)
    zeros = np.empty((rows, blocks), np.uint8)
    for down, across in _chunks(rows, columns, width, by_columns=flipped and bool(grid.block_size)):
        part = matrix[down, across]
        where = slice(across.start // width, math.ceil(across.stop / width))
        blocked = _blocked(part, width)
        found, middle = block_scales(blocked, grid)
        scales[down, where], zeros[down, where] = found, middle
        rounded = encode(blocked, found, middle, grid).reshape(part.shape[0], -1)
        codes[down, across] = rounded[:, : part.shape[1]]
    return BlockWeight(grid, codes, scales, zeros)


def _chunks(rows: int, columns: int, width: int, *, by_columns: bool) -> Iterator[tuple[slice, slice]]:
    """Pieces of a matrix of about `_CHUNK` elements, made of whole blocks and contiguous in memory."""
    if by_columns:
        step = max(1, _CHUNK // max(1, rows * width)) * width
        for start in range(0, columns, step):
            yield slice(0, rows), slice(start, min(start + step, columns))
        return
    step = max(1, _CHUNK // max(1, columns))
    for start in range(0, rows, step):
        yield slice(start, start + step), slice(0, columns)


def _blocked(part: Array, width: int) -> Array:
    """(rows, columns) as (rows, blocks, width); the last block is filled up with zeros, which any grid holds."""
    missing = -part.shape[1] % width
    if missing:
        part = np.pad(part, ((0, 0), (0, missing)))
    return np.ascontiguousarray(part).reshape(part.shape[0], -1, width)


def is_finite(weight: Array) -> bool:
    """Whether all weights are finite, without a temporary of the weight's size."""
    return not weight.size or bool(np.isfinite(weight.min()) and np.isfinite(weight.max()))


def pack_nibbles(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Two 4-bit codes per byte along the last axis, the first in the low half; an odd last one stands alone."""
    if codes.shape[-1] % 2:
        codes = np.concatenate([codes, np.zeros((*codes.shape[:-1], 1), np.uint8)], axis=-1)
    packed: NDArray[np.uint8] = (codes[..., 0::2] & np.uint8(0xF)) | (codes[..., 1::2] << np.uint8(4))
    return packed


def pack_blocks(weight: BlockWeight) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
    """Codes and zero points as MatMulNBits takes them: (rows, blocks, bytes of a block) and (rows, bytes).

    The last block is filled up with zero weights. No zero points where they are the middle, which is the default.
    """
    grid, (rows, columns) = weight.grid, weight.codes.shape
    blocks, width = grid.blocks(columns), grid.width(columns)
    if columns == blocks * width:
        filled = np.ascontiguousarray(weight.codes)
    else:
        filled = np.array(np.repeat(weight.zero_points, width, axis=1), np.uint8)
        filled[:, :columns] = weight.codes
    codes = filled.reshape(rows, blocks, width)
    zeros = None if grid.symmetric else weight.zero_points
    if grid.bits == 8:
        return codes, zeros
    return pack_nibbles(codes), None if zeros is None else pack_nibbles(zeros)

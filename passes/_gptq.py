"""GPTQ: round the weights of a layer one input at a time, and let the inputs still to come make up for the error.

With the layer's inputs X (one row per sample) the error of the rounded matrix Q is tr (W-Q) H (W-Q)^T with the
Hessian H = 2 X^T X. Rounding column i costs e = (w_i - q_i) / U_ii, and the columns after it move by -e U_i,
where U is the upper Cholesky factor of H^-1 (Frantar et al. 2022, arXiv 2210.17323, algorithm 1; OBQ with a
fixed order). Columns are done in groups: inside a group the updates are made at once, behind it
with one product. H gets 1 % of its mean diagonal on the diagonal (section 3.3).

Differences from the published code: inputs that never were other than zero keep their weights, rounded to nearest,
instead of losing them; scales are searched with the diagonal of H as the importance of the inputs; and a layer
whose error came out above that of rounding to nearest takes that. With `act_order` the columns go by falling
diagonal of H, with the scales of the original blocks ("static groups"), so no index travels with the weight.

The groups of a convolution are solved side by side: everything has a leading axis for them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from greencc.core.data import Array
from greencc.passes._block_quantize import BlockWeight, Grid, block_scales, encode, nearest

# Block sizes divide it or are multiples of it.
_COLUMNS = 32
DAMPENING = 0.01
# A Hessian of few samples or of repeated inputs may need more; at 100 the rounding is to nearest.
_DAMPENING_STEPS = 5


@dataclass(frozen=True)
class Solution:
    """A rounded matrix.

    Attributes:
        weight: Rows are the output channels of all groups.
        error: Squared output error on the calibration data, relative to the squared outputs.
        nearest_error: Likewise of rounding to nearest.
    """

    weight: BlockWeight
    error: float
    nearest_error: float


def gptq(matrix: Array, hessian: Array, grid: Grid, *, act_order: bool = True) -> Solution:
    """Round a finite matrix.

    Args:
        matrix: (groups, outputs, inputs), float; it is left unchanged.
        hessian: (groups, inputs, inputs), X^T X up to a factor.
        grid: How to round.
        act_order: Go by falling second moment of the inputs.
    """
    groups, outputs, inputs = matrix.shape
    rows = nearest(matrix.reshape(groups * outputs, inputs), grid)
    plain = _squared_error(matrix, rows, hessian)
    solved = _solve(matrix, hessian, grid, act_order)
    error = _squared_error(matrix, solved, hessian)
    total = float(np.einsum("gni,gni->", matrix @ hessian, matrix, dtype=np.float64)) or 1.0
    if not error <= plain:
        return Solution(rows, plain / total, plain / total)
    return Solution(solved, error / total, plain / total)


def _solve(matrix: Array, hessian: Array, grid: Grid, act_order: bool) -> BlockWeight:
    groups, outputs, inputs = matrix.shape
    width, blocks = grid.width(inputs), grid.blocks(inputs)
    moments = np.diagonal(hessian, axis1=1, axis2=2)
    importance = moments / np.maximum(moments.mean(axis=1, keepdims=True), np.finfo(np.float64).tiny)
    order = np.tile(np.arange(inputs), (groups, 1))
    if act_order:
        order = np.argsort(-moments, axis=1, kind="stable")
    factor = inverse_factor(hessian, moments, order)
    # Inputs first: what one step works on lies together.
    work = np.array(matrix.swapaxes(1, 2), np.float32, order="C")
    codes = np.empty((groups, inputs, outputs), np.uint8)
    scales = np.empty((blocks, groups, outputs), np.float32)
    zeros = np.empty((blocks, groups, outputs), np.uint8)

    def fit(block: int, weights: Array) -> None:
        part = importance[:, np.newaxis, block * width : (block + 1) * width]
        scales[block], zeros[block] = block_scales(weights.swapaxes(1, 2), grid, part)

    if act_order:
        for block in range(blocks):
            fit(block, work[:, block * width : (block + 1) * width])
        work = np.take_along_axis(work, order[:, :, np.newaxis], axis=1)
    lanes = np.arange(groups)
    for start in range(0, inputs, _COLUMNS):
        stop = min(start + _COLUMNS, inputs)
        errors = np.empty((groups, stop - start, outputs), np.float32)
        local = work[:, start:stop]
        for column in range(start, stop):
            index = column - start
            if not act_order and column % width == 0:
                # The weights of the block as they stand: up to date within the group, and behind it at its start.
                fit(column // width, work[:, column : column + width])
            original = order[:, column]
            scale, zero = scales[original // width, lanes], zeros[original // width, lanes]
            code = encode(local[:, index, :, np.newaxis], scale, zero, grid)[..., 0]
            codes[lanes, original] = code
            rounded = (code.astype(np.float32) - zero) * scale
            error = (local[:, index] - rounded) / factor[:, column, column, np.newaxis]
            errors[:, index] = error
            local[:, index + 1 :] -= factor[:, column, column + 1 : stop, np.newaxis] * error[:, np.newaxis]
        work[:, stop:] -= factor[:, start:stop, stop:].swapaxes(1, 2) @ errors
    rows = groups * outputs
    return BlockWeight(
        grid,
        codes.swapaxes(1, 2).reshape(rows, inputs),
        np.moveaxis(scales, 0, -1).reshape(rows, blocks),
        np.moveaxis(zeros, 0, -1).reshape(rows, blocks),
    )


def inverse_factor(
    hessian: Array, moments: NDArray[np.float64], order: NDArray[np.int64]
) -> NDArray[np.float32]:
    """The upper triangular U with U^T U = H^-1, of the dampened and reordered Hessian.

    With H = R R^T for an upper triangular R, U is the inverse of R; and R is the lower Cholesky factor of H read
    backwards. So one factorisation of H is enough.
    """
    ordered = np.take_along_axis(hessian, order[:, :, np.newaxis], axis=1)
    ordered = np.take_along_axis(ordered, order[:, np.newaxis, :], axis=2).astype(np.float64)
    mean = moments.mean(axis=1)
    mean = np.where(mean > 0, mean, 1.0)
    # A dead input has nothing to make up for, nor can it: its row and column are zero besides the diagonal.
    dead = np.take_along_axis(moments, order, axis=1) <= 0
    diagonal = np.arange(ordered.shape[1])
    ordered[:, diagonal, diagonal] += np.where(dead, mean[:, np.newaxis], 0.0)
    dampening = DAMPENING
    for attempt in range(_DAMPENING_STEPS):
        candidate = ordered.copy()
        candidate[:, diagonal, diagonal] += dampening * mean[:, np.newaxis]
        try:
            lower = np.linalg.cholesky(candidate[:, ::-1, ::-1])
        except np.linalg.LinAlgError:
            if attempt == _DAMPENING_STEPS - 1:
                raise
            dampening *= 10
            continue
        break
    # Importing it takes a third of a second.
    from scipy.linalg.lapack import dtrtri

    inverse = np.stack([dtrtri(part[::-1, ::-1], lower=0)[0] for part in lower])
    return np.triu(inverse).astype(np.float32)


def _squared_error(matrix: Array, rounded: BlockWeight, hessian: Array) -> float:
    """tr (W-Q) H (W-Q)^T over all groups."""
    difference = matrix.astype(np.float64) - rounded.dequantize().reshape(matrix.shape)
    return float(np.einsum("gni,gni->", difference @ hessian, difference))

"""Prune the weights of a layer one input at a time, and let the inputs still to come make up for what is lost.

With the layer's inputs X (one row per sample) and H = X^T X, the output error of a matrix W' is tr (W-W') H (W-W')^T.
Setting weight w_i to zero costs w_i^2 / U_ii^2 at best, and the columns after it then move by -w_i / U_ii U_i, where
U is the upper Cholesky factor of H^-1. SparseGPT (Frantar & Alistarh 2023, arXiv 2301.00774, section 3) fixes the order
of the columns, so that all rows share U, and chooses what to prune by that cost on the weights as they stand: N:M
patterns in every row for M columns at a time, unstructured sparsity over all rows for a block of columns at a time.
It is the fixed-order form of Optimal Brain Compression (Frantar et al. 2022, arXiv 2208.11580).

Differences from the published code: inputs that never were other than zero are pruned first, smallest weights first,
and what is kept of them stays as it is, instead of losing all of them; weights pruned over the blocks of a layer add up
to the sparsity exactly; and a layer whose error came out above that of pruning by magnitude takes that.

The groups of a convolution are solved side by side: everything has a leading axis for them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from greencc.core.data import Array
from greencc.passes._gptq import DAMPENING, inverse_factor
from greencc.passes._sparsity_patterns import Rule, least, magnitude_mask

MIN_DAMPING = DAMPENING
# Of groups whose inputs were always zero: the order by size remains.
_LEAST_SHARE = 1e-12
Factor = tuple[NDArray[np.float32], NDArray[np.float32]]


@dataclass(frozen=True)
class Solution:
    """A pruned matrix.

    Attributes:
        matrix: As `prune` was given it, with zeros.
        error: Squared output error on the calibration data, relative to the squared outputs.
        magnitude_error: Likewise of pruning by magnitude without updates.
    """

    matrix: Array
    error: float
    magnitude_error: float


def prune(
    matrix: Array, hessian: Array, rule: Rule, *, block: int, damping: float, factor: Factor | None = None
) -> Solution:
    """Prune a finite matrix.

    Args:
        matrix: (groups, outputs, inputs), float; it is left unchanged.
        hessian: (groups, inputs, inputs), X^T X up to a factor.
        rule: What to prune. With a pattern, its groups are consecutive inputs.
        block: Inputs whose weights are chosen together where there is no pattern; a multiple of the pattern's groups.
        damping: Added to the diagonal of the Hessian, as a share of its mean; `MIN_DAMPING` at least.
        factor: Of the Hessian, from `factorize` with the same damping, where several matrices share it.
    """
    wide = matrix.astype(np.float32)
    plain = np.where(magnitude_mask(wide, rule), np.float32(0), wide)
    solved = _solve(wide, factor or factorize(hessian, damping), rule, block)
    total = float(np.einsum("goi,goi->", wide @ hessian, wide, dtype=np.float64)) or 1.0
    plain_error = _squared_error(wide, plain, hessian) / total
    error = _squared_error(wide, solved, hessian) / total
    if not error <= plain_error:
        return Solution(plain, plain_error, plain_error)
    return Solution(solved, error, plain_error)


def _solve(matrix: Array, factorized: Factor, rule: Rule, block: int) -> Array:
    groups, outputs, inputs = matrix.shape
    factor, share = factorized
    # Inputs first: what one step works on lies together.
    work = np.array(matrix.swapaxes(1, 2), np.float32, order="C")
    pruned_so_far = 0
    for start in range(0, inputs, block):
        stop = min(start + block, inputs)
        local = work[:, start:stop]
        diagonal = np.diagonal(factor, axis1=1, axis2=2)[:, start:stop, np.newaxis]
        if rule.of:
            pruned = np.zeros(local.shape, bool)
        else:
            wanted = rule.count(groups * outputs * stop) - pruned_so_far
            pruned = least(np.square(local / diagonal) * share[:, np.newaxis, np.newaxis], wanted)
            pruned_so_far += wanted
        errors = np.empty(local.shape, np.float32)
        for index in range(stop - start):
            if rule.of and index % rule.of == 0:
                part = slice(index, index + rule.of)
                cost = np.square(local[:, part] / diagonal[:, part])
                pruned[:, part] = _cheapest(cost, rule.of - rule.keep)
            column = start + index
            lost = np.where(pruned[:, index], local[:, index], np.float32(0))
            error = lost / diagonal[:, index]
            errors[:, index] = error
            local[:, index + 1 :] -= factor[:, column, column + 1 : stop, np.newaxis] * error[:, np.newaxis]
        work[:, stop:] -= factor[:, start:stop, stop:].swapaxes(1, 2) @ errors
        # Updates behind a pruned weight never touch it again.
        local[pruned] = 0.0
    return np.ascontiguousarray(work.swapaxes(1, 2))


def _cheapest(cost: Array, count: int) -> NDArray[np.bool_]:
    """Marks the `count` smallest along axis 1, the first ones among equals."""
    order = np.argsort(cost, axis=1, kind="stable")[:, :count]
    chosen = np.zeros(cost.shape, bool)
    np.put_along_axis(chosen, order, True, axis=1)
    return chosen


def factorize(hessian: Array, damping: float) -> Factor:
    """The upper triangular U with U^T U = H^-1, of moments with a mean of 1, dampened; and the mean of each group.

    The means are relative to the largest. Inputs that were always zero have the damping alone.
    """
    groups, inputs, _ = hessian.shape
    mean = np.diagonal(hessian, axis1=1, axis2=2).mean(axis=1, dtype=np.float64)
    share = np.maximum(mean / (mean.max() or 1.0), _LEAST_SHARE)
    scaled = hessian / np.where(mean > 0, mean, 1.0)[:, np.newaxis, np.newaxis]
    index = np.arange(inputs)
    scaled[mean <= 0] = np.eye(inputs)
    moments = np.maximum(np.diagonal(scaled, axis1=1, axis2=2), np.finfo(np.float64).tiny)
    # The factorisation itself adds the least damping.
    scaled[:, index, index] += damping - MIN_DAMPING
    factor = inverse_factor(scaled, moments, np.tile(index, (groups, 1)))
    return factor, share.astype(np.float32)


def _squared_error(matrix: Array, pruned: Array, hessian: Array) -> float:
    """tr (W-W') H (W-W')^T over all groups."""
    difference = matrix.astype(np.float64) - pruned
    return float(np.einsum("goi,goi->", difference @ hessian, difference))

"""Ridge regression from a stream of rows, in memory that does not depend on how many there are.

Wanted are the weights and the bias of a layer that give targets y for inputs x (rows of a `LinearView`):

    min over W, b:  E |y - W x - b|^2 + lambda |W - W0|^2

With b = E[y] - W E[x] this is a problem of *centred* rows, solved by

    (G + lambda I) D^T = C - G W0^T,   W = W0 + D,   G = cov(x, x),  C = cov(x, y)

so two matrices and two means hold all that the rows say (He et al. 2017, arXiv 1707.06168, section 3.2, regress the
weights in the same way; GRAIL 2026 centres). Pulling to W0, the weights that are there, and not to zero: what few or
dependent rows leave open stays as it was. lambda is a share of the mean diagonal of G, so it has no unit.

Sums are kept about the mean of the first rows: a large mean would else drown a small variance.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from greencc.core.data import Array

Float64 = NDArray[np.float64]
# From this many columns on, products are made in single precision (and summed in double): twice as fast, and the
# ridge is far above what rounding does to them.
_WIDE = 1024
# Rows gathered before they are multiplied: one product of many rows is cheaper than many of few.
_GATHER = 1024
# Rows of a matrix made at once, and moved at once.
_PRODUCT, _BLOCK = 1024, 256
_RAISE = 10.0
_TRIES = 14


@dataclass(frozen=True)
class Gram:
    """Moments of all rows: means over rows, per group.

    Attributes:
        count: Rows.
        mean_x: (groups, inputs).
        mean_y: (groups, outputs).
        xx: (groups, inputs, inputs), about the means or about zero.
        xy: (groups, inputs, outputs), likewise.
    """

    count: int
    mean_x: Float64
    mean_y: Float64
    xx: Float64
    xy: Float64


@dataclass(frozen=True)
class Solution:
    """What was found.

    Attributes:
        matrix: float64, (groups, outputs, inputs).
        bias: (groups, outputs); zeros where the problem has none.
        raised: Factor that the damping had to be raised by before the matrices could be solved; 1 as a rule.
    """

    matrix: Float64
    bias: Float64
    raised: float = 1.0


class Moments:
    """Sums over a stream of rows."""

    def __init__(self, groups: int, inputs: int, outputs: int) -> None:
        self.count = 0
        self._sum_x, self._sum_y = np.zeros((groups, inputs)), np.zeros((groups, outputs))
        self._xx, self._xy = np.zeros((groups, inputs, inputs)), np.zeros((groups, inputs, outputs))
        self._base_x: Array | None = None
        self._base_y: Array | None = None
        self._waiting: list[tuple[Array, Array]] = []

    @staticmethod
    def nbytes(groups: int, inputs: int, outputs: int) -> int:
        """Bytes that the sums take."""
        return 8 * groups * inputs * (inputs + outputs)

    def add(self, x: Array, y: Array) -> None:
        """Rows of inputs (groups, rows, inputs) and targets (groups, rows, outputs), all finite."""
        if not x.shape[1]:
            return
        self._waiting.append((x, y))
        if sum(part.shape[1] for part, _ in self._waiting) >= _GATHER:
            self._flush()

    def gram(self, *, centred: bool = True) -> Gram:
        """The moments of all rows so far; the sums are used up."""
        self._flush()
        for matrix in self._xx:
            _mirror(matrix)
        count = max(self.count, 1)
        base_x = np.zeros(()) if self._base_x is None else self._base_x[:, 0].astype(np.float64)
        base_y = np.zeros(()) if self._base_y is None else self._base_y[:, 0].astype(np.float64)
        self._xx /= count
        self._xy /= count
        # Means of x - base; then E[(x - m)(x - m)^T] = E[(x - base)(x - base)^T] - d d^T.
        moved_x, moved_y = self._sum_x / count, self._sum_y / count
        mean_x, mean_y = base_x + moved_x, base_y + moved_y
        with np.errstate(all="ignore"):
            _add_outer(self._xx, moved_x, moved_x, -1.0)
            _add_outer(self._xy, moved_x, moved_y, -1.0)
            if not centred:
                _add_outer(self._xx, mean_x, mean_x, 1.0)
                _add_outer(self._xy, mean_x, mean_y, 1.0)
        return Gram(self.count, mean_x, mean_y, self._xx, self._xy)

    def _flush(self) -> None:
        if not self._waiting:
            return
        dtype = np.float32 if self._xx.shape[-1] >= _WIDE else np.float64
        x = np.concatenate([part for part, _ in self._waiting], axis=1).astype(dtype, copy=False)
        y = np.concatenate([part for _, part in self._waiting], axis=1).astype(dtype, copy=False)
        self._waiting.clear()
        if self._base_x is None or self._base_y is None:
            # NumPy sums float32 in pairs: good enough for what is only a base.
            self._base_x, self._base_y = x.mean(axis=1, keepdims=True), y.mean(axis=1, keepdims=True)
        self.count += x.shape[1]
        # What overflows is found by `solve`.
        with np.errstate(all="ignore"):
            x, y = x - self._base_x, y - self._base_y
            self._sum_x += x.sum(axis=1, dtype=np.float64)
            self._sum_y += y.sum(axis=1, dtype=np.float64)
            # Some rows of the lower half at a time: a product of all would double the largest array there is.
            for index in range(len(x)):
                columns: Array = x[index]
                for start in range(0, columns.shape[1], _PRODUCT):
                    stop = start + _PRODUCT
                    part = columns[:, start:stop].T @ columns[:, :stop]
                    self._xx[index, start:stop, :stop] += part
                self._xy[index] += columns.T @ y[index]


def solve(gram: Gram, start: Float64, ridge: float, *, centred: bool = True) -> Solution | None:
    """Weights near `start` that give the targets; None where nothing finite was found.

    Args:
        gram: Moments about the means (`centred`) or about zero.
        start: (groups, outputs, inputs): W0.
        ridge: lambda as a share of the mean diagonal of G, per group.
        centred: The layer has a bias.
    """
    diagonal = np.diagonal(gram.xx, axis1=1, axis2=2).mean(axis=1)
    with np.errstate(all="ignore"):
        right = gram.xy - np.matmul(gram.xx, start.swapaxes(1, 2))
    if not (np.isfinite(diagonal).all() and np.isfinite(right).all()):
        return None
    # A group whose inputs never vary has nothing to learn: any damping keeps its weights.
    floor = np.where(diagonal > 0, diagonal, 1.0)
    raised = 1.0
    for _ in range(_TRIES):
        change = _solve(gram.xx, right, max(ridge, np.finfo(np.float64).eps) * raised * floor)
        if change is not None:
            matrix = start + change.swapaxes(1, 2)
            bias = np.zeros(gram.mean_y.shape)
            if centred:
                bias = gram.mean_y - np.matmul(matrix, gram.mean_x[:, :, np.newaxis])[:, :, 0]
            return Solution(matrix, bias, raised)
        raised *= _RAISE
    return None


def _solve(xx: Float64, right: Float64, damping: Float64) -> Float64 | None:
    """(G + lambda I)^-1 times the right side; None when a matrix is not positive definite."""
    found = np.empty_like(right)
    size = xx.shape[-1]
    for index in range(len(xx)):
        # The factor takes the place of the lower half, for a second matrix of that size would be the largest thing
        # there is; the upper half still has everything afterwards.
        damped = xx[index].T
        diagonal = np.diagonal(damped).copy()
        damped[np.arange(size), np.arange(size)] += damping[index]
        try:
            factor = scipy.linalg.cho_factor(damped, lower=True, overwrite_a=True, check_finite=False)
            found[index] = scipy.linalg.cho_solve(factor, right[index], check_finite=False)
        except np.linalg.LinAlgError:
            return None
        finally:
            _mirror(xx[index])
            damped[np.arange(size), np.arange(size)] = diagonal
    return found if np.isfinite(found).all() else None


def _mirror(matrix: Float64) -> None:
    """Make a matrix symmetric: its lower half counts."""
    for start in range(0, len(matrix), _BLOCK):
        rows = slice(start, start + _BLOCK)
        matrix[:start, rows] = matrix[rows, :start].T
        square = matrix[rows, rows]
        square[:] = np.tril(square) + np.tril(square, -1).T


def _add_outer(matrix: Float64, first: Float64, second: Float64, sign: float) -> None:
    """Add first second^T, row by row of `first`: no second matrix of that size is made."""
    for index in range(len(matrix)):
        for start in range(0, matrix.shape[1], _BLOCK):
            rows = slice(start, start + _BLOCK)
            matrix[index, rows] += sign * np.outer(first[index, rows], second[index])

"""What of a channel the other channels cannot replace: Schur complements of the covariance.

Let S be the covariance of the coordinates that a node reads, Q those of one channel and K the others. The best linear
prediction of x_Q from x_K leaves the covariance `S_QQ - S_QK S_KK^-1 S_KQ`, which is `((S^-1)_QQ)^-1`: all channels
from one inverse (Hassibi and Stork 1993, optimal brain surgeon, eq. 5; in blocks, Frantar and Alistarh 2022,
arXiv 2208.11580, section 4).

S is scaled to a correlation matrix C first and damped there, `C + l I`: the result does not depend on the scale of
the channels, and one outlier does not drown the others. Of the inverse, `((C + l I)^-1)_QQ^-1 - l I` is the minimum
of the ridge problem: never negative, never more than C_QQ, and zero for channels that are constant. l is the given
damping and more where there are few rows for the coordinates, which keeps a channel from being explained by chance.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import lapack

from greencc.passes._channel_grams import Gram
from greencc.passes._score_options import Float64

_MORE_DAMPING = 10.0
# Damping times rows per coordinate.
_PER_RATIO = 0.25


@dataclass(frozen=True, eq=False)
class Inverse:
    """The inverse of a damped correlation matrix.

    Attributes:
        scale: (C,), standard deviation of every coordinate.
        correlation: (C, C); rows of constant coordinates are zero.
        matrix: (C, C).
        damping: What was added to the diagonal.
    """

    scale: Float64
    correlation: Float64
    matrix: Float64
    damping: float

    def residuals(self, positions: NDArray[np.int64]) -> Float64:
        """(channels, n, n): what stays unexplained of each channel, its coordinates divided by `scale`."""
        inside = self.matrix[positions[:, :, np.newaxis], positions[:, np.newaxis, :]]
        n = positions.shape[1]
        left = np.linalg.inv(inside) - self.damping * np.eye(n)
        left[self._constant(positions)] = 0.0
        return np.asarray((left + left.swapaxes(1, 2)) / 2)

    def _constant(self, positions: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Channels all of whose coordinates are constant."""
        return np.asarray((self.scale[positions] == 0.0).all(axis=1))


def inverse(gram: Gram, damping: float) -> Inverse:
    """Invert a Gram's correlation matrix; more damping is added where it is not positive."""
    matrix = gram.covariance
    scale = np.sqrt(np.maximum(np.diagonal(matrix), 0.0))
    divisor = np.where(scale > 0.0, scale, 1.0)
    matrix /= divisor
    matrix /= divisor[:, np.newaxis]
    added = damping + _PER_RATIO * float(np.count_nonzero(scale)) / max(gram.count, 1.0)
    # No entry is above 1, so that enough on the diagonal makes any such matrix positive.
    while (found := _inverted(matrix, added + (scale == 0.0))) is None:
        added *= _MORE_DAMPING
    return Inverse(scale, matrix, found, added)


def _inverted(matrix: Float64, diagonal: Float64) -> Float64 | None:
    """The inverse of a symmetric matrix with something added to its diagonal; None where that is not positive."""
    damped = np.array(matrix, order="F")
    damped[np.diag_indices_from(damped)] += diagonal
    factor, failed = lapack.dpotrf(damped, lower=1, overwrite_a=1)
    if failed:
        return None
    found, failed = lapack.dpotri(factor, lower=1, overwrite_c=1)
    if failed or not np.isfinite(np.diagonal(found)).all():
        return None
    found = np.tril(found)
    found += np.tril(found, -1).T
    return np.asarray(found)

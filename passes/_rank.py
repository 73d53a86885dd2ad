"""How many components a low-rank factorisation keeps.

`energy_rank` reads a spectrum: the smallest rank that keeps a share of the squared norm. `evbmf_rank` needs no
threshold: it is the global analytic solution of empirical variational Bayesian matrix factorisation (Nakajima,
Sugiyama, Babacan, Tomioka: "Global analytic solution of fully-observed variational Bayesian matrix factorization",
JMLR 14, 2013, Theorem 2 and Corollary 1), which takes a matrix for low rank plus white noise of unknown variance and
counts the singular values that noise does not explain.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

# Root of the equation that parts noise from signal, divided by sqrt(alpha); valid for all alpha in (0, 1].
_TAU = 2.5129


def rank_errors(singular: NDArray[np.float64]) -> NDArray[np.float64]:
    """Share of the squared norm that is lost when 0, 1, ..., all components are kept."""
    squares = np.square(singular)
    total = float(squares.sum())
    if total <= 0:
        return np.zeros(len(singular) + 1)
    # Summed from the small end: the difference of two large sums would drown the tail.
    tails = np.concatenate([np.cumsum(squares[::-1])[::-1], [0.0]])
    return tails / total


def energy_rank(singular: NDArray[np.float64], energy: float) -> int:
    """The smallest rank that keeps `energy` (a share of the squared norm)."""
    return int(np.argmax(rank_errors(singular) <= 1 - energy))


def evbmf_rank(matrix: NDArray[np.float64]) -> int:
    """The rank that EVBMF gives a matrix, the noise variance estimated from the matrix itself.

    Raises:
        ValueError: The matrix is not 2-D.
    """
    if matrix.ndim != 2:
        raise ValueError(f"a matrix is wanted, not {matrix.ndim} axes")
    if not matrix.size:
        return 0
    singular = np.linalg.svd(matrix, compute_uv=False)
    rows, columns = sorted(matrix.shape)
    exact = int((singular > singular[0] * 1e-10).sum()) if singular[0] > 0 else 0
    if exact < rows or rows == 1:
        # No noise to estimate: the matrix has the rank it has.
        return exact
    alpha = rows / columns
    tau = _TAU * math.sqrt(alpha)
    edge = (1 + tau) * (1 + alpha / tau)
    squares = np.square(singular)
    # The noise variance lies between these (Corollary 1): some singular values must be noise.
    first = min(max(math.ceil(rows / (1 + alpha)) - 1, 1), rows - 1)
    upper = float(squares.sum()) / (rows * columns)
    lower = max(float(squares[first]) / (columns * edge), float(squares[first:].mean()) / columns)
    variance = upper
    if lower < upper:
        found = minimize_scalar(
            _free_energy,
            args=(squares, columns, alpha, edge),
            bounds=(lower, upper),
            method="bounded",
            options={"xatol": 1e-6 * upper},
        )
        variance = float(found.x)
    return int((squares > columns * variance * edge).sum())


def _free_energy(
    variance: float, squares: NDArray[np.float64], columns: int, alpha: float, edge: float
) -> float:
    """The free energy of the model at a noise variance, up to constants (equation 29)."""
    x = squares / (columns * variance)
    noise, signal = x[x <= edge], x[x > edge]
    centred = signal - (1 + alpha)
    tau = 0.5 * (centred + np.sqrt(np.maximum(centred**2 - 4 * alpha, 0)))
    return float(
        np.sum(noise - np.log(noise))
        + np.sum(signal - tau)
        + np.sum(np.log((tau + 1) / signal))
        + alpha * np.sum(np.log(tau / alpha + 1))
    )


def aligned_ranks(top: int, align: int) -> list[int]:
    """The ranks worth trying, up to `top`: multiples of `align`, or all where `top` is below the first of them."""
    ranks = list(range(align, top + 1, align))
    return ranks or list(range(1, top + 1))


def nearest_rank(rank: int, ranks: Sequence[int]) -> int:
    """The smallest of `ranks` that is not below `rank`, else the largest."""
    return next((candidate for candidate in ranks if candidate >= rank), ranks[-1])

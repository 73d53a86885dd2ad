"""CP: a kernel as a sum of products of vectors, one per axis (Lebedev et al. 2015, arXiv 1412.6553).

The layer becomes 1x1 to R channels, a depthwise Conv along each axis of the kernel, and 1x1. The vectors are found by
alternating least squares (Kolda & Bader 2009, figure 3.3) on the kernel whitened by the second moment of its input
channels; the last factor is then solved for in the norm of the layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from string import ascii_lowercase

import numpy as np
from scipy.linalg import solve_triangular

from greencc.passes._decompose_factors import Factor, along, pointwise
from greencc.passes._decompose_family import Family
from greencc.passes._decompose_problem import Matrix, Problem, cholesky
from greencc.passes._rank import evbmf_rank

_SWEEPS = 25
_TOLERANCE = 1e-4
# Keeps collinear components from growing without bound while they cancel (degenerate CP).
_RIDGE = 1e-6


def cp_family(problem: Problem) -> Family:
    """The CP form; for convolutions with one group."""
    kernel, channels, outputs = problem.view.kernel, problem.channels, problem.view.outputs
    root = cholesky(problem.metric.channels(problem.taps))
    tensor = problem.weight[0].reshape(outputs, channels, -1)
    whitened = np.einsum("oit,ij->ojt", tensor, root, optimize=True).reshape(outputs, channels, *kernel)

    def solve(rank: int) -> tuple[Sequence[Matrix], Matrix]:
        factors = alternating_least_squares(whitened, rank)
        first = solve_triangular(root.T, factors[1], lower=False).T
        kernels = [factor.T for factor in factors[2:]]
        letters = ascii_lowercase[2 : 2 + len(kernel)]
        product = "rb," + ",".join(f"r{letter}" for letter in letters) + f"->rb{letters}"
        basis = np.einsum(product, first, *kernels).reshape(rank, -1)
        norms = np.linalg.norm(basis, axis=1, keepdims=True)
        scale = np.where(norms > 0, norms, 1.0)
        basis, first = basis / scale, first / scale
        last = problem.regress(basis)
        thin = [
            part.reshape(rank, 1, *[size if axis == place else 1 for axis in range(len(kernel))])
            for place, (part, size) in enumerate(zip(kernels, kernel, strict=True))
        ]
        return (first, *thin, last), (last @ basis)[np.newaxis]

    def build(weights: Sequence[Matrix]) -> tuple[Factor, ...]:
        rank = len(weights[0])
        thin = [
            along(problem, weight, (axis,), range(axis), rank) for axis, weight in enumerate(weights[1:-1])
        ]
        return (
            pointwise(problem, weights[0], problem.before),
            *thin,
            pointwise(problem, weights[-1], problem.after),
        )

    def shapes(rank: int) -> Sequence[tuple[int, ...]]:
        thin = [
            (rank, 1, *[size if axis == place else 1 for axis in range(len(kernel))])
            for place, size in enumerate(kernel)
        ]
        return (rank, channels), *thin, (outputs, rank)

    def evbmf() -> int:
        # The rank of a tensor is at least that of any of its matrices.
        modes = tensor.reshape(outputs, -1), tensor.transpose(1, 0, 2).reshape(channels, -1)
        return max(evbmf_rank(mode) for mode in modes)

    top = problem.params // max(outputs, channels, *kernel)
    return Family("cp", problem, top, solve, shapes, build, evbmf)


def alternating_least_squares(tensor: Matrix, rank: int) -> list[Matrix]:
    """Factors (size of the axis, rank), one per axis, whose sum of outer products is near the tensor."""
    generator = np.random.default_rng(0)
    factors = [_start(tensor, axis, rank, generator) for axis in range(tensor.ndim)]
    grams = [factor.T @ factor for factor in factors]
    total = float(np.square(tensor).sum())
    before = np.inf
    for _ in range(_SWEEPS):
        for axis in range(tensor.ndim):
            others = [index for index in range(tensor.ndim) if index != axis]
            gram = np.prod([grams[index] for index in others], axis=0)
            gram = gram + _RIDGE * max(float(np.trace(gram)) / rank, np.finfo(float).tiny) * np.eye(rank)
            cross = _contract(tensor, factors, axis)
            factor = np.linalg.solve(gram, cross.T).T
            if axis != tensor.ndim - 1:
                norms = np.linalg.norm(factor, axis=0)
                factor = factor / np.where(norms > 0, norms, 1.0)
            factors[axis], grams[axis] = factor, factor.T @ factor
        whole = np.prod(grams, axis=0).sum()
        error = max(total - 2 * float(np.sum(cross * factors[-1])) + float(whole), 0.0)
        if before - error <= _TOLERANCE * total:
            break
        before = error
    return factors


def _start(tensor: Matrix, axis: int, rank: int, generator: np.random.Generator) -> Matrix:
    """Leading singular vectors of a mode, and noise where there are not enough of them."""
    size = tensor.shape[axis]
    matrix = np.moveaxis(tensor, axis, 0).reshape(size, -1)
    _, vectors = np.linalg.eigh(matrix @ matrix.T)
    start = generator.standard_normal((size, rank)) / np.sqrt(size)
    kept = min(size, rank)
    start[:, :kept] = vectors[:, ::-1][:, :kept]
    return np.asarray(start)


def _contract(tensor: Matrix, factors: Sequence[Matrix], axis: int) -> Matrix:
    """The tensor times the factors of all axes but one: (size of that axis, rank)."""
    letters = ascii_lowercase[: tensor.ndim]
    others = [index for index in range(tensor.ndim) if index != axis]
    terms = ",".join(f"{letters[index]}z" for index in others)
    return np.asarray(
        np.einsum(
            f"{letters},{terms}->{letters[axis]}z", tensor, *[factors[i] for i in others], optimize="greedy"
        )
    )

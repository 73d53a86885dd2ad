"""Forms that take a kernel apart: Tucker-2, spatial and depthwise-separable; for convolutions with one group.

All begin with a factor that is fitted in a norm of its own (a mode of the whitened kernel) and end with factors that
are solved for in the norm of the layer, which also makes up for what that norm left out.

Tucker-2 (Kim et al. 2016, section 3.1): the input projection is the truncated SVD of the mode of the input channels,
whitened by their second moment; behind it the kernel is regressed anew and cut by the whitened SVD of `channel`, so
that core and output factor are the best there are for that projection. Orthogonal iteration (HOOI, De Lathauwer
et al. 2000) then turns the projection towards the outputs that are kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from scipy.linalg import solve_triangular

from greencc.passes._decompose_factors import Factor, along, pointwise
from greencc.passes._decompose_family import Family
from greencc.passes._decompose_problem import Matrix, Problem, cholesky
from greencc.passes._rank import evbmf_rank, rank_errors

_TUCKER_STEPS = 6
_ITERATIONS = 3


def input_ranks(problem: Problem, ranks: Sequence[int]) -> list[int]:
    """A few of the ranks, evenly spread, below the number of input channels."""
    below = [rank for rank in ranks if rank < problem.channels]
    if len(below) <= _TUCKER_STEPS:
        return below
    places = np.linspace(0, len(below) - 1, _TUCKER_STEPS + 1).round().astype(int)[1:]
    return [below[place] for place in places]


def evbmf_input_rank(problem: Problem) -> int:
    """The rank that EVBMF gives the mode of the input channels."""
    return evbmf_rank(_tensor(problem).transpose(1, 0, 2).reshape(problem.channels, -1))


def tucker_families(problem: Problem, ranks: Sequence[int]) -> Iterator[Family]:
    """One family per rank of the input projection; its free rank is that of the outputs."""
    tensor = _tensor(problem)
    root = cholesky(problem.metric.channels(problem.taps))
    whitened = np.einsum("oit,ij->ojt", tensor, root, optimize=True)
    left = _leading(whitened.transpose(1, 0, 2).reshape(problem.channels, -1))
    for rank in ranks:
        yield _tucker(problem, rank, left[:, :rank], whitened, root)


def _tucker(problem: Problem, inner: int, left: Matrix, whitened: Matrix, root: Matrix) -> Family:
    start = _Projected(problem, _unwhiten(left, root))

    def solve(rank: int) -> tuple[Sequence[Matrix], Matrix]:
        best = start
        basis = left
        for _ in range(_ITERATIONS):
            outputs = _leading(
                np.einsum("ojt,jr->ort", whitened, basis, optimize=True).reshape(len(whitened), -1)
            )
            kept = np.einsum("ojt,os->jst", whitened, outputs[:, :rank], optimize=True)
            basis = _leading(kept.reshape(len(root), -1))[:, :inner]
        if basis.shape[1] == inner:
            turned = _Projected(problem, _unwhiten(basis, root))
            best = min(best, turned, key=lambda found: found.errors[rank])
        return best.factors(rank)

    def build(weights: Sequence[Matrix]) -> tuple[Factor, ...]:
        axes = range(len(problem.view.kernel))
        return (
            pointwise(problem, weights[0], problem.before),
            along(problem, weights[1].reshape(*weights[1].shape[:2], *problem.view.kernel), axes, ()),
            pointwise(problem, weights[2], problem.after),
        )

    def shapes(rank: int) -> Sequence[tuple[int, ...]]:
        return (inner, problem.channels), (rank, inner, problem.taps), (problem.view.outputs, rank)

    return Family(
        "tucker",
        problem,
        len(start.errors) - 1,
        solve,
        shapes,
        build,
        lambda: evbmf_rank(problem.weight[0]),
        errors=start.errors,
        fixed=(inner,),
    )


class _Projected:
    """The layer behind a projection of its input channels: the best kernel there, and its spectrum."""

    def __init__(self, problem: Problem, projection: Matrix) -> None:
        self.problem, self.projection = problem, projection
        metric = problem.metric.projected(projection, problem.taps)
        weighted = problem.metric.times(problem.weight)[0].reshape(-1, problem.channels, problem.taps)
        cross = np.einsum("oit,ri->ort", weighted, projection, optimize=True)
        self.kernel = metric.solved(cross.reshape(1, len(cross), -1))[0]
        self.left, singular, _ = np.linalg.svd(
            metric.whitened(self.kernel[np.newaxis])[0], full_matrices=False
        )
        kept = float(np.square(singular).sum()) / problem.total if problem.total > 0 else 1.0
        self.errors = max(1 - kept, 0.0) + rank_errors(singular) * min(kept, 1.0)

    def factors(self, rank: int) -> tuple[Sequence[Matrix], Matrix]:
        last = self.left[:, :rank]
        core = (last.T @ self.kernel).reshape(rank, len(self.projection), self.problem.taps)
        whole = np.einsum("or,rst,si->oit", last, core, self.projection, optimize=True)
        return (self.projection, core, last), whole.reshape(self.problem.weight.shape)


def spatial_family(problem: Problem) -> Family:
    """A 2-D kernel as kx1 to R channels, then 1xk: the SVD of (inputs, rows) against (outputs, columns)."""
    channels, outputs = problem.channels, problem.view.outputs
    height, width = problem.view.kernel
    root = cholesky(problem.metric.blocks(problem.taps, height))
    matrix = problem.weight[0].reshape(outputs, channels, height, width).transpose(1, 2, 0, 3)
    matrix = matrix.reshape(channels * height, outputs * width)
    left = _leading(root.T @ matrix)

    def solve(rank: int) -> tuple[Sequence[Matrix], Matrix]:
        first = _unwhiten(left[:, :rank], root)
        # Row (r, w') of the basis: filter r placed in column w' of the kernel.
        basis = np.einsum("rv,wu->rwvu", first, np.eye(width)).reshape(rank * width, -1)
        last = problem.regress(basis)
        weights = first.reshape(rank, channels, height, 1), last.reshape(outputs, rank, 1, width)
        return weights, (last @ basis)[np.newaxis]

    def build(weights: Sequence[Matrix]) -> tuple[Factor, ...]:
        return along(problem, weights[0], (0,), ()), along(problem, weights[1], (1,), (0,))

    def shapes(rank: int) -> Sequence[tuple[int, ...]]:
        return (rank, channels, height, 1), (outputs, rank, 1, width)

    return Family("spatial", problem, left.shape[1], solve, shapes, build, lambda: evbmf_rank(matrix))


def depthwise_family(problem: Problem) -> Family:
    """m kernels for every input channel, then 1x1: the SVD of the kernels that read one channel, (outputs, taps)."""
    channels, outputs, taps = problem.channels, problem.view.outputs, problem.taps
    tensor = _tensor(problem)
    roots = [cholesky(block) for block in _tap_moments(problem)]
    lefts = [_leading(root.T @ tensor[:, i].T) for i, root in enumerate(roots)]

    def solve(rank: int) -> tuple[Sequence[Matrix], Matrix]:
        first = np.stack([_unwhiten(left[:, :rank], root) for left, root in zip(lefts, roots, strict=True)])
        basis = np.zeros((channels, rank, channels, taps))
        every = np.arange(channels)
        basis[every, :, every] = first
        flat = basis.reshape(channels * rank, channels * taps)
        last = problem.regress(flat)
        return (first.reshape(channels * rank, 1, *problem.view.kernel), last), (last @ flat)[np.newaxis]

    def build(weights: Sequence[Matrix]) -> tuple[Factor, ...]:
        axes = range(len(problem.view.kernel))
        return along(problem, weights[0], axes, (), channels), pointwise(problem, weights[1], problem.after)

    def shapes(rank: int) -> Sequence[tuple[int, ...]]:
        return (channels * rank, 1, *problem.view.kernel), (outputs, channels * rank)

    def evbmf() -> int:
        return max(1, round(float(np.mean([evbmf_rank(tensor[:, i]) for i in range(channels)]))))

    return Family("depthwise", problem, min(taps, outputs), solve, shapes, build, evbmf, aligned=False)


def _tensor(problem: Problem) -> Matrix:
    """(outputs, channels, taps)."""
    return np.asarray(problem.weight[0].reshape(problem.view.outputs, problem.channels, problem.taps))


def _tap_moments(problem: Problem) -> Iterator[Matrix]:
    """The second moment of the taps of every input channel, as far as it is known."""
    metric, taps = problem.metric, problem.taps
    for channel in range(problem.channels):
        if metric.moment is None or metric.taps > 1:
            yield np.eye(taps)
        else:
            part = slice(channel * taps, (channel + 1) * taps)
            yield metric.moment[0, part, part]


def _leading(matrix: Matrix) -> Matrix:
    """Left singular vectors."""
    if matrix.shape[1] > 4 * matrix.shape[0]:
        # The triangular factor has the same ones, and less of them to compute.
        matrix = np.asarray(np.linalg.qr(matrix.T, mode="r")).T
    return np.asarray(np.linalg.svd(matrix, full_matrices=False)[0])


def _unwhiten(left: Matrix, root: Matrix) -> Matrix:
    """The filters (r, size) that the inputs see, from whitened directions (size, r)."""
    filters = solve_triangular(root.T, left, lower=False).T
    # Their length is free: outputs of about unit size keep ranges and half precision in order.
    norms = np.linalg.norm(filters, axis=1, keepdims=True)
    return np.asarray(filters / np.where(norms > 0, norms, 1.0))

"""The forms a layer may be factorised into, and the candidate of each.

svd        products and 1x1 Conv: two factors by whitened SVD (SVD-LLM, arXiv 2403.07378).
channel    a kxk Conv to R channels, then 1x1 (Zhang et al. 2015, arXiv 1505.06798): the same algebra on unfolded
           inputs, group by group, for ConvTranspose too.
tucker     1x1, kxk, 1x1 (Kim et al. 2016, arXiv 1511.06530).
spatial    kx1, then 1xk (Jaderberg et al. 2014, arXiv 1405.3866).
cp         1x1, one depthwise Conv per axis, 1x1 (Lebedev et al. 2015, arXiv 1412.6553).
depthwise  m depthwise kernels per input channel, then 1x1.

The truncated SVD needs no inverse of the whitening S: with ``W S = U s Z^T``, keeping r components gives
``U_r U_r^T W S``, so the factors are ``U_r`` and ``U_r^T W``, whatever the rank of S.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from enum import Enum

import numpy as np

from greencc.passes._decompose_cp import cp_family
from greencc.passes._decompose_factors import Candidate, Factor, pointwise, product_attributes
from greencc.passes._decompose_family import Family, RankChoice, RankRule
from greencc.passes._decompose_kernels import (
    depthwise_family,
    evbmf_input_rank,
    input_ranks,
    spatial_family,
    tucker_families,
)
from greencc.passes._decompose_problem import Matrix, Problem
from greencc.passes._linear_view import LinearView
from greencc.passes._rank import aligned_ranks, evbmf_rank, nearest_rank, rank_errors

# Alternating least squares takes long on larger kernels, and there Tucker has less error at equal work.
_CP_ELEMENTS = 1 << 14


class Method(Enum):
    """The form of a factorised layer."""

    AUTO = "auto"
    SVD = "svd"
    TUCKER = "tucker"
    SPATIAL = "spatial"
    CHANNEL = "channel"
    CP = "cp"
    DEPTHWISE = "depthwise"


def form_problem(view: LinearView, method: Method) -> str | None:
    """Why a layer cannot have a form, or None when it can."""
    kind, plain = view.node.op_type, math.prod(view.kernel) == 1
    if method in (Method.AUTO, Method.SVD, Method.CHANNEL):
        if method is Method.SVD and not plain:
            return "svd is for products and 1x1 convolutions; take channel"
        if method is Method.CHANNEL and plain:
            return "channel is for kernels larger than 1; take svd"
        if view.outputs == 1 or view.inputs == 1:
            return "its weights have one row or one column per group, which have no lower rank"
        return None
    if kind != "Conv" or plain:
        return f"{method.value} is for convolutions with kernels larger than 1"
    if view.groups > 1:
        return f"{method.value} is for convolutions without groups"
    if method is Method.SPATIAL and (len(view.kernel) != 2 or 1 in view.kernel):
        return f"spatial is for 2-D kernels, not {'x'.join(map(str, view.kernel))}"
    return None


def candidates(problem: Problem, method: Method, choice: RankChoice) -> list[Candidate]:
    """What the layer may become: at most one candidate per form, the most promising first.

    Those of equal retained energy are ordered by their work; those of equal work, by their error. EVBMF ranks fix
    neither: there the error comes first.
    """
    found: list[Candidate] = []
    for form in forms_of(problem, method):
        made = [family.choose(choice) for family in _families(problem, form, choice)]
        best = min((item for item in made if item is not None), key=_order(choice), default=None)
        if best is not None:
            found.append(best)
    return sorted(found, key=_order(choice))


def forms_of(problem: Problem, method: Method) -> list[Method]:
    """The forms that a layer is tried in."""
    methods = [m for m in Method if m is not Method.AUTO] if method is Method.AUTO else [method]
    return [
        form
        for form in methods
        if form_problem(problem.view, form) is None
        and not (method is Method.AUTO and form is Method.CP and problem.params > _CP_ELEMENTS)
    ]


def _order(choice: RankChoice) -> Callable[[Candidate], tuple[float, float]]:
    if choice.rule in (RankRule.LAYER_RATIO, RankRule.EVBMF):
        return lambda item: (item.error, item.macs)
    return lambda item: (item.macs, item.error)


def _families(problem: Problem, form: Method, choice: RankChoice) -> Iterator[Family]:
    inner: Sequence[int] = ()
    if form is Method.TUCKER:
        ranks = aligned_ranks(problem.channels - 1, choice.align)
        if ranks and choice.rule is RankRule.EVBMF:
            wanted = evbmf_input_rank(problem)
            ranks = [rank for rank in [nearest_rank(wanted, ranks)] if rank >= wanted]
        inner = input_ranks(problem, ranks)
    yield from families(problem, form, inner)


def families(problem: Problem, form: Method, inner: Sequence[int]) -> Iterator[Family]:
    """The families of a form; Tucker has one for each rank of its input projection.

    Args:
        problem: The layer.
        form: Not `auto`.
        inner: These ranks.
    """
    match form:
        case Method.SVD | Method.CHANNEL:
            yield two_factor_family(problem)
        case Method.TUCKER:
            if inner:
                yield from tucker_families(problem, inner)
        case Method.SPATIAL:
            yield spatial_family(problem)
        case Method.CP:
            yield cp_family(problem)
        case Method.DEPTHWISE:
            yield depthwise_family(problem)


def two_factor_family(problem: Problem) -> Family:
    """svd and channel: the layer to R outputs, then a product or 1x1 Conv."""
    view, weight = problem.view, problem.weight
    top = min(view.outputs, view.inputs)
    lefts, spectra = [], []
    for part in problem.metric.whitened(weight):
        left, singular, _ = np.linalg.svd(part, full_matrices=False)
        lefts.append(left)
        spectra.append(singular)

    def solve(rank: int) -> tuple[Sequence[Matrix], Matrix]:
        last = np.stack([left[:, :rank] for left in lefts])
        first = last.swapaxes(1, 2) @ weight
        return (first, last), last @ first

    def build(weights: Sequence[Matrix]) -> tuple[Factor, ...]:
        first, last = weights
        rank = first.shape[1]
        if not view.kernel:
            return _products(problem, first[0], last[0])
        node = view.node
        shape = (view.groups * rank, *view.weight_shape[1:])
        if node.op_type == "ConvTranspose":
            shape = (view.weight_shape[0], rank, *view.kernel)
        stored = replace(view, outputs=rank, weight_shape=shape).stored(first)
        places = problem.before if node.op_type == "ConvTranspose" else problem.after
        attributes = {name: value.value for name, value in node.attributes.items()}
        return (
            Factor(node.op_type, stored, attributes, math.prod(places) * stored.size),
            pointwise(problem, last.reshape(-1, rank), problem.after, view.groups),
        )

    def shapes(rank: int) -> Sequence[tuple[int, ...]]:
        return (view.groups, rank, view.inputs), (view.groups, view.outputs, rank)

    def evbmf() -> int:
        return max(1, max(evbmf_rank(part) for part in weight))

    errors = rank_errors(np.concatenate(spectra)) if len(spectra) == 1 else _joint_errors(spectra)
    return Family(
        "svd" if problem.taps == 1 else "channel", problem, top, solve, shapes, build, evbmf, errors
    )


def _products(problem: Problem, first: Matrix, last: Matrix) -> tuple[Factor, ...]:
    node, rows = problem.view.node, math.prod(problem.after)
    transposed = product_attributes(node)
    stored = [part if transposed else part.T for part in (first, last)]
    if node.op_type == "Gemm" and problem.opset < 11:
        # Gemm cannot do without a bias yet.
        return (
            Factor("MatMul", first.T, {}, rows * first.size),
            Factor(node.op_type, stored[1], transposed, rows * last.size),
        )
    return tuple(Factor(node.op_type, part, transposed, rows * part.size) for part in stored)


def _joint_errors(spectra: Sequence[Matrix]) -> Matrix:
    """Errors at equal ranks of all groups."""
    energies = np.array([float(np.square(singular).sum()) for singular in spectra])
    total = energies.sum()
    lost = np.stack([rank_errors(singular) for singular in spectra])
    return np.asarray(energies @ lost / total) if total > 0 else lost[0]

"""What factorising each layer would do to the outputs: a few ranks of every layer, over all forms.

The fronts are those of `decompose` with `rank = ratio` (`_decompose_allocate`): what each form and rank saves, and
what share of the energy of the layer's outputs it loses on the calibration data. A typical candidate of the layer is
put in its place to see what the outputs of the model make of that loss; the others are scaled from it, for the
divergence is quadratic in small errors.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import numpy as np
import onnx_ir as ir

from greencc.core.blas import single_threaded
from greencc.core.passes import Context
from greencc.passes._decompose_allocate import Point, front_of, typical
from greencc.passes._decompose_forms import Method
from greencc.passes._decompose_jobs import (
    Choice,
    find_jobs,
    problem_of,
    ready_jobs,
    value_shapes,
    with_weight,
)
from greencc.passes._decompose_plan import approximation_of
from greencc.passes._linear_view import LINEAR
from greencc.passes._offer import Offer, OfferKind, Over, fewer, trial_samples, until
from greencc.passes._prune_costs import macs_by_node
from greencc.passes._prune_sensitivity import divergences

# Share of its outputs' energy that a layer may lose.
_MOST_LOST = 0.5
# Of the least divergence that counts, relative to the median: few samples may show nothing.
_LEAST = 1e-3
# A share of energy that counts as one, at least.
_TINY = 1e-9


def find_rank_offers(
    model: ir.Model, ctx: Context, most: int, align: int, min_elements: int, over: Over
) -> list[Offer]:
    """Offers of all layers that factors make cheaper, in the order of the graph, as far as the time allows.

    Args:
        model: It is left unchanged.
        ctx: Gives the data and the engines.
        most: Offers of a layer.
        align: Ranks are multiples of this.
        min_elements: Layers with fewer weights are left out.
        over: Whether the time is over.
    """
    jobs = find_jobs(model, Choice(LINEAR, (), min_elements), [])
    shapes = value_shapes(model, ctx)
    fronts: dict[str, list[Point]] = {}
    tried: dict[str, float] = {}

    def variants() -> Iterator[tuple[str, Collection[str], ir.Model]]:
        for job in ready_jobs(model, jobs, fewer(model, ctx), []):
            problem = problem_of(job, model, shapes, whiten=True)
            if isinstance(problem, str):
                continue
            front = front_of(problem, Method.AUTO, align=align, most_lost=_MOST_LOST)
            if front:
                point = typical(front)
                fronts[job.name], tried[job.name] = front, max(point.error, _TINY)
                members = {str(view.node.name) for view in job.views}
                yield job.name, members, with_weight(model, job, approximation_of(problem, point.planned))

    if not jobs or over():
        return []
    with single_threaded():
        found = until(over, variants())
        few = trial_samples(model, ctx, len(jobs))
        moved = divergences(model, found, ctx, count=len(jobs), label="Trying ranks of layers", samples=few)
    least = _LEAST * float(np.median(list(moved.values()))) if moved else 0.0
    work = macs_by_node(model, ctx.samples)
    offers = []
    for job in jobs:
        if job.name not in moved:
            continue
        nodes = tuple(str(view.node.name) for view in job.views)
        macs = sum(work[name] for name in nodes)
        slope = max(moved[job.name], least) / tried[job.name]
        for point in spread_over(fronts[job.name], most):
            option, error = str(point.planned), slope * point.error
            offers.append(Offer(OfferKind.RANK, job.name, option, error, nodes, point.saved * macs))
    return offers


def spread_over(front: Sequence[Point], most: int) -> list[Point]:
    """At most `most` points of a front, evenly spread over the work they save, the ends among them."""
    if len(front) <= most:
        return list(front)
    saved = np.array([point.saved for point in front])
    wanted = np.linspace(saved[0], saved[-1], most)
    chosen = sorted({int(np.argmin(np.abs(saved - level))) for level in wanted})
    return [front[place] for place in chosen]

"""A plan for a share of the whole model's work: the fronts of all layers, what their errors do, and the allocation."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from greencc.core.passes import Context
from greencc.passes._decompose_allocate import Layer, Point, allocate, front_of, typical
from greencc.passes._decompose_forms import Method
from greencc.passes._decompose_jobs import Job, Shape, problem_of, ready_jobs, with_weight
from greencc.passes._decompose_plan import Planned, approximation_of
from greencc.passes._prune_costs import macs_by_node
from greencc.passes._prune_sensitivity import divergences

# Of the median layer, what a layer counts at least: few samples may show nothing.
_LEAST = 1e-3
# Share of an output's energy that an error counts as, at least.
_TINY = 1e-9


@dataclass(frozen=True)
class Wanted:
    """What is asked for.

    Attributes:
        method: The form, or `auto`.
        ratio: Share of the model's multiply-accumulates to save.
        align: Ranks are multiples of this.
        most_lost: Share of its outputs' energy that a layer may lose.
        whiten: Judge errors by the calibration data.
    """

    method: Method
    ratio: float
    align: int
    most_lost: float
    whiten: bool


def plan_for_ratio(
    model: ir.Model, jobs: Sequence[Job], shapes: Mapping[str, Shape], ctx: Context, wanted: Wanted
) -> tuple[dict[str, Planned], list[tuple[Job, str]]]:
    """The ranks of all layers together, and the layers that have none, with the reason.

    Args:
        model: It is left unchanged.
        jobs: Its layers.
        shapes: Of its values.
        ctx: Gives the data and the engines; without data an error of a layer counts as such.
        wanted: What is asked for.
    """
    fronts: dict[str, list[Point]] = {}
    tried: dict[str, float] = {}
    refused: list[tuple[Job, str]] = []

    def variants() -> Iterator[tuple[str, Collection[str], ir.Model]]:
        """The model with a typical candidate of one layer in its place, layer by layer."""
        for job in ready_jobs(model, jobs, ctx, []) if wanted.whiten else jobs:
            problem = problem_of(job, model, shapes, whiten=wanted.whiten)
            if isinstance(problem, str):
                refused.append((job, problem))
                continue
            front = front_of(problem, wanted.method, align=wanted.align, most_lost=wanted.most_lost)
            if not front:
                refused.append((job, "no rank saves work and keeps half of the output energy"))
                continue
            point = typical(front)
            fronts[job.name], tried[job.name] = front, max(point.error, _TINY)
            yield job.name, (job.name,), with_weight(model, job, approximation_of(problem, point.planned))

    if ctx.calibration is None:
        moved = {name: tried[name] for name, _, _ in variants()}
    else:
        moved = divergences(model, variants(), ctx, count=len(jobs), label="Trying ranks")
    least = _LEAST * float(np.median(list(moved.values()))) if moved else 0.0
    work = macs_by_node(model, ctx.samples)
    layers = {
        job.name: Layer(
            sum(work[str(view.node.name)] for view in job.views),
            max(moved[job.name], least) / tried[job.name],
            fronts[job.name],
        )
        for job in jobs
        if job.name in fronts
    }
    return allocate(layers, wanted.ratio * sum(work.values())), refused

"""Which layers `decompose` looks at, what their inputs look like, and the statistics they are judged by."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from greencc.core.errors import GreenccError
from greencc.core.graph import (
    ONNX_DOMAINS,
    Names,
    add_initializer,
    attribute_ints,
    constant_tensor,
    input_at,
    opset_of,
    static_shape,
)
from greencc.core.passes import Context, Finding
from greencc.core.shapes import bind_dims, bind_sizes
from greencc.passes._decompose_factors import same_layer
from greencc.passes._decompose_problem import Matrix, Metric, Problem, metric_of
from greencc.passes._exclude import is_excluded
from greencc.passes._linear_view import LINEAR, LinearView, linear_view
from greencc.passes._quantize_insert import release
from greencc.passes._weight_only_hessian import plan_stages, sum_moments, too_large

RULE = "decompose"
# Inputs of an output channel up to which all correlations are summed: of unfolded kernels, and of products, whose
# rows are cheap to come by.
_KERNEL_INPUTS = 2560
_PRODUCT_INPUTS = 8192
_TYPES = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE)
Shape = tuple[int, ...]


@dataclass
class Job:
    """A weight to factorise.

    Attributes:
        views: The layers that read it, in graph order; they use it alike.
        tensor: The weight.
        moment: Second moment of what its layers read, or None when it is not known.
        waiting: Layers whose statistics have not been added yet.
    """

    views: list[LinearView]
    tensor: ir.TensorProtocol
    moment: Matrix | None = None
    waiting: int = field(init=False)

    def __post_init__(self) -> None:
        self.waiting = len(self.views)

    @property
    def view(self) -> LinearView:
        return self.views[0]

    @property
    def name(self) -> str:
        return str(self.view.node.name)


@dataclass(frozen=True)
class Choice:
    """Which layers are wanted."""

    ops: tuple[str, ...]
    exclude: tuple[str, ...]
    min_elements: int


def find_jobs(model: ir.Model, choice: Choice, findings: list[Finding]) -> list[Job]:
    """The layers of the main graph that may be factorised, in order; what is left out goes to the findings."""
    jobs: dict[ir.Value, Job] = {}
    small = inner = 0
    for node in model.graph:
        if not _is_layer(node, choice):
            continue
        weight = node.inputs[1]
        assert weight is not None
        found = jobs[weight] if weight in jobs else _job(node, choice)
        if isinstance(found, str):
            findings.append(Finding("refused", f"{node.op_type}: {found}", node.name, RULE))
        elif found is None:
            small += 1
        elif weight in jobs:
            found.views.append(replace(found.view, node=node))
            found.waiting += 1
        else:
            jobs[weight] = found
    for graph in model.graph.subgraphs():
        inner += sum(_is_layer(node, choice) for node in graph)
    for number, what in (
        (small, f"have fewer than {choice.min_elements} weights (min_elements)"),
        (inner, "are in subgraphs, where no data is seen"),
    ):
        if number:
            findings.append(
                Finding("note", f"{number} weighted nodes stay as they are: they {what}", rule=RULE)
            )
    return [job for weight, job in jobs.items() if not _shared_badly(weight, job, findings)]


def _is_layer(node: ir.Node, choice: Choice) -> bool:
    """Whether a node has constant weights and an operator that is wanted."""
    return (
        node.domain in ONNX_DOMAINS
        and node.op_type in choice.ops
        and input_at(node, 1) is not None
        and constant_tensor(input_at(node, 1)) is not None
    )


def _job(node: ir.Node, choice: Choice) -> Job | str | None:
    """A job, why there is none, or None for a small layer."""
    if is_excluded(node, choice.exclude):
        return "it is excluded by the options"
    view, tensor = linear_view(node), constant_tensor(input_at(node, 1))
    if view is None or tensor is None:
        return "its weight is no matrix of one layer (stacked or empty weights, transA, constant inputs)"
    if tensor.dtype not in _TYPES:
        return f"its weights are {tensor.dtype.name}; float weights are factorised"
    if tensor.size < choice.min_elements:
        return None
    return Job([view], tensor)


def _shared_badly(weight: ir.Value, job: Job, findings: list[Finding]) -> bool:
    """Whether somebody else needs the weight as it is."""
    nodes = [view.node for view in job.views]
    others = [use.node for use in weight.uses() if use.node not in nodes or use.idx != 1]
    if weight.is_graph_output():
        reason = "its weight is an output of the model"
    elif others:
        reason = f"{others[0].op_type} {others[0].name!r} reads its weight too, which would have to stay"
    elif not same_layer(nodes):
        reason = f"{len(nodes)} layers share its weight and use it differently"
    else:
        return False
    findings.append(Finding("refused", f"{nodes[0].op_type}: {reason}", nodes[0].name, RULE))
    return True


def ready_jobs(model: ir.Model, jobs: Sequence[Job], ctx: Context, findings: list[Finding]) -> Iterator[Job]:
    """Yield the jobs with their statistics, as the data permits; a job's are dropped when the next one is asked for.

    Without calibration data they have none.

    Raises:
        InputError: A layer's input becomes NaN or infinity, or the data has no samples.
    """
    for job in jobs:
        job.moment, job.waiting = None, len(job.views)
    if ctx.calibration is None:
        yield from jobs
        return
    views: list[LinearView] = []
    owners: list[Job] = []
    for job in jobs:
        seen = _observed(job.view)
        if seen is None:
            findings.append(_without_data(job, f"its {job.view.inputs} inputs are too many for"))
            yield job
            continue
        views.extend(replace(view, kernel=seen.kernel, inputs=seen.inputs) for view in job.views)
        owners.extend([job] * len(job.views))
    for stage in plan_stages(views):
        sum_moments(model, stage, ctx, "Observing layer inputs")
        for moments in stage:
            total, moments.total = moments.total, None
            for member in moments.members:
                job = owners[member]
                job.moment = total if job.moment is None or total is None else job.moment + total
                job.waiting -= 1
                if not job.waiting:
                    if job.moment is not None and too_large(job.moment):
                        findings.append(_without_data(job, "its inputs are too large for"))
                        job.moment = None
                    yield job
                    job.moment = None


def _without_data(job: Job, reason: str) -> Finding:
    return Finding("note", f"{reason} their correlations: factorised without data", job.name, RULE)


def _observed(view: LinearView) -> LinearView | None:
    """The view whose rows are summed: of the unfolded inputs, or of the input channels alone."""
    channels = view.inputs // math.prod(view.kernel)
    if view.inputs <= (_KERNEL_INPUTS if channels < view.inputs else _PRODUCT_INPUTS):
        return view
    if channels == view.inputs or channels > _PRODUCT_INPUTS:
        return None
    return replace(view, kernel=(1,) * len(view.kernel), inputs=channels)


def problem_of(job: Job, model: ir.Model, shapes: Mapping[str, Shape], *, whiten: bool) -> Problem | str:
    """The approximation problem of a job, or why it has none."""
    array = job.tensor.numpy()
    view = job.view
    weight = view.matrix(array).astype(np.float64)
    release(job.tensor)
    if not np.isfinite(weight).all():
        return "its weights hold NaN or infinity"
    if not weight.any():
        return "all its weights are zero"
    before, after = layer_sizes(view, shapes)
    metric = metric_of(view, job.moment) if whiten else Metric(None, view.inputs)
    return Problem(view, weight, metric, before, after, opset_of(model))


def with_weight(model: ir.Model, job: Job, weight: Matrix) -> ir.Model:
    """A clone in which the layers of a job have another weight, (groups, outputs, inputs)."""
    clone, names = model.clone(), Names(model)
    members = {str(view.node.name) for view in job.views}
    stored = job.view.stored(weight).astype(job.tensor.dtype.numpy())
    value = add_initializer(clone.graph, names.value(f"{job.name}.tried"), stored)
    for node in clone.graph:
        if str(node.name) in members:
            node.replace_input_with(1, value)
    return clone


def value_shapes(model: ir.Model, ctx: Context) -> dict[str, Shape]:
    """Shapes of all values of the main graph for one inference, as far as they are known."""
    bound: ir.Model | None = None
    feeds = next(iter(ctx.samples), None)
    if feeds is None and ctx.calibration is not None:
        batch = next(iter(ctx.calibration.batches(1)), None)
        feeds = None if batch is None else batch.feeds
    if feeds is not None:
        # Data of another shape than a fixed batch says nothing about the shapes.
        with suppress(GreenccError):
            bound = bind_dims(model, {name: values.shape for name, values in feeds.items()})
    if bound is None:
        bound = bind_sizes(model, {}, batch=1)
    shapes = {}
    for value in (*bound.graph.inputs, *(value for node in bound.graph for value in node.outputs)):
        if value.name and (shape := static_shape(value)) is not None:
            shapes[value.name] = shape
    return shapes


def layer_sizes(view: LinearView, shapes: Mapping[str, Shape]) -> tuple[Shape, Shape]:
    """Spatial sizes of the input and output of a layer; where they are unknown, those around one output."""
    source, result = view.node.inputs[0], view.node.outputs[0]
    assert source is not None
    x, y = shapes.get(str(source.name)), shapes.get(str(result.name))
    rank = len(view.kernel)
    if not rank:
        rows = (math.prod(x[:-1]),) if x is not None else (1,)
        return rows, rows
    if x is not None and y is not None and all(y):
        return x[2:], y[2:]
    strides = attribute_ints(view.node, "strides", (1,) * rank)
    ones = (1,) * rank
    return (ones, strides) if view.node.op_type == "ConvTranspose" else (strides, ones)


__all__ = [
    "LINEAR",
    "RULE",
    "Choice",
    "Job",
    "find_jobs",
    "layer_sizes",
    "problem_of",
    "ready_jobs",
    "value_shapes",
    "with_weight",
]

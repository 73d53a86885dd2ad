"""Second moments X^T X of the inputs of weighted layers over the calibration data, in constant memory.

Layers that read the same value in the same way (queries, keys and values of attention) share one matrix. Matrices are
summed a few at a time, in stages within a memory budget; each stage streams the data once. Long inputs give
a fixed number of rows each, evenly spread with a fixed seed, so that the work does not grow with the resolution.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from greencc.core.data import Array
from greencc.core.passes import Context
from greencc.passes._capture import non_finite, require_data, stream
from greencc.passes._linear_view import LinearView

# Bytes of the matrices of one stage; a layer above it is not summed at all.
BUDGET_BYTES = 512 << 20
_BATCH = 32
# Rows wanted over all samples: a multiple of what makes the matrix regular.
_ROWS_PER_INPUT = 4
_MIN_ROWS = 8192


@dataclass
class Moments:
    """X^T X of all that read one value in one way.

    Attributes:
        name: The value.
        view: One of the layers.
        members: Indices of the layers it belongs to.
        total: (groups, inputs, inputs).
        rows: Rows of X summed.
        waiting: Rows not summed yet: one product of many rows is cheaper than many of few.
    """

    name: str
    view: LinearView
    members: list[int] = field(default_factory=list)
    total: Array | None = None
    rows: int = 0
    waiting: list[Array] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        return moment_bytes(self.view)


def moment_bytes(view: LinearView) -> int:
    """Bytes the matrix of a layer takes."""
    return 8 * view.groups * view.inputs**2


def plan_stages(views: Sequence[LinearView], *, one_by_one: bool = False) -> list[list[Moments]]:
    """Which matrices are summed together, in the order of the layers.

    Args:
        views: Layers of the main graph, each within `BUDGET_BYTES`.
        one_by_one: A stage for every matrix.
    """
    shared: dict[tuple[object, ...], Moments] = {}
    for index, view in enumerate(views):
        key = _signature(view)
        if key not in shared:
            shared[key] = Moments(str(key[0]), view)
        shared[key].members.append(index)
    stages: list[list[Moments]] = []
    size = 0
    for moments in shared.values():
        if not stages or one_by_one or size + moments.nbytes > BUDGET_BYTES:
            stages.append([])
            size = 0
        stages[-1].append(moments)
        size += moments.nbytes
    return stages


def _signature(view: LinearView) -> tuple[object, ...]:
    """What the rows of a layer depend on: the value, and for convolutions how it is unfolded."""
    value = view.node.inputs[0]
    assert value is not None
    if not view.kernel:
        return (value.name,)
    attributes = tuple(
        sorted((name, repr(attribute.value)) for name, attribute in view.node.attributes.items())
    )
    return (value.name, view.node.op_type, view.kernel, view.groups, view.inputs, attributes)


def sum_moments(model: ir.Model, stage: Sequence[Moments], ctx: Context, label: str) -> None:
    """Fill in the matrices of a stage.

    Args:
        model: Where the layers' inputs are computed; it is left unchanged.
        stage: From `plan_stages`.
        ctx: Gives the calibration data and the engine.
        label: What the progress bar says.

    Finite inputs may overflow in the sums: ask `too_large`.

    Raises:
        InputError: There is no calibration data, or a layer's input holds NaN or infinity.
    """
    count = max(1, require_data(ctx).count)
    generator = np.random.default_rng(0)
    by_name: dict[str, list[Moments]] = {}
    for moments in stage:
        moments.total = np.zeros((moments.view.groups, moments.view.inputs, moments.view.inputs))
        by_name.setdefault(moments.name, []).append(moments)
    for results in stream(model, list(by_name), ctx, _BATCH, label=label):
        for name, values in results.items():
            if not np.isfinite(values).all():
                raise non_finite(name)
            for moments in by_name[name]:
                _add(moments, values, count, generator)
    for moments in stage:
        _flush(moments)


def too_large(total: Array) -> bool:
    """Whether finite inputs have overflowed in their products, so that a sum of moments says nothing."""
    return not np.isfinite(total).all()


def _add(moments: Moments, values: Array, count: int, generator: np.random.Generator) -> None:
    assert moments.total is not None
    view = moments.view
    if not values.size:
        return
    wanted = math.ceil(max(_MIN_ROWS, _ROWS_PER_INPUT * view.inputs) / count)
    for rows in _rows(view, values, wanted, generator):
        moments.waiting.append(rows)
        moments.rows += rows.shape[1]
        if sum(part.shape[1] for part in moments.waiting) >= view.inputs:
            _flush(moments)


def _flush(moments: Moments) -> None:
    if moments.waiting and moments.total is not None:
        rows = np.concatenate(moments.waiting, axis=1)
        # `too_large` tells.
        with np.errstate(over="ignore", invalid="ignore"):
            for index, part in enumerate(rows):
                # NumPy computes only half of a matrix times its own transpose.
                moments.total[index] += part.T @ part
    moments.waiting.clear()


def _rows(view: LinearView, values: Array, wanted: int, generator: np.random.Generator) -> Iterator[Array]:
    """Inputs as (groups, rows, inputs), about `wanted` rows a sample."""
    if not view.kernel:
        total = values.size // values.shape[-1]
        yield view.columns(values, _spread(total, wanted * len(values), generator))
        return
    positions = math.prod(view._windows(values[:1]).shape[2 : 2 + len(view.kernel)])
    # One sample at a time: a kernel of 3 x 3 makes nine times as much of it.
    for sample in range(len(values)):
        yield view.columns(values[sample : sample + 1], _spread(positions, wanted, generator))


def _spread(total: int, wanted: int, generator: np.random.Generator) -> NDArray[np.int64] | None:
    """Indices, one at random out of each of `wanted` equal stretches; None: all."""
    if total <= wanted:
        return None
    edges = np.linspace(0, total, wanted + 1).astype(np.int64)
    return generator.integers(edges[:-1], edges[1:], dtype=np.int64)

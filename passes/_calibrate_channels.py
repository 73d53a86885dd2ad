"""Statistics of inner values per channel over the calibration data: one pass, constant memory.

The reductions over all axes but the channel's become part of the graph, so only vectors come back from the runtime;
batches are combined in float64. What the graph cannot reduce is fetched and reduced here: values of unknown rank, and
batches where a float32 sum overflows although every element is finite.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from greencc.core.data import Array, Batch, DataSource
from greencc.core.engine import Engine, EngineBuilder
from greencc.core.errors import InputError
from greencc.core.passes import Context
from greencc.core.shapes import bind_dims
from greencc.passes._capture import (
    BUDGET_BYTES,
    checked,
    graph_values,
    no_samples,
    non_finite,
    require_data,
    run_split,
    sample_bytes,
)

# ReduceSumSquare makes no tensor of squares, which Mul and ReduceMean would: half the memory.
_REDUCTIONS = ("ReduceMin", "ReduceMax", "ReduceMean", "ReduceSumSquare")
# From this opset on all of these take their axes as an input.
_AXES_INPUT_OPSET = 18


@dataclass(frozen=True)
class ChannelStats:
    """Statistics of each channel of one value over all samples and positions.

    A channel without any elements has zeros. Where a model has a fixed batch that does not divide the number of
    samples, the copies of the last sample that fill it up count like others.

    Attributes:
        low: Smallest element, float64, shape (channels,).
        high: Largest element.
        mean: Mean of the elements.
        mean_square: Mean of their squares.
        count: Elements per channel.
    """

    low: NDArray[np.float64]
    high: NDArray[np.float64]
    mean: NDArray[np.float64]
    mean_square: NDArray[np.float64]
    count: int


@dataclass(frozen=True)
class _Part:
    """One run's contribution: sums instead of means."""

    low: NDArray[np.float64]
    high: NDArray[np.float64]
    total: NDArray[np.float64]
    squares: NDArray[np.float64]
    count: int

    @property
    def finite(self) -> bool:
        return all(bool(np.isfinite(part).all()) for part in (self.low, self.high, self.total, self.squares))


def observe_channels(
    model: ir.Model, axes: Mapping[str, int], ctx: Context, batch: int = 8
) -> dict[str, ChannelStats]:
    """Run the calibration data once and return the statistics of each named float value per channel.

    Args:
        model: It is left unchanged. Shapes should be inferred: values of unknown rank are slow.
        axes: Values of the main graph and the axis of their channels; a negative one counts from the end.
        ctx: Gives the calibration data and the engine.
        batch: Samples run at once, where the model's batch is dynamic.

    Raises:
        InputError: There is no calibration data, an input or activation holds NaN or infinity, or the number of
            channels differs between samples.
    """
    source = require_data(ctx)
    if not axes:
        return {}
    build = ctx.observe or ctx.build
    reduced = model.clone()
    columns = _add_reductions(reduced, axes)
    wanted = [name for name, reductions in columns.items() for name in (reductions or (name,))]
    engine = build(reduced, outputs=wanted)
    doubts = _Doubts(model, build)
    totals: dict[str, _Part] = {}
    batch = run_size(model, list(axes), require_data(ctx), batch)
    seen = False
    try:
        runs = checked(source, batch)
        for item in ctx.progress(runs, label="Observing channels", total=math.ceil(source.count / batch)):
            parts: dict[str, list[_Part]] = {name: [] for name in axes}
            for results in run_split(engine, item, item.count):
                seen = True
                for name, reductions in columns.items():
                    if reductions is None:
                        parts[name].append(_reduce(results[name], axes[name]))
                    else:
                        parts[name].append(
                            _from_graph([results[output] for output in reductions], axes[name])
                        )
            for name, found in parts.items():
                if not all(part.finite for part in found):
                    found = [_reduce(values, axes[name]) for values in doubts.values(name, item)]
                for part in found:
                    totals[name] = _combine(name, totals.get(name), part)
    finally:
        engine.close()
        doubts.close()
    if not seen:
        raise no_samples(source)
    return {name: _stats(totals[name]) for name in axes}


def run_size(model: ir.Model, names: Sequence[str], source: DataSource, batch: int) -> int:
    """Samples to run at once: `batch` at most, within the memory budget, and a multiple of a fixed batch.

    Otherwise every run would be filled up with copies of its last sample. Sizes that only a sample tells (images of any
    width) are taken from the first one.
    """
    sized = model
    if any(not isinstance(dim, int) for value in model.graph.inputs for dim in tuple(value.shape or ())[1:]):
        first_sample = next(iter(source.batches(1)), None)
        if first_sample is not None:
            sized = bind_dims(model, {name: item.shape for name, item in first_sample.feeds.items()})
    size = max(1, min(batch, BUDGET_BYTES // max(1, sum(sample_bytes(sized, names).values()))))
    for value in model.graph.inputs:
        first = value.shape[0] if value.shape else None
        if isinstance(first, int) and first > 0 and not value.is_initializer():
            return max(size // first, 1) * first
    return size


def _add_reductions(model: ir.Model, axes: Mapping[str, int]) -> dict[str, tuple[str, ...] | None]:
    """Append the shape and the reductions of each value of known rank.

    Returns:
        For each value the names of its shape and its reductions, or None where the value itself is needed.
    """
    graph = model.graph
    values = {value.name: value for value in graph_values(graph)}
    columns: dict[str, tuple[str, ...] | None] = {}
    for position, (name, axis) in enumerate(axes.items()):
        value = values[name]
        if value.shape is None or not -len(value.shape) <= axis < len(value.shape):
            columns[name] = None
            continue
        others = [index for index in range(len(value.shape)) if index != axis % len(value.shape)]
        label = f"greencc.channel.{position}"
        shape = _append(graph, "Shape", [value], {}, f"{label}.Shape", ir.DataType.INT64)
        # An engine that is asked for float values may take every output to be one.
        count = _append(graph, "Cast", [shape], {"to": int(ir.DataType.FLOAT)}, f"{label}.dims")
        if value.dtype not in (None, ir.DataType.FLOAT):
            value = _append(graph, "Cast", [value], {"to": int(ir.DataType.FLOAT)}, f"{label}.Cast")
        inputs: list[ir.Value] = []
        attributes: dict[str, int | list[int]] = {"keepdims": 0}
        if model.opset_imports.get("", 1) >= _AXES_INPUT_OPSET:
            # Otherwise no axes mean all of them; below 18 there is no way to say that.
            attributes["noop_with_empty_axes"] = 1
            constant = ir.Tensor(np.array(others, np.int64), name=f"{label}.axes")
            initializer = ir.Value(name=constant.name, const_value=constant)
            graph.register_initializer(initializer)
            inputs.append(initializer)
        elif others:
            attributes["axes"] = others
        else:
            columns[name] = None
            continue
        outputs = [count]
        for op_type in _REDUCTIONS:
            outputs.append(_append(graph, op_type, [value, *inputs], attributes, f"{label}.{op_type}"))
        graph.outputs.extend(outputs)
        columns[name] = tuple(str(output.name) for output in outputs)
    return columns


def _append(
    graph: ir.Graph,
    op_type: str,
    inputs: list[ir.Value],
    attributes: Mapping[str, int | list[int]],
    name: str,
    dtype: ir.DataType = ir.DataType.FLOAT,
) -> ir.Value:
    result = ir.Value(name=name, type=ir.TensorType(dtype))
    graph.append(ir.node(op_type, inputs, dict(attributes), outputs=[result], name=name))
    return result


def _from_graph(results: list[Array], axis: int) -> _Part:
    shape = results[0].astype(np.int64)
    low, high, mean, squares = (np.asarray(part, np.float64).reshape(-1) for part in results[1:])
    count = int(np.prod(np.delete(shape, axis)))
    if not count or not low.size:
        return _empty(int(shape[axis]))
    return _Part(low, high, mean * count, squares, count)


def _reduce(values: Array, axis: int) -> _Part:
    """The same from the value itself, in float64."""
    if not -values.ndim <= axis < values.ndim:
        raise ValueError(f"axis {axis} of a value with {values.ndim} dimensions")
    channels = values.shape[axis]
    if not values.size:
        return _empty(channels)
    matrix = np.moveaxis(values, axis, 0).reshape(channels, -1).astype(np.float64)
    return _Part(
        matrix.min(axis=1),
        matrix.max(axis=1),
        matrix.sum(axis=1),
        np.einsum("ij,ij->i", matrix, matrix),
        matrix.shape[1],
    )


def _empty(channels: int) -> _Part:
    zeros = np.zeros(channels)
    return _Part(zeros, zeros, zeros, zeros, 0)


def _combine(name: str, first: _Part | None, second: _Part) -> _Part:
    if first is None:
        return second
    if len(first.low) != len(second.low):
        raise InputError(
            f"activation {name!r} has {len(first.low)} channels for some calibration samples and "
            f"{len(second.low)} for others",
            hint="give samples of one shape, or leave the operator that reads it out",
        )
    if not first.count or not second.count:
        return first if first.count else second
    return _Part(
        np.minimum(first.low, second.low),
        np.maximum(first.high, second.high),
        first.total + second.total,
        first.squares + second.squares,
        first.count + second.count,
    )


def _stats(part: _Part) -> ChannelStats:
    count = max(part.count, 1)
    return ChannelStats(part.low, part.high, part.total / count, part.squares / count, part.count)


class _Doubts:
    """Fetches values whose reductions were not finite; engines are kept, because overflow tends to repeat."""

    def __init__(self, model: ir.Model, build: EngineBuilder) -> None:
        self._model, self._build = model, build
        self._engines: dict[str, Engine] = {}

    def values(self, name: str, item: Batch) -> list[Array]:
        """The value for a batch, one array per run, all finite."""
        if name not in self._engines:
            self._engines[name] = self._build(self._model, outputs=[name])
        found = [results[name] for results in run_split(self._engines[name], item, item.count)]
        if not all(bool(np.isfinite(values).all()) for values in found):
            raise non_finite(name)
        return found

    def close(self) -> None:
        for engine in self._engines.values():
            engine.close()

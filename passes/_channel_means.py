"""Means of inner values per channel over the calibration data.

The reductions become part of the graph: however large the values are, only vectors come back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from greencc.core.graph import Names, add_initializer, opset_of
from greencc.core.passes import Context
from greencc.passes._calibrate_channels import run_size
from greencc.passes._capture import graph_values, require_data
from greencc.passes._quantized_pair import Side, run_both

Float64 = NDArray[np.float64]
# From this opset on ReduceMean takes its axes as an input.
_AXES_OPSET = 18


@dataclass(frozen=True)
class Wanted:
    """A value of the main graph and where its channels are.

    Attributes:
        value: Its name.
        channels: How many there are.
        rank: Of values with channels on axis 1; None where they are the last axis.
        square: The mean of the squares is wanted as well.
    """

    value: str
    channels: int
    rank: int | None
    square: bool = False


@dataclass(frozen=True)
class Means:
    """float64, (channels,): of the values, and of their squares where that was asked for."""

    mean: Float64
    square: Float64 | None = None


def channel_means(
    model: ir.Model, wanted: Sequence[Wanted], ctx: Context, batch: int, label: str
) -> dict[Wanted, Means]:
    """Run the calibration data once; the result has a `Means` for everything wanted.

    Args:
        model: It is left unchanged.
        wanted: What to reduce.
        ctx: Gives the data and the engine.
        batch: Samples run at once at most.
        label: What the progress bar says.
    """
    distinct = list(dict.fromkeys(wanted))
    if not distinct:
        return {}
    # The reductions come last, so all these values are alive at once.
    batch = run_size(model, list(dict.fromkeys(item.value for item in distinct)), require_data(ctx), batch)
    reduced = model.clone()
    outputs = _append(reduced, distinct)
    sums: dict[str, Float64] = {}
    counts = dict.fromkeys(distinct, 0.0)
    side = Side(reduced, [name for row in outputs.values() for name in row.values()])
    for piece in run_both(side, Side(model, []), ctx, batch, label):
        found = piece.float_values
        for item, row in outputs.items():
            # Pieces hold different numbers of rows where samples differ in size; an empty one has no mean.
            count = float(found[row["count"]]) / item.channels
            if count:
                counts[item] += count
                for kind in row.keys() - {"count"}:
                    part = count * found[row[kind]].astype(np.float64).reshape(-1)
                    sums[row[kind]] = sums[row[kind]] + part if row[kind] in sums else part
    means = {}
    for item, row in outputs.items():
        zeros = np.zeros(item.channels)
        over = {kind: sums.get(row[kind], zeros) / max(counts[item], 1.0) for kind in row.keys() - {"count"}}
        means[item] = Means(over["mean"], over.get("square"))
    return means


def _append(model: ir.Model, wanted: Sequence[Wanted]) -> dict[Wanted, dict[str, str]]:
    """Add the reductions to the graph; the names of their results."""
    graph = model.graph
    values = {str(value.name): value for value in graph_values(graph)}
    names = Names(model)

    def node(op_type: str, inputs: Sequence[ir.Value], **attributes: int | Sequence[int]) -> ir.Value:
        result = ir.Value(name=names.value(f"greencc.{op_type}"))
        graph.append(
            ir.node(op_type, inputs, attributes, outputs=[result], name=names.node(str(result.name)))
        )
        return result

    def mean(value: ir.Value, axes: list[int]) -> ir.Value:
        if opset_of(model) < _AXES_OPSET:
            return node("ReduceMean", [value], axes=axes, keepdims=0)
        chosen = add_initializer(graph, names.value("greencc.axes"), np.array(axes, np.int64))
        return node("ReduceMean", [value, chosen], keepdims=0)

    outputs: dict[Wanted, dict[str, str]] = {}
    for item in wanted:
        value = values[item.value]
        if value.dtype is not ir.DataType.FLOAT:
            # A sum of halves overflows soon.
            value = node("Cast", [value], to=int(ir.DataType.FLOAT))
        if item.rank is None:
            shape = np.array([-1, item.channels], np.int64)
            value = node("Reshape", [value, add_initializer(graph, names.value("greencc.shape"), shape)])
            axes = [0]
        else:
            axes = [axis for axis in range(item.rank) if axis != 1]
        found = {
            "mean": mean(value, axes),
            "count": node("Cast", [node("Size", [value])], to=int(ir.DataType.FLOAT)),
        }
        if item.square:
            found["square"] = mean(node("Mul", [value, value]), axes)
        for result in found.values():
            result.type = ir.TensorType(ir.DataType.FLOAT)
            result.shape = ir.Shape([] if result is found["count"] else [item.channels])
            graph.outputs.append(result)
        outputs[item] = {kind: str(result.name) for kind, result in found.items()}
    return outputs

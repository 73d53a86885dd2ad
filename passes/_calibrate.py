"""Ranges of inner values over the calibration data: one pass, memory independent of the number of samples.

For min-max ranges the reductions become part of the graph, so the runtime does them in parallel while the
values are in cache, and only scalars come back. For percentiles the values come back batch by batch, bounded
by `BUDGET_BYTES`, and go into histograms of fixed size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from enum import Enum

import numpy as np
import onnx_ir as ir

from greencc.core.data import Batch
from greencc.core.engine import EngineBuilder
from greencc.core.errors import InputError
from greencc.core.graph import constant_of
from greencc.core.passes import Context
from greencc.passes._capture import (
    BUDGET_BYTES,
    checked,
    graph_values,
    no_samples,
    non_finite,
    run_split,
    sample_bytes,
    stream,
)
from greencc.passes._ranges import Histogram, Range

# Never negative, so only the largest value is worth a pass over the memory.
_NON_NEGATIVE = frozenset({"Relu", "Sigmoid", "HardSigmoid", "Softmax", "Exp", "Softplus", "Abs"})
# From finite values these make finite ones or infinities, which the minimum and maximum show. What may make NaN of
# finite values (0/0, the root of a negative number), or is unknown, also needs the sum: the others may skip NaN.
_NEVER_NAN = frozenset(
    {
        "Add", "AveragePool", "BatchNormalization", "Cast", "Clip", "Concat", "Constant", "Conv", "ConvTranspose",
        "DepthToSpace", "Dropout", "Elu", "Erf", "Expand", "Flatten", "Gather", "Gelu", "Gemm", "GlobalAveragePool",
        "GlobalMaxPool", "HardSigmoid", "HardSwish", "Identity", "LayerNormalization", "LeakyRelu", "MatMul", "Max",
        "MaxPool", "Min", "Mul", "Neg", "PRelu", "Pad", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "Relu",
        "Reshape", "Resize", "Shape", "Sigmoid", "Slice", "Softmax", "SpaceToDepth", "Split", "Squeeze", "Sub", "Tanh",
        "Transpose", "Unsqueeze", "Where",
    }
)  # fmt: skip


class RangeMethod(Enum):
    """How the range of an activation is chosen from its values."""

    MINMAX = "minmax"
    PERCENTILE = "percentile"


def observe_ranges(
    model: ir.Model, names: Sequence[str], ctx: Context, method: RangeMethod, percent: float, batch: int
) -> dict[str, Range]:
    """Run the calibration data once and return the range of each named float value of the main graph.

    Args:
        model: The float model; it is left unchanged.
        names: Values to observe; values that only ever have no elements get [0, 0].
        ctx: Gives the calibration data and the engine.
        method: Min-max, or the percentile `percent`.
        percent: Share of the values kept, in percent, in (0, 100].
        batch: Samples run at once, where the model's batch is dynamic.

    Raises:
        InputError: There is no calibration data, or an input or activation holds NaN or infinity.
    """
    source = ctx.calibration
    if source is None:
        raise InputError(
            "static INT8 quantization needs calibration data", hint="pass --calibration with sample inputs"
        )
    if not names:
        return {}
    build = ctx.observe or ctx.build
    batch = max(1, min(batch, BUDGET_BYTES // max(1, sum(sample_bytes(model, names).values()))))
    if method is not RangeMethod.MINMAX:
        return _histograms(model, names, ctx, batch, percent)
    runs = ctx.progress(checked(source, batch), label="Calibrating", total=math.ceil(source.count / batch))
    ranges = _minmax(model, names, build, runs)
    if ranges is None:
        raise no_samples(source)
    return ranges


def _minmax(
    model: ir.Model, names: Sequence[str], build: EngineBuilder, runs: Iterator[Batch]
) -> dict[str, Range] | None:
    reduced = model.clone()
    outputs = _add_reductions(reduced, names)
    engine = build(reduced, outputs=[name for reductions in outputs for name in reductions.values()])
    low = dict.fromkeys(names, math.inf)
    high = dict.fromkeys(names, -math.inf)
    seen = False
    try:
        for item in runs:
            for results in run_split(engine, item, item.count):
                seen = True
                for name, reductions in zip(names, outputs, strict=True):
                    found = {kind: float(results[output]) for kind, output in reductions.items()}
                    largest = found["ReduceMax"]
                    smallest = found.get("ReduceMin", 0.0)
                    if not all(map(math.isfinite, found.values())):
                        if largest == -math.inf:
                            continue  # no elements
                        # The sum of finite values may overflow: look again.
                        _refuse_non_finite(model, names, build, item)
                    low[name], high[name] = min(low[name], smallest), max(high[name], largest)
    finally:
        engine.close()
    if not seen:
        return None
    return {name: Range(low[name], high[name]) if low[name] <= high[name] else Range(0, 0) for name in names}


def _add_reductions(model: ir.Model, names: Sequence[str]) -> list[dict[str, str]]:
    """Append the scalar maximum of each value, and its minimum and sum where they are needed.

    Returns:
        For each value the names of its reductions, by operator.
    """
    values = {value.name: value for value in graph_values(model.graph)}
    doubtful = _doubtful(model.graph, frozenset(names))
    outputs: list[dict[str, str]] = []
    for position, name in enumerate(names):
        value = values[name]
        wanted = ["ReduceMax"]
        if not _never_negative(value):
            wanted.append("ReduceMin")
        if name in doubtful:
            wanted.append("ReduceSum")
        reductions = {}
        for op_type in wanted:
            result = ir.Value(
                name=f"greencc.{op_type}.{position}",
                type=ir.TensorType(ir.DataType.FLOAT),
                shape=ir.Shape([]),
            )
            model.graph.append(
                ir.node(op_type, [value], {"keepdims": 0}, outputs=[result], name=str(result.name))
            )
            model.graph.outputs.append(result)
            reductions[op_type] = str(result.name)
        outputs.append(reductions)
    return outputs


def _never_negative(value: ir.Value) -> bool:
    node = value.producer()
    if node is None or node.domain not in ("", "ai.onnx"):
        return False
    if node.op_type == "Clip":
        floor = constant_of(node.inputs[1]) if len(node.inputs) > 1 and node.inputs[1] is not None else None
        return floor is not None and floor.size == 1 and float(floor.reshape(())) >= 0.0
    return node.op_type in _NON_NEGATIVE


def _doubtful(graph: ir.Graph, observed: frozenset[str]) -> set[str]:
    """Observed values that an operator which may make NaN reaches without another observed value in between."""
    tainted: set[ir.Value] = set()
    found: set[str] = set()
    for node in graph:
        safe = node.domain in ("", "ai.onnx") and node.op_type in _NEVER_NAN
        if safe and not any(value in tainted for value in node.inputs if value is not None):
            continue
        for value in node.outputs:
            if value.name in observed:
                found.add(str(value.name))
            else:
                tainted.add(value)
    return found


def _refuse_non_finite(model: ir.Model, names: Sequence[str], build: EngineBuilder, item: Batch) -> None:
    """Raise for the first value that is not finite; return when all are (their sum had overflowed)."""
    for name in names:
        engine = build(model, outputs=[name])
        try:
            for results in run_split(engine, item, item.count):
                if not np.isfinite(results[name]).all():
                    raise non_finite(name)
        finally:
            engine.close()


def _histograms(
    model: ir.Model, names: Sequence[str], ctx: Context, batch: int, percent: float
) -> dict[str, Range]:
    """Fetch the values themselves and count them."""
    histograms = {name: Histogram() for name in names}
    for results in stream(model, names, ctx, batch):
        for name, values in results.items():
            if not histograms[name].update(values):
                raise non_finite(name)
    return {
        name: histogram.percentile(percent) if histogram.exponent is not None else Range(0, 0)
        for name, histogram in histograms.items()
    }

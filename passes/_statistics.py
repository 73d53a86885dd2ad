"""One run over the calibration data that sees what every range method needs.

The reductions become part of the graph, so the runtime does them in parallel while the values are in cache: minima
and maxima, and sums where a NaN could hide. For histograms evenly spaced elements come back as well, so few that
counting costs little next to running the model, however large the activations and the data are. The distance
between them is a prime that does not divide the number of elements: they fall on every channel, row and column
alike. (With 3 for 384 channels an outlier channel would never be seen.) It is 1 when there are few anyway.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx_ir as ir

from greencc.core.cache import cache_key
from greencc.core.data import Array, Batch
from greencc.core.engine import EngineBuilder
from greencc.core.errors import InputError
from greencc.core.graph import constant_of
from greencc.core.model import digest
from greencc.core.passes import Context
from greencc.core.shards import Shard
from greencc.passes._calibrate_channels import run_size
from greencc.passes._capture import (
    BUDGET_BYTES,
    checked,
    graph_values,
    no_samples,
    non_finite,
    require_data,
    run_split,
)
from greencc.passes._range_methods import Statistics
from greencc.passes._ranges import BINS, Histogram
from greencc.passes._shards import broken_value, histograms_of, run_ends, shards_of

# Elements of one value counted over all the data: 200 of them lie beyond each end of a 99.99 % range.
ELEMENTS = 1 << 22
_FEWEST_PER_SAMPLE = 64
# fmt: off
_STRIDES = (
    1, 2, 3, 5, 7, 11, 13, 17, 23, 29, 37, 47, 59, 73, 97, 131, 179, 241, 331, 449, 601, 809, 1091, 1471, 1987, 4001,
    8009, 16001,
)
# fmt: on
# More elements than a sample has; times a batch it still fits INT64.
_ENDLESS = 1 << 44
# Slice takes steps from this opset on.
_SLICE_OPSET = 10

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

_SAMPLED = "elements"
# Changes when a shard would give something else.
_VERSION = 1


@dataclass(frozen=True)
class Observed:
    """What was seen of each value, and the shards it was put together from, if it was."""

    statistics: dict[str, Statistics]
    shards: Sequence[Shard] = ()


def observe(
    model: ir.Model, names: Sequence[str], ctx: Context, batch: int, momentum: float, *, histograms: bool
) -> Observed:
    """Run the calibration data once, in this process or, where the context has others, shard by shard in those.

    Both give the same to the last bit.

    Args:
        model: It is left unchanged.
        names: Float values of the main graph.
        ctx: Gives the calibration data and the engine.
        batch: Samples run at once at most, where the model's batch is dynamic.
        momentum: Weight of the past in the moving averages.
        histograms: Whether the values are counted as well.

    Raises:
        InputError: There is no calibration data, it is empty, or an input or activation holds NaN or infinity.
    """
    source = require_data(ctx)
    size = run_size(model, names, source, batch)
    reduced = model.clone()
    outputs = _add_reductions(reduced, names)
    if histograms:
        wanted = max(ELEMENTS // max(source.count, 1), _FEWEST_PER_SAMPLE)
        # Up to 64 values the result for one does not depend on how many are observed with it.
        fit = BUDGET_BYTES // (8 * size * max(len(names), 64))
        _add_samples(reduced, names, outputs, max(1, min(wanted, fit)))
    seen = {name: Statistics(histogram=Histogram() if histograms else None) for name in names}
    averages = {name: _Average(momentum) for name in names}
    shards: list[Shard] = []
    if ctx.observe_shards is not None and ctx.observe_shards.ready:
        shards = shards_of(source, size, cache_key(_VERSION, BINS, digest(reduced), source.digest(), size))
    if len(shards) > 1:
        _observe_shards(model, reduced, outputs, ctx, shards, seen, averages)
    else:
        shards = []
        _observe_here(model, reduced, outputs, ctx, size, seen, averages)
    for name, average in averages.items():
        seen[name].average_low, seen[name].average_high = average.ends()
    return Observed(seen, shards)


def _observe_here(
    model: ir.Model,
    reduced: ir.Model,
    outputs: Mapping[str, Mapping[str, str]],
    ctx: Context,
    size: int,
    seen: Mapping[str, Statistics],
    averages: Mapping[str, _Average],
) -> None:
    source = require_data(ctx)
    build = ctx.observe or ctx.build
    engine = build(reduced, outputs=[name for found in outputs.values() for name in found.values()])
    histograms = any(value.histogram is not None for value in seen.values())
    counting: Future[None] | None = None
    any_samples = False
    try:
        with ThreadPoolExecutor(1) as worker:
            runs = checked(source, size)
            for item in ctx.progress(runs, label="Calibrating", total=math.ceil(source.count / size)):
                for results in run_split(engine, item, item.count):
                    any_samples = True
                    look = partial(_refuse_non_finite, model, list(outputs), build, item)
                    _take_ends(outputs, results, seen, averages, look)
                    if histograms:
                        if counting is not None:
                            counting.result()
                        # While the next run computes.
                        counting = worker.submit(_count, outputs, results, seen)
            if counting is not None:
                counting.result()
    finally:
        engine.close()
    if not any_samples:
        raise no_samples(source)


def _observe_shards(
    model: ir.Model,
    reduced: ir.Model,
    outputs: Mapping[str, Mapping[str, str]],
    ctx: Context,
    shards: Sequence[Shard],
    seen: Mapping[str, Statistics],
    averages: Mapping[str, _Average],
) -> None:
    assert ctx.observe_shards is not None
    build = ctx.observe or ctx.build
    owners = {found[_SAMPLED]: name for name, found in outputs.items() if _SAMPLED in found}
    counted = list(owners)
    ends = [name for found in outputs.values() for name in found.values() if name not in owners]
    with closing(ctx.observe_shards.observe(reduced, ends, counted, shards)) as parts:
        shown = ctx.progress(parts, label="Calibrating", total=len(shards))
        for shard, part in zip(shards, shown, strict=True):
            for number, row in run_ends(part):
                look = partial(_look_again, model, list(outputs), build, shard, number)
                _take_ends(outputs, dict(zip(ends, row, strict=True)), seen, averages, look)
            if (broken := broken_value(part, counted)) is not None:
                raise non_finite(owners[broken])
            for name, histogram in histograms_of(part):
                whole = seen[owners[name]].histogram
                assert whole is not None
                whole.merge(histogram)


def _look_again(
    model: ir.Model, names: Sequence[str], build: EngineBuilder, shard: Shard, number: int
) -> None:
    _refuse_non_finite(model, names, build, Batch(dict(shard.runs()[number])))


class _Average:
    """Exponentially weighted means of both ends, not biased towards the first run."""

    def __init__(self, momentum: float) -> None:
        self._momentum = momentum
        self._low = self._high = self._weight = 0.0

    def add(self, low: float, high: float) -> None:
        for name, value in (("_low", low), ("_high", high), ("_weight", 1.0)):
            setattr(self, name, self._momentum * getattr(self, name) + (1.0 - self._momentum) * value)

    def ends(self) -> tuple[float, float]:
        return (self._low / self._weight, self._high / self._weight) if self._weight else (0.0, 0.0)


def _take_ends(
    outputs: Mapping[str, Mapping[str, str]],
    results: Mapping[str, Array | float],
    seen: Mapping[str, Statistics],
    averages: Mapping[str, _Average],
    look: Callable[[], None],
) -> None:
    """Take in the ends of one run; `look` refuses it where a value is not finite."""
    for name, reductions in outputs.items():
        found = {kind: float(results[output]) for kind, output in reductions.items() if kind != _SAMPLED}
        high = found["ReduceMax"]
        low = found.get("ReduceMin", 0.0)
        if not all(map(math.isfinite, found.values())):
            if high == -math.inf:
                continue  # no elements
            # The sum of finite values may overflow: look again.
            look()
        value = seen[name]
        value.low, value.high = min(value.low, low), max(value.high, high)
        averages[name].add(low, high)


def _count(
    outputs: Mapping[str, Mapping[str, str]], results: Mapping[str, Array], seen: Mapping[str, Statistics]
) -> None:
    for name, reductions in outputs.items():
        histogram = seen[name].histogram
        if histogram is not None and not histogram.update(results[reductions[_SAMPLED]]):
            raise non_finite(name)


def _add_reductions(model: ir.Model, names: Sequence[str]) -> dict[str, dict[str, str]]:
    """Append the scalar maximum of each value, and its minimum and sum where they are needed.

    Returns:
        For each value the names of its reductions, by operator.
    """
    values = {value.name: value for value in graph_values(model.graph)}
    doubtful = _doubtful(model.graph, frozenset(names))
    outputs: dict[str, dict[str, str]] = {}
    for position, name in enumerate(names):
        value = values[name]
        wanted = ["ReduceMax"]
        if not _never_negative(value):
            wanted.append("ReduceMin")
        if name in doubtful:
            wanted.append("ReduceSum")
        value = _as_float(model.graph, value, f"greencc.Cast.{position}")
        outputs[name] = {}
        for op_type in wanted:
            result = _append(model.graph, op_type, [value], {"keepdims": 0}, f"greencc.{op_type}.{position}")
            result.shape = ir.Shape([])
            model.graph.outputs.append(result)
            outputs[name][op_type] = str(result.name)
    return outputs


def _add_samples(
    model: ir.Model, names: Sequence[str], outputs: Mapping[str, dict[str, str]], limit: int
) -> None:
    """Append evenly spaced elements of each value, about `limit` of each sample.

    The distance is chosen while the model runs, because shapes may depend on the data.
    """
    graph = model.graph
    if model.opset_imports.get("", 1) < _SLICE_OPSET:
        raise InputError(
            f"opset {model.opset_imports.get('', 1)} cannot slice with a step, which histograms need",
            hint="run upgrade-opset first, or choose the method minmax",
        )
    values = {value.name: value for value in graph_values(graph)}
    strides = np.array(_STRIDES, np.int64)
    zero, ends, flat, table, moduli, limits, one = (
        _constant(graph, f"greencc.{label}", numbers)
        for label, numbers in (
            ("zero", [0]),
            ("ends", [np.iinfo(np.int64).max]),
            ("flat", [-1]),
            ("strides", strides),
            ("moduli", [_ENDLESS, *strides[1:]]),
            ("limits", [*(strides[:-1] * limit + 1), _ENDLESS]),
            ("one", [1]),
        )
    )
    count = one
    batched = [value for value in graph.inputs if not value.is_initializer() and value.shape != ir.Shape([])]
    if batched:
        shape = _append(graph, "Shape", [batched[0]], {}, "greencc.Shape", ir.DataType.INT64)
        count = _append(graph, "Gather", [shape, zero], {}, "greencc.count", ir.DataType.INT64)
    bounds = _append(graph, "Mul", [limits, count], {}, "greencc.bounds", ir.DataType.INT64)
    for position, name in enumerate(names):
        label = f"greencc.{{}}.{position}".format
        value = _as_float(graph, values[name], label("CastSampled"))
        size = _append(graph, "Size", [value], {}, label("Size"), ir.DataType.INT64)
        # The first stride that is long enough and does not divide the size.
        enough = _append(graph, "Less", [size, bounds], {}, label("Less"), ir.DataType.BOOL)
        rest = _append(graph, "Mod", [size, moduli], {}, label("Mod"), ir.DataType.INT64)
        prime = _append(graph, "Cast", [rest], {"to": int(ir.DataType.BOOL)}, label("Bool"), ir.DataType.BOOL)
        both = _append(graph, "And", [enough, prime], {}, label("And"), ir.DataType.BOOL)
        score = _append(graph, "Cast", [both], {"to": int(ir.DataType.FLOAT)}, label("Score"))
        index = _append(
            graph, "ArgMax", [score], {"axis": 0, "keepdims": 1}, label("ArgMax"), ir.DataType.INT64
        )
        stride = _append(graph, "Gather", [table, index], {}, label("Stride"), ir.DataType.INT64)
        line = _append(graph, "Reshape", [value, flat], {}, label("Reshape"))
        result = _append(graph, "Slice", [line, zero, ends, zero, stride], {}, label("Slice"))
        graph.outputs.append(result)
        outputs[name][_SAMPLED] = str(result.name)


def _as_float(graph: ir.Graph, value: ir.Value, name: str) -> ir.Value:
    if value.dtype in (None, ir.DataType.FLOAT):
        return value
    return _append(graph, "Cast", [value], {"to": int(ir.DataType.FLOAT)}, name)


def _append(
    graph: ir.Graph,
    op_type: str,
    inputs: list[ir.Value],
    attributes: Mapping[str, int],
    name: str,
    dtype: ir.DataType = ir.DataType.FLOAT,
) -> ir.Value:
    result = ir.Value(name=name, type=ir.TensorType(dtype))
    graph.append(ir.node(op_type, inputs, dict(attributes), outputs=[result], name=name))
    return result


def _constant(graph: ir.Graph, name: str, numbers: object) -> ir.Value:
    value = ir.Value(name=name, const_value=ir.Tensor(np.asarray(numbers, np.int64), name=name))
    graph.register_initializer(value)
    return value


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

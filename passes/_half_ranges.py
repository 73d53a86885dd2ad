"""What FP16 cannot compute: ranges seen on the calibration data, and bounds for what is summed inside a kernel.

* A value beyond `limit` may overflow on data the calibration did not show; one that stays below 2**-14 altogether
  lies among FP16's denormals, with fewer digits than a Cast would keep elsewhere.
* A kernel may add up in FP16. With terms of size at most t_k a partial sum stays below sum(t_k), and for terms of
  random sign below 4 sqrt(sum(t_k^2)) but for one case in 10^3 (Hoeffding: 2 exp(-4^2/2)); the smaller of the two must
  fit 65504. For a weight row w and |x| <= p the terms are |w_k| p; a mean over n elements sums n times its result; a
  norm or a variance sums squares.
* Softmax and Exp turn the absolute error of their largest inputs into a relative one: FP16 values above 256 are 0.25
  apart.
* Weights must survive rounding channel by channel (`_half_rounding`).

See Micikevicius et al., arXiv 1710.03740 (what to keep in float).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np
import onnx_ir as ir

from greencc.core.graph import (
    attribute_int,
    attribute_ints,
    constant_of,
    constant_tensor,
    consumers,
    input_at,
    is_op,
    static_shape,
)
from greencc.core.model import bind_dims
from greencc.core.passes import Context
from greencc.passes._capture import graph_values
from greencc.passes._half_rounding import MAX_ERROR, rounding_error
from greencc.passes._half_schema import (
    FLOAT16_MAX,
    PRODUCTS,
    HalfType,
    half_inputs,
    half_outputs,
    half_values,
)
from greencc.passes._linear_view import linear_view
from greencc.passes._quantize_insert import release
from greencc.passes._ranges import Range

_SMALLEST_NORMAL = 2.0**-14
_EXPONENT_LIMIT = 256.0
_DEVIATIONS = 4.0
_MEANS = ("AveragePool", "GlobalAveragePool", "ReduceMean")
_SUMS = ("ReduceL1", "ReduceSum")
_SQUARES = ("InstanceNormalization", "LayerNormalization", "ReduceL2", "ReduceSumSquare", "RMSNormalization")
_EXPONENTIALS = ("Exp", "LogSoftmax", "Softmax")
# They give finite values for negative infinities.
_ABSORB_INFINITY = ("Softmax", "Shape", "Size", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "IsInf")


def infinite_values(graph: ir.Graph) -> set[ir.Value]:
    """Values that an infinite constant (an attention mask of -inf) can reach: no range can be taken of them."""
    reached: set[ir.Value] = set()
    for node in graph:
        if is_op(node, *_ABSORB_INFINITY):
            continue
        if any(value in reached or _infinite(value) for value in node.inputs) or _fills_infinity(node):
            reached.update(node.outputs)
    return reached


def _infinite(value: ir.Value | None) -> bool:
    tensor = constant_tensor(value)
    if tensor is None or tensor.dtype is not ir.DataType.FLOAT:
        return False
    found = bool(np.isinf(tensor.numpy()).any())
    release(tensor)
    return found


def _fills_infinity(node: ir.Node) -> bool:
    attribute = node.attributes.get("value") if is_op(node, "ConstantOfShape") else None
    return attribute is not None and bool(np.isinf(attribute.as_tensor().numpy().astype(np.float64)).any())


def constant_peak(value: ir.Value) -> float | None:
    """Largest magnitude of a constant (NaN where it holds one), or None for an activation."""
    tensor = constant_tensor(value)
    if tensor is None:
        return None
    array = tensor.numpy()
    peak = float(max(np.max(array, initial=0.0), -np.min(array, initial=0.0)))
    release(tensor)
    return peak


class Overflow:
    """Answers why a node must stay in float.

    Args:
        ranges: Of the activations, by value; empty without calibration data.
        masked: Values whose large negative part a Softmax turns into 0 (see `_half_masks`).
        limit: Largest magnitude allowed.
        opset: Of the default domain.
        shapes: Of activations whose declared shape is not static, by name (see `seen_shapes`).
    """

    def __init__(
        self,
        ranges: Mapping[ir.Value, Range],
        masked: frozenset[ir.Value],
        limit: float,
        opset: int,
        shapes: Mapping[str, tuple[int, ...]],
    ) -> None:
        self._ranges = ranges
        self._masked = masked
        self._limit = limit
        self._opset = opset
        self._shapes = shapes
        self._constants: dict[ir.Value, float] = {}

    def reason(self, node: ir.Node) -> str | None:
        """Why FP16 cannot compute the node, or None."""
        for value in half_values(node, self._opset):
            peak = self._peak(value)
            # A NaN weight compares false and would pass for small.
            if not peak <= self._limit:
                return f"{value.name!r} reaches {peak:.3g}, above {self._limit:g}"
            if 0 < peak < _SMALLEST_NORMAL and value in self._ranges:
                return f"{value.name!r} stays below {peak:.2g}, where FP16 loses its digits"
        return self._weights(node) or self._exponent(node) or self._sum(node)

    def _peak(self, value: ir.Value) -> float:
        """Largest magnitude; 0 where it cannot be known."""
        if value in self._masked:
            return max(self._range(value).high, 0.0)
        if value not in self._constants:
            constant = constant_peak(value)
            if constant is None:
                seen = self._range(value)
                return max(-seen.low, seen.high)
            self._constants[value] = constant
        return self._constants[value]

    def _range(self, value: ir.Value) -> Range:
        return self._ranges.get(value, Range(0.0, 0.0))

    def _weights(self, node: ir.Node) -> str | None:
        """Constant factors whose digits FP16 would lose; addends are as precise as what they are added to."""
        if node.op_type not in (*PRODUCTS, "Mul", "Div"):
            return None
        for index in half_inputs(node, self._opset):
            value = node.inputs[index]
            tensor = constant_tensor(value)
            if value is None or tensor is None or (node.op_type in PRODUCTS and index >= 2):
                continue
            error = rounding_error(tensor.numpy(), HalfType.FLOAT16)
            release(tensor)
            if error > MAX_ERROR[HalfType.FLOAT16]:
                return f"FP16 would change a channel of {value.name!r} by {error:.2g} of the channel"
        return None

    def _exponent(self, node: ir.Node) -> str | None:
        """Rounding the exponent of a large exponential, here or in the reader."""
        outputs = half_outputs(node, self._opset)
        inner = [input_at(node, 0)] if is_op(node, *_EXPONENTIALS) else []
        readers = (value for value in outputs if any(is_op(to, *_EXPONENTIALS) for to in consumers(value)))
        for value in (*inner, *readers):
            if value is not None and self._range(value).high > _EXPONENT_LIMIT:
                high = self._range(value).high
                return f"{value.name!r} goes into an exponential and reaches {high:.3g}, above {_EXPONENT_LIMIT:g}"
        return None

    def _sum(self, node: ir.Node) -> str | None:
        """A sum inside the kernel that may overflow although its result does not."""
        if not self._ranges:
            return None
        bound = self._bound(node)
        if bound is None:
            return "the number of terms it sums up is not known"
        if bound > FLOAT16_MAX:
            return f"what it sums up may reach {bound:.3g} on the way"
        return None

    def _bound(self, node: ir.Node) -> float | None:
        """Bound of the partial sums of a node; 0 for nodes that sum nothing, None where it is not known."""
        peak = self._peak(node.inputs[0]) if node.inputs and node.inputs[0] is not None else 0.0
        if is_op(node, "MatMul") and constant_tensor(node.inputs[1]) is None:
            terms = _last(node.inputs[0])
            other = self._peak(node.inputs[1]) if node.inputs[1] is not None else 0.0
            # An unknown number of terms is left to the range of the result: attention over any length.
            return 0.0 if terms is None else _sum_bound(peak * other, terms)
        if is_op(node, "Conv", "ConvTranspose", "Gemm", "MatMul"):
            return _weighted_bound(node, peak)
        if is_op(node, *_MEANS, *_SUMS, *_SQUARES):
            terms = _terms(node, self._shapes)
            if terms is None:
                return None
            if is_op(node, *_SQUARES):
                return terms * peak * peak
            result = self._peak(node.outputs[0]) * (terms if is_op(node, *_MEANS) else 1)
            return max(result, _sum_bound(peak, terms))
        return 0.0


def _sum_bound(term: float, count: int) -> float:
    return min(term * count, _DEVIATIONS * term * math.sqrt(count))


def _weighted_bound(node: ir.Node, peak: float) -> float:
    """The bound for a product with a constant weight, from the norms of its rows."""
    view, tensor = linear_view(node), constant_tensor(input_at(node, 1))
    if tensor is None or tensor.size == 0:
        return 0.0
    weight = tensor.numpy()
    rows = weight.reshape(-1, *weight.shape[-2:]).swapaxes(-1, -2) if view is None else view.matrix(weight)
    absolute = np.abs(rows, dtype=np.float32)
    del weight, rows
    release(tensor)
    total = absolute.sum(axis=-1, dtype=np.float64)
    spread = np.sqrt(np.square(absolute, out=absolute).sum(axis=-1, dtype=np.float64))
    return float(peak * np.minimum(total, _DEVIATIONS * spread).max())


def _last(value: ir.Value | None) -> int | None:
    shape = None if value is None else value.shape
    last = shape[-1] if shape is not None and len(shape) else None
    return last if isinstance(last, int) else None


def seen_shapes(model: ir.Model, nodes: Iterable[ir.Node], ctx: Context) -> dict[str, tuple[int, ...]]:
    """Shapes of values with dynamic dimensions for one sample of the calibration data, where a sum needs them."""
    unknown = any(is_op(node, *_MEANS, *_SUMS, *_SQUARES) and _terms(node, {}) is None for node in nodes)
    item = next(ctx.calibration.batches(1), None) if unknown and ctx.calibration is not None else None
    if item is None:
        return {}
    bound = bind_dims(model, {name: values.shape for name, values in item.feeds.items()})
    shapes = {str(value.name): static_shape(value) for value in graph_values(bound.graph)}
    return {name: shape for name, shape in shapes.items() if shape is not None}


def _terms(node: ir.Node, shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """How many elements one result sums up, or None."""
    value = input_at(node, 0)
    if is_op(node, "AveragePool"):
        return math.prod(attribute_ints(node, "kernel_shape", ()))
    if value is None or value.shape is None:
        return None
    shape = shapes.get(str(value.name)) or [dim if isinstance(dim, int) else None for dim in value.shape]
    axes: Iterable[int]
    if is_op(node, "GlobalAveragePool", "InstanceNormalization"):
        axes = range(2, len(shape))
    elif is_op(node, "LayerNormalization", "RMSNormalization"):
        axes = range(attribute_int(node, "axis", -1) % len(shape), len(shape))
    elif (given := input_at(node, 1)) is not None:
        array = constant_of(given)
        if array is None:
            return None
        axes = [int(axis) for axis in array.reshape(-1)] or range(len(shape))
    else:
        axes = attribute_ints(node, "axes", ()) or range(len(shape))
    sizes = [shape[axis] for axis in axes]
    known = [size for size in sizes if size is not None]
    return math.prod(known) if len(known) == len(sizes) else None

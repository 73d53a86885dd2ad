"""How large the values of a quantized graph can get, for certain: a pair clips to 128 steps, the rest is algebra.

A quantized value is at most 128 scales; a convolution's result at most the sum of its weights' magnitudes times that,
which also holds for every partial sum. What no pair bounds (an input of the model, a logarithm) has no bound here.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from greencc.core.data import Array
from greencc.core.graph import (
    ONNX_DOMAINS,
    attribute_int,
    constant_of,
    constant_tensor,
    input_at,
    is_op,
    static_shape,
)

_STEPS = 128.0
_SAME = frozenset(
    {
        "Abs",
        "AveragePool",
        "DepthToSpace",
        "Dropout",
        "Expand",
        "Flatten",
        "Gather",
        "GatherElements",
        "GatherND",
        "GlobalAveragePool",
        "GlobalMaxPool",
        "HardSwish",
        "Identity",
        "MaxPool",
        "Neg",
        "ReduceMax",
        "ReduceMean",
        "ReduceMin",
        "Relu",
        "Reshape",
        "Slice",
        "SpaceToDepth",
        "Split",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
    }
)
_INTEGERS: dict[ir.DataType | None, float] = {
    ir.DataType.BOOL: 1.0,
    ir.DataType.INT8: 128.0,
    ir.DataType.UINT8: 255.0,
}
_UNIT = frozenset({"Cos", "Erf", "HardSigmoid", "Sigmoid", "Sin", "Softmax", "Softsign", "Tanh"})


def bounds_of(graph: ir.Graph) -> Mapping[ir.Value, float]:
    """The largest magnitude of each float value that has a bound."""
    found: dict[ir.Value, float] = {}
    for value in graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and tensor.dtype.is_floating_point():
            found[value] = _peak(tensor.numpy())
    for node in graph:
        bound = _bound(node, found)
        if bound is None:
            continue
        for value in node.outputs:
            if value.name and value.dtype is not None and value.dtype.is_floating_point():
                found[value] = bound
    return found


def _peak(array: Array) -> float:
    return float(np.max(np.abs(array.astype(np.float64)), initial=0.0))


def _bound(node: ir.Node, found: Mapping[ir.Value, float]) -> float | None:
    if node.domain not in ONNX_DOMAINS:
        return None
    if node.op_type == "DequantizeLinear":
        return _dequantized(node)
    if node.op_type in _UNIT:
        return 1.0
    reads = [found.get(value) for value in node.inputs if value is not None]
    first = found.get(node.inputs[0]) if node.inputs and node.inputs[0] is not None else None
    match node.op_type:
        case kind if kind in _SAME:
            return first
        case "Cast":
            source = node.inputs[0]
            return _INTEGERS.get(source.dtype, first) if source is not None else None
        case "Conv" | "ConvTranspose" | "Gemm" | "MatMul":
            return None if first is None else _product(node, first, found)
        case "Add" | "Sub" | "Sum":
            return None if None in reads else float(sum(each for each in reads if each is not None))
        case "Mul":
            return None if None in reads else float(np.prod([each for each in reads if each is not None]))
        case "Max" | "Min" | "Concat":
            return None if None in reads else max(each for each in reads if each is not None)
        case "Where":
            branches = [found.get(value) for value in node.inputs[1:3] if value is not None]
            return None if None in branches else max(each for each in branches if each is not None)
        case "Clip":
            return _clipped(node, first)
        case "Div":
            array = constant_of(node.inputs[1])
            smallest = (
                0.0 if array is None else float(np.min(np.abs(array.astype(np.float64)), initial=np.inf))
            )
            return None if first is None or smallest == 0.0 else first / smallest
        case "LeakyRelu" | "Elu":
            slope = node.attributes.get("alpha")
            return (
                None
                if first is None
                else first * max(1.0, abs(slope.as_float()) if slope is not None else 1.0)
            )
        case "Pad":
            return first if _pads_within(node) else None
        case "Resize":
            mode = node.attributes.get("mode")
            return None if mode is not None and mode.as_string() == "cubic" else first
        case "BatchNormalization":
            return None if first is None else _shifted(node, first)
        case "LayerNormalization" | "InstanceNormalization":
            return _normalized(node, found)
    return None


def _dequantized(node: ir.Node) -> float | None:
    scale, zero_point = constant_of(input_at(node, 1)), constant_of(input_at(node, 2))
    if scale is None or zero_point is None or zero_point.dtype != np.int8:
        return None
    return _STEPS * _peak(scale)


def _product(node: ir.Node, data: float, found: Mapping[ir.Value, float]) -> float | None:
    """The largest sum over a row of weights, for data of this magnitude."""
    weight = _weight(node.inputs[1])
    if weight is None:
        # A product of two activations: as many terms as the axis that is summed over is long.
        other = found.get(node.inputs[1]) if node.inputs[1] is not None else None
        shape = node.inputs[0].shape if node.inputs[0] is not None else None
        terms = shape[-1] if shape is not None and shape.rank() else None
        return (
            None
            if other is None or not isinstance(terms, int) or node.op_type != "MatMul"
            else terms * other * data
        )
    magnitude = np.abs(weight.astype(np.float64))
    match node.op_type:
        case "Conv":
            rows = magnitude.reshape(len(magnitude), -1).sum(1)
        case "ConvTranspose":
            group = attribute_int(node, "group", 1)
            parts = magnitude.reshape(group, len(magnitude) // group, magnitude.shape[1], -1)
            rows = parts.sum((1, 3)).reshape(-1)
        case "Gemm":
            rows = magnitude.sum(1 if attribute_int(node, "transB", 0) else 0)
        case _:
            rows = magnitude.sum(-2) if magnitude.ndim > 1 else magnitude.sum()
    factors = [
        abs(node.attributes[name].as_float()) if name in node.attributes else 1.0
        for name in ("alpha", "beta")
    ]
    total = float(np.max(rows, initial=0.0)) * data * factors[0]
    bias = input_at(node, 2) if node.op_type != "MatMul" else None
    if bias is None:
        return total
    added = found.get(bias)
    return None if added is None else total + added * factors[1]


def _weight(value: ir.Value | None) -> Array | None:
    """The floats of a constant weight, quantized or not."""
    node = None if value is None else value.producer()
    if node is None or not is_op(node, "DequantizeLinear"):
        return constant_of(value)
    scale, source = constant_of(node.inputs[1]), node.inputs[0]
    quantize = None if source is None else source.producer()
    if quantize is not None and is_op(quantize, "QuantizeLinear"):
        return constant_of(quantize.inputs[0])
    integers = constant_of(source)
    if integers is None or scale is None:
        return None
    if scale.size > 1:
        shape = [1] * integers.ndim
        shape[attribute_int(node, "axis", 1)] = -1
        scale = scale.reshape(shape)
    floats: Array = integers.astype(np.float32) * scale.astype(np.float32)
    return floats


def _clipped(node: ir.Node, first: float | None) -> float | None:
    limits = [constant_of(input_at(node, index)) for index in (1, 2)]
    if any(limit is None or limit.size != 1 for limit in limits):
        return first
    ends = max(abs(float(limit.reshape(()))) for limit in limits if limit is not None)
    return ends if first is None else min(ends, first)


def _pads_within(node: ir.Node) -> bool:
    mode, value = node.attributes.get("mode"), input_at(node, 2)
    if mode is not None and mode.as_string() != "constant":
        return True
    tensor = constant_tensor(value)
    return value is None or (tensor is not None and not tensor.numpy().any())


def _shifted(node: ir.Node, data: float) -> float | None:
    """Batch normalization of constant statistics."""
    scale, bias, mean, variance = (constant_of(value) for value in node.inputs[1:5])
    if scale is None or bias is None or mean is None or variance is None:
        return None
    epsilon = node.attributes["epsilon"].as_float() if "epsilon" in node.attributes else 1e-5
    gain = np.abs(scale.astype(np.float64)) / np.sqrt(variance.astype(np.float64) + epsilon)
    reach = data + np.abs(mean.astype(np.float64))
    return float(np.max(reach * gain + np.abs(bias.astype(np.float64)), initial=0.0))


def _normalized(node: ir.Node, found: Mapping[ir.Value, float]) -> float | None:
    """No element of n normalized ones is larger than sqrt(n)."""
    shape = static_shape(node.inputs[0])
    scale = found.get(node.inputs[1]) if node.inputs[1] is not None else None
    bias = input_at(node, 2)
    added = 0.0 if bias is None else found.get(bias)
    if shape is None or scale is None or added is None:
        return None
    first = attribute_int(node, "axis", -1) if node.op_type == "LayerNormalization" else 2
    return float(np.sqrt(np.prod(shape[first:], dtype=np.float64))) * scale + added

"""LSTM with INT8 weights through ONNX Runtime's DynamicQuantizeLSTM; other recurrent cells as INT8 storage.

`com.microsoft.DynamicQuantizeLSTM` reads W as (directions, input, 4 hidden) and R as (directions, hidden, 4 hidden)
with scales (directions, 4 hidden), and quantizes X and the hidden state at every step; biases, peepholes and states
stay float (ContribOperators.md). The step inside a GRU or RNN cannot be quantized from outside. Its weights are
stored as integers behind a Cast and a Mul, which a runtime folds when it loads the model (a DequantizeLinear would
be computed again in every run).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from greencc.core.graph import attribute_int, constant_tensor, input_at
from greencc.passes._dynamic_insert import DynamicInserter, is_finite
from greencc.passes._quantize_insert import release
from greencc.passes._quantize_scales import quantize_weight, weight_limit, weight_scales

RECURRENT = ("GRU", "LSTM", "RNN")
KERNEL = ("com.microsoft", "DynamicQuantizeLSTM")
_MAX_SUM = 2**31 - 1
# X, W, R, B, sequence_lens, initial_h, initial_c, P
_INPUTS = 8


@dataclass(frozen=True)
class Recurrent:
    """A recurrent node with constant weights: `weights` are W and R."""

    node: ir.Node
    weights: tuple[tuple[ir.Value, ir.TensorProtocol], ...]


def describe_recurrent(node: ir.Node, min_elements: int, bits: int) -> Recurrent | str | None:
    """Its weights, why they stay in float, or None where they are too small to matter."""
    found = []
    for index in (1, 2):
        weight = input_at(node, index)
        tensor = constant_tensor(weight)
        if weight is None or tensor is None:
            return "its weights are computed, or can be overridden by an input"
        if tensor.dtype is not ir.DataType.FLOAT or len(tensor.shape) != 3:
            return "its weights are not float32 of rank 3"
        if int(tensor.shape.numpy()[2]) * 255 * weight_limit(bits) > _MAX_SUM:
            return "its sums may overflow 32 bits"
        if not is_finite(tensor):
            return f"its weight {weight.name!r} is not finite"
        found.append((weight, tensor))
    if sum(tensor.size for _, tensor in found) < min_elements:
        return None
    return Recurrent(node, tuple(found))


def has_kernel(node: ir.Node) -> bool:
    """True for what DynamicQuantizeLSTM can express (it has no `layout`)."""
    return node.op_type == "LSTM" and attribute_int(node, "layout", 0) == 0


def quantize_lstm(found: Recurrent, inserter: DynamicInserter, per_channel: bool) -> None:
    """Replace the LSTM."""
    node = found.node
    parameters: list[ir.Value] = []
    weights: list[ir.Value] = []
    for (weight, tensor), letter in zip(found.weights, "WR", strict=True):
        integers, scales = _quantize(tensor, inserter.bits, per_channel)
        weights.append(
            inserter.constant(
                node, f"{weight.name}_quantized", np.ascontiguousarray(integers.transpose(0, 2, 1))
            )
        )
        parameters += [
            inserter.constant(node, f"{node.name}_{letter}_scale", scales),
            inserter.constant(node, f"{node.name}_{letter}_zero_point", np.zeros(scales.shape, np.int8)),
        ]
    inputs = [input_at(node, index) for index in range(_INPUTS)]
    inputs[1:3] = weights
    graph = node.graph
    assert graph is not None
    attributes = {name: value for name, value in node.attributes.items() if name != "layout"}
    outputs = [ir.Value(name=value.name, type=value.type, shape=value.shape) for value in node.outputs]
    lstm = ir.Node(
        KERNEL[0], KERNEL[1], [*inputs, *parameters], attributes.values(), outputs=outputs, name=node.name
    )
    graph.insert_before(node, lstm)
    for old, new in zip(node.outputs, outputs, strict=True):
        old.replace_all_uses_with(new, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    for weight, _ in found.weights:
        inserter.drop(weight)


def store_weights(found: Recurrent, inserter: DynamicInserter, per_channel: bool) -> None:
    """Let the node read INT8 weights through a Cast and a Mul."""
    node = found.node
    for index, (weight, tensor) in enumerate(found.weights, start=1):
        integers, scales = _quantize(tensor, 8, per_channel)
        stored = inserter.constant(node, f"{weight.name}_quantized", integers)
        factors = scales.reshape(*scales.shape, *[1] * (3 - scales.ndim))
        scale = inserter.constant(node, f"{weight.name}_scale", factors)
        floats = inserter.op(
            node,
            "Cast",
            [stored],
            ir.DataType.FLOAT,
            stored.shape,
            f"{weight.name}_Cast",
            {"to": ir.DataType.FLOAT.value},
        )
        restored = inserter.op(
            node, "Mul", [floats, scale], ir.DataType.FLOAT, stored.shape, f"{weight.name}_Mul"
        )
        node.replace_input_with(index, restored)
        inserter.drop(weight)


def _quantize(
    tensor: ir.TensorProtocol, bits: int, per_channel: bool
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Integers in the shape of the weight; scales (directions, channels), or (directions,) without channels."""
    array = tensor.numpy()
    directions, channels, _ = array.shape
    rows = array.reshape(directions * channels if per_channel else directions, -1)
    scales = weight_scales(rows, 0, bits)
    assert scales is not None
    integers = quantize_weight(rows, scales, 0, bits).reshape(array.shape)
    release(tensor)
    return integers, scales.reshape((directions, channels) if per_channel else (directions,))

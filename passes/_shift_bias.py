"""Add to the biases of the weighted nodes of a QDQ model, in whatever form they are, or give a node its first one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from greencc.core.capabilities import ElementType
from greencc.core.graph import Names, add_initializer, constant_of, input_at, is_op, sole_consumer
from greencc.core.passes import Context
from greencc.passes._quantized_pair import QuantizedNode

Float64 = NDArray[np.float64]
# Half of what INT32 holds is left to the sum that the bias starts.
_MAX_BIAS = 2**30


@dataclass(frozen=True)
class BiasedNode:
    """A weighted node, and the node whose constant is its bias: itself, or for a MatMul the Add that follows.

    Attributes:
        pair: The node in both models.
        tail: In the float model; its name is the same in the quantized one.
    """

    pair: QuantizedNode
    tail: ir.Node

    @property
    def name(self) -> str:
        return self.pair.name


def biased_node(pair: QuantizedNode) -> BiasedNode | str:
    """Where the bias of a node is, or why it cannot be moved."""
    tail = _tail(pair)
    return tail if isinstance(tail, str) else BiasedNode(pair, tail)


def shift_biases(
    model: ir.Model, layers: Sequence[BiasedNode], shifts: Mapping[str, Float64], ctx: Context
) -> None:
    """Add to the biases of a model that has the layers' nodes."""
    nodes = {str(node.name): node for node in model.graph}
    names = Names(model)
    for layer in layers:
        shift = shifts[layer.name]
        if not shift.any():
            continue
        tail = nodes[str(layer.tail.name)]
        index = 2
        if tail.op_type == "Add":
            index = 0 if constant_of(tail.inputs[0]) is not None else 1
        value = input_at(tail, index)
        if value is None:
            tail.resize_inputs(3)
            tail.replace_input_with(2, _new_bias(model, tail, layer.pair, shift, ctx, names))
            continue
        node = value.producer()
        if node is not None and is_op(node, "DequantizeLinear"):
            _move_integers(node, shift)
            continue
        floats = constant_of(value)
        assert floats is not None
        moved = (floats + shift).astype(floats.dtype)
        name = names.value(f"{value.name}_corrected")
        tail.replace_input_with(index, add_initializer(model.graph, name, moved))
        if value.is_initializer() and not (value.uses() or value.is_graph_output() or value.is_graph_input()):
            del model.graph.initializers[str(value.name)]


def _move_integers(dequantize: ir.Node, shift: Float64) -> None:
    integers, scales = dequantize.inputs[0], constant_of(dequantize.inputs[1])
    assert integers is not None
    assert integers.const_value is not None
    assert scales is not None
    moved = integers.const_value.numpy() + np.rint(shift / scales.astype(np.float64))
    integers.const_value = ir.tensor(
        np.clip(moved, -_MAX_BIAS, _MAX_BIAS).astype(np.int32), name=integers.name
    )


def _new_bias(
    model: ir.Model, node: ir.Node, pair: QuantizedNode, shift: Float64, ctx: Context, names: Names
) -> ir.Value:
    """A bias for a node that has none, in the form the target wants."""
    source = node.inputs[0]
    assert source is not None
    base = f"{node.name}_bias"
    reader = source.producer()
    int8 = ctx.capabilities.int8
    scale = (
        constant_of(input_at(reader, 1)) if reader is not None and is_op(reader, "DequantizeLinear") else None
    )
    if scale is None or scale.size != 1 or int8 is None or int8.bias is not ElementType.INT32:
        dtype = np.float16 if source.dtype is ir.DataType.FLOAT16 else np.float32
        return add_initializer(model.graph, names.value(base), shift.astype(dtype))
    product = (pair.scale_column().reshape(-1) * np.float32(scale.reshape(()))).astype(np.float32)
    integers = np.clip(np.rint(shift / product.astype(np.float64)), -_MAX_BIAS, _MAX_BIAS).astype(np.int32)
    result = ir.Value(
        name=names.value(f"{base}_dequantized"),
        type=ir.TensorType(ir.DataType.FLOAT),
        shape=ir.Shape(shift.shape),
    )
    constants = [
        add_initializer(model.graph, names.value(f"{base}_{kind}"), array)
        for kind, array in (
            ("quantized", integers),
            ("scale", product),
            ("zero_point", np.zeros(product.shape, np.int32)),
        )
    ]
    dequantize = ir.node(
        "DequantizeLinear", constants, {"axis": 0}, outputs=[result], name=names.node(str(result.name))
    )
    model.graph.insert_before(node, dequantize)
    return result


def _tail(pair: QuantizedNode) -> ir.Node | str:
    """The node that adds the bias in the float model, or why there is none."""
    node = pair.view.node
    if node.op_type != "MatMul":
        value = input_at(pair.node, 2)
        reader = None if value is None else value.producer()
        if reader is not None and is_op(reader, "DequantizeLinear"):
            integers = reader.inputs[0]
            if (
                len(tuple(reader.outputs[0].uses())) != 1
                or integers is None
                or len(tuple(integers.uses())) != 1
            ):
                return "another node reads the same integer bias"
            if integers.const_value is None or integers.is_graph_input():
                return "its bias is computed"
        elif value is not None and constant_of(value) is None:
            return "its bias is computed"
        return node
    add = sole_consumer(node.outputs[0])
    if add is None or not is_op(add, "Add"):
        return "no bias is added to its product"
    constant = constant_of(_addend(add, node.outputs[0]))
    if constant is None or constant.size != pair.channels or constant.shape[-1:] != (pair.channels,):
        return "what is added to its product is not one constant per output channel"
    return add


def _addend(add: ir.Node, product: ir.Value) -> ir.Value | None:
    return next((value for value in add.inputs if value is not product), None)

"""Read and replace the weight and the bias of a weighted node in a float graph, in whatever form they are.

The bias of a MatMul is the constant of the Add that follows; Gemm scales both by alpha and beta. Tensors are shared
between clones of a model: they are replaced, never written to.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from greencc.core.data import Array
from greencc.core.graph import (
    Names,
    add_initializer,
    constant_of,
    constant_tensor,
    input_at,
    is_op,
    sole_consumer,
)
from greencc.passes._linear_view import LinearView, linear_view
from greencc.passes._quantize_insert import release

Float64 = NDArray[np.float64]
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)


@dataclass(frozen=True)
class Bias:
    """Where the bias of a node is.

    Attributes:
        node: The node itself, or the Add after a MatMul.
        index: Its input that is the bias; one past the inputs there are where a first one can be added.
    """

    node: ir.Node
    index: int

    def read(self, channels: int) -> Float64:
        """What is added to each output channel."""
        values = constant_of(input_at(self.node, self.index))
        if values is None:
            return np.zeros(channels)
        return np.broadcast_to(
            values.astype(np.float64).reshape(-1) * _factor(self.node, "beta"), (channels,)
        )

    def write(self, values: Float64, names: Names) -> None:
        """Replace it."""
        old = input_at(self.node, self.index)
        if is_op(self.node, "Gemm"):
            if old is None or not _factor(self.node, "beta"):
                self.node.attributes["beta"] = ir.AttrFloat32("beta", 1.0)
            values = values / _factor(self.node, "beta")
        known = constant_tensor(old)
        # An array of one per channel keeps its shape; a single number for all of them becomes one per channel.
        shape = (
            tuple(known.shape.numpy()) if known is not None and known.size == values.size else values.shape
        )
        dtype = _dtype(self.node.inputs[0] if known is None else old)
        _replace_input(self.node, self.index, values.reshape(shape), dtype, f"{self.node.name}_bias", names)


@dataclass(frozen=True)
class Weighted:
    """A weighted node whose weight can be replaced.

    Attributes:
        view: The node as a matrix.
        bias: Where its bias is; None where it has none and cannot get one.
    """

    view: LinearView
    bias: Bias | None

    @property
    def node(self) -> ir.Node:
        return self.view.node

    @property
    def channels(self) -> int:
        return self.view.groups * self.view.outputs

    def matrix(self) -> Float64:
        """The weight as (groups, outputs, inputs), Gemm's alpha included."""
        return weight_matrix(self.view)

    def replace(self, matrix: Float64, bias: Float64 | None, names: Names) -> None:
        """Put another weight and, unless None, another bias in place."""
        stored = self.view.stored(matrix / _factor(self.node, "alpha"))
        dtype = _dtype(self.node.inputs[1])
        _replace_input(self.node, 1, stored, dtype, f"{self.node.name}_weight", names)
        if bias is not None and self.bias is not None:
            self.bias.write(bias, names)


def weight_matrix(view: LinearView) -> Float64:
    """The weight of a node as (groups, outputs, inputs), Gemm's alpha included."""
    tensor = constant_tensor(view.node.inputs[1])
    assert tensor is not None
    matrix = view.matrix(tensor.numpy()).astype(np.float64) * _factor(view.node, "alpha")
    release(tensor)
    return matrix


def weighted(node: ir.Node) -> Weighted | str:
    """The node with its weight and bias, or why they cannot be replaced."""
    view = linear_view(node)
    if view is None:
        return "its weight is no constant matrix"
    value = node.inputs[1]
    assert value is not None
    tensor = constant_tensor(value)
    assert tensor is not None
    if tensor.dtype not in _FLOATS:
        return f"its weight is {tensor.dtype.name}"
    if value.is_graph_output():
        return "its weight is an output of the model"
    if len(tuple(value.uses())) != 1:
        return "another node reads the same weight"
    if not _factor(node, "alpha"):
        return "its alpha is 0"
    bias = _bias(node, view.groups * view.outputs)
    return bias if isinstance(bias, str) else Weighted(view, bias)


def _bias(node: ir.Node, channels: int) -> Bias | str | None:
    if node.op_type != "MatMul":
        value = input_at(node, 2)
        known = constant_tensor(value)
        if value is not None and (known is None or (known.size != 1 and known.size != channels)):
            return "its bias is computed" if known is None else "its bias is not one per output channel"
        if known is not None and known.size == channels != 1 and known.shape.numpy()[-1] != channels:
            return "its bias is not one per output channel"
        return Bias(node, 2)
    add = sole_consumer(node.outputs[0])
    if add is None or not is_op(add, "Add") or add.inputs[0] is add.inputs[1]:
        return None
    index = 1 if add.inputs[0] is node.outputs[0] else 0
    known = constant_tensor(add.inputs[index])
    if known is None or known.size != channels or tuple(known.shape.numpy())[-1:] != (channels,):
        return None
    return Bias(add, index)


def _factor(node: ir.Node, name: str) -> float:
    """Gemm's alpha or beta."""
    attribute = node.attributes.get(name) if is_op(node, "Gemm") else None
    return 1.0 if attribute is None else float(attribute.as_float())


def _dtype(value: ir.Value | None) -> ir.DataType:
    tensor = constant_tensor(value)
    known = tensor.dtype if tensor is not None else None if value is None else value.dtype
    return known if known in _FLOATS else ir.DataType.FLOAT


def _replace_input(
    node: ir.Node, index: int, values: Array, dtype: ir.DataType, name: str, names: Names
) -> None:
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    old = input_at(node, index)
    array = np.asarray(values).astype(dtype.numpy())
    if old is not None and old.is_initializer() and len(tuple(old.uses())) == 1 and not _exposed(old):
        # The name is kept: reports and later passes find it under it.
        old.const_value = ir.tensor(array, name=old.name)
        old.shape = ir.Shape(array.shape)
        return
    if index >= len(node.inputs):
        node.resize_inputs(index + 1)
    node.replace_input_with(index, add_initializer(graph, names.value(name), array))
    while old is not None and not old.uses() and not _exposed(old):
        producer = old.producer()
        if producer is None:
            graph.initializers.pop(str(old.name), None)
            break
        old = producer.inputs[0] if producer.inputs else None
        graph.remove(producer, safe=True)


def _exposed(value: ir.Value) -> bool:
    return value.is_graph_output() or value.is_graph_input()

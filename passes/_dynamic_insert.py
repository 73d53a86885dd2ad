"""What dynamic quantization adds to a graph: quantized activations, integer constants, the nodes around them.

`DynamicQuantizeLinear` takes the range of the tensor it is given, u8 with a zero point, so every reader of one
activation (queries, keys and values) can share it. Weights are symmetric: no zero point, and the integer product
needs no correction for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from greencc.core.data import Array
from greencc.core.graph import Names, add_initializer
from greencc.passes._quantize_insert import release
from greencc.passes._quantize_scales import quantize_weight, weight_scales

Quantized = tuple[ir.Value, ir.Value, ir.Value]
"""An activation at run time: u8 values, scale, zero point."""


class DynamicInserter:
    """Adds nodes and constants; one for a whole model."""

    def __init__(self, model: ir.Model, bits: int) -> None:
        self.bits = bits
        self._names = Names(model)
        self._activations: dict[tuple[ir.Graph | ir.Function | None, ir.Value], Quantized] = {}
        self._weights: dict[tuple[ir.Value, str], tuple[ir.Value, Array]] = {}

    def activation(self, node: ir.Node, value: ir.Value) -> Quantized:
        """The value quantized at run time, shared by all its readers in the graph of `node`."""
        key = (node.graph, value)
        if key not in self._activations:
            base = str(value.name)
            kinds = ((ir.DataType.UINT8, value.shape), (ir.DataType.FLOAT, ()), (ir.DataType.UINT8, ()))
            outputs = [
                ir.Value(
                    name=self._names.value(f"{base}_{part}"),
                    type=ir.TensorType(dtype),
                    shape=None if shape is None else ir.Shape(shape),
                )
                for part, (dtype, shape) in zip(("quantized", "scale", "zero_point"), kinds, strict=True)
            ]
            quantize = ir.node(
                "DynamicQuantizeLinear",
                [value],
                outputs=outputs,
                name=self._names.node(f"{base}_DynamicQuantizeLinear"),
            )
            _insert(node, quantize)
            self._activations[key] = (outputs[0], outputs[1], outputs[2])
        return self._activations[key]

    def weight(
        self, value: ir.Value, tensor: ir.TensorProtocol, layout: str, array: Array, axis: int | None
    ) -> tuple[ir.Value, Array]:
        """The integers and the scales of a finite weight, shared by the nodes that read it the same way.

        Args:
            value: The float weight.
            tensor: What it holds; released afterwards.
            layout: Names how `array` was made of the tensor.
            array: The float values, output channels on `axis`.
            axis: None for one scale per tensor.
        """
        key = (value, layout)
        if key not in self._weights:
            scales = weight_scales(array, axis, self.bits)
            assert scales is not None
            integers = quantize_weight(array, scales, axis, self.bits)
            release(tensor)
            self._weights[key] = (self.constant(value, f"{value.name}_quantized", integers), scales)
        return self._weights[key]

    def constant(self, near: ir.Value | ir.Node, name: str, array: Array) -> ir.Value:
        """A new constant in the graph that owns a value, or that a node is in."""
        graph = near.graph if isinstance(near, ir.Node) else _owner(near)
        assert isinstance(graph, ir.Graph)
        return add_initializer(graph, self._names.value(name), np.asarray(array))

    def op(
        self,
        before: ir.Node,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        dtype: ir.DataType,
        shape: ir.Shape | None,
        name: str,
        attributes: Mapping[str, ir.Attr | int | Sequence[int]] | None = None,
    ) -> ir.Value:
        """Put a node with one output before another one; returns the output."""
        output = ir.Value(
            name=self._names.value(f"{before.outputs[0].name}_{op_type}"),
            type=ir.TensorType(dtype),
            shape=None if shape is None else ir.Shape(shape),
        )
        fresh = self._names.node(name)
        _insert(before, ir.node(op_type, inputs, dict(attributes or {}), outputs=[output], name=fresh))
        return output

    def drop(self, value: ir.Value) -> None:
        """Remove a constant that nobody reads any more."""
        if value.uses() or value.is_graph_output():
            return
        producer = value.producer()
        if producer is not None and producer.graph is not None:
            inputs = [source for source in producer.inputs if source is not None]
            producer.graph.remove(producer, safe=True)
            for source in inputs:
                self.drop(source)
        elif value.is_initializer():
            graph = _owner(value)
            if isinstance(graph, ir.Graph):
                del graph.initializers[str(value.name)]


def is_finite(tensor: ir.TensorProtocol) -> bool:
    """Whether a weight holds neither NaN nor infinity."""
    finite = weight_scales(tensor.numpy(), None, 8) is not None
    release(tensor)
    return finite


def replace_output(node: ir.Node, result: ir.Value) -> None:
    """Let `result` take the place and the name of a node's only output, and remove the node."""
    graph = node.graph
    old = node.outputs[0]
    assert graph is not None
    name, kind, shape = old.name, old.type, old.shape
    old.replace_all_uses_with(result, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    result.name, result.type, result.shape = name, kind, shape


def _owner(value: ir.Value) -> ir.Graph | ir.Function | None:
    producer = value.producer()
    return value.graph if producer is None else producer.graph


def _insert(before: ir.Node, node: ir.Node) -> None:
    assert before.graph is not None
    before.graph.insert_before(before, node)

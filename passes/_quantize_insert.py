"""Write a placement into the graph: QuantizeLinear/DequantizeLinear pairs, integer weights and biases.

Nodes and values keep their names. Where a node read `X`, it now reads `dequantized_name("X")`; a graph
output keeps its name, and the value before its quantization becomes `X_float`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from greencc.core.capabilities import ElementType, Int8Support
from greencc.core.data import Array
from greencc.core.graph import drop_unused
from greencc.core.passes import Finding
from greencc.passes._quantize_outliers import outlier_finding
from greencc.passes._quantize_placement import Placement, Weighted, constant, data_inputs
from greencc.passes._quantize_scales import (
    ActivationScale,
    activation_scale,
    constant_range,
    fit_bias,
    largest_of_groups,
    over_groups,
    quantize_bias,
    quantize_weight,
    storable,
    weight_scales,
)


def dequantized_name(name: str) -> str:
    """Name of the value that stands for the float value `name` in a quantized graph."""
    return f"{name}_dequantized"


def insert(
    graph: ir.Graph, plan: Placement, scales: Mapping[ir.Value, ActivationScale], int8: Int8Support
) -> list[Finding]:
    """Rewrite the graph.

    Args:
        graph: The main graph the placement was made for.
        plan: What to quantize.
        scales: The scale of every value of the placement; equal objects are shared by name.
        int8: What the target's integer kernels want.

    Returns:
        Weights that an outlier leaves too few levels to.
    """
    return _Inserter(graph, plan, scales, int8).run()


class _Inserter:
    def __init__(
        self, graph: ir.Graph, plan: Placement, scales: Mapping[ir.Value, ActivationScale], int8: Int8Support
    ) -> None:
        self.graph = graph
        self.plan = plan
        self.scales = scales
        self.int8 = int8
        self.findings: list[Finding] = []
        self.taken = {str(node.name) for node in graph.all_nodes()}
        for inner in (graph, *graph.subgraphs()):
            # A name of a body must not hide a new value of the main graph from it.
            self.taken.update(str(value.name) for value in (*inner.inputs, *inner.initializers.values()))
            for node in inner:
                self.taken.update(str(value.name) for value in node.outputs)
        self.parameters: dict[tuple[int, bool], tuple[ir.Value, ir.Value]] = {}
        self.weights: dict[tuple[ir.Value, int | None, float, bytes], ir.Value] = {}
        self.weight_cache: dict[tuple[ir.Value, int | None], NDArray[np.float32]] = {}

    def run(self) -> list[Finding]:
        start = next(iter(self.graph), None)
        order = [node for node in self.graph if node in self.plan.weighted or node in self.plan.others]
        readers = self._readers(order)
        sources: dict[ir.Node, np.float32] = {
            node: self.scales[node.inputs[0]].scale  # type: ignore[index]
            for node in order
            if node in self.plan.weighted
        }
        for value, whole in self.plan.values.items():
            self._quantize_value(value, whole, readers.get(value, []), start)
        for node in order:
            if node in self.plan.weighted:
                self._quantize_weights(node, self.plan.weighted[node], sources[node])
            elif node not in self.plan.skips:
                self._quantize_constants(node)
        return self.findings

    def _readers(self, order: list[ir.Node]) -> dict[ir.Value, list[tuple[ir.Node, int]]]:
        """The integer nodes that read each value, before anything is rewritten."""
        readers: dict[ir.Value, list[tuple[ir.Node, int]]] = {}
        for node in order:
            for index in self.plan.reads(node):
                value = node.inputs[index]
                if value is not None and value in self.plan.values:
                    readers.setdefault(value, []).append((node, index))
        return readers

    def _quantize_value(
        self, value: ir.Value, whole: bool, readers: list[tuple[ir.Node, int]], start: ir.Node | None
    ) -> None:
        name = str(value.name)
        scale, zero_point = self._parameters(name, self.scales[value], value.dtype)
        is_output = whole and value.is_graph_output()
        restored = ir.Value(
            name=self._fresh(dequantized_name(name)), type=value.type, shape=value.shape, doc_string=None
        )
        if whole:
            value.replace_all_uses_with(restored, replace_graph_outputs=True)
        else:
            for node, index in readers:
                node.replace_input_with(index, restored)
        if is_output:
            value.name = self._fresh(f"{name}_float")
            restored.name = name
        quantize = ir.node(
            "QuantizeLinear",
            [value, scale, zero_point],
            outputs=[
                ir.Value(
                    name=self._fresh(f"{name}_quantized"),
                    type=ir.TensorType(_INTEGER[self.int8.activation]),
                    shape=value.shape,
                )
            ],
            name=self._fresh(f"{name}_QuantizeLinear"),
        )
        dequantize = ir.node(
            "DequantizeLinear",
            [quantize.outputs[0], scale, zero_point],
            outputs=[restored],
            name=self._fresh(f"{name}_DequantizeLinear"),
        )
        producer = value.producer()
        if producer is not None:
            self.graph.insert_after(producer, [quantize, dequantize])
        elif start is not None:
            self.graph.insert_before(start, [quantize, dequantize])

    def _parameters(
        self, name: str, scale: ActivationScale, dtype: ir.DataType | None
    ) -> tuple[ir.Value, ir.Value]:
        """The initializers of a scale; values that share a scale object share them."""
        key = (id(scale), dtype is ir.DataType.FLOAT16)
        if key not in self.parameters:
            self.parameters[key] = (
                self._initializer(f"{name}_scale", _of_type(np.asarray(scale.scale), dtype)),
                self._initializer(f"{name}_zero_point", np.asarray(scale.zero_point, scale.dtype)),
            )
        return self.parameters[key]

    def _quantize_weights(self, node: ir.Node, planned: Weighted, activation: np.float32) -> None:
        if planned.weight is None:
            return
        weight = node.inputs[planned.weight]
        assert weight is not None
        tensor = constant(weight)
        assert tensor is not None
        alpha = _take_factor(node, "alpha")
        scales = self._weight_scales(weight, tensor, planned.axis)
        bias: NDArray[np.float64] | None = None
        if planned.bias is not None:
            bias_value = node.inputs[planned.bias]
            bias_tensor = constant(bias_value)
            assert bias_value is not None
            assert bias_tensor is not None
            beta = _take_factor(node, "beta")
            bias = bias_tensor.numpy().astype(np.float64).reshape(-1) * beta
            if node.op_type == "Gemm":
                channels = tensor.shape[0 if _transposed(node) else 1]
                bias = np.broadcast_to(bias, (int(channels),))  # type: ignore[arg-type]
            if self.int8.bias is ElementType.INT32:
                step = np.float32(activation * np.float32(alpha))
                scales = fit_bias(scales, step, largest_of_groups(bias, planned.groups))
        node.replace_input_with(
            planned.weight, self._weight(node, weight, tensor, planned.axis, scales, alpha)
        )
        drop_unused(self.graph, weight)
        if bias is None or planned.bias is None:
            return
        old = node.inputs[planned.bias]
        assert old is not None
        if self.int8.bias is ElementType.INT32:
            node.replace_input_with(
                planned.bias,
                self._bias(
                    node,
                    bias,
                    activation,
                    over_groups((scales * np.float32(alpha)).astype(np.float32), planned.groups),
                ),
            )
        elif node.op_type == "Gemm":
            floats = self._initializer(f"{node.name}_bias", _of_type(bias, old.dtype))
            node.replace_input_with(planned.bias, floats)
        drop_unused(self.graph, old)

    def _weight_scales(
        self, weight: ir.Value, tensor: ir.TensorProtocol, axis: int | None
    ) -> NDArray[np.float32]:
        key = (weight, axis)
        if key not in self.weight_cache:
            found = weight_scales(tensor.numpy(), axis, self.int8.weight_bits)
            assert found is not None
            self.weight_cache[key] = storable(found, self.int8)
        return self.weight_cache[key]

    def _weight(
        self,
        node: ir.Node,
        weight: ir.Value,
        tensor: ir.TensorProtocol,
        axis: int | None,
        scales: NDArray[np.float32],
        alpha: float,
    ) -> ir.Value:
        """The dequantized weight; nodes that share a weight and its scales share the quantized one."""
        key = (weight, axis, alpha, scales.tobytes())
        if key not in self.weights:
            name = str(weight.name)
            effective = storable((scales * np.float32(alpha)).astype(np.float32), self.int8)
            # Rounding of the product to the type of the scales is part of the weights.
            divisor = scales if alpha == 1.0 else (effective / np.float32(alpha)).astype(np.float32)
            integers = quantize_weight(tensor.numpy(), divisor, axis, self.int8.weight_bits)
            found = outlier_finding(node, tensor.numpy(), integers, axis, self.int8.weight_bits)
            if found is not None:
                self.findings.append(found)
            self.weights[key] = self._dequantized_constant(
                node, name, integers, effective, axis, weight.shape
            )
            release(tensor)
        return self.weights[key]

    def _bias(
        self, node: ir.Node, bias: NDArray[np.float64], activation: np.float32, scales: NDArray[np.float32]
    ) -> ir.Value:
        integers, product = quantize_bias(bias, activation, scales)
        return self._dequantized_constant(
            node, f"{node.name}_bias", integers, product, 0 if product.ndim else None, ir.Shape(bias.shape)
        )

    def _dequantized_constant(
        self,
        node: ir.Node,
        name: str,
        integers: Array,
        scales: NDArray[np.float32],
        axis: int | None,
        shape: ir.Shape | None,
        zero_point: Array | None = None,
    ) -> ir.Value:
        """A DequantizeLinear of an integer initializer, placed before its first reader; floats of the node's type."""
        first = node.inputs[data_inputs(node)[0]]
        half = first is not None and first.dtype is ir.DataType.FLOAT16
        dtype = ir.DataType.FLOAT16 if half else ir.DataType.FLOAT
        if zero_point is None:
            zero_point = np.zeros(scales.shape, integers.dtype)
        restored = ir.Value(name=self._fresh(dequantized_name(name)), type=ir.TensorType(dtype), shape=shape)
        self.graph.insert_before(
            node,
            ir.node(
                "DequantizeLinear",
                [
                    self._initializer(f"{name}_quantized", integers),
                    self._initializer(f"{name}_scale", _of_type(scales, dtype)),
                    self._initializer(f"{name}_zero_point", zero_point),
                ],
                {} if axis is None else {"axis": axis},
                outputs=[restored],
                name=self._fresh(f"{restored.name}_DequantizeLinear"),
            ),
        )
        return restored

    def _quantize_constants(self, node: ir.Node) -> None:
        """Constant operands of arithmetic nodes take the activation type, Concat's with the scale of the result."""
        for index in data_inputs(node):
            value = node.inputs[index]
            tensor = constant(value)
            if value is None or tensor is None:
                continue
            scale = activation_scale(constant_range(tensor), self.int8)
            if node.op_type == "Concat" and node.outputs[0] in self.scales:
                # Its range is part of the result's.
                scale = self.scales[node.outputs[0]]
            restored = self._dequantized_constant(
                node,
                str(value.name),
                scale.quantize(tensor.numpy()),
                np.asarray(scale.scale),
                None,
                value.shape,
                np.asarray(scale.zero_point, scale.dtype),
            )
            node.replace_input_with(index, restored)
            drop_unused(self.graph, value)

    def _initializer(self, name: str, array: Array) -> ir.Value:
        name = self._fresh(name)
        tensor = ir.tensor(array, name=name)
        value = ir.Value(
            name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor
        )
        self.graph.register_initializer(value)
        return value

    def _fresh(self, name: str) -> str:
        base, number = name, 1
        while name in self.taken:
            name, number = f"{base}_{number}", number + 1
        self.taken.add(name)
        return name


_INTEGER = {ElementType.UINT8: ir.DataType.UINT8, ElementType.INT8: ir.DataType.INT8}


def _transposed(node: ir.Node) -> bool:
    attribute = node.attributes.get("transB")
    return attribute is not None and bool(attribute.as_int())


def _take_factor(node: ir.Node, name: str) -> float:
    """Remove Gemm's `alpha` or `beta` from the node, to be folded into its constants; return it."""
    if node.op_type != "Gemm":
        return 1.0
    attribute = node.attributes.pop(name, None)
    return 1.0 if attribute is None else attribute.as_float()


def release(tensor: ir.TensorProtocol) -> None:
    """Unmap a weight that has been read; it maps itself again when it is needed."""
    if isinstance(tensor, ir.ExternalTensor):
        # Somebody else may still look at its pages; then they stay.
        with contextlib.suppress(BufferError):
            tensor.release()


def _of_type(array: Array, dtype: ir.DataType | None) -> Array:
    return array.astype(np.float16 if dtype is ir.DataType.FLOAT16 else np.float32)

"""Weight-only INT8: large constants shrink fourfold, the arithmetic stays in float, no data is needed.

A product reads its weight through a DequantizeLinear. A Gather reads rows of the integer table and only those
rows are dequantized. Weights are symmetric with one scale per output channel (per column of a table), see
`_quantize_scales`. One tensor is read, rounded and released at a time, so the peak is the INT8 model plus the
largest tensor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from greencc.core.data import Array
from greencc.core.errors import UsageError, did_you_mean
from greencc.core.passes import Context, Finding, Outcome, Pass
from greencc.passes._quantize_insert import dequantized_name, release
from greencc.passes._quantize_scales import quantize_weight, weight_scales

_RULE = "quantize-weights"
_BITS = 8
# Operator -> index of the input that may be quantized.
_WEIGHT_INPUT = {"Conv": 1, "ConvTranspose": 1, "Gather": 0, "Gemm": 1, "MatMul": 1}


@dataclass(frozen=True)
class QuantizeWeights(Pass):
    """Store large float32 weights as INT8.

    Attributes:
        ops: Operators whose weights are quantized.
        min_elements: Smaller weights stay in float: they would save nothing.
        exclude: Names of nodes whose weights stay in float.
    """

    name: ClassVar[str] = "quantize-weights"
    summary: ClassVar[str] = "Store large weights as INT8 and compute in float; needs no calibration data"
    lossy: ClassVar[bool] = True

    ops: tuple[str, ...] = ("Gather", "Gemm", "MatMul")
    min_elements: int = 16384
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for op_type in self.ops:
            if op_type not in _WEIGHT_INPUT:
                raise UsageError(
                    f"{self.name}: ops has {op_type!r}, which has no weight to quantize",
                    hint=did_you_mean(op_type, _WEIGHT_INPUT),
                )

    def apply(self, model: ir.Model, ctx: Context) -> Outcome:
        """Quantize the large weights of the main graph in place."""
        outcome = Outcome()
        opset = model.opset_imports.get("", 1)
        if opset < 13:
            outcome.findings.append(
                Finding(
                    "refused",
                    f"opset {opset} has no per-channel DequantizeLinear; run upgrade-opset before {self.name}",
                    rule=_RULE,
                )
            )
            return outcome
        graph = model.graph
        order = {node: position for position, node in enumerate(graph)}
        for value in list(graph.initializers.values()):
            tensor = value.const_value
            if tensor is None or tensor.dtype is not ir.DataType.FLOAT or tensor.size < self.min_elements:
                continue
            uses = sorted(value.uses(), key=lambda use: (order.get(use.node, -1), use.idx))
            readers = [use.node for use in uses]
            if not readers or not any(node.op_type in self.ops for node in readers):
                continue
            axes = {_axis(use.node, use.idx, len(tensor.shape)) for use in uses}
            reason = self._refusal(value, readers, axes, order)
            if reason is None and not ctx.rewrites.allow(_RULE, str(readers[0].name)):
                continue
            if reason is None:
                reason = _quantize(graph, value, tensor, axes.pop(), readers)
            if reason is None:
                outcome.changed += 1
            else:
                outcome.findings.append(
                    Finding("left-in-float", f"weight {value.name!r}: {reason}", readers[0].name, _RULE)
                )
        return outcome

    def _refusal(
        self, value: ir.Value, readers: list[ir.Node], axes: set[int | None], order: dict[ir.Node, int]
    ) -> str | None:
        if value.is_graph_input() or value.is_graph_output():
            return "it is an input or output of the model"
        for node in readers:
            if node not in order:
                return f"{node.op_type} {node.name!r} reads it inside a sub-graph"
            if node.name in self.exclude:
                return f"{node.op_type} {node.name!r} is excluded by the options"
            if node.op_type not in self.ops or node.domain not in ("", "ai.onnx"):
                return f"{node.op_type} {node.name!r} reads it too, so the float copy would have to stay"
        if None in axes:
            return "a node does not read it as a weight with output channels"
        if len(axes) > 1:
            return "the nodes that read it have their output channels on different axes"
        return None


def _axis(node: ir.Node, index: int, rank: int) -> int | None:
    """Axis of the scales in the weight, or None where it cannot be quantized for this node."""
    if _WEIGHT_INPUT.get(node.op_type) != index or rank < 2:
        return None
    if node.op_type == "Gather":
        attribute = node.attributes.get("axis")
        return rank - 1 if attribute is None or attribute.as_int() == 0 else None
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        return 1
    if node.op_type == "Gemm":
        attribute = node.attributes.get("transB")
        return 0 if attribute is not None and attribute.as_int() else 1
    return rank - 1


def _quantize(
    graph: ir.Graph, value: ir.Value, tensor: ir.TensorProtocol, axis: int | None, readers: list[ir.Node]
) -> str | None:
    """Replace one weight; return why it was not possible."""
    scales = weight_scales(tensor.numpy(), axis, _BITS)
    if scales is None:
        return "it is not finite"
    integers = quantize_weight(tensor.numpy(), scales, axis, _BITS)
    release(tensor)
    name = str(value.name)
    del graph.initializers[name]
    parameters = [
        _initializer(graph, f"{name}_quantized", integers),
        _initializer(graph, f"{name}_scale", scales),
        _initializer(graph, f"{name}_zero_point", np.zeros(scales.shape, np.int8)),
    ]
    restored: ir.Value | None = None
    for node in dict.fromkeys(readers):
        if node.op_type == "Gather":
            _gather_integers(graph, node, parameters)
            continue
        if restored is None:
            restored = ir.Value(
                name=dequantized_name(name), type=ir.TensorType(ir.DataType.FLOAT), shape=value.shape
            )
            graph.insert_before(node, _dequantize(parameters, restored, axis))
        node.replace_input_with(_WEIGHT_INPUT[node.op_type], restored)
    return None


def _gather_integers(graph: ir.Graph, node: ir.Node, parameters: list[ir.Value]) -> None:
    """Gather rows of the integer table, then dequantize them; the float value keeps its name."""
    rows = node.outputs[0]
    restored = ir.Value(name=None, type=ir.TensorType(ir.DataType.FLOAT), shape=rows.shape)
    rows.replace_all_uses_with(restored, replace_graph_outputs=True)
    name = str(rows.name)
    rows.name = f"{name}_quantized"
    rows.type = ir.TensorType(ir.DataType.INT8)
    restored.name = name
    node.replace_input_with(0, parameters[0])
    graph.insert_after(node, _dequantize([rows, *parameters[1:]], restored, -1))


def _dequantize(inputs: list[ir.Value], restored: ir.Value, axis: int | None) -> ir.Node:
    return ir.node(
        "DequantizeLinear",
        inputs,
        {} if axis is None else {"axis": axis},
        outputs=[restored],
        name=f"{restored.name}_DequantizeLinear",
    )


def _initializer(graph: ir.Graph, name: str, array: Array | NDArray[np.float32]) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    value = ir.Value(
        name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor
    )
    graph.register_initializer(value)
    return value

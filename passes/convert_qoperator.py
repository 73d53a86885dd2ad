"""QDQ to QOperator: integer operators instead of float ones between DequantizeLinear and QuantizeLinear.

    DQ(x), DQ(w), DQ(b) -> Conv -> Relu -> Q    becomes    QLinearConv(x, w, b)

with the same scales and zero points, so that the numbers are those of a runtime that fuses the pairs itself (ONNX
Runtime's `qdq_selector_action_transformer.cc` does the same replacement when it loads a model). It serves runtimes
and tools that do not fuse. Two families of integer operators exist: QLinearConv and QLinearMatMul of ONNX (opset 10),
and ONNX Runtime's QGemm, QLinearAdd, ... of domain com.microsoft (`docs/ContribOperators.md`).

1. A node qualifies when its activations come from DequantizeLinear with one constant scale, its weight from one of
   constants per tensor or per output channel, its bias from one whose scale is the product of the two.
2. A Relu or Clip between it and QuantizeLinear goes when the integers can express nothing outside its bounds.
3. Movements (Reshape, MaxPool, ...) run on the integers when both sides have one scale and zero point.
4. What has no integer form keeps its pairs, with a finding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from greencc.core.capabilities import Capabilities
from greencc.core.graph import (
    ONNX_DOMAINS,
    Names,
    attribute_int,
    input_at,
    is_op,
)
from greencc.core.passes import Context, Finding, Outcome, Pass
from greencc.passes._qdq import Integers, Pairs, array_of, reads_integers
from greencc.passes._quantize_nodes import INTEGERS_SINCE, MOVEMENT, pads_with_zero, text

_RULE = "qoperator"
_CONTRIB = "com.microsoft"
# Operators of one activation whose integer form is called QLinear<name>.
_UNARY = ("AveragePool", "GlobalAveragePool", "LeakyRelu", "Sigmoid", "Softmax")
_BINARY = ("Add", "Mul")
_PRODUCTS = ("Conv", "Gemm", "MatMul")
# Relative: scales are products of float32 numbers.
_SAME_SCALE = 1e-6


@dataclass(frozen=True)
class ConvertQOperator(Pass):
    """Replace float operators between quantize/dequantize pairs by integer operators.

    Outputs may differ by one quantization step where the integer kernels round differently.
    """

    name: ClassVar[str] = "convert-qoperator"
    summary: ClassVar[str] = (
        "Replace quantize/dequantize pairs by integer operators (QLinearConv, QGemm, ...)"
    )
    lossy: ClassVar[bool] = True

    def rehearsal(self, capabilities: Capabilities) -> ConvertQOperator:
        """The pass itself, which needs no data."""
        return self

    def apply(self, model: ir.Model, ctx: Context) -> Outcome:
        """Convert `model` in place; nodes without an integer form keep their pairs."""
        converter = _Converter(model)
        outcome = Outcome()
        read = {name for name, value in model.graph.initializers.items() if _is_read(value)}
        for node in list(model.graph):
            # Integer movements may have been the only readers of what a removed pair gave.
            if node.graph is not model.graph or not reads_integers(node):
                continue
            plan = converter.plan(node)
            if isinstance(plan, str):
                message = f"{node.op_type} {node.name!r}: {plan}"
                outcome.findings.append(Finding("left-in-float", message, node.name, _RULE))
            elif ctx.rewrites.allow(_RULE, str(node.name)):
                converter.apply(node, plan)
                outcome.changed += 1
        for name in read:
            if not _is_read(model.graph.initializers[name]):
                del model.graph.initializers[name]
        return outcome


@dataclass(frozen=True)
class _Plan:
    """How to replace one node: operator, inputs, attributes; the nodes up to QuantizeLinear that go with it."""

    op_type: str
    domain: str
    inputs: tuple[ir.Value | None, ...]
    attributes: dict[str, ir.Attr]
    outputs: tuple[ir.Value | None, ...]
    dropped: tuple[ir.Node, ...]


class _Converter:
    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self.graph = model.graph
        self.opset = model.opset_imports.get("", 1)
        self.names = Names(model)
        self.pairs = Pairs(model.graph, self.names)

    def plan(self, node: ir.Node) -> _Plan | str:
        """How the node runs on integers, or why it does not."""
        if node.domain not in ONNX_DOMAINS:
            return f"operators of domain {node.domain!r} have no integer form"
        if node.op_type in _PRODUCTS:
            return self._product(node)
        if node.op_type in _UNARY:
            return self._unary(node)
        if node.op_type in _BINARY or node.op_type in ("Concat", "Where"):
            return self._several(node)
        if node.op_type in MOVEMENT:
            return self._movement(node)
        return "it has no integer form"

    def apply(self, node: ir.Node, plan: _Plan) -> None:
        """Put the integer node where the float one was and drop what nobody reads any more."""
        sources = list(dict.fromkeys(value for value in node.inputs if value is not None))
        results = []
        for old in plan.outputs:
            if old is None:
                results.append(ir.Value(name=""))
                continue
            results.append(ir.Value(name=old.name, type=old.type, shape=old.shape))
            old.name = self.names.value(f"{old.name}_replaced")
        replacement = ir.Node(
            plan.domain,
            plan.op_type,
            plan.inputs,
            list(plan.attributes.values()),
            outputs=results,
            name=node.name,
        )
        self.graph.insert_before(node, replacement)
        for old, new in zip(plan.outputs, results, strict=True):
            if old is not None:
                old.replace_all_uses_with(new, replace_graph_outputs=True)
        for dead in (*reversed(plan.dropped), node):
            self.graph.remove(dead, safe=True)
        for value in sources:
            producer = value.producer()
            if producer is not None and is_op(producer, "DequantizeLinear") and not _is_read(value):
                self.graph.remove(producer, safe=True)
        if plan.domain == _CONTRIB:
            self.model.opset_imports.setdefault(_CONTRIB, 1)

    def _product(self, node: ir.Node) -> _Plan | str:
        first, second = self.pairs.source(input_at(node, 0)), self.pairs.source(input_at(node, 1))
        if first is None or first.axis is not None:
            return "its activations are not quantized with one constant scale"
        if second is None:
            return "its weight is not quantized with constant scales"
        if second.axis is not None and second.axis != _channel_axis(node, second.value):
            return f"the scales of its weight lie along axis {second.axis}"
        if node.op_type == "Gemm" and (
            _float(node, "beta") != 1.0 or _float(node, "alpha") != 1.0 or attribute_int(node, "transA", 0)
        ):
            return "QGemm has no alpha, beta or transposed activations with this meaning"
        bias = self._bias(node, first, second)
        if isinstance(bias, str):
            return bias
        end = self.pairs.end(node.outputs[0])
        if node.op_type == "Conv":
            if end is None:
                return "its output is not quantized"
            result, dropped = end
            inputs = [
                *first.triple,
                *second.triple,
                result.scale,
                result.zero_point,
                *([bias] if bias else []),
            ]
            return _Plan("QLinearConv", "", tuple(inputs), dict(node.attributes), (result.value,), dropped)
        if node.op_type == "Gemm":
            attributes = {name: value for name, value in node.attributes.items() if name == "transB"}
            inputs = [*first.triple, *second.triple, bias]
            if end is None:
                return _Plan("QGemm", _CONTRIB, tuple(inputs), attributes, (node.outputs[0],), ())
            result, dropped = end
            inputs += [result.scale, result.zero_point]
            return _Plan("QGemm", _CONTRIB, tuple(inputs), attributes, (result.value,), dropped)
        if end is None:
            inputs = [
                first.value,
                second.value,
                first.scale,
                second.scale,
                first.zero_point,
                second.zero_point,
            ]
            return _Plan("MatMulIntegerToFloat", _CONTRIB, tuple(inputs), {}, (node.outputs[0],), ())
        result, dropped = end
        inputs = [*first.triple, *second.triple, result.scale, result.zero_point]
        return _Plan("QLinearMatMul", "", tuple(inputs), {}, (result.value,), dropped)

    def _bias(self, node: ir.Node, first: Integers, second: Integers) -> ir.Value | str | None:
        """The INT32 bias; None without one; or why it cannot be used."""
        value = input_at(node, 2) if node.op_type != "MatMul" else None
        if value is None:
            return None
        source = self.pairs.source(value)
        if source is None or source.value.dtype is not ir.DataType.INT32:
            return "its bias is not quantized to INT32"
        product = array_of(first.scale) * array_of(second.scale)
        if not np.allclose(array_of(source.scale), product, rtol=_SAME_SCALE, atol=0):
            return "the scale of its bias is not the product of the other two"
        if array_of(source.zero_point).any():
            return "the zero point of its bias is not 0"
        if node.op_type == "Conv" and source.value.shape is not None and source.value.shape.rank() != 1:
            return "its bias is not one value per output channel"
        return source.value

    def _unary(self, node: ir.Node) -> _Plan | str:
        source, end = self.pairs.source(input_at(node, 0)), self.pairs.end(node.outputs[0])
        if source is None or source.axis is not None:
            return "its input is not quantized with one constant scale"
        if end is None:
            return "its output is not quantized"
        attributes = dict(node.attributes)
        if node.op_type == "AveragePool" and set(attributes.pop("dilations", _ONES).as_ints()) > {1}:
            return "QLinearAveragePool has no dilations"
        if node.op_type == "Softmax":
            attributes["opset"] = ir.AttrInt64("opset", self.opset)
            attributes.setdefault("axis", ir.AttrInt64("axis", -1 if self.opset >= 13 else 1))
        result, dropped = end
        inputs = [*source.triple, result.scale, result.zero_point]
        return _Plan(f"QLinear{node.op_type}", _CONTRIB, tuple(inputs), attributes, (result.value,), dropped)

    def _several(self, node: ir.Node) -> _Plan | str:
        start = 1 if node.op_type == "Where" else 0
        sources = [self.pairs.source(value) for value in node.inputs[start:]]
        known = [source for source in sources if source is not None and source.axis is None]
        end = self.pairs.end(node.outputs[0])
        if len(known) < len(sources):
            return "not all its operands are quantized with one constant scale"
        if end is None:
            return "its output is not quantized"
        result, dropped = end
        triples = [value for source in known for value in source.triple]
        output = [result.scale, result.zero_point]
        inputs = (
            [*output, *triples] if node.op_type == "Concat" else [*node.inputs[:start], *triples, *output]
        )
        return _Plan(
            f"QLinear{node.op_type}", _CONTRIB, tuple(inputs), dict(node.attributes), (result.value,), dropped
        )

    def _movement(self, node: ir.Node) -> _Plan | str:
        if self.opset < INTEGERS_SINCE.get(node.op_type, 0):
            return f"{node.op_type} takes no integers at opset {self.opset}"
        if node.op_type == "SpaceToDepth":
            return "it has no integer form"
        if node.op_type == "Resize" and text(node, "mode", "nearest") != "nearest":
            return "only nearest Resize runs on integers"
        source = self.pairs.source(input_at(node, 0))
        if source is None or source.axis is not None:
            return "its input is not quantized with one constant scale"
        inputs = [source.value, *node.inputs[1:]]
        if node.op_type == "Pad" and text(node, "mode", "constant") == "constant":
            if not pads_with_zero(node) or len(node.inputs) < 2:
                return "it pads with something else than 0"
            inputs = [source.value, node.inputs[1], source.zero_point, *node.inputs[3:]]
        outputs: list[ir.Value | None] = []
        dropped: list[ir.Node] = []
        for value in node.outputs:
            if not _is_read(value):
                outputs.append(None)
                continue
            end = self.pairs.end(value)
            if end is None or len(end[1]) > 1:
                return "its output is not quantized"
            if not source.same_grid(end[0]):
                return "its input and output have different scales"
            outputs.append(end[0].value)
            dropped += end[1]
        return _Plan(node.op_type, "", tuple(inputs), dict(node.attributes), tuple(outputs), tuple(dropped))


def _channel_axis(node: ir.Node, weight: ir.Value) -> int | None:
    """The axis of the output channels, along which a weight may have scales."""
    if node.op_type == "Conv":
        return 0
    if weight.shape is None or weight.shape.rank() != 2:
        return None
    return 0 if node.op_type == "Gemm" and attribute_int(node, "transB", 0) else 1


def _float(node: ir.Node, name: str) -> float:
    attribute = node.attributes.get(name)
    return 1.0 if attribute is None else attribute.as_float()


def _is_read(value: ir.Value) -> bool:
    return bool(value.uses()) or value.is_graph_output()


_ONES = ir.AttrInt64s("dilations", [1])

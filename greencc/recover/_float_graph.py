"""The float graph behind a Q/DQ graph: the same nodes under the same names, without the rounding."""

from __future__ import annotations

import onnx_ir as ir

from greencc.core.errors import InputError
from greencc.core.graph import Names, add_initializer, constant_of, is_op
from greencc.core.model import infer_shapes
from greencc.torch_graph.quantized import quantizer_of

# Integer arithmetic that has no float form to train in.
_INTEGER_OPS = (
    "QLinearConv",
    "QLinearMatMul",
    "ConvInteger",
    "MatMulInteger",
    "DynamicQuantizeLinear",
    "MatMulNBits",
    "GatherBlockQuantized",
    "DynamicQuantizeLSTM",
)


def is_quantized(model: ir.Model) -> bool:
    """Whether the graph has Q/DQ nodes."""
    return any(is_op(node, "QuantizeLinear", "DequantizeLinear") for node in model.graph)


def refuse_integer_graph(model: ir.Model, where: str) -> None:
    """Refuse graphs that compute in integers.

    Raises:
        InputError: It has such an operator.
    """
    for node in model.graph:
        if node.op_type in _INTEGER_OPS or node.op_type.startswith("QLinear"):
            raise InputError(
                f"{where} computes in integers ({node.op_type} {node.name!r}), which cannot be trained",
                hint="compile with --precision fp32, or int8 with --format qdq, and recover that bundle",
            )


def float_graph(model: ir.Model) -> ir.Model:
    """A clone in which quantized constants are floats and nothing else is rounded."""
    clone = model.clone()
    names = Names(clone)
    for node in list(clone.graph):
        if not is_op(node, "QuantizeLinear", "DequantizeLinear"):
            continue
        source, output = node.inputs[0], node.outputs[0]
        assert source is not None
        quantizer = quantizer_of(node) if node.op_type == "DequantizeLinear" else None
        if quantizer is not None:
            integers = constant_of(source)
            assert integers is not None
            source = add_initializer(
                clone.graph, names.value(f"{source.name}_float"), quantizer.dequantize(integers)
            )
        if output.is_graph_output():
            _replace_by_identity(clone.graph, node, source)
            continue
        ir.convenience.replace_all_uses_with(output, source)
        clone.graph.remove(node, safe=True)
    _drop_unused(clone.graph)
    infer_shapes(clone)
    return clone


def _replace_by_identity(graph: ir.Graph, node: ir.Node, source: ir.Value) -> None:
    """Keep the name of a graph output."""
    old = node.outputs[0]
    identity = ir.Node("", "Identity", [source], num_outputs=1, name=node.name)
    graph.insert_before(node, identity)
    new = identity.outputs[0]
    new.type, new.shape = old.type, old.shape
    position = next(index for index, value in enumerate(graph.outputs) if value is old)
    ir.convenience.replace_all_uses_with(old, new)
    graph.outputs[position] = new
    graph.remove(node, safe=True)
    new.name = old.name


def _drop_unused(graph: ir.Graph) -> None:
    """Remove the initializers that only Q/DQ nodes read."""
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
            del graph.initializers[name]

"""Constants computed once, at emission: what decompositions and opset converters leave behind.

Pairs stay, also of constants: TensorRT takes a weight's integers from them. Shape computations of values of known shape
stay as well, which TensorRT folds itself.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from greencc.core.data import Array
from greencc.core.graph import (
    ONNX_DOMAINS,
    Names,
    add_initializer,
    constant_tensor,
    drop_unused,
    is_op,
    opset_of,
    subgraphs_of,
)
from greencc.core.serialization import to_proto

_KEPT = frozenset(
    {
        "Bernoulli",
        "DequantizeLinear",
        "Multinomial",
        "QuantizeLinear",
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
    }
)
# A result may be this many times what it is made of, as floats of bytes are; what is only repeated stays an Expand.
_GROWTH = 8
_SMALL = 1 << 16


def fold_constants(model: ir.Model) -> None:
    """Let initializers take the place of nodes whose inputs are all constant, in the main graph, in place.

    Args:
        model: With shapes and types inferred; without functions.
    """
    names = Names(model)
    graph, opset = model.graph, opset_of(model)
    for node in tuple(graph):
        if any(value.is_graph_output() for value in node.outputs):
            continue
        if is_op(node, "Constant"):
            tensor = constant_tensor(node.outputs[0])
            if tensor is not None and tensor.dtype is not ir.DataType.STRING:
                _replace(graph, node, [tensor], names)
        elif _folds(node):
            _replace(graph, node, [ir.tensor(array) for array in _computed(node, opset)], names)


def _folds(node: ir.Node) -> bool:
    if node.domain not in ONNX_DOMAINS or node.op_type in _KEPT or subgraphs_of(node):
        return False
    tensors = [constant_tensor(value) for value in node.inputs if value is not None]
    if not tensors or any(tensor is None for tensor in tensors):
        return False
    # What has no NumPy type of its own (INT4, BF16) is computed by nobody here, but converted.
    if not is_op(node, "Cast") and any(not _is_plain(tensor) for tensor in tensors if tensor is not None):
        return False
    read = sum(tensor.nbytes for tensor in tensors if tensor is not None)
    written = 0
    for value in node.outputs:
        if not value.name:
            continue
        if value.shape is None or value.dtype is None or not value.shape.is_static():
            return False
        written += math.ceil(math.prod(int(dim) for dim in value.shape.numpy()) * value.dtype.itemsize)
    return written <= max(_GROWTH * read, _SMALL)


def _is_plain(tensor: ir.TensorProtocol) -> bool:
    return tensor.dtype.numpy().kind in "biuf"


def _computed(node: ir.Node, opset: int) -> list[Array]:
    """The results of a node on its own."""
    first = constant_tensor(node.inputs[0])
    if is_op(node, "Cast") and first is not None and node.outputs[0].dtype is not None:
        kind = node.outputs[0].dtype
        if kind is not ir.DataType.STRING and not (_is_plain(first) and kind.numpy().kind in "biuf"):
            return [first.numpy().astype(kind.numpy())]
    inputs = [
        ir.Value(name=f"i{index}") if value is not None else None for index, value in enumerate(node.inputs)
    ]
    outputs = [ir.Value(name=f"o{index}" if value.name else "") for index, value in enumerate(node.outputs)]
    feeds = {}
    for value, old in zip(inputs, node.inputs, strict=True):
        tensor = constant_tensor(old)
        if value is not None and tensor is not None:
            value.type, value.shape = ir.TensorType(tensor.dtype), ir.Shape(tensor.shape.numpy())
            feeds[str(value.name)] = tensor.numpy()
    for value, old in zip(outputs, node.outputs, strict=True):
        value.type, value.shape = old.type, old.shape
    alone = ir.Node("", node.op_type, inputs, tuple(node.attributes.values()), outputs=outputs)
    wanted = [value for value in outputs if value.name]
    graph = ir.Graph(
        [value for value in inputs if value is not None],
        wanted,
        nodes=[alone],
        opset_imports={"": opset},
        name="g",
    )
    found = ReferenceEvaluator(to_proto(ir.Model(graph, ir_version=8))).run(None, feeds)
    return [np.asarray(array) for array in found]


def _replace(graph: ir.Graph, node: ir.Node, tensors: list[ir.TensorProtocol], names: Names) -> None:
    results = [value for value in node.outputs if value.name]
    sources = [value for value in node.inputs if value is not None]
    for value, tensor in zip(results, tensors, strict=True):
        if value.uses():
            constant = add_initializer(graph, names.value(f"{value.name}_constant"), tensor)
            value.replace_all_uses_with(constant)
    graph.remove(node, safe=True)
    for value in sources:
        drop_unused(graph, value)

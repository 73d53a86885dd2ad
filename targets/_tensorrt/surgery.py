"""One round trip through onnx-graphsurgeon, the tool for replacing nodes by others.

What it loses is put back: it never sees the weights (models above the 2 GB of protobuf pass, and BF16 or FP8
constants, whose types it mistakes for integers, are not touched), and metadata of the model and of nodes that are still
there is restored by name.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import onnx
import onnx_ir as ir

from greencc.core.graph import ensure_names, graphs_of
from greencc.core.serialization import placeholder, replaced_weights, to_proto

_LARGE = 1024
"""Bytes from which on an initializer is left out; smaller ones are the axes and shapes that rules read."""
_READABLE = frozenset(
    {
        ir.DataType.BOOL,
        ir.DataType.DOUBLE,
        ir.DataType.FLOAT,
        ir.DataType.FLOAT16,
        ir.DataType.INT8,
        ir.DataType.INT32,
        ir.DataType.INT64,
        ir.DataType.UINT8,
    }
)


def operate(model: ir.Model, edit: Callable[[Any], None]) -> None:
    """Edit a model as a graph of onnx-graphsurgeon, in place.

    Args:
        model: Without functions. Initializers of more than 1 KiB are graph inputs to `edit`.
        edit: Changes the `onnx_graphsurgeon.Graph` it is given. Dead nodes are dropped and nodes sorted afterwards.
    """
    import onnx_graphsurgeon as gs

    ensure_names(model)
    proto, weights = _without_weights(model)
    inputs = [value.name for value in model.graph.inputs]
    with _quiet():
        graph = gs.import_onnx(proto)
        edit(graph)
        graph.cleanup().toposort()
        edited = ir.from_proto(gs.export_onnx(graph, do_type_check=False))
    _put_back(edited, weights, {str(name) for name in inputs})
    _keep_metadata(model, edited)
    model.graph = edited.graph


def _without_weights(model: ir.Model) -> tuple[onnx.ModelProto, dict[str, ir.TensorProtocol]]:
    """The model with weights as graph inputs, and the weights by name."""
    main = model.graph.initializers
    weights = {
        str(name): value.const_value
        for name, value in main.items()
        if value.const_value is not None
        and value.const_value.dtype is not ir.DataType.STRING
        and (value.const_value.nbytes > _LARGE or value.const_value.dtype not in _READABLE)
    }

    def place(value: ir.Value, tensor: ir.TensorProtocol) -> ir.TensorProtocol | None:
        if value.name in weights and value.graph is model.graph:
            return placeholder(tensor, str(value.name), "", 0)
        return None

    with replaced_weights(model, place):
        proto = to_proto(model)
    kept = [entry for entry in proto.graph.initializer if entry.name not in weights]
    for entry in proto.graph.initializer:
        if entry.name in weights:
            proto.graph.input.append(
                onnx.helper.make_tensor_value_info(entry.name, entry.data_type, entry.dims)
            )
    copies = [onnx.TensorProto.FromString(entry.SerializeToString()) for entry in kept]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(copies)
    return proto, weights


def _put_back(model: ir.Model, weights: dict[str, ir.TensorProtocol], inputs: set[str]) -> None:
    graph = model.graph
    for value in [value for value in graph.inputs if str(value.name) not in inputs]:
        graph.inputs.remove(value)
        if value.uses() or value.is_graph_output():
            tensor = weights[str(value.name)]
            value.const_value, value.type = tensor, ir.TensorType(tensor.dtype)
            value.shape = ir.Shape(tensor.shape.numpy())
            graph.register_initializer(value)


def _keep_metadata(before: ir.Model, after: ir.Model) -> None:
    """What onnx-graphsurgeon drops; the model object itself is kept by the caller."""
    after.graph.name = before.graph.name
    after.graph.doc_string = before.graph.doc_string
    after.graph.metadata_props.update(before.graph.metadata_props)
    known = {node.name: node for graph in graphs_of(before) for node in graph}
    for graph in graphs_of(after):
        for node in graph:
            old = known.get(node.name)
            if old is not None:
                node.metadata_props.update(old.metadata_props)
                node.doc_string = old.doc_string


@contextmanager
def _quiet() -> Iterator[None]:
    """onnx-graphsurgeon writes to standard output what it thinks of types; nobody can act on that."""
    from onnx_graphsurgeon.logger import G_LOGGER

    severity = G_LOGGER.severity
    G_LOGGER.severity = G_LOGGER.ERROR
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        G_LOGGER.severity = severity

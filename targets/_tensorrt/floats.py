"""Other float types become float32: float64, which TensorRT has not, and halves where builder flags decide on them.

Weak typing takes precision from the builder's flags and chooses per layer. An FP16 graph would say the same twice, with
casts that become layers of their own; TensorRT before 8.4 has no FP16 constants, and before 10 reads every scale of a
pair as float32. So a half form is written as float32 there, with halved weights exactly as they are, and `flags` asks
for FP16. What keeps its type is what callers see: inputs and outputs, behind casts.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from greencc.core.graph import Names, graphs_of, is_op

_FLOAT = ir.DataType.FLOAT
_TYPE_ATTRIBUTES = ("to", "dtype", "stash_type", "softmax_precision", "output_dtype")


def to_float32(model: ir.Model, kinds: Collection[ir.DataType]) -> bool:
    """Let float32 take the place of other float types, in place.

    Args:
        model: With types inferred; without functions.
        kinds: The types that go.

    Returns:
        Whether there were any.
    """
    if not any(_has(graph, kinds) for graph in graphs_of(model)):
        return False
    names = Names(model)
    outputs = [
        (index, value, value.dtype) for index, value in enumerate(model.graph.outputs) if value.dtype in kinds
    ]
    inputs = [value for value in model.graph.inputs if value.dtype in kinds]
    for graph in graphs_of(model):
        assert isinstance(graph, ir.Graph)
        _retype(graph, kinds, kept=set(inputs))
    for value in inputs:
        _cast_input(model.graph, value, names)
    for index, value, kind in outputs:
        assert kind is not None
        _cast_output(model.graph, index, value, kind, names)
    for graph in graphs_of(model):
        _drop_casts(graph)
    return True


def _has(graph: ir.Graph | ir.Function, kinds: Collection[ir.DataType]) -> bool:
    initializers = graph.initializers.values() if isinstance(graph, ir.Graph) else ()
    values = [*graph.inputs, *initializers, *(value for node in graph for value in node.outputs)]
    return any(value.dtype in kinds for value in values)


def _retype(graph: ir.Graph, kinds: Collection[ir.DataType], kept: set[ir.Value]) -> None:
    for value in graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and tensor.dtype in kinds:
            value.const_value = ir.tensor(tensor.numpy().astype(np.float32), name=value.name)
            value.type = ir.TensorType(_FLOAT)
    for value in graph.inputs:
        if value.dtype in kinds and value not in kept:
            value.type = ir.TensorType(_FLOAT)
    for node in graph:
        for attribute in tuple(node.attributes.values()):
            if attribute.is_ref():
                continue
            if attribute.name in _TYPE_ATTRIBUTES and attribute.type is ir.AttributeType.INT:
                if attribute.as_int() in {kind.value for kind in kinds}:
                    node.attributes[attribute.name] = ir.AttrInt64(attribute.name, _FLOAT.value)
            elif attribute.type is ir.AttributeType.TENSOR and attribute.as_tensor().dtype in kinds:
                floats = attribute.as_tensor().numpy().astype(np.float32)
                node.attributes[attribute.name] = ir.AttrTensor(attribute.name, ir.tensor(floats))
        for value in node.outputs:
            if value.dtype in kinds:
                value.type = ir.TensorType(_FLOAT)
                if value.const_value is not None:
                    value.const_value = None


def _cast_input(graph: ir.Graph, value: ir.Value, names: Names) -> None:
    if not value.uses():
        return
    cast = ir.node(
        "Cast",
        [value],
        {"to": _FLOAT.value},
        outputs=[
            ir.Value(name=names.value(f"{value.name}_float32"), type=ir.TensorType(_FLOAT), shape=value.shape)
        ],
        name=names.node(f"{value.name}_Cast"),
    )
    value.replace_all_uses_with(cast.outputs[0])
    cast.replace_input_with(0, value)
    graph.insert_before(graph[0], cast)


def _cast_output(graph: ir.Graph, index: int, value: ir.Value, kind: ir.DataType, names: Names) -> None:
    name = str(value.name)
    if value.is_graph_input():
        return
    result = ir.Value(name=name, type=ir.TensorType(kind), shape=value.shape)
    value.name = names.value(f"{name}_float32")
    if value.is_initializer():
        del graph.initializers[name]
        graph.register_initializer(value)
    cast = ir.node("Cast", [value], {"to": kind.value}, outputs=[result], name=names.node(f"{name}_Cast"))
    graph.append(cast)
    graph.outputs[index] = result


def _drop_casts(graph: ir.Graph | ir.Function) -> None:
    """Remove casts from a type to itself."""
    for node in tuple(graph):
        source = node.inputs[0] if node.inputs else None
        if not is_op(node, "Cast") or source is None or source.dtype is None:
            continue
        result = node.outputs[0]
        if source.dtype.value != node.attributes["to"].as_int():
            continue
        if result.is_graph_output():
            producer = source.producer()
            if producer is None or producer.graph is not graph or source.is_graph_output():
                continue
            name, result.name = result.name, None
            result.replace_all_uses_with(source, replace_graph_outputs=True)
            source.name = name
        else:
            result.replace_all_uses_with(source)
        graph.remove(node, safe=True)

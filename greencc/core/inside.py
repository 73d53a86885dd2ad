"""Parts of a quantized network as they run inside it: without the conversions of floats at their ends.

Neighbours in a quantized network hand on integers. A part alone gets and gives floats, and what the conversions cost
hides what differs between one form of the part and another.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from greencc.core.data import Array, Feeds
from greencc.core.graph import constant_of, input_at, is_op, sole_consumer


def inside(models: Sequence[ir.Model], feeds: Sequence[Feeds]) -> list[Feeds]:
    """Let the models get and give integers where all of them convert; what they have to be fed then.

    Args:
        models: Forms of one part of a network, with the same inputs and outputs; they are edited. Where one of them
            reads or gives floats, all keep their conversion.
        feeds: Float inputs.
    """
    found = [dict(one) for one in feeds]
    for place, value in enumerate(models[0].graph.inputs):
        quantizers = [_quantizer(model.graph.inputs[place]) for model in models]
        nodes = [node for node in quantizers if node is not None]
        if len(nodes) < len(models):
            continue
        name = str(value.name)
        for one in found:
            one[name] = _quantized(one[name], nodes[0])
        for model, node in zip(models, nodes, strict=True):
            _enter_behind(model.graph, place, node)
    for place in range(len(models[0].graph.outputs)):
        producers = [model.graph.outputs[place].producer() for model in models]
        nodes = [node for node in producers if node is not None and _only_converts(node)]
        if len(nodes) == len(models):
            for model, node in zip(models, nodes, strict=True):
                _leave_before(model.graph, place, node)
    return list(found)


def _quantizer(value: ir.Value) -> ir.Node | None:
    """What alone reads an input, where that is a QuantizeLinear with one constant scale."""
    node = sole_consumer(value)
    if not is_op(node, "QuantizeLinear"):
        return None
    assert node is not None
    scale, zero = constant_of(input_at(node, 1)), constant_of(input_at(node, 2))
    known = (
        scale is not None and scale.size == 1 and zero is not None and not node.outputs[0].is_graph_output()
    )
    return node if known else None


def _only_converts(node: ir.Node) -> bool:
    """Whether it dequantizes an inner value, for the model's output alone."""
    source = node.inputs[0] if is_op(node, "DequantizeLinear") else None
    return source is not None and source.producer() is not None and not node.outputs[0].uses()


def _quantized(values: Array, node: ir.Node) -> Array:
    scale, zero = constant_of(node.inputs[1]), constant_of(node.inputs[2])
    assert scale is not None
    assert zero is not None
    limits = np.iinfo(zero.dtype)
    steps: Array = np.rint(values / np.float32(scale.item())) + zero.item()
    return steps.clip(limits.min, limits.max).astype(zero.dtype)


def _enter_behind(graph: ir.Graph, place: int, node: ir.Node) -> None:
    """Make what a QuantizeLinear gives the input of the model."""
    old, result = graph.inputs[place], node.outputs[0]
    zero = node.inputs[2]
    assert zero is not None
    assert zero.dtype is not None
    new = ir.Value(name=old.name, type=ir.TensorType(zero.dtype), shape=old.shape)
    result.replace_all_uses_with(new)
    graph.remove(node, safe=True)
    graph.inputs[place] = new


def _leave_before(graph: ir.Graph, place: int, node: ir.Node) -> None:
    """Make what a DequantizeLinear reads the output of the model."""
    source = node.inputs[0]
    assert source is not None
    graph.outputs[place] = source
    graph.remove(node, safe=True)

"""Two thin linear layers that meet become one where that takes fewer multiply-accumulates.

The last factor of one layer gives ``y = P z + b`` and the first of the next one reads ``Q y``: with nothing between,
that is ``(Q P) z + Q b``. For 1x1 convolutions without stride or padding in the second, MatMul and plain Gemm.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from greencc.core.graph import (
    Names,
    add_initializer,
    attribute_ints,
    constant_of,
    constant_tensor,
    drop_unused,
    input_at,
    sole_consumer,
)
from greencc.core.passes import RewriteLog
from greencc.passes._exclude import came_from
from greencc.passes._linear_view import LinearView, linear_view

RULE = "decompose-merge"


def merge_factors(model: ir.Model, made: set[str], rewrites: RewriteLog) -> int:
    """Merge what can be; return how many pairs were.

    Args:
        model: Changed in place.
        made: Names of the factors: at least one of a pair must be one of them.
        rewrites: Every merge is announced to it.
    """
    names, merged = Names(model), 0
    while found := _merge_once(model, made, rewrites, names):
        merged += found
    return merged


def _merge_once(model: ir.Model, made: set[str], rewrites: RewriteLog, names: Names) -> int:
    """One walk over the graph; a node that was made in it waits for the next."""
    merged = 0
    for first in list(model.graph):
        second = sole_consumer(first.outputs[0]) if len(first.outputs) == 1 else None
        if second is None or second.graph is not model.graph or not {first.name, second.name} & made:
            continue
        views = linear_view(first), linear_view(second)
        if views[0] is None or views[1] is None or not _fits(views[0], views[1]):
            continue
        if views[1].outputs * views[0].inputs >= views[0].outputs * (views[0].inputs + views[1].outputs):
            continue
        if rewrites.allow(RULE, str(second.name)):
            _merge(model.graph, views[0], views[1], names)
            made.add(str(second.name))
            merged += 1
    return merged


def _fits(first: LinearView, second: LinearView) -> bool:
    kinds = first.node.op_type, second.node.op_type
    if kinds[0] != kinds[1] or kinds[0] == "ConvTranspose" or first.groups > 1 or second.groups > 1:
        return False
    tensors = [constant_tensor(input_at(view.node, 1)) for view in (first, second)]
    if tensors[0] is None or tensors[1] is None or tensors[0].dtype is not tensors[1].dtype:
        return False
    if second.node.inputs[0] is not first.node.outputs[0]:
        return False
    for view in (first, second):
        bias = input_at(view.node, 2)
        if bias is not None and not _per_output(bias, view.outputs):
            return False
        factors = [view.node.attributes.get(name) for name in ("alpha", "beta")]
        if any(factor is not None and factor.as_float() != 1.0 for factor in factors):
            return False
    if kinds[0] != "Conv":
        return True
    return all(_pointwise(view) for view in (first, second)) and all(
        step == 1 for step in attribute_ints(second.node, "strides", (1,))
    )


def _per_output(bias: ir.Value, outputs: int) -> bool:
    """Whether a bias is a constant with one value for all outputs, or one for each: Gemm takes (rows, 1) as well."""
    tensor = constant_tensor(bias)
    if tensor is None:
        return False
    return tensor.size == 1 or (tensor.size == outputs and int(tensor.shape.numpy()[-1]) == outputs)


def _pointwise(view: LinearView) -> bool:
    auto = view.node.attributes.get("auto_pad")
    return (
        all(size == 1 for size in view.kernel)
        and not any(attribute_ints(view.node, "pads", (0,)))
        and (auto is None or auto.as_string() in ("NOTSET", "VALID"))
    )


def _merge(graph: ir.Graph, first: LinearView, second: LinearView, names: Names) -> None:
    head, tail = first.node, second.node
    p, q = (_matrix(view) for view in (first, second))
    product = q @ p
    dtype = constant_tensor(head.inputs[1]).dtype.numpy()  # type: ignore[union-attr]
    shape = (second.outputs, first.inputs, *first.kernel)
    if tail.op_type != "Conv":
        transposed = (
            tail.op_type == "Gemm" and "transB" in tail.attributes and tail.attributes["transB"].as_int()
        )
        product = product if transposed else product.T
        shape = product.shape
    weight = add_initializer(
        graph,
        names.value(f"{tail.name}_merged_weight"),
        np.ascontiguousarray(product.reshape(shape)).astype(dtype),
    )
    bias = _bias(first)
    bias = None if bias is None else q @ bias
    own = _bias(second)
    if own is not None:
        bias = own if bias is None else bias + own
    inputs = [head.inputs[0], weight]
    if bias is not None:
        inputs.append(add_initializer(graph, names.value(f"{tail.name}_merged_bias"), bias.astype(dtype)))
    attributes = dict(tail.attributes)
    if tail.op_type == "Conv" and "strides" in head.attributes:
        attributes["strides"] = head.attributes["strides"]
    old = tail.outputs[0]
    made = ir.Node(
        tail.domain,
        tail.op_type,
        inputs,
        list(attributes.values()),
        outputs=[ir.Value(name=names.value(f"{old.name}_merged"), type=old.type, shape=old.shape)],
        name=tail.name,
    )
    came_from(made, [head, tail])
    graph.insert_before(head, made)
    constants = [value for node in (head, tail) for value in node.inputs[1:] if value is not None]
    old.replace_all_uses_with(made.outputs[0], replace_graph_outputs=True)
    graph.remove([tail, head], safe=True)
    name, old.name = old.name, None
    made.outputs[0].name = name
    for value in dict.fromkeys(constants):
        drop_unused(graph, value)


def _matrix(view: LinearView) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    array = constant_of(view.node.inputs[1])
    assert array is not None
    return np.asarray(view.matrix(array)[0], dtype=np.float64)


def _bias(view: LinearView) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]] | None:
    array = constant_of(input_at(view.node, 2))
    if array is None:
        return None
    return np.broadcast_to(np.asarray(array, dtype=np.float64).reshape(-1), (view.outputs,))

"""Labels through weighted operators: convolutions, products, tables."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from greencc.core.graph import attribute_int, constant_of, input_at, label
from greencc.core.groups.analysis import MODEL_INPUT, Analysis
from greencc.core.groups.edits import AttributeCount, Indices
from greencc.core.groups.labels import AxisLabels
from greencc.core.groups.roles import Role
from greencc.core.groups.rules_elementwise import broadcast


def convolution(state: Analysis, node: ir.Node) -> None:
    """Conv: weight (outputs, inputs / group, *kernel)."""
    x = node.inputs[0]
    assert x is not None
    if not state.is_constant(input_at(node, 1)):
        state.refuse(node, f"{label(node)}: its weight is computed")
        return
    groups, channels = attribute_int(node, "group", 1), state.axes(x)[1]
    inputs = state.dim(x, 1)
    if groups == 1:
        _consume(state, node, channels, axis=1)
        made = state.constant(node, 1, 0, Role.PRODUCER)
    elif groups == inputs:
        made = _depthwise(state, node, channels)
    else:
        made = _grouped(state, node, channels, groups)
    _bias(state, node, 2, made)
    _spread(state, node, made)


def transposed_convolution(state: Analysis, node: ir.Node) -> None:
    """ConvTranspose: weight (inputs, outputs / group, *kernel)."""
    x = node.inputs[0]
    assert x is not None
    if not state.is_constant(input_at(node, 1)):
        state.refuse(node, f"{label(node)}: its weight is computed")
        return
    groups, channels = attribute_int(node, "group", 1), state.axes(x)[1]
    if groups == 1:
        _consume(state, node, channels, axis=0)
        made = state.constant(node, 1, 1, Role.PRODUCER)
    elif groups == state.dim(x, 1) == state.dim(node.outputs[0], 1):
        made = _depthwise(state, node, channels)
    else:
        state.lock(channels, f"{label(node)}: a transposed convolution in groups")
        made = None
    _bias(state, node, 2, made)
    _spread(state, node, made)


def _consume(state: Analysis, node: ir.Node, channels: AxisLabels, axis: int) -> None:
    """Sum over channels: the weight's axis goes with them. What is not cut in the input is not cut here."""
    if channels is None:
        return
    value = node.inputs[0]
    assert value is not None
    weights = state.constant(node, 1, axis, Role.CONSUMER)
    state.unite(channels, weights, f"{label(node)}: sizes differ")
    state.read(node, value, 1)


def _depthwise(state: Analysis, node: ir.Node, channels: AxisLabels) -> AxisLabels:
    if channels is None:
        return None
    made = state.constant(node, 1, 0, Role.PARAMETER)
    if made is None:
        return None
    multiplier = len(made) // len(channels)
    state.unite(made, np.repeat(channels, multiplier), f"{label(node)}: sizes differ")
    state.edits.append(AttributeCount(node, "group", channels))
    return made


def _grouped(state: Analysis, node: ir.Node, channels: AxisLabels, groups: int) -> AxisLabels:
    """Keep the groups equally wide: cut whole groups where there are many, else the same places in all of them."""
    made = state.constant(node, 1, 0, Role.PRODUCER)
    if channels is None or made is None:
        state.lock(made, MODEL_INPUT if channels is None else f"{label(node)}: sizes differ")
        state.lock(channels, f"{label(node)}: sizes differ")
        return made
    inside, outside = channels.reshape(groups, -1), made.reshape(groups, -1)
    value = node.inputs[0]
    assert value is not None
    if groups > inside.shape[1]:
        # The output axis is then cut with the input: it neither produces nor reads on its own.
        state.sites.pop()
        state.constant(node, 1, 0, Role.PARAMETER)
        whole_in, whole_out = state.labels.merge(inside, 1), state.labels.merge(outside, 1)
        state.labels.unite(whole_in, whole_out)
        state.edits.append(AttributeCount(node, "group", channels, per=inside.shape[1]))
        return made
    same_in = state.labels.merge(inside, 0)
    state.labels.merge(outside, 0)
    weights = state.constant(node, 1, 1, Role.CONSUMER)
    state.unite(weights, same_in, f"{label(node)}: sizes differ")
    return made


def _bias(state: Analysis, node: ir.Node, index: int, made: AxisLabels) -> None:
    value = input_at(node, index)
    if value is None:
        return
    if not state.is_constant(value):
        state.unite(state.axes(value)[0], made, f"{label(node)}: its bias is computed")
    elif made is not None:
        state.unite(state.constant(node, index, 0, Role.PARAMETER), made, f"{label(node)}: sizes differ")


def _spread(state: Analysis, node: ir.Node, made: AxisLabels) -> None:
    rank = state.rank(node.outputs[0]) or 2
    state.give(node.outputs[0], (None, made, *(None,) * (rank - 2)))


def gemm(state: Analysis, node: ir.Node) -> None:
    """Gemm: A (M, K) or (K, M), B (K, N) or (N, K), C broadcast to (M, N)."""
    flip_a, flip_b = attribute_int(node, "transA", 0), attribute_int(node, "transB", 0)
    rows, columns = _product(state, node, (1, 0) if flip_a else (0, 1), (1, 0) if flip_b else (0, 1))
    out = node.outputs[0]
    state.give(out, (rows, columns))
    addend = input_at(node, 2)
    if addend is None:
        return
    if not state.is_constant(addend):
        joined = broadcast(state, node, [out, addend])
        state.give(out, joined)
        return
    rank = len(addend.shape or ())
    for axis, labels in ((-1, columns), (-2, rows)):
        if rank + axis >= 0 and labels is not None:
            found = state.constant(node, 2, axis, Role.PARAMETER)
            if found is not None:
                state.unite(found, labels, f"{label(node)}: sizes differ")


def matmul(state: Analysis, node: ir.Node) -> None:
    """MatMul: (..., M, K) by (..., K, N); either side may be a weight."""
    a, b = node.inputs[0], node.inputs[1]
    rank_a, rank_b = state.rank(a) or 0, state.rank(b) or 0
    if min(rank_a, rank_b) < 2:
        state.refuse(node, f"{label(node)}: a product with a vector")
        return
    rows, columns = _product(state, node, (rank_a - 2, rank_a - 1), (rank_b - 2, rank_b - 1))
    batch = broadcast(state, node, [a, b], drop=2)
    state.give(node.outputs[0], (*batch, rows, columns))


def _product(
    state: Analysis, node: ir.Node, left: tuple[int, int], right: tuple[int, int]
) -> tuple[AxisLabels, AxisLabels]:
    """Sum over the second axis of the left and the first of the right side; labels of the two that stay."""
    a, b = node.inputs[0], node.inputs[1]
    assert a is not None
    assert b is not None
    constant_a, constant_b = state.is_constant(a), state.is_constant(b)
    if constant_a and constant_b:
        return None, None
    if constant_b:
        inner = state.axes(a)[left[1]]
        if inner is not None:
            state.unite(
                inner, state.constant(node, 1, right[0], Role.CONSUMER), f"{label(node)}: sizes differ"
            )
            state.read(node, a, left[1])
        return state.axes(a)[left[0]], state.constant(node, 1, right[1], Role.PRODUCER)
    if constant_a:
        inner = state.axes(b)[right[0]]
        if inner is not None:
            state.unite(
                inner, state.constant(node, 0, left[1], Role.CONSUMER), f"{label(node)}: sizes differ"
            )
            state.read(node, b, right[0])
        return state.constant(node, 0, left[0], Role.PRODUCER), state.axes(b)[right[1]]
    first, second = state.axes(a)[left[1]], state.axes(b)[right[0]]
    if first is not None or second is not None:
        state.unite(first, second, f"{label(node)}: sums over values that cannot be cut")
    return state.axes(a)[left[0]], state.axes(b)[right[1]]


def gather(state: Analysis, node: ir.Node) -> None:
    """Rows of a table, or chosen coordinates of an activation."""
    data, indices = node.inputs[0], node.inputs[1]
    assert data is not None
    assert indices is not None
    rank, extra = state.rank(data) or 0, state.rank(indices) or 0
    axis = attribute_int(node, "axis", 0) % max(rank, 1)
    if state.is_constant(data):
        if state.has_labels(indices):
            state.refuse(node, f"{label(node)}: indices that are computed from channels")
            return
        rest = [
            state.constant(node, 0, other, Role.PRODUCER) if rank > 1 else None
            for other in range(rank)
            if other != axis
        ]
        state.give(node.outputs[0], (*rest[:axis], *(None,) * extra, *rest[axis:]))
        return
    axes = state.axes(data)
    picked: list[AxisLabels] = [None] * extra
    chosen, along = constant_of(indices), axes[axis]
    if along is not None and (chosen is None or extra > 1):
        state.lock(along, f"{label(node)}: indices that depend on the data")
    elif along is not None and chosen is not None:
        positions = np.where(chosen < 0, chosen + len(along), chosen)
        if extra == 0:
            state.lock(along[positions.reshape(1)], f"{label(node)} picks it alone")
        else:
            picked = [along[positions]]
        state.edits.append(Indices(node, along))
    state.give(node.outputs[0], (*axes[:axis], *picked, *axes[axis + 1 :]))

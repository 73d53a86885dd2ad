"""Labels through products and tables."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from greencc.core.graph import attribute_int, constant_of, input_at, label
from greencc.core.groups.analysis import Analysis
from greencc.core.groups.edits import Indices
from greencc.core.groups.labels import AxisLabels
from greencc.core.groups.roles import Role
from greencc.core.groups.rules_elementwise import broadcast


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
    """MatMul: (..., M, K) by (..., K, N); either side may be a weight. FusedMatMul may transpose them first."""
    a, b = node.inputs[0], node.inputs[1]
    rank_a, rank_b = state.rank(a) or 0, state.rank(b) or 0
    if min(rank_a, rank_b) < 2:
        state.refuse(node, f"{label(node)}: a product with a vector")
        return
    if attribute_int(node, "transBatchA", 0) or attribute_int(node, "transBatchB", 0):
        state.refuse(node, f"{label(node)}: batches are transposed")
        return
    left, right = (rank_a - 2, rank_a - 1), (rank_b - 2, rank_b - 1)
    rows, columns = _product(
        state,
        node,
        left[::-1] if attribute_int(node, "transA", 0) else left,
        right[::-1] if attribute_int(node, "transB", 0) else right,
    )
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
    state.lock_value(indices, f"{label(node)} uses it as indices")
    axes = state.axes(data)
    picked: list[AxisLabels] = [None] * extra
    chosen, along = constant_of(indices), axes[axis]
    if along is not None and (chosen is None or extra > 1):
        why = "depend on the data" if chosen is None else "have several axes"
        state.lock(along, f"{label(node)}: indices that {why}")
    elif along is not None and chosen is not None:
        positions = np.where(chosen < 0, chosen + len(along), chosen)
        if extra == 0:
            state.lock(along[positions.reshape(1)], f"{label(node)} picks it alone")
        else:
            picked = [along[positions]]
        state.edits.append(Indices(node, along))
    state.give(node.outputs[0], (*axes[:axis], *picked, *axes[axis + 1 :]))

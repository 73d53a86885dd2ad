"""Labels through fused attention: whole heads."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from greencc.core.graph import attribute_int, input_at, label
from greencc.core.groups.analysis import Analysis
from greencc.core.groups.edits import AttributeCount
from greencc.core.groups.labels import AxisLabels, Ints
from greencc.core.groups.roles import Role

_MASK = 3
_BIAS = 3
_UNKNOWN = "a form of attention that is not known"


def multi_head_attention(state: Analysis, node: ir.Node) -> None:
    """com.microsoft MultiHeadAttention on (batch, steps, heads * size).

    Queries, keys and values lose the same heads; within a head nothing is cut. The bias is that of the three
    projections, one after another.
    """
    heads = attribute_int(node, "num_heads", 0)
    values = _three(state, node, rank=3)
    if values is None or not heads:
        state.refuse(node, f"{label(node)}: {_UNKNOWN}")
        return
    axes = [state.axes(value)[2] for value in values]
    query = _tie(state, node, axes, heads, heads)
    if query is None:
        return
    bias = input_at(node, _BIAS)
    if bias is not None and state.is_constant(bias):
        packed = np.concatenate([item for item in axes if item is not None])
        state.unite(packed, state.constant(node, _BIAS, 0, Role.PARAMETER), f"{label(node)}: sizes differ")
    elif bias is not None:
        _stay(state, node, bias, query)
    for beside in node.inputs[_BIAS + 1 :]:
        _beside(state, node, beside, query, rank=4)
    state.edits.append(AttributeCount(node, "num_heads", query))
    state.name_kind(query, "heads")
    state.give(node.outputs[0], (None, None, axes[2]))


def attention(state: Analysis, node: ir.Node) -> None:
    """ai.onnx Attention on (batch, steps, heads * size) or (batch, heads, steps, size).

    Several heads of queries may share one of keys and values: they go together.
    """
    rank = state.rank(node.inputs[0]) or 0
    values = _three(state, node, rank)
    if values is None or rank not in (3, 4):
        state.refuse(node, f"{label(node)}: {_UNKNOWN}")
        return
    place = 2 if rank == 3 else 1
    axes = [state.axes(value)[place] for value in values]
    if rank == 4:
        for value in values:
            for labels in state.axes(value)[2:]:
                state.lock(labels, f"{label(node)}: what is within a head stays")
    sizes = [0 if item is None else len(item) for item in axes]
    queries = attribute_int(node, "q_num_heads", 0) if rank == 3 else sizes[0]
    keys = attribute_int(node, "kv_num_heads", 0) if rank == 3 else sizes[1]
    whole = _tie(state, node, axes, queries, keys)
    if whole is None:
        return
    for beside in node.inputs[_MASK:]:
        _beside(state, node, beside, whole, rank=3)
    if rank == 3:
        state.edits.append(AttributeCount(node, "q_num_heads", whole, per=1))
        state.edits.append(AttributeCount(node, "kv_num_heads", whole, per=queries // keys))
        state.name_kind(whole, "heads")
        made = axes[2] if queries == keys else _widened(axes[2], queries, keys)
        state.give(node.outputs[0], (None, None, made))
    else:
        state.give(node.outputs[0], (None, axes[0], None, None))


def packed_attention(state: Analysis, node: ir.Node) -> None:
    """com.microsoft Attention: the weight (inputs, 3 * heads * size) of the projections is an input of its own."""
    heads, reason = attribute_int(node, "num_heads", 0), f"{label(node)}: sizes differ"
    x = node.inputs[0]
    assert x is not None
    if (
        not state.is_constant(input_at(node, 1))
        or "qkv_hidden_sizes" in node.attributes
        or state.rank(x) != 3
    ):
        state.refuse(node, f"{label(node)}: {_UNKNOWN}")
        return
    features = state.axes(x)[2]
    if features is not None:
        state.unite(features, state.constant(node, 1, 0, Role.CONSUMER), reason)
        state.read(node, x, 2)
    packed = state.constant(node, 1, 1, Role.PRODUCER)
    if packed is None or not heads or len(packed) % (3 * heads):
        state.lock(packed, f"{label(node)}: {_UNKNOWN}")
        return
    bias = input_at(node, 2)
    if bias is not None and state.is_constant(bias):
        state.unite(packed, state.constant(node, 2, 0, Role.PARAMETER), reason)
    elif bias is not None:
        _stay(state, node, bias, packed)
    grid = packed.reshape(3, heads, -1)
    whole = state.labels.merge(state.labels.merge(grid, 2), 0)
    for beside in node.inputs[3:]:
        _beside(state, node, beside, whole, rank=4)
    state.edits.append(AttributeCount(node, "num_heads", whole))
    state.name_kind(whole, "heads")
    state.give(node.outputs[0], (None, None, grid[2].reshape(-1)))


def _three(state: Analysis, node: ir.Node, rank: int) -> tuple[ir.Value, ir.Value, ir.Value] | None:
    """Queries, keys and values, or None where one is missing or has another rank."""
    values = [value for index in range(3) if (value := input_at(node, index)) is not None]
    if len(values) != 3 or any(state.rank(value) != rank for value in values):
        return None
    return values[0], values[1], values[2]


def _tie(state: Analysis, node: ir.Node, axes: Sequence[AxisLabels], queries: int, keys: int) -> Ints | None:
    """One label per head of queries, united with the heads of keys and values that it reads."""
    counts = (queries, keys, keys)
    known = queries > 0 and keys > 0 and queries % keys == 0
    if not known or any(
        labels is None or len(labels) % count for labels, count in zip(axes, counts, strict=True)
    ):
        for labels in axes:
            state.lock(labels, f"{label(node)} joins it with values that cannot be cut")
        return None
    merged: list[Ints] = []
    for labels, count in zip(axes, counts, strict=True):
        assert labels is not None
        merged.append(state.labels.merge(labels.reshape(count, -1), 1))
    query, key, value = merged
    shared = state.labels.merge(query.reshape(keys, -1), 1)
    state.labels.unite(shared, key)
    state.labels.unite(shared, value)
    return query


def _widened(labels: AxisLabels, queries: int, keys: int) -> AxisLabels:
    """The result has the heads of the queries, each as wide as a head of the values."""
    assert labels is not None
    return np.repeat(labels.reshape(keys, -1), queries // keys, axis=0).reshape(-1)


def _beside(state: Analysis, node: ir.Node, value: ir.Value | None, heads: Ints, rank: int) -> None:
    """Masks and biases that are the same for all heads are of no concern; others keep the heads.

    From `rank` axes on, the third from behind is that of the heads.
    """
    if value is None:
        return
    known = state.rank(value) or 0
    state.lock_value(value, f"{label(node)} reads it")
    if known >= rank and state.dim(value, known - 3) != 1:
        _stay(state, node, value, heads)


def _stay(state: Analysis, node: ir.Node, value: ir.Value, heads: Ints) -> None:
    state.lock(heads, f"{label(node)} has {value.name!r} for every head")
    state.lock_value(value, f"{label(node)} reads it")

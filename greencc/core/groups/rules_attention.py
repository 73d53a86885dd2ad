"""Labels through fused attention: whole heads."""

from __future__ import annotations

import onnx_ir as ir

from greencc.core.graph import attribute_int, input_at, label
from greencc.core.groups.analysis import Analysis
from greencc.core.groups.edits import AttributeCount
from greencc.core.groups.labels import AxisLabels

# Inputs that are queries, keys and values; a mask or a bias beside them has no channels.
_QUERY_KEY_VALUE = 3


def multi_head_attention(state: Analysis, node: ir.Node) -> None:
    """com.microsoft MultiHeadAttention and ai.onnx Attention on (batch, steps, heads * size).

    Queries, keys and values lose the same heads; within a head nothing is cut.
    """
    microsoft = node.domain == "com.microsoft"
    names = ("num_heads",) if microsoft else ("q_num_heads", "kv_num_heads")
    counts = {attribute_int(node, name, 0) for name in names}
    values = [input_at(node, index) for index in range(_QUERY_KEY_VALUE)]
    heads = counts.pop()
    if counts or not heads or any(value is None or state.rank(value) != 3 for value in values):
        state.refuse(node, f"{label(node)}: a form of attention that is not known")
        return
    merged: list[AxisLabels] = []
    for value in values:
        axes = state.axes(value)
        if axes[2] is None or len(axes[2]) % heads:
            state.refuse(node, f"{label(node)} joins it with values that cannot be cut")
            return
        merged.append(state.labels.merge(axes[2].reshape(heads, -1), 1))
    query, key, result = merged
    state.unite(query, key, f"{label(node)}: sizes differ")
    state.unite(query, result, f"{label(node)}: sizes differ")
    for index, value in enumerate(node.inputs[_QUERY_KEY_VALUE:], _QUERY_KEY_VALUE):
        if value is not None and (state.has_labels(value) or (microsoft and index == _QUERY_KEY_VALUE)):
            state.lock(query, f"{label(node)}: {node.op_type} with a bias or a mask over heads")
            state.lock_value(value, f"{label(node)} reads it")
    assert query is not None
    for name in names:
        state.edits.append(AttributeCount(node, name, query))
    state.name_kind(query, "heads")
    made = state.axes(values[2])[2]
    state.give(node.outputs[0], (None, None, made))

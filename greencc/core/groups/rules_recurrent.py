"""Labels through LSTM, GRU and RNN: the hidden units."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from greencc.core.graph import attribute_int, input_at, label
from greencc.core.groups.analysis import Analysis
from greencc.core.groups.edits import AttributeCount
from greencc.core.groups.labels import AxisLabels
from greencc.core.groups.roles import Role

_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
_PEEPHOLES = 3


def recurrent(state: Analysis, node: ir.Node) -> None:
    """W (directions, gates * hidden, input), R (directions, gates * hidden, hidden), B (directions, 2 gates * hidden).

    Both directions lose the same units. Y is (steps, directions, batch, hidden); Y_h, Y_c (directions, batch, hidden).
    """
    gates, reason = _GATES[node.op_type], f"{label(node)}: sizes differ"
    x = node.inputs[0]
    assert x is not None
    features = state.axes(x)[2]
    for labels in state.axes(x)[:2]:
        state.lock(labels, f"{label(node)} steps over it")
    if not (state.is_constant(input_at(node, 1)) and state.is_constant(input_at(node, 2))):
        state.refuse(node, f"{label(node)}: its weights are computed")
        return
    if features is not None:
        state.unite(features, state.constant(node, 1, 2, Role.CONSUMER), reason)
        state.read(node, x, 2)
    hidden = state.constant(node, 2, 2, Role.PARAMETER)
    if hidden is not None:
        _weights(state, node, hidden, gates, reason)
        state.edits.append(AttributeCount(node, "hidden_size", hidden))
        state.name_kind(hidden, "hidden units")
    if attribute_int(node, "layout", 0):
        state.lock(hidden, f"{label(node)}: batch-first layout")
        hidden = None
    for index, value in enumerate(node.outputs):
        if value.name:
            state.give(value, (None,) * (3 if index == 0 else 2) + (hidden,))


def _weights(state: Analysis, node: ir.Node, hidden: AxisLabels, gates: int, reason: str) -> None:
    assert hidden is not None
    all_gates = np.tile(hidden, gates)
    state.unite(all_gates, state.constant(node, 1, 1, Role.PRODUCER), reason)
    state.unite(all_gates, state.constant(node, 2, 1, Role.PARAMETER), reason)
    parameters = {3: np.tile(hidden, 2 * gates), 7: np.tile(hidden, _PEEPHOLES)}
    for index, labels in parameters.items():
        value = input_at(node, index)
        if value is not None and state.is_constant(value):
            state.unite(labels, state.constant(node, index, 1, Role.PARAMETER), reason)
        elif value is not None:
            state.lock(hidden, f"{label(node)}: its parameters are computed")
    for index in (5, 6):
        value = input_at(node, index)
        if value is None:
            continue
        if state.is_constant(value):
            state.unite(hidden, state.constant(node, index, 2, Role.PARAMETER), reason)
        else:
            state.unite(hidden, state.axes(value)[2], f"{label(node)}: its first state cannot be cut")

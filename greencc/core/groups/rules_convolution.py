"""Labels through convolutions."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from greencc.core.graph import attribute_int, input_at, label
from greencc.core.groups.analysis import MODEL_INPUT, Analysis
from greencc.core.groups.edits import AttributeCount
from greencc.core.groups.labels import AxisLabels
from greencc.core.groups.roles import Role


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
        made = _transposed_groups(state, node, channels, groups)
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


def _transposed_groups(state: Analysis, node: ir.Node, channels: AxisLabels, groups: int) -> AxisLabels:
    """Likewise; the weight has one axis for the outputs of all groups."""
    made, reason = state.constant(node, 1, 1, Role.PRODUCER), f"{label(node)}: sizes differ"
    per_group = (state.dim(node.outputs[0], 1) or 0) // groups
    if channels is None:
        return None if made is None else np.tile(made, groups)
    state.unite(channels, state.constant(node, 1, 0, Role.CONSUMER), reason)
    inside = channels.reshape(groups, -1)
    if groups > inside.shape[1]:
        whole = state.labels.merge(inside, 1)
        state.edits.append(AttributeCount(node, "group", channels, per=inside.shape[1]))
        # What is made keeps its places within the groups.
        state.lock(made, f"{label(node)}: whole groups are cut")
        return np.repeat(whole, per_group)
    state.labels.merge(inside, 0)
    return None if made is None else np.tile(made, groups)


def _bias(state: Analysis, node: ir.Node, index: int, made: AxisLabels) -> None:
    value = input_at(node, index)
    if value is None:
        return
    if not state.is_constant(value):
        state.unite(state.axes(value)[0], made, f"{label(node)}: its bias is computed")
    elif made is not None:
        state.unite(state.constant(node, index, 0, Role.PARAMETER), made, f"{label(node)}: sizes differ")


def _spread(state: Analysis, node: ir.Node, made: AxisLabels) -> None:
    axes = state.axes(node.inputs[0])
    for labels in axes[2:]:
        state.lock(labels, f"{label(node)} slides over it")
    state.give(node.outputs[0], (axes[0], made, *(None,) * (len(axes) - 2)))


def fused_convolution(state: Analysis, node: ir.Node) -> None:
    """com.microsoft FusedConv: a convolution, perhaps a sum with its fourth input, and an activation."""
    convolution(state, node)
    addend = input_at(node, 3)
    if addend is None:
        return
    out = node.outputs[0]
    if state.is_constant(addend):
        state.lock_value(out, f"{label(node)} adds a constant")
    else:
        joined = zip(state.axes(out), state.axes(addend), strict=True)
        reason = f"{label(node)} joins it with values that cannot be cut"
        state.give(out, [None if a is b is None else state.unite(a, b, reason) for a, b in joined])

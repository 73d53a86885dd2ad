"""Labels through normalizations."""

from __future__ import annotations

import onnx_ir as ir

from greencc.core.graph import attribute_int, attribute_ints, constant_tensor, input_at, label
from greencc.core.groups.analysis import Analysis
from greencc.core.groups.edits import AttributeCount
from greencc.core.groups.labels import AxisLabels, Ints
from greencc.core.groups.roles import Role
from greencc.core.groups.rules_elementwise import broadcast


def per_channel(state: Analysis, node: ir.Node) -> None:
    """BatchNormalization and InstanceNormalization: parameters per channel of axis 1."""
    axes = state.axes(node.inputs[0])
    channels = axes[1] if len(axes) > 1 else None
    for index in range(1, len(node.inputs)):
        _parameter(state, node, index, channels)
    if node.op_type == "InstanceNormalization":
        _lock(state, node, axes[2:])
    state.give(node.outputs[0], axes)


def _parameter(state: Analysis, node: ir.Node, index: int, channels: AxisLabels) -> None:
    if channels is None:
        return
    if state.is_constant(input_at(node, index)):
        found = state.constant(node, index, 0, Role.PARAMETER)
        state.unite(channels, found, f"{label(node)}: sizes differ")
    else:
        state.lock(channels, f"{label(node)}: its parameters are computed")


def _lock(state: Analysis, node: ir.Node, axes: tuple[AxisLabels, ...]) -> None:
    for labels in axes:
        state.lock(labels, f"{label(node)} normalizes over it")


def group_normalization(state: Analysis, node: ir.Node) -> None:
    """GroupNormalization: mean and variance within a group tie its channels; whole groups may go."""
    axes, groups = state.axes(node.inputs[0]), attribute_int(node, "num_groups", 1)
    channels = axes[1]
    _lock(state, node, axes[2:])
    if channels is not None and len(channels) % groups == 0:
        whole = state.labels.merge(channels.reshape(groups, -1), 1)
        for index in (1, 2):
            _parameter(state, node, index, _per_parameter(input_at(node, index), channels, whole))
        state.edits.append(AttributeCount(node, "num_groups", channels, per=len(channels) // groups))
    state.give(node.outputs[0], axes)


def _per_parameter(value: ir.Value | None, channels: Ints, whole: Ints) -> Ints:
    """Scale and bias have one value per channel, and until opset 21 one per group."""
    tensor = constant_tensor(value)
    return whole if tensor is not None and tuple(tensor.shape.numpy()) == (len(whole),) else channels


def over_channels(state: Analysis, node: ir.Node) -> None:
    """LayerNormalization and the like: what they normalize over must stay, each value counts in the others' results."""
    axes = state.axes(node.inputs[0])
    if node.op_type == "LRN":
        _lock(state, node, axes[1:2])
    elif node.op_type == "MeanVarianceNormalization":
        _lock(state, node, tuple(axes[place] for place in attribute_ints(node, "axes", (0, 2, 3))))
    else:
        _lock(state, node, axes[attribute_int(node, "axis", -1) % max(len(axes), 1) :])
    state.give(node.outputs[0], axes)


# The outputs of a SkipLayerNormalization that are as wide as its inputs: the result, and the sum before it.
_RESULT, _SUM = 0, 3


def skip_normalization(state: Analysis, node: ir.Node) -> None:
    """com.microsoft SkipLayerNormalization: a sum, normalized over its last axis."""
    axes = broadcast(state, node, node.inputs[:2])
    _lock(state, node, axes[-1:])
    for index in (_RESULT, _SUM):
        if index < len(node.outputs) and node.outputs[index].shape is not None:
            state.give(node.outputs[index], axes)

"""How operators with several operands treat scales per channel; see `_equalize_rules`."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from greencc.core.graph import attribute_int, constant_tensor
from greencc.passes._equalize_graph import FIXED, Labelling, Labels


def join(node: ir.Node, labelling: Labelling) -> Labels | None:
    """Operands that are added, subtracted or compared scale alike; constants are scaled with them."""
    y = node.outputs[0]
    if y.shape is None:
        return None
    rank = len(y.shape)
    first = 1 if node.op_type == "Where" else 0
    constants: list[int] = []
    found: list[Labels] = []
    for index, value in enumerate(node.inputs):
        if index < first:
            continue
        labels = labelling.of(value)
        if labels is not None:
            found.append(_aligned(labels, rank))
        elif value is not None and constant_tensor(value) is not None:
            constants.append(index)
        else:
            return None
    if not found or (constants and node.op_type not in ("Add", "Sub", "Sum")):
        return None
    shape = np.broadcast_shapes(*(labels.shape for labels in found))
    spread = [np.broadcast_to(labels, shape) for labels in found]
    for other in spread[1:]:
        labelling.merge(spread[0], other)
    if not all(labelling.scale_constant(node, index, spread[0]) for index in constants):
        return None
    if len(found) > 1:
        labelling.joined += [value for value in (*node.inputs[first:], y) if value is not None]
    return spread[0]


def _aligned(labels: Labels, rank: int) -> Labels:
    return labels.reshape([1] * (rank - labels.ndim) + list(labels.shape))


def product(node: ir.Node, labelling: Labelling) -> Labels | None:
    """x * y and x / y carry the scale of x while that of y is fixed."""
    first, second = (labelling.of(value) for value in node.inputs[:2])
    y = node.outputs[0]
    if y.shape is None or (first is None and (second is None or node.op_type == "Div")):
        return None
    if first is not None:
        labelling.pin(second)
        return _aligned(first, len(y.shape))
    return None if second is None else _aligned(second, len(y.shape))


def matmul(node: ir.Node, labelling: Labelling) -> Labels | None:
    """A @ V with A fixed keeps the channels of V (attention's values)."""
    first, second = (labelling.of(value) for value in node.inputs[:2])
    y = node.outputs[0]
    if first is not None or second is None or y.shape is None or second.ndim < 2 or second.shape[-2] > 1:
        return None
    return None if second.ndim != len(y.shape) else second


def concat(node: ir.Node, labelling: Labelling) -> Labels | None:
    """Channels side by side keep their labels; along an axis without labels the operands scale alike."""
    y = node.outputs[0]
    operands = [value for value in node.inputs if value is not None]
    found = [labelling.of(value) for value in operands]
    known = [labels for labels in found if labels is not None]
    if y.shape is None or not known:
        return None
    rank = len(y.shape)
    axis = attribute_int(node, "axis", 0) % rank
    others = [*np.broadcast_shapes(*(_without(labels, axis) for labels in known))]
    if all(labels.shape[axis] == 1 for labels in known):
        if len(known) < len(operands):
            return None
        spread = [np.broadcast_to(labels, others) for labels in known]
        for other in spread[1:]:
            labelling.merge(spread[0], other)
        labelling.joined.append(y)
        return spread[0]
    parts: list[Labels] = []
    for value, labels in zip(operands, found, strict=True):
        size = value.shape[axis] if value.shape is not None and len(value.shape) == rank else None
        if not isinstance(size, int):
            return None
        shape = [*others]
        shape[axis] = size
        parts.append(np.broadcast_to(np.full([1] * rank, FIXED) if labels is None else labels, shape))
    labelling.joined.append(y)
    return np.concatenate(parts, axis)


def _without(labels: Labels, axis: int) -> list[int]:
    return [1 if index == axis else size for index, size in enumerate(labels.shape)]

"""Labels through operators that treat every element, or every channel, by itself."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from greencc.core.graph import attribute_int, constant_of, input_at, label
from greencc.core.groups.analysis import Analysis
from greencc.core.groups.labels import AxisLabels
from greencc.core.groups.parts import Axes
from greencc.core.groups.roles import Role

UNARY = frozenset(
    [
        "Abs",
        "Acos",
        "Acosh",
        "Asin",
        "Asinh",
        "Atan",
        "Atanh",
        "Cast",
        "CastLike",
        "Ceil",
        "Celu",
        "Clip",
        "Cos",
        "Cosh",
        "Dropout",
        "Elu",
        "Erf",
        "Exp",
        "Floor",
        "Gelu",
        "HardSigmoid",
        "HardSwish",
        "Identity",
        "IsInf",
        "IsNaN",
        "LeakyRelu",
        "Log",
        "Mish",
        "Neg",
        "Not",
        "Reciprocal",
        "Relu",
        "Round",
        "Selu",
        "Shrink",
        "Sigmoid",
        "Sign",
        "Sin",
        "Sinh",
        "Softplus",
        "Softsign",
        "Sqrt",
        "Swish",
        "Tan",
        "Tanh",
        "ThresholdedRelu",
    ]
)
JOINING = frozenset(
    [
        "Add",
        "And",
        "BitShift",
        "Div",
        "Equal",
        "Greater",
        "GreaterOrEqual",
        "Less",
        "LessOrEqual",
        "Max",
        "Mean",
        "Min",
        "Mod",
        "Mul",
        "Or",
        "Pow",
        "PRelu",
        "Sub",
        "Sum",
        "Where",
        "Xor",
    ]
)
POOLING = frozenset(
    ["AveragePool", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "LpPool", "MaxPool"]
)
# Operators that compare or add up along an axis: it must stay whole.
ALONG = frozenset(
    ["ArgMax", "ArgMin", "CumSum", "Hardmax", "LogSoftmax", "LpNormalization", "Softmax", "TopK"]
)


def unary(state: Analysis, node: ir.Node) -> None:
    """The first input element by element; others are scalars."""
    for value in node.outputs:
        state.give(value, state.axes(node.inputs[0]))


def joining(state: Analysis, node: ir.Node) -> None:
    """Several inputs element by element, broadcast."""
    state.give(node.outputs[0], broadcast(state, node, node.inputs))


def broadcast(state: Analysis, node: ir.Node, values: Sequence[ir.Value | None], drop: int = 0) -> Axes:
    """Unite values that are broadcast against each other; the labels of the result.

    Args:
        state: The analysis.
        node: Reads the values; constants among them are looked for in its inputs.
        values: What is joined.
        drop: Trailing axes to leave out (2 for the batch axes of a product).
    """
    present = [value for value in values if value is not None]
    rank = max((state.rank(value) or 0) for value in present)
    return tuple(_joined(state, node, present, axis - rank) for axis in range(rank - drop))


def _joined(state: Analysis, node: ir.Node, values: Sequence[ir.Value], axis: int) -> AxisLabels:
    """One axis, counted from the end."""
    wide = [value for value in values if (state.rank(value) or 0) + axis >= 0 and state.dim(value, axis) != 1]
    computed = [value for value in wide if not state.is_constant(value)]
    found = [state.axes(value)[axis] for value in computed]
    labelled = [labels for labels in found if labels is not None]
    constants = [value for value in wide if state.is_constant(value)]
    if not labelled:
        # Constants without labels stay as they are; ones that other nodes cut must not be met here.
        return None
    result: AxisLabels = labelled[0]
    for labels in labelled[1:]:
        state.unite(result, labels, f"{label(node)}: sizes differ")
    if len(labelled) < len(computed):
        state.lock(result, f"{label(node)} joins it with values that cannot be cut")
    for value in constants:
        index = next(place for place, item in enumerate(node.inputs) if item is value)
        state.unite(result, state.constant(node, index, axis, Role.PARAMETER), f"{label(node)}: sizes differ")
    return result


def along(state: Analysis, node: ir.Node) -> None:
    """Softmax and the like: whole along one axis, element by element along the others."""
    axes = state.axes(node.inputs[0])
    default = -1 if state.opset >= 13 or node.op_type in ("TopK", "LpNormalization") else 1
    if node.op_type.startswith("Arg"):
        default = 0
    if node.op_type == "CumSum":
        given = constant_of(input_at(node, 1))
        if given is None:
            state.refuse(node, f"{label(node)}: its axis is computed")
            return
        default = int(given.reshape(-1)[0])
    axis = attribute_int(node, "axis", default) % max(len(axes), 1)
    first = axis
    if node.op_type in ("Softmax", "LogSoftmax", "Hardmax") and state.opset < 13:
        for place in range(axis, len(axes)):
            state.lock(axes[place], f"{label(node)} works along the channels")
    state.lock(axes[first], f"{label(node)} works along the channels")
    rest = [None if place == axis else item for place, item in enumerate(axes)]
    keep = attribute_int(node, "keepdims", 1)
    for value in node.outputs:
        if node.op_type.startswith("Arg") and not keep:
            state.give(value, [item for place, item in enumerate(rest) if place != axis])
        else:
            state.give(value, axes if node.op_type in ("Softmax", "LogSoftmax", "CumSum") else rest)


def pooling(state: Analysis, node: ir.Node) -> None:
    """Pooling over positions keeps the channels of axis 1."""
    axes = state.axes(node.inputs[0])
    for labels in axes[2:]:
        state.lock(labels, f"{label(node)} pools over it")
    # The indices of a MaxPool count through the channels: where they are used nothing is cut.
    out = node.outputs[0]
    state.give(out, (*axes[:2], *(None,) * max(0, (state.rank(out) or 0) - 2)))


def reduction(state: Analysis, node: ir.Node) -> None:
    """Reduce*: axes that are reduced must stay."""
    axes = state.axes(node.inputs[0])
    attribute = node.attributes.get("axes")
    given = list(attribute.as_ints()) if attribute is not None else None
    if given is None and input_at(node, 1) is not None:
        constant = constant_of(input_at(node, 1))
        if constant is None:
            state.refuse(node, f"{label(node)}: its axes are computed")
            return
        given = [int(item) for item in constant.reshape(-1)]
    if not given:
        given = [] if attribute_int(node, "noop_with_empty_axes", 0) else list(range(len(axes)))
    reduced = {item % max(len(axes), 1) for item in given}
    for place in sorted(reduced):
        state.lock(axes[place], f"{label(node)} reduces over it")
    keep = attribute_int(node, "keepdims", 1)
    rest = [
        None if place in reduced else item for place, item in enumerate(axes) if keep or place not in reduced
    ]
    state.give(node.outputs[0], rest)


def triangle(state: Analysis, node: ir.Node) -> None:
    """Trilu: which elements of the last two axes stay depends on where they are."""
    axes = state.axes(node.inputs[0])
    for labels in axes[-2:]:
        state.lock(labels, f"{label(node)} counts along it")
    state.give(node.outputs[0], axes)

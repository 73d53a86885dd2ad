"""Labels through operators that only move values."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from greencc.core.graph import attribute_int, attribute_ints, constant_of, input_at, label
from greencc.core.groups.analysis import Analysis
from greencc.core.groups.edits import Sizes, SliceBounds, SplitSizes
from greencc.core.groups.labels import AxisLabels, concatenate


def transpose(state: Analysis, node: ir.Node) -> None:
    axes = state.axes(node.inputs[0])
    order = attribute_ints(node, "perm", tuple(reversed(range(len(axes)))))
    state.give(node.outputs[0], [axes[place] for place in order])


def squeeze(state: Analysis, node: ir.Node) -> None:
    """Drop axes of one; they never have labels."""
    axes = state.axes(node.inputs[0])
    x = node.inputs[0]
    assert x is not None
    given = _axes_of(node)
    if given is None and input_at(node, 1) is not None:
        state.refuse(node, f"{label(node)}: its axes are computed")
        return
    gone = (
        {item % len(axes) for item in given}
        if given is not None
        else {place for place in range(len(axes)) if state.dim(x, place) == 1}
    )
    state.give(node.outputs[0], [item for place, item in enumerate(axes) if place not in gone])


def unsqueeze(state: Analysis, node: ir.Node) -> None:
    axes = list(state.axes(node.inputs[0]))
    given = _axes_of(node)
    if given is None:
        state.refuse(node, f"{label(node)}: its axes are computed")
        return
    rank = len(axes) + len(given)
    new = {item % rank for item in given}
    old = iter(axes)
    state.give(node.outputs[0], [None if place in new else next(old) for place in range(rank)])


def _axes_of(node: ir.Node) -> list[int] | None:
    attribute = node.attributes.get("axes")
    if attribute is not None:
        return list(attribute.as_ints())
    constant = constant_of(input_at(node, 1))
    return None if constant is None else [int(item) for item in constant.reshape(-1)]


def concat(state: Analysis, node: ir.Node) -> None:
    """Labels one after another along the axis; united along the others."""
    values = [value for value in node.inputs if value is not None]
    rank = state.rank(node.outputs[0]) or 1
    axis = attribute_int(node, "axis", 0) % rank
    sizes = [state.dim(value, axis) for value in values]
    result: list[AxisLabels] = []
    for place in range(rank):
        parts = [state.axes(value)[place] for value in values]
        if place != axis:
            joined = next((part for part in parts if part is not None), None)
            for part in parts:
                if joined is not None:
                    state.unite(joined, part, f"{label(node)} joins it with values that cannot be cut")
            result.append(joined)
        elif None in sizes:
            for part in parts:
                state.lock(part, f"{label(node)}: sizes are not known")
            result.append(None)
        else:
            known = [size for size in sizes if size is not None]
            reason = f"{label(node)} joins it from values that cannot be cut"
            result.append(concatenate(parts, known, state.labels, reason))
    state.give(node.outputs[0], result)


def split(state: Analysis, node: ir.Node) -> None:
    """Consecutive parts of an axis."""
    axes = state.axes(node.inputs[0])
    axis = attribute_int(node, "axis", 0) % max(len(axes), 1)
    along = axes[axis]
    if along is None:
        for value in node.outputs:
            state.give(value, axes)
        return
    sizes = [state.dim(value, axis) for value in node.outputs]
    if any(size is None for size in sizes) or (
        input_at(node, 1) is not None and constant_of(input_at(node, 1)) is None
    ):
        state.refuse(node, f"{label(node)}: the sizes of its parts are not known")
        return
    ends = np.cumsum([size for size in sizes if size is not None])[:-1]
    parts = np.split(along, ends)
    for value, part in zip(node.outputs, parts, strict=True):
        if len(part) == 1:
            state.lock(part, f"{label(node)}: a part of one")
        state.give(value, [*axes[:axis], part if len(part) > 1 else None, *axes[axis + 1 :]])
    state.edits.append(SplitSizes(node, parts, as_input=state.opset >= 13))


def slice_(state: Analysis, node: ir.Node) -> None:
    """A range of an axis, in steps of one."""
    axes = list(state.axes(node.inputs[0]))
    operands = [constant_of(input_at(node, index)) for index in range(1, 5)]
    starts, ends, given, steps = operands
    if starts is None or ends is None or (node.op_type == "Slice" and "starts" in node.attributes):
        state.refuse(node, f"{label(node)}: its bounds are not constant")
        return
    places = list(range(len(starts))) if given is None else [int(item) % len(axes) for item in given]
    for number, place in enumerate(places):
        along = axes[place]
        if along is None:
            continue
        step = 1 if steps is None else int(steps[number])
        if step != 1:
            state.lock(along, f"{label(node)} takes every {step}th channel")
            axes[place] = None
            continue
        start, end, _ = slice(int(starts[number]), int(ends[number])).indices(len(along))
        if start == 0 and end == len(along):
            continue
        part = along[start:end]
        if len(part) <= 1:
            state.lock(part, f"{label(node)}: a part of one")
        state.edits.append(SliceBounds(node, number, along, start, max(start, end)))
        axes[place] = part if len(part) > 1 else None
    state.give(node.outputs[0], axes)


def pad(state: Analysis, node: ir.Node) -> None:
    """Padding beside the channels is of no concern; of the channels it is."""
    axes = state.axes(node.inputs[0])
    attribute = node.attributes.get("pads")
    pads = (
        np.array(attribute.as_ints(), np.int64) if attribute is not None else constant_of(input_at(node, 1))
    )
    if pads is None:
        state.refuse(node, f"{label(node)}: its widths are computed")
        return
    chosen = constant_of(input_at(node, 3))
    places = list(range(len(axes))) if chosen is None else [int(item) % len(axes) for item in chosen]
    widths = dict.fromkeys(range(len(axes)), 0)
    for number, place in enumerate(places):
        widths[place] = abs(int(pads[number])) + abs(int(pads[number + len(places)]))
    result: list[AxisLabels] = []
    for place, labels in enumerate(axes):
        if labels is not None and widths[place]:
            state.lock(labels, f"{label(node)} pads the channels")
        result.append(None if widths[place] else labels)
    state.give(node.outputs[0], result)


def resize(state: Analysis, node: ir.Node) -> None:
    """Resize and Upsample change positions, not channels."""
    axes = state.axes(node.inputs[0])
    out = node.outputs[0]
    same: list[AxisLabels] = []
    for place, labels in enumerate(axes):
        if labels is not None and state.dim(out, place) != len(labels):
            state.lock(labels, f"{label(node)} resizes the channels")
            same.append(None)
        else:
            same.append(labels)
    sizes = input_at(node, 3)
    entries = {place: labels for place, labels in enumerate(same) if labels is not None}
    if sizes is not None and entries:
        if constant_of(sizes) is None or "axes" in node.attributes:
            state.refuse(node, f"{label(node)}: its sizes are computed")
        else:
            state.edits.append(Sizes(node, 3, entries))
    state.give(out, same)


def expand(state: Analysis, node: ir.Node) -> None:
    """Broadcast to a shape."""
    x = node.inputs[0]
    assert x is not None
    axes, shape = state.axes(x), constant_of(input_at(node, 1))
    rank = state.rank(node.outputs[0]) or 0
    result: list[AxisLabels] = [*(None,) * (rank - len(axes)), *axes]
    entries: dict[int, AxisLabels] = {}
    for place, labels in enumerate(result):
        if labels is not None and shape is not None:
            entries[place - (rank - len(shape))] = labels
    if shape is None:
        state.refuse(node, f"{label(node)}: its shape is computed")
    elif entries:
        known = {place: labels for place, labels in entries.items() if labels is not None and place >= 0}
        # An entry of 1 keeps the size there is.
        state.edits.append(Sizes(node, 1, {place: item for place, item in known.items() if shape[place] > 1}))
    state.give(node.outputs[0], result)


def tile(state: Analysis, node: ir.Node) -> None:
    axes, repeats = state.axes(node.inputs[0]), constant_of(input_at(node, 1))
    if repeats is None:
        state.refuse(node, f"{label(node)}: its repeats are computed")
        return
    state.give(
        node.outputs[0],
        [
            None if labels is None else np.tile(labels, int(n))
            for labels, n in zip(axes, repeats, strict=True)
        ],
    )


def shape_of(state: Analysis, node: ir.Node) -> None:
    """Shape and Size give numbers that the graph may count on: what they could show must stay."""
    state.refuse(node, f"{label(node)} reads its size")

"""Labels through operators that only move values."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from greencc.core.graph import attribute_int, attribute_ints, constant_of, input_at, label
from greencc.core.groups.analysis import Analysis
from greencc.core.groups.edits import SliceBounds, SplitSizes, part_length
from greencc.core.groups.labels import AxisLabels, concatenate
from greencc.core.groups.parts import Entry
from greencc.core.groups.roles import Role
from greencc.core.groups.sizes import set_target


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
    sizes = [_size(state, value, axis) for value in values]
    result: list[AxisLabels] = []
    for place in range(rank):
        parts = [state.axes(value)[place] for value in values]
        if place != axis:
            result.append(_beside(state, node, place, parts))
        elif None in sizes:
            for part in parts:
                state.lock(part, f"{label(node)}: sizes are not known")
            result.append(None)
        else:
            known = [size for size in sizes if size is not None]
            reason = f"{label(node)} joins it from values that cannot be cut"
            result.append(concatenate(parts, known, state.labels, reason))
    state.give(node.outputs[0], result)


def _size(state: Analysis, value: ir.Value, axis: int) -> int | None:
    """The size of an axis; where inference does not know it, its labels may."""
    labels = state.axes(value)[axis]
    return state.dim(value, axis) if labels is None else len(labels)


def _beside(state: Analysis, node: ir.Node, place: int, parts: list[AxisLabels]) -> AxisLabels:
    """An axis along which all values have the same size; constants shrink with the others."""
    joined = next((part for part in parts if part is not None), None)
    if joined is None:
        return None
    for index, part in enumerate(parts):
        if state.is_constant(node.inputs[index]):
            part = state.constant(node, index, place, Role.PARAMETER)
        state.unite(joined, part, f"{label(node)} joins it with values that cannot be cut")
    return joined


def split(state: Analysis, node: ir.Node) -> None:
    """Consecutive parts of an axis."""
    axes = state.axes(node.inputs[0])
    axis = attribute_int(node, "axis", 0) % max(len(axes), 1)
    along = axes[axis]
    if along is None:
        for value in node.outputs:
            state.give(value, axes)
        return
    given = constant_of(input_at(node, 1))
    sizes = [state.dim(value, axis) for value in node.outputs] if given is None else [int(n) for n in given]
    if None in sizes or (given is None and input_at(node, 1) is not None):
        state.refuse(node, f"{label(node)}: the sizes of its parts are not known")
        return
    ends = np.cumsum([size for size in sizes if size is not None])[:-1]
    parts = np.split(along, ends)
    for value, part in zip(node.outputs, parts, strict=True):
        if value.name:
            state.give(value, [*axes[:axis], part, *axes[axis + 1 :]])
    state.edits.append(SplitSizes(node, parts, as_input=state.opset >= 13))


def slice_(state: Analysis, node: ir.Node) -> None:
    """A range of an axis, in steps of one."""
    axes = list(state.axes(node.inputs[0]))
    starts, ends, given, steps = (constant_of(input_at(node, index)) for index in range(1, 5))
    if input_at(node, 1) is None or (given is None and input_at(node, 3) is not None):
        state.refuse(node, f"{label(node)}: its axes are not constant")
        return
    places = _sliced(state, node, given)
    if starts is None or ends is None or (steps is None and input_at(node, 4) is not None):
        for place in places:
            state.lock(axes[place], f"{label(node)}: its bounds are computed")
            axes[place] = None
        state.give(node.outputs[0], axes)
        return
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
        state.edits.append(SliceBounds(node, number, along, start, max(start, end)))
        axes[place] = along[start:end] if end > start else None
    state.give(node.outputs[0], axes)


def _sliced(state: Analysis, node: ir.Node, given: NDArray[Any] | None) -> list[int]:
    """The axes that a Slice names; without names the first ones, all of them where their number is not known."""
    rank = state.rank(node.inputs[0]) or 1
    if given is not None:
        return [int(item) % rank for item in given]
    named = input_at(node, 1)
    length = None if named is None else part_length(named)
    return list(range(rank if length is None else length))


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
    sizes, chosen = input_at(node, 3), attribute_ints(node, "axes", range(len(axes)))
    known = dict(zip(chosen, state.entries(sizes) or (), strict=False))
    same: list[AxisLabels] = []
    for place, labels in enumerate(axes):
        size: Entry = state.dim(out, place)
        size = known.get(place) if size is None else size
        # A size that counts channels is united with them below.
        if labels is not None and not isinstance(size, np.ndarray) and size != len(labels):
            state.lock(labels, f"{label(node)} resizes the channels")
            same.append(None)
        else:
            same.append(labels)
    if sizes is not None:
        set_target(state, node, 3, [same[place] for place in chosen])
    state.give(out, same)


def expand(state: Analysis, node: ir.Node) -> None:
    """Broadcast to a shape; a constant may shrink along with what it meets."""
    x, entries = node.inputs[0], state.entries(node.inputs[1])
    assert x is not None
    rank = state.rank(node.outputs[0]) or 0
    start = rank - (state.rank(x) or 0)
    result: list[AxisLabels] = [*(None,) * start, *state.axes(x)]
    if state.is_constant(x):
        result[start:] = [state.constant(node, 0, place, Role.PARAMETER) for place in range(rank - start)]
    if entries is None or len(entries) > rank:
        state.refuse(node, f"{label(node)}: its shape is computed")
        for labels in result:
            state.lock(labels, f"{label(node)}: its shape is computed")
        return
    targets: list[AxisLabels] = []
    for place, entry in enumerate(entries, rank - len(entries)):
        labels = result[place]
        if (
            isinstance(entry, np.ndarray)
            and labels is None
            and (place < start or state.dim(x, place - start) == 1)
        ):
            labels = result[place] = entry
        # An entry of 1 keeps the size there is.
        keeps = isinstance(entry, int) and entry == 1
        targets.append(None if keeps else labels)
    set_target(state, node, 1, targets)
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


def size_of(state: Analysis, node: ir.Node) -> None:
    """Size is a number that the graph may count on: what it shows must stay."""
    state.refuse(node, f"{label(node)} reads its size")

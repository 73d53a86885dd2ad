"""Sizes that the graph computes itself: Shape, and what takes entries out of shapes and puts them together.

An entry of such a vector is a number, the labels whose count it is, or None where it does not depend on what is cut.
Only entries that count channels tie something: where a target shape reads them, they are united with the labels of
that axis; any other arithmetic with them locks the channels that they count.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from greencc.core.graph import attribute_int, constant_of, input_at, is_op, label
from greencc.core.groups.analysis import Analysis
from greencc.core.groups.edits import Sizes, part_length
from greencc.core.groups.labels import AxisLabels
from greencc.core.groups.parts import Entries

# Where rules read a shape as a shape.
_TARGETS = frozenset([("Reshape", 1), ("Expand", 1), ("Resize", 3), ("ConstantOfShape", 0)])
_SAME = ("Identity", "Cast", "Reshape", "Squeeze", "Unsqueeze")


def follow(state: Analysis, node: ir.Node) -> bool:
    """Hand on what is known of sizes; whether no other rule has to look at the node."""
    if is_op(node, "Shape"):
        _shape(state, node)
        return True
    sized = [index for index, value in enumerate(node.inputs) if value in state.sizes]
    joins = _joins_sizes(node) and not any(state.has_labels(value) for value in node.inputs)
    if not sized and not joins:
        return False
    made = _handed(state, node) if joins or (sized == [0] and not is_op(node, "Concat")) else None
    if made is not None:
        state.sizes[node.outputs[0]] = made
        return True
    for index in sized:
        if not is_op(node, node.op_type) or (node.op_type, index) not in _TARGETS:
            state.lock_sizes(node.inputs[index], f"{label(node)} computes with its size")
    return False


def _shape(state: Analysis, node: ir.Node) -> None:
    axes = state.axes(node.inputs[0])
    start, end = attribute_int(node, "start", 0), attribute_int(node, "end", len(axes))
    if state.rank(node.inputs[0]) is not None:
        state.sizes[node.outputs[0]] = tuple(axes[start:end])


def _joins_sizes(node: ir.Node) -> bool:
    kind = node.outputs[0].dtype if node.outputs else None
    return is_op(node, "Concat") and kind is ir.DataType.INT64 and (part_length(node.outputs[0]) or 0) > 0


def _handed(state: Analysis, node: ir.Node) -> Entries | None:
    """The entries of a node's output; None where they are not known."""
    rank = state.rank(node.outputs[0])
    if rank is None or rank > 1:
        return None
    known = state.entries(node.inputs[0])
    if is_op(node, "Concat"):
        return _joined(state, node)
    if known is None:
        return None
    if is_op(node, *_SAME):
        return known
    if is_op(node, "Gather"):
        chosen = constant_of(node.inputs[1])
        return None if chosen is None else tuple(known[int(place)] for place in chosen.reshape(-1))
    if is_op(node, "Slice"):
        starts, ends, _, steps = (constant_of(input_at(node, index)) for index in range(1, 5))
        if starts is None or ends is None or (steps is None and input_at(node, 4) is not None):
            return None
        step = 1 if steps is None else int(steps.reshape(-1)[0])
        # An end below the start of a backward range stands for "to the beginning".
        start, end = int(starts.reshape(-1)[0]), int(ends.reshape(-1)[0])
        return None if step < 0 else known[slice(start, end, step)]
    return None


def _joined(state: Analysis, node: ir.Node) -> Entries | None:
    found: Entries = ()
    for value in node.inputs:
        length = part_length(value)
        known = state.entries(value)
        if known is None and length is None:
            return None
        found += known if known is not None else (None,) * (length or 0)
    return found


def set_target(state: Analysis, node: ir.Node, index: int, result: Sequence[AxisLabels]) -> None:
    """What is cut of a result has to be cut of the shape that the node reads as an input.

    Args:
        state: The analysis.
        node: Reads the shape.
        index: Which input is the shape.
        result: The labels that each entry stands for; None where the entry stays.
    """
    entries = state.entries(node.inputs[index])
    reason = f"{label(node)}: its shape is computed"
    if entries is None or len(entries) != len(result):
        for labels in result:
            state.lock(labels, reason)
        return
    changed = {}
    for place, (entry, labels) in enumerate(zip(entries, result, strict=True)):
        if isinstance(entry, np.ndarray):
            state.unite(entry, labels, f"{label(node)} takes its size for something else")
        elif labels is not None and entry is None:
            state.lock(labels, reason)
        elif labels is not None and entry is not None and entry >= 0:
            if _can_change(node.inputs[index], place):
                changed[place] = labels
            else:
                state.lock(labels, reason)
    if changed:
        state.edits.append(Sizes(node, index, changed))


def _can_change(shape: ir.Value | None, place: int) -> bool:
    """Whether an entry is in a constant, or in such a part of a Concat."""
    if constant_of(shape) is not None:
        return True
    joint = None if shape is None else shape.producer()
    if joint is None or not is_op(joint, "Concat"):
        return False
    for part in joint.inputs:
        length = part_length(part)
        if length is None:
            return False
        if place < length:
            return _can_change(part, place)
        place -= length
    return False


def constant_of_shape(state: Analysis, node: ir.Node) -> None:
    """A value of its own shape: it may shrink along with what it meets."""
    out = node.outputs[0]
    entries = state.entries(node.inputs[0])
    if entries is None or state.rank(out) != len(entries):
        state.lock_sizes(node.inputs[0], f"{label(node)} computes with its size")
        return
    made: list[AxisLabels] = []
    for entry in entries:
        if isinstance(entry, int):
            made.append(state.labels.fresh(entry) if entry > 1 else None)
        else:
            made.append(entry)
    set_target(state, node, 0, made)
    state.give(out, made)

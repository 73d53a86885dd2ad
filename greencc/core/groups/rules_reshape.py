"""Labels through Reshape, Flatten and the shuffles, which split axes and put them together."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from greencc.core.graph import attribute_int, constant_of, input_at, is_op, label
from greencc.core.groups.analysis import Analysis
from greencc.core.groups.labels import AxisLabels, Ints
from greencc.core.groups.sizes import set_target

Dims = tuple[int | str | None, ...]
# A stretch of input axes and the stretch of output axes with the same elements.
Block = tuple[range, range]
# How far a split axis is followed to see whether products treat it as a batch of heads.
_REACH = 12
_POINTWISE = ("Add", "Cast", "Div", "Identity", "Mul", "Sub")


def reshape(state: Analysis, node: ir.Node) -> None:
    """Reshape and Flatten."""
    x, out = node.inputs[0], node.outputs[0]
    assert x is not None
    axes, before, after = state.axes(x), _dims(x), _dims(out)
    blocks = matching(before, after)
    result: list[AxisLabels] = [None] * len(after)
    covered: set[int] = set()
    for old, new in blocks:
        covered |= set(old)
        _block(state, node, old, new, result)
    for place, labels in enumerate(axes):
        if labels is not None and place not in covered:
            state.lock(labels, f"{label(node)}: it cannot be told where the channels go")
    if is_op(node, "Reshape"):
        entries = state.entries(node.inputs[1]) or ()
        for place, (labels, entry) in enumerate(zip(axes, entries, strict=False)):
            # 0 copies the size of the input's axis: of another one than the labels go to.
            if isinstance(entry, int) and entry == 0 and (place >= len(result) or result[place] is None):
                state.lock(labels, f"{label(node)} copies its size")
        set_target(state, node, 1, result)
    state.give(out, result)


def _dims(value: ir.Value) -> Dims:
    if value.shape is None:
        return ()
    return tuple(dim if isinstance(dim, int) else dim.value for dim in value.shape)


def matching(before: Dims, after: Dims) -> list[Block]:
    """The shortest stretches of axes with equal products, from the back, then from the front.

    What stands between, where sizes are not known, is in no block, unless a single unknown axis is left on both sides.
    """
    back: list[Block] = []
    low_i, low_j = len(before), len(after)
    while low_i and low_j:
        block = _stretch(before[:low_i], after[:low_j])
        if block is None:
            break
        back.append((range(block[0], low_i), range(block[1], low_j)))
        low_i, low_j = block
    front: list[Block] = []
    i = j = 0
    while i < low_i and j < low_j and before[i] is not None and before[i] == after[j]:
        front.append((range(i, i + 1), range(j, j + 1)))
        i, j = i + 1, j + 1
    return front + back[::-1]


def _stretch(before: Dims, after: Dims) -> tuple[int, int] | None:
    """Where the last stretch with equal products begins in both."""
    i, j = len(before) - 1, len(after) - 1
    a, b = before[i], after[j]
    if isinstance(a, str) and a == b:
        return i, j
    if not isinstance(a, int) or not isinstance(b, int):
        return None
    while a != b:
        if a < b:
            i -= 1
            step = before[i] if i >= 0 else None
            if not isinstance(step, int):
                return None
            a *= step
        else:
            j -= 1
            step = after[j] if j >= 0 else None
            if not isinstance(step, int):
                return None
            b *= step
    return i, j


def _block(state: Analysis, node: ir.Node, old: range, new: range, result: list[AxisLabels]) -> None:
    x, out = node.inputs[0], node.outputs[0]
    assert x is not None
    axes = state.axes(x)
    labelled = [place for place in old if axes[place] is not None]
    if not labelled:
        return
    if len(labelled) > 1:
        for place in labelled:
            state.lock(axes[place], f"{label(node)} puts several cuttable axes together")
        return
    (place,) = labelled
    labels = axes[place]
    assert labels is not None
    sizes = [int(x.shape[item]) for item in old]  # type: ignore[index,arg-type]
    wanted = [int(out.shape[item]) for item in new]  # type: ignore[index,arg-type]
    view = [1] * len(sizes)
    view[place - old.start] = len(labels)
    spread = np.broadcast_to(labels.reshape(view), sizes).reshape(wanted)
    varying = [axis for axis in range(len(wanted)) if _varies(state, spread, axis)]
    if not varying:
        return
    carrier = (
        varying[0]
        if len(varying) == 1
        else _carrier(state, node, [new[axis] for axis in varying]) - new.start
    )
    for axis in range(len(wanted)):
        if axis != carrier:
            spread = np.expand_dims(state.labels.merge(spread, axis), axis)
    found = spread.reshape(-1)
    if len(varying) > 1 and _is_batch(state, out, new[carrier]):
        state.name_kind(found, "heads")
    result[new[carrier]] = found


def _varies(state: Analysis, spread: Ints, axis: int) -> bool:
    roots = state.labels.roots(spread)
    return bool((roots != np.take(roots, [0], axis=axis)).any())


def _carrier(state: Analysis, node: ir.Node, axes: list[int]) -> int:
    """Of the axes that channels are split over, the one that can be cut: the heads, else the longest.

    The other ones must stay: a tensor cannot lose single elements. Heads are what a later product takes as a batch.
    """
    out = node.outputs[0]
    heads = [axis for axis in axes if _is_batch(state, out, axis)]
    if heads:
        return max(heads, key=lambda axis: state.dim(out, axis) or 0)
    return max(axes, key=lambda axis: state.dim(out, axis) or 0)


def _is_batch(state: Analysis, value: ir.Value, axis: int) -> bool:
    """Whether the next product takes this axis as a batch axis, or the next normalization as its channels."""
    for _ in range(_REACH):
        rank = state.rank(value) or 0
        users = [usage for usage in value.uses() if usage.node.graph is state.graph]
        if any(is_op(usage.node, "InstanceNormalization") for usage in users):
            return axis == 1
        if any(is_op(usage.node, "MatMul") for usage in users):
            return axis < rank - 2
        follow = next((usage.node for usage in users if _moves(usage.node)), None)
        if follow is None:
            return False
        moved = _moved(state, follow, axis, rank)
        if moved is None:
            return False
        axis, value = moved, follow.outputs[0]
    return False


def _moves(node: ir.Node) -> bool:
    return is_op(node, "Transpose", "Gather", "Squeeze", "Split", "Slice", *_POINTWISE)


def _moved(state: Analysis, node: ir.Node, axis: int, rank: int) -> int | None:
    """Where an axis is after a node; None where it is gone."""
    if is_op(node, "Transpose"):
        order = node.attributes["perm"].as_ints() if "perm" in node.attributes else range(rank)[::-1]
        return list(order).index(axis)
    if is_op(node, "Gather"):
        indices = constant_of(input_at(node, 1))
        gone = attribute_int(node, "axis", 0) % rank
        if indices is None or indices.ndim or gone == axis:
            return None
        return axis - (gone < axis)
    if is_op(node, "Squeeze"):
        constant = constant_of(input_at(node, 1))
        taken = [] if constant is None else [int(item) % rank for item in constant.reshape(-1)]
        return None if axis in taken else axis - sum(item < axis for item in taken)
    return axis + (state.rank(node.outputs[0]) or rank) - rank


def depth_to_space(state: Analysis, node: ir.Node) -> None:
    """Blocks of b x b channels become positions: a channel of the output is b * b of the input."""
    axes, block = state.axes(node.inputs[0]), attribute_int(node, "blocksize", 1)
    channels = axes[1]
    _lock_positions(state, node)
    if channels is None:
        state.give(node.outputs[0], (axes[0], None, None, None))
        return
    mode = node.attributes.get("mode")
    rows_first = mode is not None and mode.as_string() == "CRD"
    square = block * block
    grid = channels.reshape((-1, square) if rows_first else (square, -1))
    made = state.labels.merge(grid, 1 if rows_first else 0)
    state.give(node.outputs[0], (axes[0], made, None, None))


def space_to_depth(state: Analysis, node: ir.Node) -> None:
    """Positions become channels: b * b copies of the channels one after another."""
    axes, block = state.axes(node.inputs[0]), attribute_int(node, "blocksize", 1)
    channels = axes[1]
    _lock_positions(state, node)
    made = None if channels is None else np.tile(channels, block * block)
    state.give(node.outputs[0], (axes[0], made, None, None))


def _lock_positions(state: Analysis, node: ir.Node) -> None:
    for labels in state.axes(node.inputs[0])[2:]:
        state.lock(labels, f"{label(node)} rearranges it")

"""How each operator treats a positive scale per channel of its inputs: the walk that labels a graph.

What is not listed here fixes the scale of all its inputs, so an unknown operator ends a chain and can never be
rewritten wrongly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from greencc.core.graph import attribute_int, attribute_ints, constant_of, input_at
from greencc.passes._equalize_graph import Labelling, Labels, add_layer
from greencc.passes._equalize_joins import concat, join, matmul, product

Dim = int | ir.SymbolicDim
_DOMAINS = ("", "ai.onnx")


def label_channels(graph: ir.Graph) -> Labelling:
    """Label the values of a graph; shapes must be inferred. Nodes in subgraphs take no part."""
    labelling = Labelling(graph)
    for node in graph:
        rule = _RULES.get(node.op_type) if node.domain in _DOMAINS else None
        if any(attribute.is_ref() for attribute in node.attributes.values()):
            rule = None
        if add_layer(node, labelling):
            continue
        labels = None if rule is None else rule(node, labelling)
        if labels is None:
            for value in node.inputs:
                labelling.pin(labelling.of(value))
        else:
            labelling.carry(node.outputs[0], labels)
    return labelling


Rule = Callable[[ir.Node, Labelling], Labels | None]


def _same(node: ir.Node, labelling: Labelling) -> Labels | None:
    """f(s x) = s f(x), element by element."""
    return labelling.of(node.inputs[0])


def _prelu(node: ir.Node, labelling: Labelling) -> Labels | None:
    labelling.pin(labelling.of(input_at(node, 1)))
    return labelling.of(node.inputs[0])


def _dropout(node: ir.Node, labelling: Labelling) -> Labels | None:
    mode = input_at(node, 2)
    if mode is not None:
        known = constant_of(mode)
        if known is None or bool(known.any()):
            return None
    return labelling.of(node.inputs[0])


def _clip(node: ir.Node, labelling: Labelling) -> Labels | None:
    """Only bounds at 0 and infinity commute with every positive scale."""
    bounds = [-np.inf, np.inf]
    for position, name in enumerate(("min", "max")):
        attribute = node.attributes.get(name)
        value = input_at(node, position + 1)
        if attribute is not None:
            bounds[position] = attribute.as_float()
        elif value is not None:
            known = constant_of(value)
            if known is None or known.size != 1:
                return None
            bounds[position] = float(known.reshape(()))
    limit = float(np.finfo(np.float32).max)
    low, high = (0.0 if abs(bound) >= limit else bound for bound in bounds)
    return labelling.of(node.inputs[0]) if low == 0.0 and high == 0.0 else None


def _spatial(node: ir.Node, labelling: Labelling) -> Labels | None:
    """Pooling: channels stay apart, positions mix."""
    labels = labelling.of(node.inputs[0])
    if labels is None or labels.ndim < 3 or any(size > 1 for size in labels.shape[2:]):
        return None
    return labels


def _transpose(node: ir.Node, labelling: Labelling) -> Labels | None:
    labels = labelling.of(node.inputs[0])
    if labels is None:
        return None
    return labels.transpose(attribute_ints(node, "perm", tuple(reversed(range(labels.ndim)))))


def _reshape(node: ir.Node, labelling: Labelling) -> Labels | None:
    x, y = node.inputs[0], node.outputs[0]
    labels = labelling.of(x)
    if labels is None or x is None or x.shape is None or y.shape is None:
        return None
    return reshaped(labels, tuple(x.shape), tuple(y.shape))


def reshaped(labels: Labels, before: Sequence[Dim], after: Sequence[Dim]) -> Labels | None:
    """Labels after a reshape between these shapes, or None where it mixes channels in a way not known statically.

    Blocks of dimensions with equal products are matched from both ends; the dimensions left in the middle, unknown
    ones among them, must not carry labels.
    """
    if any(dim == 0 for dim in (*before, *after)):
        return None
    left = _blocks(before, after)
    taken = left[-1] if left else (0, 0)
    rest_before, rest_after = before[taken[0] :], after[taken[1] :]
    right = _blocks(rest_before[::-1], rest_after[::-1])
    back = right[-1] if right else (0, 0)
    middle = (len(before) - back[0], len(after) - back[1])
    if any(size > 1 for size in labels.shape[taken[0] : middle[0]]):
        return None
    new: list[int] = []
    start = (0, 0)
    edges = [*left, middle, *((len(before) - i, len(after) - j) for i, j in reversed(right[:-1]))]
    if right:
        edges.append((len(before), len(after)))
    result = labels
    # Block by block: the axes of a block that carries labels get their full size, then the shape it is given.
    for edge in edges:
        part = labels.shape[start[0] : edge[0]]
        target = after[start[1] : edge[1]]
        if max(part, default=1) > 1:
            sizes = [int(dim) for dim in before[start[0] : edge[0]] if isinstance(dim, int)]
            grown = [*result.shape]
            grown[start[0] : edge[0]] = sizes
            result = np.broadcast_to(result, grown)
            new += [int(dim) for dim in target if isinstance(dim, int)]
        else:
            new += [1] * len(target)
        start = edge
    return result.reshape(new)


def _blocks(before: Sequence[Dim], after: Sequence[Dim]) -> list[tuple[int, int]]:
    """Ends (i, j) such that before[:i] and after[:j] have equal products, as far as that is known."""
    ends: list[tuple[int, int]] = []
    i = j = 0
    while i < len(before) and j < len(after):
        first, second = before[i], after[j]
        i, j = i + 1, j + 1
        if not isinstance(first, int) or not isinstance(second, int):
            if isinstance(first, int) or isinstance(second, int):
                return ends
            if first.value is None or first.value != second.value:
                return ends
        else:
            one, other = first, second
            while one != other:
                sequence, position = (before, i) if one < other else (after, j)
                if position >= len(sequence) or not isinstance(following := sequence[position], int):
                    return ends
                if one < other:
                    one, i = one * following, i + 1
                else:
                    other, j = other * following, j + 1
        ends.append((i, j))
    return ends


def _pad(node: ir.Node, labelling: Labelling) -> Labels | None:
    labels = labelling.of(node.inputs[0])
    if labels is None or input_at(node, 3) is not None:
        return None
    if "pads" in node.attributes:
        pads: Sequence[int] = attribute_ints(node, "pads", ())
        value = node.attributes["value"].as_float() if "value" in node.attributes else 0.0
    else:
        known = constant_of(input_at(node, 1))
        filler = constant_of(input_at(node, 2)) if input_at(node, 2) is not None else np.zeros(1)
        if known is None or filler is None or filler.size != 1:
            return None
        pads, value = [int(pad) for pad in known], float(filler.reshape(()))
    mode = node.attributes["mode"].as_string() if "mode" in node.attributes else "constant"
    if (mode == "constant" and value != 0.0) or len(pads) != 2 * labels.ndim:
        return None
    moved = any(
        size > 1 and (pads[axis] or pads[axis + labels.ndim]) for axis, size in enumerate(labels.shape)
    )
    return None if moved else labels


def _resize(node: ir.Node, labelling: Labelling) -> Labels | None:
    """Interpolation is linear; the axes that carry labels must keep their size."""
    x, y = node.inputs[0], node.outputs[0]
    labels = labelling.of(x)
    mode = node.attributes.get("coordinate_transformation_mode")
    if mode is not None and mode.as_string() == "tf_crop_and_resize":
        return None
    if labels is None or x is None or x.shape is None or y.shape is None:
        return None
    same = all(
        size == 1 or (isinstance(x.shape[axis], int) and x.shape[axis] == y.shape[axis])
        for axis, size in enumerate(labels.shape)
    )
    return labels if same else None


def _reduce(node: ir.Node, labelling: Labelling) -> Labels | None:
    """Sums, means and extrema over axes that carry no labels."""
    labels = labelling.of(node.inputs[0])
    if labels is None:
        return None
    axes = attribute_ints(node, "axes", ())
    if input_at(node, 1) is not None:
        known = constant_of(input_at(node, 1))
        if known is None:
            return None
        axes = tuple(int(axis) for axis in known)
    if not axes and attribute_int(node, "noop_with_empty_axes", 0):
        return labels
    chosen = {axis % labels.ndim for axis in axes} or set(range(labels.ndim))
    if any(labels.shape[axis] > 1 for axis in chosen):
        return None
    if attribute_int(node, "keepdims", 1):
        return labels
    return labels.reshape([size for axis, size in enumerate(labels.shape) if axis not in chosen])


def _gather(node: ir.Node, labelling: Labelling) -> Labels | None:
    labels = labelling.of(node.inputs[0])
    index = constant_of(input_at(node, 1))
    if labels is None or index is None or index.ndim > 1:
        return None
    axis = attribute_int(node, "axis", 0) % labels.ndim
    size = labels.shape[axis]
    if size > 1 and index.size and not -size <= int(index.min()) <= int(index.max()) < size:
        return None
    if size == 1:
        index = np.zeros([1] * index.ndim, np.int64)
    return np.take(labels, index.astype(np.int64), axis)


def _split(node: ir.Node, labelling: Labelling) -> Labels | None:
    labels = labelling.of(node.inputs[0])
    if labels is None:
        return None
    axis = attribute_int(node, "axis", 0) % labels.ndim
    parts: list[Labels] = []
    start = 0
    for value in node.outputs:
        size = value.shape[axis] if value.shape is not None else None
        if labels.shape[axis] == 1:
            parts.append(labels)
        elif isinstance(size, int):
            parts.append(np.take(labels, range(start, start + size), axis))
            start += size
        else:
            return None
    for value, part in zip(node.outputs[1:], parts[1:], strict=True):
        labelling.carry(value, part)
    return parts[0]


def _slice(node: ir.Node, labelling: Labelling) -> Labels | None:
    labels = labelling.of(node.inputs[0])
    known = [constant_of(input_at(node, index)) for index in range(1, 5)]
    if labels is None or known[0] is None or known[1] is None or len(node.inputs) < 3:
        return None
    if any(found is None and input_at(node, 1 + index) is not None for index, found in enumerate(known)):
        return None
    starts, ends = known[0].tolist(), known[1].tolist()
    axes = list(range(len(starts))) if known[2] is None else known[2].tolist()
    steps = [1] * len(starts) if known[3] is None else known[3].tolist()
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if labels.shape[axis] == 1:
            continue
        if step < 0:
            return None
        labels = labels[(slice(None),) * (axis % labels.ndim) + (slice(start, end, step),)]
    return labels


_RULES: dict[str, Rule] = {
    **dict.fromkeys(("Abs", "Identity", "LeakyRelu", "Neg", "Relu"), _same),
    **dict.fromkeys(("AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool"), _spatial),
    **dict.fromkeys(("Flatten", "Reshape", "Squeeze", "Unsqueeze"), _reshape),
    **dict.fromkeys(("Add", "Max", "Mean", "Min", "Sub", "Sum", "Where"), join),
    **dict.fromkeys(("Div", "Mul"), product),
    **dict.fromkeys(("ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum"), _reduce),
    "Clip": _clip,
    "Concat": concat,
    "Dropout": _dropout,
    "Gather": _gather,
    "MatMul": matmul,
    "PRelu": _prelu,
    "Pad": _pad,
    "Resize": _resize,
    "Slice": _slice,
    "Split": _split,
    "Transpose": _transpose,
}

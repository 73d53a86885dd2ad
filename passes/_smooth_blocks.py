"""What can be smoothed in a graph: activations that weights multiply, and the operands of attention scores.

A block is a pair of places that take a scale per channel, one divided by it and one multiplied, between which the
function stays the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from greencc.core.graph import attribute_int, constant_tensor, input_at, is_op, label
from greencc.passes._linear_view import LinearView, linear_view
from greencc.passes._quantize_insert import release
from greencc.passes._smooth_layout import Channels
from greencc.passes._smooth_trace import Blocked, Fold, Trace, trace

# With scales up to 1024 the constants stay far from overflow.
_LARGEST = 1e30


@dataclass(frozen=True)
class Projections:
    """An activation X and the nodes that multiply it by weights.

    Attributes:
        value: X.
        axis: Of the channels of X: 1 for convolutions, else -1.
        readers: Those nodes; others may read X as well.
        channels: How many there are.
        divided: The constants that take 1 / s; None where X must be divided by a node of its own.
        multiplied: The weights, which take s.
        blocked: Why `divided` is None.
        source: How the scale reaches the constants in `divided`.
    """

    value: ir.Value
    axis: int
    readers: tuple[LinearView, ...]
    channels: int
    divided: tuple[Fold, ...] | None
    multiplied: tuple[Fold, ...]
    blocked: str = ""
    source: Trace | None = None

    @property
    def node(self) -> ir.Node:
        return self.readers[0].node


@dataclass(frozen=True)
class Scores:
    """The product of queries and keys.

    Attributes:
        node: The MatMul.
        query_channels: The channel of each element of its first operand.
        key_channels: And of its second.
        divided: The constants that scale the queries.
        multiplied: Those that scale the keys.
    """

    node: ir.Node
    query_channels: Channels
    key_channels: Channels
    divided: tuple[Fold, ...]
    multiplied: tuple[Fold, ...]

    @property
    def channels(self) -> int:
        return self.query_channels.size


Block = Projections | Scores


def attention_product(block: Projections) -> tuple[ir.Node, Channels] | None:
    """The attention product a projection's input is a rearrangement of, where its values get the scale."""
    if block.divided is None or block.source is None or block.source.product is None:
        return None
    node, channels = block.source.product, block.source.product_channels
    assert channels is not None
    operand = node.inputs[1]
    same_rank = operand is not None and operand.shape is not None and len(operand.shape) == channels.ndim
    return (node, channels) if same_rank and channels.size == block.channels else None


def find_projections(graph: ir.Graph, ops: frozenset[str]) -> Iterator[Projections | Blocked]:
    """The activations that nodes with constant weights read, in graph order.

    Args:
        graph: The main graph, with shapes inferred.
        ops: Operators to look at.
    """
    readers: dict[tuple[ir.Value, int], list[LinearView]] = {}
    for node in graph:
        view = linear_view(node) if node.op_type in ops else None
        x = input_at(node, 0)
        if view is None or x is None or x.dtype not in (ir.DataType.FLOAT, None) or x.shape is None:
            continue
        axis = 1 if view.kernel else -1
        if len(x.shape) >= 2 and x.shape[axis] == _channel_count(view):
            readers.setdefault((x, axis), []).append(view)
    for (x, axis), views in readers.items():
        yield _projections(x, axis, tuple(views))


def _channel_count(view: LinearView) -> int:
    return view.groups * view.inputs // math.prod(view.kernel)


def column_channels(view: LinearView) -> Channels:
    """The channel of X that each input of the weight matrices belongs to, (groups, inputs)."""
    size = math.prod(view.kernel)
    return np.repeat(np.arange(_channel_count(view)), size).reshape(view.groups, view.inputs)


def _projections(x: ir.Value, axis: int, views: tuple[LinearView, ...]) -> Projections | Blocked:
    nodes = frozenset(view.node for view in views)
    weights = [_weight_fold(view, nodes) for view in views]
    problem = next((fold.reason for fold in weights if isinstance(fold, Blocked)), None)
    if problem is not None:
        return Blocked(problem)
    multiplied = tuple(fold for fold in weights if isinstance(fold, Fold))
    assert x.shape is not None
    size = _channel_count(views[0])
    shape = [1] * len(x.shape)
    shape[axis] = size
    found = trace(x, np.arange(size).reshape(shape), nodes)
    if isinstance(found, Trace):
        reason = _unusable(found.folds)
        if reason is None:
            return Projections(x, axis, views, size, found.folds, multiplied, source=found)
        found = Blocked(reason)
    return Projections(x, axis, views, size, None, multiplied, blocked=found.reason)


def _weight_fold(view: LinearView, readers: frozenset[ir.Node]) -> Fold | Blocked:
    value = view.node.inputs[1]
    tensor = constant_tensor(value)
    assert value is not None
    assert tensor is not None
    if tensor.dtype is not ir.DataType.FLOAT:
        return Blocked(f"the weight of {label(view.node)} is not float32")
    if any(use.node not in readers for use in value.uses()):
        return Blocked(f"the weight of {label(view.node)} is shared with a node that reads another input")
    fold = Fold(view.node, 1, _weight_channels(view))
    reason = _unusable((fold,))
    return fold if reason is None else Blocked(reason)


def _weight_channels(view: LinearView) -> Channels:
    """The channel of X of each element of a weight as it is stored; broadcasts."""
    numbers = np.arange(_channel_count(view))
    ones = (1,) * len(view.kernel)
    if view.node.op_type == "Conv":
        return np.repeat(numbers.reshape(view.groups, -1), view.outputs, axis=0).reshape(
            view.weight_shape[0], -1, *ones
        )
    if view.node.op_type == "Gemm" and attribute_int(view.node, "transB", 0):
        return numbers
    return numbers.reshape(-1, 1, *ones)


def find_scores(graph: ir.Graph, ops: frozenset[str]) -> Iterator[Scores]:
    """The products of two activations whose operands can both be scaled exactly, in graph order."""
    for node in graph:
        if not is_op(node, "MatMul") or "MatMul" not in ops:
            continue
        queries, keys = input_at(node, 0), input_at(node, 1)
        layout = _score_channels(queries, keys)
        if queries is None or keys is None or queries is keys or layout is None:
            continue
        sides = [
            trace(value, channels, frozenset((node,)))
            for value, channels in zip((queries, keys), layout, strict=True)
        ]
        if all(isinstance(side, Trace) and _unusable(side.folds) is None for side in sides):
            folds = [side.folds for side in sides if isinstance(side, Trace)]
            yield Scores(node, layout[0], layout[1], folds[0], folds[1])


def _score_channels(queries: ir.Value | None, keys: ir.Value | None) -> tuple[Channels, Channels] | None:
    """Channels (per head, where the number of heads is known) of Q (..., T, d) and K^T (..., d, T)."""
    if queries is None or keys is None or queries.shape is None or keys.shape is None:
        return None
    q, k = tuple(queries.shape), tuple(keys.shape)
    if len(q) != len(k) or len(q) < 2 or q[-1] != k[-2] or not isinstance(q[-1], int):
        return None
    heads = q[-3] if len(q) >= 4 and q[-3] == k[-3] and isinstance(q[-3], int) else 1
    outer = (1,) * (len(q) - 3) + (heads,) if len(q) >= 3 else ()
    numbers = np.arange(heads * q[-1])
    return numbers.reshape(*outer, 1, q[-1]), numbers.reshape(*outer, q[-1], 1)


def _unusable(folds: tuple[Fold, ...]) -> str | None:
    """Why constants cannot take a scale: they are not finite, or so large that they might overflow."""
    for fold in folds:
        tensor = constant_tensor(fold.node.inputs[fold.index])
        assert tensor is not None
        values = tensor.numpy()
        peak = max(float(values.max()), -float(values.min())) if values.size else 0.0
        del values
        release(tensor)
        if not peak < _LARGEST:
            return f"a constant of {label(fold.node)} is not finite, or too large to scale"
    return None

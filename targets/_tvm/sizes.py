"""Tensors of sizes: what Shape gives and what is computed of it, known while the graph is lowered.

TVM's front end follows few operators with sizes as operands. Exporters write more: casts, slices, sums, products.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from greencc.core.data import Array
from greencc.core.graph import attribute_int, attribute_ints, constant_of, input_at, is_op

# Longer constants are data, not sizes.
_MOST = 16


class Sizes:
    """Integer tensors of rank 0 or 1 whose entries are numbers or expressions of the free sizes, by value."""

    def __init__(self) -> None:
        self._known: dict[ir.Value, Array] = {}

    def of(self, value: ir.Value | None) -> Array | None:
        """Entries as an array of objects (int or Relax expression), or None where they are not known."""
        if value is None:
            return None
        if value in self._known:
            return self._known[value]
        constant = constant_of(value)
        if constant is None or constant.dtype.kind not in "iu" or constant.ndim > 1 or constant.size > _MOST:
            return None
        return constant.astype(object)

    def follow(self, node: ir.Node, shape: Sequence[Any] | None) -> bool:
        """Compute the node's output from sizes, if they are what it reads.

        Args:
            node: Of the graph.
            shape: Of its first input, for Shape.
        """
        result = self._shape(node, shape) if is_op(node, "Shape") else self._result(node)
        if result is None:
            return False
        self._known[node.outputs[0]] = result
        return True

    def _shape(self, node: ir.Node, shape: Sequence[Any] | None) -> Array | None:
        if shape is None:
            return None
        start, end = attribute_int(node, "start", 0), attribute_int(node, "end", len(shape))
        return _objects([_plain(size) for size in list(shape)[start:end]])

    def _result(self, node: ir.Node) -> Array | None:
        if not is_op(node, *_FOLLOWED) or not node.inputs:
            return None
        operands = [self.of(value) for value in node.inputs]
        if any(item is None for item in operands):
            return None
        values = [item for item in operands if item is not None]
        data = values[0]
        match node.op_type:
            case "Cast":
                kind = ir.DataType(attribute_int(node, "to", 0))
                return data if kind in (ir.DataType.INT64, ir.DataType.INT32) else None
            case "Identity":
                return data
            case "Concat":
                return np.concatenate([item.reshape(-1) for item in values])
            case "Gather":
                return np.asarray(data[values[1].astype(np.int64)], dtype=object)
            case "Unsqueeze":
                return data.reshape(-1) if data.ndim == 0 else None
            case "Squeeze":
                return data.reshape(()) if data.size == 1 else None
            case "Reshape":
                return data.reshape(values[1].astype(np.int64).tolist()) if values[1].size <= 1 else None
            case "Slice":
                return self._slice(node, data)
        return _combined(node.op_type, values)

    def _slice(self, node: ir.Node, data: Array) -> Array | None:
        parts = []
        for index, name in ((1, "starts"), (2, "ends")):
            given = constant_of(input_at(node, index))
            bounds = attribute_ints(node, name, ()) if given is None else tuple(given.reshape(-1).tolist())
            if len(bounds) != 1:
                return None
            parts.append(int(bounds[0]))
        steps = constant_of(input_at(node, 4))
        if data.ndim != 1 or (steps is not None and steps.reshape(-1).tolist() != [1]):
            return None
        return data[parts[0] : parts[1]]


_FOLLOWED = (
    "Add",
    "Cast",
    "Concat",
    "Div",
    "Gather",
    "Identity",
    "Mul",
    "Reshape",
    "Slice",
    "Squeeze",
    "Sub",
    "Unsqueeze",
)


def _combined(op_type: str, values: Sequence[Array]) -> Array | None:
    first, second = np.broadcast_arrays(*values)
    pairs = zip(first.reshape(-1), second.reshape(-1), strict=True)
    match op_type:
        case "Add":
            results = [a + b for a, b in pairs]
        case "Sub":
            results = [a - b for a, b in pairs]
        case "Mul":
            results = [a * b for a, b in pairs]
        case _:
            # Sizes are not negative: rounding down and towards zero are the same.
            results = [a // b for a, b in pairs]
    return _objects([_plain(item) for item in results]).reshape(first.shape)


def _objects(items: Sequence[Any]) -> Array:
    result = np.empty(len(items), dtype=object)
    result[:] = list(items)
    return result


def _plain(size: Any) -> Any:
    """A number where the expression is one."""
    if isinstance(size, int | np.integer):
        return int(size)
    # A constant expression of TVM's.
    value = getattr(size, "value", None)
    return value if isinstance(value, int) else size

"""Tensors of sizes: what Shape gives and what is computed of it, known while the graph is lowered.

TVM's front end follows few operators with sizes as operands. Exporters write more: casts, slices, sums, products. What
is followed is computed exactly as ONNX does for its type, or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from greencc.core.data import Array
from greencc.core.errors import InputError
from greencc.core.graph import attribute_int, attribute_ints, constant_of, input_at, is_op, label

# Longer constants are data, not sizes.
_MOST = 16

_INT64 = np.dtype(np.int64)
_TYPES: dict[ir.DataType, np.dtype[Any]] = {ir.DataType.INT64: _INT64, ir.DataType.INT32: np.dtype(np.int32)}


@dataclass(frozen=True)
class Known:
    """The entries of an integer tensor of rank 0 or 1.

    Attributes:
        entries: Objects: int, or expressions of free sizes.
        dtype: int64 or int32.
    """

    entries: Array
    dtype: np.dtype[Any]


class Sizes:
    """Integer tensors whose entries are numbers or expressions of the free sizes, by value.

    Args:
        never_negative: Whether an expression is certain to be 0 or more.
    """

    def __init__(self, never_negative: Callable[[Any], bool]) -> None:
        self._never_negative = never_negative
        self._known: dict[ir.Value, Known] = {}

    def of(self, value: ir.Value | None) -> Known | None:
        """What is known of a value."""
        if value is None:
            return None
        if value in self._known:
            return self._known[value]
        constant = constant_of(value)
        if constant is None or constant.ndim > 1 or constant.size > _MOST:
            return None
        return Known(constant.astype(object), constant.dtype) if constant.dtype in _TYPES.values() else None

    def follow(self, node: ir.Node, shape: Sequence[Any] | None) -> bool:
        """Compute the node's output from sizes, if they are what it reads.

        Args:
            node: Of the graph.
            shape: Of its first input, for Shape.

        Raises:
            InputError: It divides by zero, or takes an entry that there is none of.
        """
        result = self._shape(node, shape) if is_op(node, "Shape") else self._result(node)
        if result is None or not _in_range(result):
            return False
        self._known[node.outputs[0]] = result
        return True

    def _shape(self, node: ir.Node, shape: Sequence[Any] | None) -> Known | None:
        if shape is None:
            return None
        start, end = attribute_int(node, "start", 0), attribute_int(node, "end", len(shape))
        return Known(_objects([_plain(size) for size in list(shape)[start:end]]), _INT64)

    def _result(self, node: ir.Node) -> Known | None:
        if not is_op(node, *_FOLLOWED) or not node.inputs:
            return None
        operands = [self.of(value) for value in node.inputs]
        if any(item is None for item in operands):
            return None
        values = [item for item in operands if item is not None]
        first = values[0]
        if node.op_type == "Cast":
            dtype = _TYPES.get(ir.DataType(attribute_int(node, "to", 0)))
            return None if dtype is None else Known(first.entries, dtype)
        if node.op_type in _TYPED and any(item.dtype != first.dtype for item in values):
            return None
        entries = self._entries(node, [item.entries for item in values])
        return None if entries is None else Known(entries, first.dtype)

    def _entries(self, node: ir.Node, values: Sequence[Array]) -> Array | None:
        data = values[0]
        match node.op_type:
            case "Identity":
                return data
            case "Concat":
                return np.concatenate([item.reshape(-1) for item in values])
            case "Gather":
                return _gathered(node, data, values[1])
            case "Unsqueeze":
                return data.reshape(-1) if data.ndim == 0 else None
            case "Squeeze":
                return data.reshape(()) if data.size == 1 else None
            case "Reshape":
                return _reshaped(node, data, values[1])
            case "Slice":
                return _slice(node, data)
        return self._combined(node, values)

    def _combined(self, node: ir.Node, values: Sequence[Array]) -> Array | None:
        first, second = np.broadcast_arrays(*values)
        pairs = zip(first.reshape(-1), second.reshape(-1), strict=True)
        match node.op_type:
            case "Add":
                results = [a + b for a, b in pairs]
            case "Sub":
                results = [a - b for a, b in pairs]
            case "Mul":
                results = [a * b for a, b in pairs]
            case _:
                results = [self._quotient(node, a, b) for a, b in pairs]
        if any(item is None for item in results):
            return None
        return _objects([_plain(item) for item in results]).reshape(first.shape)

    def _quotient(self, node: ir.Node, a: Any, b: Any) -> Any:
        """ONNX rounds towards zero: it is rounding down where nothing is negative."""
        if isinstance(b, int) and b == 0:
            raise InputError(f"{label(node)} divides by zero")
        if isinstance(a, int) and isinstance(b, int):
            return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
        return a // b if self._never_negative(a) and self._never_negative(b) else None


_TYPED = ("Add", "Concat", "Div", "Mul", "Sub")
_FOLLOWED = (*_TYPED, "Cast", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Unsqueeze")


def _gathered(node: ir.Node, data: Array, indices: Array) -> Array | None:
    if data.ndim != 1 or not all(isinstance(index, int) for index in indices.reshape(-1)):
        return None
    for index in indices.reshape(-1):
        if not -data.size <= index < data.size:
            raise InputError(f"{label(node)} has index {index} for an axis of {data.size}")
    return np.asarray(data[indices.astype(np.int64)], dtype=object)


def _reshaped(node: ir.Node, data: Array, sizes: Array) -> Array | None:
    """A Reshape to rank 0 or 1."""
    if sizes.ndim != 1 or sizes.size > 1:
        return None
    if sizes.size == 0:
        return data.reshape(()) if data.size == 1 else None
    keeps = _is_number(sizes[0], 0) and data.ndim == 1 and not attribute_int(node, "allowzero", 0)
    return data.reshape(-1) if keeps or _is_number(sizes[0], -1) or _is_number(sizes[0], data.size) else None


def _slice(node: ir.Node, data: Array) -> Array | None:
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


def _in_range(known: Known) -> bool:
    """Numbers that the type holds: others would wrap around."""
    limits = np.iinfo(known.dtype)
    numbers = [entry for entry in known.entries.reshape(-1) if isinstance(entry, int)]
    return all(limits.min <= number <= limits.max for number in numbers)


def _is_number(entry: Any, number: int) -> bool:
    return isinstance(entry, int) and entry == number


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

"""Small integer vectors whose elements are known numbers or named dimensions of known tensors.

`Shape` and what is usually done with its result (Gather, Slice, Concat, arithmetic) is followed, so that
the part of a shape computation that does not depend on a dynamic dimension becomes constant.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from greencc.core.graph import attribute_int, attribute_ints, constant_of, constant_tensor, input_at, is_op
from greencc.passes._rewriter import Scope

MAX_LENGTH = 64


@dataclass(frozen=True)
class Dim:
    """Dimension `axis` of a tensor, or a product of such dimensions and a number, as a canonical text."""

    text: str


Element = int | Dim | None
"""A known number, a symbol, or unknown."""


@dataclass(frozen=True)
class Vector:
    """Elements of an int64 scalar (`scalar` true) or vector."""

    elements: tuple[Element, ...]
    scalar: bool = False

    @property
    def known(self) -> bool:
        return all(isinstance(element, int) for element in self.elements)


def dimension(value: ir.Value, axis: int) -> Element:
    """The dimension of a value: a number, its symbol, or a symbol made of the value's own name."""
    if value.shape is None:
        return None
    dim = value.shape[axis]
    if isinstance(dim, int):
        return dim
    return Dim(str(dim.value)) if dim.value is not None else Dim(f"{value.name}#{axis}")


class Symbols:
    """Evaluates values to vectors; results are kept for one look at a graph that does not change."""

    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        self._known: dict[int, Vector | None] = {}

    def vector(self, value: ir.Value | None, depth: int = 0) -> Vector | None:
        """The value as a vector, or None when it is something else or not followed."""
        if value is None or depth > 100:
            return None
        key = id(value)
        if key not in self._known:
            self._known[key] = None
            self._known[key] = self._compute(value, depth)
        return self._known[key]

    def _compute(self, value: ir.Value, depth: int) -> Vector | None:
        tensor = constant_tensor(value)
        if tensor is not None:
            return _from_constant(value)
        node = value.producer()
        if node is None or not is_op(node, node.op_type) or any(a.is_ref() for a in node.attributes.values()):
            return None
        if is_op(node, "Shape"):
            return self._shape(node)
        inputs = [self.vector(x, depth + 1) for x in node.inputs]
        if not inputs or inputs[0] is None:
            return None
        first = inputs[0]
        if is_op(node, "Identity"):
            return first
        if is_op(node, "Cast"):
            to = node.attributes["to"].as_int()
            return first if to in (ir.DataType.INT64, ir.DataType.INT32) else None
        if is_op(node, "Unsqueeze"):
            return Vector(first.elements) if first.scalar else None
        if is_op(node, "Squeeze"):
            return (
                Vector(first.elements, scalar=True) if len(first.elements) == 1 and not first.scalar else None
            )
        if is_op(node, "Reshape"):
            target = constant_of(input_at(node, 1))
            if target is None or target.size > 1:
                return None
            return Vector(first.elements, scalar=target.size == 0)
        if is_op(node, "Gather"):
            return _gather(first, constant_of(input_at(node, 1)))
        if is_op(node, "Slice"):
            return self._slice(node, first)
        if is_op(node, "Concat"):
            parts = [part for part in inputs if part is not None]
            if len(parts) != len(inputs) or any(part.scalar for part in parts):
                return None
            joined = tuple(element for part in parts for element in part.elements)
            return Vector(joined) if len(joined) <= MAX_LENGTH else None
        if is_op(node, "Add", "Sub", "Mul") and len(inputs) == 2 and inputs[1] is not None:
            return _arithmetic(node.op_type, first, inputs[1])
        return None

    def _shape(self, node: ir.Node) -> Vector | None:
        x = node.inputs[0]
        if x is None or x.shape is None or len(x.shape) > MAX_LENGTH:
            return None
        elements = tuple(dimension(x, axis) for axis in range(len(x.shape)))
        rank = len(elements)
        end = node.attributes.get("end")
        stop = rank if end is None else end.as_int()
        return Vector(elements[slice(attribute_int(node, "start", 0), stop)])

    def _slice(self, node: ir.Node, first: Vector) -> Vector | None:
        if first.scalar:
            return None
        if self._scope.opset() < 10:
            starts, ends = attribute_ints(node, "starts", ()), attribute_ints(node, "ends", ())
            return Vector(first.elements[starts[0] : ends[0]]) if len(starts) == 1 else None
        parts = [constant_of(input_at(node, index)) for index in (1, 2, 3, 4)]
        start, end, _, step = parts
        if start is None or end is None or start.size != 1 or (len(node.inputs) > 4 and step is None):
            return None
        stride = 1 if step is None else int(step.reshape(-1)[0])
        if stride < 1:
            return None
        return Vector(first.elements[int(start.reshape(-1)[0]) : int(end.reshape(-1)[0]) : stride])


@lru_cache(maxsize=4096)
def _product(a: Dim, b: Dim) -> Dim:
    return Dim("*".join(sorted([*a.text.split("*"), *b.text.split("*")])))


def _from_constant(value: ir.Value) -> Vector | None:
    tensor = constant_tensor(value)
    if tensor is None or len(tensor.shape) > 1 or tensor.size > MAX_LENGTH:
        return None
    if tensor.dtype not in (ir.DataType.INT64, ir.DataType.INT32):
        return None
    array = tensor.numpy()
    return Vector(tuple(int(number) for number in array.reshape(-1)), scalar=array.ndim == 0)


def _gather(first: Vector, index: NDArray[Any] | None) -> Vector | None:
    if index is None or index.ndim > 1 or first.scalar:
        return None
    count = len(first.elements)
    if any(not -count <= int(i) < count for i in index.reshape(-1)):
        return None
    return Vector(tuple(first.elements[int(i)] for i in index.reshape(-1)), scalar=index.ndim == 0)


def _arithmetic(op_type: str, a: Vector, b: Vector) -> Vector | None:
    length = max(len(a.elements), len(b.elements))
    if len(a.elements) not in (1, length) or len(b.elements) not in (1, length):
        return None
    left = a.elements * (length if len(a.elements) == 1 else 1)
    right = b.elements * (length if len(b.elements) == 1 else 1)
    pairs = zip(left, right, strict=True)
    return Vector(tuple(_combine(op_type, x, y) for x, y in pairs), scalar=a.scalar and b.scalar)


def _combine(op_type: str, x: Element, y: Element) -> Element:
    if isinstance(x, int) and isinstance(y, int):
        return x + y if op_type == "Add" else x - y if op_type == "Sub" else x * y
    if op_type == "Mul":
        if x == 1:
            return y
        if y == 1:
            return x
        if isinstance(x, Dim) and isinstance(y, Dim):
            return _product(x, y)
    elif y == 0 and not isinstance(y, Dim):
        return x
    return None

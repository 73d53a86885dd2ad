"""Reading quantize/dequantize pairs: which integers stand for a float value, on which grid."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from greencc.core.data import Array
from greencc.core.graph import (
    Names,
    add_initializer,
    attribute_int,
    constant_of,
    input_at,
    is_op,
    sole_consumer,
)
from greencc.passes._quantize_nodes import clip_bounds, constant

_INTEGERS = (ir.DataType.UINT8, ir.DataType.INT8, ir.DataType.INT32)
# Relative: the ends of a grid are products of float32 numbers.
_SLACK = 1e-6


@dataclass(frozen=True)
class Integers:
    """A value as integers: what DequantizeLinear or QuantizeLinear says about it.

    Attributes:
        value: The integers.
        scale: float32, shape [] or [channels].
        zero_point: Of the type of the integers, shape of the scale.
        axis: Axis of the channels, None for one scale.
    """

    value: ir.Value
    scale: ir.Value
    zero_point: ir.Value
    axis: int | None = None

    @property
    def triple(self) -> list[ir.Value | None]:
        return [self.value, self.scale, self.zero_point]

    def same_grid(self, other: Integers) -> bool:
        """Equal integers stand for equal numbers."""
        return (
            self.zero_point.dtype is other.zero_point.dtype
            and np.array_equal(array_of(self.scale), array_of(other.scale))
            and np.array_equal(array_of(self.zero_point), array_of(other.zero_point))
        )


class Pairs:
    """Looks pairs up; zero points that a pair leaves out become initializers."""

    def __init__(self, graph: ir.Graph, names: Names) -> None:
        self._graph = graph
        self._names = names
        self._zeros: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}

    def source(self, value: ir.Value | None) -> Integers | None:
        """The integers that a value is dequantized from."""
        node = None if value is None else value.producer()
        return (
            self._read(node, node.inputs[0]) if node is not None and is_op(node, "DequantizeLinear") else None
        )

    def end(self, value: ir.Value) -> tuple[Integers, tuple[ir.Node, ...]] | None:
        """The integers that a value becomes with one scale, and the nodes in between, QuantizeLinear last.

        A Relu or Clip may be in between when the integers stand for nothing outside its bounds. None when the value
        is read in another way as well.
        """
        between: list[ir.Node] = []
        reader = sole_consumer(value)
        if reader is not None and is_op(reader, "Relu", "Clip") and reader.inputs[0] is value:
            between.append(reader)
            value = reader.outputs[0]
            reader = sole_consumer(value)
        if reader is None or not is_op(reader, "QuantizeLinear") or reader.inputs[0] is not value:
            return None
        found = self._read(reader, reader.outputs[0])
        if found is None or found.axis is not None or any(not _redundant(node, found) for node in between):
            return None
        return found, (*between, reader)

    def _read(self, node: ir.Node, integers: ir.Value | None) -> Integers | None:
        """What a pair's node says about the integers, when that is constant, and 8 or 32 bits without blocks."""
        scale, zero_point = input_at(node, 1), input_at(node, 2)
        scales = constant(scale)
        if integers is None or scale is None or scales is None or scales.dtype is not ir.DataType.FLOAT:
            return None
        if zero_point is None:
            kind = ir.DataType.UINT8 if node.op_type == "QuantizeLinear" else integers.dtype
            zero_point = None if kind is None else self._zero_point(scale, kind)
        elif constant(zero_point) is None:
            return None
        if zero_point is None or zero_point.dtype not in _INTEGERS or attribute_int(node, "block_size", 0):
            return None
        shape = tuple(int(dim) for dim in scales.shape.numpy())
        if shape in ((), (1,)):
            return Integers(integers, scale, zero_point)
        if len(shape) != 1 or integers.shape is None:
            return None
        axis = attribute_int(node, "axis", 1)
        return Integers(integers, scale, zero_point, axis + integers.shape.rank() if axis < 0 else axis)

    def _zero_point(self, scale: ir.Value, kind: ir.DataType) -> ir.Value:
        if (scale, kind) not in self._zeros:
            zeros = np.zeros(array_of(scale).shape, kind.numpy())
            name = self._names.value(f"{scale.name}_zero_point")
            self._zeros[scale, kind] = add_initializer(self._graph, name, zeros)
        return self._zeros[scale, kind]


def reads_integers(node: ir.Node) -> bool:
    """True for a float node that reads the dequantized form of something that is computed."""
    if is_op(node, "QuantizeLinear", "DequantizeLinear"):
        return False
    for value in node.inputs:
        producer = None if value is None else value.producer()
        if (
            producer is not None
            and is_op(producer, "DequantizeLinear")
            and constant(producer.inputs[0]) is None
        ):
            return True
    return False


def array_of(value: ir.Value) -> Array:
    """The array of a value known to be constant."""
    array = constant_of(value)
    assert array is not None
    return array


def _redundant(node: ir.Node, after: Integers) -> bool:
    """True when the integers stand for nothing outside the bounds of a Relu or Clip."""
    low, high = (0.0, np.inf) if node.op_type == "Relu" else clip_bounds(node)
    if low is None or high is None:
        return False
    zero_point, scale = int(array_of(after.zero_point).item()), float(array_of(after.scale).item())
    first, last = (0, 255) if after.zero_point.dtype is ir.DataType.UINT8 else (-128, 127)
    return (first - zero_point) * scale >= low and (last - zero_point) * scale <= high * (1 + _SLACK)

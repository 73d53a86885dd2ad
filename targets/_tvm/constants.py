"""What a graph says of constants: folded weights, and the grids of quantized values."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from greencc.core.data import Array
from greencc.core.graph import attribute_int, constant_of, input_at, is_op

_INTEGERS = (np.uint8, np.int8)


@dataclass(frozen=True)
class Grid:
    """How integers stand for numbers: scale * (q - zero_point).

    Attributes:
        scale: float32, shape [] or [channels].
        zero_point: Of the integers' type, shape of the scale.
        axis: Of the channels; None for one scale.
    """

    scale: Array
    zero_point: Array
    axis: int | None

    @property
    def dtype(self) -> str:
        return str(self.zero_point.dtype)

    @property
    def step(self) -> np.float32:
        """The scale, where it is one."""
        return np.float32(self.scale.reshape(()))

    @property
    def zero(self) -> int:
        """The zero point, where it is one."""
        return int(self.zero_point.reshape(()))

    def equals(self, other: Grid) -> bool:
        """Equal integers stand for equal numbers."""
        return (
            self.dtype == other.dtype
            and self.axis is other.axis is None
            and self.step == other.step
            and self.zero == other.zero
        )


def grid_of(node: ir.Node) -> Grid | None:
    """The grid of a QuantizeLinear or DequantizeLinear; None unless it is constant, float32 and without blocks.

    Scales are finite and above 0, so that greater integers stand for greater numbers.
    """
    grid = _constant_grid(node)
    return grid if grid is not None and np.all((grid.scale > 0) & (grid.scale < np.inf)) else None


def _constant_grid(node: ir.Node) -> Grid | None:
    """Like `grid_of`, with any scales."""
    scale, zero_point = constant_of(input_at(node, 1)), constant_of(input_at(node, 2))
    if scale is None or scale.dtype != np.float32 or scale.ndim > 1 or attribute_int(node, "block_size", 0):
        return None
    if zero_point is None:
        if input_at(node, 2) is not None:
            return None
        kind = attribute_int(node, "output_dtype", 0)
        integers = node.outputs[0] if node.op_type == "QuantizeLinear" else node.inputs[0]
        dtype = ir.DataType(kind) if kind else integers.dtype if integers is not None else None
        if dtype is None:
            return None
        zero_point = np.zeros(scale.shape, dtype.numpy())
    if scale.size == 1:
        return Grid(scale.reshape(()), zero_point.reshape(()), None)
    value = node.inputs[0]
    axis = attribute_int(node, "axis", 1)
    if axis < 0:
        if value is None or value.shape is None:
            return None
        axis += value.shape.rank()
    return Grid(scale, zero_point, axis)


def dequantized(value: ir.Value | None) -> tuple[ir.Value, Grid] | None:
    """The 8-bit integers with one scale that a value is the dequantized form of."""
    node = None if value is None else value.producer()
    if node is None or not is_op(node, "DequantizeLinear"):
        return None
    grid, integers = grid_of(node), node.inputs[0]
    if grid is None or grid.axis is not None or integers is None or grid.zero_point.dtype not in _INTEGERS:
        return None
    return integers, grid


def quantized(node: ir.Node | None) -> Grid | None:
    """The grid of a QuantizeLinear to 8 bits with one scale."""
    if node is None or not is_op(node, "QuantizeLinear"):
        return None
    grid = grid_of(node)
    if grid is None or grid.axis is not None or grid.zero_point.dtype not in _INTEGERS:
        return None
    return grid


# Operators that give out elements of their first input (Concat: of all), and so work on integers as on what they mean.
_MOVES = frozenset(
    {
        "Concat",
        "DepthToSpace",
        "Expand",
        "Flatten",
        "Gather",
        "Identity",
        "Reshape",
        "Slice",
        "SpaceToDepth",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
    }
)


def moved(node: ir.Node) -> tuple[ir.Node, list[ir.Value | None]] | None:
    """The movement whose result a QuantizeLinear makes the same integers of that were moved, and its operands then."""
    grid, value = quantized(node), node.inputs[0]
    move = None if value is None else value.producer()
    if grid is None or move is None or not is_op(move, *_MOVES):
        return None
    operands: list[ir.Value | None] = []
    for index, operand in enumerate(move.inputs):
        if index and move.op_type != "Concat":
            operands.append(operand)
            continue
        source = dequantized(operand)
        if source is None or not source[1].equals(grid):
            return None
        operands.append(source[0])
    return move, operands


def folded(value: ir.Value | None) -> Array | None:
    """The array a value always holds, also where it is the dequantized form of a constant."""
    array = constant_of(value)
    if array is not None or value is None:
        return array
    node = value.producer()
    if node is None or not is_op(node, "DequantizeLinear") or attribute_int(node, "block_size", 0):
        return None
    integers = constant_of(node.inputs[0])
    grid = _constant_grid(node)
    if integers is None or grid is None:
        return None
    shape = [-1 if axis == grid.axis else 1 for axis in range(integers.ndim)]
    scale, zero_point = (
        (part if grid.axis is None else part.reshape(shape)) for part in (grid.scale, grid.zero_point)
    )
    shifted = integers.astype(np.float64) - zero_point.astype(np.float64)
    result: Array = shifted.astype(np.float32) * scale.astype(np.float32)
    return result

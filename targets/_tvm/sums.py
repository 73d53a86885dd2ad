"""The sums of weighted operators, as floats or integers, and what a kernel needs to finish them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from greencc.core.data import Array
from greencc.core.graph import constant_of, input_at, is_op
from greencc.targets._tvm.constants import Grid, dequantized, folded, grid_of
from greencc.targets._tvm.epilogue import NEAR, AddChannels, Clip, Epilogue, Quantize, ScaleChannels, Step
from greencc.targets._tvm.tails import Tail

_SAME_SCALE = 1e-6


@dataclass(frozen=True)
class Sums:
    """The sums of a weighted operator, before the tail.

    Attributes:
        value: What it reads: integers where `grid` is set.
        grid: Of the integers read; None: the sums are float.
        weights: int8 or float32, in ONNX's order.
        scale: float32 per output channel: what one INT32 step is worth; None for float sums.
        bias: INT32 or float32 per output channel, of the sums' type.
        offset: A float bias of INT32 sums.
    """

    value: ir.Value
    grid: Grid | None
    weights: Array
    scale: Array | None
    bias: Array | None
    offset: Array | None


def read_sums(node: ir.Node, axis: int, channels: int) -> Sums | None:
    """The operands of a Conv, Gemm or MatMul with constant weights.

    Args:
        node: The operator.
        axis: Of the output channels in the weights.
        channels: Output channels.
    """
    data, operand, bias = node.inputs[0], node.inputs[1], input_at(node, 2)
    weights = folded(operand)
    if data is None or operand is None or weights is None or weights.dtype != np.float32:
        return None
    if bias is not None and folded(bias) is None:
        return None
    real = None if bias is None else _spread(folded(bias), channels)
    if bias is not None and (real is None or real.dtype != np.float32):
        return None
    integers = _integer_sums(data, operand, bias, axis, channels, real)
    return integers or Sums(data, None, weights, None, real, None)


def _integer_sums(
    data: ir.Value, operand: ir.Value, bias: ir.Value | None, axis: int, channels: int, real: Array | None
) -> Sums | None:
    source, producer = dequantized(data), operand.producer()
    if source is None or producer is None or not is_op(producer, "DequantizeLinear"):
        return None
    grid, stored = grid_of(producer), constant_of(producer.inputs[0])
    if grid is None or stored is None or stored.dtype != np.int8 or np.any(grid.zero_point):
        return None
    if grid.axis not in (None, axis):
        return None
    value, read = source
    scale = np.broadcast_to((read.step * grid.scale).astype(np.float32), (channels,))
    if bias is None:
        return Sums(value, read, stored, scale, None, None)
    whole = _integer_bias(bias, scale, channels)
    if whole is not None:
        return Sums(value, read, stored, scale, whole, None)
    return Sums(value, read, stored, scale, None, real)


def _integer_bias(bias: ir.Value, scale: Array, channels: int) -> Array | None:
    """An INT32 bias on the grid of the sums."""
    node = bias.producer()
    if node is None or not is_op(node, "DequantizeLinear"):
        return None
    grid, stored = grid_of(node), constant_of(node.inputs[0])
    if grid is None or stored is None or stored.dtype != np.int32 or np.any(grid.zero_point):
        return None
    if not np.allclose(np.broadcast_to(grid.scale, scale.shape), scale, rtol=_SAME_SCALE, atol=0.0):
        return None
    return _spread(stored, channels)


def _spread(array: Array | None, channels: int) -> Array | None:
    """One number per channel from a bias: a Gemm's may be one per row, too."""
    if array is None:
        return None
    if array.size == 1:
        return np.full(channels, array.reshape(()))
    return array.reshape(-1) if array.shape in ((channels,), (1, channels)) else None


def finish(sums: Sums, tail: Tail, groups_axis: int) -> tuple[Epilogue, Array, list[Array | ir.Value]]:
    """The epilogue, the weights and the epilogue's arguments of sums with their tail.

    Channel factors and summands directly behind float sums go into the weights and the bias.

    Args:
        sums: From `read_sums`.
        tail: From `read_tail`.
        groups_axis: Axis of the output channels in the weights.
    """
    steps, arguments = list(tail.steps), list(tail.arguments)
    weights, bias = sums.weights, sums.bias
    if sums.scale is None:
        while steps and isinstance(steps[0], ScaleChannels | AddChannels):
            array = arguments.pop(0)
            assert isinstance(array, np.ndarray)
            if isinstance(steps.pop(0), ScaleChannels):
                shape = [-1 if axis == groups_axis else 1 for axis in range(weights.ndim)]
                weights = (weights * array.reshape(shape)).astype(np.float32)
                bias = None if bias is None else bias * array
            else:
                bias = array if bias is None else bias + array
        quantize = (
            None if tail.grid is None else Quantize(tail.grid.dtype, float(tail.grid.step), tail.grid.zero)
        )
        head = [] if bias is None else [bias.astype(np.float32)]
        return (
            Epilogue(bias=bias is not None, steps=tuple(steps), quantize=quantize),
            weights,
            [*head, *arguments],
        )
    return _integer_finish(sums, tail, steps, arguments, groups_axis)


def _integer_finish(
    sums: Sums, tail: Tail, steps: list[Step], arguments: list[Array | ir.Value], axis: int
) -> tuple[Epilogue, Array, list[Array | ir.Value]]:
    assert sums.grid is not None
    assert sums.scale is not None
    multiplier, offset, quantize = sums.scale, sums.offset, None
    if tail.grid is not None:
        step = tail.grid.step
        if all(isinstance(item, Clip) for item in steps):
            # Everything in steps of the output, as the integer reference rounds it.
            multiplier = multiplier / step
            offset = None if offset is None else offset / step
            steps = [
                Clip(float(np.float32(item.low) / step), float(np.float32(item.high) / step))
                for item in steps
                if isinstance(item, Clip)
            ]
            near = _farthest(sums, multiplier, offset, axis) < NEAR
            quantize = Quantize(tail.grid.dtype, 1.0, tail.grid.zero, near)
        else:
            quantize = Quantize(tail.grid.dtype, float(step), tail.grid.zero)
    head: list[Array | ir.Value] = [] if sums.bias is None else [sums.bias]
    head.append(multiplier.astype(np.float32))
    if offset is not None:
        head.append(offset.astype(np.float32))
    epilogue = Epilogue(
        bias=sums.bias is not None,
        multiplier=True,
        offset=offset is not None,
        steps=tuple(steps),
        quantize=quantize,
    )
    return epilogue, sums.weights, [*head, *arguments]


def _farthest(sums: Sums, multiplier: Array, offset: Array | None, axis: int) -> float:
    """The greatest magnitude of the scaled sums, whatever the data; infinite where there are no weights."""
    if not sums.weights.size:
        return np.inf
    axes = tuple(index for index in range(sums.weights.ndim) if index != axis)
    greatest = 255.0 * np.abs(sums.weights.astype(np.float64)).sum(axes)
    if sums.bias is not None:
        greatest = greatest + np.abs(sums.bias.astype(np.float64))
    scaled = greatest * multiplier + (0.0 if offset is None else np.abs(offset))
    return float(scaled.max(initial=0.0))

"""Constants behind DequantizeLinear: float weights to train, integers to store.

With a scale s and a zero point z per tensor, per channel or per block (ONNX DequantizeLinear, opset 10 to 21), a weight
w is stored as q = clamp(round(w / s) + z, low, high) and read as s (q - z). The scales stay what they were: the range
of a channel is part of what the calibration chose. The integers' bounds are those that the tensor itself uses, so that
weights held to 7 bits (see docs/quantization.md) stay within them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from greencc.core.graph import attribute_int, constant_of, input_at

Float32 = NDArray[np.float32]
# Weights of 8 bits whose integers stay within this are held to 7 bits on purpose.
_SEVEN_BITS = 64


@dataclass(frozen=True, eq=False)
class Quantizer:
    """How a constant is stored as integers.

    Attributes:
        scale: float32, broadcastable to the constant.
        zero_point: float32, likewise.
        low: Smallest integer.
        high: Largest integer.
        dtype: Type of the integers.
    """

    scale: Float32
    zero_point: Float32
    low: float
    high: float
    dtype: ir.DataType

    def dequantize(self, integers: NDArray[np.generic]) -> Float32:
        shifted = integers.astype(np.float64) - self.zero_point
        result: Float32 = (shifted * self.scale).astype(np.float32)
        return result

    def quantize(self, values: NDArray[np.generic]) -> NDArray[np.generic]:
        """Integers, rounded to even as ONNX does."""
        wide = np.rint(values.astype(np.float64) / self.scale) + self.zero_point
        return np.clip(wide, self.low, self.high).astype(self.dtype.numpy())


def quantizer_of(node: ir.Node) -> Quantizer | None:
    """The quantizer of a DequantizeLinear whose input, scale and zero point are constants; else None."""
    integers, scale = constant_of(input_at(node, 0)), constant_of(input_at(node, 1))
    tensor_value = input_at(node, 0)
    if integers is None or scale is None or tensor_value is None:
        return None
    zero_point = constant_of(input_at(node, 2))
    axis, block = attribute_int(node, "axis", 1), attribute_int(node, "block_size", 0)
    wide = np.asarray(scale, np.float32)
    zeros = np.zeros_like(wide) if zero_point is None else np.asarray(zero_point, np.float32)
    spread = [_spread(item, integers.shape, axis, block) for item in (wide, zeros)]
    dtype = ir.DataType.from_numpy(integers.dtype)
    low, high = _bounds(integers, dtype)
    return Quantizer(spread[0], spread[1], low, high, dtype)


def _spread(item: Float32, shape: tuple[int, ...], axis: int, block: int) -> Float32:
    """Bring scales into a shape that broadcasts to the constant's."""
    if item.size == 1:
        return item.reshape(())
    if block:
        return np.take(np.repeat(item, block, axis=axis), np.arange(shape[axis]), axis=axis)
    wanted = [1] * len(shape)
    wanted[axis] = -1
    return item.reshape(wanted)


def _bounds(integers: NDArray[np.generic], dtype: ir.DataType) -> tuple[float, float]:
    bits, signed = dtype.bitwidth, dtype.is_signed()
    low, high = (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1) if signed else (0.0, 2.0**bits - 1)
    if signed and bits == 8:
        used = int(np.abs(integers.astype(np.int32)).max(initial=0))
        high = float(_SEVEN_BITS - 1 if used < _SEVEN_BITS else _SEVEN_BITS if used == _SEVEN_BITS else 127)
        # Symmetric weights leave -128 out, as the quantizer does.
        low = -high
    return low, high

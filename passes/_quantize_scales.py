"""Scales, zero points and integer values: the affine quantization r = s (q - z) of ONNX.

Activations: one scale per tensor over a range widened to hold 0, so that 0 is exact (padding, ReLU). Weights:
symmetric, one scale per output channel, q in [-127, 127], or [-64, 64] for 7 bits: 2 * 255 * 64 fits INT16,
which is what saturates on x86 without VNNI. See Jacob et al., CVPR 2018, and Krishnamoorthi,
arXiv 1806.08342.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from greencc.core.capabilities import ElementType, Int8Support
from greencc.core.data import Array
from greencc.passes._ranges import Range

# The product of the two, the scale of an INT32 bias, is still a normal float32.
_MIN_ACTIVATION_SCALE = 2.0**-64
_MIN_WEIGHT_SCALE = 2.0**-60
# Below, FP16 has less than three bits left.
_MIN_HALF_SCALE = np.float32(2.0**-22)
# Half of what INT32 holds is left to the sum that the bias starts.
_MAX_BIAS = 2.0**30
# Elements worked on at a time, so that temporaries stay small next to the largest weight.
_BLOCK = 1 << 22


@dataclass(frozen=True)
class ActivationScale:
    """Scale (a float32 that FP16 holds exactly where the target's scales are FP16) and zero point of one tensor."""

    scale: np.float32
    zero_point: int
    dtype: np.dtype[np.uint8] | np.dtype[np.int8]

    def quantize(self, values: Array) -> Array:
        limits = np.iinfo(self.dtype)
        quantized = np.rint(np.asarray(values, np.float32) / self.scale) + self.zero_point
        integers: Array = np.clip(quantized, limits.min, limits.max).astype(self.dtype)
        return integers


def activation_scale(values: Range, int8: Int8Support) -> ActivationScale:
    """Scale of an activation with this range; a range of [0, 0] gets scale 1."""
    dtype = np.dtype(np.uint8) if int8.activation is ElementType.UINT8 else np.dtype(np.int8)
    limits = np.iinfo(dtype)
    low, high = min(values.low, 0.0), max(values.high, 0.0)
    if int8.symmetric_activations:
        center = 128 if dtype == np.uint8 else 0
        # 127 steps on either side: -128 would have no positive counterpart.
        return ActivationScale(np.float32(storable(_scale(max(-low, high) / 127.0), int8)), center, dtype)
    scale = np.float32(storable(_scale((high - low) / (limits.max - limits.min)), int8))
    zero_point = int(np.clip(np.rint(limits.min - low / float(scale)), limits.min, limits.max))
    if low == 0 and high > 0 and int8.scale_type is ElementType.FLOAT:
        # A runtime drops a Clip in front only when the largest integer stands for no more than its upper bound, which
        # rounding the scale may have exceeded by a bit.
        steps = np.float32(limits.max - limits.min)
        while np.float32(scale * steps) > np.float32(high) and scale > _MIN_ACTIVATION_SCALE:
            scale = np.nextafter(scale, np.float32(0))
    return ActivationScale(scale, zero_point, dtype)


def storable(scales: NDArray[np.float32] | np.float32, int8: Int8Support) -> NDArray[np.float32]:
    """The scales, raised to what the target's scale type holds exactly."""
    wide = np.asarray(scales, np.float32)
    if int8.scale_type is ElementType.FLOAT:
        return wide
    limits = np.finfo(np.float16)
    clipped = np.clip(wide, _MIN_HALF_SCALE, np.float32(limits.max))
    half = clipped.astype(np.float16)
    return np.where(half < clipped, np.nextafter(half, limits.max), half).astype(np.float32)


def _scale(value: float) -> np.float32:
    return np.float32(max(value, _MIN_ACTIVATION_SCALE) if value > 0 else 1.0)


def weight_limit(bits: int) -> int:
    """Largest magnitude of a symmetric weight."""
    return 127 if bits == 8 else 1 << (bits - 1)


def weight_scales(weight: Array, axis: int | None, bits: int) -> NDArray[np.float32] | None:
    """Symmetric scales of a weight, shape (channels,), or () per tensor; None when it is not finite.

    A channel of zeros takes the largest scale of the others: it says nothing about its own, and its bias
    should be as precise as theirs.
    """
    channels = 1 if axis is None else weight.shape[axis]
    largest = np.zeros(channels, np.float32)
    for block, where in _blocks(weight):
        if axis is None:
            largest = np.maximum(largest, _magnitude(block, None))
        elif axis == 0:
            largest[where] = _magnitude(block, tuple(range(1, block.ndim)))
        else:
            others = tuple(index for index in range(block.ndim) if index != axis)
            largest = np.maximum(largest, _magnitude(block, others))
    if not np.isfinite(largest).all():
        return None
    peak = largest.max()
    largest = np.where(largest > 0, largest, peak if peak > 0 else weight_limit(bits))
    scales = np.maximum(largest / np.float32(weight_limit(bits)), np.float32(_MIN_WEIGHT_SCALE))
    shaped: NDArray[np.float32] = scales.astype(np.float32).reshape(() if axis is None else (channels,))
    return shaped


def rounded_away(weight: Array, quantized: NDArray[np.int8], axis: int | None) -> NDArray[np.float64]:
    """Share of the weights other than 0 that became 0, per channel along `axis` (None: one channel)."""
    channels = 1 if axis is None else weight.shape[axis]
    nonzero, lost = np.zeros(channels, np.int64), np.zeros(channels, np.int64)
    for block, where in _blocks(weight):
        here = where if axis == 0 else slice(None)
        others = None if axis is None else tuple(index for index in range(block.ndim) if index != axis)
        present = block != 0
        nonzero[here] += np.count_nonzero(present, axis=others)
        lost[here] += np.count_nonzero(present & (quantized[where] == 0), axis=others)
    share: NDArray[np.float64] = lost / np.maximum(nonzero, 1)
    return share


def _magnitude(block: Array, axes: tuple[int, ...] | None) -> NDArray[np.float32]:
    magnitude: NDArray[np.float32] = np.maximum(np.max(block, axis=axes), -np.min(block, axis=axes)).astype(
        np.float32
    )
    return magnitude


def quantize_weight(
    weight: Array, scales: NDArray[np.float32], axis: int | None, bits: int
) -> NDArray[np.int8]:
    """Round a weight to its scales, block by block; the result has the shape of the weight."""
    limit = weight_limit(bits)
    quantized = np.empty(weight.shape, np.int8)
    for block, where in _blocks(weight):
        if axis is None:
            divisor = scales
        else:
            part = scales[where] if axis == 0 else scales
            divisor = part.reshape([-1 if index == axis else 1 for index in range(weight.ndim)])
        steps = np.divide(block, divisor, dtype=np.float32)
        np.rint(steps, out=steps)
        quantized[where] = np.clip(steps, -limit, limit, out=steps)
    return quantized


def _blocks(weight: Array) -> Iterator[tuple[Array, slice]]:
    rows = max(1, _BLOCK * weight.shape[0] // max(weight.size, 1))
    for start in range(0, weight.shape[0], rows):
        where = slice(start, start + rows)
        yield weight[where], where


def fit_bias(
    scales: NDArray[np.float32], activation: np.float32, bias: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Raise weight scales so far that bias / (s_x s_w) stays within INT32 with room for the sum.

    A channel whose bias dwarfs its weights loses weight bits it cannot use, instead of wrapping its bias.
    """
    needed = np.abs(bias) / (float(activation) * _MAX_BIAS)
    if scales.ndim == 0:
        needed = needed.max(initial=0.0)
    wide = np.maximum(scales.astype(np.float64), needed)
    # float32 rounding of the quotient must not step back below what is needed.
    return np.where(wide > scales, np.nextafter(wide.astype(np.float32), np.float32(np.inf)), scales).astype(
        np.float32
    )


def quantize_bias(
    bias: NDArray[np.float64], activation: np.float32, scales: NDArray[np.float32]
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """INT32 bias and its scales s_x s_w (shape of `scales`)."""
    product = (np.float32(activation) * scales).astype(np.float32)
    return np.rint(bias / product.astype(np.float64)).astype(np.int32), product


def largest_of_groups(bias: NDArray[np.float64], groups: int) -> NDArray[np.float64]:
    """The largest bias of the output channels that share a scale (the groups of a ConvTranspose)."""
    largest: NDArray[np.float64] = np.abs(bias).reshape(groups, -1).max(axis=0)
    return bias if groups == 1 else largest


def over_groups(scales: NDArray[np.float32], groups: int) -> NDArray[np.float32]:
    """One scale per output channel from those that the groups share."""
    return np.tile(scales, groups) if scales.ndim and groups > 1 else scales


def constant_range(tensor: ir.TensorProtocol) -> Range:
    """Range of a constant operand."""
    values = tensor.numpy()
    return Range(float(values.min()), float(values.max())) if values.size else Range(0.0, 0.0)

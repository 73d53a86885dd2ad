"""What rounding a constant to 16 bits does to it.

FP16 has 11 significant bits from 2**-14 up; below, its steps stay at 2**-24, so small values lose digits and those
below 2**-25 vanish. A few small weights beside large ones do no harm: what counts is the error of a channel relative
to the channel, norm by norm. Rounding alone gives at most 2**-11 (BF16: 2**-8). Channels that training has switched
off hold dust (1e-9 next to 0.1); so a channel counts as no smaller than 1/64 of the largest: dust may vanish, since an
error of 2**-16 of the largest channel is far below the rounding of that one.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir

from greencc.core.data import Array
from greencc.passes._half_schema import HalfType

# Twice what rounding alone can do.
MAX_ERROR = {HalfType.FLOAT16: 2.0**-10, HalfType.BFLOAT16: 2.0**-7}
_SMALLEST_CHANNEL = 1 / 64
# Elements worked on at a time.
_BLOCK = 1 << 20


def to_half(array: Array, element: HalfType) -> Array:
    """Round to the nearest half; what is beyond the format becomes infinite."""
    storage = np.dtype(np.float16 if element is HalfType.FLOAT16 else ml_dtypes.bfloat16)
    with np.errstate(over="ignore"):
        rounded: Array = array.astype(storage)
    return rounded


def rounding_error(array: Array, element: HalfType, *, slices: bool = True) -> float:
    """Norm of the rounding error relative to the norm of the values, in the worst slice along an axis.

    Args:
        array: Float32, any shape.
        element: The half format.
        slices: Look at every slice along the first, second and last axis (channels, in whatever layout); False: at
            the whole tensor.

    Returns:
        inf where a finite value becomes infinite; values that are not finite round exactly and count for nothing.
    """
    flat = array.reshape(1, -1) if array.ndim < 2 else array
    axes = sorted({0, 1, flat.ndim - 1}) if slices and array.ndim >= 2 else []
    error = {axis: np.zeros(flat.shape[axis]) for axis in axes}
    norm = {axis: np.zeros(flat.shape[axis]) for axis in axes}
    whole = np.zeros(2)
    rows = max(1, _BLOCK // max(1, flat[:1].size))
    for start in range(0, len(flat), rows):
        block = flat[start : start + rows]
        rounded = to_half(block, element).astype(np.float32)
        finite = np.isfinite(block)
        if not np.isfinite(rounded[finite]).all():
            return float("inf")
        values = np.where(finite, block, 0.0).astype(np.float64)
        wrong = np.square(np.where(finite, rounded, 0.0) - values)
        np.square(values, out=values)
        whole += wrong.sum(), values.sum()
        for axis in axes:
            others = tuple(index for index in range(flat.ndim) if index != axis)
            where = slice(start, start + len(block)) if axis == 0 else slice(None)
            error[axis][where] += wrong.sum(axis=others)
            norm[axis][where] += values.sum(axis=others)
    ratios = [_ratio(whole[:1], whole[1:]), *(_ratio(error[axis], norm[axis]) for axis in axes)]
    return max(ratios)


def _ratio(error: Array, norm: Array) -> float:
    floor = np.maximum(norm, _SMALLEST_CHANNEL**2 * norm.max(initial=0.0))
    squared = np.divide(error, floor, out=np.zeros_like(error), where=floor > 0)
    return float(np.sqrt(squared.max(initial=0.0)))


def half_tensor(array: Array, element: HalfType, name: str) -> ir.TensorProtocol:
    """The rounded values as a tensor."""
    return ir.tensor(to_half(array, element), dtype=element.dtype, name=name)

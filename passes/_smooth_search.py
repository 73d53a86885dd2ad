"""How much quantization error a scale per channel saves, measured on captured activations in NumPy.

For every candidate the block is computed as the integer kernels would (activations rounded to one scale per tensor over
the range seen on all calibration data, weights to one scale per output channel) and compared with the float block.

Candidates, Xiao et al. 2022 (arXiv 2211.10438), equation 4: s_j = max|X_j|^alpha / max|W_j|^(1 - alpha) over a grid of
alphas. A common factor of all s_j changes nothing, so their geometric mean is set to 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from greencc.core.capabilities import Int8Support
from greencc.core.data import Array
from greencc.passes._quantize_scales import activation_scale, quantize_weight, weight_scales
from greencc.passes._ranges import Range
from greencc.passes._smooth_layout import Channels

Float64 = NDArray[np.float64]

# 1024 times apart from the mean either way: enough for any outlier, and FP16 still holds the folded constants.
_BOUND = 1024.0


def smoothing_scale(activation: Float64, weight: Float64, alpha: float) -> Float64:
    """The divisor s of each activation channel, within [1/1024, 1024], of geometric mean 1 before that bound.

    Args:
        activation: Largest magnitude of each channel of the activation.
        weight: Largest magnitude of the weights (or of the other operand) that each channel meets.
        alpha: 0 evens out the weights, 1 the activation.

    A channel that is always zero on either side is nobody's problem: where the activation is zero it takes the scale
    of the others; where the weights are, it is shrunk, so that it does not widen the range for nothing.
    """
    scale = np.ones_like(activation)
    used = (activation > 0) & (weight > 0)
    if not used.any():
        return scale
    logs = alpha * np.log(activation[used]) - (1.0 - alpha) * np.log(weight[used])
    scale[used] = np.exp(np.clip(logs - logs.mean(), -math.log(_BOUND), math.log(_BOUND)))
    unread = (activation > 0) & (weight == 0)
    level = np.exp(np.log(activation[used] / scale[used]).mean())
    scale[unread] = np.clip(activation[unread] / level, 1.0, _BOUND)
    return scale


def fake_quantize(values: Array, bounds: Range, int8: Int8Support) -> NDArray[np.float32]:
    """Round to the 8 bits of the target and back."""
    scale = activation_scale(bounds, int8)
    limits = np.iinfo(scale.dtype)
    steps = np.asarray(values, np.float32) / scale.scale
    np.rint(steps, out=steps)
    np.clip(steps, limits.min - scale.zero_point, limits.max - scale.zero_point, out=steps)
    steps *= scale.scale
    return steps


def fake_quantize_weight(matrix: Array, int8: Int8Support) -> NDArray[np.float32]:
    """The same for a weight of (groups, outputs, inputs)."""
    flat = matrix.reshape(-1, matrix.shape[-1])
    axis = 0 if int8.per_channel else None
    scales = weight_scales(flat, axis, int8.weight_bits)
    assert scales is not None
    steps = quantize_weight(flat, scales, axis, int8.weight_bits).astype(np.float32)
    steps *= scales[:, np.newaxis] if int8.per_channel else scales
    return steps.reshape(matrix.shape)


@dataclass(frozen=True)
class Limits:
    """Smallest and largest value of each channel over all calibration data."""

    low: Float64
    high: Float64

    @property
    def magnitude(self) -> Float64:
        return np.maximum(np.abs(self.low), np.abs(self.high))

    def scaled(self, factor: Float64) -> Range:
        """The range of the tensor after its channels were multiplied."""
        return Range(
            float((self.low * factor).min(initial=0.0)), float((self.high * factor).max(initial=0.0))
        )


@dataclass
class Errors:
    """Squared error of each candidate relative to the squared outputs; index 0 is the unscaled block."""

    count: int
    noise: Float64 = field(init=False)
    signal: float = 0.0

    def __post_init__(self) -> None:
        self.noise = np.zeros(self.count)

    def add(self, index: int, expected: Array, got: Array) -> None:
        difference = (got - expected).reshape(-1)
        self.noise[index] += float(np.dot(difference, difference))

    def reference(self, expected: Array) -> None:
        flat = expected.reshape(-1)
        self.signal += float(np.dot(flat, flat))

    @property
    def relative(self) -> Float64:
        return self.noise / self.signal if self.signal > 0 else np.zeros(self.count)


@dataclass(frozen=True)
class Matrix:
    """A weight as matrices, (groups, outputs, inputs), and the channel of X that each input belongs to."""

    values: NDArray[np.float32]
    channels: Channels

    @property
    def peaks(self) -> Float64:
        """Largest magnitude of the weights that each channel meets."""
        found = np.zeros(int(self.channels.max()) + 1)
        np.maximum.at(found, self.channels, np.abs(self.values).max(axis=1))
        return found

    def quantized(self, scale: Float64, int8: Int8Support) -> NDArray[np.float32]:
        """Multiplied by a scale per channel, and rounded; transposed to (groups, inputs, outputs)."""
        spread = scale[self.channels].astype(np.float32)[:, np.newaxis]
        return fake_quantize_weight(self.values * spread, int8).swapaxes(1, 2)


def linear_errors(
    rows: Array, limits: Limits, weight: Matrix, candidates: Sequence[Float64], int8: Int8Support
) -> Errors:
    """Error of X W when X is divided and W multiplied by each candidate.

    Args:
        rows: What W multiplies, (groups, rows, inputs).
        limits: Of the channels of X.
        weight: W.
        candidates: Scales; the first is all ones.
        int8: What the integer kernels do.
    """
    errors = Errors(len(candidates))
    expected = rows @ weight.values.swapaxes(1, 2)
    errors.reference(expected)
    for index, scale in enumerate(candidates):
        inverse = 1.0 / scale
        spread = inverse[weight.channels].astype(np.float32)[:, np.newaxis]
        x = fake_quantize(rows * spread, limits.scaled(inverse), int8)
        errors.add(index, expected, x @ weight.quantized(scale, int8))
    return errors


def value_errors(
    pieces: Sequence[tuple[Array, Array]],
    product_channels: Channels,
    limits: tuple[Range, Limits, Limits],
    weight: Matrix,
    candidates: Sequence[Float64],
    int8: Int8Support,
) -> Errors:
    """Error of merge(P V) W, where V is divided by each candidate and W multiplied; see `linear_errors`.

    Args:
        pieces: P (..., queries, keys) and V (..., keys, channels of a head) of some samples.
        product_channels: The input of W that each element of P V becomes.
        limits: Of P, V (per element of the channels, flattened) and P V (per input of W).
        weight: W.
        candidates: Scales; the first is all ones.
        int8: What the integer kernels do.
    """
    p_range, v_limits, x_limits = limits
    errors = Errors(len(candidates))
    order = product_channels.reshape(-1)
    # All samples in one product with W: many small ones are slow where others want the cores, too.
    expected = np.concatenate([merged(p @ v, product_channels) for p, v in pieces]) @ weight.values[0].T
    errors.reference(expected)
    rounded = [fake_quantize(p, p_range, int8) for p, _ in pieces]
    for index, scale in enumerate(candidates):
        inverse = 1.0 / scale
        spread = inverse[product_channels].astype(np.float32)
        bounds = v_limits.scaled(inverse[order])
        parts = [
            merged(p @ fake_quantize(v * spread, bounds, int8), product_channels)
            for p, (_, v) in zip(rounded, pieces, strict=True)
        ]
        x = fake_quantize(np.concatenate(parts), x_limits.scaled(inverse), int8)
        errors.add(index, expected, x @ weight.quantized(scale, int8)[0])
    return errors


def merged(product: Array, channels: Channels) -> Array:
    """An attention product as rows of the next projection's input: heads side by side."""
    along = [axis for axis, size in enumerate(channels.shape) if size != 1]
    rest = [axis for axis in range(product.ndim) if axis not in along]
    rows = product.transpose(*rest, *along).reshape(-1, channels.size)
    result = np.empty_like(rows)
    result[:, channels.reshape(-1)] = rows
    return result


def score_errors(
    errors: Errors,
    queries: Array,
    keys: Array,
    channels: tuple[Channels, Channels],
    limits: tuple[Limits, Limits],
    candidates: Sequence[Float64],
    int8: Int8Support,
) -> None:
    """Add the error of Q K^T, where Q is divided by each candidate and K multiplied.

    Args:
        errors: Takes the result.
        queries: Q, (..., queries, channels).
        keys: K^T, (..., channels, keys).
        channels: Of Q and of K^T.
        limits: Of Q and K, per channel.
        candidates: Scales; the first is all ones.
        int8: What the integer kernels do.
    """
    expected = queries @ keys
    errors.reference(expected)
    for index, scale in enumerate(candidates):
        inverse = 1.0 / scale
        q = fake_quantize(queries * inverse[channels[0]].astype(np.float32), limits[0].scaled(inverse), int8)
        k = fake_quantize(keys * scale[channels[1]].astype(np.float32), limits[1].scaled(scale), int8)
        errors.add(index, expected, q @ k)

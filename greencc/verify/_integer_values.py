"""Real numbers as an integer runtime holds them: integers and scales, rounded once, where they are quantized.

    r = sum_i s_i n_i + c,   clipped to [low, high]

`n_i` are exact integers (for averages, exact up to float64): q - z of a stored tensor, or the accumulator of a product.
They are float64 arrays, in which integers up to 2^53 are exact and matrix products fast.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from greencc.core.data import Array
from greencc.core.errors import InputError

Exact = NDArray[np.float64]
Float32 = NDArray[np.float32]
_INTEGERS = (np.uint8, np.int8, np.uint16, np.int16)


@dataclass(frozen=True)
class Term:
    """Integers and their scale, a float32 that broadcasts against them."""

    integers: Exact
    scale: Float32

    def times(self, factor: Float32) -> Float32:
        return self.integers.astype(np.float32) * factor


@dataclass(frozen=True)
class Byte:
    """How a tensor of 8-bit integers with one zero point is stored.

    Attributes:
        signed: As INT8, not UINT8.
        zero: Its zero point.
    """

    signed: bool
    zero: float


@dataclass(frozen=True)
class Quantity:
    """One value of the graph.

    Attributes:
        terms: Integers with scales; their sum is the value.
        dtype: Type of the value where the graph has it in float.
        stored: It is a tensor of integers, what integer kernels read; else an intermediate result of one.
        offset: A float bias.
        low: Lower end of a Relu or Clip behind the kernel.
        high: Upper end.
        byte: How a stored tensor of bytes is stored; None: it is none, or has several zero points.
    """

    terms: tuple[Term, ...]
    dtype: np.dtype[np.generic]
    stored: bool = False
    offset: Float32 | None = None
    low: float = -np.inf
    high: float = np.inf
    byte: Byte | None = None

    @property
    def term(self) -> Term:
        """The only term of a stored tensor."""
        return self.terms[0]

    def clipped(self, low: float, high: float) -> Quantity:
        """Behind a Clip: bounds of a second one lie within those of the first."""
        inner = min(max(low, self.low), self.high), min(max(high, self.low), self.high)
        return replace(self, stored=False, low=inner[0], high=inner[1])

    def real(self) -> Array:
        """The value as DequantizeLinear, or a kernel with a float output, computes it."""
        total = self.terms[0].times(self.terms[0].scale)
        for term in self.terms[1:]:
            total = total + term.times(term.scale)
        if self.offset is not None:
            total = total + self.offset
        clipped: Array = np.clip(total, self.low, self.high).astype(self.dtype)
        return clipped

    def quantized(self, scale: Float32, zero_point: Array) -> Array:
        """The integers of the output, each rounded once: saturate(round_half_even(m n) + z), m = s / s_y."""
        total = self.terms[0].times(self.terms[0].scale / scale)
        for term in self.terms[1:]:
            total = total + term.times(term.scale / scale)
        if self.offset is not None:
            total = total + self.offset / scale
        bounds = (np.float32(bound) / scale for bound in (self.low, self.high))
        return saturated(np.clip(total, *bounds), zero_point)


def saturated(steps: Float32, zero_point: Array) -> Array:
    """Round to the nearest integer, halves to even, add the zero point, and saturate."""
    if np.isnan(steps).any():
        raise InputError("a value to quantize is NaN")
    limits = np.iinfo(zero_point.dtype)
    shifted = np.rint(steps).astype(np.float64) + zero_point.astype(np.float64)
    integers: Array = np.clip(shifted, limits.min, limits.max).astype(zero_point.dtype)
    return integers


def quantizes_to(zero_point: Array) -> bool:
    """True for the integer types that QuantizeLinear is defined for here."""
    return zero_point.dtype in _INTEGERS


def along(parameter: Array, axis: int, rank: int) -> Array:
    """A scale or zero point per channel, shaped to broadcast along `axis`; a scalar one as a scalar."""
    if parameter.size == 1:
        return parameter.reshape(())
    return parameter.reshape([-1 if index == axis % rank else 1 for index in range(rank)])

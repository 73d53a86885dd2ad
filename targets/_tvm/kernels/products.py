"""How products are summed: one class per instruction set, with the order of weights that it wants.

A step of the innermost sum multiplies `depth` neighbouring inputs (1 float, 4 bytes), the same for all lanes, by the
weights of every lane.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from greencc.core.data import Array
from greencc.targets._tvm.kernels.emit import Emit, Expr, Index
from greencc.targets._tvm.machine import Dot, Machine


@dataclass(frozen=True)
class Source:
    """Neighbouring inputs of one pixel in memory.

    Attributes:
        buffer: Where.
        at: Of the first input of a step.
        valid: How many inputs exist; what is behind them counts as zero and is not read.
        dtype: Of the data.
    """

    buffer: Expr
    at: Sequence[Index]
    valid: int
    dtype: str

    def element(self, emit: Emit, number: int) -> Expr:
        """One input, as a scalar."""
        if number >= self.valid:
            return emit.const(self.dtype, 0)
        *outer, last = self.at
        return emit.load(self.buffer, [*outer, last + number], 1)

    def bits(self, emit: Emit, first: int, count: int) -> Expr:
        """2 or 4 inputs of 8 bits as one integer, the first in the low bits."""
        wide = f"int{8 * count}"
        *outer, last = self.at
        if first + count <= self.valid:
            return emit.bits(emit.load(self.buffer, [*outer, last + first], count), wide, 1)
        word = emit.const(wide, 0)
        for number in range(first, min(first + count, self.valid)):
            byte = emit.cast(emit.bits(self.element(emit, number), "uint8", 1), wide)
            word = word | (byte << emit.const(wide, 8 * (number - first)))
        return word


class Products(Protocol):
    """One way to multiply and sum.

    Attributes:
        lanes: Lanes of a full vector.
        depth: Inputs of a step.
        sums: Type of the sums.
        weights: Type of the weights.
    """

    @property
    def lanes(self) -> int: ...
    @property
    def depth(self) -> int: ...
    @property
    def sums(self) -> str: ...
    @property
    def weights(self) -> str: ...

    def elements(self, lanes: int) -> int:
        """Packed weights of a vector and a step."""

    def pack(self, weights: Array) -> Array:
        """[..., depth, lanes] to [..., elements]."""

    def add(self, emit: Emit, sums: Expr, source: Source, packed: Expr, at: Index, lanes: int) -> Expr:
        """Sums of a vector with the products of a step; its packed weights begin at `at`."""


@dataclass(frozen=True)
class FloatProducts:
    """A multiplication and an addition, which LLVM contracts to one operation where the processor has it."""

    lanes: int
    depth: int = 1
    sums: str = "float32"
    weights: str = "float32"

    def elements(self, lanes: int) -> int:
        return lanes

    def pack(self, weights: Array) -> Array:
        return weights

    def add(self, emit: Emit, sums: Expr, source: Source, packed: Expr, at: Index, lanes: int) -> Expr:
        data = emit.broadcast(source.element(emit, 0), lanes)
        return sums + data * emit.load(packed, [at], lanes)


@dataclass(frozen=True)
class _Integer:
    lanes: int
    depth: int = 4
    sums: str = "int32"
    weights: str = "int8"

    def elements(self, lanes: int) -> int:
        return 4 * lanes

    def pack(self, weights: Array) -> Array:
        """Four weights of a lane side by side."""
        return np.swapaxes(weights, -1, -2).reshape(*weights.shape[:-2], -1)

    @staticmethod
    def broadcast(emit: Emit, source: Source, lanes: int) -> Expr:
        """The same four inputs for every lane."""
        return emit.bits(emit.broadcast(source.bits(emit, 0, 4), lanes), "int8", 4 * lanes)


class VnniProducts(_Integer):
    """`vpdpbusd` of 512, 256 or 128 bits: exact."""

    def add(self, emit: Emit, sums: Expr, source: Source, packed: Expr, at: Index, lanes: int) -> Expr:
        name = f"llvm.x86.avx512.vpdpbusd.{32 * lanes}"
        data, weights = self.broadcast(emit, source, lanes), emit.load(packed, [at], 4 * lanes)
        if emit.llvm_major < 22:  # older signatures have vectors of INT32
            data, weights = emit.bits(data, "int32", lanes), emit.bits(weights, "int32", lanes)
        return emit.llvm("int32", lanes, name, sums, data, weights)


@dataclass(frozen=True)
class MaddubsProducts(_Integer):
    """`vpmaddubsw` and `vpmaddwd`. Pairs of products saturate at INT16: weights that may get there are two halves."""

    split: bool = True

    def elements(self, lanes: int) -> int:
        return (8 if self.split else 4) * lanes

    def pack(self, weights: Array) -> Array:
        if not self.split:
            return super().pack(weights)
        half = weights >> 1  # at most 64 in magnitude, and so is what is left
        return np.concatenate([super().pack(half), super().pack(weights - half)], axis=-1)

    def add(self, emit: Emit, sums: Expr, source: Source, packed: Expr, at: Index, lanes: int) -> Expr:
        bytes_name, words_name = {
            4: ("llvm.x86.ssse3.pmadd.ub.sw.128", "llvm.x86.sse2.pmadd.wd"),
            8: ("llvm.x86.avx2.pmadd.ub.sw", "llvm.x86.avx2.pmadd.wd"),
            16: ("llvm.x86.avx512.pmaddubs.w.512", "llvm.x86.avx512.pmaddw.d.512"),
        }[lanes]
        data, ones = self.broadcast(emit, source, lanes), emit.splat("int16", 1, 2 * lanes)
        for part in range(2 if self.split else 1):
            weights = emit.load(packed, [at + part * 4 * lanes], 4 * lanes)
            pairs = emit.llvm("int16", 2 * lanes, bytes_name, data, weights)
            sums = sums + emit.llvm("int32", lanes, words_name, pairs, ones)
        return sums


class SdotProducts(_Integer):
    """`sdot`: exact."""

    def add(self, emit: Emit, sums: Expr, source: Source, packed: Expr, at: Index, lanes: int) -> Expr:
        data, weights = self.broadcast(emit, source, lanes), emit.load(packed, [at], 4 * lanes)
        return emit.llvm("int32", lanes, "llvm.aarch64.neon.sdot.v4i32.v16i8", sums, weights, data)


@dataclass(frozen=True)
class SmlalProducts(_Integer):
    """`smull` and `smlal` to INT16, two products a lane, and `sadalp` to INT32.

    Two products overflow INT16 only if all factors are -128: `split` sums them one by one.
    """

    split: bool = True

    def pack(self, weights: Array) -> Array:
        """The first two weights of every lane, then the last two."""
        *outer, _, lanes = weights.shape
        halves = np.moveaxis(weights.reshape(*outer, 2, 2, lanes), -1, -2)
        return halves.reshape(*outer, -1)

    def add(self, emit: Emit, sums: Expr, source: Source, packed: Expr, at: Index, lanes: int) -> Expr:
        parts = []
        for half in range(2):
            data = emit.bits(emit.broadcast(source.bits(emit, 2 * half, 2), lanes), "int8", 2 * lanes)
            weights = emit.load(packed, [at + half * 2 * lanes], 2 * lanes)
            parts.append(emit.cast(data, "int16") * emit.cast(weights, "int16"))
        for part in parts if self.split else [parts[0] + parts[1]]:
            sums = sums + emit.llvm("int32", lanes, "llvm.aarch64.neon.saddlp.v4i32.v8i16", part)
        return sums


class PlainProducts(_Integer):
    """Widened factors: LLVM chooses the instructions."""

    def pack(self, weights: Array) -> Array:
        return weights.reshape(*weights.shape[:-2], -1)

    def add(self, emit: Emit, sums: Expr, source: Source, packed: Expr, at: Index, lanes: int) -> Expr:
        for number in range(4):
            if number < source.valid:
                data = emit.broadcast(emit.cast(source.element(emit, number), "int32"), lanes)
                weights = emit.cast(emit.load(packed, [at + number * lanes], lanes), "int32")
                sums = sums + data * weights
        return sums


def products_of(data: str, pairs_fit: bool, machine: Machine) -> Products:
    """How products of this type of data are summed.

    Args:
        data: ``float32``, or the type of quantized data.
        pairs_fit: See `Conv`.
        machine: What for.

    Raises:
        ValueError: The machine's instructions do not take quantized data of this type.
    """
    if data == "float32":
        return FloatProducts(machine.lanes)
    if data != machine.activation:
        raise ValueError(f"{machine.dot.value} takes {machine.activation}, not {data}")
    match machine.dot:
        case Dot.VNNI512:
            return VnniProducts(16)
        case Dot.VNNI256:
            return VnniProducts(8)
        case Dot.MADDUBS:
            return MaddubsProducts(16 if "avx512bw" in machine.features else 8, split=not pairs_fit)
        case Dot.SDOT:
            return SdotProducts(4)
        case Dot.SMLAL:
            return SmlalProducts(4, split=not pairs_fit)
        case Dot.PLAIN:
            return PlainProducts(machine.lanes)


def pairs_fit(weights: Array, machine: Machine) -> bool:
    """True if no pair of products that an instruction sums in INT16 can overflow, whatever the data.

    Args:
        weights: int8, [out, in / groups, kh, kw] of a convolution or [in, out] of a product.
        machine: Only some sum in INT16.
    """
    wide = weights.astype(np.int32)
    if machine.dot is Dot.SMLAL:
        return bool(wide.min(initial=0) > -128)
    if machine.dot is not Dot.MADDUBS:
        return True
    # Which weights are neighbours depends on the kernel: any two of an output channel may be.
    return bool(np.abs(wide).max(initial=0) <= 64)


def check_pairs(data: str, claimed: bool, weights: Array, machine: Machine) -> None:
    """Raises ValueError if a workload says `pairs_fit` of weights that do not."""
    if data != "float32" and claimed and not pairs_fit(weights, machine):
        raise ValueError("pairs_fit is set, but products of these weights overflow INT16")

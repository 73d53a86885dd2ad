"""Floats to 8-bit integers, four vectors at a time.

x86 packs integers with saturation, within 128-bit lanes: that is the output's range for nothing, and one store instead
of four. Where numbers may be far away, the upper bound is taken before: a float32 above 2^31 would become the least
INT32, as one below -2^31 does rightly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from greencc.targets._tvm.kernels.emit import Emit, Expr
from greencc.targets._tvm.machine import Machine
from greencc.targets._tvm.numbers import HIGH, LEAST, LOW, MOST, OUTPUT_ZERO_POINT, SHIFT

GROUP = 4
"""Vectors that are narrowed to one."""

_CONVERT = {4: "llvm.x86.sse2.cvtps2dq", 8: "llvm.x86.avx.cvt.ps2dq.256"}
_PACK = {4: ("llvm.x86.sse2.", ".128"), 8: ("llvm.x86.avx2.", ""), 16: ("llvm.x86.avx512.", ".512")}
_CURRENT_ROUNDING = 4


@dataclass(frozen=True)
class Grid:
    """Where numbers become integers.

    Attributes:
        dtype: Of the integers.
        near: See `Quantize`.
        bounded: See `Epilogue`.
        number: One of the kernel's `numbers` in every lane; arguments are its name, type and lanes.
    """

    dtype: str
    near: bool
    bounded: bool
    number: Callable[[str, str, int], Expr]


def single(emit: Emit, value: Expr, grid: Grid) -> Expr:
    """A float32 vector (in steps) clamped to the output's range, rounded (halves to even), and narrowed."""
    return emit.cast(_clamped(emit, value, grid), grid.dtype)


def packs(machine: Machine, lanes: int) -> bool:
    """True if `packed` takes vectors of so many lanes."""
    if machine.x86:
        needed = {4: None, 8: "avx2", 16: "avx512bw"}
        return lanes in needed and (needed[lanes] is None or needed[lanes] in machine.features)
    return machine.aarch64 and lanes == machine.lanes


def dealt_order(lanes: int) -> list[int]:
    """Numbers of `GROUP` vectors such that each has four of every sixteen: how x86 packs without moving anything."""
    parts = lanes // 4
    return [
        (GROUP * part + vector) * 4 + number
        for vector in range(GROUP)
        for part in range(parts)
        for number in range(4)
    ]


def packed(emit: Emit, values: Sequence[Expr], grid: Grid, *, dealt: bool = False) -> Expr:
    """Up to `GROUP` float32 vectors (in steps) as one vector of integers, in order; what is missing is undefined.

    Args:
        emit: Where to write.
        values: The vectors.
        grid: Of the integers.
        dealt: They are in `dealt_order`, on x86.
    """
    lanes = emit.lanes(values[0])
    values = [*values, *[values[-1]] * (GROUP - len(values))]
    if not emit.machine.x86:
        integers = [_clamped(emit, value, grid) for value in values]
        return emit.cast(emit.shuffled(integers, range(GROUP * lanes)), grid.dtype)
    before, behind = _PACK[lanes]
    wide = [_near(emit, value, grid) if grid.near else _far(emit, value, grid) for value in values]
    halves = [
        emit.llvm("int16", 2 * lanes, f"{before}packssdw{behind}", *wide[first : first + 2])
        for first in (0, 2)
    ]
    if not grid.near:
        shift = grid.number(SHIFT, "int16", 2 * lanes)
        name = f"llvm.sadd.sat.v{2 * lanes}i16"
        halves = [emit.llvm("int16", 2 * lanes, name, half, shift) for half in halves]
    name = "packuswb" if grid.dtype == "uint8" else "packsswb"
    narrow = emit.bits(
        emit.llvm("int8", 4 * lanes, f"{before}{name}{behind}", *halves), grid.dtype, 4 * lanes
    )
    if grid.bounded:
        if grid.near:
            narrow = emit.T.min(narrow, grid.number(MOST, grid.dtype, 4 * lanes))
        narrow = emit.T.max(narrow, grid.number(LEAST, grid.dtype, 4 * lanes))
    # Every 128-bit lane has four numbers of each vector.
    parts = lanes // 4
    fours = [lane * GROUP + vector for vector in range(GROUP) for lane in range(parts)]
    order = [4 * four + byte for four in fours for byte in range(4)]
    return narrow if parts == 1 or dealt else emit.shuffled([narrow], order)


def _clamped(emit: Emit, value: Expr, grid: Grid) -> Expr:
    lanes = emit.lanes(value)
    value = emit.minimum(value, grid.number(HIGH, "float32", lanes))
    value = emit.maximum(value, grid.number(LOW, "float32", lanes))
    return _near(emit, value, grid)


def _near(emit: Emit, value: Expr, grid: Grid) -> Expr:
    """The nearest INT32, halves to even, plus the zero point."""
    return emit.rounding(value, grid.number(OUTPUT_ZERO_POINT, "int32", emit.lanes(value)))


def _far(emit: Emit, value: Expr, grid: Grid) -> Expr:
    """The nearest INT32, halves to even, of any number; the greatest becomes the upper bound."""
    lanes = emit.lanes(value)
    value = emit.minimum(value, grid.number(HIGH, "float32", lanes))
    if lanes == 16:
        rest = [emit.splat("int32", 0, 16), emit.const("int16", -1), emit.const("int32", _CURRENT_ROUNDING)]
        return emit.llvm("int32", 16, "llvm.x86.avx512.mask.cvtps2dq.512", value, *rest)
    return emit.llvm("int32", lanes, _CONVERT[lanes], value)

"""How a depthwise convolution multiplies one kernel row into a tile's sums, and the weights it wants for that.

one by one   a vector of channels of one column times one column of the kernel. x86 has no 32-bit product that is
             as fast as `vpmaddwd`, which multiplies INT16 pairs: the second of each pair is 0 in the weights
by four      bytes of four columns interleaved, as `vpdpbusd` and `sdot` take them. With an odd stride, four
             columns from an even one on serve two outputs: the second has its weights shifted by one
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from greencc.core.data import Array
from greencc.targets._tvm.kernels.emit import Emit, Expr, Index
from greencc.targets._tvm.kernels.narrow import dealt_order, packs
from greencc.targets._tvm.kernels.windows import Block
from greencc.targets._tvm.machine import Dot, Machine
from greencc.targets._tvm.workload import Depthwise

_MADD = {4: "llvm.x86.sse2.pmadd.wd", 8: "llvm.x86.avx2.pmadd.wd", 16: "llvm.x86.avx512.pmaddw.d.512"}


@dataclass(frozen=True)
class Row:
    """One kernel row of a tile: where its data, weights and sums are.

    Attributes:
        load: A vector of a column's channels; arguments are the column, counted from under the first tap of the first
            output, the first channel, and lanes. None: outside the image, where nothing is added.
        weights: A vector of this row's packed weights; arguments are position and size.
        sums: The tile's sums.
        index: Where in `sums` an output's vector begins.
        columns: Outputs.
    """

    load: Callable[[int, int, int], Expr | None]
    weights: Callable[[int, int], Expr]
    sums: Expr
    index: Callable[[int, int], Index]
    columns: int


@dataclass(frozen=True)
class Taps:
    """Kernel rows of one block."""

    workload: Depthwise
    machine: Machine
    block: Block
    deals: bool = False
    """The sums may be dealt out to the vectors, as `kernels.narrow.dealt_order` has it."""

    @property
    def integer(self) -> bool:
        return self.workload.data != "float32"

    @property
    def by_four(self) -> bool:
        """Whether four columns are interleaved."""
        window = self.workload.window
        dots = (Dot.VNNI512, Dot.VNNI256, Dot.SDOT)
        adjacent = window.dilations[1] == 1 and window.kernel[1] > 1
        return self.integer and self.machine.dot in dots and self.block.lanes >= 4 and adjacent

    @property
    def dealt(self) -> bool:
        """Whether the sums of four vectors are dealt out: interleaving bytes twice within 128-bit lanes does so."""
        return (
            self.deals
            and self.by_four
            and _within_lanes(self.block)
            and packs(self.machine, self.block.lanes)
        )

    @property
    def paired(self) -> bool:
        """Whether INT16 pairs are multiplied."""
        return self.integer and not self.by_four and self.machine.x86 and self.block.lanes >= 4

    @property
    def group(self) -> int:
        """Packed numbers of one channel and entry."""
        return 4 if self.by_four else 2 if self.paired else 1

    @property
    def dtype(self) -> str:
        """Type of the packed weights."""
        return "float32" if not self.integer else "int8" if self.by_four else "int16"

    @property
    def entries(self) -> int:
        """Vectors of weights for one kernel row and vector of channels."""
        return self._shifts * self._quads if self.by_four else self.workload.window.kernel[1]

    @property
    def row_size(self) -> int:
        """Packed numbers of one kernel row."""
        return self.entries * self.block.width * self.group

    @property
    def _shifts(self) -> int:
        """By how many columns an output's taps may begin behind the even column where its fours begin."""
        return 2 if self.workload.window.strides[1] % 2 else 1

    @property
    def _quads(self) -> int:
        """Fours of columns that the taps of an output lie in."""
        return -(-(self.workload.window.kernel[1] + self._shifts - 1) // 4)

    def pack(self, weights: Array) -> Array:
        """Weights [c, kh, kw] of all channels to [count, kh, entries, width, group] of this block, flat."""
        block = self.block
        channels = weights[block.start : block.start + block.count * block.width]
        rows, columns = channels.shape[1:]
        moved = channels.reshape(block.count, block.width, rows, columns).transpose(0, 2, 3, 1)
        packed = np.zeros((block.count, rows, self.entries, block.width, self.group), np.dtype(self.dtype))
        if self.by_four:
            for shift in range(self._shifts):
                for column in range(columns):
                    quad, place = divmod(column + shift, 4)
                    packed[:, :, shift * self._quads + quad, :, place] = moved[:, :, column]
        else:
            packed[..., 0] = moved
        if self.dealt:
            packed = packed[..., dealt_order(block.lanes), :]
        return packed.reshape(-1)

    def deal(self, channels: Array) -> None:
        """Brings numbers per channel (the last axis) into the order of the sums, in place."""
        block = self.block
        if self.dealt:
            mine = channels[..., block.start : block.start + block.count * block.width]
            parts = mine.reshape(*mine.shape[:-1], block.count, block.width)
            mine[...] = parts[..., dealt_order(block.lanes)].reshape(mine.shape)

    def add(self, emit: Emit, row: Row) -> None:
        """Adds one kernel row to all sums of a tile."""
        (self._add_by_four if self.by_four else self._add_one_by_one)(emit, row)

    def _add_one_by_one(self, emit: Emit, row: Row) -> None:
        window, lanes = self.workload.window, self.block.lanes
        uses: dict[int, list[tuple[int, int]]] = {}
        for output in range(row.columns):
            for column in range(window.kernel[1]):
                offset = output * window.strides[1] + column * window.dilations[1]
                uses.setdefault(offset, []).append((output, column))
        for offset, pairs in sorted(uses.items()):
            for vector in range(self.block.vectors):
                loaded = row.load(offset, vector * lanes, lanes)
                if loaded is None:
                    continue
                x = emit.T.Bind(self._widened(emit, loaded))
                for output, column in pairs:
                    place = (column * self.block.width + vector * lanes) * self.group
                    w = row.weights(place, lanes * self.group)
                    self._accumulate(emit, row, row.index(output, vector), (x, w))

    def _widened(self, emit: Emit, x: Expr) -> Expr:
        return emit.cast(x, "int32" if self.paired else "int16") if self.integer else x

    def _sum(self, emit: Emit, total: Expr, x: Expr, w: Expr) -> Expr:
        lanes = self.block.lanes
        if self.paired:
            x = emit.bits(x, "int16", 2 * lanes)
            if self.machine.dot is Dot.VNNI512:
                return self._vnni(emit, f"llvm.x86.avx512.vpdpwssd.{32 * lanes}", total, x, w)
            return total + emit.llvm("int32", lanes, _MADD[lanes], x, w)
        if self.integer:
            return total + emit.cast(x, "int32") * emit.cast(w, "int32")
        return total + x * w

    def _vnni(self, emit: Emit, name: str, total: Expr, x: Expr, w: Expr) -> Expr:
        lanes = self.block.lanes
        if emit.llvm_major < 22:
            # The operands' type was that of the sums.
            x, w = emit.bits(x, "int32", lanes), emit.bits(w, "int32", lanes)
        return emit.llvm("int32", lanes, name, total, x, w)

    def _add_by_four(self, emit: Emit, row: Row) -> None:
        window, block = self.workload.window, self.block
        # Fours by their first column, which is even, with the outputs that they are in and the weights they meet there.
        uses: dict[int, list[tuple[int, int]]] = {}
        needed: set[int] = set()
        for output in range(row.columns):
            start = output * window.strides[1]
            shift = start % 2
            needed.update(range(start, start + window.kernel[1]))
            for quad in range(self._quads):
                uses.setdefault(start - shift + 4 * quad, []).append((output, shift * self._quads + quad))
        columns: dict[int, Expr] = {}
        pairs: dict[int, list[Expr]] = {}

        def column(offset: int) -> Expr:
            # What meets only weights that are 0 may be any column that is loaded anyway.
            known = offset if offset in needed else min(needed, key=lambda other: abs(other - offset))
            if known not in columns:
                loaded = row.load(known, 0, block.width)
                if loaded is None:
                    loaded = emit.splat(self.workload.data, 0, block.width)
                columns[known] = emit.T.Bind(loaded if self.dealt else _dealt(emit, loaded, block))
            return columns[known]

        def pair(offset: int) -> list[Expr]:
            if offset not in pairs:
                pairs[offset] = _interleaved(emit, [column(offset)], [column(offset + 1)], 1, block)
            return pairs[offset]

        for first, outputs in sorted(uses.items()):
            if needed.isdisjoint(range(first, first + 4)):
                continue
            for vector, x in enumerate(_interleaved(emit, pair(first), pair(first + 2), 2, block)):
                for output, entry in outputs:
                    w = row.weights((entry * block.width + vector * block.lanes) * 4, block.lanes * 4)
                    self._accumulate(emit, row, row.index(output, vector), (x, w))

    def _accumulate(self, emit: Emit, row: Row, place: Index, factors: tuple[Expr, Expr]) -> None:
        total = emit.load(row.sums, [place], self.block.lanes)
        multiply = self._dot if self.by_four else self._sum
        emit.store(row.sums, [place], multiply(emit, total, *factors), self.block.lanes)

    def _dot(self, emit: Emit, total: Expr, x: Expr, w: Expr) -> Expr:
        lanes = self.block.lanes
        if self.machine.dot is Dot.SDOT:
            return emit.llvm(
                "int32", lanes, f"llvm.aarch64.neon.sdot.v{lanes}i32.v{4 * lanes}i8", total, x, w
            )
        return self._vnni(
            emit, f"llvm.x86.avx512.vpdpbusd.{32 * lanes}", total, emit.bits(x, "int8", 4 * lanes), w
        )


def _dealt(emit: Emit, x: Expr, block: Block) -> Expr:
    """Deals groups of four channels out to the 128-bit lanes, so that interleaving within lanes restores the order."""
    parts = block.width // 16
    if not _within_lanes(block) or parts < 2:
        return x
    # Interleaved twice, vector v has from each lane the lane's v-th group, which has to be group v * parts + lane.
    groups = [vector * parts + part for part in range(parts) for vector in range(4)]
    return emit.shuffled([x], [4 * group + byte for group in groups for byte in range(4)])


def _interleaved(emit: Emit, first: list[Expr], second: list[Expr], size: int, block: Block) -> list[Expr]:
    """Interleaves units of `size` bytes of two lists of vectors; the second time, into vectors of 32-bit lanes."""
    within = _within_lanes(block)
    width = block.width if within else block.width * size
    lane = 16 if within else width
    halves: tuple[list[int], list[int]] = ([], [])
    for start in range(0, width, lane):
        for half, order in enumerate(halves):
            base = start + half * lane // 2
            for unit in range(base, base + lane // 2, size):
                order += [unit + byte for byte in range(size)]
                order += [width + unit + byte for byte in range(size)]
    if within:
        orders = list(halves)
    else:
        whole = halves[0] + halves[1]
        step = len(whole) if size == 1 else 4 * block.lanes
        orders = [whole[start : start + step] for start in range(0, len(whole), step)]
    return [
        emit.T.Bind(emit.shuffled([a, b], order))
        for a, b in zip(first, second, strict=True)
        for order in orders
    ]


def _within_lanes(block: Block) -> bool:
    """True where a column's channels fill a register: interleaving within 128-bit lanes is one cheap instruction."""
    return block.vectors == 4

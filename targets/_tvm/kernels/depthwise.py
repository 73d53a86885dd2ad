"""Depthwise convolutions over NHWC data, vectorised over channels. See `taps` for what is multiplied how."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from greencc.core.data import Array
from greencc.targets._tvm.kernels.costs import crowded, item_bytes
from greencc.targets._tvm.kernels.emit import Emit, Expr, Index
from greencc.targets._tvm.kernels.epilogue import EpilogueCode, Piece, deals_out
from greencc.targets._tvm.kernels.narrow import GROUP
from greencc.targets._tvm.kernels.taps import Row, Taps
from greencc.targets._tvm.kernels.template import Schedule, Template
from greencc.targets._tvm.kernels.windows import (
    Tile,
    band_of,
    blocks,
    each_band,
    each_tile,
    evenly,
    inside,
    kernel_rows,
    valid_schedule,
)
from greencc.targets._tvm.machine import Dot, Machine
from greencc.targets._tvm.workload import Depthwise, Workload

if TYPE_CHECKING:
    from tvm.tirx import PrimFunc


class DepthwiseTemplate:
    """A tile is one output row, `columns` columns and `vectors` vectors of channels; `rows` and `unroll` are 1."""

    def default(self, workload: Workload, machine: Machine) -> Schedule:
        depthwise = _checked(workload)
        rows, columns = depthwise.window.output
        if depthwise.data == "float32":
            # Sums take half of the registers, or weights and data would be loaded more than once; where a row has
            # several tiles, a quarter: fewer columns of it are on their way at once.
            part = 2 if columns <= machine.registers // 2 else 4
            widest, vectors = machine.registers // part, 1
            if crowded(depthwise.channels * item_bytes("float32"), evenly(columns, widest), machine):
                # Few columns, each with the whole cache lines that were loaded for it.
                widest, vectors = 3, 4
        else:
            # On x86 more columns of wide blocks share little more, and take more code.
            wide = 2 if depthwise.channels >= 2 * machine.lanes else 6
            widest, vectors = 4 if machine.aarch64 else wide, 4
        return Schedule(1, evenly(columns, widest), vectors, band_of(rows, machine.cores))

    def space(self, workload: Workload, machine: Machine) -> Sequence[Schedule]:
        depthwise = _checked(workload)
        rows, columns = depthwise.window.output
        found = {self.default(workload, machine): None}
        for vectors in (1, 2, 4):
            for wide in (1, 2, 3, 4, 6, 8, 14):
                if wide <= columns and wide * vectors <= machine.registers - 4:
                    for parts in (1, 2):
                        found[Schedule(1, wide, vectors, band_of(rows, machine.cores * parts))] = None
        return tuple(found)

    def pack(
        self, workload: Workload, schedule: Schedule, machine: Machine, weights: Array
    ) -> tuple[Array, ...]:
        """Weights by their type, all blocks' one after the other; then what rows outside the image add to the sums."""
        depthwise = _checked(workload)
        shaped = weights.reshape(depthwise.channels, *depthwise.window.kernel)
        parts: dict[str, list[Array]] = {}
        for taps in _taps(depthwise, schedule, machine):
            parts.setdefault(taps.dtype, []).append(taps.pack(shaped))
        packed = [np.concatenate(each) for each in parts.values()]
        if _fills_rows(depthwise):
            fills = shaped.astype(np.int32).sum(2).T * depthwise.zero_point
            for taps in _taps(depthwise, schedule, machine):
                taps.deal(fills)
            packed.append(fills.astype(np.int32))
        return tuple(packed)

    def build(self, workload: Workload, schedule: Schedule, machine: Machine, name: str) -> PrimFunc:
        from tvm.script.ir_builder import IRBuilder

        depthwise = _checked(workload)
        valid_schedule(schedule, depthwise.window)
        emit = Emit(machine)
        with IRBuilder() as builder, emit.function(name):
            _Writer(emit, depthwise, schedule).write()
        return builder.get()


class _Writer:
    """Writes the body of one function."""

    def __init__(self, emit: Emit, workload: Depthwise, schedule: Schedule) -> None:
        self.emit = emit
        self.workload = workload
        self.window = workload.window
        self.schedule = schedule
        self.sums = "float32" if workload.data == "float32" else "int32"
        self.epilogue = EpilogueCode(emit, workload, workload.channels, self.sums)
        self.placed = _placed(_taps(workload, schedule, emit.machine), self.window.kernel[0])

    def write(self) -> None:
        emit, window, schedule = self.emit, self.window, self.schedule
        (rows, columns), channels = window.output, self.workload.channels
        batch = emit.T.int64()
        shape = (batch, window.height, window.width, channels)
        self.data = emit.argument("data", shape, self.workload.data)
        sizes = {each.taps.dtype: each.end for each in self.placed}
        self.packed = {
            dtype: emit.argument(f"weights_{dtype}", (size,), dtype) for dtype, size in sizes.items()
        }
        if _fills_rows(self.workload):
            self.fills = emit.argument("fills", (window.kernel[0], channels), "int32")
        output = (batch, rows, columns, channels)
        self.epilogue.arguments(output)
        self.output = emit.argument("output", output, self.workload.epilogue.dtype)
        with each_band(emit, self.epilogue, batch, rows, schedule.band) as (sample, first, size):
            for placed in self.placed:
                block = placed.taps.block
                with emit.loop(block.count) as turn:
                    channel = block.start + turn * block.width
                    place = placed.start + turn * (placed.taps.row_size * window.kernel[0])
                    self.constants(placed.taps, channel)
                    with emit.loop(size) as index:
                        for tile, column in each_tile(emit, window, schedule.columns):
                            self.tile(placed.taps, tile, (sample, first + index, column, channel), place)

    def constants(self, taps: Taps, channel: Index) -> None:
        """How a tile loads what it needs per channel: once per block where it is dealt out."""
        lanes = taps.block.lanes
        self.constant: list[Callable[[Expr], Expr] | None] = [None] * taps.block.vectors
        if taps.dealt:
            self.constant = [*self.epilogue.dealt(channel, lanes)]

    def tile(self, taps: Taps, tile: Tile, at: tuple[Expr, Expr, Index, Expr], place: Expr) -> None:
        """One tile: sums start, take the kernel's rows, and are stored."""
        emit, block, window = self.emit, taps.block, self.window
        sample, row, column, channel = at
        lanes = block.lanes
        sums = emit.registers(self.sums, tile.columns * block.width)
        pieces = [(output, vector) for output in range(tile.columns) for vector in range(block.vectors)]

        def index(output: int, vector: int) -> int:
            return (output * block.vectors + vector) * lanes

        for output, vector in pieces:
            start = self.epilogue.start(channel + vector * lanes, lanes, self.constant[vector])
            emit.store(sums, [index(output, vector)], start, lanes)
        low, high = kernel_rows(emit, window, row)
        if _fills_rows(self.workload):
            for start, stop in ((0, low), (high, window.kernel[0])):
                with emit.loop(stop, start=start) as kernel_row:
                    for output, vector in pieces:
                        fill = emit.load(self.fills, [kernel_row, channel + vector * lanes], lanes)
                        total = emit.load(sums, [index(output, vector)], lanes)
                        emit.store(sums, [index(output, vector)], total + fill, lanes)
        begin = column * window.strides[1] - window.pads[1]
        with emit.loop(high, start=low) as kernel_row:
            image_row = row * window.strides[0] - window.pads[0] + kernel_row * window.dilations[0]

            def load(offset: int, first: int, size: int) -> Expr | None:
                if tile.border and not inside(window, begin + offset):
                    if self.workload.zero_point == 0:
                        return None
                    return self.epilogue.border(self.workload.data, size)
                return emit.load(self.data, [sample, image_row, begin + offset, channel + first], size)

            def weights(position: int, size: int) -> Expr:
                whole = place + kernel_row * taps.row_size + position
                return emit.load(self.packed[taps.dtype], [whole], size)

            taps.add(emit, Row(load, weights, sums, index, tile.columns))
        self.epilogue.store(
            self.output,
            [
                Piece(
                    emit.load(sums, [index(output, vector)], lanes),
                    [sample, row, column + output, channel + vector * lanes],
                    lanes,
                    output,
                    self.constant[vector],
                )
                for output, vector in pieces
            ],
        )


@dataclass(frozen=True)
class _Placed:
    """Weights of a block are packed from `start` to `end`, among those of their type."""

    taps: Taps
    start: int
    end: int


def _taps(workload: Depthwise, schedule: Schedule, machine: Machine) -> list[Taps]:
    lanes = machine.lanes
    if workload.data != "float32" and not machine.x86 and machine.dot is not Dot.SDOT:
        lanes *= 2  # Widened bytes fill a register with INT16.
    deals, integers = deals_out(workload.epilogue), workload.data != "float32"
    # Four vectors are interleaved without crossing 128 bits.
    keep = integers and machine.x86 and schedule.vectors == GROUP
    return [
        Taps(workload, machine, each, deals)
        for each in blocks(workload.channels, lanes, schedule.vectors, keep)
    ]


def _placed(taps: Sequence[Taps], kernel_rows: int) -> list[_Placed]:
    ends: dict[str, int] = {}
    found = []
    for each in taps:
        start = ends.get(each.dtype, 0)
        ends[each.dtype] = start + each.row_size * kernel_rows * each.block.count
        found.append(_Placed(each, start, ends[each.dtype]))
    return found


def _fills_rows(workload: Depthwise) -> bool:
    """Whether rows outside the image add to the sums."""
    window = workload.window
    return (
        workload.data != "float32" and workload.zero_point != 0 and (window.pads[0] > 0 or window.pads[2] > 0)
    )


def _checked(workload: Workload) -> Depthwise:
    assert isinstance(workload, Depthwise)
    return workload


DEPTHWISE: Template = DepthwiseTemplate()

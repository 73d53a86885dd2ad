"""Maximum and average pools over NHWC data, vectorised over channels.

Integers are summed in INT32 and their mean is one float32 division, the nearest float32 to the exact mean while the sum
stays below 2^24, as in `greencc.verify.integer_reference`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from greencc.core.data import Array
from greencc.targets._tvm.epilogue import NOTHING
from greencc.targets._tvm.kernels.emit import Emit, Expr, Index
from greencc.targets._tvm.kernels.epilogue import EpilogueCode, Piece
from greencc.targets._tvm.kernels.template import Schedule, Template
from greencc.targets._tvm.kernels.windows import (
    Block,
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
from greencc.targets._tvm.machine import Machine
from greencc.targets._tvm.workload import Pool, PoolKind, Window, Workload

if TYPE_CHECKING:
    from tvm.tirx import PrimFunc

# Kernels wider than this are a loop, over which sums of one output are split.
_WRITTEN_OUT = 8


class PoolTemplate:
    """A tile is one output row, `columns` columns and `vectors` vectors of channels; `rows` is 1.

    `unroll`: over how many sums the columns of a wide kernel are split, so that no addition waits for the one before.
    """

    def default(self, workload: Workload, machine: Machine) -> Schedule:
        pool = _checked(workload)
        rows, columns = pool.window.output
        band = band_of(rows, machine.cores)
        if pool.window.kernel[1] > _WRITTEN_OUT:
            return Schedule(1, 1, 2, band, 4)
        return Schedule(1, evenly(columns, 4), 2, band)

    def space(self, workload: Workload, machine: Machine) -> Sequence[Schedule]:
        pool = _checked(workload)
        rows, columns = pool.window.output
        found = {self.default(workload, machine): None}
        wide = pool.window.kernel[1] > _WRITTEN_OUT
        for vectors in (1, 2, 4):
            for width in (1,) if wide else (1, 2, 4, 7):
                for unroll in (1, 2, 4) if wide else (1,):
                    if width <= columns and width * vectors * unroll <= machine.registers - 4:
                        found[Schedule(1, width, vectors, band_of(rows, machine.cores), unroll)] = None
        return tuple(found)

    def pack(
        self, workload: Workload, schedule: Schedule, machine: Machine, weights: Array
    ) -> tuple[Array, ...]:
        """A pool has no constants."""
        return ()

    def build(self, workload: Workload, schedule: Schedule, machine: Machine, name: str) -> PrimFunc:
        from tvm.script.ir_builder import IRBuilder

        pool = _checked(workload)
        valid_schedule(schedule, pool.window)
        if pool.epilogue.bias or (pool.kind is PoolKind.MAX and pool.epilogue != NOTHING):
            raise ValueError("a maximum has no epilogue, and an average no bias")
        emit = Emit(machine)
        with IRBuilder() as builder, emit.function(name):
            _Writer(emit, pool, schedule).write()
        return builder.get()


class _Writer:
    """Writes the body of one function."""

    def __init__(self, emit: Emit, workload: Pool, schedule: Schedule) -> None:
        self.emit = emit
        self.workload = workload
        self.window = workload.window
        self.schedule = schedule
        self.average = workload.kind is PoolKind.AVERAGE
        self.integer = workload.data != "float32"
        self.sums = "int32" if self.integer and self.average else workload.data
        self.epilogue = EpilogueCode(emit, workload, workload.channels, "float32")

    def write(self) -> None:
        emit, window, schedule, workload = self.emit, self.window, self.schedule, self.workload
        (rows, columns), channels = window.output, workload.channels
        batch = emit.T.int64()
        self.data = emit.argument("data", (batch, window.height, window.width, channels), workload.data)
        shape = (batch, rows, columns, channels)
        self.epilogue.arguments(shape)
        dtype = workload.epilogue.dtype if self.average else workload.data
        self.output = emit.argument("output", shape, dtype)
        lanes = emit.machine.vector_bits // (32 if self.average or not self.integer else 8)
        band = each_band(emit, self.epilogue, batch, rows, schedule.band)
        with band as (sample, first, size), emit.loop(size) as index:
            for tile, column in each_tile(emit, window, schedule.columns):
                for block in blocks(channels, lanes, schedule.vectors):
                    with emit.loop(block.count) as turn:
                        channel = block.start + turn * block.width
                        self.tile(block, tile, (sample, first + index, column, channel))

    def tile(self, block: Block, tile: Tile, at: tuple[Expr, Expr, Index, Expr]) -> None:
        """One tile: values start, take the kernel's rows, and are stored."""
        emit, window, lanes = self.emit, self.window, block.lanes
        sample, row, column, channel = at
        wide = window.kernel[1] > _WRITTEN_OUT
        split = self.schedule.unroll if wide else 1
        values = emit.registers(self.sums, tile.columns * block.width * split)

        def index(output: int, vector: int, part: int = 0) -> int:
            return ((output * block.vectors + vector) * split + part) * lanes

        pieces = [(output, vector) for output in range(tile.columns) for vector in range(block.vectors)]
        for output, vector in pieces:
            for part in range(split):
                emit.store(values, [index(output, vector, part)], self._start(lanes), lanes)
        low, high = kernel_rows(emit, window, row)
        begin = column * window.strides[1] - window.pads[1]
        ranges = [
            _columns(window, begin + output * window.strides[1], tile) for output in range(tile.columns)
        ]
        with emit.loop(high, start=low) as kernel_row:
            image_row = row * window.strides[0] - window.pads[0] + kernel_row * window.dilations[0]
            for output, vector in pieces:
                left = begin + output * window.strides[1]
                for step, part in self._steps(ranges[output], split, wide):
                    source = [sample, image_row, left + step * window.dilations[1], channel + vector * lanes]
                    self._take(values, index(output, vector, part), emit.load(self.data, source, lanes))
        stored = []
        for output, vector in pieces:
            value = emit.load(values, [index(output, vector)], lanes)
            for part in range(1, split):
                value = self._joined(value, emit.load(values, [index(output, vector, part)], lanes))
            target = [sample, row, column + output, channel + vector * lanes]
            if not self.average:
                emit.store(self.output, target, value, lanes)
                continue
            first, last = ranges[output]
            mean = self._mean(value, high - low, last - first, lanes)
            stored.append(Piece(mean, target, lanes, output))
        self.epilogue.store(self.output, stored)

    def _steps(self, columns: tuple[int, int], split: int, loop: bool) -> Iterator[tuple[Index, int]]:
        """Kernel columns, each with the part that it is summed in."""
        first, last = columns
        if not loop:
            yield from ((column, 0) for column in range(first, last))
            return
        whole = (last - first) // split
        if whole:
            with self.emit.loop(whole) as turn:
                yield from ((first + turn * split + part, part) for part in range(split))
        yield from ((column, part) for part, column in enumerate(range(first + whole * split, last)))

    def _start(self, lanes: int) -> Expr:
        if self.average:
            return self.emit.splat(self.sums, 0, lanes)
        least = int(np.iinfo(self.sums).min) if self.integer else -float("inf")
        return self.emit.splat(self.sums, least, lanes)

    def _take(self, values: Expr, place: int, x: Expr) -> None:
        lanes = self.emit.lanes(x)
        if self.average and self.integer:
            x = self.emit.cast(x, "int32")
        self.emit.store(values, [place], self._joined(self.emit.load(values, [place], lanes), x), lanes)

    def _joined(self, left: Expr, right: Expr) -> Expr:
        if self.average:
            return left + right
        return self.emit.T.max(left, right) if self.integer else self.emit.maximum(left, right)

    def _mean(self, total: Expr, rows: Index, columns: int, lanes: int) -> Expr:
        """Of `rows` x `columns` values inside the image."""
        emit, workload = self.emit, self.workload
        taken = emit.T.cast(emit.index(rows * columns), "int32")
        if self.integer:
            zero_point = self.epilogue.border("int32", 1)
            total = total - emit.broadcast(taken * zero_point, lanes)
            total = emit.cast(total, "float32")
        kernel = self.window.kernel
        count = emit.const("int32", kernel[0] * kernel[1]) if workload.count_borders else taken
        return total / emit.broadcast(emit.T.cast(count, "float32"), lanes)


def _columns(window: Window, left: Index, tile: Tile) -> tuple[int, int]:
    """First and one past the last kernel column inside the image."""
    size, dilation = window.kernel[1], window.dilations[1]
    if not tile.border:
        return 0, size
    valid = [step for step in range(size) if inside(window, left + step * dilation)]
    return (valid[0], valid[-1] + 1) if valid else (0, 0)


def _checked(workload: Workload) -> Pool:
    assert isinstance(workload, Pool)
    return workload


POOL: Template = PoolTemplate()

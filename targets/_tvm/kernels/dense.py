"""Product by constant weights: rows of data, as many as there are, by blocks of output channels.

Rows go through register tiles, what is left row by row. A single row has too few sums to hide how long an addition
takes: each is then several partial ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from greencc.core.data import Array
from greencc.targets._tvm.kernels.blocks import Block, Blocks, blocks_of, pack_blocks
from greencc.targets._tvm.kernels.conv_schedule import LATENCY, TASK, step_cost
from greencc.targets._tvm.kernels.emit import Emit, Expr, Index
from greencc.targets._tvm.kernels.epilogue import EpilogueCode
from greencc.targets._tvm.kernels.products import Products, check_pairs, products_of
from greencc.targets._tvm.kernels.template import Schedule
from greencc.targets._tvm.kernels.tile import Run, Tile
from greencc.targets._tvm.machine import Machine
from greencc.targets._tvm.workload import Dense, Workload

if TYPE_CHECKING:
    from tvm.tirx import PrimFunc

_SPACE = 64
_ROWS = 4
"""Fewest rows of a tile: batches of more than the expected rows come too."""
_BAND = 32
"""Fewest rows of a task."""


class DenseTemplate:
    """Products by constant weights; see `Template`. A schedule's `columns` is 1."""

    def default(self, workload: Workload, machine: Machine) -> Schedule:
        return self.space(workload, machine)[0]

    def space(self, workload: Workload, machine: Machine) -> Sequence[Schedule]:
        assert isinstance(workload, Dense)
        products = products_of(workload.data, workload.pairs_fit, machine)
        vectors = -(-workload.channels[1] // products.lanes)
        costs = {
            (rows, count): cost
            for rows in range(_ROWS, min(max(workload.rows, _ROWS), 14) + 1)
            for count in range(1, min(vectors, 6) + 1)
            if (cost := _cost(workload, products, machine, rows, count)) is not None
        }
        best = sorted(costs, key=lambda tile: (costs[tile], tile))[: _SPACE // 2]
        schedules = [
            Schedule(rows, 1, count, _band(workload, machine, rows), unroll)
            for unroll in (1, 2)
            for rows, count in best
        ]
        return schedules[:_SPACE]

    def pack(
        self, workload: Workload, schedule: Schedule, machine: Machine, weights: Array
    ) -> tuple[Array, ...]:
        assert isinstance(workload, Dense)
        plan = _Plan(workload, schedule, machine)
        check_pairs(workload.data, workload.pairs_fit, weights, machine)
        inputs, outputs = workload.channels
        depth = plan.products.depth
        padded = np.pad(weights, ((0, plan.steps * depth - inputs), (0, 0)))
        return (pack_blocks(plan.products, plan.blocks, padded.reshape(1, plan.steps, depth, outputs)),)

    def build(self, workload: Workload, schedule: Schedule, machine: Machine, name: str) -> PrimFunc:
        assert isinstance(workload, Dense)
        from tvm.script.ir_builder import IRBuilder

        plan = _Plan(workload, schedule, machine)
        with IRBuilder() as builder:
            _Code(plan, Emit(machine), name).write()
        return builder.get()


DENSE = DenseTemplate()


@dataclass(frozen=True)
class _Plan:
    workload: Dense
    schedule: Schedule
    machine: Machine

    def __post_init__(self) -> None:
        schedule = self.schedule
        if min(schedule.rows, schedule.vectors, schedule.band, schedule.unroll) < 1 or schedule.columns != 1:
            raise ValueError(f"{schedule} is none of a product")

    @cached_property
    def products(self) -> Products:
        return products_of(self.workload.data, self.workload.pairs_fit, self.machine)

    @cached_property
    def blocks(self) -> Blocks:
        return blocks_of(self.workload.channels[1], self.schedule.vectors, self.products.lanes)

    @property
    def steps(self) -> int:
        return -(-self.workload.channels[0] // self.products.depth)

    @property
    def chunks(self) -> int:
        """Tasks that share a band's output channels, where fewer bands than cores are expected."""
        bands = -(-self.workload.rows // self.schedule.band)
        worth = self.work // TASK
        return max(1, min(self.blocks.count, worth, -(-self.machine.cores // bands)))

    @property
    def work(self) -> int:
        """Operations of vectors for a band, if there are as many rows as expected."""
        rows = min(self.workload.rows, self.schedule.band)
        return rows * self.steps * -(-self.workload.channels[1] // self.products.lanes)


class _Code:
    def __init__(self, plan: _Plan, emit: Emit, name: str) -> None:
        self.plan = plan
        self.emit = emit
        self.name = name
        workload = plan.workload
        self.code = EpilogueCode(emit, workload.epilogue, workload.channels[1], plan.products.sums)

    def write(self) -> None:
        plan, emit, workload = self.plan, self.emit, self.plan.workload
        with emit.function(self.name):
            rows = emit.T.int64()
            self.data = emit.argument("data", (rows, workload.channels[0]), workload.data)
            size = plan.blocks.size(plan.products, plan.steps)
            self.packed = emit.argument("weights", (size,), plan.products.weights)
            shape = (rows, workload.channels[1])
            self.code.arguments(shape)
            self.output = emit.argument("output", shape, workload.epilogue.dtype)
            band = plan.schedule.band

            def task(number: Expr) -> None:
                begin = number // plan.chunks * band
                self._task(begin, emit.T.min(emit.index(band), rows - begin), number % plan.chunks)

            bands = (rows + (band - 1)) // band
            emit.tasks(bands * plan.chunks, plan.work // plan.chunks, task)

    def _task(self, begin: Index, rows: Index, chunk: Index) -> None:
        plan, emit = self.plan, self.emit
        blocks, chunks = plan.blocks, plan.chunks
        width, size = blocks.main.channels, plan.steps * blocks.main.elements(plan.products)[-1]
        if blocks.count:
            with emit.share(blocks.count, chunk, chunks) as block:
                self._block(blocks.main, begin, rows, block * width, block * size)
        if blocks.rest is not None:
            with emit.when(chunk == chunks - 1):
                channel = emit.index(blocks.count * width)
                self._block(blocks.rest, begin, rows, channel, emit.index(blocks.count * size))

    def _block(self, block: Block, begin: Index, rows: Index, channel: Index, first: Index) -> None:
        emit, height = self.emit, self.plan.schedule.rows
        with emit.loop(rows // height) as row:
            self._tile(block, begin + row * height, height, channel, first)
        if height > 1:
            with emit.loop(rows % height) as row:
                self._tile(block, begin + (rows // height * height + row), 1, channel, first)

    def _tile(self, block: Block, row: Index, height: int, channel: Index, first: Index) -> None:
        plan, emit, workload = self.plan, self.emit, self.plan.workload
        parts = 1
        while parts * height * len(block.vectors) < LATENCY and 2 * parts <= plan.steps:
            parts *= 2
        tile = Tile(emit, plan.products, self.code, block, height, parts)
        tile.start(channel)
        places = [[row + number, emit.index(0)] for number in range(height)]
        run = Run(self.data, workload.data, workload.channels[0])
        tile.run(run, places, self.packed, first, plan.schedule.unroll)
        tile.finish(self.output, lambda number: (row + number,), channel)


def _band(workload: Dense, machine: Machine, height: int) -> int:
    """Rows of a task, a multiple of the tile's: they stay in the cache, and every core has work."""
    row_bytes = workload.channels[0] * (4 if workload.data == "float32" else 1)
    fits = max(machine.l2_bytes // 4 // row_bytes, 1)
    fair = (
        -(-workload.rows // machine.cores) if workload.rows >= 4 * height * machine.cores else workload.rows
    )
    rows = min(fits, max(fair, _BAND))
    return max(rows // height, 1) * height


def _cost(workload: Dense, products: Products, machine: Machine, rows: int, vectors: int) -> float | None:
    """Relative time of all tiles per step of the sum, or None if a tile does not fit the registers."""
    if rows * vectors + vectors + 1 > machine.registers:
        return None
    blocks = blocks_of(workload.channels[1], vectors, products.lanes)
    rest = len(blocks.rest.vectors) if blocks.rest else 0
    total = 0.0
    for count, repeats in ((vectors, blocks.count), (rest, 1)):
        if count:
            full, left = divmod(workload.rows, rows)
            total += repeats * (
                full * step_cost(rows, count, products.depth) + left * step_cost(1, count, products.depth)
            )
    weights = workload.channels[0] * vectors * products.lanes * (4 if workload.data == "float32" else 1)
    return total * (1.0 if weights <= machine.l2_bytes // 2 else 1.2)

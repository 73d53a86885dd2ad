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
from greencc.targets._tvm.kernels.costs import TASK, parts_of
from greencc.targets._tvm.kernels.emit import Emit, Expr, Index
from greencc.targets._tvm.kernels.epilogue import EpilogueCode
from greencc.targets._tvm.kernels.product_schedule import product_space
from greencc.targets._tvm.kernels.products import Products, check_pairs, products_of
from greencc.targets._tvm.kernels.template import Schedule
from greencc.targets._tvm.kernels.tile import Run, Tile
from greencc.targets._tvm.machine import Machine
from greencc.targets._tvm.workload import Dense, Workload

if TYPE_CHECKING:
    from tvm.tirx import PrimFunc


class DenseTemplate:
    """Products by constant weights; see `Template`. A schedule's `columns` is 1."""

    def default(self, workload: Workload, machine: Machine) -> Schedule:
        return self.space(workload, machine)[0]

    def space(self, workload: Workload, machine: Machine) -> Sequence[Schedule]:
        assert isinstance(workload, Dense)
        products = products_of(workload.data, workload.pairs_fit, machine)
        return product_space((workload.rows, *workload.channels), products, machine)

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
        self.code = EpilogueCode(emit, workload, workload.channels[1], plan.products.sums)

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

            emit.tasks(rows, plan.chunks, plan.work // plan.chunks, task, band=band)

    def _task(self, begin: Index, rows: Index, chunk: Index) -> None:
        plan, emit = self.plan, self.emit
        self.code.begin()
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
        parts = parts_of(height * len(block.vectors), plan.steps)
        tile = Tile(emit, plan.products, self.code, block, height, parts)
        tile.start(channel)
        places = [[row + number, emit.index(0)] for number in range(height)]
        run = Run(self.data, workload.data, workload.channels[0])
        tile.run(run, places, self.packed, first, plan.schedule.unroll)
        tile.finish(self.output, lambda number: (row + number,), channel)

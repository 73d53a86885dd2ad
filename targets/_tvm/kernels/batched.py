"""Products of two float activations, such as those of attention.

The second operand is copied block by block of columns into a scratch, which also transposes it: lines of the scratch
are neighbours, and every row of the first operand reads it again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from greencc.core.data import Array
from greencc.targets._tvm.kernels.blocks import Block, Blocks, blocks_of
from greencc.targets._tvm.kernels.costs import TASK, parts_of
from greencc.targets._tvm.kernels.emit import Emit, Expr, Index
from greencc.targets._tvm.kernels.epilogue import EpilogueCode
from greencc.targets._tvm.kernels.product_schedule import product_space
from greencc.targets._tvm.kernels.products import FloatProducts
from greencc.targets._tvm.kernels.template import Schedule
from greencc.targets._tvm.kernels.tile import Run, Tile
from greencc.targets._tvm.machine import Machine
from greencc.targets._tvm.workload import BatchedProduct, Workload

if TYPE_CHECKING:
    from tvm.tirx import PrimFunc


class BatchedTemplate:
    """Products of activations; see `Template`. Arguments are both operands; nothing is packed."""

    def default(self, workload: Workload, machine: Machine) -> Schedule:
        return self.space(workload, machine)[0]

    def space(self, workload: Workload, machine: Machine) -> Sequence[Schedule]:
        assert isinstance(workload, BatchedProduct)
        return product_space(workload.shape, FloatProducts(machine.lanes), machine)

    def pack(
        self, workload: Workload, schedule: Schedule, machine: Machine, weights: Array
    ) -> tuple[Array, ...]:
        """There are no constants."""
        return ()

    def build(self, workload: Workload, schedule: Schedule, machine: Machine, name: str) -> PrimFunc:
        assert isinstance(workload, BatchedProduct)
        from tvm.script.ir_builder import IRBuilder

        with IRBuilder() as builder:
            _Code(_Plan(workload, schedule, machine), Emit(machine), name).write()
        return builder.get()


BATCHED = BatchedTemplate()


@dataclass(frozen=True)
class _Plan:
    workload: BatchedProduct
    schedule: Schedule
    machine: Machine

    def __post_init__(self) -> None:
        schedule = self.schedule
        if min(schedule.rows, schedule.vectors, schedule.unroll) < 1 or schedule.columns != 1:
            raise ValueError(f"{schedule} is none of a product")

    @cached_property
    def products(self) -> FloatProducts:
        return FloatProducts(self.machine.lanes)

    @cached_property
    def blocks(self) -> Blocks:
        """Without padded lanes: what they would hold is not there to be read."""
        columns = self.workload.shape[2]
        return blocks_of(columns, self.schedule.vectors, self.products.lanes, narrowest=1)

    @property
    def work(self) -> int:
        """Operations of vectors for a product."""
        rows, depth, columns = self.workload.shape
        return rows * depth * -(-columns // self.products.lanes)

    @property
    def chunks(self) -> int:
        """Tasks that share a product's columns."""
        return max(1, min(self.blocks.count, self.work // TASK, self.machine.cores))


class _Code:
    def __init__(self, plan: _Plan, emit: Emit, name: str) -> None:
        self.plan = plan
        self.emit = emit
        self.name = name
        self.code = EpilogueCode(emit, plan.workload, plan.workload.shape[2], "float32")

    def write(self) -> None:
        plan, emit = self.plan, self.emit
        rows, depth, columns = plan.workload.shape
        with emit.function(self.name):
            samples = emit.T.int64()
            self.left = emit.argument("left", (samples, rows, depth), "float32")
            second = (columns, depth) if plan.workload.transposed else (depth, columns)
            self.right = emit.argument("right", (samples, *second), "float32")
            shape = (samples, rows, columns)
            self.code.arguments(shape)
            self.output = emit.argument("output", shape, plan.workload.epilogue.dtype)
            emit.tasks(samples, plan.chunks, plan.work // plan.chunks, self._task)

    def _task(self, task: Expr) -> None:
        plan, emit, blocks = self.plan, self.emit, self.plan.blocks
        self.code.begin()
        sample, chunk = task // plan.chunks, task % plan.chunks
        width = blocks.main.channels
        if blocks.count:
            with emit.share(blocks.count, chunk, plan.chunks) as block:
                self._block(blocks.main, sample, block * width)
        if blocks.rest is not None:
            with emit.when(chunk == plan.chunks - 1):
                self._block(blocks.rest, sample, emit.index(blocks.count * width))

    def _block(self, block: Block, sample: Index, column: Index) -> None:
        rows, height = self.plan.workload.shape[0], min(self.plan.schedule.rows, self.plan.workload.shape[0])
        copied = self._copy(block, sample, column)
        with self.emit.loop(rows // height) as row:
            self._tile(block, copied, sample, row * height, height, column)
        if rows % height:
            begin = self.emit.index(rows - rows % height)
            self._tile(block, copied, sample, begin, rows % height, column)

    def _copy(self, block: Block, sample: Index, column: Index) -> Expr:
        """The block's columns of the second operand, row by row."""
        emit, depth, width = self.emit, self.plan.workload.shape[1], block.channels
        copied = emit.scratch("float32", max(depth * width, 1))
        if self.plan.workload.transposed:
            with emit.loop(width) as number, emit.loop(depth) as row:
                value = emit.load(self.right, [sample, column + number, row], 1)
                emit.store(copied, [row * width + number], value, 1)
            return copied
        with emit.loop(depth) as row:
            for vector in block.vectors:
                value = emit.load(self.right, [sample, row, column + vector.channel], vector.lanes)
                emit.store(copied, [row * width + vector.channel], value, vector.lanes)
        return copied

    def _tile(
        self, block: Block, copied: Expr, sample: Index, row: Index, height: int, column: Index
    ) -> None:
        plan, emit = self.plan, self.emit
        depth = plan.workload.shape[1]
        parts = parts_of(height * len(block.vectors), depth)
        tile = Tile(emit, plan.products, self.code, block, height, parts)
        tile.start(column)
        places = [[sample, row + number, emit.index(0)] for number in range(height)]
        run = Run(self.left, "float32", depth)
        tile.run(run, places, copied, emit.index(0), plan.schedule.unroll)
        tile.finish(self.output, lambda number: (sample, row + number), column)

"""Direct convolution over NHWC data, with sums in registers.

A task is a band of output rows of a sample. With borders, its input rows are first copied into a scratch whose borders
hold the zero point; then block by block of output channels, so that a block's weights stay in the cache, register tiles
go over the band. A row of the kernel is one run of neighbouring inputs (columns x channels) where they are neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from greencc.core.data import Array
from greencc.targets._tvm.kernels.blocks import Block, Blocks, blocks_of, pack_blocks
from greencc.targets._tvm.kernels.conv_schedule import conv_space
from greencc.targets._tvm.kernels.copy import copy_row
from greencc.targets._tvm.kernels.costs import LINE, TASK, crowded, item_bytes
from greencc.targets._tvm.kernels.emit import Emit, Expr, Index
from greencc.targets._tvm.kernels.epilogue import EpilogueCode
from greencc.targets._tvm.kernels.products import Products, check_pairs, products_of
from greencc.targets._tvm.kernels.template import Schedule
from greencc.targets._tvm.kernels.tile import Run, Tile
from greencc.targets._tvm.machine import Machine
from greencc.targets._tvm.workload import Conv, Workload, reads_zero_point

if TYPE_CHECKING:
    from tvm.tirx import PrimFunc


class ConvTemplate:
    """Convolutions that are not depthwise; see `Template`."""

    def default(self, workload: Workload, machine: Machine) -> Schedule:
        return self.space(workload, machine)[0]

    def space(self, workload: Workload, machine: Machine) -> Sequence[Schedule]:
        assert isinstance(workload, Conv)
        products = products_of(workload.data, workload.pairs_fit, machine)
        return conv_space(workload, products, machine)

    def pack(
        self, workload: Workload, schedule: Schedule, machine: Machine, weights: Array
    ) -> tuple[Array, ...]:
        assert isinstance(workload, Conv)
        plan = _Plan(workload, schedule, machine)
        check_pairs(workload.data, workload.pairs_fit, weights, machine)
        groups, (height, width) = workload.groups, workload.window.kernel
        run_first = weights.reshape(groups, -1, plan.inputs, height, width).transpose(0, 3, 4, 2, 1)
        runs = run_first.reshape(groups, height * plan.segments, plan.run, -1)
        missing = plan.steps * plan.products.depth - plan.run
        runs = np.pad(runs, ((0, 0), (0, 0), (0, missing), (0, 0)))
        steps = runs.reshape(groups, -1, plan.products.depth, runs.shape[-1])
        return (pack_blocks(plan.products, plan.blocks, steps),)

    def build(self, workload: Workload, schedule: Schedule, machine: Machine, name: str) -> PrimFunc:
        assert isinstance(workload, Conv)
        from tvm.script.ir_builder import IRBuilder

        plan = _Plan(workload, schedule, machine)
        with IRBuilder() as builder:
            _Code(plan, Emit(machine), name).write()
        return builder.get()


CONV = ConvTemplate()


@dataclass(frozen=True)
class _Plan:
    """Sizes that follow from workload and schedule."""

    workload: Conv
    schedule: Schedule
    machine: Machine

    def __post_init__(self) -> None:
        schedule, rows = self.schedule, self.workload.window.output[0]
        if min(schedule.rows, schedule.columns, schedule.vectors, schedule.band, schedule.unroll) < 1:
            raise ValueError(f"{schedule} has a number below 1")
        if self.bands > 1 and schedule.band % schedule.rows:
            raise ValueError(f"a band of {schedule.band} rows does not consist of tiles of {schedule.rows}")
        if rows < 1 or self.workload.window.output[1] < 1:
            raise ValueError("the output is empty")

    @cached_property
    def products(self) -> Products:
        return products_of(self.workload.data, self.workload.pairs_fit, self.machine)

    @property
    def inputs(self) -> int:
        """Input channels of a group."""
        return self.workload.channels[0] // self.workload.groups

    @property
    def outputs(self) -> int:
        """Output channels of a group."""
        return self.workload.channels[1] // self.workload.groups

    @cached_property
    def blocks(self) -> Blocks:
        return blocks_of(self.outputs, self.schedule.vectors, self.products.lanes)

    @property
    def copied(self) -> bool:
        """The input rows of a band are copied."""
        return any(self.workload.window.pads) or self._crowded(self.workload.channels[0])

    @cached_property
    def pixel(self) -> int:
        """From one input pixel to the next, where tiles read."""
        if not self.copied:
            return self.workload.channels[0]
        crowded = self._crowded(self.inputs)
        return self.inputs + (LINE // item_bytes(self.workload.data) if crowded else 0)

    def _crowded(self, pixel: int) -> bool:
        pixels = self.schedule.rows * self.schedule.columns
        distance = pixel * item_bytes(self.workload.data) * self.workload.window.strides[1]
        return crowded(distance, pixels, self.machine)

    @property
    def width(self) -> int:
        """Columns of an input row, where tiles read; of a copy, only those that are needed."""
        window = self.workload.window
        if not self.copied:
            return window.width
        return (window.output[1] - 1) * window.strides[1] + (window.kernel[1] - 1) * window.dilations[1] + 1

    @property
    def segments(self) -> int:
        """Runs of neighbouring inputs in a row of the kernel: one, or one per column."""
        neighbours = self.workload.window.dilations[1] == 1 and self.pixel == self.inputs
        return 1 if neighbours else self.workload.window.kernel[1]

    @property
    def run(self) -> int:
        """Inputs of a run."""
        return self.inputs * (self.workload.window.kernel[1] // self.segments)

    @property
    def steps(self) -> int:
        """Steps of a run."""
        return -(-self.run // self.products.depth)

    @property
    def all_steps(self) -> int:
        """Steps of a whole sum."""
        return self.workload.window.kernel[0] * self.segments * self.steps

    @property
    def band(self) -> int:
        """Output rows of a task."""
        return min(self.schedule.band, self.workload.window.output[0])

    @property
    def bands(self) -> int:
        return -(-self.workload.window.output[0] // self.band)

    @property
    def chunks(self) -> int:
        """Tasks that share a band's output channels, where there are fewer bands than cores."""
        shared = self.workload.groups if self.workload.groups > 1 else self.blocks.count
        worth = self.work // self.bands // TASK
        return max(1, min(shared, worth, -(-self.machine.cores // self.bands)))

    @property
    def work(self) -> int:
        """Operations of vectors for a sample."""
        rows, columns = self.workload.window.output
        vectors = -(-self.outputs // self.products.lanes) * self.workload.groups
        return rows * columns * vectors * self.all_steps

    def input_rows(self, rows: Index) -> Index:
        """Input rows that `rows` output rows read."""
        window = self.workload.window
        return (rows - 1) * window.strides[0] + (window.kernel[0] - 1) * window.dilations[0] + 1

    @property
    def scratch(self) -> Index:
        """Elements of a band's copy; behind the last run, a step may read up to its depth."""
        return self.input_rows(self.band) * self.width * self.pixel + self.products.depth - 1


class _Code:
    def __init__(self, plan: _Plan, emit: Emit, name: str) -> None:
        self.plan = plan
        self.emit = emit
        self.name = name
        workload = plan.workload
        self.code = EpilogueCode(emit, workload, workload.channels[1], plan.products.sums)

    def write(self) -> None:
        plan, emit, workload = self.plan, self.emit, self.plan.workload
        window, (inputs, outputs) = workload.window, workload.channels
        with emit.function(self.name):
            samples = emit.T.int64()
            self.data = emit.argument("data", (samples, window.height, window.width, inputs), workload.data)
            packed = workload.groups * plan.blocks.size(plan.products, plan.all_steps)
            self.packed = emit.argument("weights", (packed,), plan.products.weights)
            shape = (samples, *window.output, outputs)
            self.code.arguments(shape)
            self.output = emit.argument("output", shape, workload.epilogue.dtype)
            tasks = plan.bands * plan.chunks
            emit.tasks(samples, tasks, plan.work // tasks, self._task)

    def _task(self, task: Expr) -> None:
        plan, emit = self.plan, self.emit
        self.code.begin()
        self.sample = task // (plan.bands * plan.chunks)
        self.band = task // plan.chunks % plan.bands
        self.chunk = task % plan.chunks
        self.source = emit.scratch(plan.workload.data, plan.scratch) if plan.copied else None
        groups, blocks, chunks = plan.workload.groups, plan.blocks, plan.chunks
        if groups > 1:
            with emit.share(groups, self.chunk, chunks) as group:
                self._copy(group)
                with emit.loop(blocks.count) as block:
                    self._main(group, block)
                self._rest(group)
            return
        self._copy(0)
        if blocks.count:
            with emit.share(blocks.count, self.chunk, chunks) as block:
                self._main(0, block)
        with emit.when(self.chunk == chunks - 1):
            self._rest(0)

    def _main(self, group: Index, block: Index) -> None:
        plan = self.plan
        blocks, size = plan.blocks, plan.blocks.size(plan.products, plan.all_steps)
        first = group * size + block * (plan.all_steps * blocks.main.elements(plan.products)[-1])
        self._block(blocks.main, group, group * plan.outputs + block * blocks.main.channels, first)

    def _rest(self, group: Index) -> None:
        plan, blocks = self.plan, self.plan.blocks
        if blocks.rest is None:
            return
        size, offset = (
            blocks.size(plan.products, plan.all_steps),
            blocks.rest_offset(plan.products, plan.all_steps),
        )
        channel = group * plan.outputs + blocks.count * blocks.main.channels
        self._block(blocks.rest, group, channel, group * size + offset)

    def _copy(self, group: Index) -> None:
        """Input rows of the band, and what is around the image."""
        plan, emit = self.plan, self.emit
        if not plan.copied:
            return
        workload, window = plan.workload, plan.workload.window
        top, left = window.pads[:2]
        columns = max(0, min(window.width, plan.width - left))
        left = min(left, plan.width)

        def fill(lanes: int) -> Expr:
            if not reads_zero_point(workload):
                return emit.splat(workload.data, 0, lanes)
            return self.code.border(workload.data, lanes)

        with emit.loop(plan.input_rows(self._rows())) as row:
            line = row * (plan.width * plan.pixel)
            y = self.band * (plan.band * window.strides[0]) + row - top
            copy_row(
                emit,
                self.source,
                line,
                self.data,
                (self.sample, y, group * plan.inputs),
                inside=emit.T.And(y >= 0, y < window.height) if any(window.pads[::2]) else None,
                borders=(left, plan.width - left - columns),
                shape=(columns, plan.inputs),
                pixel=plan.pixel,
                channels=workload.channels[0],
                fill=fill,
                dtype=workload.data,
            )

    def _rows(self) -> Index:
        """Output rows of the band; the last may be shorter."""
        plan = self.plan
        rows = plan.workload.window.output[0]
        if rows % plan.band == 0:
            return plan.band
        return self.emit.T.min(self.emit.index(plan.band), rows - self.band * plan.band)

    def _block(self, block: Block, group: Index, channel: Index, first: Index) -> None:
        """All tiles of a block in the band; `first`: where its packed weights begin."""
        plan, emit, schedule = self.plan, self.emit, self.plan.schedule
        height = min(schedule.rows, plan.band)
        rest = plan.workload.window.output[0] % height
        rows = self._rows()
        with emit.loop(rows // height) as row:
            self._columns(block, group, channel, first, row * height, height)
        if rest:
            begin = rows - rest
            if plan.bands == 1:
                self._columns(block, group, channel, first, begin, rest)
            else:
                with emit.when(self.band == plan.bands - 1):
                    self._columns(block, group, channel, first, begin, rest)

    def _columns(
        self, block: Block, group: Index, channel: Index, first: Index, row: Index, height: int
    ) -> None:
        columns = self.plan.workload.window.output[1]
        width = min(self.plan.schedule.columns, columns)
        with self.emit.loop(columns // width) as column:
            self._tile(block, group, channel, first, (row, column * width), (height, width))
        rest = columns % width
        if rest:
            begin = self.emit.index(columns - rest)
            self._tile(block, group, channel, first, (row, begin), (height, rest))

    def _tile(
        self,
        block: Block,
        group: Index,
        channel: Index,
        first: Index,
        corner: tuple[Index, Index],
        size: tuple[int, int],
    ) -> None:
        plan, emit = self.plan, self.emit
        window = plan.workload.window
        pixels = [(row, column) for row in range(size[0]) for column in range(size[1])]
        tile = Tile(emit, plan.products, self.code, block, len(pixels))
        tile.start(channel)
        run = Run(self._buffer, plan.workload.data, plan.run, slack=plan.copied)
        with emit.loop(window.kernel[0]) as y, emit.loop(plan.segments) as x:
            places = [
                self._input(
                    group,
                    (corner[0] + row) * window.strides[0] + y * window.dilations[0],
                    (corner[1] + column) * window.strides[1] + x * window.dilations[1],
                )
                for row, column in pixels
            ]
            weights = first + (y * plan.segments + x) * (plan.steps * tile.step_elements)
            tile.run(run, places, self.packed, weights, plan.schedule.unroll)
        begin = self.band * plan.band
        wide = size[1]
        tile.finish(
            self.output,
            lambda pixel: (self.sample, begin + corner[0] + pixel // wide, corner[1] + pixel % wide),
            channel,
        )

    @property
    def _buffer(self) -> Expr:
        return self.data if self.source is None else self.source

    def _input(self, group: Index, row: Index, column: Index) -> Sequence[Index]:
        """Indices of a pixel's first channel; the row is counted from the band's first."""
        plan = self.plan
        if self.source is not None:
            return [(row * plan.width + column) * plan.pixel]
        row = row + self.band * (plan.band * plan.workload.window.strides[0])
        return [self.sample, row, column, group * plan.inputs]

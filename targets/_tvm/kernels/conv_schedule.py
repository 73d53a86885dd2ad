"""Schedules of convolutions, in the order of a simple model of the core."""

from __future__ import annotations

from collections.abc import Sequence

from greencc.targets._tvm.kernels.blocks import blocks_of
from greencc.targets._tvm.kernels.products import Products
from greencc.targets._tvm.kernels.template import Schedule
from greencc.targets._tvm.machine import Machine
from greencc.targets._tvm.workload import Conv

_SPACE = 64
LATENCY = 8
"""Operations that must be on their way to hide how long one takes."""
TASK = 1 << 19
"""Steps of one lane that are worth a task."""


def conv_space(workload: Conv, products: Products, machine: Machine) -> Sequence[Schedule]:
    """Schedules worth trying, the best by the model first."""
    rows, columns = workload.window.output
    outputs = workload.channels[1] // workload.groups
    vectors = len(blocks_of(outputs, 1, products.lanes).main.vectors) * -(-outputs // products.lanes)
    tiles = {
        (height, width, count): cost
        for count in range(1, min(vectors, 6) + 1)
        for height in range(1, min(rows, 8) + 1)
        for width in range(1, min(columns, machine.registers) + 1)
        if (cost := tile_cost(workload, products, machine, (height, width, count))) is not None
    }
    best = sorted(tiles, key=lambda tile: (tiles[tile], tile))[: _SPACE // 2]
    schedules = [
        Schedule(height, width, count, band_of(workload, machine, height)) for height, width, count in best
    ]
    return schedules + [Schedule(s.rows, s.columns, s.vectors, s.band, unroll=2) for s in schedules]


def band_of(workload: Conv, machine: Machine, height: int) -> int:
    """Output rows of a task, a multiple of the tile's: its input stays in the cache, and every core has work."""
    window, (inputs, outputs) = workload.window, workload.channels
    rows, columns = window.output
    size = 4 if workload.data == "float32" else 1
    row_bytes = window.width * (inputs // workload.groups) * size * window.strides[0]
    halo = (window.kernel[0] - 1) * window.dilations[0] // window.strides[0]
    fits = max(machine.l2_bytes // 4 // max(row_bytes, 1) - halo, 1)
    work = columns * outputs * inputs // workload.groups * window.kernel[0] * window.kernel[1]
    worth = max(TASK // max(work, 1), 1)
    fair = -(-rows // (2 * machine.cores)) if machine.cores > 1 else rows
    band = max(min(fits, max(fair, worth)), 4 * halo)
    if band >= rows:
        return rows
    count = -(-rows // band)
    even = -(-rows // count)
    return min(-(-even // height) * height, -(-rows // height) * height)


def tile_cost(
    workload: Conv, products: Products, machine: Machine, tile: tuple[int, int, int]
) -> float | None:
    """Relative time of all tiles per step of the sum, or None if a tile does not fit the registers."""
    height, width, count = tile
    if height * width * count + count + 1 > machine.registers:
        return None
    rows, columns = workload.window.output
    outputs = workload.channels[1] // workload.groups
    blocks = blocks_of(outputs, count, products.lanes)
    kernel = workload.window.kernel
    depth = workload.channels[0] // workload.groups * kernel[0] * kernel[1]
    total = 0.0
    for vectors, repeats in ((count, blocks.count), (len(blocks.rest.vectors) if blocks.rest else 0, 1)):
        for high, tall in ((height, rows // height), (rows % height, 1)):
            for wide, many in ((width, columns // width), (columns % width, 1)):
                if vectors and high and wide:
                    total += repeats * tall * many * step_cost(high * wide, vectors)
    weights = depth * count * products.lanes * (4 if workload.data == "float32" else 1)
    return total * (1.0 if weights <= machine.l2_bytes // 2 else 1.2)


def step_cost(pixels: int, vectors: int) -> float:
    """Operations, or loads (weights and inputs, two at a time), or the wait for sums; and a little for the loop."""
    return max(pixels * vectors, (pixels + 2 * vectors) * 0.6, LATENCY) + 0.5

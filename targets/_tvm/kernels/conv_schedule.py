"""Schedules of convolutions, in the order of a simple model of the core."""

from __future__ import annotations

from collections.abc import Sequence

from greencc.targets._tvm.kernels.blocks import blocks_of
from greencc.targets._tvm.kernels.costs import TASK, burden, fits, item_bytes, step_cost
from greencc.targets._tvm.kernels.products import Products
from greencc.targets._tvm.kernels.template import Schedule
from greencc.targets._tvm.machine import Machine
from greencc.targets._tvm.workload import Conv

_SPACE = 64
_PARTIAL = 1.5
"""How much longer a tile at the edge takes than its operations, as measured: more code, and colder."""


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
        Schedule(height, width, count, band_of(workload, products, machine, height))
        for height, width, count in best
    ]
    return schedules + [Schedule(s.rows, s.columns, s.vectors, s.band, unroll=2) for s in schedules]


def band_of(workload: Conv, products: Products, machine: Machine, height: int) -> int:
    """Output rows of a task, a multiple of the tile's: its input stays in the cache, and every core has work."""
    window, (inputs, outputs) = workload.window, workload.channels
    rows, columns = window.output
    size = item_bytes(workload.data)
    row_bytes = window.width * (inputs // workload.groups) * size * window.strides[0]
    halo = (window.kernel[0] - 1) * window.dilations[0] // window.strides[0]
    cached = max(machine.l2_bytes // 4 // max(row_bytes, 1) - halo, 1)
    depth = inputs // workload.groups * window.kernel[0] * window.kernel[1] // products.depth
    work = columns * -(-outputs // products.lanes) * depth
    worth = max(TASK // max(work, 1), 1)
    fair = -(-rows // (2 * machine.cores)) if machine.cores > 1 else rows
    band = max(min(cached, max(fair, worth)), 4 * halo)
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
    if not fits(height * width, count, machine):
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
                    partial = _PARTIAL if (high, wide) != (height, width) else 1.0
                    step = step_cost(high * wide, vectors, products.depth)
                    total += repeats * tall * many * step * partial
    weights = depth * count * products.lanes * item_bytes(workload.data)
    return total * burden(height * width, count, weights, machine)

"""Schedules of convolutions, in the order of a simple model of the core."""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd

from greencc.targets._tvm.kernels.blocks import blocks_of
from greencc.targets._tvm.kernels.products import Products
from greencc.targets._tvm.kernels.template import Schedule
from greencc.targets._tvm.machine import Machine
from greencc.targets._tvm.workload import Conv

_SPACE = 64
LATENCY = 8
"""Operations that must be on their way to hide how long one takes."""
TASK = 1 << 15
"""Operations of vectors that are worth a task."""
LINE = 64
"""Bytes of a cache line."""
_WAYS = 8
"""Lines that a set of the level-1 cache holds, at least on most processors."""


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


def item_bytes(dtype: str) -> int:
    """Bytes of an element."""
    return 4 if dtype == "float32" else 1


def crowded(distance: int, pixels: int, machine: Machine) -> bool:
    """True if so many addresses, `distance` bytes apart, push each other out of the level-1 cache."""
    way = machine.l1_bytes // _WAYS
    lines = _WAYS * way // max(gcd(distance, way), LINE)
    return 2 * pixels > lines


def band_of(workload: Conv, products: Products, machine: Machine, height: int) -> int:
    """Output rows of a task, a multiple of the tile's: its input stays in the cache, and every core has work."""
    window, (inputs, outputs) = workload.window, workload.channels
    rows, columns = window.output
    size = item_bytes(workload.data)
    row_bytes = window.width * (inputs // workload.groups) * size * window.strides[0]
    halo = (window.kernel[0] - 1) * window.dilations[0] // window.strides[0]
    fits = max(machine.l2_bytes // 4 // max(row_bytes, 1) - halo, 1)
    depth = inputs // workload.groups * window.kernel[0] * window.kernel[1] // products.depth
    work = columns * -(-outputs // products.lanes) * depth
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
                    total += repeats * tall * many * step_cost(high * wide, vectors, products.depth)
    weights = depth * count * products.lanes * item_bytes(workload.data)
    return total * (1.0 if weights <= machine.l2_bytes // 2 else 1.2)


def step_cost(pixels: int, vectors: int, depth: int) -> float:
    """Operations, or loads, or the wait for sums; and a little for the loop.

    An input is part of a float32 operation, but must be spread over a register for an INT8 one.
    """
    loads = 0.6 * pixels + 1.2 * vectors if depth == 1 else 1.75 * pixels + vectors
    return max(pixels * vectors, loads, LATENCY) + 0.5

"""Schedules of products, in the order of a simple model of the core."""

from __future__ import annotations

from collections.abc import Sequence

from greencc.targets._tvm.kernels.blocks import blocks_of
from greencc.targets._tvm.kernels.costs import burden, fits, item_bytes, step_cost
from greencc.targets._tvm.kernels.products import Products
from greencc.targets._tvm.kernels.template import Schedule
from greencc.targets._tvm.machine import Machine

_SPACE = 64
_ROWS = 4
"""Fewest rows of a tile: batches of more than the expected rows come too."""
_BAND = 32
"""Fewest rows of a task."""


def product_space(shape: tuple[int, int, int], products: Products, machine: Machine) -> Sequence[Schedule]:
    """Schedules worth trying, the best by the model first.

    Args:
        shape: Rows expected, inputs, outputs.
        products: How they are summed.
        machine: What for.
    """
    rows, _, outputs = shape
    vectors = -(-outputs // products.lanes)
    costs = {
        (height, count): cost
        for height in range(_ROWS, min(max(rows, _ROWS), 14) + 1)
        for count in range(1, min(vectors, 6) + 1)
        if (cost := _cost(shape, products, machine, (height, count))) is not None
    }
    best = sorted(costs, key=lambda tile: (costs[tile], tile))[: _SPACE // 2]
    return [
        Schedule(height, 1, count, _band(shape, products, machine, height), unroll)
        for unroll in (1, 2)
        for height, count in best
    ]


def _band(shape: tuple[int, int, int], products: Products, machine: Machine, height: int) -> int:
    """Rows of a task, a multiple of the tile's: they stay in the cache, and every core has work."""
    rows, inputs, _ = shape
    cached = max(machine.l2_bytes // 4 // max(inputs * item_bytes(products.weights), 1), 1)
    fair = -(-rows // machine.cores) if rows >= 4 * height * machine.cores else rows
    return max(min(cached, max(fair, _BAND)) // height, 1) * height


def _cost(
    shape: tuple[int, int, int], products: Products, machine: Machine, tile: tuple[int, int]
) -> float | None:
    """Relative time of all tiles per step of the sum, or None if a tile does not fit the registers."""
    (rows, inputs, outputs), (height, vectors) = shape, tile
    if not fits(height, vectors, machine):
        return None
    blocks = blocks_of(outputs, vectors, products.lanes)
    rest = len(blocks.rest.vectors) if blocks.rest else 0
    full, left = divmod(rows, height)
    total = sum(
        repeats
        * (full * step_cost(height, count, products.depth) + left * step_cost(1, count, products.depth))
        for count, repeats in ((vectors, blocks.count), (rest, 1))
        if count
    )
    weights = inputs * vectors * products.lanes * item_bytes(products.weights)
    return total * burden(height, vectors, weights, machine)
